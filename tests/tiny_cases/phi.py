"""Tiny models of Phi-2."""

from __future__ import annotations

from tiny_cases.gpt import FF, with_biases
from tiny_parts import EMBD, HEADS, LAYERS, VOCAB, Tiny, config


def phi2_like() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, EMBD)}
    for i in range(LAYERS):
        block = f"model.layers.{i}."
        for name, shape in (
            ("input_layernorm", (EMBD,)),
            *((f"self_attn.{part}", (EMBD, EMBD)) for part in ("q_proj", "k_proj", "v_proj", "dense")),
            ("mlp.fc1", (FF, EMBD)),
            ("mlp.fc2", (EMBD, FF)),
        ):
            shapes |= dict(with_biases(block + name, *shape))
    return shapes | dict(with_biases("model.final_layernorm", EMBD)) | dict(with_biases("lm_head", VOCAB, EMBD))


PHI2 = config(
    "PhiForCausalLM", "phi", intermediate_size=FF, num_key_value_heads=HEADS, hidden_act="gelu_new", rms_norm_eps=None,
    layer_norm_eps=1e-5, qk_layernorm=False, rope_theta=10000.0, partial_rotary_factor=0.5,
)  # fmt: skip

CASES = (
    Tiny("phi2", PHI2, phi2_like(), mistakes=("rope", "norm")),
    Tiny("phi2-rotated-less", PHI2 | {"partial_rotary_factor": 0.25}, phi2_like(), mistakes=("rope", "norm")),
)
