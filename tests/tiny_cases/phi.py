"""Tiny models of Phi-2 and Phi-3.5-MoE."""

from __future__ import annotations

from functools import partial
from typing import Any

from tiny_cases.gpt import FF, with_biases
from tiny_parts import EMBD, HEADS, LAYERS, VOCAB, Tiny, config, llama_like, mixture


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


def phimoe_like() -> dict[str, tuple[int, ...]]:
    every = ("q_proj", "k_proj", "v_proj", "o_proj")
    shapes = mixture(llama_like(bias=every), "block_sparse_moe", "w1", "w3", "w2")
    shapes |= {"model.norm.bias": (EMBD,), "lm_head.bias": (VOCAB,)}
    norms = ("input_layernorm", "post_attention_layernorm")
    return shapes | {f"model.layers.{i}.{norm}.bias": (EMBD,) for i in range(LAYERS) for norm in norms}


def as_llama_cpp_runs_phimoe(network: Any) -> None:
    """Its layer norms as RMS norms, the weights of the chosen experts as their softmax: all that differs."""
    import torch

    def rms(module: Any, x: Any) -> Any:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], module.weight, module.eps) + module.bias

    def route(module: Any, x: Any) -> Any:
        logits = torch.nn.functional.linear(x, module.weight)
        chosen = logits.topk(module.top_k)
        return logits, chosen.values.softmax(-1), chosen.indices

    for module in network.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.forward = partial(rms, module)
        elif type(module).__name__ == "PhimoeTopKRouter":
            module.forward = partial(route, module)


PHIMOE = config(
    "PhiMoEForCausalLM", "phimoe", num_local_experts=4, num_experts_per_tok=2, sliding_window=256, rope_theta=10000.0,
    attention_bias=True, lm_head_bias=True, original_max_position_embeddings=256, router_jitter_noise=0.01,
    rope_scaling={
        "type": "longrope", "short_factor": [1 + k / 8 for k in range(16)], "long_factor": [2 + k for k in range(16)],
        "short_mscale": 1.25, "long_mscale": 1.25, "original_max_position_embeddings": 256,
    },
)  # fmt: skip

CASES = (
    Tiny("phimoe", PHIMOE, phimoe_like(), "spm", altered=as_llama_cpp_runs_phimoe),
    Tiny("phi2", PHI2, phi2_like(), mistakes=("rope", "norm")),
    Tiny("phi2-rotated-less", PHI2 | {"partial_rotary_factor": 0.25}, phi2_like(), mistakes=("rope", "norm")),
)
