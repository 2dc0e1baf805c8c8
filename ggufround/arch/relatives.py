"""Llama with small changes, by other makers: Seed-OSS, Arcee and Apertus.

Sources: conversion/{olmo,llama}.py for names, values and metadata; src/models/{seed-oss,arcee,apertus}.cpp for what is
read.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.checks import activation, fixed
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD, INTERLEAVED, LLAMA, NORMS
from ggufround.arch.metadata import COMMON
from ggufround.arch.qwen import HEAD_NORMS, QWEN2
from ggufround.arch.spec import Number

# Qwen 2 whose heads have a size of their own; its second norm bears another name.
SEED_OSS = replace(
    QWEN2,
    name="seed_oss",
    classes=("SeedOssForCausalLM",),
    rules=(
        *ENDS,
        NORMS[0],
        replace(NORMS[1], to="blk.{i}.post_attention_norm.weight"),
        *ATTENTION,
        *FEED_FORWARD,
    ),
    kvs=COMMON,
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 524288,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
)

# No gate: the square of what is positive after the first matrix. No biases but those of queries, keys and values.
ARCEE = replace(
    LLAMA,
    name="arcee",
    classes=("ArceeForCausalLM",),
    rules=(*ENDS, *NORMS, *INTERLEAVED, *FEED_FORWARD[1:]),
    defaults={**LLAMA.defaults, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    checks=(activation("relu2"),),
)

# No gate either, but an activation with four numbers of its own in each layer (xIELU, arXiv 2411.13010). Queries and
# keys are normalised head by head and rotated by halves.
APERTUS = replace(
    LLAMA,
    name="apertus",
    classes=("ApertusForCausalLM",),
    rules=(
        *ENDS[:2],
        replace(ENDS[2], optional=False),
        replace(NORMS[0], source="layers.{i}.attention_layernorm.weight"),
        replace(NORMS[1], source="layers.{i}.feedforward_layernorm.weight"),
        *ATTENTION[:3],
        replace(ATTENTION[3], bias=True),
        *HEAD_NORMS,
        *FEED_FORWARD[1:],
    ),
    defaults={
        **LLAMA.defaults,
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-5,
        "head_dim": None,
        "rope_theta": 12000000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    },
    checks=(activation("xielu"), fixed("qk_norm", None, True), fixed("post_norm", None, False)),
    numbers=tuple(
        Number(f"xielu.{name}", f"layers.{{i}}.mlp.act_fn.{name}") for name in ("alpha_n", "alpha_p", "beta", "eps")
    ),
    untunable="the numbers of its activations lie in the file's metadata",
)

FAMILY = (SEED_OSS, ARCEE, APERTUS)
