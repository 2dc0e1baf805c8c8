"""Llama's forward pass in NumPy: the reference that the tools here check with, and collect importance from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def ignore(name: str, inputs: np.ndarray) -> None:
    """Does nothing with the inputs of a matrix."""


def forward(
    config: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    tokens: Sequence[int],
    see: Callable[[str, np.ndarray], None] = ignore,
) -> np.ndarray:
    """The final hidden states, normed: float32 [tokens, hidden]. Weights are float32 by Hugging Face name.

    `see` is shown the inputs, float32 [tokens, columns], of every matrix in the layers, with the matrix's name. Plain
    RoPE only, no scaling, no biases.
    """
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim", config["hidden_size"] // heads)
    n = len(tokens)
    angles = np.arange(n)[:, None] * config["rope_theta"] ** -(np.arange(0, head, 2) / head)
    cos, sin = np.cos(angles)[:, None].astype(np.float32), np.sin(angles)[:, None].astype(np.float32)
    mask = np.triu(np.full((n, n), -np.inf, np.float32), 1)
    epsilon = np.float32(config["rms_norm_eps"])

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weights[f"{name}.weight"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        see(f"{name}.weight", x)
        return x @ weights[f"{name}.weight"].T

    def rotate(x: np.ndarray) -> np.ndarray:
        a, b = x[..., : head // 2], x[..., head // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    x = weights["model.embed_tokens.weight"][np.asarray(tokens)]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        h = norm(x, f"{layer}.input_layernorm")
        q, k, v = (linear(h, f"{layer}.self_attn.{p}_proj").reshape(n, -1, head) for p in "qkv")
        q, k, v = (t.swapaxes(0, 1) for t in (rotate(q), *(np.repeat(t, heads // groups, 1) for t in (rotate(k), v))))
        powers = q @ k.swapaxes(1, 2) * np.float32(head**-0.5) + mask
        powers = np.exp(powers - powers.max(-1, keepdims=True))
        mixed = (powers / powers.sum(-1, keepdims=True)) @ v
        x = x + linear(mixed.swapaxes(0, 1).reshape(n, -1), f"{layer}.self_attn.o_proj")
        h = norm(x, f"{layer}.post_attention_layernorm")
        gate = linear(h, f"{layer}.mlp.gate_proj")
        x = x + linear(gate / (1 + np.exp(-gate)) * linear(h, f"{layer}.mlp.up_proj"), f"{layer}.mlp.down_proj")
    return norm(x, "model.norm")


def log_probabilities(hidden: np.ndarray, embedding: np.ndarray) -> np.ndarray:
    """Of the next token: float64 [tokens, vocabulary], for tied embeddings."""
    logits = (hidden @ embedding.T).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
