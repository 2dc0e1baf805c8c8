"""DBRX: centred norms, q, k and v in one matrix, and experts in stacks, one of them transposed.

Sources: conversion/dbrx.py for names, values and metadata; src/models/dbrx.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ggufround.arch.checks import fixed
from ggufround.arch.config import n_expert, n_ff, n_layer
from ggufround.arch.metadata import constant, count, real
from ggufround.arch.spec import KV, Architecture, Config, Rule
from ggufround.arch.transforms import transpose
from ggufround.gguf_file import f32, u32


def inside(section: str, key: str, otherwise: object = None) -> Callable[[Config], Any]:
    """What an inner object of the config says."""

    def read(config: Config) -> Any:
        part = config.get(section)
        value = part.get(key) if isinstance(part, dict) else None
        return otherwise if value is None else value

    return read


def expert_runs(config: Config) -> list[tuple[int, int]]:
    return [(e * n_ff(config), n_ff(config)) for e in range(n_expert(config))]


BLOCK = "blocks.{i}.norm_attn_norm."
EXPERTS = "blocks.{i}.ffn.experts.mlp."

DBRX = Architecture(
    name="dbrx",
    classes=("DbrxForCausalLM",),
    rules=(
        Rule("wte.weight", "token_embd.weight", "vocab embd"),
        Rule("norm_f.weight", "output_norm.weight", "embd"),
        Rule("lm_head.weight", "output.weight", "vocab embd"),
        Rule(f"{BLOCK}norm_1.weight", "blk.{i}.attn_norm.weight", "embd"),
        Rule(f"{BLOCK}attn.Wqkv.weight", "blk.{i}.attn_qkv.weight", "qkv embd"),
        Rule(f"{BLOCK}attn.out_proj.weight", "blk.{i}.attn_output.weight", "embd embd"),
        Rule(f"{BLOCK}norm_2.weight", "blk.{i}.attn_output_norm.weight", "embd"),
        Rule("blocks.{i}.ffn.router.layer.weight", "blk.{i}.ffn_gate_inp.weight", "experts embd"),
        Rule(f"{EXPERTS}w1", "blk.{i}.ffn_gate_exps.weight", "stack embd", makes="experts ff embd"),
        Rule(f"{EXPERTS}v1", "blk.{i}.ffn_up_exps.weight", "stack embd", makes="experts ff embd"),
        Rule(
            f"{EXPERTS}w2",
            "blk.{i}.ffn_down_exps.weight",
            "stack embd",
            via=transpose,
            runs=expert_runs,
            makes="experts embd ff",
        ),
    ),
    kvs=(
        KV("block_count", lambda config: u32(n_layer(config))),
        KV("context_length", count("max_seq_len")),
        KV("embedding_length", count("hidden_size")),
        KV("feed_forward_length", count("intermediate_size")),
        KV("attention.head_count", count("n_heads")),
        KV("attention.head_count_kv", count("num_key_value_heads")),
        KV("rope.freq_base", real("rope_theta")),
        KV("attention.clamp_kqv", real("clip_qkv")),
        KV("expert_count", count("num_local_experts")),
        KV("expert_used_count", count("num_experts_per_tok")),
        KV("attention.layer_norm_epsilon", constant(f32(1e-5))),
    ),
    tokenizers=("bpe",),
    defaults={
        "hidden_size": lambda config: config.get("d_model", 2048),
        "max_seq_len": 2048,
        "intermediate_size": inside("ffn_config", "ffn_hidden_size", 3584),
        "num_local_experts": inside("ffn_config", "moe_num_experts", 4),
        "num_experts_per_tok": inside("ffn_config", "moe_top_k", 1),
        "moe_normalize_expert_weights": inside("ffn_config", "moe_normalize_expert_weights", 1),
        "ffn_act_fn": inside("ffn_config", "ffn_act_fn", {"name": "silu"}),
        "num_key_value_heads": inside("attn_config", "kv_n_heads", 1),
        "clip_qkv": inside("attn_config", "clip_qkv"),
        "rope_theta": inside("attn_config", "rope_theta", 10000.0),
    },
    checks=(fixed("moe_normalize_expert_weights", 1), fixed("ffn_act_fn", {"name": "silu"})),
    prefixes=("transformer.",),
    untunable="its experts lie transposed in stacks of all of them",
    sizes={"stack": lambda config: n_expert(config) * n_ff(config)},
)

FAMILY = (DBRX,)
