"""Gemma 4 (text): heads of two sizes, layers that borrow keys and values, an embedding a layer, experts.

The model of each size has some of these. Norms are stored as they are.

Sources: `Gemma4Model` in conversion/gemma.py for names, values and metadata; src/models/gemma4.cpp for what is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ggufround.arch import rope
from ggufround.arch.checks import activation, fixed
from ggufround.arch.config import (
    LAYER,
    integer,
    n_head,
    n_head_kv,
    n_layer,
    optional_integer,
    shown,
    wrong,
)
from ggufround.arch.gemma import GEMMA3, PLUS_ONE, VISION
from ggufround.arch.gemma3n import GEMMA3N, matrix
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD
from ggufround.arch.metadata import COMMON, count, count_if_stated, real_if_stated, replaced
from ggufround.arch.qwen import HEAD_NORMS
from ggufround.arch.spec import F32, KV, Config, Output, Rule
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, Kind, array, u32

FULL, SLIDING = rope.FULL, rope.SLIDING
Of = Callable[[Config, int], bool]


def kinds(config: Config) -> list[str]:
    """The attention of each layer; by default every sixth is full, and the last."""
    layers = n_layer(config)
    stated = config.get("layer_types", [SLIDING if (i + 1) % 6 else FULL for i in range(layers)])
    if not isinstance(stated, list) or len(stated) != layers or not set(stated) <= {FULL, SLIDING}:
        raise wrong("layer_types", stated, f"a list of {layers} kinds of attention")
    return [*stated[:-1], FULL]


def of_full(key: str, default: int | None) -> Callable[[Config], int | None]:
    """What layers with full attention have of their own, where newer configs say so layer by layer."""

    def read(config: Config) -> int | None:
        stated = config.get("per_layer_config")
        if stated is None:
            return default
        rows = stated if isinstance(stated, dict) else {}
        full_ones = {str(i) for i, kind in enumerate(kinds(config)) if kind == FULL}
        found = {row.get(key) for number, row in rows.items() if str(number) in full_ones and isinstance(row, dict)}
        if set(map(str, rows)) != full_ones or len(found) != 1:
            raise wrong("per_layer_config", stated, "the same for all layers with full attention, and for no others")
        value: int | None = found.pop()
        return default if value is None else value

    return read


def own(config: Config) -> int:
    """Layers from the first on that have keys and values of their own."""
    return max(0, n_layer(config) - (optional_integer(config, "num_kv_shared_layers") or 0))


def full(config: Config, i: int) -> bool:
    return kinds(config)[i] == FULL


def has_keys(config: Config, i: int) -> bool:
    return i < own(config)


def has_values(config: Config, i: int) -> bool:
    return has_keys(config, i) and not (full(config, i) and bool(config.get("attention_k_eq_v")))


def mixed(config: Config) -> bool:
    return bool(config.get("enable_moe_block"))


def embeds(config: Config) -> bool:
    return bool(optional_integer(config, "hidden_size_per_layer_input"))


def not_(condition: Of) -> Of:
    return lambda config, i: not condition(config, i)


def head(config: Config) -> int:
    return integer(config, "global_head_dim" if full(config, config[LAYER]) else "head_dim")


def heads_kv(config: Config, i: int) -> int:
    stated = optional_integer(config, "num_global_key_value_heads") if apart(config) else None
    return stated if stated and full(config, i) else n_head_kv(config)


def apart(config: Config) -> bool:
    """Whether heads of keys are counted apart in full attention, as transformers tells it."""
    return bool(config.get("attention_k_eq_v") or "per_layer_config" in config)


def width(config: Config, i: int) -> int:
    wide = bool(config.get("use_double_wide_mlp")) and i >= own(config)
    return integer(config, "intermediate_size") * (2 if wide else 1)


def _of_layers(config: Config, each: Callable[[Config, int], int], listed: bool) -> Field:
    """A number of every layer, in a list where the config has them apart."""
    return array(Kind.I32, [each(config, i) for i in range(n_layer(config))]) if listed else u32(each(config, 0))


def widths(config: Config) -> Field:
    return _of_layers(config, width, bool(config.get("use_double_wide_mlp")))


def key_heads(config: Config) -> Field:
    return _of_layers(config, heads_kv, apart(config) and "num_global_key_value_heads" in config)


def proportional(config: Config) -> tuple[Output, ...]:
    """rope_freqs.weight of full attention: columns that are not rotated have a divisor beyond all positions."""
    half = integer(config, "global_head_dim") // 2
    share = rope.full(config).get("partial_rotary_factor", 0.25)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise wrong("partial_rotary_factor", share, "above 0 and at most 1")
    values: F32 = np.full(half, 1e30, np.float32)
    values[: int(integer(config, "global_head_dim") * share / 2)] = 1
    return (Output("rope_freqs.weight", values.shape, values=values, float32=True),)


def as_built_in(config: Config) -> None:
    """llama.cpp lends the keys of the last two layers that have some: to each kind of attention its own."""
    first = own(config)
    if first < n_layer(config) and (first < 2 or kinds(config)[first - 2 : first] != [SLIDING, FULL]):
        raise UnsupportedError(
            f"config.json: num_kv_shared_layers is {shown(config.get('num_kv_shared_layers'))}, but the layers before "
            "are not one with a window and one with full attention, whose keys and values llama.cpp would lend"
        )
    sliding = rope.parameters(config).get(SLIDING)
    if isinstance(sliding, dict) and sliding.get("rope_type", "default") != "default":
        raise UnsupportedError(
            f"config.json: rope_type is {shown(sliding['rope_type'])} for windows; llama.cpp runs them with default"
        )


def _where(rule: Rule, condition: Of) -> tuple[Rule, Rule]:
    """Needed where the condition holds; where it does not, taken if the checkpoint has it, as llama.cpp does."""
    return replace(rule, where=condition), replace(rule, where=not_(condition), optional=True)


def _norm(source: str, to: str) -> Rule:
    return replace(matrix(source, to, "embd"), where=lambda config, i: mixed(config))


PER_LAYER = (
    Rule("embed_tokens_per_layer.weight", "per_layer_token_embd.weight", "vocab per_layers", pad=True),
    *GEMMA3N.rules[2:4],
    matrix("per_layer_input_gate", "inp_gate", "per_layer embd"),
    matrix("per_layer_projection", "proj", "embd per_layer"),
    matrix("post_per_layer_input_norm", "post_norm", "embd"),
)
EXPERTS = (
    matrix("router.proj", "ffn_gate_inp", "experts embd"),
    Rule("layers.{i}.router.scale", "blk.{i}.ffn_gate_inp.scale", "embd"),
    Rule("layers.{i}.router.per_expert_scale", "blk.{i}.ffn_down_exps.scale", "experts"),
    Rule("layers.{i}.experts.gate_up_proj", "blk.{i}.ffn_gate_up_exps.weight", "experts 2expert_ff embd"),
    Rule("layers.{i}.experts.down_proj", "blk.{i}.ffn_down_exps.weight", "experts embd expert_ff"),
)

GEMMA4 = replace(
    GEMMA3,
    name="gemma4",
    classes=("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM"),
    rules=(
        replace(ENDS[0], trim=True),
        ENDS[2],
        *(replace(rule, via=None) for rule in PLUS_ONE),
        ATTENTION[0],
        *_where(ATTENTION[1], has_keys),
        *_where(ATTENTION[2], has_values),
        ATTENTION[3],
        HEAD_NORMS[0],
        *_where(HEAD_NORMS[1], has_keys),
        *FEED_FORWARD,
        Rule("layers.{i}.layer_scalar", "blk.{i}.layer_output_scale.weight", "1", optional=True),
        *(replace(rule, where=lambda config, i: embeds(config)) for rule in PER_LAYER),
        *(replace(rule, where=lambda config, i: mixed(config)) for rule in EXPERTS),
        _norm("post_feedforward_layernorm_1", "post_ffw_norm_1"),
        _norm("pre_feedforward_layernorm_2", "pre_ffw_norm_2"),
        _norm("post_feedforward_layernorm_2", "post_ffw_norm_2"),
    ),
    kvs=(
        *replaced(
            COMMON,
            KV("feed_forward_length", widths),
            KV("attention.head_count_kv", key_heads),
            KV("attention.key_length", count("global_head_dim")),
            KV("attention.value_length", count("global_head_dim")),
        ),
        KV("final_logit_softcapping", real_if_stated("final_logit_softcapping", zero=False)),
        KV("attention.sliding_window", count("sliding_window")),
        KV("attention.shared_kv_layers", lambda config: u32(n_layer(config) - own(config))),
        KV(
            "embedding_length_per_layer_input",
            lambda config: u32(optional_integer(config, "hidden_size_per_layer_input") or 0),
        ),
        KV(
            "attention.sliding_window_pattern",
            lambda config: array(Kind.BOOL, [kind == SLIDING for kind in kinds(config)]),
        ),
        KV("attention.key_length_swa", count("head_dim")),
        KV("attention.value_length_swa", count("head_dim")),
        KV("expert_feed_forward_length", count_if_stated("moe_intermediate_size")),
        KV("rope.dimension_count", count("global_head_dim")),
        KV("rope.dimension_count_swa", count("head_dim")),
    ),
    tokenizers=("gemma4", "gemma"),
    defaults={
        "vocab_size": 262144,
        "hidden_size": 2304,
        "hidden_size_per_layer_input": 256,
        "intermediate_size": 9216,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "global_head_dim": of_full("head_dim", 512),
        "num_global_key_value_heads": of_full("num_key_value_heads", None),
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "sliding_window": 512,
        "num_kv_shared_layers": 0,
        "rope_parameters": {
            SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
            FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
        },
    },
    computed=(proportional,),
    checks=(
        activation("gelu_pytorch_tanh"),
        fixed("use_bidirectional_attention", None, "vision"),
        as_built_in,
    ),
    rope_types=("proportional",),
    drops=(*VISION, *GEMMA3N.drops[len(VISION) :]),
    sizes={
        "head": head,
        "q": lambda config: n_head(config) * head(config),
        "kv": lambda config: heads_kv(config, config[LAYER]) * head(config),
        "ff": lambda config: width(config, config[LAYER]),
        "per_layer": GEMMA3N.sizes["per_layer"],
        "per_layers": GEMMA3N.sizes["per_layers"],
    },
    untunable="its blocks share more than a hidden state",
)

FAMILY = (GEMMA4,)
