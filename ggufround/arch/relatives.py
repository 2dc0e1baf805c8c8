"""Llama with small changes, by other makers: Seed-OSS and Arcee.

Sources: conversion/{olmo,llama}.py for names, values and metadata; src/models/{seed-oss,arcee}.cpp for what is read.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.checks import activation
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD, INTERLEAVED, LLAMA, NORMS
from ggufround.arch.metadata import COMMON
from ggufround.arch.qwen import QWEN2

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

FAMILY = (SEED_OSS, ARCEE)
