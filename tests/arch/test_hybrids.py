"""Models that mix kinds of blocks: which architecture they are, what llama.cpp could not follow, how columns move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from arch.test_layout import layout
from ggufround.arch import find_architecture
from ggufround.arch.spec import Output, Piece
from ggufround.arch.transforms import in_columns
from ggufround.carrying import carries
from ggufround.checkpoint.spec import Member, Packing, TensorRef
from ggufround.errors import InputError, UnsupportedError
from ggufround.quants.types import QUANT_TYPES


def test_granite_4_without_mamba_is_the_architecture_that_llama_cpp_runs_it_as() -> None:
    names = {key: find_architecture(tiny_models.CASES[key].config).name for key in ("granitehybrid", "granite4")}
    assert names == {"granitehybrid": "granitehybrid", "granite4": "granite"}
    assert find_architecture(tiny_models.CASES["granite4-sparse"].config).name == "granitemoe"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("mamba_expand", 3, "mamba_expand is 3"),
        ("time_step_limit", [0.1, 0.2], "does not limit time steps"),
        ("layer_types", ["mamba"], "3 times mamba or attention"),
        ("mamba_proj_bias", True, "mamba_proj_bias"),
    ],
)
def test_a_granite_that_llama_cpp_would_run_as_another_is_refused(key: str, value: Any, words: str) -> None:
    with pytest.raises((InputError, UnsupportedError), match=words):
        layout("granitehybrid", {key: value})


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("lfm2moe", "routed_scaling_factor", 2.5, "routed_scaling_factor"),
        ("lfm2moe", "use_expert_bias", False, "use_expert_bias"),
        ("lfm2moe", "layer_types", ["conv", "mamba", "conv"], "3 times full_attention or conv"),
        ("lfm2", "block_ff_dim", 999, "config.json makes it"),
    ],
)
def test_an_lfm2_that_llama_cpp_would_run_as_another_is_refused(name: str, key: str, value: Any, words: str) -> None:
    with pytest.raises((InputError, UnsupportedError), match=words):
        layout(name, {key: value})


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("minimax-m2", "attn_type_list", [1, 0], "attn_type_list"),
        ("minimax-m2", "shared_intermediate_size", 64, "shared_intermediate_size"),
        ("minimax-m2", "scoring_func", "softmax", "scoring_func"),
        ("kimi-linear", "linear_attn_config", {"full_attn_layers": [2], "num_heads": 8}, "runs as many of both"),
        ("kimi-linear", "linear_attn_config", "all", "expected an object"),
        ("kimi-linear", "q_lora_rank", 64, "q_lora_rank"),
        ("kimi-linear", "num_expert_group", 2, "num_expert_group"),
        ("qwen35-text", "attn_output_gate", False, "attn_output_gate"),
    ],
)
def test_what_llama_cpp_has_built_in_may_not_be_stated_otherwise(name: str, key: str, value: Any, words: str) -> None:
    with pytest.raises((InputError, UnsupportedError), match=words):
        layout(name, {key: value})


def test_codes_whose_columns_move_are_not_carried() -> None:
    """Their groups are of other columns in the file."""
    part = Member(TensorRef("part", "I32", (8, 8), Path("x"), 0, 0), "rows")
    packing = Packing("int", 4, 32, part, part, symmetric=True)
    plain = Piece(TensorRef("w", "INT4", (8, 64), Path("x"), 0, 0, packing=packing), 0, 8)
    turned = in_columns(np.roll(np.arange(64), 32))
    moved = replace(plain, via=turned.function, back=turned.back, columns=turned.columns)
    found = [carries(Output("w", (8, 64), (piece,)), QUANT_TYPES["Q4_0"]) for piece in (plain, moved)]
    assert found == [True, False]
