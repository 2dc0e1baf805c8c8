"""Tiny state-space models: Mamba and Mamba-2."""

from __future__ import annotations

from zlib import crc32

import numpy as np

from tiny_parts import EMBD, LAYERS, VOCAB, Tiny, config

INNER, STATE, RANK, CONV = 2 * EMBD, 24, 8, 4


def state_space(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Decays, steps and skips of a size that lets the state of some tokens ago show in the logits."""
    values = np.random.default_rng(crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if name.endswith("A_log"):
        # of these torch rounds every exponential correctly, as we do; of one in 150 others it does not
        return np.clip(np.round(values * 32 - 64) / 64, -2.5, 0.98)
    if name.endswith(("dt_proj.bias", "dt_bias")):
        return values / 2
    if name.endswith(".D"):
        return values / 2 + 0.5
    if name.endswith("conv1d.weight"):
        return values / 2
    if "norm" in name:
        return values / 3 + 1
    if "embedding" in name:
        return values / 4
    return None


def mamba_like(embedding: str = "embeddings", head: bool = True) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"backbone.{embedding}.weight": (VOCAB, EMBD),
        "backbone.norm_f.weight": (EMBD,),
    }
    for i in range(LAYERS):
        mixer = f"backbone.layers.{i}.mixer."
        shapes |= {
            f"backbone.layers.{i}.norm.weight": (EMBD,),
            f"{mixer}A_log": (INNER, STATE),
            f"{mixer}D": (INNER,),
            f"{mixer}conv1d.weight": (INNER, 1, CONV),
            f"{mixer}conv1d.bias": (INNER,),
            f"{mixer}in_proj.weight": (2 * INNER, EMBD),
            f"{mixer}x_proj.weight": (RANK + 2 * STATE, INNER),
            f"{mixer}dt_proj.weight": (INNER, RANK),
            f"{mixer}dt_proj.bias": (INNER,),
            f"{mixer}out_proj.weight": (EMBD, INNER),
        }
    return shapes | ({"lm_head.weight": (VOCAB, EMBD)} if head else {})


def original(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """With the sizes that mamba_ssm assumes: a state of 16."""
    larger = {(INNER, STATE): (INNER, 16), (RANK + 2 * STATE, INNER): (RANK + 32, INNER)}
    return {name: larger.get(shape, shape) for name, shape in shapes.items()}


MISTAKES = ("norm", "state")
HEADS2, GROUPS = 8, 2


def mixer2(prefix: str, inner: int = INNER, norm: bool = True) -> dict[str, tuple[int, ...]]:
    """Mamba-2's mixer, which other models have in their blocks."""
    convolved = inner + 2 * GROUPS * STATE
    return {
        f"{prefix}A_log": (HEADS2,),
        f"{prefix}D": (HEADS2,),
        f"{prefix}dt_bias": (HEADS2,),
        f"{prefix}conv1d.weight": (convolved, 1, CONV),
        f"{prefix}conv1d.bias": (convolved,),
        f"{prefix}in_proj.weight": (inner + convolved + HEADS2, EMBD),
        f"{prefix}out_proj.weight": (EMBD, inner),
    } | ({f"{prefix}norm.weight": (inner,)} if norm else {})


def mamba2_like(prefix: str = "", head: bool = True) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}backbone.embeddings.weight": (VOCAB, EMBD),
        f"{prefix}backbone.norm_f.weight": (EMBD,),
    }
    for i in range(LAYERS):
        shapes |= {f"{prefix}backbone.layers.{i}.norm.weight": (EMBD,)}
        shapes |= mixer2(f"{prefix}backbone.layers.{i}.mixer.")
    return shapes | ({f"{prefix}lm_head.weight": (VOCAB, EMBD)} if head else {})


NO_ATTENTION = {
    key: None
    for key in ("intermediate_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
                "rms_norm_eps")
}  # fmt: skip
MAMBA = NO_ATTENTION | {
    "intermediate_size": INNER, "state_size": STATE, "time_step_rank": RANK, "conv_kernel": CONV, "expand": 2,
    "use_bias": False, "use_conv_bias": True, "layer_norm_epsilon": 1e-5, "time_step_scale": 1.0,
}  # fmt: skip
MAMBA2 = NO_ATTENTION | {
    "state_size": STATE, "conv_kernel": CONV, "expand": 2, "num_heads": HEADS2, "head_dim": INNER // HEADS2,
    "n_groups": GROUPS, "use_bias": False, "use_conv_bias": True, "layer_norm_epsilon": 1e-5, "rms_norm": True,
    "chunk_size": 8, "time_step_limit": [0.0, float("inf")],
}  # fmt: skip

CASES = (
    Tiny("mamba", config("MambaForCausalLM", "mamba", **MAMBA), mamba_like(), special=state_space, mistakes=MISTAKES),
    Tiny("mamba-tied", config("MambaForCausalLM", "mamba", **MAMBA, tie_word_embeddings=True),
         mamba_like(head=False), "spm", special=state_space, mistakes=MISTAKES),
    # mamba_ssm's own config and names, which transformers does not read; rounds the vocabulary up
    Tiny(
        "mamba-original",
        {"architectures": ["MambaLMHeadModel"], "d_model": EMBD, "n_layer": LAYERS, "vocab_size": VOCAB - 3,
         "ssm_cfg": {}, "rms_norm": True, "residual_in_fp32": True, "fused_add_norm": True,
         "pad_vocab_size_multiple": 8},
        original(mamba_like("embedding")), special=state_space, loads=False, proof="loads",
    ),
    Tiny("falcon-mamba", config("FalconMambaForCausalLM", "falcon_mamba", **MAMBA), mamba_like(),
         special=state_space, mistakes=MISTAKES),
    Tiny("mamba2", config("Mamba2ForCausalLM", "mamba2", **MAMBA2), mamba2_like(), "spm", special=state_space,
         mistakes=MISTAKES),
    Tiny("mamba2-tied", config("Mamba2ForCausalLM", "mamba2", **MAMBA2, tie_word_embeddings=True),
         mamba2_like(head=False), special=state_space, mistakes=MISTAKES),
    # Codestral's names, which transformers reads from its converted copy only
    Tiny("mamba2-codestral", config("Mamba2ForCausalLM", "mamba2", **MAMBA2), mamba2_like("model."),
         special=state_space, loads=False, proof="loads"),
)  # fmt: skip
