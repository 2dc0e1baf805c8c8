"""Baichuan 1 and 2, XVERSE and Orion: Llama with a fused matrix, by itself, and with centred norms.

Sources: conversion/baichuan.py, xverse.py and orion.py for names, values and metadata; the files of the same names in
src/models for what llama.cpp reads.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ggufround.arch.checks import activation, heads_fill_embedding
from ggufround.arch.config import N_EMBD, N_FF, N_HEAD, head_dim, integer, n_head, n_head_kv, n_layer
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD, INTERLEAVED, NORMS
from ggufround.arch.metadata import COMMON, constant, count, real
from ggufround.arch.rope import freq_base
from ggufround.arch.spec import F32, KV, Architecture, Config, Rule, Transform
from ggufround.arch.transforms import interleave_rope
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, string, u32

OWN_HEAD = replace(ENDS[2], optional=False)  # llama.cpp reads no tied ones
DATA_LAYOUT = KV("tensor_data_layout", constant(string("Meta AI original pth")))
NORM_BIASES = tuple(
    replace(rule, source=str(rule.source).replace("weight", "bias"), to=rule.to.replace("weight", "bias"))
    for rule in (ENDS[1], *NORMS)
)
BAICHUAN2_VOCAB = 125696
ROTATED, BIASED = 32, 40  # layers


def unit_rows(rows: F32) -> F32:
    lengths = np.sqrt(np.sum(rows.astype(np.float64) ** 2, -1, keepdims=True))
    out: F32 = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
    return out


def is_baichuan2(config: Config, _: int) -> bool:
    """Baichuan 2 divides the rows of its output matrix by their lengths before it multiplies with them. The converter
    leaves that out, and llama.cpp does not do it; version 1, which has a smaller vocabulary, does not either."""
    return integer(config, "vocab_size") == BAICHUAN2_VOCAB or "z_loss_weight" in config


def position_by_depth(config: Config) -> None:
    """llama.cpp rotates in the model of 32 layers, biases scores by distance in that of 40, and aborts in others."""
    if (layers := n_layer(config)) not in (ROTATED, BIASED):
        raise UnsupportedError(
            f"config.json: {layers} layers; llama.cpp runs this architecture with {ROTATED} (the 7B models) and "
            f"{BIASED} (13B) only"
        )
    if n_head_kv(config) != n_head(config):
        raise UnsupportedError("config.json: fewer key-value heads than heads; llama.cpp runs Baichuan with as many")


BAICHUAN = Architecture(
    name="baichuan",
    classes=("BaichuanForCausalLM", "BaiChuanForCausalLM"),
    rules=(
        *ENDS[:2],
        replace(OWN_HEAD, via=lambda config: Transform(unit_rows), where=is_baichuan2),
        OWN_HEAD,
        *NORMS,
        *(
            Rule(
                "layers.{i}.self_attn.W_pack.weight",
                f"blk.{{i}}.attn_{part}.weight",
                "qkv embd",
                via=None if part == "v" else interleave_rope,
                part=(k, 3),
            )
            for k, part in enumerate("qkv")
        ),
        ATTENTION[3],
        *FEED_FORWARD,
    ),
    kvs=(*COMMON, DATA_LAYOUT, KV("rope.dimension_count", lambda config: u32(head_dim(config)))),
    tokenizers=("spm",),
    defaults={
        "max_position_embeddings": lambda config: config.get("model_max_length", 4096),
        "rms_norm_eps": 1e-6,
    },
    checks=(activation("silu", "swish"), heads_fill_embedding, position_by_depth),
    untunable="transformers has no class for it",
)

# Queries, keys and values in matrices of their own.
XVERSE = replace(
    BAICHUAN,
    name="xverse",
    classes=("XverseForCausalLM",),
    rules=(*ENDS[:2], OWN_HEAD, *NORMS, *INTERLEAVED, *FEED_FORWARD),
    tokenizers=("spm", "llama_hf"),
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    checks=BAICHUAN.checks[:2],
)


def other_freq_base(config: Config) -> Field | None:
    """The base, where it is not the one that llama.cpp assumes. The converter leaves it out."""
    return None if config.get("rope_theta", 10000) == 10000 else freq_base(config)


# Norms that subtract the mean and have biases (what the config calls rms_norm_eps is theirs); heads keep transformers'
# order of rotation.
ORION = replace(
    BAICHUAN,
    name="orion",
    classes=("OrionForCausalLM",),
    rules=(
        *ENDS[:2],
        OWN_HEAD,
        *NORMS,
        *NORM_BIASES,
        *ATTENTION,
        *FEED_FORWARD,
    ),
    kvs=(
        DATA_LAYOUT,
        KV("context_length", count("max_sequence_length", "max_position_embeddings", "model_max_length")),
        KV("embedding_length", count(*N_EMBD)),
        KV("block_count", lambda config: u32(n_layer(config))),
        KV("feed_forward_length", count(*N_FF)),
        KV("attention.head_count", count(*N_HEAD)),
        KV("attention.head_count_kv", lambda config: u32(n_head_kv(config))),
        KV("attention.layer_norm_epsilon", real("rms_norm_eps")),
        KV("rope.freq_base", other_freq_base),
    ),
    defaults={"rms_norm_eps": 1e-5},
    checks=BAICHUAN.checks[:2],
    rope_types=("default",),
)

FAMILY = (BAICHUAN, XVERSE, ORION)
