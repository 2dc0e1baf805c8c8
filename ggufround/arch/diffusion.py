"""Dream and LLaDA: Qwen 2 and Llama that see all tokens and fill in masked ones.

Sources: conversion/dream.py and llada.py for names, values and metadata; the files of the same names in src/models for
what llama.cpp reads.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.checks import activation, fixed, heads_fill_embedding
from ggufround.arch.config import head_dim
from ggufround.arch.metadata import COMMON, constant, count, without
from ggufround.arch.qwen import QWEN2
from ggufround.arch.spec import KV, Architecture, Rule
from ggufround.arch.transforms import interleave_rope
from ggufround.gguf_file import boolean, u32

ALL_TOKENS = KV("attention.causal", constant(boolean(False)))
WHY = "what it predicts are masked tokens, not the next, by which the tuner measures"

DREAM = replace(
    QWEN2,
    name="dream",
    classes=("DreamModel",),
    kvs=(*COMMON, ALL_TOKENS),
    checks=(*QWEN2.checks, heads_fill_embedding),
    untunable=WHY,
)

# Names and a config of its own; heads are interleaved.
LLADA = Architecture(
    name="llada",
    classes=("LLaDAModelLM",),
    rules=(
        Rule("wte.weight", "token_embd.weight", "vocab embd"),
        Rule("ln_f.weight", "output_norm.weight", "embd"),
        Rule("ff_out.weight", "output.weight", "vocab embd", optional=True),
        Rule("blocks.{i}.attn_norm.weight", "blk.{i}.attn_norm.weight", "embd"),
        Rule("blocks.{i}.ff_norm.weight", "blk.{i}.ffn_norm.weight", "embd"),
        Rule("blocks.{i}.q_proj.weight", "blk.{i}.attn_q.weight", "q embd", via=interleave_rope, bias=True),
        Rule("blocks.{i}.k_proj.weight", "blk.{i}.attn_k.weight", "kv embd", via=interleave_rope, bias=True),
        Rule("blocks.{i}.v_proj.weight", "blk.{i}.attn_v.weight", "kv embd", bias=True),
        Rule("blocks.{i}.attn_out.weight", "blk.{i}.attn_output.weight", "embd q", bias=True),
        Rule("blocks.{i}.ff_proj.weight", "blk.{i}.ffn_gate.weight", "ff embd"),
        Rule("blocks.{i}.up_proj.weight", "blk.{i}.ffn_up.weight", "ff embd"),
        Rule("blocks.{i}.ff_out.weight", "blk.{i}.ffn_down.weight", "embd ff"),
    ),
    kvs=(
        *without(COMMON, "embedding_length", "feed_forward_length"),
        KV("vocab_size", count("vocab_size")),
        KV("rope.dimension_count", lambda config: u32(head_dim(config))),
        KV("embedding_length", count("d_model")),
        KV("feed_forward_length", count("mlp_hidden_size")),
        ALL_TOKENS,
    ),
    further=(KV("diffusion.shift_logits", constant(boolean(False))),),
    tokenizers=("bpe",),
    defaults={
        "max_sequence_length": 4096,
        "d_model": 4096,
        "mlp_hidden_size": 12288,
        "rms_norm_eps": 1e-5,
        "hidden_size": lambda config: config.get("d_model"),
        "intermediate_size": lambda config: config.get("mlp_hidden_size"),
    },
    checks=(
        activation("silu", "swish"),
        fixed("activation_type", None, "silu", "swiglu"),
        fixed("block_type", None, "llama"),
        fixed("layer_norm_type", None, "rms"),
        fixed("alibi", None, False),
        fixed("attention_layer_norm", None, False),
    ),
    prefixes=("model.", "transformer."),
    untunable=WHY,
)

FAMILY = (DREAM, LLADA)
