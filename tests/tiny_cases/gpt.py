"""Tiny models of the first generations of GPT: layer norms with biases, queries, keys and values in one matrix."""

from __future__ import annotations

from dataclasses import replace
from zlib import crc32

import numpy as np

from tiny_parts import EMBD, HEADS, LAYERS, VOCAB, Shapes, Tiny, config

FF = 4 * EMBD
CONTEXT = 512


def with_biases(name: str, *shape: int, inputs_first: bool = False) -> Shapes:
    """A matrix or norm and its bias; `inputs_first`: [inputs, outputs]."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[-1:] if inputs_first else shape[:1]


def gpt2_like(prefix: str = "transformer.") -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}wte.weight": (VOCAB, EMBD), f"{prefix}wpe.weight": (CONTEXT, EMBD)}
    for i in range(LAYERS):
        block = f"{prefix}h.{i}."
        for name, shape in (
            ("ln_1", (EMBD,)),
            ("attn.c_attn", (EMBD, 3 * EMBD)),
            ("attn.c_proj", (EMBD, EMBD)),
            ("ln_2", (EMBD,)),
            ("mlp.c_fc", (EMBD, FF)),
            ("mlp.c_proj", (FF, EMBD)),
        ):
            shapes |= dict(with_biases(block + name, *shape, inputs_first=True))
    return shapes | dict(with_biases(f"{prefix}ln_f", EMBD))


def values(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Of what has other names than in newer models."""
    part = name.split(".")[-2]
    drawn = np.random.default_rng(crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if not name.endswith(".weight"):
        return None
    if part.startswith(("ln", "norm")):
        return 1 + drawn / 3
    if part in ("wte", "wpe", "word_embeddings", "embed_in"):
        return drawn / 4
    return drawn * (1.5 / EMBD**0.5) if part in ("c_attn", "query_key_value", "Wqkv") else None


def neox_like(prefix: str = "gpt_neox.") -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}embed_in.weight": (VOCAB, EMBD), "embed_out.weight": (VOCAB, EMBD)}
    for i in range(LAYERS):
        for name, shape in (
            ("input_layernorm", (EMBD,)),
            ("attention.query_key_value", (3 * EMBD, EMBD)),
            ("attention.dense", (EMBD, EMBD)),
            ("post_attention_layernorm", (EMBD,)),
            ("mlp.dense_h_to_4h", (FF, EMBD)),
            ("mlp.dense_4h_to_h", (EMBD, FF)),
        ):
            shapes |= dict(with_biases(f"{prefix}layers.{i}.{name}", *shape))
    return shapes | dict(with_biases(f"{prefix}final_layer_norm", EMBD))


def bloom_like(prefix: str = "transformer.") -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}word_embeddings.weight": (VOCAB, EMBD)}
    shapes |= dict(with_biases(f"{prefix}word_embeddings_layernorm", EMBD))
    for i in range(LAYERS):
        for name, shape in (
            ("input_layernorm", (EMBD,)),
            ("self_attention.query_key_value", (3 * EMBD, EMBD)),
            ("self_attention.dense", (EMBD, EMBD)),
            ("post_attention_layernorm", (EMBD,)),
            ("mlp.dense_h_to_4h", (FF, EMBD)),
            ("mlp.dense_4h_to_h", (EMBD, FF)),
        ):
            shapes |= dict(with_biases(f"{prefix}h.{i}.{name}", *shape))
    return shapes | dict(with_biases(f"{prefix}ln_f", EMBD))


def falcon_like(keys: int, *norms: str, head: bool = False) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"transformer.word_embeddings.weight": (VOCAB, EMBD)}
    for i in range(LAYERS):
        block = f"transformer.h.{i}."
        for norm in norms:
            shapes |= dict(with_biases(block + norm, EMBD))
        shapes[f"{block}self_attention.query_key_value.weight"] = (EMBD + 2 * keys * EMBD // HEADS, EMBD)
        shapes[f"{block}self_attention.dense.weight"] = (EMBD, EMBD)
        shapes[f"{block}mlp.dense_h_to_4h.weight"] = (FF, EMBD)
        shapes[f"{block}mlp.dense_4h_to_h.weight"] = (EMBD, FF)
    if head:
        shapes["lm_head.weight"] = (VOCAB, EMBD)
    return shapes | dict(with_biases("transformer.ln_f", EMBD))


GPT2 = config(
    "GPT2LMHeadModel", "gpt2", hidden_size=None, intermediate_size=None, num_hidden_layers=None,
    num_attention_heads=None, num_key_value_heads=None, hidden_act=None, max_position_embeddings=None,
    rms_norm_eps=None, tie_word_embeddings=None, n_embd=EMBD, n_layer=LAYERS, n_head=HEADS, n_ctx=CONTEXT,
    n_positions=CONTEXT, activation_function="gelu_new", layer_norm_epsilon=1e-5,
)  # fmt: skip


def bigcode_like(keys: int, prefix: str = "transformer.", head: bool = False) -> dict[str, tuple[int, ...]]:
    """Also CodeShell's, which has no positions and a head."""
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}wte.weight": (VOCAB, EMBD)}
    shapes |= {"lm_head.weight": (VOCAB, EMBD)} if head else {f"{prefix}wpe.weight": (CONTEXT, EMBD)}
    for i in range(LAYERS):
        for name, shape in (
            ("ln_1", (EMBD,)),
            ("attn.c_attn", (EMBD + 2 * keys * EMBD // HEADS, EMBD)),
            ("attn.c_proj", (EMBD, EMBD)),
            ("ln_2", (EMBD,)),
            ("mlp.c_fc", (FF, EMBD)),
            ("mlp.c_proj", (EMBD, FF)),
        ):
            shapes |= dict(with_biases(f"{prefix}h.{i}.{name}", *shape))
    return shapes | dict(with_biases(f"{prefix}ln_f", EMBD))


def mpt_like(bias: bool = False, positions: bool = False) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (VOCAB, EMBD)}
    if positions:
        shapes["transformer.wpe.weight"] = (CONTEXT, EMBD)
    for i in range(LAYERS):
        for name, shape in (
            ("norm_1", (EMBD,)),
            ("attn.Wqkv", (3 * EMBD, EMBD)),
            ("attn.out_proj", (EMBD, EMBD)),
            ("norm_2", (EMBD,)),
            ("ffn.up_proj", (FF, EMBD)),
            ("ffn.down_proj", (EMBD, FF)),
        ):
            shapes |= dict(with_biases(f"transformer.blocks.{i}.{name}", *shape))
    shapes |= dict(with_biases("transformer.norm_f", EMBD))
    return {name: shape for name, shape in shapes.items() if bias or not name.endswith(".bias")}


OLD = {key: None for key in ("intermediate_size", "num_key_value_heads", "hidden_act", "rms_norm_eps")}
NEOX = config(
    "GPTNeoXForCausalLM", "gpt_neox", intermediate_size=FF, num_key_value_heads=None, hidden_act="gelu",
    rms_norm_eps=None, layer_norm_eps=1e-5, rotary_pct=0.25, rotary_emb_base=10000, use_parallel_residual=True,
)  # fmt: skip
FALCON = config(
    "FalconForCausalLM", "falcon", **OLD, max_position_embeddings=None, tie_word_embeddings=None,
    layer_norm_epsilon=1e-5, alibi=False, bias=False, multi_query=True, new_decoder_architecture=False,
    num_kv_heads=1, parallel_attn=True,
)  # fmt: skip
RW = {key: value for key, value in FALCON.items() if not key.startswith("num_") and key != "new_decoder_architecture"}
RW |= {"architectures": ["RWForCausalLM"], "model_type": "RefinedWebModel", "n_head": HEADS, "n_layer": LAYERS}
FALCON_40B = FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}
BLOOM = config(
    "BloomForCausalLM", "bloom", **OLD, hidden_size=None, num_hidden_layers=None, max_position_embeddings=None,
    tie_word_embeddings=None, n_embed=EMBD, n_layer=LAYERS, layer_norm_epsilon=1e-5, n_inner=None, offset_alibi=100,
    apply_residual_connection_post_layernorm=False,
)  # fmt: skip
BIGCODE = {key: value for key, value in GPT2.items() if key not in ("n_ctx", "activation_function")} | {
    "architectures": ["GPTBigCodeForCausalLM"],
    "model_type": "gpt_bigcode",
    "n_inner": FF,
    "multi_query": True,
    "activation_function": "gelu_pytorch_tanh",
}
CODESHELL = BIGCODE | {
    "architectures": ["CodeShellForCausalLM"],
    "model_type": "codeshell",
    "num_query_groups": 2,
    "group_query_attention": True,
    "position_embedding_type": "rope",
    "rope_scaling": None,
}
ATTENTION = {
    "attn_type": "multihead_attention",
    "alibi": True,
    "alibi_bias_max": 8,
    "clip_qkv": 1.5,
    "qk_ln": False,
    "prefix_lm": False,
    "softmax_scale": None,
}
MPT = config(
    "MPTForCausalLM",
    "mpt",
    **OLD,
    hidden_size=None,
    num_hidden_layers=None,
    num_attention_heads=None,
    max_position_embeddings=None,
    tie_word_embeddings=None,
    d_model=EMBD,
    n_heads=HEADS,
    n_layers=LAYERS,
    expansion_ratio=4,
    max_seq_len=CONTEXT,
    no_bias=True,
    attn_config=ATTENTION,
)

ALL = (
    Tiny("gpt2", GPT2, gpt2_like(), mistakes=("norm",)),
    Tiny("gpt2-untied", GPT2 | {"tie_word_embeddings": False}, gpt2_like() | {"lm_head.weight": (VOCAB, EMBD)},
         mistakes=("norm",)),
    Tiny("gpt2-bare", GPT2, gpt2_like(""), mistakes=("norm",)),
    # as in openai-community/gpt2; the converter stops at the masks: "Can not map tensor"
    Tiny("gpt2-masks", GPT2, gpt2_like("") | {f"h.{i}.attn.bias": (1, 1, CONTEXT, CONTEXT) for i in range(LAYERS)},
         mistakes=("norm",), converts=False),
    Tiny("gptneox", NEOX, neox_like(), mistakes=("rope", "norm")),
    Tiny("gptneox-sequential", NEOX | {"use_parallel_residual": False, "rotary_pct": 1.0, "rotary_emb_base": 1000.0},
         neox_like(), mistakes=("rope", "norm")),
    Tiny("falcon", FALCON, falcon_like(1, "input_layernorm", head=True) , mistakes=("rope", "norm")),
    # as in tiiuae/falcon-7b; transformers' config then says one key head for each query head, and the converter fails
    Tiny("falcon-7b", {key: value for key, value in FALCON.items() if key != "num_kv_heads"},
         falcon_like(1, "input_layernorm"), mistakes=("rope", "norm"), converts=False),
    # the first config's names; transformers no longer knows the model type
    Tiny("falcon-refined-web", RW, falcon_like(1, "input_layernorm"), loads=False, proof="loads"),
    Tiny("falcon-40b", FALCON_40B, falcon_like(2, "ln_attn", "ln_mlp"), mistakes=("rope", "norm")),
    Tiny("falcon-11b", FALCON_40B | {"num_ln_in_parallel_attn": 1, "rope_theta": 5000042.0, "ffn_hidden_size": FF,
                                     "max_position_embeddings": 8192, "tie_word_embeddings": False},
         falcon_like(2, "input_layernorm", head=True), mistakes=("rope", "norm")),
    Tiny("bloom", BLOOM | {"seq_length": 512}, bloom_like(), mistakes=("norm",)),
    Tiny("bloom-bare", BLOOM | {"architectures": ["BloomModel"]}, bloom_like(""),
         mistakes=("norm",)),
    Tiny("starcoder", BIGCODE, bigcode_like(1), mistakes=("norm",)),
    # every head with a key of its own, head by head; the converter states one for all and takes the rows as they are
    Tiny("starcoder-multi-head", BIGCODE | {"multi_query": False}, bigcode_like(HEADS), mistakes=("norm",),
         converts=False),
    # transformers has no code of its own for it
    Tiny("codeshell", CODESHELL, bigcode_like(2, head=True), loads=False, proof="loads"),
    Tiny("mpt", MPT, mpt_like(), mistakes=("norm",)),
    # transformers' code knows neither biases nor learned positions
    Tiny("mpt-biases", MPT | {"no_bias": False, "attn_config": ATTENTION | {"alibi": False, "clip_qkv": None}},
         mpt_like(bias=True, positions=True), loads=False, proof="loads"),
)  # fmt: skip
CASES = tuple(replace(case, special=values) for case in ALL)
