"""The text part of Mistral Small 3.1 and its successors, and Ministral 3, whose queries grow with the position.

Sources: conversion/mistral3.py for names, values and metadata; src/models/mistral3.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ggufround.arch import rope
from ggufround.arch.checks import fixed
from ggufround.arch.config import optional_number
from ggufround.arch.gemma import VISION
from ggufround.arch.llama import MISTRAL
from ggufround.arch.spec import KV, Config, Reader
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import f32


def of_rope(key: str) -> Reader:
    """A number among Ministral's rope parameters."""

    def read(config: Config) -> Any:
        value = optional_number(rope.full(config), key) if config.get("model_type") == "ministral3" else None
        return None if value is None else f32(value)

    return read


def default_rope(config: Config) -> dict[str, Any] | None:
    """What transformers assumes of Ministral where config.json says nothing."""
    if config.get("model_type") != "ministral3" or config.get("rope_scaling") is not None:
        return None
    return {
        "rope_type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale_all_dim": 1.0,
        "mscale": 1.0,
        "llama_4_scaling_beta": 0.1,
    }


def one_mscale(config: Config) -> None:
    """llama.cpp knows `mscale_all_dim`, takes `mscale` for 1, and leaves no room for a factor of another origin."""
    found = rope.full(config)
    if config.get("model_type") == "ministral3" and (
        rope.rope_type(config) != "yarn"
        or found.get("mscale", 1) != 1
        or (found.get("mscale_all_dim") and found.get("attention_factor"))
    ):
        raise UnsupportedError(
            "config.json: the rope parameters of ministral3 are not of the kind that llama.cpp runs: rope_type yarn, "
            "mscale 1, and no attention_factor"
        )


MISTRAL3 = replace(
    MISTRAL,
    name="mistral3",
    classes=("Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"),
    kvs=(
        *MISTRAL.kvs,
        KV("rope.scaling.yarn_log_multiplier", of_rope("mscale_all_dim")),
        KV("attention.temperature_scale", of_rope("llama_4_scaling_beta")),
    ),
    defaults={**MISTRAL.defaults, "rope_parameters": default_rope},
    checks=(
        *MISTRAL.checks,
        fixed("model_type", None, "mistral3", "mistral", "ministral3"),  # mistral4 is a relative of DeepSeek's
        one_mscale,
    ),
    drops=VISION,
)

FAMILY = (MISTRAL3,)
