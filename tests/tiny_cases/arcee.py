"""Tiny models of Arcee, whose feed-forward part has no gate, and Seed-OSS."""

from __future__ import annotations

from tiny_parts import Tiny, config, llama_like

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32.0,
        "beta_slow": 1.0}  # fmt: skip

CASES = (
    Tiny(
        "arcee",
        config("ArceeForCausalLM", "arcee", hidden_act="relu2", head_dim=64, rope_theta=1e4, rope_scaling=YARN),
        {name: shape for name, shape in llama_like(64).items() if "gate_proj" not in name},
    ),
    Tiny(
        "seed-oss",
        config("SeedOssForCausalLM", "seed_oss", head_dim=64, rope_theta=1e7, attention_bias=True,
               attention_out_bias=False),
        llama_like(64, bias=("q_proj", "k_proj", "v_proj")),
    ),
)  # fmt: skip
