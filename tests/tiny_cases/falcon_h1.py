"""Tiny models of Falcon-H1."""

from __future__ import annotations

from tiny_cases.mamba import CONV, GROUPS, HEADS2, STATE, mixer2, state_space
from tiny_parts import LAYERS, Tiny, attention, config, ends, feed_forward, norms

INNER = 192  # no multiple of the embedding


def falcon_h1_like(head: int, norm: bool = False, head_of_its_own: bool = True) -> dict[str, tuple[int, ...]]:
    shapes = {n.replace("model.norm", "model.final_layernorm"): s for n, s in ends(head=head_of_its_own)}
    for i in range(LAYERS):
        block = f"model.layers.{i}."
        shapes |= dict(norms(block, "input_layernorm", "pre_ff_layernorm"))
        shapes |= dict(attention(block, head))
        shapes |= mixer2(f"{block}mamba.", INNER, norm)
        shapes |= {n.replace(".mlp.", ".feed_forward."): s for n, s in feed_forward(block)}
    return shapes


FALCON_H1 = {
    "mamba_d_ssm": INNER, "mamba_n_heads": HEADS2, "mamba_d_head": INNER // HEADS2, "mamba_n_groups": GROUPS,
    "mamba_d_state": STATE, "mamba_d_conv": CONV, "mamba_expand": 2, "mamba_chunk_size": 8, "mamba_conv_bias": True,
    "mamba_proj_bias": False, "mamba_use_mlp": True, "attention_bias": False, "mlp_bias": False,
    "projectors_bias": False, "rope_theta": 1e11, "rope_scaling": None, "time_step_limit": [0.0, float("inf")],
    "pad_token_id": 0,
    "embedding_multiplier": 1.75, "lm_head_multiplier": 0.6, "key_multiplier": 0.7, "attention_in_multiplier": 1.2,
    "attention_out_multiplier": 0.9, "ssm_in_multiplier": 1.25, "ssm_out_multiplier": 1.6,
    "mlp_multipliers": [0.9, 0.7], "ssm_multipliers": [0.8, 0.5, 0.6, 0.7, 1.3],
}  # fmt: skip
MISTAKES = ("rope", "gate", "norm", "state")

CASES = (
    Tiny(
        "falcon-h1",
        config("FalconH1ForCausalLM", "falcon_h1", **FALCON_H1, head_dim=64, mamba_rms_norm=False,
               mamba_norm_before_gate=True),
        falcon_h1_like(64), special=state_space, mistakes=MISTAKES,
    ),
    Tiny(
        "falcon-h1-norm",
        config("FalconH1ForCausalLM", "falcon_h1", **FALCON_H1 | {"embedding_multiplier": 0.6}, head_dim=32,
               mamba_rms_norm=True, mamba_norm_before_gate=False, tie_word_embeddings=True),
        falcon_h1_like(32, norm=True, head_of_its_own=False), special=state_space, mistakes=MISTAKES,
    ),
)  # fmt: skip
