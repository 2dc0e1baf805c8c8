"""config.json, read typed: aliases, defaults, and a refusal that names the key.

The aliases are those that llama.cpp's converter accepts (conversion/base.py, `TextModel.set_gguf_parameters`); the
defaults are those of the transformers configuration classes, which the converter reads every config through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

from ggufround.arch.spec import Architecture, Config
from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import InputError, UnsupportedError

# Where a composite model keeps the configuration of its language model.
NESTED = ("text_config", "llm_config", "language_config")

N_LAYER = ("n_layers", "num_hidden_layers", "n_layer", "num_layers")
N_CONTEXT = ("max_position_embeddings", "n_ctx", "n_positions", "max_sequence_length", "model_max_length")
N_EMBD = ("hidden_size", "n_embd", "dim")
N_FF = ("intermediate_size", "n_inner", "hidden_dim")
N_HEAD = ("num_attention_heads", "n_head", "n_heads")
N_HEAD_KV = ("num_key_value_heads", "n_kv_heads")
N_EXPERT = ("num_local_experts", "num_experts", "n_routed_experts")
N_EXPERT_USED = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts")
N_GATING = (
    "score_function",
    "scoring_func",
    "score_func",
    "moe_router_activation",
    "moe_router_activation_func",
    "expert_selection_fn",
)
ROPE_THETA = ("global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base")
ROPE_THETA_LOCAL = (
    "local_rope_theta",
    "rope_local_theta",
    "rope_theta_local",
    "swa_rope_theta",
    "rope_local_base_freq",
)

LAYER = "layer index"  # set in the config that sizes and transforms of a block's rules are given

# llama.cpp's own limits (src/llama-hparams.h); they also bound what a hostile config can make us do.
MAX_LAYERS = 512
MAX_EXPERTS = 1024


def flatten(raw: Config, defaults: Config) -> dict[str, Any]:
    """One level of keys without nulls: the nested text model's over the outer ones, over the defaults.

    A default that is a value stands in for an absent key only, as in transformers (null means "none"); one that is a
    function derives what is absent or null from the rest.
    """
    merged: dict[str, Any] = {}
    for part in (raw, *(raw.get(name) for name in NESTED)):
        if part is not None and not isinstance(part, Mapping):
            raise InputError(f"config.json: expected an object, found {shown(part)}")
        merged |= part or {}
    for key, value in defaults.items():
        if callable(value) and merged.get(key) is None:
            merged[key] = value(merged)
        elif key not in merged:
            merged[key] = value
    return {key: value for key, value in merged.items() if value is not None}


def configuration(arch: Architecture, checkpoint: Checkpoint) -> Config:
    """The checkpoint's config as the architecture's rules and keys are to see it."""
    config = flatten(checkpoint.config, arch.defaults)
    return {**config, **arch.seen(config, checkpoint.tensors.keys())} if arch.seen else config


def shown(value: object) -> str:
    """A value of the config for a message, cut to a line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def find(config: Config, keys: tuple[str, ...]) -> tuple[str, Any] | None:
    """The first of `keys` that the config has, with its value."""
    return next(((key, config[key]) for key in keys if config.get(key) is not None), None)


def wrong(key: str, value: object, expected: str) -> InputError:
    return InputError(f"config.json: {key} is {shown(value)}, expected {expected}")


def optional_integer(config: Config, *keys: str) -> int | None:
    """A whole number from 0 to 2**32 - 1 (what a u32 holds), or None if no key is there."""
    if (found := find(config, keys)) is None:
        return None
    key, value = found
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not 0 <= value < 2**32:
        raise wrong(key, value, "a whole number from 0 to 4294967295")
    return int(value)


def optional_number(config: Config, *keys: str) -> float | None:
    """A finite number, or None if no key is there."""
    if (found := find(config, keys)) is None:
        return None
    key, value = found
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or abs(value) > 3e38:
        raise wrong(key, value, "a finite number")
    return float(value)


def integer(config: Config, *keys: str) -> int:
    """A whole number above 0 that must be there."""
    value = optional_integer(config, *keys)
    if value is None:
        raise InputError(f"config.json has no {' or '.join(keys)}; it is needed to convert this model")
    if value == 0:
        raise wrong(" or ".join(keys), value, "a whole number above 0")
    return value


def number(config: Config, *keys: str) -> float:
    value = optional_number(config, *keys)
    if value is None:
        raise InputError(f"config.json has no {' or '.join(keys)}; it is needed to convert this model")
    return value


def limited(config: Config, limit: int, keys: tuple[str, ...]) -> int:
    value = integer(config, *keys)
    if value > limit:
        raise UnsupportedError(f"config.json: {' or '.join(keys)} is {value}; llama.cpp runs at most {limit}")
    return value


def n_layer(config: Config) -> int:
    return limited(config, MAX_LAYERS, N_LAYER)


def n_expert(config: Config) -> int:
    return limited(config, MAX_EXPERTS, N_EXPERT)


def n_ff(config: Config) -> int:
    return integer(config, *N_FF)


def n_embd(config: Config) -> int:
    return integer(config, *N_EMBD)


def n_head(config: Config) -> int:
    return integer(config, *N_HEAD)


def n_head_kv(config: Config) -> int:
    """Key-value heads; a model that does not say has one for every head."""
    return integer(config, *N_HEAD_KV) if find(config, N_HEAD_KV) else n_head(config)


def head_dim(config: Config) -> int:
    """Columns of a head: stated, or the embedding divided among the heads."""
    if "head_dim" in config:
        return integer(config, "head_dim")
    if n_embd(config) % n_head(config):
        raise InputError(
            f"config.json: a hidden size of {n_embd(config)} does not divide into {n_head(config)} heads; "
            "head_dim is missing"
        )
    return n_embd(config) // n_head(config)


def n_q(config: Config) -> int:
    return n_head(config) * head_dim(config)


def n_kv(config: Config) -> int:
    return n_head_kv(config) * head_dim(config)


# The words that `Rule.shape` is written in.
SIZES: Mapping[str, Callable[[Config], int]] = {
    "vocab": lambda config: integer(config, "vocab_size"),
    "embd": n_embd,
    "ff": n_ff,
    "2ff": lambda config: 2 * n_ff(config),
    "head": head_dim,
    "q": n_q,
    "kv": n_kv,
    "qkv": lambda config: n_q(config) + 2 * n_kv(config),
    "experts": n_expert,
    "expert_ff": lambda config: integer(config, "moe_intermediate_size"),
    "2expert_ff": lambda config: 2 * integer(config, "moe_intermediate_size"),
}


def shape_of(config: Config, words: str, further: Mapping[str, Callable[[Config], int]]) -> tuple[int, ...]:
    """The sizes that `words` ("q embd", also plain numbers) stand for; `further` ones come before `SIZES`."""
    sizes = {**SIZES, **further}
    return tuple(int(word) if word.isdecimal() else sizes[word](config) for word in words.split())
