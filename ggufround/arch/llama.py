"""Llama and its close relatives: Llama 1 to 3, SmolLM 2 and 3, Mistral, Granite, Mixtral.

Sources: conversion/llama.py and conversion/granite.py for names, values and metadata; src/models/*.cpp for what
llama.cpp reads.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch import rope
from ggufround.arch.checks import activation, no_rope_every_fourth_layer
from ggufround.arch.config import head_dim, n_head
from ggufround.arch.metadata import COMMON, count, real_if_stated, without
from ggufround.arch.spec import KV, Architecture, Rule
from ggufround.arch.transforms import interleave_rope
from ggufround.gguf_file import u32

ENDS = (
    Rule("embed_tokens.weight", "token_embd.weight", "vocab embd"),
    Rule("norm.weight", "output_norm.weight", "embd"),
    Rule("lm_head.weight", "output.weight", "vocab embd", optional=True),  # absent: tied to the embedding
)
NORMS = (
    Rule("layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight", "embd"),
    Rule("layers.{i}.post_attention_layernorm.weight", "blk.{i}.ffn_norm.weight", "embd"),
)
ATTENTION = (
    Rule("layers.{i}.self_attn.q_proj.weight", "blk.{i}.attn_q.weight", "q embd", bias=True),
    Rule("layers.{i}.self_attn.k_proj.weight", "blk.{i}.attn_k.weight", "kv embd", bias=True),
    Rule("layers.{i}.self_attn.v_proj.weight", "blk.{i}.attn_v.weight", "kv embd", bias=True),
    Rule("layers.{i}.self_attn.o_proj.weight", "blk.{i}.attn_output.weight", "embd q"),
)
INTERLEAVED = (
    replace(ATTENTION[0], via=interleave_rope),
    replace(ATTENTION[1], via=interleave_rope),
    ATTENTION[2],
    ATTENTION[3],
)
FEED_FORWARD = (
    Rule("layers.{i}.mlp.gate_proj.weight", "blk.{i}.ffn_gate.weight", "ff embd"),
    Rule("layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight", "ff embd"),
    Rule("layers.{i}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight", "embd ff"),
)
# llama.cpp reads biases of the output projection and of the feed-forward part for `llama` and `granite` only.
BIASED = tuple(replace(rule, bias=True) for rule in (INTERLEAVED[3], *FEED_FORWARD))
EXPERTS = (
    Rule("layers.{i}.block_sparse_moe.gate.weight", "blk.{i}.ffn_gate_inp.weight", "experts embd"),
    Rule("layers.{i}.block_sparse_moe.experts.{e}.w1.weight", "blk.{i}.ffn_gate_exps.weight", "ff embd"),
    Rule("layers.{i}.block_sparse_moe.experts.{e}.w3.weight", "blk.{i}.ffn_up_exps.weight", "ff embd"),
    Rule("layers.{i}.block_sparse_moe.experts.{e}.w2.weight", "blk.{i}.ffn_down_exps.weight", "embd ff"),
)


LLAMA = Architecture(
    name="llama",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"),
    rules=(*ENDS, *NORMS, *INTERLEAVED[:3], *BIASED),
    kvs=(
        *COMMON,
        KV("vocab_size", count("vocab_size")),
        KV("rope.dimension_count", lambda config: u32(head_dim(config))),
    ),
    tokenizers=("tekken", "spm", "llama_hf", "bpe"),
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "num_key_value_heads": n_head,
        "head_dim": head_dim,
    },
    computed=(rope.llama3_factors,),
    checks=(activation("silu", "swish"),),
    rope_types=("default", "linear", "dynamic", "yarn", "llama3"),
)

# Other defaults, and head_dim goes into the file only where the config states it. llama.cpp knows no sliding window
# for it: contexts beyond the window attend to everything.
MISTRAL = replace(
    LLAMA,
    classes=("MistralForCausalLM",),
    defaults={**LLAMA.defaults, "max_position_embeddings": 131072, "num_key_value_heads": 8, "head_dim": None},
)

# Mistral with a router and experts in place of the feed-forward part.
MIXTRAL = replace(
    MISTRAL,
    classes=("MixtralForCausalLM",),
    rules=(*ENDS, *NORMS, *INTERLEAVED[:3], BIASED[0], *EXPERTS),
    defaults={
        **MISTRAL.defaults,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_experts_per_tok": 2,
    },
)

# Every fourth layer rotates nothing, which llama.cpp knows from the architecture's name; no other biases.
SMOLLM3 = replace(
    LLAMA,
    name="smollm3",
    classes=("SmolLM3ForCausalLM",),
    rules=(*ENDS, *NORMS, *INTERLEAVED, *FEED_FORWARD),
    defaults={
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 2000000.0,
        "num_key_value_heads": 4,
    },
    checks=(*LLAMA.checks, no_rope_every_fourth_layer),
)

# Multipliers at four places; heads always divide the embedding (a stated head_dim is not written).
GRANITE = replace(
    LLAMA,
    name="granite",
    classes=("GraniteForCausalLM",),
    kvs=(
        *without(LLAMA.kvs, "attention.key_length", "attention.value_length"),
        KV("attention.scale", real_if_stated("attention_multiplier", zero=False)),
        KV("embedding_scale", real_if_stated("embedding_multiplier", zero=False)),
        KV("residual_scale", real_if_stated("residual_multiplier", zero=False)),
        KV("logit_scale", real_if_stated("logits_scaling", zero=False)),
    ),
    defaults={
        **LLAMA.defaults,
        "head_dim": None,
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    },
)

# No gate: the square of what is positive; no biases but those of q, k and v.
ARCEE = replace(
    LLAMA,
    name="arcee",
    classes=("ArceeForCausalLM",),
    rules=(*ENDS, *NORMS, *INTERLEAVED, *FEED_FORWARD[1:]),
    defaults={**LLAMA.defaults, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    checks=(activation("relu2"),),
)

# Heads in transformers' order, and what Llama calls the norm before feed-forward is called after attention. Only q, k
# and v have biases.
SEED_OSS = Architecture(
    name="seed_oss",
    classes=("SeedOssForCausalLM",),
    rules=(*ENDS, NORMS[0], replace(NORMS[1], to="blk.{i}.post_attention_norm.weight"), *ATTENTION, *FEED_FORWARD),
    kvs=COMMON,
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 524288,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    checks=LLAMA.checks,
)

# Heads in transformers' order with a norm each, and no gate: an activation with four numbers, two of them learned.
APERTUS = replace(
    LLAMA,
    name="apertus",
    classes=("ApertusForCausalLM",),
    rules=(
        *ENDS[:2],
        replace(ENDS[2], optional=False),
        Rule("layers.{i}.attention_layernorm.weight", "blk.{i}.attn_norm.weight", "embd"),
        Rule("layers.{i}.feedforward_layernorm.weight", "blk.{i}.ffn_norm.weight", "embd"),
        *ATTENTION[:3],
        replace(ATTENTION[3], bias=True),
        Rule("layers.{i}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight", "head"),
        Rule("layers.{i}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight", "head"),
        *FEED_FORWARD[1:],
    ),
    defaults={
        **LLAMA.defaults,
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-5,
        "rope_theta": 12000000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    },
    checks=(activation("xielu"),),
    numbers=tuple(
        (f"xielu.{name}", f"layers.{{i}}.mlp.act_fn.{name}") for name in ("alpha_n", "alpha_p", "beta", "eps")
    ),
    untunable="the numbers of its activation are metadata in the file, from where the tuner does not read them back",
)

FAMILY = (LLAMA, MISTRAL, MIXTRAL, SMOLLM3, GRANITE, ARCEE, APERTUS, SEED_OSS)
