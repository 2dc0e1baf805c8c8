"""GLM-4, GLM-4.5 with its successors, and GLM-4.7-Flash.

Sources: conversion/glm.py for names, values and metadata; src/models/glm4*.cpp for what llama.cpp reads. GLM-4.7-Flash
runs as DeepSeek V2.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from ggufround.arch import rope
from ggufround.arch.checks import activation, fixed
from ggufround.arch.config import (
    N_CONTEXT,
    N_EMBD,
    N_FF,
    N_HEAD,
    N_HEAD_KV,
    head_dim,
    integer,
    n_embd,
    n_head,
    n_layer,
    optional_integer,
    optional_number,
    wrong,
)
from ggufround.arch.deepseek import (
    DEEPSEEK3,
    DENSE,
    ROUTED,
    ROUTING,
    SELECTION,
    SHARED,
    leading,
    shared_ff,
)
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD, NORMS
from ggufround.arch.metadata import COMMON, constant, count, count_if_stated, real, real_if_stated, replaced, without
from ggufround.arch.qwen import HEAD_NORMS, sections_stated, with_sections
from ggufround.arch.spec import F32, KV, Architecture, Config, Rule, Transform
from ggufround.gguf_file import Field, boolean, u32


def next_blocks(config: Config) -> int:
    return optional_integer(config, "num_nextn_predict_layers") or 0


def all_blocks(config: Config) -> int:
    return n_layer(config) + next_blocks(config)


def beyond(config: Config, i: int) -> bool:
    return i >= n_layer(config)


# What a block has besides, to predict the token after the next from the last block's output and the next token.
NEXT = tuple(
    Rule(f"layers.{{i}}.{source}.weight", f"blk.{{i}}.nextn.{to}.weight", shape, optional=optional, where=beyond)
    for source, to, shape, optional in (
        ("eh_proj", "eh_proj", "embd 2embd", False),
        ("enorm", "enorm", "embd", False),
        ("hnorm", "hnorm", "embd", False),
        ("embed_tokens", "embed_tokens", "vocab embd", True),
        ("shared_head.head", "shared_head_head", "vocab embd", True),
        ("shared_head.norm", "shared_head_norm", "embd", True),
    )
)


def rotated(config: Config) -> int:
    """Columns of a head that are rotated: half, if nothing else is said."""
    share = optional_number(rope.full(config), "partial_rotary_factor")
    if share is not None and not 0 < share <= 1:
        raise wrong("partial_rotary_factor", share, "above 0 and at most 1")
    return int(head_dim(config) * (0.5 if share is None else share))


def flag(key: str, config: Config) -> Field | None:
    return None if config.get(key) is None else boolean(bool(config[key]))


# Norms before and after attention and feed-forward; gate and up in one matrix.
GLM4 = Architecture(
    name="glm4",
    classes=("Glm4ForCausalLM",),
    rules=(
        *ENDS,
        NORMS[0],
        Rule("layers.{i}.post_self_attn_layernorm.weight", "blk.{i}.post_attention_norm.weight", "embd"),
        NORMS[1],
        Rule("layers.{i}.post_mlp_layernorm.weight", "blk.{i}.post_ffw_norm.weight", "embd"),
        *ATTENTION,
        Rule("layers.{i}.mlp.gate_up_proj.weight", "blk.{i}.ffn_up.weight", "2ff embd"),
        FEED_FORWARD[2],
    ),
    kvs=(*COMMON, KV("rope.dimension_count", lambda config: u32(rotated(config)))),
    tokenizers=("glm4",),
    defaults={
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1.5625e-07,
        "rope_theta": 10000.0,
        "num_key_value_heads": 2,
        "head_dim": 128,
    },
    checks=(activation("silu", "swish"),),
)


def halves(rows: F32, head: int, rotated: int) -> F32:
    """Rows [k * head, columns]: the rotated rows of each head from neighbours to halves, the others as they are."""
    heads = rows.reshape(-1, head, rows.shape[-1])
    moved = np.concatenate([heads[:, :rotated:2], heads[:, 1:rotated:2], heads[:, rotated:]], axis=1)
    return moved.reshape(rows.shape)


def in_halves(config: Config) -> Transform:
    """llama.cpp rotates by sections in the half order only."""
    head = head_dim(config)
    return Transform(partial(halves, head=head, rotated=rotated(config)), head)


# The text model of GLM-4.1V: a token of a picture has a time, a height and a width.
GLM4V = replace(
    GLM4,
    classes=("Glm4vForConditionalGeneration",),
    rules=tuple(replace(rule, via=in_halves) if rule in ATTENTION[:2] else rule for rule in GLM4.rules),
    kvs=with_sections(GLM4.kvs),
    defaults={**GLM4.defaults, "head_dim": None},
    checks=(*GLM4.checks, sections_stated),
    rope_types=("default", "mrope"),
)


def normalised(config: Config, i: int) -> bool:
    return bool(config.get("use_qk_norm"))


# Experts after the first blocks; heads in the half order of rotation, normalised in the larger model; the block that
# predicts a token further is kept.
GLM4_MOE = Architecture(
    name="glm4moe",
    classes=("Glm4MoeForCausalLM",),
    rules=(
        *ENDS,
        NORMS[0],
        replace(NORMS[1], to="blk.{i}.post_attention_norm.weight"),
        *ATTENTION,
        *(replace(rule, where=normalised) for rule in HEAD_NORMS),
        *DENSE,
        *ROUTED,
        SELECTION,
        *SHARED,
        *NEXT,
    ),
    kvs=(
        *replaced(without(COMMON, "expert_gating_func"), KV("block_count", lambda config: u32(all_blocks(config)))),
        KV("rope.dimension_count", lambda config: u32(rotated(config))),
        KV("expert_feed_forward_length", count_if_stated("moe_intermediate_size")),
        KV("expert_shared_count", count_if_stated("n_shared_experts")),
        KV("leading_dense_block_count", lambda config: u32(leading(config))),
        KV("expert_gating_func", constant(u32(2))),
        KV("expert_weights_scale", real_if_stated("routed_scaling_factor")),
        KV("expert_weights_norm", lambda config: flag("norm_topk_prob", config)),
        KV("nextn_predict_layers", count_if_stated("num_nextn_predict_layers")),
    ),
    tokenizers=("glm",),
    defaults={
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_key_value_heads": 8,
        "moe_intermediate_size": 1408,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
    },
    checks=(*ROUTING, fixed("scoring_func", None, "sigmoid")),
    sizes={"shared_ff": shared_ff, "2embd": lambda config: 2 * integer(config, "hidden_size")},
    blocks=all_blocks,
)


def dense_then_sparse(config: Config) -> None:
    """transformers 5 counts plain blocks in a list of names."""
    stated = config.get("mlp_layer_types")
    expected = ["dense"] * leading(config) + ["sparse"] * (n_layer(config) - leading(config))
    if stated not in (None, expected):
        raise wrong("mlp_layer_types", stated, f"{leading(config)} dense and then sparse ones")


# DeepSeek V3's attention and router; the block that predicts a token further is kept.
GLM4_MOE_LITE = replace(
    DEEPSEEK3,
    classes=("Glm4MoeLiteForCausalLM",),
    rules=(*DEEPSEEK3.rules, *NEXT),
    kvs=(
        *replaced(DEEPSEEK3.kvs, KV("block_count", lambda config: u32(all_blocks(config)))),
        KV("nextn_predict_layers", lambda config: u32(next_blocks(config)) if next_blocks(config) else None),
    ),
    tokenizers=("glm",),
    defaults={
        **DEEPSEEK3.defaults,
        "max_position_embeddings": 202752,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 20,
        "q_lora_rank": 768,
        "v_head_dim": 256,
        "qk_nope_head_dim": 192,
        "n_routed_experts": 64,
        "num_experts_per_tok": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.8,
        "moe_intermediate_size": 1536,
    },
    checks=(*DEEPSEEK3.checks, dense_then_sparse),
    sizes={**DEEPSEEK3.sizes, "2embd": GLM4_MOE.sizes["2embd"]},
    blocks=all_blocks,
    beyond="",
)


def heads_fill_the_embedding(config: Config) -> None:
    if head_dim(config) * n_head(config) != n_embd(config):
        raise wrong("head_dim", head_dim(config), f"a hidden size of {n_embd(config)} over {n_head(config)} heads")


# The first GLM-4, as transformers has it. The converter knows it by the names that the older code of its own had, and
# so writes neither its length, nor its epsilon, nor its rotation base: they are written here.
GLM = replace(
    GLM4,
    name="chatglm",
    classes=("GlmForCausalLM",),
    rules=(*ENDS, *NORMS, *ATTENTION, *GLM4.rules[-2:]),
    kvs=(
        KV("context_length", count(*N_CONTEXT)),
        KV("embedding_length", count(*N_EMBD)),
        KV("feed_forward_length", count(*N_FF)),
        KV("block_count", lambda config: u32(n_layer(config))),
        KV("attention.head_count", count(*N_HEAD)),
        KV("attention.head_count_kv", count(*N_HEAD_KV)),
        KV("attention.layer_norm_rms_epsilon", real("rms_norm_eps")),
        KV("rope.dimension_count", lambda config: u32(rotated(config))),
        KV("tokenizer.ggml.add_bos_token", constant(boolean(False))),
        KV("rope.freq_base", rope.freq_base),
    ),
    checks=(*GLM4.checks, heads_fill_the_embedding),
    rope_types=("default", "dynamic"),
)

FAMILY = (GLM, GLM4, GLM4_MOE, GLM4_MOE_LITE, GLM4V)
