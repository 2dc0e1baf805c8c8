"""Jamba: Mamba in most blocks and attention without rotation in the others, experts in every second one.

Sources: conversion/jamba.py for names, values and metadata; src/models/jamba.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.checks import activation, fixed
from ggufround.arch.config import (
    N_CONTEXT,
    N_EXPERT_USED,
    N_FF,
    N_HEAD,
    integer,
    n_embd,
    n_expert,
    n_head,
    n_head_kv,
    n_layer,
    optional_integer,
)
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD
from ggufround.arch.mamba import MIXER, UNTUNABLE, sized
from ggufround.arch.metadata import count, real
from ggufround.arch.spec import KV, Architecture, Config, Rule
from ggufround.gguf_file import Field, Kind, array, u32


def d_inner(config: Config) -> int:
    return integer(config, "mamba_expand") * n_embd(config)


def dt_rank(config: Config) -> int:
    if config.get("mamba_dt_rank") == "auto":
        return -(n_embd(config) // -16)
    return integer(config, "mamba_dt_rank")


def state(config: Config) -> int:
    return integer(config, "mamba_d_state")


def conv(config: Config) -> int:
    return integer(config, "mamba_d_conv")


def _chosen(config: Config, block: int, kind: str) -> bool:
    """Whether the block is one of those that come every so many layers."""
    first = optional_integer(config, f"{kind}_layer_offset") or 0
    return block >= first and (block - first) % integer(config, f"{kind}_layer_period") == 0


def attends(config: Config, block: int) -> bool:
    return _chosen(config, block, "attn")


def recurs(config: Config, block: int) -> bool:
    return not attends(config, block)


def sparse(config: Config, block: int) -> bool:
    return n_expert(config) > 1 and _chosen(config, block, "expert")


def dense(config: Config, block: int) -> bool:
    return not sparse(config, block)


def heads_by_block(config: Config) -> Field:
    return array(Kind.I32, [n_head_kv(config) if attends(config, i) else 0 for i in range(n_layer(config))])


def in_jamba(rule: Rule, place: str) -> str:
    assert isinstance(rule.source, str)
    return rule.source.replace(".mixer.", place).replace(".mlp.", place)


JAMBA = Architecture(
    name="jamba",
    classes=("JambaForCausalLM",),
    rules=(
        ENDS[0],
        ENDS[2],
        Rule("final_layernorm.weight", "output_norm.weight", "embd"),
        Rule("layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight", "embd"),
        Rule("layers.{i}.pre_ff_layernorm.weight", "blk.{i}.ffn_norm.weight", "embd"),
        *(replace(rule, bias=False, where=attends) for rule in ATTENTION),
        *(replace(rule, source=in_jamba(rule, ".mamba."), where=recurs) for rule in MIXER),
        Rule("layers.{i}.mamba.dt_layernorm.weight", "blk.{i}.ssm_dt_norm.weight", "dt_rank", where=recurs),
        Rule("layers.{i}.mamba.b_layernorm.weight", "blk.{i}.ssm_b_norm.weight", "state", where=recurs),
        Rule("layers.{i}.mamba.c_layernorm.weight", "blk.{i}.ssm_c_norm.weight", "state", where=recurs),
        Rule("layers.{i}.feed_forward.router.weight", "blk.{i}.ffn_gate_inp.weight", "experts embd", where=sparse),
        *(replace(rule, source=in_jamba(rule, ".feed_forward."), where=dense) for rule in FEED_FORWARD),
        *(
            replace(
                rule,
                source=in_jamba(rule, ".feed_forward.experts.{e}."),
                to=rule.to.replace(".weight", "_exps.weight"),
                where=sparse,
            )
            for rule in FEED_FORWARD
        ),
    ),
    kvs=(
        KV("block_count", sized(n_layer)),
        KV("context_length", count(*N_CONTEXT)),
        KV("embedding_length", sized(n_embd)),
        KV("feed_forward_length", count(*N_FF)),
        KV("attention.head_count", count(*N_HEAD)),
        KV("attention.head_count_kv", heads_by_block),
        KV("ssm.conv_kernel", sized(conv)),
        KV("ssm.inner_size", sized(d_inner)),
        KV("ssm.state_size", sized(state)),
        KV("ssm.time_step_rank", sized(dt_rank)),
        KV("attention.layer_norm_rms_epsilon", real("rms_norm_eps")),
        KV("expert_count", sized(n_expert)),
        KV("expert_used_count", lambda config: u32(min(integer(config, *N_EXPERT_USED), n_expert(config)))),
    ),
    tokenizers=("spm", "llama_hf"),
    defaults={
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-6,
        "num_key_value_heads": n_head,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "attn_layer_period": 8,
        "attn_layer_offset": 4,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_dt_rank": "auto",
    },
    checks=(activation("silu", "swish"), fixed("mamba_expand", 2)),
    sizes={
        "inner": d_inner,
        "convolved": d_inner,
        "conv": conv,
        "state": state,
        "dt_rank": dt_rank,
        "ssm_in": lambda config: 2 * d_inner(config),
        "ssm_x": lambda config: dt_rank(config) + 2 * state(config),
    },
    untunable=UNTUNABLE,
)

FAMILY = (JAMBA,)
