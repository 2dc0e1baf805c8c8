"""Jina's second BERT in NumPy, written from its description: attention with a bias that falls with the distance (ALiBi,
arXiv 2108.12409, to both sides), norms after each sum, a feed-forward part gated by GELU."""

from __future__ import annotations

from collections.abc import Sequence
from math import erf
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tiny_models
from tiny import bf16_bits

F64 = NDArray[np.float64]


def stored(case: tiny_models.Tiny, name: str) -> F64:
    """The tensor as the checkpoint holds it, in bfloat16."""
    bits = bf16_bits(tiny_models.weight(case, name, case.shapes[name])).astype(np.uint32) << 16
    return bits.view(np.float32).astype(np.float64)


def jina2(case: tiny_models.Tiny, prompt: Sequence[int]) -> F64:
    """The last hidden states [token, embedding]."""
    heads = case.config["num_attention_heads"]

    def matrix(x: F64, name: str, bias: bool = True) -> Any:
        return x @ stored(case, f"{name}.weight").T + (stored(case, f"{name}.bias") if bias else 0)

    def norm(x: F64, name: str) -> Any:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + case.config["layer_norm_eps"])
        return x * stored(case, f"{name}.weight") + stored(case, f"{name}.bias")

    x = stored(case, "embeddings.word_embeddings.weight")[list(prompt)]
    x = norm(x + stored(case, "embeddings.token_type_embeddings.weight")[0], "embeddings.LayerNorm")
    count, width = x.shape
    apart = np.abs(np.arange(count)[:, None] - np.arange(count))
    slopes = 2.0 ** (-8 * np.arange(1, heads + 1) / heads)
    for i in range(case.config["num_hidden_layers"]):
        block = f"encoder.layer.{i}."
        q, k, v = (
            matrix(x, f"{block}attention.self.{n}").reshape(count, heads, -1).swapaxes(0, 1)
            for n in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(1, 2) / np.sqrt(width / heads) - slopes[:, None, None] * apart
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(count, width)
        x = norm(x + matrix(mixed, f"{block}attention.output.dense"), f"{block}attention.output.LayerNorm")
        gate, up = np.split(matrix(x, f"{block}mlp.gated_layers", False), 2, axis=-1)
        gelu = gate * (1 + np.vectorize(erf)(gate / np.sqrt(2))) / 2
        x = norm(x + matrix(gelu * up, f"{block}mlp.wo"), f"{block}mlp.layernorm")
    return np.asarray(x, np.float64)
