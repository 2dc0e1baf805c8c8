"""GPT-OSS: attention sinks, biases everywhere, and experts whose gate and up are interleaved.

In BF16 the stacks are saved the other way round, [experts, in, out]; in MXFP4, as they are published, row by row.

Sources: conversion/gpt_oss.py for names, values and metadata; src/models/openai-moe.cpp for what is read.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.checks import activation, fixed, sliding_pattern
from ggufround.arch.config import N_FF, N_HEAD, integer
from ggufround.arch.llama import ATTENTION, ENDS, NORMS
from ggufround.arch.metadata import COMMON, count
from ggufround.arch.spec import KV, Architecture, Rule
from ggufround.arch.transforms import every


def experts(mlp: str, to: str) -> tuple[Rule, ...]:
    """Matrices and biases of experts, as GPT-OSS saves them."""
    return (
        *(
            rule
            for k, half in enumerate(("gate", "up"))
            for rule in (
                Rule(f"{mlp}.gate_up_proj", f"{to}_{half}_exps.weight", "experts embd 2ff",
                     every(2, k, "transposed"), makes="experts ff embd"),
                Rule(f"{mlp}.gate_up_proj.weight", f"{to}_{half}_exps.weight", "experts 2ff embd",
                     every(2, k, "rows"), makes="experts ff embd"),  # packed
                Rule(f"{mlp}.gate_up_proj_bias", f"{to}_{half}_exps.bias", "experts 2ff",
                     every(2, k, "columns"), makes="experts ff"),
            )
        ),
        Rule(f"{mlp}.down_proj", f"{to}_down_exps.weight", "experts ff embd",
             every(1, 0, "transposed"), makes="experts embd ff"),
        Rule(f"{mlp}.down_proj.weight", f"{to}_down_exps.weight", "experts embd ff"),  # packed
        Rule(f"{mlp}.down_proj_bias", f"{to}_down_exps.bias", "experts embd"),
    )  # fmt: skip


# `truncate` in the config's YaRN has no key: llama.cpp always rounds the ends of the ramp to whole columns, also for
# OpenAI's own models, which say false.
GPT_OSS = Architecture(
    name="gpt-oss",
    classes=("GptOssForCausalLM",),
    rules=(
        *ENDS[:2],
        replace(ENDS[2], optional=False),
        NORMS[0],
        replace(NORMS[1], to="blk.{i}.post_attention_norm.weight"),
        *ATTENTION[:3],
        replace(ATTENTION[3], bias=True),
        Rule("layers.{i}.self_attn.sinks", "blk.{i}.attn_sinks.weight", "heads"),
        Rule("layers.{i}.mlp.router.weight", "blk.{i}.ffn_gate_inp.weight", "experts embd", bias=True),
        *experts("layers.{i}.mlp.experts", "blk.{i}.ffn"),
    ),
    kvs=(
        *COMMON,
        KV("attention.sliding_window", count("sliding_window")),
        KV("expert_feed_forward_length", count(*N_FF)),
    ),
    tokenizers=("bpe",),
    defaults={
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "head_dim": 64,
        "num_key_value_heads": 8,
        "sliding_window": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 4096,
        },
    },
    checks=(
        activation("silu", "swish"),
        sliding_pattern(2),
        fixed("swiglu_alpha", None, 1.702),
        fixed("swiglu_limit", None, 7.0, 7),
    ),
    rope_types=("default", "yarn"),
    sizes={"heads": lambda config: integer(config, *N_HEAD)},
    untunable="transformers holds its experts with rows and columns exchanged",
)

FAMILY = (GPT_OSS,)
