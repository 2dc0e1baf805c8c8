"""Tiny models of Jamba."""

from __future__ import annotations

from tiny_cases.mamba import CONV, INNER, RANK, STATE, state_space
from tiny_parts import EMBD, FF, HEADS, Tiny, attention, config, ends, feed_forward, norms

LAYERS, EXPERTS = 4, 4


def jamba_like(experts: int, head: bool = True) -> dict[str, tuple[int, ...]]:
    """Attention in blocks 1 and 3, experts in block 2."""
    shapes = {name.replace("model.norm", "model.final_layernorm"): shape for name, shape in ends(head=head)}
    for i in range(LAYERS):
        block = f"model.layers.{i}."
        shapes |= dict(norms(block, "input_layernorm", "pre_ff_layernorm"))
        if i % 2:
            shapes |= dict(attention(block, EMBD // HEADS))
        else:
            mixer = f"{block}mamba."
            shapes |= {
                f"{mixer}A_log": (INNER, STATE),
                f"{mixer}D": (INNER,),
                f"{mixer}conv1d.weight": (INNER, 1, CONV),
                f"{mixer}conv1d.bias": (INNER,),
                f"{mixer}in_proj.weight": (2 * INNER, EMBD),
                f"{mixer}x_proj.weight": (RANK + 2 * STATE, INNER),
                f"{mixer}dt_proj.weight": (INNER, RANK),
                f"{mixer}dt_proj.bias": (INNER,),
                f"{mixer}out_proj.weight": (EMBD, INNER),
                f"{mixer}dt_layernorm.weight": (RANK,),
                f"{mixer}b_layernorm.weight": (STATE,),
                f"{mixer}c_layernorm.weight": (STATE,),
            }
        if i == 2 and experts > 1:
            shapes[f"{block}feed_forward.router.weight"] = (experts, EMBD)
            for e in range(experts):
                for name, shape in (("gate", (FF, EMBD)), ("up", (FF, EMBD)), ("down", (EMBD, FF))):
                    shapes[f"{block}feed_forward.experts.{e}.{name}_proj.weight"] = shape
        else:
            shapes |= {name.replace(".mlp.", ".feed_forward."): shape for name, shape in feed_forward(block)}
    return shapes


JAMBA = {
    "num_hidden_layers": LAYERS, "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 2,
    "expert_layer_period": 3, "num_experts_per_tok": 2, "mamba_d_state": STATE, "mamba_d_conv": CONV,
    "mamba_expand": 2, "mamba_dt_rank": RANK, "mamba_conv_bias": True, "mamba_proj_bias": False,
    "use_mamba_kernels": False, "pad_token_id": 0, "sliding_window": None,
}  # fmt: skip
MISTAKES = ("gate", "norm", "state")

CASES = (
    Tiny("jamba", config("JambaForCausalLM", "jamba", **JAMBA, num_experts=EXPERTS), jamba_like(EXPERTS), "spm",
         special=state_space, mistakes=MISTAKES),
    Tiny("jamba-dense", config("JambaForCausalLM", "jamba", **JAMBA, num_experts=1, tie_word_embeddings=True),
         jamba_like(1, head=False), "spm", special=state_space, mistakes=MISTAKES),
)  # fmt: skip
