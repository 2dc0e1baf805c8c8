"""Kimi Linear: delta attention with a decay for each column in most layers, latent attention in every fourth.

Nothing is rotated. Sources: conversion/kimi_linear.py for names, values and metadata; src/models/kimi-linear.cpp for
what llama.cpp reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ggufround.arch.checks import activation, fixed
from ggufround.arch.config import integer, n_head, n_layer, optional_integer, shown, wrong
from ggufround.arch.deepseek import key_rows, value_rows
from ggufround.arch.llama import ENDS, EXPERTS, FEED_FORWARD, NORMS
from ggufround.arch.metadata import COMMON, constant, count, count_if_stated, inserted, real, replaced
from ggufround.arch.spec import KV, Architecture, Config, Rule, Transform
from ggufround.arch.transforms import decay, decay_logarithm, transpose
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, Kind, array, u32

SIGMOID = 2  # llama.cpp's number for it


def delta(config: Config) -> Mapping[str, Any]:
    """What the config says of delta attention, in a part of its own."""
    found = config.get("linear_attn_config")
    if not isinstance(found, Mapping):
        raise wrong("linear_attn_config", found, "an object")
    return found


def is_latent(config: Config, i: int) -> bool:
    full = delta(config).get("full_attn_layers")
    if not isinstance(full, list):
        raise wrong("full_attn_layers", full, "a list of layers, counted from 1")
    return i + 1 in full


def is_delta(config: Config, i: int) -> bool:
    return not is_latent(config, i)


def leading(config: Config) -> int:
    """The first layers, which have a plain feed-forward part."""
    return optional_integer(config, "first_k_dense_replace") or 0


def is_dense(config: Config, i: int) -> bool:
    return i < leading(config)


def is_sparse(config: Config, i: int) -> bool:
    return i >= leading(config)


def key_value_heads(config: Config) -> Field:
    """One where all heads share what is kept of a token, none in layers that keep a state."""
    return array(Kind.I32, [int(is_latent(config, i)) for i in range(n_layer(config))])


def delta_fits(config: Config) -> None:
    """llama.cpp has as many heads of one kind as of the other, and rotates nothing."""
    if delta(config).get("num_heads") != n_head(config):
        raise UnsupportedError(
            f"config.json: linear_attn_config has {shown(delta(config).get('num_heads'))} heads, latent attention has "
            f"{n_head(config)}; llama.cpp runs as many of both"
        )


def size(key: str) -> Callable[[Config], int]:
    return lambda config: integer(config, key)


def delta_size(key: str) -> Callable[[Config], int]:
    return lambda config: integer(delta(config), key)


def delta_width(config: Config) -> int:
    return n_head(config) * integer(delta(config), "head_dim")


def key_width(config: Config) -> int:
    return integer(config, "qk_nope_head_dim") + integer(config, "qk_rope_head_dim")


def shared_width(config: Config) -> int:
    return integer(config, "num_shared_experts") * integer(config, "moe_intermediate_size")


def attention(where: Callable[[Config, int], bool], *rows: tuple[str, str, str]) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"layers.{{i}}.self_attn.{source}", f"blk.{{i}}.{to}", shape, where=where) for source, to, shape in rows
    )


DELTA = (
    *attention(
        is_delta,
        ("q_proj.weight", "attn_q.weight", "width embd"),
        ("k_proj.weight", "attn_k.weight", "width embd"),
        ("v_proj.weight", "attn_v.weight", "width embd"),
        ("f_a_proj.weight", "ssm_f_a.weight", "delta embd"),
        ("f_b_proj.weight", "ssm_f_b.weight", "width delta"),
        ("dt_bias", "ssm_dt.bias", "width"),
        ("b_proj.weight", "ssm_beta.weight", "heads embd"),
        ("g_a_proj.weight", "ssm_g_a.weight", "delta embd"),
        ("g_b_proj.weight", "ssm_g_b.weight", "width delta"),
        ("o_norm.weight", "ssm_norm.weight", "delta"),
        ("o_proj.weight", "attn_output.weight", "embd width"),
    ),
    *(
        replace(rule, makes="1 width 1 kernel")
        for rule in attention(
            is_delta, *((f"{k}_conv1d.weight", f"ssm_conv1d_{k}.weight", "width 1 kernel") for k in "qkv")
        )
    ),
    replace(
        attention(is_delta, ("A_log", "ssm_a", "1 1 heads 1"))[0],
        via=lambda config: Transform(decay, back=decay_logarithm),
    ),
)
LATENT = (
    *attention(
        is_latent,
        ("q_proj.weight", "attn_q.weight", "keys embd"),
        ("kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight", "kv_a embd"),
        ("kv_a_layernorm.weight", "attn_kv_a_norm.weight", "latent"),
        ("o_proj.weight", "attn_output.weight", "embd values"),
    ),
    replace(
        attention(is_latent, ("kv_b_proj.weight", "attn_k_b.weight", "kv_b latent"))[0],
        via=transpose,
        runs=key_rows,
        makes="heads latent nope",
    ),
    replace(
        attention(is_latent, ("kv_b_proj.weight", "attn_v_b.weight", "kv_b latent"))[0],
        runs=value_rows,
        makes="heads value latent",
    ),
)
MOE = "layers.{i}.block_sparse_moe."
SPARSE = (
    replace(EXPERTS[0], where=is_sparse),
    *(replace(rule, shape=rule.shape.replace("ff", "expert_ff"), where=is_sparse) for rule in EXPERTS[1:]),
    Rule(f"{MOE}gate.e_score_correction_bias", "blk.{i}.exp_probs_b.bias", "experts", where=is_sparse),
    Rule(f"{MOE}shared_experts.gate_proj.weight", "blk.{i}.ffn_gate_shexp.weight", "shared_ff embd", where=is_sparse),
    Rule(f"{MOE}shared_experts.up_proj.weight", "blk.{i}.ffn_up_shexp.weight", "shared_ff embd", where=is_sparse),
    Rule(f"{MOE}shared_experts.down_proj.weight", "blk.{i}.ffn_down_shexp.weight", "embd shared_ff", where=is_sparse),
)

KIMI_LINEAR = Architecture(
    name="kimi-linear",
    classes=("KimiLinearForCausalLM",),
    rules=(
        *ENDS[:2],
        replace(ENDS[2], optional=False),
        *NORMS,
        *DELTA,
        *LATENT,
        *(replace(rule, where=is_dense) for rule in FEED_FORWARD),
        *SPARSE,
    ),
    kvs=(
        *replaced(
            inserted(
                COMMON,
                "attention.key_length",
                KV("expert_group_used_count", count_if_stated("topk_group")),
                KV("expert_gating_func", constant(u32(SIGMOID))),
            ),
            KV("attention.head_count_kv", key_value_heads),
            KV(
                "attention.key_length",
                lambda config: u32(integer(config, "kv_lora_rank") + integer(config, "qk_rope_head_dim")),
            ),
        ),
        KV("vocab_size", count("vocab_size")),
        KV("ssm.conv_kernel", lambda config: u32(integer(delta(config), "short_conv_kernel_size"))),
        KV("kda.head_dim", lambda config: u32(integer(delta(config), "head_dim"))),
        KV("attention.kv_lora_rank", count("kv_lora_rank")),
        KV("rope.dimension_count", count("qk_rope_head_dim")),
        KV("attention.key_length_mla", lambda config: u32(key_width(config))),
        KV("attention.value_length_mla", count("v_head_dim")),
        KV("expert_feed_forward_length", count("moe_intermediate_size")),
        KV("expert_shared_count", count("num_shared_experts")),
        KV("leading_dense_block_count", lambda config: u32(leading(config))),
        KV("expert_weights_scale", real("routed_scaling_factor")),
    ),
    tokenizers=("bpe", "kimi"),
    defaults={
        "model_max_length": 1048576,
        "rms_norm_eps": 1e-5,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "num_experts": 256,
        "num_experts_per_token": 8,
        "num_shared_experts": 1,
        "moe_intermediate_size": 1024,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.446,
    },
    checks=(
        activation("silu", "swish"),
        delta_fits,
        fixed("q_lora_rank", None),
        fixed("moe_layer_freq", None, 1),
        fixed("moe_renormalize", None, True),
        fixed("num_expert_group", None, 1),
        fixed("moe_router_activation_func", None, "sigmoid"),
        fixed("mla_use_nope", None, True),
        fixed("num_nextn_predict_layers", None, 0),
    ),
    sizes={
        "width": delta_width,
        "delta": delta_size("head_dim"),
        "kernel": delta_size("short_conv_kernel_size"),
        "heads": n_head,
        "latent": size("kv_lora_rank"),
        "nope": size("qk_nope_head_dim"),
        "value": size("v_head_dim"),
        "keys": lambda config: n_head(config) * key_width(config),
        "values": lambda config: n_head(config) * integer(config, "v_head_dim"),
        "kv_a": lambda config: integer(config, "kv_lora_rank") + integer(config, "qk_rope_head_dim"),
        "kv_b": lambda config: n_head(config) * (integer(config, "qk_nope_head_dim") + integer(config, "v_head_dim")),
        "shared_ff": shared_width,
    },
)

FAMILY = (KIMI_LINEAR,)
