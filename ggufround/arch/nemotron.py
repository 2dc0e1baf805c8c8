"""Nemotron and Minitron: layer norms that are stored less 1, no gate in the feed-forward part, its square ReLU.

Sources: `NemotronModel` in conversion/nemotron.py; src/models/nemotron.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch import rope
from ggufround.arch.checks import activation
from ggufround.arch.config import head_dim, n_head, number, optional_number
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD
from ggufround.arch.metadata import COMMON, count, real, without
from ggufround.arch.spec import KV, Architecture, Config, Rule
from ggufround.arch.transforms import norm_plus_one
from ggufround.gguf_file import Field, f32, string, u32

EPSILON = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")


def layer_norm(source: str, to: str, one_less: bool = True) -> tuple[Rule, Rule]:
    return (
        Rule(f"{source}.weight", f"{to}.weight", "embd", via=norm_plus_one if one_less else None),
        Rule(f"{source}.bias", f"{to}.bias", "embd"),
    )


def scale(config: Config) -> float | None:
    """Of linear scaling: the converter takes it from outside the rope parameters too."""
    return optional_number(config, "factor") or optional_number(rope.parameters(config), "factor")


def scaling_factor(config: Config) -> Field | None:
    return None if (factor := scale(config)) is None else f32(factor)


def rotated(config: Config) -> Field:
    return u32(int(number(rope.parameters(config), "partial_rotary_factor") * head_dim(config)))


NEMOTRON = Architecture(
    name="nemotron",
    classes=("NemotronForCausalLM",),
    rules=(
        ENDS[0],
        replace(ENDS[2], optional=False),  # llama.cpp reads no tied Nemotron
        *layer_norm("norm", "output_norm"),
        *layer_norm("layers.{i}.input_layernorm", "blk.{i}.attn_norm"),
        *layer_norm("layers.{i}.post_attention_layernorm", "blk.{i}.ffn_norm"),
        *ATTENTION[:3],
        *(replace(rule, bias=True) for rule in (ATTENTION[3], *FEED_FORWARD[1:])),
    ),
    kvs=(
        *without(COMMON, "attention.layer_norm_epsilon", "rope.scaling.type", "rope.scaling.factor"),
        KV("vocab_size", count("vocab_size")),
        KV("attention.layer_norm_epsilon", real(*EPSILON)),
        KV("rope.dimension_count", rotated),
        KV("rope.scaling.type", lambda config: string("none" if scale(config) is None else "linear")),
        KV("rope.scaling.factor", scaling_factor),
    ),
    tokenizers=("spm", "bpe"),
    defaults={
        "max_position_embeddings": 4096,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "num_key_value_heads": n_head,
        "head_dim": head_dim,
        "hidden_act": "relu2",
    },
    checks=(activation("relu2"),),
    rope_types=("default", "linear"),
)

FAMILY = (NEMOTRON,)
