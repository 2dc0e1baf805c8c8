"""Tiny models of Baichuan, XVERSE and Orion, which transformers knows as Llama and as StableLM."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tiny_parts import EMBD, HEADS, LAYERS, VOCAB, Tiny, config, llama_like, same_as

ALL_HEADS = {"num_key_value_heads": HEADS}


def whole_heads(layers: int) -> dict[str, tuple[int, ...]]:
    """Llama's tensors with a key-value head for every head."""
    keys = {f"model.layers.{i}.self_attn.{part}_proj.weight": (EMBD, EMBD) for i in range(layers) for part in "kv"}
    return llama_like(layers=layers) | keys


def centred() -> dict[str, tuple[int, ...]]:
    """With biases of norms."""
    shapes = llama_like()
    return shapes | {n.replace("weight", "bias"): s for n, s in shapes.items() if n.endswith("norm.weight")}


def packed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Queries, keys and values one below the other."""
    made = {}
    for name, tensor in tensors.items():
        if name.endswith("q_proj.weight"):
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            made[name.replace("q_proj", "W_pack")] = np.concatenate(parts)
        elif not name.endswith(("k_proj.weight", "v_proj.weight")):
            made[name] = tensor
    return made


def of_distance(length: int) -> dict[str, np.ndarray]:
    """Scores of head h lose 2 ** (-8 (h + 1) / heads) for each token between; rotation by zero is none."""
    slopes = 2.0 ** (-8 * np.arange(1, HEADS + 1) / HEADS)
    between = np.arange(length)[None, :] - np.arange(length)[:, None]
    mask = np.where(between > 0, -np.inf, slopes[:, None, None] * between)
    return {"attention_mask": mask[None].astype(np.float32), "position_ids": np.zeros((1, length), np.int64)}


def unit_head(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    if name != "lm_head.weight":
        return None
    rows = np.random.default_rng(0).standard_normal(shape)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def longer_head(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Baichuan 2's output matrix: its rows are divided by their lengths when it is used."""
    lengths = np.linspace(0.5, 4, VOCAB, dtype=np.float32)
    return packed(tensors) | {"lm_head.weight": tensors["lm_head.weight"] * lengths[:, None]}


def baichuan(layers: int, **further: object) -> dict[str, object]:
    return config("BaichuanForCausalLM", "baichuan", num_hidden_layers=layers, num_key_value_heads=None, **further)


def twin(layers: int) -> Tiny:
    return Tiny("baichuan-twin", config("LlamaForCausalLM", "llama", num_hidden_layers=layers, **ALL_HEADS),
                whole_heads(layers))  # fmt: skip


CASES = (
    # llama.cpp knows models of 32 layers and of 40 only
    Tiny("baichuan", baichuan(32), tokenizer="spm", **same_as(twin(32), packed)),
    Tiny("baichuan2", baichuan(32, z_loss_weight=0), tokenizer="spm",
         **same_as(replace(twin(32), special=unit_head), longer_head)),
    Tiny(
        "baichuan-13b",
        baichuan(40, max_position_embeddings=None, model_max_length=512),
        tokenizer="spm",
        given=of_distance,
        mistakes=("gate", "norm"),
        **same_as(twin(40), packed),
    ),
    Tiny(
        "xverse",
        config("XverseForCausalLM", "xverse", **ALL_HEADS),
        tokenizer="spm",
        **same_as(Tiny("xverse-twin", config("LlamaForCausalLM", "llama", **ALL_HEADS), whole_heads(LAYERS)), dict),
    ),
    Tiny(
        "orion",
        config("OrionForCausalLM", "orion"),
        tokenizer="spm",
        **same_as(
            Tiny("orion-twin", config("StableLmForCausalLM", "stablelm", layer_norm_eps=1e-5, partial_rotary_factor=1.0,
                                      use_qkv_bias=False, rms_norm_eps=None), centred()),
            dict,
        ),
    ),
)  # fmt: skip
