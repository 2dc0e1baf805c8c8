"""A model of an unknown class is told what its headers resemble, and converted only if --arch says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

import tiny_models
from ggufround.arch import architecture_of
from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.errors import InputError, UnsupportedError


def renamed(case: str, *left_out: str, extra: Mapping[str, tuple[int, ...]] | None = None, **config: Any) -> Checkpoint:
    """A tiny case's headers under a class that nobody knows, with tensors and keys of the config changed."""
    shapes = {**tiny_models.CASES[case].shapes, **(extra or {})}
    file = Path("model.safetensors")
    tensors = {
        name: TensorRef(name, "BF16", shape, file, 0, 2 * int(np.prod(shape)))
        for name, shape in shapes.items()
        if name not in left_out
    }
    changed = {**tiny_models.CASES[case].config, "architectures": ["TotallyNewForCausalLM"], **config}
    return Checkpoint("tiny", Path("tiny"), tensors, changed)


def message(checkpoint: Checkpoint) -> str:
    with pytest.raises(InputError) as caught:
        architecture_of(checkpoint)
    return str(caught.value)


def test_a_renamed_llama_is_offered_as_llama_first() -> None:
    text = message(renamed("llama"))
    assert "'TotallyNewForCausalLM' is not known" in text
    assert "its tensors and its config fit llama, " in text
    assert "convert it with --arch llama" in text
    assert "gemma2" not in text


def test_a_class_is_offered_where_the_gguf_name_means_another() -> None:
    assert "fit MixtralForCausalLM: if it computes the same as that, convert it with --arch MixtralForCausalLM" in (
        message(renamed("mixtral"))
    )


def test_what_the_model_calls_itself_comes_first() -> None:
    assert "fit granite, llama, " in message(renamed("granite"))


def test_what_is_offered_is_accepted() -> None:
    assert architecture_of(renamed("mixtral"), "MixtralForCausalLM").classes == ("MixtralForCausalLM",)
    assert architecture_of(renamed("llama"), "llama").name == "llama"


def test_a_model_without_architectures_is_told_what_it_resembles() -> None:
    text = message(renamed("gemma3", architectures=None))
    assert "no `architectures`" in text
    assert "--arch gemma3" in text


def test_of_a_tensor_more_than_any_has_one_a_kind_is_named() -> None:
    extra = {f"model.layers.{i}.adapter.weight": (8, 8) for i in range(2)}
    text = message(renamed("qwen3", extra=extra))
    assert "the nearest is qwen3, which has no place for model.layers.0.adapter.weight" in text
    assert "layers.1.adapter" not in text
    assert "convert it with" not in text


def test_a_tensor_that_is_missing_is_named() -> None:
    left_out = [f"model.layers.{i}.mlp.gate_proj.weight" for i in range(2)]
    text = message(renamed("olmo2", *left_out))
    assert "the nearest is olmo2, which needs layers.*.mlp.gate_proj.weight (names without their prefix)" in text


def test_a_config_that_contradicts_the_tensors_is_told_of() -> None:
    text = message(renamed("gemma2", hidden_act="relu", hidden_activation="relu"))
    assert "the nearest is gemma2, but config.json: hidden_activation is 'relu'" in text


def test_nothing_is_offered_to_what_resembles_nothing() -> None:
    checkpoint = renamed("llama", *tiny_models.CASES["llama"].shapes, extra={"conv1.weight": (64, 3, 7, 7)})
    assert "nearest" not in message(checkpoint)


def test_code_from_the_hub_is_never_run_and_the_message_says_so() -> None:
    text = message(renamed("llama", auto_map={"AutoModelForCausalLM": "modeling_new.TotallyNewForCausalLM"}))
    assert "(auto_map)" in text
    assert "ggufround never executes code from a model" in text
    assert "auto_map" not in message(renamed("llama"))


def test_a_wrong_override_is_not_second_guessed() -> None:
    with pytest.raises(UnsupportedError, match="'llamma' is not known") as caught:
        architecture_of(renamed("llama"), "llamma")
    assert "its tensors" not in str(caught.value)


def test_a_hundred_thousand_tensors_are_compared_in_a_moment() -> None:
    extra = {f"model.layers.{i}.mlp.experts.{e}.odd_proj.weight": (8, 8) for i in range(100) for e in range(1000)}
    checkpoint = renamed("qwen3moe", extra=extra)
    start = perf_counter()
    text = message(checkpoint)
    assert perf_counter() - start < 5
    assert "the nearest is qwen3moe, which has no place for model.layers.0.mlp.experts.0.odd_proj.weight" in text
