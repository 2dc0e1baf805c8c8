"""Refusals: configs that are valid for transformers but that llama.cpp would run as something else, silently."""

from __future__ import annotations

from collections.abc import Callable

from ggufround.arch.config import (
    find,
    head_dim,
    n_embd,
    n_head,
    n_layer,
    optional_integer,
    optional_number,
    shown,
)
from ggufround.arch.spec import Config
from ggufround.errors import UnsupportedError

# llama.cpp's GELU is the approximation by tanh; the exact one differs by less than a thousandth. For `fixed`.
GELU = (None, "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")


def activation(*allowed: str) -> Callable[[Config], None]:
    """llama.cpp fixes the activation with the architecture; the config must agree where it says."""

    def check(config: Config) -> None:
        key, value = find(config, ("hidden_activation", "hidden_act")) or ("hidden_act", allowed[0])
        if value not in allowed:
            raise UnsupportedError(
                f"config.json: {key} is {shown(value)}; llama.cpp runs this architecture with {' or '.join(allowed)}"
            )

    return check


def no_rope_every_fourth_layer(config: Config) -> None:
    """SmolLM3 and Llama 4: llama.cpp leaves the rotation out of layers 3, 7, 11, ... whatever the config says."""
    every = config.get("no_rope_layer_interval", 4)
    stated = config.get("no_rope_layers") or None  # an empty list says nothing
    rotates = [int((i + 1) % 4 != 0) for i in range(n_layer(config))]
    if (every if stated is None else stated) not in (rotates, 4):
        raise UnsupportedError(
            f"config.json: no_rope_layers is {shown(stated)} with an interval of {shown(every)}; llama.cpp leaves out "
            "the rotation of every fourth layer, no others"
        )


def sliding_pattern(period: int) -> Callable[[Config], None]:
    """llama.cpp gives every `period`-th layer full attention and the others a window (`load_swa_pattern`)."""

    def check(config: Config) -> None:
        stated = config.get("layer_types")
        every = optional_integer(config, "sliding_window_pattern")
        expected = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(n_layer(config))]
        if stated is None and every in (None, 1, period):  # 1: no windows at all
            return
        if stated not in (expected, ["full_attention"] * n_layer(config) if every == 1 else expected):
            raise UnsupportedError(
                f"config.json: layer_types is {shown(stated)} with a sliding_window_pattern of {every}; llama.cpp runs "
                f"this architecture with full attention in every layer number {period}, a window in the others"
            )

    return check


def query_scale(layers_of_27b: int) -> Callable[[Config], None]:
    """Gemma: llama.cpp divides scores by the root of head_dim, and for the 27B model (which it knows by its number of
    layers) by that of the embedding over the heads, whatever query_pre_attn_scalar says."""

    def check(config: Config) -> None:
        stated = optional_number(config, "query_pre_attn_scalar")
        scale = n_embd(config) // n_head(config) if n_layer(config) == layers_of_27b else head_dim(config)
        if stated not in (None, scale):
            raise UnsupportedError(
                f"config.json: query_pre_attn_scalar is {stated:g}; llama.cpp runs this model with {scale}, and the "
                "file cannot say otherwise"
            )

    return check


def fixed(key: str, *allowed: object) -> Callable[[Config], None]:
    """llama.cpp has a value built in that the file cannot change; None allows for its absence."""

    def check(config: Config) -> None:
        if config.get(key) not in allowed:
            values = " or ".join(shown(value) for value in allowed if value is not None) or "nothing"
            raise UnsupportedError(
                f"config.json: {key} is {shown(config.get(key, 'absent'))}; llama.cpp runs this architecture with "
                f"{values}"
            )

    return check


def heads_fill_embedding(config: Config) -> None:
    """llama.cpp expects an output projection as wide as the embedding."""
    if n_head(config) * head_dim(config) != n_embd(config):
        raise UnsupportedError(
            f"config.json: {n_head(config)} heads of {head_dim(config)} columns; llama.cpp runs this architecture only "
            f"where they make up the hidden size, {n_embd(config)}"
        )
