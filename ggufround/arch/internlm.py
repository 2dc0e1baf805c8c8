"""InternLM 2 and 3: Llama, in version 2 under other names and with queries, keys and values in one matrix.

Sources: conversion/internlm.py for names, values and metadata; src/models/internlm2.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ggufround.arch.checks import activation, heads_fill_embedding
from ggufround.arch.config import head_dim, n_head, n_head_kv, wrong
from ggufround.arch.llama import LLAMA
from ggufround.arch.metadata import COMMON
from ggufround.arch.spec import Architecture, Config, Rule
from ggufround.arch.transforms import interleave_rope


def of_groups(part: str) -> Callable[[Config], Iterator[tuple[int, int]]]:
    """Runs of the fused matrix, which holds for each key-value head its queries' rows, its key's and its value's."""

    def runs(config: Config) -> Iterator[tuple[int, int]]:
        heads, groups, head = n_head(config), n_head_kv(config), head_dim(config)
        if heads % groups:
            raise wrong("num_key_value_heads", groups, f"a divisor of the {heads} heads")
        queries = heads // groups
        first, count = {"q": (0, queries), "k": (queries, 1), "v": (queries + 1, 1)}[part]
        for group in range(groups):
            yield (group * (queries + 2) + first) * head, count * head

    return runs


FUSED = "layers.{i}.attention.wqkv.weight"

INTERNLM2 = Architecture(
    name="internlm2",
    classes=("InternLM2ForCausalLM",),
    rules=(
        Rule("tok_embeddings.weight", "token_embd.weight", "vocab embd"),
        Rule("norm.weight", "output_norm.weight", "embd"),
        Rule("output.weight", "output.weight", "vocab embd"),
        Rule("layers.{i}.attention_norm.weight", "blk.{i}.attn_norm.weight", "embd"),
        Rule("layers.{i}.ffn_norm.weight", "blk.{i}.ffn_norm.weight", "embd"),
        *(
            Rule(
                FUSED,
                f"blk.{{i}}.attn_{part}.weight",
                "qkv embd",
                via=None if part == "v" else interleave_rope,
                bias=True,
                runs=of_groups(part),
            )
            for part in "qkv"
        ),
        Rule("layers.{i}.attention.wo.weight", "blk.{i}.attn_output.weight", "embd q"),
        Rule("layers.{i}.feed_forward.w1.weight", "blk.{i}.ffn_gate.weight", "ff embd"),
        Rule("layers.{i}.feed_forward.w3.weight", "blk.{i}.ffn_up.weight", "ff embd"),
        Rule("layers.{i}.feed_forward.w2.weight", "blk.{i}.ffn_down.weight", "embd ff"),
    ),
    kvs=COMMON,
    tokenizers=("internlm2",),
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "num_key_value_heads": n_head,
    },
    checks=(activation("silu", "swish"), heads_fill_embedding),
    untunable="transformers has no class for it",
)

# Llama to llama.cpp, with defaults of its own.
INTERNLM3 = replace(
    LLAMA,
    classes=("InternLM3ForCausalLM",),
    tokenizers=("internlm3",),
    defaults={
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_key_value_heads": 2,
        "head_dim": 128,
    },
    computed=(),
    rope_types=INTERNLM2.rope_types,
)

FAMILY = (INTERNLM2, INTERNLM3)
