"""The first generations of GPT: GPT-2, GPT-BigCode, GPT-NeoX, BLOOM, Falcon, MPT, CodeShell. Layer norms with biases,
queries, keys and values in one matrix, no gate in the feed-forward part.

Sources: conversion/{gpt2,starcoder,gptneox,bloom,falcon,mpt,codeshell}.py for names, values and metadata;
src/models/*.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ggufround.arch import rope
from ggufround.arch.checks import GELU, fixed
from ggufround.arch.config import (
    N_EMBD,
    N_FF,
    N_HEAD,
    integer,
    n_embd,
    n_head,
    n_head_kv,
    n_layer,
    optional_integer,
    wrong,
)
from ggufround.arch.metadata import constant, count, count_if_stated, real, real_if_stated
from ggufround.arch.spec import KV, Architecture, Config, Drop, Rule, with_biases
from ggufround.arch.transforms import query_key_value, transpose
from ggufround.gguf_file import boolean, f32, string, u32

CONTEXT = ("n_positions", "n_ctx")
BLOCKS = KV("block_count", lambda config: u32(n_layer(config)))
WIDTH = KV("embedding_length", count(*N_EMBD))
# The converter always writes four times the embedding; llama.cpp needs what the matrices have.
FEED_FORWARD = KV("feed_forward_length", count(*N_FF))
HEADS = KV("attention.head_count", count(*N_HEAD))
KEYS = KV("attention.head_count_kv", lambda config: u32(n_head_kv(config)))
EPSILON = KV("attention.layer_norm_epsilon", real("layer_norm_epsilon", "layer_norm_eps"))
BASE = KV("rope.freq_base", rope.freq_base_if_other)
HEAD = Rule("lm_head.weight", "output.weight", "vocab embd", optional=True)  # absent: tied to the embedding
MASKS = tuple(Drop(f"*.attn.{name}", "causal mask: computed by llama.cpp") for name in ("bias", "masked_bias"))


def four_times(config: Config) -> int:
    return 4 * n_embd(config)


def key_groups(config: Config) -> int:
    return integer(config, "num_query_groups")


def blocks(*rows: tuple[str, str, str]) -> tuple[Rule, ...]:
    """Rules of (source, destination, shape), without what all of them begin and end with."""
    return tuple(Rule(f"{source}.weight", f"blk.{{i}}.{to}.weight", shape) for source, to, shape in rows)


def grouped(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Queries, keys and values lie head by head."""
    return tuple(replace(rule, runs=query_key_value) if rule.shape == "qkv embd" else rule for rule in rules)


def turned(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Matrices lie [inputs, outputs]."""
    return tuple(
        replace(rule, shape=" ".join(rule.shape.split()[::-1]), via=transpose, makes=rule.shape)
        if " " in rule.shape
        else rule
        for rule in rules
    )


EMBEDDINGS = (
    Rule("wte.weight", "token_embd.weight", "vocab embd"),
    Rule("wpe.weight", "position_embd.weight", "context embd"),
)
LAST_NORM = Rule("ln_f.weight", "output_norm.weight", "embd")
GPT_BLOCKS = blocks(
    ("h.{i}.ln_1", "attn_norm", "embd"),
    ("h.{i}.attn.c_attn", "attn_qkv", "qkv embd"),
    ("h.{i}.attn.c_proj", "attn_output", "embd embd"),
    ("h.{i}.ln_2", "ffn_norm", "embd"),
    ("h.{i}.mlp.c_fc", "ffn_up", "ff embd"),
    ("h.{i}.mlp.c_proj", "ffn_down", "embd ff"),
)

GPT2 = Architecture(
    name="gpt2",
    classes=("GPT2LMHeadModel",),
    rules=(*EMBEDDINGS, HEAD, *with_biases(LAST_NORM, *turned(GPT_BLOCKS))),
    kvs=(BLOCKS, KV("context_length", count(*CONTEXT)), WIDTH, FEED_FORWARD, HEADS, EPSILON),
    tokenizers=("bpe",),
    defaults={"n_positions": 1024, "layer_norm_epsilon": 1e-5, "n_inner": four_times},
    checks=(
        fixed("activation_function", *GELU),
        fixed("scale_attn_weights", None, True),
        fixed("scale_attn_by_inverse_layer_idx", None, False),
        fixed("add_cross_attention", None, False),
    ),
    drops=MASKS,
    prefixes=("transformer.",),
    sizes={"context": lambda config: integer(config, *CONTEXT)},
    untunable="its matrices are stored transposed, so that a row of the file is a column of the checkpoint",
)

# Its matrices lie the usual way round. All heads share one key and value, or each has its own.
BIGCODE = replace(
    GPT2,
    name="starcoder",
    classes=("GPTBigCodeForCausalLM",),
    rules=(*EMBEDDINGS, HEAD, *with_biases(LAST_NORM, *grouped(GPT_BLOCKS))),
    kvs=(KV("context_length", count(*CONTEXT)), WIDTH, FEED_FORWARD, BLOCKS, HEADS, KEYS, EPSILON),
    defaults={
        **GPT2.defaults,
        "num_key_value_heads": lambda config: 1 if config.get("multi_query", True) else n_head(config),
    },
    untunable="",
)

# The same with rotated queries and keys, which lie in one run each.
CODESHELL = replace(
    BIGCODE,
    name="codeshell",
    classes=("CodeShellForCausalLM",),
    rules=(
        replace(EMBEDDINGS[0], optional=True),  # the output matrix serves for both
        replace(HEAD, optional=False),
        *with_biases(LAST_NORM, *GPT_BLOCKS),
    ),
    kvs=(
        *BIGCODE.kvs,
        KV("rope.freq_base", constant(f32(10000.0))),
        KV("rope.scaling.type", constant(string("linear"))),
        KV("rope.scaling.factor", constant(f32(1.0))),
    ),
    defaults={
        "n_positions": 8192,
        "layer_norm_epsilon": 1e-5,
        "n_inner": four_times,
        "num_key_value_heads": key_groups,
    },
    checks=(
        fixed("activation_function", *GELU),
        fixed("scale_attn_weights", None, True),
        fixed("position_embedding_type", None, "rope"),
        fixed("group_query_attention", None, True),
        fixed("rope_scaling", None),
    ),
    untunable="transformers has no code of its own for it",
)

NEOX = Architecture(
    name="gptneox",
    classes=("GPTNeoXForCausalLM",),
    rules=(
        Rule("embed_in.weight", "token_embd.weight", "vocab embd"),
        Rule("embed_out.weight", "output.weight", "vocab embd"),  # llama.cpp reads no tied one
        *with_biases(
            Rule("final_layer_norm.weight", "output_norm.weight", "embd"),
            *grouped(
                blocks(
                    ("layers.{i}.input_layernorm", "attn_norm", "embd"),
                    ("layers.{i}.attention.query_key_value", "attn_qkv", "qkv embd"),
                    ("layers.{i}.attention.dense", "attn_output", "embd embd"),
                    ("layers.{i}.post_attention_layernorm", "ffn_norm", "embd"),
                    ("layers.{i}.mlp.dense_h_to_4h", "ffn_up", "ff embd"),
                    ("layers.{i}.mlp.dense_4h_to_h", "ffn_down", "embd ff"),
                )
            ),
        ),
    ),
    kvs=(
        KV("context_length", count("max_position_embeddings")),
        WIDTH,
        BLOCKS,
        FEED_FORWARD,
        KV("rope.dimension_count", lambda config: u32(rope.rotated(config))),
        HEADS,
        KV("use_parallel_residual", lambda config: boolean(bool(config.get("use_parallel_residual", True)))),
        EPSILON,
        BASE,
    ),
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "rotary_emb_base": 10000.0,
        "partial_rotary_factor": lambda config: config.get("rotary_pct", 0.25),
    },
    checks=(fixed("hidden_act", *GELU),),
    rope_types=("default",),
    prefixes=("gpt_neox.",),
)

# A bias that grows with the distance in place of rotation, and a norm behind the embedding, which is the output matrix
# too. The converter takes the embedding's width for the context where config.json is silent.
BLOOM = Architecture(
    name="bloom",
    classes=("BloomForCausalLM", "BloomModel"),
    rules=(
        Rule("word_embeddings.weight", "token_embd.weight", "vocab embd"),
        HEAD,
        *with_biases(
            Rule("word_embeddings_layernorm.weight", "token_embd_norm.weight", "embd"),
            LAST_NORM,
            *grouped(
                blocks(
                    ("h.{i}.input_layernorm", "attn_norm", "embd"),
                    ("h.{i}.self_attention.query_key_value", "attn_qkv", "qkv embd"),
                    ("h.{i}.self_attention.dense", "attn_output", "embd embd"),
                    ("h.{i}.post_attention_layernorm", "ffn_norm", "embd"),
                    ("h.{i}.mlp.dense_h_to_4h", "ffn_up", "ff embd"),
                    ("h.{i}.mlp.dense_4h_to_h", "ffn_down", "embd ff"),
                )
            ),
        ),
    ),
    kvs=(
        KV("context_length", lambda config: u32(optional_integer(config, "seq_length") or n_embd(config))),
        WIDTH,
        FEED_FORWARD,
        BLOCKS,
        HEADS,
        KEYS,
        EPSILON,
    ),
    tokenizers=("bpe",),
    defaults={"hidden_size": lambda config: config.get("n_embed"), "layer_norm_epsilon": 1e-5, "n_inner": four_times},
    checks=(fixed("apply_residual_connection_post_layernorm", None, False),),
    prefixes=("transformer.",),
)


def key_heads(config: Config) -> int | None:
    """Falcon's: the newer layout states them, the older has one for all or one for each."""
    stated = optional_integer(config, "num_kv_heads", "n_head_kv")
    if config.get("new_decoder_architecture") or "n_head_kv" in config:
        return stated
    return 1 if config.get("multi_query", True) else n_head(config)


# Attention and feed-forward part are side by side; 40B has a norm for each. The converter leaves the context and the
# base of the rotation to llama.cpp, which the 11B model does not fit.
FALCON = Architecture(
    name="falcon",
    classes=("FalconForCausalLM", "RWForCausalLM"),
    rules=(
        Rule("word_embeddings.weight", "token_embd.weight", "vocab embd"),
        HEAD,
        *with_biases(
            LAST_NORM,
            *blocks(("h.{i}.ln_mlp", "attn_norm", "embd"), ("h.{i}.input_layernorm", "attn_norm", "embd")),
        ),
        Rule("h.{i}.ln_attn.weight", "blk.{i}.attn_norm_2.weight", "embd", optional=True, bias=True),
        *grouped(
            blocks(
                ("h.{i}.self_attention.query_key_value", "attn_qkv", "qkv embd"),
                ("h.{i}.self_attention.dense", "attn_output", "embd embd"),
                ("h.{i}.mlp.dense_h_to_4h", "ffn_up", "ff embd"),
                ("h.{i}.mlp.dense_4h_to_h", "ffn_down", "embd ff"),
            )
        ),
    ),
    kvs=(
        KV("context_length", count("max_position_embeddings")),
        KV("tensor_data_layout", constant(string("jploski"))),
        WIDTH,
        FEED_FORWARD,
        BLOCKS,
        HEADS,
        KEYS,
        EPSILON,
        BASE,
    ),
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 2048,
        "layer_norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "intermediate_size": lambda config: config.get("ffn_hidden_size") or four_times(config),
        "num_key_value_heads": key_heads,
    },
    checks=(
        fixed("activation", *GELU),
        fixed("alibi", None, False),
        fixed("parallel_attn", None, True),
    ),
    rope_types=("default",),
    prefixes=("transformer.",),
)


def attention(config: Config) -> Config:
    """MPT's section on attention."""
    stated = config.get("attn_config", {})
    if not isinstance(stated, Mapping):
        raise wrong("attn_config", stated, "an object")
    return {"alibi": True, "alibi_bias_max": 8, **stated}


def plain_attention(config: Config) -> None:
    """llama.cpp reads the norms of queries and keys too, and aborts when it is to compute them."""
    for key, allowed in (
        ("prefix_lm", (None, False)),
        ("softmax_scale", (None,)),
        ("rope", (None, False)),
        ("qk_ln", (None, False)),
    ):
        fixed(key, *allowed)(attention(config))


MPT = Architecture(
    name="mpt",
    classes=("MPTForCausalLM", "MptForCausalLM"),
    rules=(
        EMBEDDINGS[0],
        replace(EMBEDDINGS[1], optional=True),
        HEAD,
        *(
            replace(rule, bias=True)
            for rule in (
                Rule("norm_f.weight", "output_norm.weight", "embd"),
                *blocks(
                    ("blocks.{i}.norm_1", "attn_norm", "embd"),
                    ("blocks.{i}.attn.Wqkv", "attn_qkv", "qkv embd"),
                    ("blocks.{i}.attn.out_proj", "attn_output", "embd embd"),
                    ("blocks.{i}.norm_2", "ffn_norm", "embd"),
                    ("blocks.{i}.ffn.up_proj", "ffn_up", "ff embd"),
                    ("blocks.{i}.ffn.down_proj", "ffn_down", "embd ff"),
                ),
            )
        ),
    ),
    kvs=(
        KV("context_length", count("max_seq_len")),
        WIDTH,
        BLOCKS,
        FEED_FORWARD,
        HEADS,
        KV("attention.head_count_kv", lambda config: count_if_stated("kv_n_heads")(attention(config))),
        KV("attention.layer_norm_epsilon", real("layer_norm_epsilon")),
        KV("attention.clamp_kqv", lambda config: real_if_stated("clip_qkv")(attention(config))),
        KV(
            "attention.max_alibi_bias",
            lambda config: real("alibi_bias_max")(attention(config)) if attention(config)["alibi"] else f32(0.0),
        ),
    ),
    tokenizers=("bpe",),
    defaults={
        "max_seq_len": 2048,
        "hidden_size": lambda config: config.get("d_model"),
        "layer_norm_epsilon": 1e-5,
        "n_inner": lambda config: (optional_integer(config, "expansion_ratio") or 4) * n_embd(config),
        "num_key_value_heads": lambda config: optional_integer(attention(config), "kv_n_heads") or n_head(config),
    },
    checks=(plain_attention, fixed("logit_scale", None)),
    prefixes=("transformer.",),
    sizes={"context": lambda config: integer(config, "max_seq_len")},
)

FAMILY = (GPT2, BIGCODE, CODESHELL, NEOX, BLOOM, FALCON, MPT)
