"""Hunyuan, plain and with experts. Queries and keys are normalised head by head after they are rotated.

Sources: conversion/hunyuan.py for names, values and metadata; src/models/hunyuan-{vl,moe}.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ggufround.arch import rope
from ggufround.arch.checks import activation
from ggufround.arch.config import N_CONTEXT, N_FF, head_dim, integer, n_head, n_layer, number, wrong
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD, NORMS
from ggufround.arch.metadata import COMMON, constant, count, replaced, without
from ggufround.arch.qwen import EXPERTS, HEAD_NORMS, STACKED
from ggufround.arch.spec import KV, Architecture, Config, Rule
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, f32, string, u32

LONG = 256 * 1024  # tokens that the models were trained to: configs say 32768


def stretched(config: Config) -> bool:
    return rope.rope_type(config) == "dynamic"


def base(config: Config) -> Field | None:
    """ "dynamic" means a fixed larger base here: alpha says how much larger, whatever the text's length."""
    if not stretched(config):
        return rope.freq_base(config)
    section, columns = rope.full(config), head_dim(config)
    return f32(number(section, "rope_theta") * number(section, "alpha") ** (columns / (columns - 2)))


def context(config: Config) -> int:
    stated = integer(config, *N_CONTEXT)
    return LONG if stretched(config) and stated == 32768 else stated


def if_stretched(field: Callable[[Config], Field]) -> Callable[[Config], Field | None]:
    return lambda config: field(config) if stretched(config) else None


def base_can_be_told(config: Config) -> None:
    section = rope.full(config)
    if stretched(config) and (section.get("alpha") is None or head_dim(config) <= 2):
        raise UnsupportedError(
            'config.json: rope_type is "dynamic" without alpha; llama.cpp knows none that grows with the text'
        )


AFTER_ROTATION = (
    replace(HEAD_NORMS[0], source="layers.{i}.self_attn.query_layernorm.weight"),
    replace(HEAD_NORMS[1], source="layers.{i}.self_attn.key_layernorm.weight"),
)
STRETCHED = (
    KV("rope.scaling.type", if_stretched(lambda config: string("none"))),
    KV("rope.scaling.factor", if_stretched(lambda config: f32(1.0))),
    KV("rope.scaling.original_context_length", if_stretched(lambda config: u32(context(config)))),
)
KVS = replaced(
    without(COMMON, *(kv.key for kv in STRETCHED)),
    KV("context_length", lambda config: u32(context(config))),
    KV("rope.freq_base", base),
)

HUNYUAN = Architecture(
    name="hunyuan-dense",
    classes=("HunYuanDenseV1ForCausalLM",),
    rules=(*ENDS, *NORMS, *ATTENTION, *AFTER_ROTATION, *FEED_FORWARD),
    kvs=(*without(KVS, "expert_count"), *STRETCHED),
    tokenizers=("hunyuan",),
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_key_value_heads": n_head,
        "head_dim": head_dim,
    },
    checks=(activation("silu", "swish"), base_can_be_told),
    rope_types=("default", "dynamic"),
)


def same(key: str) -> Callable[[Config], int | None]:
    """A number that some configs state once, others for each layer; llama.cpp has one for all."""

    def read(config: Config) -> int | None:
        value = config.get(key)
        if not isinstance(value, list):
            return None if value is None else integer(config, key)
        if len(value) != n_layer(config) or any(each != value[0] for each in value):
            raise wrong(key, value, f"one number, or {n_layer(config)} that are the same")
        return integer({key: value[0]}, key)

    return read


def one_size(config: Config) -> None:
    """transformers and llama.cpp give all experts the size of intermediate_size."""
    for key, expected in (("moe_intermediate_size", integer(config, *N_FF)), ("num_shared_expert", 1)):
        if (value := same(key)(config)) not in (None, expected):
            raise wrong(key, value, f"{expected}: llama.cpp has no other experts here")


def used(config: Config) -> Field:
    return u32(same("moe_topk")(config) or 1)


SHARED = tuple(
    Rule(f"layers.{{i}}.mlp.shared_mlp.{name}_proj.weight", f"blk.{{i}}.ffn_{name}_shexp.weight", shape)
    for name, shape in (("gate", "ff embd"), ("up", "ff embd"), ("down", "embd ff"))
)

# Experts, and one for all tokens, in place of the feed-forward part.
HUNYUAN_MOE = replace(
    HUNYUAN,
    name="hunyuan-moe",
    classes=("HunYuanMoEV1ForCausalLM",),
    rules=(
        *ENDS,
        *NORMS,
        *ATTENTION,
        *AFTER_ROTATION,
        replace(EXPERTS[0], source="layers.{i}.mlp.gate.wg.weight"),
        *(replace(rule, shape=rule.shape.replace("expert_ff", "ff")) for rule in (*EXPERTS[1:], *STACKED)),
        *SHARED,
    ),
    kvs=(
        *without(KVS, "expert_used_count"),
        KV("expert_shared_feed_forward_length", count(*N_FF)),
        KV("expert_feed_forward_length", count(*N_FF)),
        KV("expert_used_count", used),
        KV("expert_shared_count", constant(u32(1))),
        *STRETCHED,
    ),
    tokenizers=("bpe",),
    checks=(*HUNYUAN.checks, one_size),
)

FAMILY = (HUNYUAN, HUNYUAN_MOE)
