"""LFM2 and its mixtures of experts: short convolutions in most blocks, attention in the others.

Sources: conversion/lfm2.py for names, values and metadata; src/models/lfm2.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.checks import fixed
from ggufround.arch.config import integer, n_embd, n_head_kv, n_layer, optional_integer, optional_number, wrong
from ggufround.arch.gemma import VISION
from ggufround.arch.llama import ATTENTION, ENDS
from ggufround.arch.metadata import COMMON, constant, count, replaced
from ggufround.arch.spec import KV, Architecture, Config, Rule
from ggufround.gguf_file import Field, Kind, array, u32

SIGMOID = 2  # llama.cpp's number for it


def kinds(config: Config) -> list[str]:
    """ "conv" or "full_attention" for each layer."""
    stated = config.get("layer_types")
    if stated is None:
        full = config.get("full_attn_idxs", list(range(n_layer(config))))
        if not isinstance(full, list):
            raise wrong("full_attn_idxs", full, "a list of layers")
        return ["full_attention" if i in full else "conv" for i in range(n_layer(config))]
    known = isinstance(stated, list) and all(kind in ("full_attention", "conv") for kind in stated)
    if not known or len(stated) != n_layer(config):
        raise wrong("layer_types", stated, f"{n_layer(config)} times full_attention or conv")
    return list(stated)


def is_conv(config: Config, i: int) -> bool:
    return kinds(config)[i] == "conv"


def is_attention(config: Config, i: int) -> bool:
    return kinds(config)[i] == "full_attention"


def adjusted(config: Config) -> int:
    """The feed-forward part is narrower than its config says, unless that says otherwise."""
    width = integer(config, "block_ff_dim", "intermediate_size")
    if not config.get("block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    if (factor := optional_number(config, "block_ffn_dim_multiplier")) is None:
        return width
    multiple = integer(config, "block_multiple_of")
    return -(-int(factor * width) // multiple) * multiple


def key_value_heads(config: Config) -> Field:
    return array(Kind.I32, [0 if kind == "conv" else n_head_kv(config) for kind in kinds(config)])


def dense_layers(config: Config) -> int:
    return optional_integer(config, "num_dense_layers") or 0


def is_dense(config: Config, i: int) -> bool:
    return i < dense_layers(config)


def is_sparse(config: Config, i: int) -> bool:
    return i >= dense_layers(config)


MIXERS = (
    *(replace(rule, bias=False, where=is_attention) for rule in ATTENTION[:3]),
    Rule("layers.{i}.self_attn.out_proj.weight", "blk.{i}.attn_output.weight", "embd q", where=is_attention),
    Rule("layers.{i}.self_attn.q_layernorm.weight", "blk.{i}.attn_q_norm.weight", "head", where=is_attention),
    Rule("layers.{i}.self_attn.k_layernorm.weight", "blk.{i}.attn_k_norm.weight", "head", where=is_attention),
    Rule(
        "layers.{i}.conv.conv.weight",
        "blk.{i}.shortconv.conv.weight",
        "embd 1 kernel",
        makes="embd kernel",
        where=is_conv,
    ),
    Rule("layers.{i}.conv.in_proj.weight", "blk.{i}.shortconv.in_proj.weight", "3embd embd", where=is_conv),
    Rule("layers.{i}.conv.out_proj.weight", "blk.{i}.shortconv.out_proj.weight", "embd embd", where=is_conv),
)
FEED_FORWARD = (
    Rule("layers.{i}.feed_forward.w1.weight", "blk.{i}.ffn_gate.weight", "ff embd"),
    Rule("layers.{i}.feed_forward.w3.weight", "blk.{i}.ffn_up.weight", "ff embd"),
    Rule("layers.{i}.feed_forward.w2.weight", "blk.{i}.ffn_down.weight", "embd ff"),
)
FINAL = (
    ENDS[0],
    Rule("embedding_norm.weight", "token_embd_norm.weight", "embd"),  # of the last block's output, in spite of its name
    ENDS[2],
)
NORMS = (
    Rule("layers.{i}.operator_norm.weight", "blk.{i}.attn_norm.weight", "embd"),
    Rule("layers.{i}.ffn_norm.weight", "blk.{i}.ffn_norm.weight", "embd"),
)

LFM2 = Architecture(
    name="lfm2",
    classes=("Lfm2ForCausalLM", "LFM2ForCausalLM"),
    rules=(*FINAL, *NORMS, *MIXERS, *FEED_FORWARD),
    kvs=(
        *replaced(
            COMMON,
            KV("feed_forward_length", lambda config: u32(adjusted(config))),
            KV("attention.head_count_kv", key_value_heads),
        ),
        KV("vocab_size", count("vocab_size")),
        KV("shortconv.l_cache", count("conv_L_cache")),
    ),
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 128000,
        "intermediate_size": 12288,
        "num_key_value_heads": 8,
        "norm_eps": 1e-5,
        "rope_theta": lambda config: config.get("theta", 1e6),  # the first configs' name for it
        "conv_L_cache": 3,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
    },
    drops=VISION,
    sizes={
        "ff": adjusted,
        "3embd": lambda config: 3 * n_embd(config),
        "kernel": lambda config: integer(config, "conv_L_cache"),
    },
)

# Experts in all but the first layers, chosen by a sigmoid with a bias that does not weigh.
LFM2MOE = replace(
    LFM2,
    name="lfm2moe",
    classes=("Lfm2MoeForCausalLM",),
    rules=(
        *FINAL,
        *NORMS,
        *MIXERS,
        *(replace(rule, where=is_dense) for rule in FEED_FORWARD),
        *(
            Rule(f"layers.{{i}}.feed_forward.{source}", f"blk.{{i}}.{to}", shape, where=is_sparse)
            for source, to, shape in (
                ("gate.weight", "ffn_gate_inp.weight", "experts embd"),
                ("expert_bias", "exp_probs_b.bias", "experts"),
                ("experts.{e}.w1.weight", "ffn_gate_exps.weight", "expert_ff embd"),
                ("experts.{e}.w3.weight", "ffn_up_exps.weight", "expert_ff embd"),
                ("experts.{e}.w2.weight", "ffn_down_exps.weight", "embd expert_ff"),
            )
        ),
    ),
    kvs=(
        *replaced(COMMON, KV("attention.head_count_kv", key_value_heads)),
        KV("expert_feed_forward_length", count("moe_intermediate_size")),
        KV("leading_dense_block_count", lambda config: u32(dense_layers(config))),
        KV("expert_gating_func", constant(u32(SIGMOID))),
        KV("vocab_size", count("vocab_size")),
        KV("shortconv.l_cache", count("conv_L_cache")),
    ),
    defaults={
        **{key: LFM2.defaults[key] for key in LFM2.defaults if not key.startswith("block")},
        "intermediate_size": 7168,
        "moe_intermediate_size": 1792,
        "num_dense_layers": 2,
        "num_experts": 32,
        "num_experts_per_tok": 4,
    },
    checks=(
        fixed("norm_topk_prob", None, True),
        fixed("use_expert_bias", None, True),
        fixed("routed_scaling_factor", None, 1.0),  # llama.cpp has no place for another
    ),
    sizes={**LFM2.sizes, "ff": lambda config: integer(config, "intermediate_size")},
)

FAMILY = (LFM2, LFM2MOE)
