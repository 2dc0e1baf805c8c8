"""Tiny models of StableLM and StarCoder 2."""

from __future__ import annotations

from zlib import crc32

import numpy as np

from tiny_cases.gpt import with_biases
from tiny_parts import EMBD, FF, HEADS, KV_HEADS, LAYERS, VOCAB, Tiny, attention, config, llama_like

HEAD = EMBD // HEADS


def stablelm_like(
    bias: bool = False, side_by_side: bool = False, head_norms: bool = False
) -> dict[str, tuple[int, ...]]:
    shapes = llama_like(bias=("q_proj", "k_proj", "v_proj") if bias else ())
    shapes["model.norm.bias"] = (EMBD,)
    for i in range(LAYERS):
        block = f"model.layers.{i}."
        shapes[f"{block}input_layernorm.bias"] = shapes[f"{block}post_attention_layernorm.bias"] = (EMBD,)
        if side_by_side:
            del shapes[f"{block}post_attention_layernorm.weight"], shapes[f"{block}post_attention_layernorm.bias"]
        if head_norms:
            shapes |= {f"{block}self_attn.q_layernorm.norms.{e}.weight": (HEAD,) for e in range(HEADS)}
            shapes |= {f"{block}self_attn.k_layernorm.norms.{e}.weight": (HEAD,) for e in range(KV_HEADS)}
    return shapes


def starcoder2_like(head: bool) -> dict[str, tuple[int, ...]]:
    shapes = {"model.embed_tokens.weight": (VOCAB, EMBD)} | ({"lm_head.weight": (VOCAB, EMBD)} if head else {})
    for i in range(LAYERS):
        block = f"model.layers.{i}."
        shapes |= dict(attention(block, HEAD, ("q_proj", "k_proj", "v_proj", "o_proj")))
        for name, shape in (
            ("input_layernorm", (EMBD,)),
            ("post_attention_layernorm", (EMBD,)),
            ("mlp.c_fc", (FF, EMBD)),
            ("mlp.c_proj", (EMBD, FF)),
        ):
            shapes |= dict(with_biases(block + name, *shape))
    return shapes | dict(with_biases("model.norm", EMBD))


def sharp_heads(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Norms of heads large enough that it matters where attention goes."""
    drawn = np.random.default_rng(crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    return 2 + drawn / 2 if ".norms." in name else None


STABLELM = config(
    "StableLmForCausalLM", "stablelm", rms_norm_eps=None, layer_norm_eps=1e-5, rope_theta=10000.0,
    partial_rotary_factor=0.25, use_qkv_bias=False, qk_layernorm=False, use_parallel_residual=False,
)  # fmt: skip
EPOCH = config(
    "StableLMEpochForCausalLM", "stablelm_epoch", rms_norm_eps=None, norm_eps=1e-5, rope_theta=10000, rope_pct=0.5,
)  # fmt: skip
STARCODER2 = config(
    "Starcoder2ForCausalLM", "starcoder2", rms_norm_eps=None, norm_epsilon=1e-5, hidden_act="gelu_pytorch_tanh",
    rope_theta=999999.4420358813, sliding_window=256, use_bias=True, mlp_type="default", norm_type="layer_norm",
)  # fmt: skip

CASES = (
    Tiny("stablelm", STABLELM | {"use_qkv_bias": True}, stablelm_like(bias=True)),
    Tiny("stablelm-parallel", STABLELM | {"use_parallel_residual": True, "rope_theta": 1000.0},
         stablelm_like(side_by_side=True)),
    # the converter collects the norms of heads and then forgets to write them, which it notices: "Unprocessed norms"
    Tiny("stablelm-12b", STABLELM | {"use_parallel_residual": True, "qk_layernorm": True},
         stablelm_like(side_by_side=True, head_norms=True), converts=False, special=sharp_heads),
    # transformers no longer knows the model type: the same network as above, but nothing runs it to compare
    Tiny("stablelm-epoch", EPOCH, stablelm_like(), loads=False, proof="loads"),
    Tiny("starcoder2", STARCODER2 | {"tie_word_embeddings": True}, starcoder2_like(head=False),
         mistakes=("rope", "norm")),
    Tiny("starcoder2-untied", STARCODER2, starcoder2_like(head=True), mistakes=("rope", "norm")),
)  # fmt: skip
