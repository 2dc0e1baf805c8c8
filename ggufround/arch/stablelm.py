"""StableLM and StarCoder 2: Llama's names with layer norms, which have biases.

Sources: conversion/stablelm.py and conversion/starcoder.py for names, values and metadata; src/models/stablelm.cpp and
src/models/starcoder2.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch import rope
from ggufround.arch.checks import GELU, activation, fixed
from ggufround.arch.config import N_EMBD, N_FF, N_HEAD, N_HEAD_KV, n_head, n_head_kv, n_layer
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD, NORMS
from ggufround.arch.metadata import COMMON, count, real
from ggufround.arch.spec import KV, Architecture, Config, Rule, with_biases
from ggufround.gguf_file import boolean, u32


def one_after_the_other(config: Config, _: int) -> bool:
    """Whether the feed-forward part has a norm of its own; llama.cpp knows by it what is side by side."""
    return not config.get("use_parallel_residual", False)


STABLELM = Architecture(
    name="stablelm",
    classes=("StableLmForCausalLM",),
    rules=(
        ENDS[0],
        replace(ENDS[2], optional=False),  # llama.cpp reads no tied one
        *with_biases(ENDS[1], NORMS[0], replace(NORMS[1], where=one_after_the_other)),
        *ATTENTION,
        *FEED_FORWARD,
        *(
            Rule(
                f"layers.{{i}}.self_attn.{kind}_layernorm.norms.{{e}}.weight",
                f"blk.{{i}}.attn_{kind}_norm.weight",
                "head",
                stack=heads,
                optional=True,
            )
            for kind, heads in (("q", n_head), ("k", n_head_kv))
        ),
    ),
    kvs=(
        KV("context_length", count("max_position_embeddings")),
        KV("embedding_length", count(*N_EMBD)),
        KV("block_count", lambda config: u32(n_layer(config))),
        KV("feed_forward_length", count(*N_FF)),
        KV("rope.dimension_count", lambda config: u32(rope.rotated(config))),
        KV("attention.head_count", count(*N_HEAD)),
        KV("attention.head_count_kv", count(*N_HEAD_KV)),
        KV("use_parallel_residual", lambda config: boolean(bool(config.get("use_parallel_residual", True)))),
        KV("attention.layer_norm_epsilon", real("layer_norm_eps", "norm_eps")),
        KV("rope.freq_base", rope.freq_base_if_other),
    ),
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_key_value_heads": 32,
        "partial_rotary_factor": 0.25,
        "use_parallel_residual": False,
    },
    checks=(activation("silu", "swish"),),
    rope_types=("default",),
)

# The first models' own code named two keys otherwise, and knew nothing side by side (whatever the converter writes).
STABLELM_EPOCH = replace(
    STABLELM,
    classes=("StableLMEpochForCausalLM",),
    defaults={
        "max_position_embeddings": 4096,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_key_value_heads": n_head,
        "partial_rotary_factor": lambda config: config.get("rope_pct", 0.25),
    },
    untunable="transformers has no code of its own for it",
)

STARCODER2 = Architecture(
    name="starcoder2",
    classes=("Starcoder2ForCausalLM",),
    rules=(
        ENDS[0],
        ENDS[2],
        *ATTENTION[:3],
        *with_biases(
            ENDS[1],
            *NORMS,
            ATTENTION[3],
            Rule("layers.{i}.mlp.c_fc.weight", "blk.{i}.ffn_up.weight", "ff embd"),
            Rule("layers.{i}.mlp.c_proj.weight", "blk.{i}.ffn_down.weight", "embd ff"),
        ),
    ),
    kvs=COMMON,
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 4096,
        "norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "num_key_value_heads": 2,
    },
    checks=(
        fixed("hidden_act", *GELU),
        fixed("use_bias", None, True),
        fixed("mlp_type", None, "default"),
        fixed("norm_type", None, "layer_norm"),
    ),
)

FAMILY = (STABLELM, STABLELM_EPOCH, STARCODER2)
