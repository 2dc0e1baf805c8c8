"""T5, mT5 and UMT5: an encoder and a decoder that looks at it, or the encoder alone.

Scores get a bias by distance, of which one block has the table for all (UMT5: each its own). Sources:
conversion/t5.py for names, values and metadata; src/models/t5*.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ggufround.arch.bert import CAUSAL
from ggufround.arch.checks import fixed
from ggufround.arch.config import MAX_LAYERS, integer, limited, n_layer, optional_integer
from ggufround.arch.metadata import POOLED, count, real
from ggufround.arch.spec import F32, KV, Architecture, Config, Drop, Rule, Transform
from ggufround.gguf_file import u32


def decoder_layers(config: Config) -> int:
    return limited(config, MAX_LAYERS, ("num_decoder_layers",))


def gated(config: Config, layer: int) -> bool:
    return config.get("feed_forward_proj") == "gated-gelu"


def inside(layers: Callable[[Config], int], also: Callable[[Config, int], bool]) -> Callable[[Config, int], bool]:
    """Blocks are counted to the larger of the encoder's and the decoder's number."""
    return lambda config, layer: layer < layers(config) and also(config, layer)


def half(side: str, layers: Callable[[Config], int]) -> tuple[Rule, ...]:
    """The encoder's rules ("enc"), or the decoder's ("dec"), whose feed-forward part comes third."""
    name, ff = ("encoder", 1) if side == "enc" else ("decoder", 2)
    block, to = f"{name}.block.{{i}}.layer.", f"{side}.blk.{{i}}."
    always = inside(layers, lambda config, layer: True)

    def attention(number: int, kind: str, prefix: str) -> tuple[Rule, ...]:
        return (
            Rule(f"{block}{number}.layer_norm.weight", f"{to}{prefix}attn_norm.weight", "embd", where=always),
            *(
                Rule(f"{block}{number}.{kind}.{x}.weight", f"{to}{prefix}attn_{x}.weight", shape, where=always)
                for x, shape in (("q", "inner embd"), ("k", "inner embd"), ("v", "inner embd"), ("o", "embd inner"))
            ),
            Rule(
                f"{block}{number}.{kind}.relative_attention_bias.weight",
                f"{to}{prefix}attn_rel_b.weight",
                "buckets heads",
                optional=True,
                where=always,
            ),
        )

    dense = f"{block}{ff}.DenseReluDense."
    with_gate, without_gate = inside(layers, gated), inside(layers, lambda config, layer: not gated(config, layer))
    return (
        *attention(0, "SelfAttention", ""),
        *(attention(1, "EncDecAttention", "cross_") if side == "dec" else ()),
        Rule(f"{block}{ff}.layer_norm.weight", f"{to}ffn_norm.weight", "embd", where=always),
        Rule(f"{dense}wi.weight", f"{to}ffn_up.weight", "ff embd", where=without_gate),
        Rule(f"{dense}wi_0.weight", f"{to}ffn_gate.weight", "ff embd", where=with_gate),
        Rule(f"{dense}wi_1.weight", f"{to}ffn_up.weight", "ff embd", where=with_gate),
        Rule(f"{dense}wo.weight", f"{to}ffn_down.weight", "embd ff", where=always),
    )


def output_scale(config: Config) -> Transform:
    """A tied output's logits are divided by the root of the embedding's size, for which llama.cpp has no step: the norm
    before them does it."""
    tied = config.get("tie_word_embeddings") is not False
    factor = np.float32(integer(config, "d_model") ** -0.5 if tied else 1)

    def scaled(rows: F32) -> F32:
        return rows * factor

    return Transform(scaled, back=lambda rows: rows / factor)


EMBEDDING = tuple(
    Rule(f"{name}.weight", "token_embd.weight", "vocab embd")
    for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
)
SAME = "the same as the shared embedding"
ENCODER_NORM = Rule("encoder.final_layer_norm.weight", "enc.output_norm.weight", "embd")
HEAD = Rule("lm_head.weight", "output.weight", "vocab embd", optional=True)

T5 = Architecture(
    name="t5",
    classes=(
        "T5ForConditionalGeneration",
        "T5WithLMHeadModel",
        "MT5ForConditionalGeneration",
        "UMT5ForConditionalGeneration",
        "UMT5Model",
    ),
    rules=(
        *EMBEDDING,
        ENCODER_NORM,
        Rule("decoder.final_layer_norm.weight", "dec.output_norm.weight", "embd", via=output_scale),
        HEAD,
        *half("enc", n_layer),
        *half("dec", decoder_layers),
    ),
    kvs=(
        KV("context_length", lambda config: u32(optional_integer(config, "n_positions") or 512)),
        KV("embedding_length", count("d_model")),
        KV("feed_forward_length", count("d_ff")),
        KV("block_count", lambda config: u32(n_layer(config))),
        KV("decoder_block_count", lambda config: u32(decoder_layers(config))),
        KV("attention.head_count", count("num_heads")),
        KV("attention.key_length", count("d_kv")),
        KV("attention.value_length", count("d_kv")),
        KV("attention.layer_norm_epsilon", real("layer_norm_epsilon")),
        KV("attention.relative_buckets_count", count("relative_attention_num_buckets")),
        KV("attention.layer_norm_rms_epsilon", real("layer_norm_epsilon")),
        KV("decoder_start_token_id", lambda config: u32(optional_integer(config, "decoder_start_token_id") or 0)),
    ),
    tokenizers=("ugm",),
    defaults={
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_decoder_layers": n_layer,
        "num_heads": 8,
        "relative_attention_num_buckets": 32,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu",
    },
    checks=(fixed("feed_forward_proj", "relu", "gated-gelu"), fixed("relative_attention_max_distance", None, 128)),
    drops=(
        Drop("*encoder.embed_tokens.weight", SAME, beside="shared.weight"),
        Drop("*decoder.embed_tokens.weight", SAME, beside="shared.weight"),
        Drop("*decoder.embed_tokens.weight", SAME, beside="encoder.embed_tokens.weight"),
    ),
    prefixes=("transformer.", "model."),
    sizes={
        "embd": lambda config: integer(config, "d_model"),
        "ff": lambda config: integer(config, "d_ff"),
        "inner": lambda config: integer(config, "num_heads") * integer(config, "d_kv"),
        "heads": lambda config: integer(config, "num_heads"),
        "buckets": lambda config: integer(config, "relative_attention_num_buckets"),
    },
    blocks=lambda config: max(n_layer(config), decoder_layers(config)),
    untunable="its decoder looks at what the encoder makes of another text",
)

# The encoder alone makes vectors of texts. That it attends in both directions the converter does not say, and
# llama.cpp's server, which runs it as it runs decoders, would not know.
ENCODER = replace(
    T5,
    name="t5encoder",
    classes=("T5EncoderModel",),
    rules=(*EMBEDDING[:2], ENCODER_NORM, *half("enc", n_layer)),
    kvs=(*(kv for kv in T5.kvs if not kv.key.startswith("decoder")), CAUSAL, *POOLED),
    drops=T5.drops[:1],
    blocks=None,
    untunable="it makes vectors of texts and predicts no next token",
)

FAMILY = (T5, ENCODER)
