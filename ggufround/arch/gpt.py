"""The first generations of GPT: GPT-2, GPT-BigCode, GPT-NeoX, BLOOM, Falcon, MPT, CodeShell. Layer norms with biases,
queries, keys and values in one matrix, no gate in the feed-forward part.

Sources: conversion/{gpt2,starcoder,gptneox,bloom,falcon,mpt,codeshell}.py for names, values and metadata;
src/models/*.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from ggufround.arch import rope
from ggufround.arch.checks import GELU, fixed
from ggufround.arch.config import N_EMBD, N_FF, N_HEAD, integer, n_embd, n_head_kv, n_layer
from ggufround.arch.metadata import count, real
from ggufround.arch.spec import KV, Architecture, Config, Drop, Rule, with_biases
from ggufround.arch.transforms import transpose
from ggufround.gguf_file import u32

CONTEXT = ("n_positions", "n_ctx")
BLOCKS = KV("block_count", lambda config: u32(n_layer(config)))
WIDTH = KV("embedding_length", count(*N_EMBD))
# The converter always writes four times the embedding; llama.cpp needs what the matrices have.
FEED_FORWARD = KV("feed_forward_length", count(*N_FF))
HEADS = KV("attention.head_count", count(*N_HEAD))
KEYS = KV("attention.head_count_kv", lambda config: u32(n_head_kv(config)))
EPSILON = KV("attention.layer_norm_epsilon", real("layer_norm_epsilon", "layer_norm_eps"))
BASE = KV("rope.freq_base", rope.freq_base_if_other)
HEAD = Rule("lm_head.weight", "output.weight", "vocab embd", optional=True)  # absent: tied to the embedding
MASKS = tuple(Drop(f"*.attn.{name}", "causal mask: computed by llama.cpp") for name in ("bias", "masked_bias"))


def four_times(config: Config) -> int:
    return 4 * n_embd(config)


GPT2 = Architecture(
    name="gpt2",
    classes=("GPT2LMHeadModel",),
    rules=(
        Rule("wte.weight", "token_embd.weight", "vocab embd"),
        Rule("wpe.weight", "position_embd.weight", "context embd"),
        HEAD,
        *with_biases(
            Rule("ln_f.weight", "output_norm.weight", "embd"),
            Rule("h.{i}.ln_1.weight", "blk.{i}.attn_norm.weight", "embd"),
            Rule("h.{i}.attn.c_attn.weight", "blk.{i}.attn_qkv.weight", "embd qkv", transpose, makes="qkv embd"),
            Rule("h.{i}.attn.c_proj.weight", "blk.{i}.attn_output.weight", "embd embd", transpose, makes="embd embd"),
            Rule("h.{i}.ln_2.weight", "blk.{i}.ffn_norm.weight", "embd"),
            Rule("h.{i}.mlp.c_fc.weight", "blk.{i}.ffn_up.weight", "embd ff", transpose, makes="ff embd"),
            Rule("h.{i}.mlp.c_proj.weight", "blk.{i}.ffn_down.weight", "ff embd", transpose, makes="embd ff"),
        ),
    ),
    kvs=(BLOCKS, KV("context_length", count(*CONTEXT)), WIDTH, FEED_FORWARD, HEADS, EPSILON),
    tokenizers=("bpe",),
    defaults={"n_positions": 1024, "layer_norm_epsilon": 1e-5, "n_inner": four_times},
    checks=(
        fixed("activation_function", *GELU),
        fixed("scale_attn_weights", None, True),
        fixed("scale_attn_by_inverse_layer_idx", None, False),
        fixed("add_cross_attention", None, False),
    ),
    drops=MASKS,
    prefixes=("transformer.",),
    sizes={"context": lambda config: integer(config, *CONTEXT)},
    untunable="its matrices are stored transposed, so that a row of the file is a column of the checkpoint",
)

FAMILY = (GPT2,)
