"""Falcon-H1: attention and Mamba-2 side by side in every block. llama.cpp knows none of the multipliers that the config
states; they go into the weights.

Sources: conversion/falcon_h1.py for names, values and metadata; src/models/falcon-h1.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import isclose

import numpy as np

from ggufround.arch import rope
from ggufround.arch.checks import activation
from ggufround.arch.config import (
    N_CONTEXT,
    N_FF,
    N_HEAD,
    N_HEAD_KV,
    head_dim,
    integer,
    n_embd,
    n_head,
    n_layer,
    number,
    optional_integer,
    wrong,
)
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD
from ggufround.arch.mamba import CONVOLUTION, NORM2, PROJECTIONS, STATE2, sized, sizes2, steps_unlimited
from ggufround.arch.metadata import count, real
from ggufround.arch.spec import F32, KV, Architecture, Config, Rule, Transform
from ggufround.errors import UnsupportedError


def d_inner(config: Config) -> int:
    stated = optional_integer(config, "mamba_d_ssm")
    return integer(config, "mamba_expand") * n_embd(config) if stated is None else stated


def n_head_ssm(config: Config) -> int:
    """Heads of the mixer; what is stated must agree, since llama.cpp knows the number only."""
    heads = integer(config, "mamba_n_heads")
    for_each = config.get("mamba_d_head")
    if for_each not in (None, "auto") and integer(config, "mamba_d_head") * heads != d_inner(config):
        raise wrong("mamba_d_head", for_each, f"the inner size, {d_inner(config)}, over {heads} heads")
    return heads


def groups(config: Config) -> int:
    return integer(config, "mamba_n_groups")


def state(config: Config) -> int:
    return integer(config, "mamba_d_state")


def multipliers(config: Config, key: str, length: int) -> list[float]:
    stated = config.get(key, [1.0] * length)
    if not isinstance(stated, list | tuple) or len(stated) != length:
        raise wrong(key, stated, f"a list of {length} numbers")
    return [number({key: value}, key) for value in stated]


def scaled(rows: F32, factors: tuple[F32, ...]) -> F32:
    """Multiplied by each in turn, in float32 as the converter does it."""
    for factor in factors:
        rows = rows * factor
    return rows


def unscaled(rows: F32, factors: tuple[F32, ...]) -> F32:
    for factor in reversed(factors):
        rows = rows / factor
    return rows


def _transform(factors: list[F32], granule: int = 1) -> Transform:
    if not all(factor.all() for factor in factors):
        raise UnsupportedError("config.json: a multiplier of 0 leaves nothing of the weights that it goes into")
    chosen = tuple(factors)
    return Transform(partial(scaled, factors=chosen), granule, partial(unscaled, factors=chosen))


def by(*keys: str | tuple[str, int, int]) -> Callable[[Config], Transform]:
    """Multiplied by the numbers under these keys; or (key, k, n): by the k-th of n under it."""

    def via(config: Config) -> Transform:
        read = [
            multipliers(config, key[0], key[2])[key[1]] if isinstance(key, tuple) else number(config, key)
            for key in keys
        ]
        return _transform([np.asarray(value, np.float32) for value in read])

    return via


def projection(config: Config) -> Transform:
    """The gate, the input, both projections of the state and the time steps have a multiplier each."""
    heights = (d_inner(config), d_inner(config), *[groups(config) * state(config)] * 2, n_head_ssm(config))
    rows: F32 = np.repeat(np.array(multipliers(config, "ssm_multipliers", 5), np.float32), heights)[:, None]
    return _transform([np.asarray(number(config, "ssm_in_multiplier"), np.float32), rows], len(rows))


def tied_alike(config: Config) -> None:
    """The embedding holds its multiplier, which serves for the output too if there is no other matrix."""
    ends = number(config, "embedding_multiplier"), number(config, "lm_head_multiplier")
    if config.get("tie_word_embeddings") and not isclose(*ends):
        raise UnsupportedError(
            f"config.json: tie_word_embeddings with an embedding_multiplier of {ends[0]:g} and a lm_head_multiplier of "
            f"{ends[1]:g}; llama.cpp has one matrix for both"
        )


def gated_first(config: Config) -> None:
    if config.get("mamba_rms_norm") and config.get("mamba_norm_before_gate"):
        raise UnsupportedError(
            "config.json: mamba_norm_before_gate is True; llama.cpp applies the gate before the norm"
        )


def normalised(config: Config, block: int) -> bool:
    return bool(config.get("mamba_rms_norm"))


def renamed(rule: Rule) -> Rule:
    assert isinstance(rule.source, str)
    return replace(rule, source=rule.source.replace(".mixer.", ".mamba."))


FALCON_H1 = Architecture(
    name="falcon-h1",
    classes=("FalconH1ForCausalLM",),
    rules=(
        replace(ENDS[0], via=by("embedding_multiplier")),
        Rule("final_layernorm.weight", "output_norm.weight", "embd"),
        replace(ENDS[2], via=by("lm_head_multiplier")),
        Rule("layers.{i}.input_layernorm.weight", "blk.{i}.attn_norm.weight", "embd"),
        Rule("layers.{i}.pre_ff_layernorm.weight", "blk.{i}.ffn_norm", "embd"),  # its name has no ending
        *(
            replace(rule, bias=False, via=by(*keys))
            for rule, keys in zip(
                ATTENTION,
                (
                    ("attention_in_multiplier",),
                    ("key_multiplier", "attention_in_multiplier"),
                    ("attention_in_multiplier",),
                    ("attention_out_multiplier",),
                ),
                strict=True,
            )
        ),
        replace(renamed(PROJECTIONS[0]), via=projection),
        replace(renamed(PROJECTIONS[1]), via=by("ssm_out_multiplier")),
        *(renamed(rule) for rule in CONVOLUTION),
        *(renamed(rule) for rule in STATE2),
        replace(renamed(NORM2), where=normalised),
        *(
            replace(rule, source=f"layers.{{i}}.feed_forward.{name}_proj.weight", via=via)
            for rule, name, via in zip(
                FEED_FORWARD,
                ("gate", "up", "down"),
                (by(("mlp_multipliers", 0, 2)), None, by(("mlp_multipliers", 1, 2))),
                strict=True,
            )
        ),
    ),
    kvs=(
        KV("context_length", count(*N_CONTEXT)),
        KV("embedding_length", sized(n_embd)),
        KV("feed_forward_length", count(*N_FF)),
        KV("attention.head_count", count(*N_HEAD)),
        KV("block_count", sized(n_layer)),
        KV("ssm.conv_kernel", count("mamba_d_conv")),
        KV("ssm.inner_size", sized(d_inner)),
        KV("ssm.state_size", sized(state)),
        KV("ssm.time_step_rank", sized(n_head_ssm)),
        KV("ssm.group_count", sized(groups)),
        KV("attention.layer_norm_rms_epsilon", real("rms_norm_eps")),
        KV("vocab_size", count("vocab_size")),
        KV("attention.head_count_kv", count(*N_HEAD_KV)),
        KV("attention.key_length", sized(head_dim)),
        KV("attention.value_length", sized(head_dim)),
        KV("rope.freq_base", rope.freq_base),
    ),
    tokenizers=("bpe",),
    defaults={
        "num_key_value_heads": n_head,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "mamba_expand": 2,
        "mamba_d_ssm": 1024,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_conv": 4,
        "mamba_norm_before_gate": True,
        "mamba_rms_norm": False,
        **{
            f"{name}_multiplier": 1.0
            for name in ("embedding", "lm_head", "key", "attention_in", "attention_out", "ssm_in", "ssm_out")
        },
    },
    checks=(activation("silu", "swish"), tied_alike, gated_first, steps_unlimited),
    rope_types=("default",),
    sizes=sizes2(d_inner, n_head_ssm, groups, state, lambda config: integer(config, "mamba_d_conv")),
    untunable="its matrices are stored multiplied by numbers of the config, which the tuner does not follow",
)

FAMILY = (FALCON_H1,)
