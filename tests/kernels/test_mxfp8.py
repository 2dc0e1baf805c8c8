"""MXFP8: the standard's rounding, and a choice of exponents that loses less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ggufround_kernels import Rounded, Search
from ggufround_kernels.mxfp8 import MXFP8
from hard_rows import N, hard_rows
from packed_error import importance_of
from reference_integers import E4M3, dequantize_mxfp8, nearest_e4m3, quantize_mxfp8

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

SEARCHES: tuple[Search, ...] = ("rtn", "opt-rtn")
each_row = pytest.mark.parametrize("rows", hard_rows())
weighted_or_not = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])


def group_errors(weights: F32, importance: F32 | None, search: Search) -> F64:
    y = MXFP8.dequantise(MXFP8.search(weights, importance, search)).astype(np.float64)
    w = np.float64(1) if importance is None else importance.astype(np.float64)
    return (w * np.square(weights - y)).reshape(-1, 32).sum(axis=1)


def assert_same(ours: Rounded, theirs: tuple[NDArray, NDArray]) -> None:
    assert ours.scales is not None
    np.testing.assert_array_equal(ours.scales, theirs[1])
    np.testing.assert_array_equal(ours.codes, theirs[0])


@each_row
def test_rtn_is_the_twins(rows: str) -> None:
    x = hard_rows()[rows]
    assert_same(MXFP8.search(x, None, "rtn"), quantize_mxfp8(x))
    assert_same(MXFP8.search(x, importance_of(N), "rtn"), quantize_mxfp8(x))


def test_values_and_the_middles_between_them_round_as_in_the_twin() -> None:
    """Every E4M3 value, the middle to the next, and the float32 beside each, of both signs, in one group's scale."""
    values = E4M3[:127]
    middles = (values[1:] + values[:-1]) / 2
    points = np.concatenate([values, middles, [np.float32(464), np.float32(511)]])
    points = np.concatenate([points, np.nextafter(points, np.float32(0)), np.nextafter(points, np.float32(512))])
    points = np.concatenate([points, -points])
    x = np.zeros((len(points), 32), np.float32)
    x[:, 0], x[:, 1] = 500, points
    assert_same(MXFP8.search(x, None, "rtn"), quantize_mxfp8(x))


@pytest.mark.torch
@each_row
def test_codes_are_torchs_float8(rows: str) -> None:
    torch = pytest.importorskip("torch")
    x = hard_rows()[rows]
    rounded = MXFP8.search(x, None, "rtn")
    assert rounded.scales is not None
    steps = np.ldexp(x.reshape(-1, 32), 127 - rounded.scales.reshape(-1, 1).astype(np.int32))
    theirs = torch.from_numpy(steps).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(rounded.codes, theirs.reshape(x.shape))


@pytest.mark.torch
def test_all_codes_decode_as_torchs_float8() -> None:
    torch = pytest.importorskip("torch")
    codes = np.arange(256, dtype=np.uint8).reshape(1, 256)
    theirs = torch.from_numpy(codes.copy()).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(MXFP8.dequantise(Rounded(codes, scales=np.full((1, 8), 127, np.uint8))), theirs)


def test_dequantise_is_the_twins_for_any_codes_and_scales() -> None:
    codes = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    e = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 8, axis=1)
    np.testing.assert_array_equal(MXFP8.dequantise(Rounded(codes, scales=e)), dequantize_mxfp8(codes, e))


@each_row
@weighted_or_not
def test_no_group_is_worse_than_rtns(rows: str, weighted: bool) -> None:
    x, importance = hard_rows()[rows], importance_of(N) if weighted else None
    ours, theirs = (group_errors(x, importance, search) for search in ("opt-rtn", "rtn"))
    assert (ours <= theirs * (1 + 1e-5)).all()


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 30), st.floats(-20, 20))
def test_any_random_group(seed: int, tails: float, size: float) -> None:
    """rtn is the twin's; opt-rtn is no worse; what is not cut off is off by half a step at most."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_t(tails, (2, 96)).clip(-1e6, 1e6) * 10.0**size).astype(np.float32)
    assert_same(MXFP8.search(x, None, "rtn"), quantize_mxfp8(x))
    importance = rng.exponential(1, 96).astype(np.float32) * (rng.random(96) < 0.9)
    for w in (None, importance):
        ours, theirs = (group_errors(x, w, search) for search in ("opt-rtn", "rtn"))
        assert (ours <= theirs * (1 + 1e-5)).all()
        for search in SEARCHES:
            rounded = MXFP8.search(x, w, search)
            assert rounded.scales is not None
            least = np.ldexp(2.0**-10, np.repeat(rounded.scales, 32, axis=1).astype(np.int32) - 127)
            off = np.abs(x.astype(np.float64) - MXFP8.dequantise(rounded))
            inside = rounded.codes & 127 < 126
            assert (off <= np.maximum(np.abs(x) / 16, least) * (1 + 1e-6))[inside].all()


def test_the_better_search_loses_a_sixth_less_of_a_bell_curve() -> None:
    x = (0.02 * np.random.default_rng(7).standard_normal((64, N))).astype(np.float32)
    for importance in (None, importance_of(N)):
        ours, theirs = (group_errors(x, importance, search).sum() for search in ("opt-rtn", "rtn"))
        assert 0.7 * theirs < ours < 0.84 * theirs


def test_no_exponent_would_be_better() -> None:
    """Also where a peak without importance leaves the others to the smallest values."""
    x = np.random.default_rng(5).standard_t(3, (16, N)).astype(np.float32)
    importance = importance_of(N)
    x[:, ::64] *= 1e6
    importance[::64] = 0
    floor = quantize_mxfp8(x)[1].astype(np.int32)
    least, chosen = np.full(floor.shape, np.inf), np.zeros(floor.shape, np.int32)
    for step in range(2, -21, -1):
        scale = np.repeat(np.ldexp(1.0, floor + step - 127), 32, axis=1)
        back = E4M3[nearest_e4m3(x / scale)] * scale
        errors = (importance * np.square(x - back)).reshape(*floor.shape, 32).sum(axis=2)
        least, chosen = np.minimum(errors, least), np.where(errors < least, step, chosen)
    np.testing.assert_allclose(group_errors(x, importance, "opt-rtn"), least.reshape(-1), rtol=1e-4)
    assert {-6, 0, 1} < set(chosen.reshape(-1).tolist())


@pytest.mark.parametrize("search", SEARCHES)
def test_zeros_stay_zeros_and_every_value_is_finite(search: Search) -> None:
    for name, x in hard_rows().items():
        rounded = MXFP8.search(x, importance_of(N), search)
        assert ((rounded.codes & 127) < 127).all(), name
        back = MXFP8.dequantise(rounded)
        assert np.isfinite(back).all(), name
        assert (back[x == 0] == 0).all(), name


@weighted_or_not
def test_groups_are_independent_and_nothing_passed_in_is_changed(weighted: bool) -> None:
    x = np.random.default_rng(2).standard_t(3, (5, 96)).astype(np.float32)
    importance, kept = importance_of(96) if weighted else None, x.copy()
    for search in SEARCHES:
        whole = MXFP8.search(x, importance, search)
        for g in range(3):
            columns = slice(32 * g, 32 * g + 32)
            w = None if importance is None else importance[columns].copy()
            np.testing.assert_array_equal(MXFP8.search(x[:, columns].copy(), w, search).codes, whole.codes[:, columns])
    np.testing.assert_array_equal(x, kept)


def test_wrong_arguments_are_refused_by_name() -> None:
    x = np.zeros((3, 64), np.float32)
    rounded = MXFP8.search(x, None, "rtn")
    with pytest.raises(ValueError, match=r"^MXFP8: weights of shape \(3, 63\)"):
        MXFP8.search(x[:, :-1].copy(), None, "rtn")
    with pytest.raises(ValueError, match=r"^MXFP8: importance"):
        MXFP8.search(x, np.ones(32, np.float32), "opt-rtn")
    with pytest.raises(ValueError, match=r"^MXFP8: scales"):
        MXFP8.dequantise(rounded._replace(scales=None))
    assert MXFP8.search(x[:0], None, "opt-rtn").codes.shape == (0, 64)
