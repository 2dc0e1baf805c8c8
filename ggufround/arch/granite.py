"""Granite's mixtures of experts, and Granite 4, which has Mamba 2 in most of its blocks or in none.

Sources: conversion/granite.py and conversion/mamba.py for names, values and metadata; src/models/granite*.cpp for what
llama.cpp reads.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.checks import activation, fixed
from ggufround.arch.config import (
    N_CONTEXT,
    N_EXPERT,
    N_EXPERT_USED,
    N_FF,
    integer,
    n_embd,
    n_head_kv,
    n_layer,
    optional_integer,
    shown,
    wrong,
)
from ggufround.arch.llama import ENDS, GRANITE, INTERLEAVED, NORMS
from ggufround.arch.metadata import count, replaced
from ggufround.arch.spec import KV, Architecture, Config, Rule, Transform
from ggufround.arch.transforms import decay, decay_logarithm
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, Kind, array, boolean, u32

N_SHARED = "shared_intermediate_size"


def has_experts(config: Config, i: int = 0) -> bool:
    return bool(optional_integer(config, *N_EXPERT))


def is_dense(config: Config, i: int) -> bool:
    return not has_experts(config)


def has_shared(config: Config, i: int) -> bool:
    return has_experts(config) and bool(optional_integer(config, N_SHARED))


def shared_width(config: Config) -> Field | None:
    return u32(integer(config, N_SHARED)) if optional_integer(config, N_SHARED) else None


ATTENTION = (*INTERLEAVED[:3], replace(INTERLEAVED[3], bias=True))
MOE, SHARED = "layers.{i}.block_sparse_moe.", "layers.{i}.shared_mlp."
EXPERTS = (
    Rule(f"{MOE}router.layer.weight", "blk.{i}.ffn_gate_inp.weight", "experts embd", where=has_experts),
    *(
        Rule(f"{MOE}{source}", f"blk.{{i}}.ffn_{to}_exps.weight", shape, part=part, where=has_experts)
        for inner, outer in (
            ("input_linear.weight", "output_linear.weight"),
            ("experts.gate_up_proj", "experts.down_proj"),  # as transformers 5 holds them in memory
        )
        for source, to, shape, part in (
            (inner, "gate", "experts 2ff embd", (0, 2)),
            (inner, "up", "experts 2ff embd", (1, 2)),
            (outer, "down", "experts embd ff", (0, 1)),
        )
    ),
)
# Beside experts it is the shared one, alone it is the feed-forward part.
SHARED_PART = tuple(
    Rule(f"{SHARED}{source}_linear.weight", f"blk.{{i}}.ffn_{to}{suffix}.weight", shape, part=part, where=where)
    for suffix, where in (("_shexp", has_shared), ("", is_dense))
    for source, to, shape, part in (
        ("input", "gate", "2shared_ff embd", (0, 2)),
        ("input", "up", "2shared_ff embd", (1, 2)),
        ("output", "down", "embd shared_ff", (0, 1)),
    )
)

# Experts in every layer, with or without a shared one beside them.
GRANITEMOE = replace(
    GRANITE,
    name="granitemoe",
    classes=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    rules=(*ENDS, *NORMS, *ATTENTION, *EXPERTS, *SHARED_PART),
    kvs=(*GRANITE.kvs, KV("expert_shared_feed_forward_length", shared_width)),
    defaults={**GRANITE.defaults, "num_local_experts": 8, "num_experts_per_tok": 2},
    sizes={
        "shared_ff": lambda config: integer(config, N_SHARED),
        "2shared_ff": lambda config: 2 * integer(config, N_SHARED),
    },
)


def kinds(config: Config) -> list[bool]:
    """Which layers are Mamba's."""
    names = {"mamba": True, "linear_attention": True, "attention": False, "full_attention": False}
    stated = config.get("layer_types", config.get("layers_block_type", ["mamba"] * n_layer(config)))
    if not isinstance(stated, list) or len(stated) != n_layer(config) or not all(name in names for name in stated):
        raise wrong("layer_types", stated, f"{n_layer(config)} times mamba or attention")
    return [names[name] for name in stated]


def is_mamba(config: Config, i: int) -> bool:
    return kinds(config)[i]


def is_attention(config: Config, i: int) -> bool:
    return not kinds(config)[i]


def inner(config: Config) -> int:
    return integer(config, "mamba_expand") * n_embd(config)


def conv_channels(config: Config) -> int:
    return inner(config) + 2 * integer(config, "mamba_n_groups") * integer(config, "mamba_d_state")


def mamba_fits(config: Config) -> None:
    if not any(kinds(config)):
        return
    heads, groups = integer(config, "mamba_n_heads"), integer(config, "mamba_n_groups")
    if integer(config, "mamba_expand") != 2 or inner(config) % heads or inner(config) % groups:
        raise UnsupportedError(
            f"config.json: mamba_expand is {shown(config.get('mamba_expand'))}, with {heads} heads in {groups} groups; "
            f"llama.cpp runs this architecture with 2, in whole heads and groups"
        )
    limits = config.get("time_step_limit")
    if limits not in (None, [0, float("inf")]):
        raise UnsupportedError(f"config.json: time_step_limit is {shown(limits)}; llama.cpp does not limit time steps")


def rotates(config: Config) -> bool:
    return config.get("position_embedding_type") == "rope"


def context(config: Config) -> Field:
    """Nothing ends a context where nothing rotates."""
    return u32(integer(config, *N_CONTEXT) if rotates(config) else 1 << 20)


def width(config: Config) -> Field:
    """Of an expert, or of the one feed-forward part that there is."""
    return u32(integer(config, *N_FF) if has_experts(config) else integer(config, N_SHARED))


def named(config: Config) -> Architecture:
    """Granite 4 comes under one class; llama.cpp runs models without Mamba as others."""
    if any(kinds(config)):
        return GRANITEHYBRID
    return replace(GRANITEHYBRID, name="granitemoe" if optional_integer(config, *N_EXPERT_USED) else "granite")


def mamba(name: str, to: str, shape: str, makes: str = "", bias: bool = False, decays: bool = False) -> Rule:
    return Rule(
        f"layers.{{i}}.mamba.{name}",
        f"blk.{{i}}.{to}",
        shape,
        makes=makes,
        bias=bias,
        where=is_mamba,
        via=(lambda config: Transform(decay, back=decay_logarithm)) if decays else None,
    )


# Blocks of Mamba 2 among those with attention, most often without rotation.
GRANITEHYBRID = replace(
    GRANITEMOE,
    name="granitehybrid",
    classes=("GraniteMoeHybridForCausalLM",),
    rules=(
        *ENDS,
        *NORMS,
        *(replace(rule, where=is_attention) for rule in ATTENTION),
        mamba("in_proj.weight", "ssm_in.weight", "ssm_in embd"),
        mamba("conv1d.weight", "ssm_conv1d.weight", "ssm_conv 1 kernel", "ssm_conv kernel", bias=True),
        mamba("dt_bias", "ssm_dt.bias", "ssm_heads"),
        mamba("A_log", "ssm_a", "ssm_heads", "ssm_heads 1", decays=True),
        mamba("D", "ssm_d", "ssm_heads", "ssm_heads 1"),
        mamba("norm.weight", "ssm_norm.weight", "inner", "groups group"),
        mamba("out_proj.weight", "ssm_out.weight", "embd inner"),
        *EXPERTS,
        *SHARED_PART,
    ),
    kvs=(
        *replaced(
            GRANITEMOE.kvs,
            KV("context_length", context),
            KV("feed_forward_length", width),
            KV(
                "attention.head_count_kv",
                lambda config: array(Kind.I32, [0 if mamba else n_head_kv(config) for mamba in kinds(config)]),
            ),
        ),
        KV("ssm.conv_kernel", count("mamba_d_conv")),
        KV("ssm.state_size", count("mamba_d_state")),
        KV("ssm.group_count", count("mamba_n_groups")),
        KV("ssm.inner_size", lambda config: u32(inner(config))),
        KV("ssm.time_step_rank", count("mamba_n_heads")),
        KV("rope.scaling.finetuned", lambda config: boolean(rotates(config))),
    ),
    tokenizers=("spm", "bpe"),
    defaults={
        **GRANITEMOE.defaults,
        "shared_intermediate_size": 1024,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
    },
    checks=(activation("silu", "swish"), fixed("mamba_proj_bias", None, False), mamba_fits),
    sizes={
        **GRANITEMOE.sizes,
        "inner": inner,
        "kernel": lambda config: integer(config, "mamba_d_conv"),
        "ssm_heads": lambda config: integer(config, "mamba_n_heads"),
        "ssm_conv": conv_channels,
        "ssm_in": lambda config: inner(config) + conv_channels(config) + integer(config, "mamba_n_heads"),
        "groups": lambda config: integer(config, "mamba_n_groups"),
        "group": lambda config: inner(config) // integer(config, "mamba_n_groups"),
    },
    variant=named,
)

FAMILY = (GRANITEMOE, GRANITEHYBRID)
