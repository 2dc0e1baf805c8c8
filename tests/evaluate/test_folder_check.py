"""ggufround verify of checkpoint folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from ggufround.checkpoint import open_checkpoint


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return tiny_models.written(folder, "wide")


def made(run: Any, model: Path, out: Path, scheme: str = "W4A16", form: str = "auto_round") -> Path:
    assert run("convert", model, out, "--format", form, "--scheme", scheme, "--recipe", "rtn").code == 0
    return out


@pytest.mark.parametrize(
    ("form", "scheme", "most"),
    [("auto_round", "W8A16", 0.02), ("llm_compressor", "MXFP4", 0.3), ("mlx", "W4A16G64", 0.3),
     ("auto_round", "FP8_BLOCK", 0.06)],
)  # fmt: skip
def test_every_tensor_is_near_its_source(
    run: Any, model: Path, tmp_path: Path, form: str, scheme: str, most: float
) -> None:
    done = run("verify", made(run, model, tmp_path / "out", scheme, form), "--source", model, "--json")
    assert done.code == 0
    found = done.json
    assert found["sound"]
    quantised = [name for name in tiny_models.ALL["wide"].shapes if "_proj" in name]
    assert sorted(error["name"] for error in found["errors"]) == sorted(quantised)
    assert all(0 < error["relative"] < most for error in found["errors"])


def test_a_value_that_is_not_finite_is_found(run: Any, model: Path, tmp_path: Path) -> None:
    out = made(run, model, tmp_path / "out")
    ref = open_checkpoint(str(out)).tensors["model.norm.weight"]
    with ref.path.open("r+b") as file:
        file.seek(ref.offset)
        file.write(np.array([0x7FC0], "<u2").tobytes())  # a bfloat16 NaN
    done = run("verify", out)
    assert done.code == 1
    assert "model.norm.weight holds NaN or infinity" in done.err


def test_another_model_is_refused(run: Any, model: Path, llama: Path, tmp_path: Path) -> None:
    done = run("verify", made(run, model, tmp_path / "out"), "--source", llama)
    assert done.code == 2
    assert "model.embed_tokens.weight is [320, 256]" in done.err
