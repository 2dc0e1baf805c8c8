"""A tiny model of Jais 2."""

from __future__ import annotations

from tiny_cases.baichuan import centred
from tiny_parts import EMBD, FF, HEADS, KV_HEADS, LAYERS, Tiny, config

HEAD = EMBD // HEADS


def jais2_like() -> dict[str, tuple[int, ...]]:
    """Centred norms, no gate, and biases of every matrix of a block."""
    shapes = {name: shape for name, shape in centred().items() if "gate_proj" not in name}
    for i in range(LAYERS):
        block = f"model.layers.{i}."
        shapes |= {
            f"{block}self_attn.q_proj.bias": (EMBD,),
            f"{block}self_attn.k_proj.bias": (KV_HEADS * HEAD,),
            f"{block}self_attn.v_proj.bias": (KV_HEADS * HEAD,),
            f"{block}self_attn.o_proj.bias": (EMBD,),
            f"{block}mlp.up_proj.bias": (FF,),
            f"{block}mlp.down_proj.bias": (EMBD,),
        }
    return shapes


CASES = (
    Tiny(
        "jais2",
        config("Jais2ForCausalLM", "jais2", hidden_act="relu2", rms_norm_eps=None, layer_norm_eps=1e-5, rope_theta=5e5,
               head_dim=HEAD, attention_bias=True, mlp_bias=True),
        jais2_like(),
    ),
)  # fmt: skip
