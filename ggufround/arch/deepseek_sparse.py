"""DeepSeek V3.2 and GLM-5: V3 with attention to the tokens alone that a small part of a block (the indexer) finds.

Sources: conversion/{deepseek,glm}.py for names, values and metadata; src/models/{deepseek32,glm-dsa}.cpp for what
llama.cpp reads.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch import rope
from ggufround.arch.config import integer, n_layer, optional_integer, wrong
from ggufround.arch.deepseek import DEEPSEEK3, has_latent
from ggufround.arch.glm import GLM4_MOE, NEXT, all_blocks, dense_then_sparse
from ggufround.arch.metadata import count, count_if_stated, replaced
from ggufround.arch.spec import KV, Config, Rule
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, Kind, array, u32

INDEXER = (
    Rule("layers.{i}.self_attn.indexer.wq_b.weight", "blk.{i}.indexer.attn_q_b.weight", "index_q q_lora"),
    Rule("layers.{i}.self_attn.indexer.wk.weight", "blk.{i}.indexer.attn_k.weight", "index_head embd"),
    Rule("layers.{i}.self_attn.indexer.k_norm.weight", "blk.{i}.indexer.k_norm.weight", "index_head"),
    Rule("layers.{i}.self_attn.indexer.k_norm.bias", "blk.{i}.indexer.k_norm.bias", "index_head"),
    Rule("layers.{i}.self_attn.indexer.weights_proj.weight", "blk.{i}.indexer.proj.weight", "index_heads embd"),
)


def latent_queries(config: Config) -> None:
    if not has_latent(config, 0):
        raise UnsupportedError(
            "config.json: q_lora_rank is absent; the indexer's queries are made of that latent vector"
        )


def yarn_without_length(config: Config) -> None:
    """llama.cpp takes mscale to be 1 here."""
    if rope.rope_type(config) == "yarn" and rope.full(config).get("mscale_all_dim") != 1:
        raise UnsupportedError("config.json: mscale_all_dim is not 1; llama.cpp runs this architecture with no other")


# The block past the last, which predicts a token further, is kept.
DEEPSEEK32 = replace(
    DEEPSEEK3,
    name="deepseek32",
    classes=("DeepseekV32ForCausalLM",),
    rules=(*DEEPSEEK3.rules, *INDEXER, *NEXT),
    kvs=(
        *replaced(DEEPSEEK3.kvs, KV("block_count", lambda config: u32(all_blocks(config)))),
        KV("nextn_predict_layers", count_if_stated("num_nextn_predict_layers")),
        KV("attention.indexer.head_count", count("index_n_heads")),
        KV("attention.indexer.key_length", count("index_head_dim")),
        KV("attention.indexer.top_k", count("index_topk")),
    ),
    tokenizers=("bpe",),
    defaults={
        **DEEPSEEK3.defaults,
        "max_position_embeddings": 163840,
        "index_topk": 2048,
        "index_head_dim": 128,
        "index_n_heads": 64,
    },
    checks=(*DEEPSEEK3.checks, latent_queries, yarn_without_length, dense_then_sparse),
    sizes={
        **DEEPSEEK3.sizes,
        "2embd": GLM4_MOE.sizes["2embd"],
        "index_head": lambda config: integer(config, "index_head_dim"),
        "index_heads": lambda config: integer(config, "index_n_heads"),
        "index_q": lambda config: integer(config, "index_n_heads") * integer(config, "index_head_dim"),
    },
    blocks=all_blocks,
    beyond="",
)


def looks_itself(config: Config) -> list[bool]:
    """Which blocks have an indexer of their own; the others look at the tokens that the one before them found."""
    layers, stated, pattern = n_layer(config), config.get("indexer_types"), config.get("index_topk_pattern")
    if stated is None and isinstance(pattern, str):
        stated = [{"F": "full", "S": "shared"}.get(letter) for letter in pattern]
    if stated is None:
        step = max(optional_integer(config, "index_topk_freq") or 1, 1)
        offset = optional_integer(config, "index_skip_topk_offset")
        return [max(i - (2 if offset is None else offset) + 1, 0) % step == 0 for i in range(layers)]
    if not isinstance(stated, list) or len(stated) != layers or not set(stated) <= {"full", "shared"}:
        raise wrong("indexer_types", stated, f"a list of {layers} times full or shared")
    if stated[0] != "full":
        raise wrong("indexer_types", stated, "full first: there is nothing to share")
    return [kind == "full" for kind in stated]


def has_indexer(config: Config, i: int) -> bool:
    return i < n_layer(config) and looks_itself(config)[i]


def may_have_indexer(config: Config, i: int) -> bool:
    return not has_indexer(config, i)


def indexer_types(config: Config) -> Field | None:
    """llama.cpp takes all to be full, or, for the longest contexts, those of one model to be shared."""
    found = looks_itself(config)
    return array(Kind.BOOL, found) if "indexer_types" in config or not all(found) else None


# GLM-5: several blocks can share what one indexer found.
GLM_DSA = replace(
    DEEPSEEK32,
    name="glm-dsa",
    classes=("GlmMoeDsaForCausalLM",),
    rules=(
        *DEEPSEEK3.rules,
        *(replace(rule, where=has_indexer) for rule in INDEXER),
        *(replace(rule, where=may_have_indexer, optional=True) for rule in INDEXER),
        *NEXT,
    ),
    kvs=(*DEEPSEEK32.kvs, KV("attention.indexer.types", indexer_types)),
    tokenizers=("glm",),
    defaults={
        **DEEPSEEK32.defaults,
        "max_position_embeddings": 202752,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 64,
        "q_lora_rank": 2048,
        "v_head_dim": 256,
        "qk_nope_head_dim": 192,
        "n_group": 1,
        "topk_group": 1,
        "index_n_heads": 32,
    },
    rope_types=("default",),
    untunable="its blocks can share which tokens they look at",
)

FAMILY = (DEEPSEEK32, GLM_DSA)
