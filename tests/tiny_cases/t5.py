"""Tiny T5 models: tied with relu, untied with a gated feed-forward part, each block with a bias, the encoder alone.

llama.cpp's server runs no decoder that looks at an encoder, so of whole models it is only shown that they load.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import numpy as np

from tiny_cases.encoders import pooled
from tiny_parts import EMBD, FF, HEADS, VOCAB, Tiny

D_KV, BUCKETS = 16, 8
INNER = HEADS * D_KV


def config(class_name: str, model_type: str, **further: Any) -> dict[str, Any]:
    common: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": VOCAB,
        "d_model": EMBD,
        "d_kv": D_KV,
        "d_ff": FF,
        "num_layers": 2,
        "num_heads": HEADS,
        "relative_attention_num_buckets": BUCKETS,
        "layer_norm_epsilon": 1e-6,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "n_positions": 512,
    }
    return {key: value for key, value in (common | further).items() if value is not None}


def half(side: str, layers: int, gated: bool = False, each: bool = False) -> dict[str, tuple[int, ...]]:
    """The tensors of "encoder" or "decoder"; `each`: every block has a bias by distance, not the first alone."""
    shapes: dict[str, tuple[int, ...]] = {f"{side}.final_layer_norm.weight": (EMBD,)}
    kinds = ["SelfAttention"] if side == "encoder" else ["SelfAttention", "EncDecAttention"]
    for i in range(layers):
        for number, kind in enumerate(kinds):
            block = f"{side}.block.{i}.layer.{number}."
            shapes[f"{block}layer_norm.weight"] = (EMBD,)
            shapes |= {f"{block}{kind}.{x}.weight": (INNER, EMBD) for x in "qkv"}
            shapes[f"{block}{kind}.o.weight"] = (EMBD, INNER)
            if number == 0 and (each or i == 0):
                shapes[f"{block}{kind}.relative_attention_bias.weight"] = (BUCKETS, HEADS)
        block = f"{side}.block.{i}.layer.{len(kinds)}."
        shapes[f"{block}layer_norm.weight"] = (EMBD,)
        for x in ("wi_0", "wi_1") if gated else ("wi",):
            shapes[f"{block}DenseReluDense.{x}.weight"] = (FF, EMBD)
        shapes[f"{block}DenseReluDense.wo.weight"] = (EMBD, FF)
    return shapes


def values(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Scores are not divided by the root of a head's size: queries are smaller instead."""
    name = "shared.weight" if "embed_tokens" in name else name  # copies
    drawn = np.random.default_rng(crc32(name.encode())).standard_normal(shape)
    if name.endswith(".q.weight"):
        return drawn * 1.5 / (EMBD * D_KV) ** 0.5
    return drawn if name.endswith(("relative_attention_bias.weight", "shared.weight")) else None


SHARED = {"shared.weight": (VOCAB, EMBD)}
COPIES = {f"{side}.embed_tokens.weight": (VOCAB, EMBD) for side in ("encoder", "decoder")}

CASES = (
    Tiny("t5", config("T5ForConditionalGeneration", "t5", num_layers=3, num_decoder_layers=2, feed_forward_proj="relu"),
         SHARED | half("encoder", 3) | half("decoder", 2), "t5", special=values, proof="loads"),
    Tiny("mt5",
         config("MT5ForConditionalGeneration", "mt5", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
         SHARED | half("encoder", 2, True) | half("decoder", 2, True) | {"lm_head.weight": (VOCAB, EMBD)}, "t5",
         special=values, proof="loads"),
    Tiny("umt5",
         config("UMT5ForConditionalGeneration", "umt5", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
         SHARED | COPIES | half("encoder", 2, True, True) | half("decoder", 2, True, True)
         | {"lm_head.weight": (VOCAB, EMBD)}, "t5", special=values, proof="loads", loads=False),
    Tiny("t5-encoder", config("T5EncoderModel", "t5", feed_forward_proj="gated-gelu"),
         SHARED | half("encoder", 2, True), "t5", special=values, files=pooled("mean"), proof="embedding",
         mistakes=("bias", "norm")),
)  # fmt: skip
