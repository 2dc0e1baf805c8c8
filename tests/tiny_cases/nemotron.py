"""Tiny models of Nemotron."""

from __future__ import annotations

from tiny_parts import EMBD, FF, LAYERS, Tiny, config, llama_like


def nemotron_like(bias: bool = False) -> dict[str, tuple[int, ...]]:
    biased = ("q_proj", "k_proj", "v_proj", "o_proj") if bias else ()
    shapes = {name: shape for name, shape in llama_like(bias=biased).items() if "gate_proj" not in name}
    shapes |= {name.replace(".weight", ".bias"): shape for name, shape in shapes.items() if "norm" in name}
    if bias:
        for i in range(LAYERS):
            shapes[f"model.layers.{i}.mlp.up_proj.bias"] = (FF,)
            shapes[f"model.layers.{i}.mlp.down_proj.bias"] = (EMBD,)
    return shapes


NEMOTRON = {"hidden_act": "relu2", "rms_norm_eps": None, "norm_eps": 1e-5, "rope_theta": 10000.0}

CASES = (
    Tiny("nemotron", config("NemotronForCausalLM", "nemotron", **NEMOTRON, partial_rotary_factor=0.5),
         nemotron_like(), "spm", zero_norms=True, mistakes=("rope", "norm")),
    Tiny(
        "nemotron-biased",
        config("NemotronForCausalLM", "nemotron", **NEMOTRON, partial_rotary_factor=1.0, attention_bias=True,
               mlp_bias=True, rope_scaling={"type": "linear", "factor": 2.0}),
        nemotron_like(bias=True), zero_norms=True, mistakes=("rope", "norm"),
    ),
)  # fmt: skip
