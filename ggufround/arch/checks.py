"""Refusals: configs that are valid for transformers but that llama.cpp would run as something else, silently."""

from __future__ import annotations

from collections.abc import Callable

from ggufround.arch.config import find, n_layer, shown
from ggufround.arch.spec import Config
from ggufround.errors import UnsupportedError


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
    """SmolLM3: src/models/smollm3.cpp leaves the rotation out of layers 3, 7, 11, ... whatever the config says."""
    every = config.get("no_rope_layer_interval", 4)
    stated = config.get("no_rope_layers")
    rotates = [int((i + 1) % 4 != 0) for i in range(n_layer(config))]
    if (every if stated is None else stated) not in (rotates, 4):
        raise UnsupportedError(
            f"config.json: no_rope_layers is {shown(stated)} with an interval of {shown(every)}; llama.cpp leaves out "
            "the rotation of every fourth layer, no others"
        )
    if config.get("use_sliding_window") and config.get("sliding_window") is not None:
        raise UnsupportedError("config.json: use_sliding_window is true; llama.cpp runs smollm3 with full attention")
