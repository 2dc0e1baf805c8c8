"""Tiny models of Gemma 1."""

from __future__ import annotations

from tiny_parts import Tiny, config, llama_like

CASES = (
    Tiny("gemma", config("GemmaForCausalLM", "gemma", hidden_act="gelu", head_dim=64, tie_word_embeddings=True,
                         rope_theta=10000.0), llama_like(64, head=False), "spm", zero_norms=True),
)  # fmt: skip
