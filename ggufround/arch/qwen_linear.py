"""Qwen3-Next and Qwen 3.5: three blocks of linear attention (gated delta rule) for each with full attention.

Full attention is gated: its query matrix holds, head by head, a query and a gate. Norms are stored less 1. The head
that predicts a further token (`mtp.*`) is one more block of full attention, which llama.cpp drafts with.

Sources: `Qwen3NextModel`, `_QwenMtpMixin` and `_LinearAttentionVReorderBase` in conversion/qwen.py for names, values
and metadata; src/models/qwen3next.cpp and qwen35*.cpp for what llama.cpp reads.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ggufround.arch import rope
from ggufround.arch.checks import activation, fixed
from ggufround.arch.config import N_FF, head_dim, integer, n_layer, n_q, optional_number, wrong
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD
from ggufround.arch.metadata import COMMON, count, count_if_stated, inserted, replaced
from ggufround.arch.qwen import EXPERTS, HEAD_NORMS, STACKED
from ggufround.arch.spec import F32, KV, Architecture, Config, Drop, Rule, Transform
from ggufround.arch.transforms import decay, decay_logarithm, in_columns, norm_plus_one, take_rows
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, Kind, array, u32

AHEAD = "blocks that predict further tokens"  # in the config: how many the checkpoint holds
I64 = NDArray[np.int64]


def heads_ahead(config: Config, names: Collection[str]) -> Config:
    """How many there are. The tensors tell, since Qwen3-Next's config does not, and since Qwen 3.5's still states them
    after transformers, which drops them, has saved the model."""
    found = {int(match[1]) for name in names if (match := re.match(r"(?:model\.)?mtp\.layers\.(\d+)\.", name))}
    return {AHEAD: max(found) + 1 if found else 0}


def n_block(config: Config) -> int:
    ahead = config.get(AHEAD, 0)
    if ahead > n_layer(config):
        raise wrong("mtp.layers", ahead, "fewer blocks than the model has")
    return n_layer(config) + int(ahead)


def kinds(config: Config) -> list[str]:
    """What attention each layer has."""
    stated = config.get("layer_types")
    if stated is None:
        every = integer(config, "full_attention_interval")
        return ["full_attention" if (i + 1) % every == 0 else "linear_attention" for i in range(n_layer(config))]
    known = isinstance(stated, list) and all(kind in ("full_attention", "linear_attention") for kind in stated)
    if not known or len(stated) != n_layer(config):
        raise wrong("layer_types", stated, f"{n_layer(config)} times full_attention or linear_attention")
    return list(stated)


def is_ahead(config: Config, i: int) -> bool:
    return i >= n_layer(config)


def is_first_ahead(config: Config, i: int) -> bool:
    return i == n_layer(config)


def is_layer(config: Config, i: int) -> bool:
    return i < n_layer(config)


def is_linear(config: Config, i: int) -> bool:
    return i < n_layer(config) and kinds(config)[i] == "linear_attention"


def is_full(config: Config, i: int) -> bool:
    return i < n_layer(config) and kinds(config)[i] == "full_attention"


def recurrent(config: Config) -> Field | None:
    """Where the layers are listed; else the interval tells."""
    if "layer_types" not in config:
        return None
    return array(Kind.BOOL, [is_linear(config, i) for i in range(n_block(config))])


def next_predicted(config: Config) -> Field | None:
    return u32(config[AHEAD]) if config.get(AHEAD) else None


def rotated(config: Config) -> Field:
    share = optional_number(rope.parameters(config), "partial_rotary_factor")
    return u32(int(head_dim(config) * (0.25 if share is None else share)))


def key_heads(config: Config) -> int:
    return integer(config, "linear_num_key_heads")


def value_heads(config: Config) -> int:
    return integer(config, "linear_num_value_heads")


def keys(config: Config) -> int:
    return key_heads(config) * integer(config, "linear_key_head_dim")


def values(config: Config) -> int:
    return value_heads(config) * integer(config, "linear_value_head_dim")


def heads_fit(config: Config) -> None:
    """llama.cpp knows one size of heads, and value heads that share key heads evenly."""
    sizes = [integer(config, f"linear_{name}_head_dim") for name in ("key", "value")]
    if sizes[0] != sizes[1] or value_heads(config) % key_heads(config):
        raise UnsupportedError(
            f"config.json: linear attention has {value_heads(config)} heads of values of {sizes[1]} columns and "
            f"{key_heads(config)} of keys of {sizes[0]}; llama.cpp needs one size and a whole number for each"
        )


SIZES = {
    "2q": lambda config: 2 * n_q(config),
    "2embd": lambda config: 2 * integer(config, "hidden_size"),
    "values": values,
    "qkv": lambda config: 2 * keys(config) + values(config),
    "qkvz": lambda config: 2 * keys(config) + 2 * values(config),
    "ba": lambda config: 2 * value_heads(config),
    "value_heads": value_heads,
    "value_head": lambda config: integer(config, "linear_value_head_dim"),
    "kernel": lambda config: integer(config, "linear_conv_kernel_dim"),
    "shared_ff": lambda config: integer(config, "shared_expert_intermediate_size"),
}

FINAL = (ENDS[0], replace(ENDS[1], via=norm_plus_one), ENDS[2])
NORMS = tuple(
    Rule(f"layers.{{i}}.{source}.weight", f"blk.{{i}}.{to}.weight", "embd", via=norm_plus_one, where=is_layer)
    for source, to in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "post_attention_norm"))
)
FULL = (
    replace(ATTENTION[0], shape="2q embd", where=is_full),
    *(replace(rule, where=is_full) for rule in ATTENTION[1:]),
    *(replace(rule, via=norm_plus_one, where=is_full) for rule in HEAD_NORMS),
)
DENSE = tuple(replace(rule, where=is_layer) for rule in FEED_FORWARD)
SPARSE = tuple(
    replace(rule, where=is_layer)
    for rule in (
        *EXPERTS,
        *STACKED,
        Rule("layers.{i}.mlp.shared_expert_gate.weight", "blk.{i}.ffn_gate_inp_shexp.weight", "1 embd"),
        Rule("layers.{i}.mlp.shared_expert.gate_proj.weight", "blk.{i}.ffn_gate_shexp.weight", "shared_ff embd"),
        Rule("layers.{i}.mlp.shared_expert.up_proj.weight", "blk.{i}.ffn_up_shexp.weight", "shared_ff embd"),
        Rule("layers.{i}.mlp.shared_expert.down_proj.weight", "blk.{i}.ffn_down_shexp.weight", "embd shared_ff"),
    )
)


def ahead(*rules: Rule) -> tuple[Rule, ...]:
    """The rules of the blocks that predict further tokens, which are layers of full attention, and of what is before
    and after them."""
    blocks = (
        replace(rule, source=rule.source.replace("layers.{i}.", "mtp.layers.{m}."), where=is_ahead)
        for rule in rules
        if isinstance(rule.source, str)
    )
    return (
        *blocks,
        Rule("mtp.fc.weight", "blk.{i}.nextn.eh_proj.weight", "embd 2embd", where=is_first_ahead),
        *(
            Rule(f"mtp.{source}.weight", f"blk.{{i}}.nextn.{to}.weight", "embd", norm_plus_one, where=is_first_ahead)
            for source, to in (
                ("pre_fc_norm_embedding", "enorm"),
                ("pre_fc_norm_hidden", "hnorm"),
                ("norm", "shared_head_norm"),
            )
        ),
    )


def linear(name: str, to: str, shape: str, **further: object) -> Rule:
    return Rule(f"layers.{{i}}.linear_attn.{name}", f"blk.{{i}}.{to}", shape, where=is_linear, **further)  # type: ignore[arg-type]


def grouped(config: Config, *parts: int) -> Iterator[tuple[int, int]]:
    """Qwen3-Next's fused matrix holds, key head by key head, a query, a key, the values and as many gates z: the rows
    of these `parts`, each of all heads together."""
    heads, key = key_heads(config), integer(config, "linear_key_head_dim")
    sizes = (key, key, values(config) // heads, values(config) // heads)
    for part in parts:
        for head in range(heads):
            yield head * sum(sizes) + sum(sizes[:part]), sizes[part]


SEPARATE = (
    linear("conv1d.weight", "ssm_conv1d.weight", "qkv 1 kernel", makes="qkv kernel"),
    linear("dt_bias", "ssm_dt.bias", "value_heads"),
    linear("A_log", "ssm_a", "value_heads", via=lambda config: Transform(decay, back=decay_logarithm)),
    linear("norm.weight", "ssm_norm.weight", "value_head"),
    linear("out_proj.weight", "ssm_out.weight", "embd values"),
)
FUSED = (
    linear("in_proj_qkvz.weight", "attn_qkv.weight", "qkvz embd", runs=lambda config: grouped(config, 0, 1, 2)),
    linear("in_proj_qkvz.weight", "attn_gate.weight", "qkvz embd", runs=lambda config: grouped(config, 3)),
    linear("in_proj_ba.weight", "ssm_ba.weight", "ba embd"),
)

LINEAR_KVS = (
    KV("nextn_predict_layers", next_predicted),
    KV("ssm.conv_kernel", count("linear_conv_kernel_dim")),
    KV("ssm.state_size", count("linear_key_head_dim")),
    KV("ssm.group_count", count("linear_num_key_heads")),
    KV("ssm.time_step_rank", count("linear_num_value_heads")),
    KV("ssm.inner_size", lambda config: u32(values(config))),
    KV("attention.recurrent_layers", recurrent),
    KV("full_attention_interval", count("full_attention_interval")),
    KV("rope.dimension_count", rotated),
)
BLOCKS = KV("block_count", lambda config: u32(n_block(config)))
SPARSE_KVS = (
    KV("expert_feed_forward_length", count_if_stated("moe_intermediate_size")),
    KV("expert_shared_feed_forward_length", count_if_stated("shared_expert_intermediate_size")),
)

HYBRID = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}

QWEN3NEXT = Architecture(
    name="qwen3next",
    classes=("Qwen3NextForCausalLM",),
    rules=(*FINAL, *NORMS, *FULL, *FUSED, *SEPARATE, *SPARSE, *ahead(*NORMS, *FULL, *SPARSE)),
    kvs=(*replaced(COMMON, BLOCKS), *SPARSE_KVS, *LINEAR_KVS),
    tokenizers=("bpe",),
    defaults={
        **HYBRID,
        "intermediate_size": 5632,
        "layer_types": kinds,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "norm_topk_prob": True,
    },
    checks=(
        activation("silu", "swish"),
        heads_fit,
        fixed("norm_topk_prob", True),
        fixed("decoder_sparse_step", None, 1),
        fixed("mlp_only_layers", None, []),
    ),
    sizes=SIZES,
    seen=heads_ahead,
    blocks=n_block,
)


def tiled(config: Config, first: int = 0) -> Iterator[tuple[int, int]]:
    """Runs of the rows of value heads, which checkpoints group by key head: llama.cpp has the first value head of every
    key head, then the second of each, and so on. `first` rows before them stay."""
    size = integer(config, "linear_value_head_dim")
    if first:
        yield 0, first
    if value_heads(config) == key_heads(config):
        yield first, values(config)
        return
    for head in tiled_heads(config):
        yield first + int(head) * size, size


def tiled_heads(config: Config) -> I64:
    return np.arange(value_heads(config)).reshape(key_heads(config), -1).T.reshape(-1)


def tiled_columns(config: Config) -> Transform | None:
    if value_heads(config) == key_heads(config):
        return None
    return in_columns(np.arange(values(config)).reshape(value_heads(config), -1)[tiled_heads(config)].reshape(-1))


def tiled_rows(config: Config) -> Transform:
    """For what has a row a head."""
    return Transform(partial(take_rows, order=tiled_heads(config)), value_heads(config))


def tiled_decay(config: Config) -> Transform:
    order = tiled_heads(config)

    def there(rows: F32) -> F32:
        return decay(take_rows(rows, order))

    def back(rows: F32) -> F32:
        return decay_logarithm(take_rows(rows, np.argsort(order)))

    return Transform(there, len(order), back)


TILED = (
    linear("in_proj_qkv.weight", "attn_qkv.weight", "qkv embd", runs=lambda config: tiled(config, 2 * keys(config))),
    linear("in_proj_z.weight", "attn_gate.weight", "values embd", runs=tiled),
    linear("in_proj_b.weight", "ssm_beta.weight", "value_heads embd", via=tiled_rows),
    linear("in_proj_a.weight", "ssm_alpha.weight", "value_heads embd", via=tiled_rows),
    replace(SEPARATE[0], runs=lambda config: tiled(config, 2 * keys(config))),
    replace(SEPARATE[1], via=tiled_rows),
    replace(SEPARATE[2], via=tiled_decay),
    SEPARATE[3],
    replace(SEPARATE[4], via=tiled_columns),
)
VISION = (Drop("*visual.*", "vision: not part of the text model"),)


def sections(config: Config) -> Field:
    """Frequencies for time, height, width and nothing: a text has the same position in all."""
    stated = rope.parameters(config).get("mrope_section", [11, 11, 10])
    if not isinstance(stated, list) or not all(isinstance(size, int) for size in stated) or len(stated) > 4:
        raise wrong("mrope_section", stated, "up to four whole numbers")
    return array(Kind.I32, (stated + [0] * 4)[:4])


# The projections of linear attention lie apart, and value heads in another order; rotation by three coordinates (the
# same for text); a dense feed-forward part. Composite models nest the text config.
QWEN35 = replace(
    QWEN3NEXT,
    name="qwen35",
    classes=("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
    rules=(*FINAL, *NORMS, *FULL, *TILED, *DENSE, *ahead(*NORMS, *FULL, *DENSE)),
    kvs=(*inserted(replaced(COMMON, BLOCKS), "rope.freq_base", KV("rope.dimension_sections", sections)), *LINEAR_KVS),
    defaults={**HYBRID, "intermediate_size": 12288, "num_key_value_heads": 4},
    checks=(activation("silu", "swish"), heads_fit, fixed("attn_output_gate", None, True)),
    drops=VISION,
)

# Experts beside a shared one in place of the dense part.
QWEN35MOE = replace(
    QWEN35,
    name="qwen35moe",
    classes=("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
    rules=(*FINAL, *NORMS, *FULL, *TILED, *SPARSE, *ahead(*NORMS, *FULL, *SPARSE)),
    kvs=(
        *replaced(QWEN35.kvs[: -len(LINEAR_KVS)], KV("feed_forward_length", count_if_stated(*N_FF))),
        *SPARSE_KVS,
        *LINEAR_KVS,
    ),
    defaults={
        **HYBRID,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
    },
)

FAMILY = (QWEN3NEXT, QWEN35, QWEN35MOE)
