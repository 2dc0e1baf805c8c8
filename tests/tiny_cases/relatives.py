"""Tiny models of Seed-OSS and Arcee."""

from __future__ import annotations

from tiny_parts import Tiny, config, llama_like

QKV = ("q_proj", "k_proj", "v_proj")
YARN = {
    "rope_type": "yarn", "factor": 20.0, "original_max_position_embeddings": 128, "mscale": 1.0, "beta_fast": 32.0,
    "beta_slow": 1.0,
}  # fmt: skip
UNGATED = {name: shape for name, shape in llama_like().items() if "gate_proj" not in name}

CASES = (
    Tiny("seed-oss", config("SeedOssForCausalLM", "seed_oss", head_dim=64, rope_theta=1e7, attention_bias=True,
                            attention_out_bias=False, mlp_bias=False, rope_scaling={"rope_type": "default"},
                            pad_token_id=0),
         llama_like(64, bias=QKV)),
    Tiny("arcee", config("ArceeForCausalLM", "arcee", hidden_act="relu2", rope_theta=1e4, rope_scaling=YARN), UNGATED,
         mistakes=("rope", "norm")),
)  # fmt: skip
