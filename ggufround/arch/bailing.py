"""Ling and Ring (BailingMoE), the first and the second of them. Queries, keys and values lie in one matrix.

Sources: conversion/bailingmoe.py for names, values and metadata; src/models/bailingmoe*.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.checks import fixed
from ggufround.arch.config import head_dim, integer, n_head, n_kv, n_q, optional_integer, wrong
from ggufround.arch.deepseek import DENSE, ROUTED, ROUTING, SELECTION, SHARED, leading
from ggufround.arch.glm import GLM4_MOE, NEXT, all_blocks, beyond, next_blocks, rotated
from ggufround.arch.llama import ENDS, NORMS
from ggufround.arch.metadata import COMMON, constant, count, real, replaced
from ggufround.arch.qwen import EXPERTS, HEAD_NORMS, STACKED
from ggufround.arch.spec import KV, Architecture, Config, Rule
from ggufround.arch.transforms import interleave_rope
from ggufround.gguf_file import Field, boolean, f32, u32

FUSED = Rule("layers.{i}.attention.query_key_value.weight", "blk.{i}.attn_qkv.weight", "qkv embd")
BAILING_ENDS = (
    replace(ENDS[0], source="word_embeddings.weight"),
    ENDS[1],
    replace(ENDS[2], optional=False),
)
OUTPUT = Rule("layers.{i}.attention.dense.weight", "blk.{i}.attn_output.weight", "embd q")


def shared_ff(config: Config) -> int:
    return integer(config, "num_shared_experts") * integer(config, "moe_intermediate_size")


def normalised_shares(config: Config) -> Field:
    return boolean(bool(config["norm_topk_prob"]))


# Llama's attention and experts in every block. llama.cpp's converter can divide each column of the output matrix by its
# length (norm_head), for which it must hold all of it: that is not done here.
BAILING = Architecture(
    name="bailingmoe",
    classes=("BailingMoeForCausalLM",),
    rules=(
        *BAILING_ENDS,
        *NORMS,
        replace(FUSED, to="blk.{i}.attn_q.weight", via=interleave_rope, runs=lambda config: [(0, n_q(config))]),
        replace(
            FUSED, to="blk.{i}.attn_k.weight", via=interleave_rope, runs=lambda config: [(n_q(config), n_kv(config))]
        ),
        replace(FUSED, to="blk.{i}.attn_v.weight", runs=lambda config: [(n_q(config) + n_kv(config), n_kv(config))]),
        OUTPUT,
        *EXPERTS,
        *STACKED,
        *(replace(rule, where=None) for rule in SHARED),
    ),
    kvs=(
        *COMMON,
        KV("rope.dimension_count", lambda config: u32(head_dim(config))),
        KV("leading_dense_block_count", lambda config: u32(leading(config))),
        KV("vocab_size", count("vocab_size")),
        KV("expert_feed_forward_length", count("moe_intermediate_size")),
        KV("expert_weights_scale", constant(f32(1.0))),
        KV("expert_shared_count", count("num_shared_experts")),
        KV("expert_weights_norm", normalised_shares),
    ),
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "num_key_value_heads": n_head,
        "norm_topk_prob": True,
    },
    checks=(
        *ROUTING,
        fixed("first_k_dense_replace", None, 0),
        fixed("norm_head", None, False),
        fixed("score_function", None, "softmax"),
    ),
    rope_types=("default", "linear", "dynamic", "yarn"),
    sizes={"shared_ff": shared_ff},
    untunable="transformers has no code of its own for it",
)


def one_length(config: Config) -> None:
    stated, expected = optional_integer(config, "moe_shared_expert_intermediate_size"), shared_ff(config)
    if stated not in (None, expected // integer(config, "num_shared_experts")):
        raise wrong("moe_shared_expert_intermediate_size", stated, "the same as moe_intermediate_size")


# Half of each head is rotated, heads are normalised, a router as DeepSeek V3's; plain blocks first, and one past the
# last that predicts a token further.
BAILING2 = replace(
    BAILING,
    name="bailingmoe2",
    classes=("BailingMoeV2ForCausalLM",),
    rules=(
        *BAILING_ENDS,
        *NORMS,
        FUSED,
        OUTPUT,
        replace(HEAD_NORMS[0], source="layers.{i}.attention.query_layernorm.weight"),
        replace(HEAD_NORMS[1], source="layers.{i}.attention.key_layernorm.weight"),
        *DENSE,
        *ROUTED,
        replace(SELECTION, source="layers.{i}.mlp.gate.expert_bias"),
        *SHARED,
        *NEXT,
        Rule("layers.{i}.final_layernorm.weight", "blk.{i}.layer_output_norm.weight", "embd", where=beyond),
    ),
    kvs=(
        *replaced(COMMON, KV("block_count", lambda config: u32(all_blocks(config)))),
        KV("rope.dimension_count", lambda config: u32(rotated(config))),
        KV("leading_dense_block_count", lambda config: u32(leading(config))),
        KV("vocab_size", count("vocab_size")),
        KV("expert_feed_forward_length", count("moe_intermediate_size")),
        KV("expert_shared_feed_forward_length", count("moe_intermediate_size")),
        KV("expert_weights_scale", real("routed_scaling_factor")),
        KV("expert_shared_count", count("num_shared_experts")),
        KV("expert_weights_norm", normalised_shares),
        KV("nextn_predict_layers", lambda config: u32(next_blocks(config))),
    ),
    defaults={
        **BAILING.defaults,
        "routed_scaling_factor": 2.5,
        "score_function": "sigmoid",
        "first_k_dense_replace": 0,
        "moe_shared_expert_intermediate_size": None,
    },
    checks=(*ROUTING, one_length, fixed("norm_head", None, False), fixed("score_function", "sigmoid")),
    sizes={**GLM4_MOE.sizes, "shared_ff": shared_ff},
    blocks=all_blocks,
)

FAMILY = (BAILING, BAILING2)
