"""Tiny models of Nemotron-H: blocks that are each a Mamba-2 mixer, attention, a feed-forward part or experts."""

from __future__ import annotations

from zlib import crc32

import numpy as np

from tiny_cases.mamba import CONV, GROUPS, HEADS2, STATE, mixer2, state_space
from tiny_parts import EMBD, FF, HEADS, KV_HEADS, VOCAB, Tiny, config

INNER, HEAD, LATENT, EXPERTS, SHARED = 192, 64, 96, 4, 160


def values(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The bias of the router chooses other experts, as trained ones do."""
    if name.endswith("e_score_correction_bias"):
        return np.random.default_rng(crc32(name.encode())).standard_normal(shape, dtype=np.float32) / 4
    return state_space(name, shape)


def nemotron_h_like(pattern: str, latent: int = EMBD) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.embeddings.weight": (VOCAB, EMBD),
        "backbone.norm_f.weight": (EMBD,),
        "lm_head.weight": (VOCAB, EMBD),
    }
    for i, kind in enumerate(pattern):
        shapes[f"backbone.layers.{i}.norm.weight"] = (EMBD,)
        mixer = f"backbone.layers.{i}.mixer."
        if kind == "M":
            shapes |= mixer2(mixer, INNER)
        elif kind == "*":
            for name, rows in (("q_proj", HEADS), ("k_proj", KV_HEADS), ("v_proj", KV_HEADS)):
                shapes[f"{mixer}{name}.weight"] = (rows * HEAD, EMBD)
            shapes[f"{mixer}o_proj.weight"] = (EMBD, HEADS * HEAD)
        elif kind == "-":
            shapes |= {f"{mixer}up_proj.weight": (FF, EMBD), f"{mixer}down_proj.weight": (EMBD, FF)}
        else:
            shapes |= {f"{mixer}gate.weight": (EXPERTS, EMBD), f"{mixer}gate.e_score_correction_bias": (EXPERTS,)}
            for e in range(EXPERTS):
                shapes[f"{mixer}experts.{e}.up_proj.weight"] = (FF, latent)
                shapes[f"{mixer}experts.{e}.down_proj.weight"] = (latent, FF)
            shapes[f"{mixer}shared_experts.up_proj.weight"] = (SHARED, EMBD)
            shapes[f"{mixer}shared_experts.down_proj.weight"] = (EMBD, SHARED)
            if latent != EMBD:
                shapes[f"{mixer}fc1_latent_proj.weight"] = (latent, EMBD)
                shapes[f"{mixer}fc2_latent_proj.weight"] = (EMBD, latent)
    return shapes


NEMOTRON_H = {
    "attention_bias": False, "chunk_size": 8, "conv_kernel": CONV, "expand": 2, "head_dim": HEAD,
    "hidden_act": None, "layer_norm_epsilon": 1e-5, "mamba_head_dim": INNER // HEADS2, "mamba_hidden_act": "silu",
    "mamba_num_heads": HEADS2, "mamba_proj_bias": False, "mlp_bias": False, "mlp_hidden_act": "relu2",
    "n_groups": GROUPS, "ssm_state_size": STATE, "time_step_limit": [0.0, float("inf")], "time_step_min": 1e-9,
    "use_bias": False, "use_conv_bias": True, "pad_token_id": 0,
}  # fmt: skip
MOE = {
    "n_routed_experts": EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": FF,
    "moe_shared_expert_intermediate_size": SHARED, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
MISTAKES = ("norm", "state")

CASES = (
    Tiny(
        "nemotron-h",
        config("NemotronHForCausalLM", "nemotron_h", **NEMOTRON_H, num_hidden_layers=5,
               hybrid_override_pattern="M-M*-", attention_head_dim=HEAD),
        nemotron_h_like("M-M*-"), special=values, mistakes=MISTAKES,
    ),
    Tiny(
        "nemotron-h-moe",
        config("NemotronHForCausalLM", "nemotron_h", **NEMOTRON_H, **MOE, num_hidden_layers=5,
               hybrid_override_pattern="MEM*E", moe_latent_size=None),
        nemotron_h_like("MEM*E"), special=values, mistakes=MISTAKES,
    ),
    Tiny(
        "nemotron-h-latent",
        config("NemotronHForCausalLM", "nemotron_h", **NEMOTRON_H, **MOE, num_hidden_layers=None,
               layers_block_type=["mamba", "moe", "attention", "moe"], moe_latent_size=LATENT),
        nemotron_h_like("ME*E", LATENT), special=values, mistakes=MISTAKES,
    ),
)  # fmt: skip
