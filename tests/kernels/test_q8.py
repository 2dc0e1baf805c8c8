"""Q8_0: llama.cpp's bytes, and scales that lose a fifth less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks import assert_same_blocks
from ggufround_kernels import Search
from hard_rows import N, hard_rows
from packed_error import block_errors, importance_of, quantized, unpacked
from reference_simple import DEQUANTIZE, QUANTIZE

SEARCHES: tuple[Search, ...] = ("rtn", "opt-rtn")
each_row = pytest.mark.parametrize("rows", hard_rows())


@each_row
def test_rtn_is_the_twins_bytes(rows: str) -> None:
    x = hard_rows()[rows]
    assert_same_blocks(quantized("Q8_0", x, None, "rtn"), QUANTIZE["Q8_0"](x), 34, rows)


@pytest.mark.peer
@each_row
def test_rtn_is_llama_cpps_bytes(rows: str) -> None:
    libgguf = pytest.importorskip("libgguf")
    x = hard_rows()[rows]
    theirs = libgguf.quantize_rows(x, libgguf.GGMLQuantizationType.Q8_0)
    assert_same_blocks(quantized("Q8_0", x, None, "rtn"), theirs, 34, rows)


def test_rtn_ignores_importance() -> None:
    x = hard_rows()["bell"]
    plain, weighted = quantized("Q8_0", x, None, "rtn"), quantized("Q8_0", x, importance_of(N), "rtn")
    np.testing.assert_array_equal(plain, weighted)


def test_unpack_reads_any_bytes_as_the_twin_does() -> None:
    raw = np.random.default_rng(2).integers(0, 256, (8, N // 32 * 34), np.uint8)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(unpacked("Q8_0", raw), DEQUANTIZE["Q8_0"](raw))


@each_row
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_no_block_is_worse_than_rtns(rows: str, weighted: bool) -> None:
    x, importance = hard_rows()[rows], importance_of(N) if weighted else None
    ours, theirs = (block_errors("Q8_0", x, importance, search) for search in ("opt-rtn", "rtn"))
    assert (ours <= theirs * (1 + 1e-5)).all()


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 30), st.floats(-9, 6))
def test_no_random_block_is_worse_and_rtn_stays_the_twins(seed: int, tails: float, size: float) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_t(tails, (1, 256)) * 10.0**size).clip(-8e6, 8e6).astype(np.float32)
    assert_same_blocks(quantized("Q8_0", x, None, "rtn"), QUANTIZE["Q8_0"](x), 34)
    importance = rng.exponential(1, 256).astype(np.float32)
    for weights_of_errors in (None, importance):
        ours, theirs = (block_errors("Q8_0", x, weights_of_errors, search) for search in ("opt-rtn", "rtn"))
        assert (ours <= theirs * (1 + 1e-5)).all()


@pytest.mark.parametrize(("weighted", "ratio"), [(False, 0.80), (True, 0.70)])
def test_the_better_search_loses_a_fifth_less(weighted: bool, ratio: float) -> None:
    x = (0.02 * np.random.default_rng(7).standard_normal((64, N))).astype(np.float32)
    importance = importance_of(N) if weighted else None
    ours, theirs = (block_errors("Q8_0", x, importance, search).sum() for search in ("opt-rtn", "rtn"))
    assert ours < ratio * theirs


def test_code_minus_128_is_never_written() -> None:
    """Kernels that negate a byte would turn it into itself."""
    for x in hard_rows().values():
        for search in SEARCHES:
            codes = quantized("Q8_0", x, None, search).reshape(-1, 34)[:, 2:].view(np.int8)
            assert codes.min() >= -127


def test_a_scale_beyond_float16_stays_finite_in_the_better_search() -> None:
    x = hard_rows()["largest"]
    assert np.isfinite(unpacked("Q8_0", quantized("Q8_0", x, None, "opt-rtn"))).all()
