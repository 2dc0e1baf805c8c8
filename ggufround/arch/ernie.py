"""ERNIE 4.5, plain and with experts. Heads are rotated by pairs of neighbours, as llama.cpp does it.

Sources: conversion/ernie.py for names, values and metadata; src/models/ernie4-5*.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ggufround.arch.checks import activation, fixed
from ggufround.arch.config import integer, n_head, n_layer, optional_integer, wrong
from ggufround.arch.deepseek import DENSE, ROUTED, SELECTION, SHARED
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD, NORMS
from ggufround.arch.metadata import COMMON, count, count_if_stated, without
from ggufround.arch.spec import KV, Architecture, Config, Drop, Rule
from ggufround.gguf_file import Field, u32

ERNIE4_5 = Architecture(
    name="ernie4_5",
    classes=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    rules=(*ENDS, *NORMS, *ATTENTION, *FEED_FORWARD),
    kvs=COMMON,
    tokenizers=("spm", "llama_hf"),
    defaults={
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "num_key_value_heads": 2,
        "head_dim": 128,
    },
    checks=(activation("silu", "swish"),),
    prefixes=("model.", "ernie.", "language_model.", "text_model."),
)


def plain_blocks(config: Config) -> int:
    return optional_integer(config, "moe_layer_start_index") or 0


def plain(config: Config, i: int) -> bool:
    return i < plain_blocks(config)


def mixed(config: Config, i: int) -> bool:
    return i >= plain_blocks(config)


def shares(config: Config, i: int) -> bool:
    return mixed(config, i) and bool(optional_integer(config, "moe_num_shared_experts"))


def shared_rows(config: Config) -> int:
    return integer(config, "moe_num_shared_experts") * integer(config, "moe_intermediate_size")


def shared_length(config: Config) -> Field | None:
    """The converter divides intermediate_size by the number of key-value heads, which gives the same for the models
    that there are."""
    return u32(shared_rows(config)) if optional_integer(config, "moe_num_shared_experts") else None


def experts_to_the_end(config: Config) -> None:
    last = config.get("moe_layer_end_index")
    if last not in (None, -1, n_layer(config) - 1):
        raise wrong("moe_layer_end_index", last, f"-1 or {n_layer(config) - 1}: llama.cpp runs experts up to the last")


def placed(rules: tuple[Rule, ...], where: Callable[[Config, int], bool]) -> tuple[Rule, ...]:
    return tuple(replace(rule, where=where) for rule in rules)


# Experts after the first blocks, chosen with a bias. llama.cpp brings their shares to a sum of 1.
ERNIE4_5_MOE = replace(
    ERNIE4_5,
    name="ernie4_5-moe",
    classes=("Ernie4_5_MoeForCausalLM",),
    rules=(
        *ENDS,
        *NORMS,
        *ATTENTION,
        *placed(DENSE, plain),
        *placed(ROUTED, mixed),
        replace(
            SELECTION,
            source="layers.{i}.mlp.moe_statics.e_score_correction_bias",
            shape="1 experts",
            where=mixed,
        ),
        *placed(SHARED, shares),
    ),
    kvs=(
        *without(COMMON, "expert_count", "expert_used_count"),
        KV("expert_count", count("moe_num_experts")),
        KV("expert_used_count", count("moe_k")),
        KV("interleave_moe_layer_step", count("moe_layer_interval")),
        KV("leading_dense_block_count", lambda config: u32(plain_blocks(config))),
        KV("expert_feed_forward_length", count("moe_intermediate_size")),
        KV("expert_shared_count", count_if_stated("moe_num_shared_experts")),
        KV("expert_shared_feed_forward_length", shared_length),
    ),
    defaults={
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "num_key_value_heads": n_head,
        "moe_intermediate_size": 1536,
        "moe_k": 6,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_interval": 1,
        "num_experts": lambda config: config["moe_num_experts"],
    },
    checks=(*ERNIE4_5.checks, fixed("moe_layer_interval", 1), experts_to_the_end),
    sizes={"shared_ff": shared_rows},
    drops=tuple(
        Drop(f"*.{name}.*", "predicts further tokens: llama.cpp has no use for it in this architecture")
        for name in ("mtp_block", "mtp_emb_norm", "mtp_hidden_norm", "mtp_linear_proj")
    ),
)

FAMILY = (ERNIE4_5, ERNIE4_5_MOE)
