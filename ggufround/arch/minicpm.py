"""MiniCPM and MiniCPM 3: Llama and DeepSeek's latent attention with multipliers at three places.

Sources: conversion/minicpm.py for names, values and metadata; src/models/minicpm*.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from dataclasses import replace

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
    number,
    wrong,
)
from ggufround.arch.deepseek import LATENT, LATENT_SIZES, key_length
from ggufround.arch.llama import BIASED, ENDS, FEED_FORWARD, INTERLEAVED, NORMS
from ggufround.arch.metadata import COMMON, count, real
from ggufround.arch.spec import KV, Architecture, Config, Output, Rule
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import f32, u32


def no_longer_than_trained(config: Config) -> None:
    """Scores of contexts beyond the original length are sharpened, which llama.cpp cannot be told here."""
    section = rope.full(config)
    if rope.rope_type(config) == "longrope" and integer(config, *N_CONTEXT) > rope.original_context(section):
        raise UnsupportedError(
            "config.json: max_position_embeddings is beyond original_max_position_embeddings; for this architecture "
            "llama.cpp cannot sharpen attention as longrope then does"
        )


def factors(config: Config) -> tuple[Output, ...]:
    return rope.factor_tensors(config, head_dim(config))


def latent_factors(config: Config) -> tuple[Output, ...]:
    return rope.factor_tensors(config, integer(config, "qk_rope_head_dim"))


MINICPM = Architecture(
    name="minicpm",
    classes=("MiniCPMForCausalLM",),
    rules=(*ENDS, *NORMS, *INTERLEAVED[:3], BIASED[0], *FEED_FORWARD),
    kvs=(
        *COMMON,
        KV("embedding_scale", real("scale_emb")),
        KV("residual_scale", lambda config: f32(number(config, "scale_depth") / n_layer(config) ** 0.5)),
        KV("logit_scale", lambda config: f32(n_embd(config) / number(config, "dim_model_base"))),
    ),
    tokenizers=("spm",),
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "num_key_value_heads": n_head,
        "scale_emb": 1,
        "scale_depth": 1,
        "dim_model_base": 1,
    },
    computed=(factors,),
    checks=(activation("silu", "swish"), no_longer_than_trained),
    rope_types=("default", "linear", "dynamic", "longrope"),
    untunable="transformers has no code of its own for it",
)


def heads_divide_the_embedding(config: Config) -> None:
    value = integer(config, "v_head_dim")
    if value * n_head(config) != n_embd(config):
        raise wrong("v_head_dim", value, f"a hidden size of {n_embd(config)} over {n_head(config)} heads")


# Latent attention whose keys and values llama.cpp makes as transformers does, from the matrix as it is. The multipliers
# are llama.cpp's own. The converter writes no rotation base.
MINICPM3 = replace(
    MINICPM,
    name="minicpm3",
    classes=("MiniCPM3ForCausalLM",),
    rules=(
        *ENDS,
        *NORMS,
        *LATENT[1:6],
        Rule("layers.{i}.self_attn.kv_b_proj.weight", "blk.{i}.attn_kv_b.weight", "kv_b kv_lora"),
        LATENT[-1],
        *FEED_FORWARD,
    ),
    kvs=(
        KV("context_length", count(*N_CONTEXT)),
        KV("embedding_length", count(*N_EMBD)),
        KV("block_count", lambda config: u32(n_layer(config))),
        KV("feed_forward_length", count(*N_FF)),
        KV("attention.head_count", count(*N_HEAD)),
        KV("attention.head_count_kv", count(*N_HEAD_KV)),
        KV("rope.freq_base", rope.freq_base_if_other),
        KV("attention.layer_norm_rms_epsilon", real("rms_norm_eps")),
        KV("vocab_size", count("vocab_size")),
        KV("attention.q_lora_rank", count("q_lora_rank")),
        KV("attention.kv_lora_rank", count("kv_lora_rank")),
        KV("attention.key_length", lambda config: u32(key_length(config))),
        KV("rope.dimension_count", count("qk_rope_head_dim")),
    ),
    defaults={
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_key_value_heads": n_head,
        "kv_lora_rank": 256,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": lambda config: n_embd(config) // n_head(config),
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 256,
    },
    computed=(latent_factors,),
    checks=(
        *MINICPM.checks,
        heads_divide_the_embedding,
        fixed("scale_emb", 12),
        fixed("scale_depth", 1.4),
        fixed("dim_model_base", 256),
    ),
    rope_types=("default", "longrope"),
    sizes=LATENT_SIZES,
    untunable="",
)

FAMILY = (MINICPM, MINICPM3)
