"""What SmallThinker and Arctic compute, in NumPy, for a prompt that is shorter than any window.

Written from the models' own descriptions: in SmallThinker the router looks at what comes into the block, before its
norm, and experts use ReLU; in Arctic a dense part follows attention, and the experts look past attention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Tensors = Mapping[str, NDArray[np.float32]]


def norm(x: F64, weight: NDArray[np.float32], eps: float) -> F64:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def silu(x: F64) -> F64:
    return x / (1 + np.exp(-x))


def relu(x: F64) -> F64:
    return np.maximum(x, 0)


def softmax(x: F64) -> F64:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rotated(x: F64, theta: float) -> F64:
    """[heads, tokens, columns]: column j together with column j + half."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * theta ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)


def attention(x: F64, config: Mapping[str, Any], t: Tensors, block: str, rotates: bool) -> F64:
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    q, k, v = (
        (x @ t[f"{block}self_attn.{name}_proj.weight"].T).reshape(len(x), count, -1).swapaxes(0, 1)
        for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
    )
    if rotates:
        q, k = rotated(q, config["rope_theta"]), rotated(k, config["rope_theta"])
    k, v = (part.repeat(heads // kv_heads, 0) for part in (k, v))
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
    scores[:, np.triu(np.ones((len(x), len(x)), bool), 1)] = -np.inf
    seen = (softmax(scores) @ v).swapaxes(0, 1).reshape(len(x), -1)
    return seen @ t[f"{block}self_attn.o_proj.weight"].T


def gated(x: F64, gate: Any, up: Any, down: Any, act: Callable[[F64], F64]) -> F64:
    out: F64 = (act(x @ gate.T) * (x @ up.T)) @ down.T
    return out


def experts(
    x: F64, logits: F64, used: int, soft: bool, t: Tensors, names: tuple[str, ...], act: Callable[[F64], F64]
) -> F64:
    """Weights of the chosen experts sum to one; `names` are those of gate, up and down with `{e}`."""
    weights = softmax(logits) if soft else 1 / (1 + np.exp(-logits))
    weights[np.argsort(np.argsort(-weights, -1), -1) >= used] = 0
    weights /= weights.sum(-1, keepdims=True)
    parts = (
        weights[:, e : e + 1] * gated(x, *(t[name.format(e=e)] for name in names), act) for e in range(logits.shape[1])
    )
    return np.sum(list(parts), 0)


def smallthinker(config: Mapping[str, Any], t: Tensors, ids: list[int]) -> F64:
    x = t["model.embed_tokens.weight"][ids].astype(np.float64)
    eps, soft = config["rms_norm_eps"], config["moe_primary_router_apply_softmax"]
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}."
        moe = f"{block}block_sparse_moe."
        logits = x @ t[f"{moe}primary_router.weight"].T
        names = tuple(f"{moe}experts.{{e}}.{name}.weight" for name in ("gate", "up", "down"))
        inner = norm(x, t[f"{block}input_layernorm.weight"], eps)
        x = x + attention(inner, config, t, block, bool(config["rope_layout"][i]))
        inner = norm(x, t[f"{block}post_attention_layernorm.weight"], eps)
        x = x + experts(inner, logits, config["moe_num_active_primary_experts"], soft, t, names, relu)
    return head(x, t, eps)


def arctic(config: Mapping[str, Any], t: Tensors, ids: list[int]) -> F64:
    x = t["model.embed_tokens.weight"][ids].astype(np.float64)
    eps = config["rms_norm_eps"]
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}."
        moe = f"{block}block_sparse_moe."
        names = tuple(f"{moe}experts.{{e}}.{name}.weight" for name in ("w1", "w3", "w2"))
        past = norm(x, t[f"{block}post_attention_layernorm.weight"], eps)
        sparse = experts(past, past @ t[f"{moe}gate.weight"].T, config["num_experts_per_tok"], True, t, names, silu)
        x = x + attention(norm(x, t[f"{block}input_layernorm.weight"], eps), config, t, block, True)
        inner = norm(x, t[f"{block}residual_layernorm.weight"], eps)
        x = x + gated(inner, *(t[f"{block}residual_mlp.{name}.weight"] for name in ("w1", "w3", "w2")), silu) + sparse
    return head(x, t, eps)


def head(x: F64, t: Tensors, eps: float) -> F64:
    """Logits of the token after the last."""
    matrix = t.get("lm_head.weight", t["model.embed_tokens.weight"])
    logits: F64 = norm(x[-1], t["model.norm.weight"], eps) @ matrix.T
    return logits
