"""TQ1_0, TQ2_0, Q2_0, Q1_0: llama.cpp's bytes, and a search that comes close to the least error there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blocks import assert_same_blocks
from ggufround_kernels import CODECS, Search
from hard_rows import N, hard_rows
from packed_error import block_errors, importance_of, quantized, unpacked
from reference_simple import DEQUANTIZE, QUANTIZE

F32 = NDArray[np.float32]
NAMES = ["TQ1_0", "TQ2_0", "Q2_0", "Q1_0"]
each_type = pytest.mark.parametrize("name", NAMES)
each_row = pytest.mark.parametrize("rows", hard_rows())


@each_type
@each_row
def test_rtn_is_the_twins_bytes(name: str, rows: str) -> None:
    x = hard_rows()[rows]
    with np.errstate(over="ignore"):
        assert_same_blocks(quantized(name, x, None, "rtn"), QUANTIZE[name](x), CODECS[name].nbytes, f"{name} {rows}")


@pytest.mark.peer
@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0", "Q1_0"])
@each_row
def test_rtn_is_llama_cpps_bytes(name: str, rows: str) -> None:
    libgguf = pytest.importorskip("libgguf")
    gguf = pytest.importorskip("gguf")
    x = hard_rows()[rows]
    theirs = libgguf.quantize_rows(x, getattr(gguf.GGMLQuantizationType, name))
    assert_same_blocks(quantized(name, x, None, "rtn"), theirs, CODECS[name].nbytes, f"{name} {rows}")


@each_type
def test_rtn_ignores_importance(name: str) -> None:
    x = hard_rows()["bell"]
    plain, weighted = quantized(name, x, None, "rtn"), quantized(name, x, importance_of(N), "rtn")
    np.testing.assert_array_equal(plain, weighted)


@each_type
def test_unpack_reads_any_bytes_as_the_twin_does(name: str) -> None:
    raw = np.random.default_rng(2).integers(0, 256, (8, N // CODECS[name].block * CODECS[name].nbytes), np.uint8)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(unpacked(name, raw), DEQUANTIZE[name](raw))


@each_type
@each_row
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_no_block_is_worse_than_rtns(name: str, rows: str, weighted: bool) -> None:
    x, importance = hard_rows()[rows], importance_of(N) if weighted else None
    ours, theirs = (block_errors(name, x, importance, search) for search in ("opt-rtn", "rtn"))
    assert (ours <= theirs * (1 + 1e-5)).all()


@each_type
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 30), st.floats(-9, 4))
def test_no_random_block_is_worse_and_rtn_stays_the_twins(name: str, seed: int, tails: float, size: float) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_t(tails, (1, 256)) * 10.0**size).clip(-6e4, 6e4).astype(np.float32)
    assert_same_blocks(quantized(name, x, None, "rtn"), QUANTIZE[name](x), CODECS[name].nbytes, name)
    importance = rng.exponential(1, 256).astype(np.float32)
    for given_importance in (None, importance):
        ours, theirs = (block_errors(name, x, given_importance, search) for search in ("opt-rtn", "rtn"))
        assert (ours <= theirs * (1 + 1e-5)).all()


def least_ternary_error(x: F32, w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each block: the best codes are +-1 for the largest magnitudes, how many of them is tried for every number."""
    order = np.argsort(-np.abs(x), axis=1)
    a, w = np.take_along_axis(np.abs(x).astype(np.float64), order, 1), np.take_along_axis(w, order, 1)
    gains = np.cumsum(w * a, axis=1) ** 2 / np.cumsum(w, axis=1)
    return (w * a * a).sum(axis=1) - gains.max(axis=1)


@pytest.mark.parametrize("tails", [3, 5, 50])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_tq_comes_within_a_percent_of_the_least_error(tails: int, weighted: bool) -> None:
    x = (0.02 * np.random.default_rng(tails).standard_t(tails, (32, N))).astype(np.float32)
    blocks = x.reshape(-1, 256)
    w = np.ones(blocks.shape)
    if weighted:
        mean = np.square(blocks.astype(np.float64)).mean(axis=1, keepdims=True)
        w = np.tile(importance_of(N), 32).reshape(-1, 256) * np.sqrt(mean + np.square(blocks.astype(np.float64)))
    errors = block_errors("TQ2_0", x, importance_of(N) if weighted else None, "opt-rtn")
    assert errors.sum() <= 1.01 * least_ternary_error(blocks, w).sum()


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0", "Q2_0"])
@pytest.mark.parametrize("search", ["rtn", "opt-rtn"])
def test_weights_that_are_ternary_come_back_as_they_were(name: str, search: Search) -> None:
    x = (0.375 * np.random.default_rng(4).integers(-1, 2, (4, N))).astype(np.float32)
    np.testing.assert_array_equal(unpacked(name, quantized(name, x, None, search)), x)


def test_q2_0_uses_its_fourth_code_with_either_sign() -> None:
    levels = np.random.default_rng(5).integers(-1, 3, (4, N)).astype(np.float32)
    for d in (0.25, -0.25):
        np.testing.assert_array_equal(unpacked("Q2_0", quantized("Q2_0", levels * d, None, "opt-rtn")), levels * d)


def test_q1_0_without_importance_has_nothing_to_search_for() -> None:
    x = hard_rows()["heavy tails"]
    np.testing.assert_array_equal(quantized("Q1_0", x, None, "opt-rtn"), quantized("Q1_0", x, None, "rtn"))


def test_an_importance_of_zeros_leaves_rtns_q1_0() -> None:
    x, nothing = hard_rows()["bell"], np.zeros(N, np.float32)
    np.testing.assert_array_equal(quantized("Q1_0", x, nothing, "opt-rtn"), quantized("Q1_0", x, None, "rtn"))
