"""What sentence-transformers says beside a model: poolings and dense layers that llama.cpp has not are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import tiny_models
from ggufround.arch import find_architecture, metadata, outputs
from ggufround.checkpoint import open_checkpoint
from ggufround.errors import InputError, UnsupportedError


def written(name: str, folder: Path, **files: object) -> Path:
    """The case with the configs of some modules replaced: `pooling`, `dense`."""
    case = tiny_models.CASES[name]
    places = {"pooling": "1_Pooling/config.json", "dense": "2_Dense/config.json"}
    changed = {places[key]: json.dumps(value) for key, value in files.items()}
    return tiny_models.write(replace(case, files={**case.files, **changed}), folder)


def keys(path: Path) -> dict[str, object]:
    found = open_checkpoint(path)
    return {key: field.value for key, field in metadata(find_architecture(found.config), found).items()}


@pytest.mark.parametrize(
    ("pooling", "number"),
    [
        ({"pooling_mode_mean_tokens": True}, 1),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, 2),
        ({"pooling_mode": "lasttoken"}, 3),
    ],
)
def test_poolings_are_written_by_number(pooling: dict[str, object], number: int, tmp_path: Path) -> None:
    assert keys(written("bert", tmp_path, pooling=pooling))["bert.pooling_type"] == number


@pytest.mark.parametrize("pooling", [{"pooling_mode_max_tokens": True}, {"pooling_mode": "weightedmean"}, {}])
def test_another_pooling_is_refused(pooling: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="llama.cpp knows mean, cls, lasttoken"):
        keys(written("bert", tmp_path, pooling=pooling))


@pytest.mark.parametrize(
    "change", [{"bias": True}, {"activation_function": "torch.nn.modules.activation.Tanh"}], ids=["bias", "tanh"]
)
def test_a_dense_layer_that_is_no_matrix_alone_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    sizes = {"in_features": 128, "out_features": 192}
    found = open_checkpoint(written("gemma-embedding", tmp_path, dense={**sizes, **change}))
    with pytest.raises(UnsupportedError, match="2_Dense: a dense layer"):
        outputs(find_architecture(found.config), found)


def test_a_dense_layer_of_another_size_than_it_says_is_refused(tmp_path: Path) -> None:
    sizes = {"in_features": 128, "out_features": 64}
    found = open_checkpoint(written("gemma-embedding", tmp_path, dense=sizes))
    with pytest.raises(InputError, match=r"2_Dense\.linear\.weight has shape \[192, 128\]"):
        outputs(find_architecture(found.config), found)


def test_a_dense_layer_that_llama_cpp_does_not_run_is_left_out_and_told(tmp_path: Path) -> None:
    case = tiny_models.CASES["bert"]
    dense = tiny_models.CASES["gemma-embedding"]
    files = {**dense.files, "3_Dense/config.json": dense.files["2_Dense/config.json"]}
    shapes = {**case.shapes, "2_Dense.linear.weight": (192, 128), "3_Dense.linear.weight": (128, 192)}
    found = open_checkpoint(tiny_models.write(replace(case, files=files, shapes=shapes), tmp_path))
    made = outputs(find_architecture(found.config), found)
    assert {name for name, _ in made.dropped} >= {"2_Dense.linear.weight", "3_Dense.linear.weight"}


def test_nomics_experts_are_told_from_the_config() -> None:
    config = tiny_models.CASES["nomic-bert-moe"].config
    assert find_architecture(config).name == "nomic-bert-moe"
    assert find_architecture({**config, "moe_every_n_layers": 0}).name == "nomic-bert"
