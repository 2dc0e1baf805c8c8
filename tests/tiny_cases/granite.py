"""Tiny models of Granite's mixtures of experts and of Granite 4."""

from __future__ import annotations

import numpy as np

from tiny_parts import EMBD, FF, HEADS, KV_HEADS, Tiny, attention, config, ends, norms

EXPERTS, SHARED = 4, 160
MAMBA_HEADS, STATE, GROUPS, KERNEL = 8, 32, 2, 4
INNER = 2 * EMBD
CONV = INNER + 2 * GROUPS * STATE
Shapes = dict[str, tuple[int, ...]]
SCALES = {
    "attention_multiplier": 0.25,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 4.0,
}
SPARSE = {"num_local_experts": EXPERTS, "num_experts_per_tok": 2}
HYBRID = {
    "mamba_n_heads": MAMBA_HEADS,
    "mamba_d_state": STATE,
    "mamba_n_groups": GROUPS,
    "mamba_d_conv": KERNEL,
    "mamba_d_head": INNER // MAMBA_HEADS,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "mamba_chunk_size": 256,
}


def special(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Decays as they are trained, convolutions that do something."""
    draw = np.random.default_rng(len(name) + shape[0])
    if name.endswith("A_log"):
        return np.log(draw.integers(1, 16, shape)) / 2
    if name.endswith("conv1d.weight"):
        return draw.standard_normal(shape) / 2
    return None


def feed_forward(block: str, sparse: bool, shared: bool) -> Shapes:
    shapes: Shapes = {}
    if sparse:
        shapes[f"{block}block_sparse_moe.input_linear.weight"] = (EXPERTS, 2 * FF, EMBD)
        shapes[f"{block}block_sparse_moe.output_linear.weight"] = (EXPERTS, EMBD, FF)
        shapes[f"{block}block_sparse_moe.router.layer.weight"] = (EXPERTS, EMBD)
    if shared:
        shapes[f"{block}shared_mlp.input_linear.weight"] = (2 * SHARED, EMBD)
        shapes[f"{block}shared_mlp.output_linear.weight"] = (EMBD, SHARED)
    return shapes


def mamba(block: str) -> Shapes:
    return {
        f"{block}mamba.in_proj.weight": (INNER + CONV + MAMBA_HEADS, EMBD),
        f"{block}mamba.conv1d.weight": (CONV, 1, KERNEL),
        f"{block}mamba.conv1d.bias": (CONV,),
        f"{block}mamba.dt_bias": (MAMBA_HEADS,),
        f"{block}mamba.A_log": (MAMBA_HEADS,),
        f"{block}mamba.D": (MAMBA_HEADS,),
        f"{block}mamba.norm.weight": (INNER,),
        f"{block}mamba.out_proj.weight": (EMBD, INNER),
    }


def granite(kinds: str, sparse: bool = True, shared: bool = True, head: bool = False) -> Shapes:
    """`kinds`: "m" for Mamba or "a" for attention, a letter a layer."""
    shapes = dict(ends(head=head))
    for i, kind in enumerate(kinds):
        block = f"model.layers.{i}."
        shapes |= dict(norms(block, "input_layernorm", "post_attention_layernorm"))
        shapes |= mamba(block) if kind == "m" else dict(attention(block, EMBD // HEADS))
        shapes |= feed_forward(block, sparse, shared)
    return shapes


CASES = (
    Tiny(
        "granitemoe",
        config("GraniteMoeForCausalLM", "granitemoe", rope_theta=1e4, tie_word_embeddings=True, **SCALES, **SPARSE),
        granite("aa", shared=False),
    ),
    Tiny(
        "granitemoeshared",
        config("GraniteMoeSharedForCausalLM", "granitemoeshared", rope_theta=1e4, shared_intermediate_size=SHARED,
               **SCALES, **SPARSE),
        granite("aa", head=True),
    ),
    Tiny(
        "granitehybrid",
        config("GraniteMoeHybridForCausalLM", "granitemoehybrid", rope_theta=1e4, tie_word_embeddings=True,
               num_hidden_layers=3, layer_types=["mamba", "attention", "mamba"], position_embedding_type="nope",
               shared_intermediate_size=SHARED, **SCALES, **SPARSE, **HYBRID),
        granite("mam"), special=special, mistakes=("gate", "norm"),  # nothing is rotated
    ),
    Tiny(
        "granitehybrid-dense",
        config("GraniteMoeHybridForCausalLM", "granitemoehybrid", rope_theta=1e4, tie_word_embeddings=True,
               num_hidden_layers=3, layer_types=["mamba", "attention", "mamba"], position_embedding_type="nope",
               intermediate_size=SHARED, shared_intermediate_size=SHARED, num_local_experts=0, num_experts_per_tok=0,
               **SCALES, **HYBRID),
        granite("mam", sparse=False), special=special, mistakes=("gate", "norm"),
    ),
    Tiny(
        "granite4",
        config("GraniteMoeHybridForCausalLM", "granitemoehybrid", rope_theta=1e4, tie_word_embeddings=True,
               layer_types=["attention"] * 2, position_embedding_type="rope", num_key_value_heads=KV_HEADS,
               intermediate_size=SHARED, shared_intermediate_size=SHARED, num_local_experts=0, num_experts_per_tok=0,
               **SCALES, **HYBRID),
        granite("aa", sparse=False),
    ),
    Tiny(
        "granite4-sparse",
        config("GraniteMoeHybridForCausalLM", "granitemoehybrid", rope_theta=1e4, layer_types=["attention"] * 2,
               position_embedding_type="rope", shared_intermediate_size=SHARED, **SCALES, **SPARSE, **HYBRID),
        granite("aa", head=True),
    ),
)  # fmt: skip
