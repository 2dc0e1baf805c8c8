"""Tiny models of RWKV-7. transformers has no class for it: tests/test_rwkv.py computes what llama.cpp must."""

from __future__ import annotations

from zlib import crc32

import numpy as np

from tiny_parts import EMBD, FF, VOCAB, Tiny, config

LAYERS, HEAD = 3, 64
RANKS = {"w": 16, "a": 24, "v": 8, "g": 40}


def values(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    chosen = np.random.default_rng(crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if "norm.weight" in name or name.endswith((".k_k", ".k_a")):
        return chosen / 3 + 1
    if ".x_" in name:
        return chosen / 3 + 0.5
    if name.endswith(".r_k"):
        return chosen / 8
    return chosen / 4 if "embeddings" in name else None


def rwkv7_like(fused: bool, first_value: bool) -> dict[str, tuple[int, ...]]:
    """`fused`: the shares of the last token in one tensor; `first_value`: unused projections in the first block."""

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"model.{name}.weight": (EMBD,), f"model.{name}.bias": (EMBD,)}

    shapes: dict[str, tuple[int, ...]] = {"model.embeddings.weight": (VOCAB, EMBD), "lm_head.weight": (VOCAB, EMBD)}
    shapes |= norm("norm") | norm("layers.0.pre_norm")
    for i in range(LAYERS):
        block = f"layers.{i}."
        shapes |= norm(f"{block}attn_norm") | norm(f"{block}ffn_norm") | norm(f"{block}attn.g_norm")
        attn, ffn = f"model.{block}attn.", f"model.{block}ffn."
        shapes |= {f"{attn}x_x": (6, EMBD)} if fused else {f"{attn}x_{c}": (1, 1, EMBD) for c in "rwkvag"}
        shapes |= {f"{attn}k_k": (EMBD,), f"{attn}k_a": (EMBD,), f"{attn}r_k": (EMBD // HEAD, HEAD)}
        shapes |= {f"{attn}{c}_proj.weight": (EMBD, EMBD) for c in "rkvo"}
        for letter, rank in RANKS.items():
            if letter == "v" and i == 0 and not first_value:
                continue
            shapes[f"{attn}{letter}_lora.lora.0.weight"] = (rank, EMBD)
            shapes[f"{attn}{letter}_lora.lora.2.weight"] = (EMBD, rank)
            if letter != "g":
                shapes[f"{attn}{letter}_lora.lora.2.bias"] = (EMBD,)
        shapes |= {f"{ffn}x_k": (EMBD,), f"{ffn}key.weight": (FF, EMBD), f"{ffn}value.weight": (EMBD, FF)}
    return shapes


def rwkv7(class_name: str, **further: object) -> dict[str, object]:
    stated = {
        "num_hidden_layers": LAYERS, "hidden_act": "sqrelu", "head_dim": HEAD, "norm_eps": 1e-5, "norm_first": True,
        "norm_bias": True, "decay_low_rank_dim": RANKS["w"], "a_low_rank_dim": RANKS["a"],
        "v_low_rank_dim": RANKS["v"], "gate_low_rank_dim": RANKS["g"], "attn": None, "attn_mode": "chunk",
        "rms_norm_eps": None, "num_attention_heads": None, "num_key_value_heads": None,
    }  # fmt: skip
    return config(class_name, "rwkv7", **stated | further)


CASES = (
    Tiny("rwkv7", rwkv7("RWKV7ForCausalLM"), rwkv7_like(False, False), special=values, loads=False, proof="loads"),
    Tiny("rwkv7-fused", rwkv7("Rwkv7ForCausalLM"), rwkv7_like(True, True), special=values, loads=False, proof="loads"),
)
