"""MXFP4 and NVFP4: llama.cpp's bytes, and a search that finds the best scales."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blocks import assert_same_blocks
from ggufround_kernels import CODECS, absmax, nvfp4_global_scale
from hard_rows import N, hard_rows
from packed_error import block_errors, importance_of, quantized, unpacked
from reference_simple import DEQUANTIZE, E2M1, QUANTIZE, e8m0, ue4m3

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
GROUP = {"MXFP4": 32, "NVFP4": 16}  # weights that share a scale
each_type = pytest.mark.parametrize("name", list(GROUP))
each_row = pytest.mark.parametrize("rows", hard_rows())
weighted_or_not = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])


@each_type
@each_row
def test_rtn_is_the_twins_bytes(name: str, rows: str) -> None:
    x = hard_rows()[rows]
    assert_same_blocks(quantized(name, x, None, "rtn"), QUANTIZE[name](x), CODECS[name].nbytes, f"{name} {rows}")


@pytest.mark.peer
@each_type
@each_row
def test_rtn_is_llama_cpps_bytes_where_it_accepts_them(name: str, rows: str) -> None:
    libgguf = pytest.importorskip("libgguf")
    gguf = pytest.importorskip("gguf")
    x, nbytes = hard_rows()[rows], CODECS[name].nbytes
    theirs = libgguf.quantize_rows(x, getattr(gguf.GGMLQuantizationType, name)).reshape(-1, nbytes)
    ours = quantized(name, x, None, "rtn").reshape(-1, nbytes)
    refused = theirs[:, 0] == 255 if name == "MXFP4" else np.zeros(len(theirs), bool)  # NaN, from amax < 2^-125
    assert (ours[refused, 0] == 0).all()
    assert_same_blocks(ours[~refused], theirs[~refused], nbytes, f"{name} {rows}")


@each_type
def test_rtn_ignores_importance(name: str) -> None:
    x = hard_rows()["bell"]
    plain, weighted = quantized(name, x, None, "rtn"), quantized(name, x, importance_of(N), "rtn")
    np.testing.assert_array_equal(plain, weighted)


@each_type
def test_unpack_reads_any_bytes_as_the_twin_does(name: str) -> None:
    nbytes = CODECS[name].nbytes
    raw = np.random.default_rng(2).integers(0, 256, (16, N // CODECS[name].block * nbytes), np.uint8)
    scales = raw.reshape(-1, nbytes)[:, : 1 if name == "MXFP4" else 4]
    scales &= 0xFE if name == "MXFP4" else 0x7F  # no NaN to the one, no sign to the other
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(unpacked(name, raw), DEQUANTIZE[name](raw))


@each_type
@each_row
@weighted_or_not
def test_no_group_is_worse_than_rtns(name: str, rows: str, weighted: bool) -> None:
    x, importance = hard_rows()[rows], importance_of(N) if weighted else None
    ours, theirs = (block_errors(name, x, importance, search, GROUP[name]) for search in ("opt-rtn", "rtn"))
    assert (ours <= theirs * (1 + 1e-5)).all()


@each_type
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 30), st.floats(-30, 30))
def test_no_random_group_is_worse_and_rtn_stays_the_twins(name: str, seed: int, tails: float, size: float) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_t(tails, (1, 64)).clip(-1e6, 1e6) * 10.0**size).astype(np.float32)
    assert_same_blocks(quantized(name, x, None, "rtn"), QUANTIZE[name](x), CODECS[name].nbytes, name)
    importance = rng.exponential(1, 64).astype(np.float32)
    for given_importance in (None, importance):
        ours, theirs = (block_errors(name, x, given_importance, s, GROUP[name]) for s in ("opt-rtn", "rtn"))
        assert (ours <= theirs * (1 + 1e-5)).all()


@each_type
@each_row
@pytest.mark.parametrize("search", ["rtn", "opt-rtn"])
def test_no_scale_is_nan_and_every_value_is_finite(name: str, rows: str, search: str) -> None:
    packed = quantized(name, hard_rows()[rows], None, search)
    scales = packed.reshape(-1, CODECS[name].nbytes)[:, : 1 if name == "MXFP4" else 4]
    assert (scales < (255 if name == "MXFP4" else 127)).all()
    assert np.isfinite(unpacked(name, packed)).all()


def least_errors(x: F32, w: F64, scales: F64) -> F64:
    """Of each group [groups, n]: the least error over all scales, [scales] or [groups, scales]."""
    values, least = np.sort(E2M1.astype(np.float64)), np.full(len(x), np.inf)
    borders = (values[1:] + values[:-1]) / 2
    for d in np.broadcast_to(scales, (len(x), scales.shape[-1])).T[:, :, None]:
        nearest = values[np.searchsorted(borders, x / d)] * d
        least = np.minimum(least, (w * np.square(x - nearest)).sum(axis=1))
    return least


@each_type
@weighted_or_not
@pytest.mark.parametrize("tails", [3, 50])
def test_hardly_any_scale_would_be_better(name: str, weighted: bool, tails: int) -> None:
    x = np.random.default_rng(tails).standard_t(tails, (16, N)).astype(np.float32)
    x /= nvfp4_global_scale(absmax(x))
    blocks = x.reshape(-1, CODECS[name].block).astype(np.float64)
    w = np.ones(blocks.shape)
    if weighted:
        w = np.sqrt(np.square(blocks).mean(axis=1, keepdims=True) + np.square(blocks))
        w *= np.tile(importance_of(N), 16).reshape(blocks.shape)
    groups = blocks.reshape(-1, GROUP[name])
    scales = e8m0(np.arange(100, 145)) if name == "MXFP4" else ue4m3(np.arange(1, 127))
    errors = block_errors(name, x, importance_of(N) if weighted else None, "opt-rtn", GROUP[name])
    best = least_errors(groups, w.reshape(groups.shape), scales.astype(np.float64))
    assert errors.sum() <= 1.002 * best.sum()


def test_the_exponent_follows_log2f_just_below_powers_of_two() -> None:
    """At 2^65, where a float32 logarithm has 17 bits of fraction, 44 numbers below count as 2^65; at 2 none does."""
    for power, rounded_up in ((1, 0), (64, 22), (65, 44)):
        bits = np.float32(2.0**power).view(np.uint32) - np.arange(1, 65, dtype=np.uint32)
        x = np.zeros((64, 32), np.float32)
        x[:, 0] = bits.view(np.float32)
        exponents = quantized("MXFP4", x, None, "rtn")[:, 0].astype(int) - 127 + 2
        assert (exponents == power).sum() == rounded_up
        assert (exponents >= power - 1).all()


def test_opt_rtn_rounds_an_nvfp4_scale_to_the_nearest_where_rtn_does_not() -> None:
    """llama.cpp stores 448 for every scale from 248 up; a group whose values all lie on the grid shows the scale."""
    codes = np.arange(9, 127)
    values = np.tile(E2M1, 4)[None, :] * ue4m3(codes)[:, None]
    packed = quantized("NVFP4", values.astype(np.float32), None, "opt-rtn")
    assert (packed[:, :4] == codes[:, None]).all()
    np.testing.assert_array_equal(unpacked("NVFP4", packed), values)
    rtn = quantized("NVFP4", values.astype(np.float32), None, "rtn")
    assert (rtn[codes < 120, :4] == codes[codes < 120, None]).all()
    assert (rtn[codes >= 120, :4] == 126).all()


def test_the_global_scale_puts_the_largest_weight_at_the_end_of_the_range() -> None:
    assert nvfp4_global_scale(2688.0) == 1
    assert math.isclose(nvfp4_global_scale(0.5), 0.5 / 2688, rel_tol=1e-7)
    assert isinstance(nvfp4_global_scale(0.5), np.float32)
    assert nvfp4_global_scale(0.0) == 1
    assert nvfp4_global_scale(1e-45) == 1


def test_with_the_global_scale_small_weights_survive() -> None:
    """llama.cpp's own way loses all that is below 2^-10 * 6."""
    x = np.full((1, 64), 0.004, np.float32)
    assert (unpacked("NVFP4", quantized("NVFP4", x, None, "rtn")) == 0).all()
    scale = nvfp4_global_scale(absmax(x))
    back = unpacked("NVFP4", quantized("NVFP4", x / scale, None, "opt-rtn")) * scale
    np.testing.assert_allclose(back, x, rtol=1e-6)
