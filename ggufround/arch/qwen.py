"""Qwen 2, Qwen 3 and their mixtures of experts. Heads keep transformers' order of rotation.

Sources: conversion/qwen.py for names, values and metadata; src/models/qwen*.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ggufround.arch import rope
from ggufround.arch.checks import activation, fixed
from ggufround.arch.config import integer, wrong
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD, NORMS
from ggufround.arch.metadata import COMMON, POOLED, count_if_stated
from ggufround.arch.spec import KV, Architecture, Config, Rule
from ggufround.arch.transforms import share, transpose
from ggufround.errors import InputError
from ggufround.gguf_file import Field, u32

HEAD_NORMS = (
    Rule("layers.{i}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight", "head"),
    Rule("layers.{i}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight", "head"),
)
EXPERTS = (
    Rule("layers.{i}.mlp.gate.weight", "blk.{i}.ffn_gate_inp.weight", "experts embd"),
    Rule("layers.{i}.mlp.experts.{e}.gate_proj.weight", "blk.{i}.ffn_gate_exps.weight", "expert_ff embd"),
    Rule("layers.{i}.mlp.experts.{e}.up_proj.weight", "blk.{i}.ffn_up_exps.weight", "expert_ff embd"),
    Rule("layers.{i}.mlp.experts.{e}.down_proj.weight", "blk.{i}.ffn_down_exps.weight", "embd expert_ff"),
)
# The same where the checkpoint holds the stacks that transformers 5 keeps in memory.
STACKED = (
    Rule(
        "layers.{i}.mlp.experts.gate_up_proj",
        "blk.{i}.ffn_gate_exps.weight",
        "experts 2expert_ff embd",
        part=(0, 2),
    ),
    Rule(
        "layers.{i}.mlp.experts.gate_up_proj",
        "blk.{i}.ffn_up_exps.weight",
        "experts 2expert_ff embd",
        part=(1, 2),
    ),
    Rule("layers.{i}.mlp.experts.down_proj", "blk.{i}.ffn_down_exps.weight", "experts embd expert_ff"),
)

# The shared expert of Qwen 2's mixtures, with a gate of its own, a single row.
SHARED = (
    Rule("layers.{i}.mlp.shared_expert_gate.weight", "blk.{i}.ffn_gate_inp_shexp.weight", "1 embd"),
    Rule("layers.{i}.mlp.shared_expert.gate_proj.weight", "blk.{i}.ffn_gate_shexp.weight", "shared_ff embd"),
    Rule("layers.{i}.mlp.shared_expert.up_proj.weight", "blk.{i}.ffn_up_shexp.weight", "shared_ff embd"),
    Rule("layers.{i}.mlp.shared_expert.down_proj.weight", "blk.{i}.ffn_down_shexp.weight", "embd shared_ff"),
)


def deepstack_layers(config: Config) -> Field:
    """How many blocks of the tower the text model hears of, besides the last."""
    vision = config.get("vision_config")
    listed = vision.get("deepstack_visual_indexes", [8, 16, 24]) if isinstance(vision, Mapping) else []
    if not isinstance(listed, list):
        raise wrong("vision_config's deepstack_visual_indexes", listed, "a list")
    return u32(len(listed))


QWEN2 = Architecture(
    name="qwen2",
    classes=("Qwen2ForCausalLM", "Qwen2Model"),
    rules=(*ENDS, *NORMS, *ATTENTION, *FEED_FORWARD),
    kvs=(*COMMON, *POOLED),
    tokenizers=("spm", "bpe"),
    defaults={
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "num_key_value_heads": 32,
    },
    checks=(activation("silu", "swish"),),
)

# A router, experts and one expert for all tokens in place of the feed-forward part, in every layer. Routed shares are
# not brought to a sum of 1, heads divide the embedding, and the output matrix is one of its own.
QWEN2MOE = replace(
    QWEN2,
    name="qwen2moe",
    classes=("Qwen2MoeForCausalLM",),
    rules=(*ENDS[:2], replace(ENDS[2], optional=False), *NORMS, *ATTENTION, *EXPERTS, *STACKED, *SHARED),
    kvs=(
        *COMMON,
        KV("expert_feed_forward_length", count_if_stated("moe_intermediate_size")),
        KV("expert_shared_feed_forward_length", count_if_stated("shared_expert_intermediate_size")),
    ),
    tokenizers=("bpe",),
    defaults={
        **QWEN2.defaults,
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    checks=(
        *QWEN2.checks,
        fixed("norm_topk_prob", None, False),
        fixed("decoder_sparse_step", None, 1),
        fixed("mlp_only_layers", None, []),
    ),
    sizes={"shared_ff": lambda config: integer(config, "shared_expert_intermediate_size")},
)

# Queries and keys are normalised head by head, and heads have a size of their own.
QWEN3 = replace(
    QWEN2,
    name="qwen3",
    classes=("Qwen3ForCausalLM", "Qwen3Model"),
    rules=(*QWEN2.rules, *HEAD_NORMS),
    defaults={**QWEN2.defaults, "head_dim": 128},
)

# A router and experts in place of the feed-forward part, in every layer.
QWEN3MOE = replace(
    QWEN3,
    name="qwen3moe",
    classes=("Qwen3MoeForCausalLM",),
    rules=(*ENDS, *NORMS, *ATTENTION, *HEAD_NORMS, *EXPERTS, *STACKED),
    kvs=(*COMMON, KV("expert_feed_forward_length", count_if_stated("moe_intermediate_size"))),
    tokenizers=("bpe",),
    defaults={
        **QWEN2.defaults,
        "num_key_value_heads": 4,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
    },
    checks=(
        *QWEN2.checks,
        fixed("norm_topk_prob", True),
        fixed("decoder_sparse_step", None, 1),
        fixed("mlp_only_layers", None, []),
    ),
)


def with_sections(kvs: tuple[KV, ...]) -> tuple[KV, ...]:
    """The sections of rotation stand before its base."""
    at = next(index for index, kv in enumerate(kvs) if kv.key == "rope.freq_base")
    return (*kvs[:at], KV("rope.dimension_sections", rope.sections), *kvs[at:])


def sections_stated(config: Config) -> None:
    if rope.sections(config) is None:
        raise InputError("config.json: the rope parameters lack mrope_section, which this architecture needs")


# Text models of Qwen2-VL and Qwen2.5-VL: a token of a picture has a time, a height and a width, by which some columns
# each are rotated.
QWEN2VL = replace(
    QWEN2,
    name="qwen2vl",
    classes=("Qwen2VLForConditionalGeneration", "Qwen2VLModel", "Qwen2_5_VLForConditionalGeneration"),
    kvs=with_sections(QWEN2.kvs),
    checks=(*QWEN2.checks, sections_stated),
    rope_types=("default", "mrope"),
)

# Of Qwen3-VL: besides, its first layers add what the tower's middle blocks saw.
QWEN3VL = replace(
    QWEN3,
    name="qwen3vl",
    classes=("Qwen3VLForConditionalGeneration",),
    kvs=(*with_sections(QWEN3.kvs), KV("n_deepstack_layers", deepstack_layers)),
    checks=(*QWEN3.checks, sections_stated),
    rope_types=("default", "mrope"),
)

# Its mixture of experts, whose stacks have rows and columns exchanged.
QWEN3VLMOE = replace(
    QWEN3VL,
    name="qwen3vlmoe",
    classes=("Qwen3VLMoeForConditionalGeneration",),
    rules=(
        *ENDS,
        *NORMS,
        *ATTENTION,
        *HEAD_NORMS,
        EXPERTS[0],
        *(
            Rule(
                "layers.{i}.mlp.experts.gate_up_proj",
                f"blk.{{i}}.ffn_{half}_exps.weight",
                "experts embd 2expert_ff",
                share(k, 2, "transposed", lambda config: integer(config, "moe_intermediate_size")),
                makes="experts expert_ff embd",
            )
            for k, half in enumerate(("gate", "up"))
        ),
        Rule(
            "layers.{i}.mlp.experts.down_proj",
            "blk.{i}.ffn_down_exps.weight",
            "experts expert_ff embd",
            transpose,
            makes="experts embd expert_ff",
        ),
    ),
    kvs=(*with_sections(QWEN3MOE.kvs), KV("n_deepstack_layers", deepstack_layers)),
    tokenizers=QWEN3MOE.tokenizers,
    defaults={**QWEN3MOE.defaults, "norm_topk_prob": True},
    checks=(*QWEN3MOE.checks, sections_stated),
    untunable="transformers holds its experts with rows and columns exchanged",
)

FAMILY = (QWEN2, QWEN2MOE, QWEN3, QWEN3MOE, QWEN2VL, QWEN3VL, QWEN3VLMOE)
