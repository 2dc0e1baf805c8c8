"""Tiny models of the first generations of GPT: layer norms with biases, queries, keys and values in one matrix."""

from __future__ import annotations

from dataclasses import replace
from zlib import crc32

import numpy as np

from tiny_parts import EMBD, HEADS, LAYERS, VOCAB, Shapes, Tiny, config

FF = 4 * EMBD
CONTEXT = 512


def with_biases(name: str, *shape: int, inputs_first: bool = False) -> Shapes:
    """A matrix or norm and its bias; `inputs_first`: [inputs, outputs]."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[-1:] if inputs_first else shape[:1]


def gpt2_like(prefix: str = "transformer.") -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}wte.weight": (VOCAB, EMBD), f"{prefix}wpe.weight": (CONTEXT, EMBD)}
    for i in range(LAYERS):
        block = f"{prefix}h.{i}."
        for name, shape in (
            ("ln_1", (EMBD,)),
            ("attn.c_attn", (EMBD, 3 * EMBD)),
            ("attn.c_proj", (EMBD, EMBD)),
            ("ln_2", (EMBD,)),
            ("mlp.c_fc", (EMBD, FF)),
            ("mlp.c_proj", (FF, EMBD)),
        ):
            shapes |= dict(with_biases(block + name, *shape, inputs_first=True))
    return shapes | dict(with_biases(f"{prefix}ln_f", EMBD))


def norms_near_one(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Of norms that are called neither "norm" nor "layernorm"."""
    if name.split(".")[-2].startswith("ln") and name.endswith(".weight"):
        return 1 + np.random.default_rng(crc32(name.encode())).standard_normal(shape, dtype=np.float32) / 3
    return None


GPT2 = config(
    "GPT2LMHeadModel", "gpt2", hidden_size=None, intermediate_size=None, num_hidden_layers=None,
    num_attention_heads=None, num_key_value_heads=None, hidden_act=None, max_position_embeddings=None,
    rms_norm_eps=None, tie_word_embeddings=None, n_embd=EMBD, n_layer=LAYERS, n_head=HEADS, n_ctx=CONTEXT,
    n_positions=CONTEXT, activation_function="gelu_new", layer_norm_epsilon=1e-5,
)  # fmt: skip

GPT2_CASES = (
    Tiny("gpt2", GPT2, gpt2_like(), mistakes=("norm",)),
    Tiny("gpt2-untied", GPT2 | {"tie_word_embeddings": False}, gpt2_like() | {"lm_head.weight": (VOCAB, EMBD)},
         mistakes=("norm",)),
    Tiny("gpt2-bare", GPT2, gpt2_like(""), mistakes=("norm",)),
)  # fmt: skip
CASES = tuple(replace(case, special=norms_near_one) for case in GPT2_CASES)
