"""Tiny models of EXAONE 3 (which transformers knows as a Llama under other names) and EXAONE 4."""

from __future__ import annotations

from tiny_cases.first import LLAMA3_SCALING, olmo2_like
from tiny_parts import EMBD, HEADS, LAYERS, Tiny, config, llama_like, renamed, same_as

ROPE = {"rope_theta": 1e6, "rope_scaling": LLAMA3_SCALING}


def exaone4_like(layers: int, head: bool) -> dict[str, tuple[int, ...]]:
    """OLMo 2's tensors with norms of each head."""
    shapes = {name: shape for name, shape in olmo2_like(layers).items() if head or name != "lm_head.weight"}
    for i in range(layers):
        shapes |= {f"model.layers.{i}.self_attn.{name}_norm.weight": (EMBD // HEADS,) for name in "qk"}
    return shapes


EXAONE_NAMES = (
    ("model.embed_tokens", "transformer.wte"),
    ("model.norm", "transformer.ln_f"),
    ("model.layers", "transformer.h"),
    ("input_layernorm", "ln_1"),
    ("post_attention_layernorm", "ln_2"),
    ("self_attn.o_proj", "self_attn.out_proj"),
    ("self_attn", "attn.attention"),
    ("gate_proj", "c_fc_0"),
    ("up_proj", "c_fc_1"),
    ("down_proj", "c_proj"),
)

CASES = (
    Tiny(
        "exaone",
        config("ExaoneForCausalLM", "exaone", num_hidden_layers=None, num_layers=LAYERS, hidden_act=None,
               activation_function="silu", rms_norm_eps=None, layer_norm_epsilon=1e-5, head_dim=EMBD // HEADS, **ROPE),
        **same_as(
            Tiny("exaone-twin", config("LlamaForCausalLM", "llama", **ROPE), llama_like()),
            lambda tensors: renamed(tensors, *EXAONE_NAMES),
        ),
    ),
    Tiny(
        "exaone4",
        config("Exaone4ForCausalLM", "exaone4", tie_word_embeddings=True,
               layer_types=["full_attention"] * LAYERS, **ROPE)
        | {"sliding_window": None},
        exaone4_like(LAYERS, head=False),
    ),
    # llama.cpp knows windows in models of 64 layers only; one block's mistake is lost among so many
    Tiny(
        "exaone4-windows",
        config("Exaone4ForCausalLM", "exaone4", num_hidden_layers=64, sliding_window=32, sliding_window_pattern="LLLG",
               layer_types=["full_attention" if i % 4 == 3 else "sliding_attention" for i in range(64)], **ROPE),
        exaone4_like(64, head=True),
        mistakes=(),
    ),
)  # fmt: skip
