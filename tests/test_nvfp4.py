"""NVFP4 with its global scale: one `.scale` tensor a matrix, one value an expert, and llama.cpp multiplies by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny_models
from ggufround import Options, convert
from ggufround.evaluate.file_check import verify
from ggufround.gguf_read import read_gguf
from ggufround.quants.mixes import Overrides
from llama_cpp import log_probs

PROMPTS = [[5, 40, 77, 130, 9], [60, 61, 62, 63, 64, 65]]


@pytest.fixture(params=["llama", "qwen3moe"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tiny_models.write(tiny_models.CASES[request.param], tmp_path / request.param)


def test_every_matrix_in_nvfp4_has_a_scale_and_no_other_tensor_has(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "x.gguf", type="nvfp4")
    header = read_gguf(tmp_path / "x.gguf")
    matrices = {n: t for n, t in header.tensors.items() if t.type == "NVFP4"}
    assert len(matrices) >= 14
    scales = {n for n in header.tensors if n.endswith(".scale")}
    assert scales == {n.removesuffix(".weight") + ".scale" for n in matrices}
    for name, tensor in matrices.items():
        scale = header.tensors[name.removesuffix(".weight") + ".scale"]
        assert (scale.type, scale.shape) == ("F32", tensor.shape[:1] if len(tensor.shape) == 3 else (1,))
    assert header.metadata["general.file_type"].value == 39


def test_the_global_scale_lowers_the_error_and_rtn_writes_none(model: Path, tmp_path: Path) -> None:
    errors = {}
    for recipe in ("rtn", "opt-rtn"):
        convert(model, tmp_path / "x.gguf", type="nvfp4", recipe=recipe)
        errors[recipe] = {e.name: e.relative for e in verify(tmp_path / "x.gguf", str(model)).errors}
        found = [n for n in read_gguf(tmp_path / "x.gguf").tensors if n.endswith(".scale")]
        assert bool(found) == (recipe != "rtn")
    nvfp4 = [n for n in errors["rtn"] if n.startswith("blk.")]
    assert all(errors["opt-rtn"][n] < errors["rtn"][n] for n in nvfp4)


@pytest.mark.peer
def test_llama_cpp_multiplies_by_the_scale(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    overrides = Overrides(output_tensor_type="F32", token_embedding_type="F32")
    convert(model, tmp_path / "exact.gguf", type="f32")
    convert(model, tmp_path / "x.gguf", options=Options(types=("nvfp4",), overrides=overrides))
    header = read_gguf(tmp_path / "x.gguf")
    raw = bytearray((tmp_path / "x.gguf").read_bytes())
    scale = header.tensors["blk.0.attn_output.scale"]
    raw[scale.offset : scale.offset + 4] = np.float32(0).tobytes()
    (tmp_path / "wrong.gguf").write_bytes(raw)
    exact, stored, wrong = log_probs([tmp_path / f"{n}.gguf" for n in ("exact", "x", "wrong")], PROMPTS, 320)
    moved = np.sqrt(np.mean((stored - exact) ** 2)) / exact.std()
    broken = np.sqrt(np.mean((wrong - exact) ** 2)) / exact.std()
    assert moved < 0.7  # a random mixture of experts routes some tokens elsewhere
    assert broken > 1.2 * moved
