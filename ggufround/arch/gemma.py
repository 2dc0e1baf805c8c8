"""Gemma 1, 2 and 3 (text). Norms are stored less 1; the output matrix is the embedding.

Sources: conversion/gemma.py for names, values and metadata; src/models/gemma*.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ggufround.arch.checks import activation, fixed, query_scale, sliding_pattern
from ggufround.arch.config import N_CONTEXT, N_EMBD, N_FF, N_HEAD, integer, n_head_kv, n_layer
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD
from ggufround.arch.metadata import COMMON, POOLED, count, real, real_if_stated, replaced, without
from ggufround.arch.qwen import HEAD_NORMS
from ggufround.arch.sentence import dense_features, dense_size, has_dense, linear
from ggufround.arch.spec import KV, Architecture, Config, Drop, Rule
from ggufround.arch.transforms import norm_plus_one
from ggufround.gguf_file import Field, u32

PLUS_ONE = tuple(
    Rule(f"{source}.weight", f"{to}.weight", "embd", via=norm_plus_one)
    for source, to in (
        ("norm", "output_norm"),
        ("layers.{i}.input_layernorm", "blk.{i}.attn_norm"),
        ("layers.{i}.post_attention_layernorm", "blk.{i}.post_attention_norm"),
        ("layers.{i}.pre_feedforward_layernorm", "blk.{i}.ffn_norm"),
        ("layers.{i}.post_feedforward_layernorm", "blk.{i}.post_ffw_norm"),
    )
)
VISION = tuple(
    Drop(f"*{name}.*", "vision: not part of the text model") for name in ("vision_tower", "multi_modal_projector")
)


def window_if_any(config: Config) -> Field | None:
    """A pattern of 1 makes every layer's attention full."""
    return None if config.get("sliding_window_pattern") == 1 else u32(integer(config, "sliding_window"))


BOTH_WAYS = fixed("use_bidirectional_attention", None, False)
GEMMA2 = Architecture(
    name="gemma2",
    classes=("Gemma2ForCausalLM",),
    rules=(ENDS[0], *PLUS_ONE, *ATTENTION, *FEED_FORWARD),
    kvs=(
        KV("context_length", count(*N_CONTEXT)),
        KV("embedding_length", count(*N_EMBD)),
        KV("block_count", lambda config: u32(n_layer(config))),
        KV("feed_forward_length", count(*N_FF)),
        KV("attention.head_count", count(*N_HEAD)),
        KV("attention.head_count_kv", lambda config: u32(n_head_kv(config))),
        KV("attention.layer_norm_rms_epsilon", real("rms_norm_eps")),
        KV("attention.key_length", count("head_dim")),
        KV("attention.value_length", count("head_dim")),
        KV("attn_logit_softcapping", real("attn_logit_softcapping")),
        KV("final_logit_softcapping", real("final_logit_softcapping")),
        KV("attention.sliding_window", count("sliding_window")),
    ),
    tokenizers=("gemma",),
    defaults={
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    checks=(
        activation("gelu_pytorch_tanh", "gelu"),  # early configs said gelu and meant its approximation
        query_scale(layers_of_27b=46),
        sliding_pattern(2),
        fixed("rope_theta", None, 10000.0),  # the converter writes no base
    ),
    rope_types=("default",),
    drops=(Drop("*lm_head.weight", "the same as the embedding, which llama.cpp uses for the output"),),
)

# No windows, no soft caps, and one norm before each part of a block. The converter names the ids of CodeGemma's tokens
# for filling in, whatever the vocabulary; llama.cpp finds those by their texts.
GEMMA = replace(
    GEMMA2,
    name="gemma",
    classes=("GemmaForCausalLM",),
    rules=(ENDS[0], *PLUS_ONE[:2], replace(PLUS_ONE[2], to="blk.{i}.ffn_norm.weight"), *ATTENTION, *FEED_FORWARD),
    kvs=without(GEMMA2.kvs, "attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"),
    defaults={
        "max_position_embeddings": 8192,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
    },
    checks=(
        activation("gelu_pytorch_tanh", "gelu"),
        fixed("rope_theta", None, 10000.0),
        fixed("use_bidirectional_attention", None, False),
    ),
)

# Queries and keys are normalised head by head; five windows for each full attention, with a rotation base of their
# own; no soft caps. Composite models nest the text config and leave most of it to defaults.
GEMMA3 = replace(
    GEMMA2,
    name="gemma3",
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    rules=(
        replace(ENDS[0], trim=True),
        ENDS[2],
        *PLUS_ONE,
        *ATTENTION,
        *(replace(rule, via=norm_plus_one) for rule in HEAD_NORMS),
        *FEED_FORWARD,
    ),
    kvs=(
        *COMMON,
        KV("final_logit_softcapping", real_if_stated("final_logit_softcapping", zero=False)),
        KV("attention.sliding_window", window_if_any),
    ),
    tokenizers=("gemma", "bpe"),
    defaults={
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
    },
    checks=(
        activation("gelu_pytorch_tanh"),
        query_scale(layers_of_27b=62),
        sliding_pattern(6),
        fixed("attn_logit_softcapping", None),
        BOTH_WAYS,
    ),
    rope_types=("default", "linear"),
    drops=VISION,
)

# Gemma 3 that makes vectors of texts: attention in both directions, which the architecture's name says, and behind the
# pooling two dense layers. Its file states the whole window, of which transformers' class takes a half to each side.
EMBEDDING = replace(
    GEMMA3,
    name="gemma-embedding",
    classes=("Gemma3TextModel",),
    rules=(
        *GEMMA3.rules,
        *(
            Rule(
                f"{number}_Dense.linear.weight",
                f"dense_{number}.weight",
                f"{number}_out {number}_in",
                where=partial(has_dense, number=number),
            )
            for number in (2, 3)
        ),
    ),
    kvs=(
        *replaced(GEMMA3.kvs, KV("attention.sliding_window", count("sliding_window"))),
        *(
            KV(f"dense_{number}_feat_{end}", dense_size(f"{number}_Dense", f"{end}_features"))
            for number in (2, 3)
            for end in ("in", "out")
        ),
        *POOLED,
    ),
    checks=(
        *(check for check in GEMMA3.checks if check is not BOTH_WAYS),
        fixed("use_bidirectional_attention", True),
        linear,
    ),
    sizes={
        f"{number}_{end}": partial(dense_features, number=number, key=f"{end}_features")
        for number in (2, 3)
        for end in ("in", "out")
    },
    untunable="it makes vectors of texts and predicts no next token",
)

FAMILY = (GEMMA, GEMMA2, GEMMA3, EMBEDDING)
