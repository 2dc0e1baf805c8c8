"""RWKV-7 in llama.cpp agrees with a plain NumPy twin; transformers has no class for it.

The twin is written from the paper's formulas (arXiv 2503.14456) and the checkpoint's names.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_models
from ggufround import convert
from ggufround.gguf_read import read_gguf
from llama_cpp import log_probs
from tiny import bf16_bits
from tiny_cases.rwkv import HEAD, LAYERS

F64 = NDArray[np.float64]
PROMPTS = [[5, 40, 77, 130, 9], [300, 12, 12, 250, 31, 8, 111], [60, 61, 62, 63, 64, 65, 66, 67, 68, 69], [200, 7, 99]]
TOLERANCE = 0.02  # of the log-probabilities' standard deviation


def sigmoid(x: F64) -> F64:
    return 1 / (1 + np.exp(-x))


def norm(x: F64, weights: dict[str, F64], name: str, epsilon: float = 1e-5) -> F64:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return scaled * weights[f"{name}.weight"].reshape(x.shape[1:]) + weights[f"{name}.bias"].reshape(x.shape[1:])


def last(x: F64) -> F64:
    """What each token's predecessor was, less the token."""
    return np.vstack([np.zeros_like(x[:1]), x[:-1]]) - x


def time_mix(x: F64, w: dict[str, F64], name: str, value: F64 | None) -> tuple[F64, F64]:
    """The layer's output, and the first layer's values."""
    shares = w[f"{name}.x_x"] if f"{name}.x_x" in w else [w[f"{name}.x_{c}"].reshape(-1) for c in "rwkvag"]
    mixed = {c: x + last(x) * share for c, share in zip("rwkvag", shares, strict=True)}

    def low_rank(letter: str, between: str = "") -> F64:
        down = mixed[letter] @ w[f"{name}.{letter}_lora.lora.0.weight"].T
        down = {"tanh": np.tanh, "sigmoid": sigmoid, "": lambda y: y}[between](down)
        return down @ w[f"{name}.{letter}_lora.lora.2.weight"].T + w.get(f"{name}.{letter}_lora.lora.2.bias", 0)

    r, k, v = (mixed[c] @ w[f"{name}.{c}_proj.weight"].T for c in "rkv")
    decay, rate = np.exp(-np.exp(-0.5) * sigmoid(low_rank("w", "tanh"))), sigmoid(low_rank("a"))
    if value is not None:
        v = v + (value - v) * sigmoid(low_rank("v"))
    heads = (len(x), -1, HEAD)
    removed = (k * w[f"{name}.k_k"]).reshape(heads)
    removed = removed / np.linalg.norm(removed, axis=-1, keepdims=True)
    k = k * (1 + (rate - 1) * w[f"{name}.k_a"])
    r, k, vh, decay, rate = (y.reshape(heads) for y in (r, k, v, decay, rate))
    state = np.zeros((r.shape[1], HEAD, HEAD))  # [head, value, key]
    out = np.zeros_like(r)
    for t in range(len(x)):
        forgotten = np.einsum("hvk,hk->hv", state, removed[t])
        state = state * decay[t][:, None] - forgotten[:, :, None] * (removed[t] * rate[t])[:, None]
        state = state + vh[t][:, :, None] * k[t][:, None]
        out[t] = np.einsum("hvk,hk->hv", state, r[t])
    out = norm(out, w, f"{name}.g_norm", HEAD * 1e-5) + (r * k * w[f"{name}.r_k"]).sum(-1, keepdims=True) * vh
    return (out.reshape(x.shape) * low_rank("g", "sigmoid")) @ w[f"{name}.o_proj.weight"].T, v


def expected(w: dict[str, F64], prompt: list[int]) -> F64:
    """Log-probabilities of the token after the prompt."""
    x = norm(w["model.embeddings.weight"][prompt], w, "model.layers.0.pre_norm")
    first: F64 | None = None
    for i in range(LAYERS):
        name = f"model.layers.{i}"
        mixed, value = time_mix(norm(x, w, f"{name}.attn_norm"), w, f"{name}.attn", first)
        first = value if first is None else first
        x = x + mixed
        y = norm(x, w, f"{name}.ffn_norm")
        hidden = np.maximum((y + last(y) * w[f"{name}.ffn.x_k"]) @ w[f"{name}.ffn.key.weight"].T, 0) ** 2
        x = x + hidden @ w[f"{name}.ffn.value.weight"].T
    logits = w["lm_head.weight"] @ norm(x, w, "model.norm")[-1]
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


@pytest.mark.peer
@pytest.mark.parametrize("name", ["rwkv7", "rwkv7-fused"])
def test_llama_cpp_computes_what_the_formulas_say(name: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    case = tiny_models.CASES[name]
    convert(tiny_models.write(case, tmp_path / name), tmp_path / "out.gguf", type="f32")
    assert read_gguf(tmp_path / "out.gguf").metadata["general.architecture"].value == "rwkv7"
    found = log_probs([tmp_path / "out.gguf"], PROMPTS, tiny_models.VOCAB)[0]
    stored = {
        name: (bf16_bits(values).astype(np.uint32) << 16).view(np.float32).reshape(values.shape).astype(np.float64)
        for name, values in tiny_models.weights(case).items()
    }
    for row, prompt in zip(found, PROMPTS, strict=True):
        truth = expected(stored, prompt)
        assert np.sqrt(np.mean((row - truth) ** 2)) < TOLERANCE * truth.std()
