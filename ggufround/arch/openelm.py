"""OpenELM and Refact: blocks that grow with depth, and one key-value head with scores that fall with distance.

Sources: conversion/openelm.py and refact.py for names, values and metadata; the files of the same names in src/models
for what llama.cpp reads.
"""

from __future__ import annotations

from collections.abc import Callable

from ggufround.arch.checks import fixed
from ggufround.arch.config import LAYER, head_dim, integer, n_embd, n_head, n_layer, number, wrong
from ggufround.arch.metadata import constant, count, real
from ggufround.arch.spec import KV, Architecture, Config, Drop, Reader, Rule
from ggufround.gguf_file import Kind, array, f32, u32

NONE = "transformers has no class for it"


def listed(key: str) -> Callable[[Config], list[int]]:
    """Whole numbers, one a layer."""

    def read(config: Config) -> list[int]:
        values = config.get(key)
        if not isinstance(values, list) or len(values) != n_layer(config):
            raise wrong(key, values, f"a list of {n_layer(config)}, one for each layer")
        return [integer({key: value}, key) for value in values]

    return read


HEADS, KV_HEADS = listed("num_query_heads"), listed("num_kv_heads")


def widths(config: Config) -> list[int]:
    """Each layer's multiple of the embedding, rounded to a multiple of the divisor, but not down by more than 10 %."""
    multiples, step = config.get("ffn_multipliers"), integer(config, "ffn_dim_divisor")
    if not isinstance(multiples, list) or len(multiples) != n_layer(config):
        raise wrong("ffn_multipliers", multiples, f"a list of {n_layer(config)}, one for each layer")
    exact = [number({"ffn_multipliers": multiple}, "ffn_multipliers") * n_embd(config) for multiple in multiples]
    near = [max(step, int(width + step / 2) // step * step) for width in exact]
    return [width + step if width < 0.9 * wanted else width for width, wanted in zip(near, exact, strict=True)]


def here(read: Callable[[Config], list[int]]) -> Callable[[Config], int]:
    return lambda config: read(config)[config[LAYER]]


def every(read: Callable[[Config], list[int]]) -> Reader:
    return lambda config: array(Kind.I32, read(config))


def rows_of_heads(config: Config) -> int:
    i = config[LAYER]
    return (HEADS(config)[i] + 2 * KV_HEADS(config)[i]) * head_dim(config)


OPENELM = Architecture(
    name="openelm",
    classes=("OpenELMForCausalLM",),
    rules=(
        Rule("token_embeddings.weight", "token_embd.weight", "vocab embd"),
        Rule("norm.weight", "output_norm.weight", "embd"),
        Rule("layers.{i}.attn_norm.weight", "blk.{i}.attn_norm.weight", "embd"),
        Rule("layers.{i}.ffn_norm.weight", "blk.{i}.ffn_norm.weight", "embd"),
        Rule("layers.{i}.attn.qkv_proj.weight", "blk.{i}.attn_qkv.weight", "qkv embd"),
        Rule("layers.{i}.attn.q_norm.weight", "blk.{i}.attn_q_norm.weight", "head"),
        Rule("layers.{i}.attn.k_norm.weight", "blk.{i}.attn_k_norm.weight", "head"),
        Rule("layers.{i}.attn.out_proj.weight", "blk.{i}.attn_output.weight", "embd q"),
        Rule("layers.{i}.ffn.proj_1.weight", "blk.{i}.ffn_gate.weight", "2ff embd", part=(0, 2)),
        Rule("layers.{i}.ffn.proj_1.weight", "blk.{i}.ffn_up.weight", "2ff embd", part=(1, 2)),
        Rule("layers.{i}.ffn.proj_2.weight", "blk.{i}.ffn_down.weight", "embd ff"),
    ),
    kvs=(
        KV("block_count", lambda config: u32(n_layer(config))),
        KV("context_length", count("max_context_length")),
        KV("embedding_length", count("model_dim")),
        KV("feed_forward_length", every(widths)),
        KV("attention.head_count", every(HEADS)),
        KV("attention.head_count_kv", every(KV_HEADS)),
        KV("rope.freq_base", real("rope_freq_constant")),
        KV("attention.layer_norm_rms_epsilon", constant(f32(1e-6))),
        KV("rope.dimension_count", count("head_dim")),
        KV("attention.key_length", count("head_dim")),
        KV("attention.value_length", count("head_dim")),
    ),
    tokenizers=("spm",),
    defaults={
        "hidden_size": lambda config: config.get("model_dim"),
        "num_hidden_layers": lambda config: config.get("num_transformer_layers"),
        "rope_freq_constant": 10000,
    },
    checks=(
        fixed("activation_fn_name", None, "swish"),
        fixed("ffn_with_glu", None, True),
        fixed("normalize_qk_projections", True),
        fixed("share_input_output_layers", True),
        fixed("normalization_layer_name", None, "rms_norm"),
    ),
    drops=(Drop("*lm_head.weight", "the same as the embedding, which llama.cpp uses for the output"),),
    prefixes=("transformer.",),
    sizes={
        "q": lambda config: here(HEADS)(config) * head_dim(config),
        "qkv": rows_of_heads,
        "ff": here(widths),
        "2ff": lambda config: 2 * here(widths)(config),
    },
    untunable=NONE,
)


def refact_width(config: Config) -> int:
    """Two thirds of four times the embedding, up to the next multiple of 256."""
    return -(-(8 * n_embd(config) // 3) // 256) * 256


REFACT = Architecture(
    name="refact",
    classes=("GPTRefactForCausalLM",),
    rules=(
        Rule("wte.weight", "token_embd.weight", "vocab embd"),
        Rule("ln_f.weight", "output_norm.weight", "embd"),
        Rule("lm_head.weight", "output.weight", "vocab embd", optional=True),
        Rule("h.{i}.ln_1.weight", "blk.{i}.attn_norm.weight", "embd"),
        Rule("h.{i}.ln_2.weight", "blk.{i}.ffn_norm.weight", "embd"),
        Rule("h.{i}.attn.q.weight", "blk.{i}.attn_q.weight", "embd embd"),
        Rule("h.{i}.attn.kv.weight", "blk.{i}.attn_k.weight", "2head embd", part=(0, 2)),
        Rule("h.{i}.attn.kv.weight", "blk.{i}.attn_v.weight", "2head embd", part=(1, 2)),
        Rule("h.{i}.attn.c_proj.weight", "blk.{i}.attn_output.weight", "embd embd"),
        Rule("h.{i}.mlp.gate_up_proj.weight", "blk.{i}.ffn_gate.weight", "2ff embd", part=(0, 2)),
        Rule("h.{i}.mlp.gate_up_proj.weight", "blk.{i}.ffn_up.weight", "2ff embd", part=(1, 2)),
        Rule("h.{i}.mlp.c_proj.weight", "blk.{i}.ffn_down.weight", "embd ff"),
    ),
    kvs=(
        KV("context_length", count("n_positions")),
        KV("embedding_length", count("n_embd")),
        KV("feed_forward_length", lambda config: u32(refact_width(config))),
        KV("block_count", lambda config: u32(n_layer(config))),
        KV("attention.head_count", lambda config: u32(n_head(config))),
        KV("attention.head_count_kv", constant(u32(1))),
        KV("attention.layer_norm_rms_epsilon", real("layer_norm_epsilon")),
    ),
    tokenizers=("bpe",),
    defaults={"layer_norm_epsilon": 1e-5},
    checks=(fixed("multi_query", None, True), fixed("activation_function", None, "silu")),
    prefixes=("transformer.",),
    sizes={
        "2head": lambda config: 2 * head_dim(config),
        "ff": refact_width,
        "2ff": lambda config: 2 * refact_width(config),
    },
    untunable=NONE,
)

FAMILY = (OPENELM, REFACT)
