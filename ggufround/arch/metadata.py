"""Metadata of a converted model: `general.*` first, then what the architecture's table of KVs reads from the config.

The keys and their order are those of `TextModel.set_gguf_parameters` (llama.cpp, conversion/base.py). file_type,
quantization_version and tokenizer.* are added where they are known.
"""

from __future__ import annotations

from math import prod

import numpy as np

from ggufround.arch import rope
from ggufround.arch.config import (
    N_CONTEXT,
    N_EMBD,
    N_EXPERT,
    N_EXPERT_USED,
    N_FF,
    N_HEAD,
    N_HEAD_KV,
    flatten,
    integer,
    n_layer,
    number,
    optional_integer,
    optional_number,
)
from ggufround.arch.general import general
from ggufround.arch.layout import numbers, outputs, without_prefixes
from ggufround.arch.spec import KV, Architecture, Config, Layout, Output, Reader
from ggufround.checkpoint.reading import Reader as OpenFiles
from ggufround.checkpoint.spec import Checkpoint
from ggufround.gguf_file import Field, Kind, array, f32, string, u32


def count(*keys: str) -> Reader:
    """A u32 that the config must state under one of `keys`."""
    return lambda config: u32(integer(config, *keys))


def real(*keys: str) -> Reader:
    """An f32 that the config must state under one of `keys`."""
    return lambda config: f32(number(config, *keys))


def count_if_stated(*keys: str) -> Reader:
    def read(config: Config) -> Field | None:
        value = optional_integer(config, *keys)
        return None if value is None else u32(value)

    return read


def real_if_stated(*keys: str, zero: bool = True) -> Reader:
    """An f32 if the config states it; with `zero` false, 0 counts as not stated."""

    def read(config: Config) -> Field | None:
        value = optional_number(config, *keys)
        return None if value is None or not (value or zero) else f32(value)

    return read


def constant(field: Field) -> Reader:
    return lambda config: field


COMMON = (
    KV("block_count", lambda config: u32(n_layer(config))),
    KV("context_length", count_if_stated(*N_CONTEXT)),
    KV("embedding_length", count(*N_EMBD)),
    KV("feed_forward_length", count(*N_FF)),
    KV("attention.head_count", count(*N_HEAD)),
    KV("attention.head_count_kv", count_if_stated(*N_HEAD_KV)),
    KV("rope.scaling.type", rope.scaling_type),
    KV("rope.scaling.factor", rope.scaled_number(("linear", "yarn"), "factor")),
    KV("rope.scaling.original_context_length", rope.yarn_context),
    KV("rope.scaling.yarn_ext_factor", rope.scaled_number(("yarn",), "extrapolation_factor")),
    KV("rope.scaling.yarn_attn_factor", rope.scaled_number(("yarn",), "attention_factor", "attn_factor")),
    KV("rope.scaling.yarn_beta_fast", rope.scaled_number(("yarn",), "beta_fast")),
    KV("rope.scaling.yarn_beta_slow", rope.scaled_number(("yarn",), "beta_slow")),
    KV("rope.scaling.attn_factor", rope.yarn_correction),
    KV("rope.freq_base", rope.freq_base),
    KV("rope.freq_base_swa", rope.freq_base_sliding),
    KV("attention.layer_norm_rms_epsilon", real_if_stated("rms_norm_eps", "norm_eps")),
    KV("attention.layer_norm_epsilon", real_if_stated("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")),
    KV("expert_count", count_if_stated(*N_EXPERT)),
    KV("expert_used_count", count_if_stated(*N_EXPERT_USED)),
    KV("attention.key_length", count_if_stated("head_dim")),
    KV("attention.value_length", count_if_stated("head_dim")),
)


def without(kvs: tuple[KV, ...], *keys: str) -> tuple[KV, ...]:
    """The rows of `kvs` but those of `keys`."""
    return tuple(kv for kv in kvs if kv.key not in keys)


def replaced(kvs: tuple[KV, ...], *rows: KV) -> tuple[KV, ...]:
    """`kvs` with the rows of the same keys replaced in place; rows of new keys follow."""
    new = {row.key: row for row in rows}
    return tuple(new.pop(kv.key, kv) for kv in kvs) + tuple(new.values())


def metadata(arch: Architecture, checkpoint: Checkpoint, layout: Layout | None = None) -> dict[str, Field]:
    """The `general.*` and `{arch}.*` fields in llama.cpp's order. Raises InputError naming the key of config.json that
    is missing or of the wrong type."""
    config = flatten(checkpoint.config, arch.defaults)
    fields = {"general.architecture": string(arch.name), "general.type": string("model")}
    fields |= general(checkpoint, parameter_count((layout or outputs(arch, checkpoint)).outputs))
    read = {f"{arch.name}.{kv.key}": kv.read(config) for kv in arch.kvs}
    return (
        fields | {key: field for key, field in read.items() if field is not None} | _numbers(arch, checkpoint, config)
    )


def _numbers(arch: Architecture, checkpoint: Checkpoint, config: Config) -> dict[str, Field]:
    """What the checkpoint holds in tensors of a number each, and the file as lists."""
    if not arch.numbers:
        return {}
    found = numbers(arch, config, without_prefixes(arch, checkpoint))
    one, none = np.empty((1, 1), np.float32), np.empty(0, np.uint8)
    fields = {}
    with OpenFiles(checkpoint) as reader:
        for key, refs in found.items():
            values = []
            for ref in refs:
                reader.read_rows(ref, 0, 1, one, none)
                values.append(float(one[0, 0]))
            fields[key] = array(Kind.F32, values)
    return fields


def parameter_count(tensors: tuple[Output, ...]) -> dict[str, int]:
    """Parameters in all, those outside the experts, those of one expert in each stack, and experts in a stack: what
    size labels are made of (`GGUFWriter.get_total_parameter_count`)."""
    stacks = [tensor.shape for tensor in tensors if "_exps." in tensor.name and len(tensor.shape) >= 3]
    total = sum(prod(tensor.shape) for tensor in tensors)
    return {
        "total": total,
        "shared": total - sum(prod(shape) for shape in stacks),
        "expert": sum(prod(shape) // shape[-3] for shape in stacks),
        "experts": sum(shape[-3] for shape in stacks) // len(stacks) if stacks else 0,
    }
