"""Cohere's Command R, Aya and Command A: attention and feed-forward beside each other, on one norm that is centred.

Sources: conversion/command_r.py for names, values and metadata; src/models/command-r.cpp and cohere2.cpp for what
llama.cpp reads. The output matrix is the embedding.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.checks import activation, fixed, heads_fill_embedding, sliding_pattern
from ggufround.arch.config import head_dim, n_head, n_head_kv, n_layer
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD, NORMS
from ggufround.arch.metadata import COMMON, constant, count, real, replaced, without
from ggufround.arch.spec import KV, Architecture, Config, Drop, Rule
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import string, u32

HEAD_NORMED_LAYERS = 64  # from which on src/models/command-r.cpp expects norms of queries and keys


def head_norms_by_depth(config: Config) -> None:
    """llama.cpp knows by the number of layers whether each head's queries and keys are normalised."""
    normed, deep = bool(config.get("use_qk_norm")), n_layer(config) >= HEAD_NORMED_LAYERS
    if normed != deep:
        raise UnsupportedError(
            f"config.json: use_qk_norm is {normed} with {n_layer(config)} layers; llama.cpp normalises queries and "
            f"keys in models of {HEAD_NORMED_LAYERS} layers or more, and in no others"
        )


# The converter ignores rope scaling, and says so with the last key.
FROM_COHERE = (
    KV("logit_scale", real("logit_scale")),
    KV("rope.scaling.type", constant(string("none"))),
)

COMMAND_R = Architecture(
    name="command-r",
    classes=("CohereForCausalLM",),
    rules=(
        *ENDS[:2],
        NORMS[0],
        *ATTENTION,
        *(
            Rule(
                f"layers.{{i}}.self_attn.{kind}_norm.weight",
                f"blk.{{i}}.attn_{kind}_norm.weight",
                f"{heads} head",
                where=lambda config, i: bool(config.get("use_qk_norm")),
            )
            for kind, heads in (("q", "heads"), ("k", "kv_heads"))
        ),
        *FEED_FORWARD,
    ),
    # trained on longer contexts than max_position_embeddings says
    kvs=(
        *replaced(
            without(COMMON, "rope.scaling.type"),
            KV("context_length", count("model_max_length", "max_position_embeddings")),
        ),
        *FROM_COHERE,
    ),
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 8192,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_key_value_heads": n_head,
        "logit_scale": 0.0625,
    },
    checks=(
        activation("silu", "swish"),
        fixed("tie_word_embeddings", None, True),
        heads_fill_embedding,
        head_norms_by_depth,
    ),
    rope_types=("default",),
    drops=(Drop("*lm_head.weight", "the same as the embedding, which llama.cpp uses for the output"),),
    sizes={"heads": n_head, "kv_heads": n_head_kv},
)

# Three layers with a window and rotation, then one with neither; never norms of heads, and no biases (the files of
# some models hold zeros for them).
COHERE2 = replace(
    COMMAND_R,
    name="cohere2",
    classes=("Cohere2ForCausalLM",),
    rules=(*ENDS[:2], NORMS[0], *(replace(rule, bias=False) for rule in ATTENTION), *FEED_FORWARD),
    kvs=(
        *without(COMMON, "rope.scaling.type"),
        FROM_COHERE[0],
        KV("attention.sliding_window", count("sliding_window")),
        KV("vocab_size", count("vocab_size")),
        KV("rope.dimension_count", lambda config: u32(head_dim(config))),
        FROM_COHERE[1],
    ),
    defaults={**COMMAND_R.defaults, "sliding_window": 4096, "head_dim": head_dim},
    checks=(
        activation("silu", "swish"),
        fixed("tie_word_embeddings", None, True),
        fixed("attention_bias", None, False),
        fixed("rotary_pct", None, 1),
        heads_fill_embedding,
        sliding_pattern(4),
    ),
    drops=(*COMMAND_R.drops, Drop("*.bias", "zeros: the model has no biases")),
)

FAMILY = (COMMAND_R, COHERE2)
