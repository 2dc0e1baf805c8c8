"""Tiny models of Command R and Command A."""

from __future__ import annotations

from tiny_parts import EMBD, HEADS, KV_HEADS, LAYERS, Tiny, config, llama_like

HEAD = EMBD // HEADS
COHERE = {"rms_norm_eps": None, "layer_norm_eps": 1e-5, "rope_theta": 5e5, "tie_word_embeddings": None}


def cohere_like(layers: int, qk_norms: bool = False) -> dict[str, tuple[int, ...]]:
    """Llama's tensors with one norm a block and no head."""
    shapes = {n: s for n, s in llama_like(layers=layers, head=False).items() if "post_attention" not in n}
    for i in range(layers if qk_norms else 0):
        shapes[f"model.layers.{i}.self_attn.q_norm.weight"] = (HEADS, HEAD)
        shapes[f"model.layers.{i}.self_attn.k_norm.weight"] = (KV_HEADS, HEAD)
    return shapes


CASES = (
    Tiny(
        "cohere",
        config("CohereForCausalLM", "cohere", model_max_length=4096, logit_scale=0.5, use_qk_norm=False, **COHERE),
        cohere_like(LAYERS),
    ),
    # llama.cpp reads norms of heads from 64 layers on; one block's mistake is lost among so many
    Tiny(
        "cohere-norms",
        config("CohereForCausalLM", "cohere", num_hidden_layers=64, use_qk_norm=True, **COHERE),
        cohere_like(64, True),
        mistakes=(),
    ),
    Tiny(
        "cohere2",
        config("Cohere2ForCausalLM", "cohere2", num_hidden_layers=5, sliding_window=32, logit_scale=0.25,
               rotary_pct=1.0, sliding_window_pattern=4, **COHERE),
        cohere_like(5),
    ),
)  # fmt: skip
