"""DeepSeek V1, V2 and V3, with what shares their tensors: Kimi K2, Moonlight, GigaChat 3, Kanana 2.

From V2 on, keys and values are made of a latent vector (MLA). llama.cpp multiplies queries into that space, so the
matrix that makes keys is stored for each head turned round, the one that makes values as it is.

Sources: conversion/deepseek.py for names, values and metadata; src/models/deepseek{,2}.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ggufround.arch import rope
from ggufround.arch.checks import activation, fixed
from ggufround.arch.config import (
    N_FF,
    head_dim,
    integer,
    n_head,
    n_head_kv,
    n_layer,
    number,
    optional_integer,
    shown,
    wrong,
)
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD, INTERLEAVED, NORMS
from ggufround.arch.metadata import (
    COMMON,
    constant,
    count,
    real,
    real_if_stated,
    replaced,
    without,
)
from ggufround.arch.qwen import EXPERTS, HEAD_NORMS, STACKED
from ggufround.arch.spec import KV, Architecture, Config, Drop, Rule
from ggufround.arch.transforms import transpose
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, boolean, f32, string, u32

LITE = (26, 27)  # numbers of layers for which llama.cpp reads no query latent; also 48 with Kanana's vocabulary


def stated(key: str) -> Callable[[Config], int]:
    return lambda config: integer(config, key)


def leading(config: Config) -> int:
    """The first blocks, which have a plain feed-forward part."""
    return optional_integer(config, "first_k_dense_replace") or 0


def dense(config: Config, i: int) -> bool:
    return i < leading(config)


def sparse(config: Config, i: int) -> bool:
    return i >= leading(config)


def shared_ff(config: Config) -> int:
    """Rows of the expert for all tokens: several of them are one of several times the size."""
    return integer(config, "n_shared_experts") * integer(config, "moe_intermediate_size")


DENSE = tuple(replace(rule, where=dense) for rule in FEED_FORWARD)
ROUTED = tuple(replace(rule, where=sparse) for rule in (*EXPERTS, *STACKED))
SHARED = tuple(
    Rule(
        f"layers.{{i}}.mlp.shared_experts.{name}_proj.weight", f"blk.{{i}}.ffn_{name}_shexp.weight", shape, where=sparse
    )
    for name, shape in (("gate", "shared_ff embd"), ("up", "shared_ff embd"), ("down", "embd shared_ff"))
)
# What is added to scores when experts are chosen, but not to their shares.
SELECTION = Rule("layers.{i}.mlp.gate.e_score_correction_bias", "blk.{i}.exp_probs_b.bias", "experts", where=sparse)
ROUTING = (
    fixed("moe_layer_freq", None, 1),
    activation("silu", "swish"),
)


# --- V1 ---

# The same attention as Llama.
DEEPSEEK = Architecture(
    name="deepseek",
    classes=("DeepseekForCausalLM",),
    rules=(*ENDS, *NORMS, *INTERLEAVED, *DENSE, *ROUTED, *SHARED),
    kvs=(
        *without(COMMON, "rope.scaling.type"),
        KV("rope.dimension_count", lambda config: u32(head_dim(config))),
        KV("rope.scaling.type", constant(string("none"))),
        KV("leading_dense_block_count", lambda config: u32(leading(config))),
        KV("vocab_size", count("vocab_size")),
        KV("expert_feed_forward_length", count("moe_intermediate_size")),
        KV("expert_weights_scale", constant(f32(1.0))),
        KV("expert_shared_count", count("n_shared_experts")),
    ),
    tokenizers=("spm", "bpe"),
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "num_key_value_heads": n_head,
        "first_k_dense_replace": 0,
    },
    checks=(*ROUTING, fixed("norm_topk_prob", None, False), fixed("scoring_func", None, "softmax")),
    rope_types=("default",),
    sizes={"shared_ff": shared_ff},
    untunable="transformers has no code of its own for it",
)


# --- V2 ---


def has_latent(config: Config, i: int) -> bool:
    return config.get("q_lora_rank") is not None


def has_none(config: Config, i: int) -> bool:
    return not has_latent(config, i)


def key_rows(config: Config) -> Iterator[tuple[int, int]]:
    """Of each head's rows the first, which make keys."""
    nope, value = integer(config, "qk_nope_head_dim"), integer(config, "v_head_dim")
    return ((head * (nope + value), nope) for head in range(n_head(config)))


def value_rows(config: Config) -> Iterator[tuple[int, int]]:
    nope, value = integer(config, "qk_nope_head_dim"), integer(config, "v_head_dim")
    return ((head * (nope + value) + nope, value) for head in range(n_head(config)))


LATENT = (
    Rule("layers.{i}.self_attn.q_proj.weight", "blk.{i}.attn_q.weight", "qk embd", where=has_none),
    Rule("layers.{i}.self_attn.q_a_proj.weight", "blk.{i}.attn_q_a.weight", "q_lora embd", where=has_latent),
    Rule("layers.{i}.self_attn.q_a_layernorm.weight", "blk.{i}.attn_q_a_norm.weight", "q_lora", where=has_latent),
    Rule("layers.{i}.self_attn.q_b_proj.weight", "blk.{i}.attn_q_b.weight", "qk q_lora", where=has_latent),
    Rule("layers.{i}.self_attn.kv_a_proj_with_mqa.weight", "blk.{i}.attn_kv_a_mqa.weight", "kv_a embd"),
    Rule("layers.{i}.self_attn.kv_a_layernorm.weight", "blk.{i}.attn_kv_a_norm.weight", "kv_lora"),
    Rule(
        "layers.{i}.self_attn.kv_b_proj.weight",
        "blk.{i}.attn_k_b.weight",
        "kv_b kv_lora",
        via=transpose,
        runs=key_rows,
        makes="heads kv_lora nope",
    ),
    Rule(
        "layers.{i}.self_attn.kv_b_proj.weight",
        "blk.{i}.attn_v_b.weight",
        "kv_b kv_lora",
        runs=value_rows,
        makes="heads v_head kv_lora",
    ),
    Rule("layers.{i}.self_attn.o_proj.weight", "blk.{i}.attn_output.weight", "embd o"),
)
LATENT_SIZES: dict[str, Callable[[Config], int]] = {
    "heads": n_head,
    "nope": stated("qk_nope_head_dim"),
    "v_head": stated("v_head_dim"),
    "q_lora": stated("q_lora_rank"),
    "kv_lora": stated("kv_lora_rank"),
    "qk": lambda config: n_head(config) * key_length(config),
    "kv_a": lambda config: integer(config, "kv_lora_rank") + integer(config, "qk_rope_head_dim"),
    "kv_b": lambda config: n_head(config) * (integer(config, "qk_nope_head_dim") + integer(config, "v_head_dim")),
    "o": lambda config: n_head(config) * integer(config, "v_head_dim"),
    "shared_ff": shared_ff,
}


def key_length(config: Config) -> int:
    return integer(config, "qk_nope_head_dim") + integer(config, "qk_rope_head_dim")


def is_lite(config: Config) -> bool:
    return n_layer(config) in LITE or (n_layer(config) == 48 and integer(config, "vocab_size") == 128256)


def query_latent(config: Config) -> Field | None:
    """The converter writes none where there is none, but llama.cpp then loads models of certain sizes only. 0 tells it
    the same for all."""
    rank = optional_integer(config, "q_lora_rank")
    return None if rank is None and is_lite(config) else u32(rank or 0)


def query_latent_is_read(config: Config) -> None:
    if is_lite(config) and config.get("q_lora_rank") is not None:
        raise UnsupportedError(
            f"config.json: q_lora_rank is {shown(config['q_lora_rank'])} with {n_layer(config)} layers; llama.cpp "
            "reads models of so many layers without it"
        )


def yarn_scales_scores_alone(config: Config) -> None:
    """llama.cpp multiplies scores by the square of what mscale_all_dim makes, and takes mscale to be the same: then
    rotated columns keep their length. With another mscale, or none, it computes something else than transformers."""
    section = rope.full(config)
    if rope.rope_type(config) == "yarn" and (section.get("mscale_all_dim") or None) != section.get("mscale", 0):
        raise UnsupportedError(
            f"config.json: mscale is {shown(section.get('mscale'))} and mscale_all_dim is "
            f"{shown(section.get('mscale_all_dim'))}; llama.cpp needs both, and equal, for this architecture's YaRN"
        )


def yarn_log_multiplier(config: Config) -> Field | None:
    section = rope.full(config)
    return f32(0.1 * number(section, "mscale_all_dim")) if section.get("mscale_all_dim") is not None else None


def if_true(key: str) -> Callable[[Config], Field | None]:
    return lambda config: boolean(True) if config.get(key) else None


# Experts are chosen group by group (n_group, topk_group) in the largest model only. llama.cpp ranks groups by the sum
# of their two best scores as V3 does, V2 by the best one alone: there the last of the chosen experts may be others.
DEEPSEEK2 = replace(
    DEEPSEEK,
    name="deepseek2",
    classes=("DeepseekV2ForCausalLM",),
    rules=(*ENDS, *NORMS, *LATENT, *DENSE, *ROUTED, *SHARED),
    kvs=(
        *replaced(
            without(COMMON, "rope.scaling.attn_factor"),
            KV("attention.head_count_kv", constant(u32(1))),  # in the latent space all heads share one
            KV("attention.key_length", lambda config: u32(LATENT_SIZES["kv_a"](config))),
            KV("attention.value_length", count("kv_lora_rank")),
        ),
        KV("leading_dense_block_count", lambda config: u32(leading(config))),
        KV("vocab_size", count("vocab_size")),
        KV("attention.q_lora_rank", query_latent),
        KV("attention.kv_lora_rank", count("kv_lora_rank")),
        KV("attention.key_length_mla", lambda config: u32(key_length(config))),
        KV("attention.value_length_mla", count("v_head_dim")),
        KV("expert_feed_forward_length", count("moe_intermediate_size")),
        KV("expert_shared_count", count("n_shared_experts")),
        KV("expert_weights_scale", real_if_stated("routed_scaling_factor")),
        KV("expert_weights_norm", if_true("norm_topk_prob")),
        KV("rope.dimension_count", count("qk_rope_head_dim")),
        KV("rope.scaling.yarn_log_multiplier", yarn_log_multiplier),
    ),
    tokenizers=("bpe",),
    defaults={
        **DEEPSEEK.defaults,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "routed_scaling_factor": 1.0,
        "moe_intermediate_size": 1407,
    },
    checks=(
        *ROUTING,
        query_latent_is_read,
        yarn_scales_scores_alone,
        fixed("norm_topk_prob", None, False),
        fixed("scoring_func", None, "softmax"),
    ),
    rope_types=("default", "yarn"),
    sizes=LATENT_SIZES,
    untunable="",
)

# Routers that score with a sigmoid and choose with a bias, and blocks past the last that predict a token further.
DEEPSEEK3 = replace(
    DEEPSEEK2,
    classes=("DeepseekV3ForCausalLM",),
    rules=(*DEEPSEEK2.rules, SELECTION),
    tokenizers=("bpe", "kimi"),
    defaults={
        **DEEPSEEK2.defaults,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 128,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "first_k_dense_replace": 3,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "moe_intermediate_size": 2048,
        "scoring_func": "sigmoid",  # what transformers computes; llama.cpp takes softmax where the file does not say
    },
    checks=(
        *ROUTING,
        query_latent_is_read,
        yarn_scales_scores_alone,
        fixed("scoring_func", "sigmoid"),
        fixed("rope_interleave", None, True),
    ),
    beyond="predicts further tokens: llama.cpp has no use for it in this architecture",
    drops=tuple(
        Drop(f"*{name}.*", "vision: not part of the text model")
        for name in ("vision_tower", "multi_modal_projector", "mm_projector")
    ),
)

# The text part of a composite model; where that names its own class, it is V3.
KIMI_VL = replace(
    DEEPSEEK3,
    classes=("KimiVLForConditionalGeneration", "KimiK25ForConditionalGeneration"),
    untunable="transformers has no code of its own for the composite model",
)

# No experts. llama.cpp wants their keys all the same.
YOUTU = replace(
    DEEPSEEK3,
    classes=("YoutuForCausalLM",),
    rules=(*ENDS, *NORMS, *LATENT, *FEED_FORWARD),
    tokenizers=("bpe",),
    kvs=tuple(
        {
            "leading_dense_block_count": KV("leading_dense_block_count", lambda config: u32(n_layer(config))),
            "expert_feed_forward_length": KV("expert_feed_forward_length", count(*N_FF)),
            "expert_shared_count": KV("expert_shared_count", constant(u32(0))),
        }.get(kv.key, kv)
        for kv in DEEPSEEK2.kvs
    ),
    defaults={
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "num_key_value_heads": 16,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    },
    checks=(
        activation("silu", "swish"),
        query_latent_is_read,
        yarn_scales_scores_alone,
        fixed("n_routed_experts", None),
        fixed("rope_interleave", None, True),
    ),
    beyond="",
)


def one_key_a_head(config: Config) -> None:
    if n_head_kv(config) != n_head(config):
        raise wrong("num_key_value_heads", n_head_kv(config), f"{n_head(config)}, one for each head")


# V3's router over plain attention, with queries and keys normalised head by head.
DOTS1 = Architecture(
    name="dots1",
    classes=("Dots1ForCausalLM",),
    rules=(
        *ENDS[:2],
        replace(ENDS[2], optional=False),
        *NORMS,
        *ATTENTION,
        *HEAD_NORMS,
        *DENSE,
        *ROUTED,
        SELECTION,
        *SHARED,
    ),
    kvs=(
        *replaced(COMMON, KV("expert_gating_func", constant(u32(2)))),
        KV("expert_feed_forward_length", count("moe_intermediate_size")),
        KV("leading_dense_block_count", lambda config: u32(leading(config))),
        KV("expert_shared_count", count("n_shared_experts")),
        KV("expert_weights_scale", real("routed_scaling_factor")),
        KV("expert_weights_norm", lambda config: boolean(bool(config["norm_topk_prob"]))),
    ),
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "num_key_value_heads": n_head,
        "moe_intermediate_size": 1408,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
    },
    checks=(*ROUTING, one_key_a_head, fixed("scoring_func", None, "sigmoid", "noaux_tc")),
    sizes={"shared_ff": shared_ff},
)

FAMILY = (DEEPSEEK, DEEPSEEK2, DEEPSEEK3, KIMI_VL, YOUTU, DOTS1)
