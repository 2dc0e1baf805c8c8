"""State-space models: Mamba and Mamba-2, in the names of transformers and of the original mamba_ssm.

Sources: conversion/mamba.py for names, values and metadata; src/models/mamba*.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ggufround.arch.checks import activation, fixed
from ggufround.arch.config import find, integer, n_layer, optional_integer, optional_number, shown, wrong
from ggufround.arch.metadata import constant
from ggufround.arch.spec import KV, Architecture, Config, Reader, Rule, Transform
from ggufround.arch.transforms import decay, decay_logarithm
from ggufround.errors import InputError, UnsupportedError
from ggufround.gguf_file import Field, Kind, f32, u32

CONTEXT = 2**20  # a recurrent model has no limit; this is what the converter states
UNTUNABLE = "transformers multiplies with its dt_proj in a way that does not show what goes into it"

D_MODEL = ("hidden_size", "d_model", "dim")


def d_model(config: Config) -> int:
    return integer(config, *D_MODEL)


def padded_vocab(multiple: int) -> Callable[[Config], int]:
    """Rows of the embedding: mamba_ssm's configs state the tokenizer's size and round up, to `multiple` if silent;
    transformers' configs state the rows."""

    def read(config: Config) -> int:
        stated = optional_integer(config, "pad_vocab_size_multiple")
        to = stated or (1 if "hidden_size" in config else multiple)
        return -(integer(config, "vocab_size") // -to) * to

    return read


def or_default(value: int, *keys: str) -> Callable[[Config], int]:
    """A stated number above 0, or the one that the original code has as its default."""
    return lambda config: optional_integer(config, *keys) or value


def epsilon(config: Config) -> Field:
    return f32(optional_number(config, "layer_norm_epsilon", "rms_norm_eps") or 1e-5)


def sized(size: Callable[[Config], int]) -> Reader:
    return lambda config: u32(size(config))


def decays(config: Config) -> Transform:
    return Transform(decay, back=decay_logarithm)


D_CONV = or_default(4, "conv_kernel", "d_conv")
D_STATE = or_default(16, "state_size", "d_state")


def d_inner(config: Config) -> int:
    return optional_integer(config, "intermediate_size", "d_inner") or 2 * d_model(config)


def dt_rank(config: Config) -> int:
    found = find(config, ("time_step_rank", "dt_rank"))
    if found is None or found[1] == "auto":
        return -(d_model(config) // -16)
    return integer(config, found[0])


def doubles_the_embedding(config: Config) -> None:
    if d_inner(config) != 2 * d_model(config) or config.get("expand", 2) != 2:
        raise UnsupportedError(
            f"config.json: an inner size of {d_inner(config)} with an embedding of {d_model(config)}; llama.cpp runs "
            "Mamba with an expansion of 2 only"
        )


ENDS = (
    Rule("embeddings.weight", "token_embd.weight", "vocab embd"),
    Rule("embedding.weight", "token_embd.weight", "vocab embd"),  # as mamba_ssm calls it
    Rule("norm_f.weight", "output_norm.weight", "embd"),
    Rule("lm_head.weight", "output.weight", "vocab embd", optional=True),  # absent: tied to the embedding
)
NORM = Rule("layers.{i}.norm.weight", "blk.{i}.attn_norm.weight", "embd")
PROJECTIONS = (
    Rule("layers.{i}.mixer.in_proj.weight", "blk.{i}.ssm_in.weight", "ssm_in embd"),
    Rule("layers.{i}.mixer.out_proj.weight", "blk.{i}.ssm_out.weight", "embd inner"),
)
CONVOLUTION = (
    Rule("layers.{i}.mixer.conv1d.weight", "blk.{i}.ssm_conv1d.weight", "convolved 1 conv", makes="convolved conv"),
    Rule("layers.{i}.mixer.conv1d.bias", "blk.{i}.ssm_conv1d.bias", "convolved"),
)

MIXER = (
    *PROJECTIONS,
    *CONVOLUTION,
    Rule("layers.{i}.mixer.x_proj.weight", "blk.{i}.ssm_x.weight", "ssm_x inner"),
    Rule("layers.{i}.mixer.dt_proj.weight", "blk.{i}.ssm_dt.weight", "inner dt_rank"),
    Rule("layers.{i}.mixer.dt_proj.bias", "blk.{i}.ssm_dt.bias", "inner"),
    Rule("layers.{i}.mixer.A_log", "blk.{i}.ssm_a", "inner state", via=decays),
    Rule("layers.{i}.mixer.D", "blk.{i}.ssm_d", "inner"),
)

MAMBA = Architecture(
    name="mamba",
    classes=("MambaForCausalLM", "MambaLMHeadModel"),
    rules=(
        *ENDS,
        NORM,
        *MIXER,
    ),
    kvs=(
        KV("context_length", constant(u32(CONTEXT))),
        KV("embedding_length", sized(d_model)),
        KV("feed_forward_length", constant(u32(0))),
        KV("attention.head_count", constant(u32(0))),
        KV("block_count", sized(n_layer)),
        KV("ssm.conv_kernel", sized(D_CONV)),
        KV("ssm.inner_size", sized(d_inner)),
        KV("ssm.state_size", sized(D_STATE)),
        KV("ssm.time_step_rank", sized(dt_rank)),
        KV("attention.layer_norm_rms_epsilon", epsilon),
        KV("ssm.dt_b_c_rms", constant(Field(Kind.BOOL, False))),
    ),
    tokenizers=("bpe", "spm"),
    checks=(
        activation("silu", "swish"),
        doubles_the_embedding,
        fixed("rms_norm", None, True),
        fixed("ssm_cfg", None, {}, {"layer": "Mamba1"}),
    ),
    prefixes=("model.", "backbone."),
    sizes={
        "vocab": padded_vocab(8),
        "embd": d_model,
        "inner": d_inner,
        "convolved": d_inner,
        "conv": D_CONV,
        "state": D_STATE,
        "dt_rank": dt_rank,
        "ssm_in": lambda config: 2 * d_inner(config),
        "ssm_x": lambda config: dt_rank(config) + 2 * D_STATE(config),
    },
    untunable=UNTUNABLE,
)

# The step and both projections of the state are normalised, without weights.
FALCON_MAMBA = replace(
    MAMBA,
    classes=("FalconMambaForCausalLM",),
    kvs=(*MAMBA.kvs[:-1], KV("ssm.dt_b_c_rms", constant(Field(Kind.BOOL, True)))),
)


def n_group(config: Config) -> int:
    return optional_integer(config, "n_groups", "mamba_n_groups") or 1


def d_inner2(config: Config) -> int:
    expand = optional_integer(config, "mamba_expand", "expand") or 2
    return optional_integer(config, "mamba_d_ssm", "intermediate_size", "d_inner") or expand * d_model(config)


HEAD2 = or_default(64, "mamba_d_head", "head_dim")
D_STATE2 = or_default(128, "state_size", "d_state")


def n_head2(config: Config) -> int:
    if d_inner2(config) % HEAD2(config):
        raise InputError(
            f"config.json: an inner size of {d_inner2(config)} does not divide into heads of {HEAD2(config)}"
        )
    return d_inner2(config) // HEAD2(config)


def whole_heads(config: Config) -> None:
    if optional_integer(config, "num_heads") not in (None, n_head2(config)):
        raise wrong("num_heads", config["num_heads"], f"{n_head2(config)}, the inner size over that of a head")


def steps_unlimited(config: Config) -> None:
    """llama.cpp takes each time step as it comes."""
    limit = config.get("time_step_limit")
    stated = list(limit) if isinstance(limit, list | tuple) else [limit, None]
    low, high = (float("inf") if isinstance(x, Mapping) else x for x in stated)  # {"__float__": "Infinity"}
    if limit is not None and not (len(stated) == 2 and low in (0, None) and high in (None, float("inf"))):
        raise UnsupportedError(
            f"config.json: time_step_limit is {shown(limit)}; llama.cpp does not limit the time steps of this model"
        )


STATE2 = (
    Rule("layers.{i}.mixer.dt_bias", "blk.{i}.ssm_dt.bias", "heads"),
    Rule("layers.{i}.mixer.A_log", "blk.{i}.ssm_a", "heads", via=decays, makes="heads 1"),
    Rule("layers.{i}.mixer.D", "blk.{i}.ssm_d", "heads", makes="heads 1"),
)
NORM2 = Rule("layers.{i}.mixer.norm.weight", "blk.{i}.ssm_norm.weight", "inner", makes="groups inner/groups")
MIXER2 = (*PROJECTIONS, *CONVOLUTION, *STATE2, NORM2)


def sizes2(
    inner: Callable[[Config], int],
    heads: Callable[[Config], int],
    groups: Callable[[Config], int],
    state: Callable[[Config], int],
    conv: Callable[[Config], int],
) -> dict[str, Callable[[Config], int]]:
    """The words of `MIXER2`'s shapes: a block projects to the gate, what is convolved (the input and the two
    projections of the state for each group) and a time step a head."""

    def convolved(config: Config) -> int:
        return inner(config) + 2 * groups(config) * state(config)

    return {
        "inner": inner,
        "heads": heads,
        "groups": groups,
        "inner/groups": lambda config: inner(config) // groups(config),
        "conv": conv,
        "convolved": convolved,
        "ssm_in": lambda config: inner(config) + convolved(config) + heads(config),
    }


# Heads share a decay, groups of heads the projections of the state, and the output is normalised group by group.
MAMBA2 = replace(
    MAMBA,
    name="mamba2",
    classes=("Mamba2ForCausalLM",),
    rules=(*ENDS, NORM, *MIXER2),
    kvs=(
        *MAMBA.kvs[:6],
        KV("ssm.inner_size", sized(d_inner2)),
        KV("ssm.state_size", sized(D_STATE2)),
        KV("ssm.time_step_rank", sized(n_head2)),
        KV("ssm.group_count", sized(n_group)),
        KV("attention.layer_norm_rms_epsilon", epsilon),
    ),
    tokenizers=("spm", "bpe"),
    checks=(
        activation("silu", "swish"),
        fixed("rms_norm", None, True),
        whole_heads,
        steps_unlimited,
    ),
    sizes={
        "vocab": padded_vocab(16),
        "embd": d_model,
        **sizes2(d_inner2, n_head2, n_group, D_STATE2, D_CONV),
    },
    untunable="",
)

FAMILY = (MAMBA, FALCON_MAMBA, MAMBA2)
