"""DeciLM and the Nemotrons that were found by NAS: Llamas whose blocks differ in heads and widths, or lack parts.

Sources: conversion/deci.py for names, values and metadata; src/models/deci.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ggufround.arch.checks import activation
from ggufround.arch.config import (
    LAYER,
    N_CONTEXT,
    N_EMBD,
    find,
    head_dim,
    integer,
    n_embd,
    n_head,
    n_head_kv,
    n_layer,
    wrong,
)
from ggufround.arch.llama import BIASED, ENDS, INTERLEAVED, LLAMA, NORMS
from ggufround.arch.metadata import COMMON, count, real
from ggufround.arch.rope import freq_base
from ggufround.arch.spec import KV, Architecture, Config, Reader, Rule
from ggufround.errors import InputError, UnsupportedError
from ggufround.gguf_file import Field, Kind, array, u32

PER_BLOCK = "block_configs"
KEY_HEADS = "num_key_value_heads_per_layer"  # DeciLM-7B's way: only these differ
WIDTH_STEP = 256  # of feed-forward parts


@dataclass(frozen=True)
class Block:
    """Heads of a block, and the width of its feed-forward part. No heads: no attention; heads without key-value heads:
    one matrix in its place; no width: no feed-forward part."""

    heads: int
    kv_heads: int
    ff: int


def blocks(config: Config) -> list[Block]:
    layers = n_layer(config)
    if (stated := config.get(PER_BLOCK)) is not None:
        return [_stated(config, block) for block in _list(PER_BLOCK, stated, layers)]
    every = Block(n_head(config), n_head_kv(config), integer(config, "intermediate_size"))
    if (stated := config.get(KEY_HEADS)) is None:
        return [every] * layers
    return [
        replace(every, kv_heads=integer({KEY_HEADS: kv_heads}, KEY_HEADS))
        for kv_heads in _list(KEY_HEADS, stated, layers)
    ]


def _list(key: str, value: object, length: int) -> list[Any]:
    if not isinstance(value, list) or len(value) != length:
        raise wrong(key, value, f"a list of {length}, one for each layer")
    return value


def _stated(config: Config, block: object) -> Block:
    parts = [block.get(name) if isinstance(block, dict) else None for name in ("attention", "ffn")]
    if not all(isinstance(part, dict) for part in parts):
        raise wrong(PER_BLOCK, block, "an object with attention and ffn for each layer")
    attention, ffn = ({key: value for key, value in part.items() if value is not None} for part in parts if part)
    if attention.get("window_length") is not None or attention.get("num_sink_tokens"):
        raise UnsupportedError("config.json: block_configs states a window of attention, which llama.cpp does not run")
    heads = n_head(config)
    if "n_heads_in_group" in attention:
        group = integer(attention, "n_heads_in_group")
        if heads % group:
            raise wrong("n_heads_in_group", group, f"a divisor of the {heads} heads")
        kv_heads = heads // group
    else:
        heads, kv_heads = (heads if attention.get("replace_with_linear") else 0), 0
    return Block(heads, kv_heads, _width(config, ffn))


def _width(config: Config, ffn: Config) -> int:
    key, multiple = find(ffn, ("ffn_mult",)) or ("ffn_mult", 0)
    if isinstance(multiple, bool) or not isinstance(multiple, int | float) or not 0 <= multiple < 1000:
        raise wrong(key, multiple, "a number from 0 to 1000")
    return -(-int(2 * multiple * n_embd(config) / 3) // WIDTH_STEP) * WIDTH_STEP


def can_run(config: Config) -> None:
    """llama.cpp takes the size of heads from the first block, loses the attention of a block that has nothing else,
    and the choice of rows in an empty last one."""
    found = blocks(config)
    if not found[0].kv_heads or not found[-1].ff or any(block.heads and not block.ff for block in found):
        raise UnsupportedError(
            "config.json: block_configs has a first layer without attention, a last one without a feed-forward part or "
            "one with attention only; llama.cpp does not run such models rightly"
        )


def here(read: Callable[[Block], int]) -> Callable[[Config], int]:
    """A size of the block that a rule is for."""
    return lambda config: read(blocks(config)[config[LAYER]])


def where(has: Callable[[Block], bool]) -> Callable[[Config, int], bool]:
    return lambda config, i: has(blocks(config)[i])


def attends(block: Block) -> bool:
    return block.kv_heads > 0


def every(read: Callable[[Block], int]) -> Reader:
    return lambda config: array(Kind.I32, [read(block) for block in blocks(config)])


def differing_kv_heads(config: Config) -> Field | None:
    """In place of the one number that `COMMON` gives, if any."""
    return every(lambda block: block.kv_heads)(config) if KEY_HEADS in config else None


def with_blocks(kvs: tuple[KV, ...], stated: bool) -> tuple[KV, ...]:
    """Rows that are only for configs that state every block, or only for the others."""

    def given(read: Reader) -> Reader:
        return lambda config: read(config) if (PER_BLOCK in config) == stated else None

    return tuple(KV(kv.key, given(kv.read)) for kv in kvs)


def whole_head(config: Config) -> Field:
    if n_embd(config) % n_head(config):
        raise InputError(f"config.json: {n_head(config)} heads do not divide a hidden size of {n_embd(config)}")
    return u32(n_embd(config) // n_head(config))


DECI = Architecture(
    name="deci",
    classes=("DeciLMForCausalLM",),
    rules=(
        *ENDS,
        replace(NORMS[0], where=where(lambda block: block.heads > 0)),
        replace(NORMS[1], where=where(lambda block: block.ff > 0)),
        *(replace(rule, where=where(attends)) for rule in (*INTERLEAVED[:3], BIASED[0])),
        Rule(
            "layers.{i}.self_attn.linear_attn.weight",
            "blk.{i}.attn_output.weight",
            "embd embd",
            where=where(lambda block: block.heads > 0 and not block.kv_heads),
        ),
        *(replace(rule, where=where(lambda block: block.ff > 0)) for rule in BIASED[1:]),
    ),
    kvs=(
        *with_blocks(
            (
                KV("rope.freq_base", freq_base),
                KV("attention.head_count_kv", every(lambda block: block.kv_heads)),
                KV("attention.head_count", every(lambda block: block.heads)),
                KV("feed_forward_length", every(lambda block: block.ff)),
                KV("block_count", lambda config: u32(n_layer(config))),
                KV("context_length", count(*N_CONTEXT)),
                KV("embedding_length", count(*N_EMBD)),
                KV("attention.layer_norm_rms_epsilon", real("rms_norm_eps")),
                KV("attention.key_length", whole_head),
                KV("attention.value_length", whole_head),
            ),
            True,
        ),
        *with_blocks((*COMMON, KV("attention.head_count_kv", differing_kv_heads)), False),
        KV("vocab_size", count("vocab_size")),
        KV("rope.dimension_count", lambda config: u32(head_dim(config))),
    ),
    tokenizers=LLAMA.tokenizers,
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0},
    computed=LLAMA.computed,
    checks=(activation("silu", "swish"), can_run),
    rope_types=("default", "dynamic", "llama3"),
    sizes={
        "kv": lambda config: head_dim(config) * here(lambda block: block.kv_heads)(config),
        "ff": here(lambda block: block.ff),
    },
    untunable="transformers has no class for it",
)

FAMILY = (DECI,)
