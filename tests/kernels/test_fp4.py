"""MXFP4 and NVFP4 of checkpoints: AutoRound's plain rounding, and a search that loses less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ggufround_kernels import CODECS, FP4, Rounded, Search, nvfp4_global_scale
from hard_rows import N, hard_rows
from packed_error import importance_of
from reference_fp4 import dequantize_mxfp4, dequantize_nvfp4, quantize_mxfp4, quantize_nvfp4
from reference_integers import E4M3
from reference_simple import E2M1

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

SEARCHES: tuple[Search, ...] = ("rtn", "opt-rtn")
QUANTIZE = {"MXFP4": quantize_mxfp4, "NVFP4": quantize_nvfp4}
DEQUANTIZE = {"MXFP4": dequantize_mxfp4, "NVFP4": dequantize_nvfp4}
GROUP = {"MXFP4": 32, "NVFP4": 16}
each_type = pytest.mark.parametrize("name", list(GROUP))
each_row = pytest.mark.parametrize("rows", hard_rows())
weighted_or_not = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])


def assert_same(name: str, ours: Rounded, theirs: tuple[U8, U8], x: F32) -> None:
    """Codes and scales are equal; else the worst group is shown with its weights."""
    assert ours.scales is not None
    assert ours[1:3] == (None, None)
    group = GROUP[name]
    wrong = (ours.codes != theirs[0]).reshape(-1, group).sum(axis=1) + (ours.scales != theirs[1]).reshape(-1)
    worst = int(wrong.argmax()) if wrong.size else 0
    if wrong.any():
        ours_, theirs_ = (
            f"scale {scales.reshape(-1)[worst]} codes {codes.reshape(-1, group)[worst]}"
            for codes, scales in ((ours.codes, ours.scales), theirs)
        )
        pytest.fail(
            f"{name}: {np.count_nonzero(wrong)} of {len(wrong)} groups differ; worst is {worst}\n  ours   {ours_}\n"
            f"  theirs {theirs_}\n  weights {x.reshape(-1, group)[worst]}"
        )


def group_errors(name: str, weights: F32, importance: F32 | None, search: Search) -> F64:
    """sum w (x - y)^2 of each group; w as llama.cpp weighs, which is what the search minimises, or 1."""
    codec, block = FP4[name], CODECS[name].block
    x = weights.astype(np.float64)
    y = codec.dequantise(codec.search(weights, importance, search)).astype(np.float64)
    w = np.ones_like(x)
    if importance is not None:
        blocks = np.square(x).reshape(-1, block)
        w = importance.astype(np.float64) * np.sqrt(blocks.mean(axis=1, keepdims=True) + blocks).reshape(x.shape)
    return (w * np.square(x - y)).reshape(-1, GROUP[name]).sum(axis=1)


@each_type
@each_row
def test_rtn_is_the_twins(name: str, rows: str) -> None:
    x = hard_rows()[rows]
    assert_same(name, FP4[name].search(x, None, "rtn"), QUANTIZE[name](x), x)
    assert_same(name, FP4[name].search(x, importance_of(N), "rtn"), QUANTIZE[name](x), x)


@each_type
def test_values_and_the_middles_between_them_round_as_in_the_twin(name: str) -> None:
    """Every value, the middle to the next, and the float32 beside each, of both signs, under one scale."""
    values = E2M1[:8]
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2, [np.float32(7), np.float32(7.9)]])
    points = np.concatenate([points, np.nextafter(points, np.float32(0)), np.nextafter(points, np.float32(8))])
    points = np.concatenate([points, -points])
    peak = 7.99 if name == "MXFP4" else 6
    x = np.zeros((len(points), 64), np.float32)
    x[:, :: GROUP[name]], x[:, 1 :: GROUP[name]] = peak, np.clip(points, -peak, peak)[:, None]
    assert_same(name, FP4[name].search(x, None, "rtn"), QUANTIZE[name](x), x)


def test_halves_go_to_the_even_code() -> None:
    middles = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 7], np.float32)
    x = np.tile(np.r_[middles, -middles], 4).reshape(1, 64).astype(np.float32)
    codes = FP4["MXFP4"].search(x, None, "rtn").codes[0, :16]
    np.testing.assert_array_equal(codes, [0, 2, 2, 4, 4, 6, 6, 7, 8, 10, 10, 12, 12, 14, 14, 15])


def test_zeros_keep_their_sign_in_mxfp4_only() -> None:
    x = np.zeros((1, 64), np.float32)
    x[0, ::16], x[0, 1::16], x[0, 2::16] = 6, -0.0, -0.1
    assert FP4["MXFP4"].search(x, None, "rtn").codes[0, :4].tolist() == [7, 8, 8, 0]
    assert FP4["NVFP4"].search(x, None, "rtn").codes[0, :4].tolist() == [7, 0, 0, 0]


def test_a_group_of_zeros_gets_autorounds_scale() -> None:
    x = np.zeros((1, 64), np.float32)
    assert set(FP4["MXFP4"].search(x, None, "rtn").scales.flat) == {126}  # type: ignore[union-attr]
    assert set(FP4["NVFP4"].search(x, None, "rtn").scales.flat) == {0}  # type: ignore[union-attr]


@each_type
@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 30), st.floats(-30, 30))
def test_any_random_group_is_the_twins_and_the_better_search_is_no_worse(
    name: str, seed: int, tails: float, size: float
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_t(tails, (2, 64)).clip(-1e6, 1e6) * 10.0**size).astype(np.float32)
    assert_same(name, FP4[name].search(x, None, "rtn"), QUANTIZE[name](x), x)
    for w in (None, rng.exponential(1, 64).astype(np.float32)):
        ours, theirs = (group_errors(name, x, w, search) for search in ("opt-rtn", "rtn"))
        assert (ours <= theirs * (1 + 1e-5)).all()


@each_type
def test_dequantise_is_the_twins_for_any_codes_and_scales(name: str) -> None:
    top = 254 if name == "MXFP4" else 127
    codes = np.tile(np.arange(16, dtype=np.uint8), (top, 8))
    scales = np.repeat(np.arange(top, dtype=np.uint8)[:, None], 128 // GROUP[name], axis=1)
    np.testing.assert_array_equal(FP4[name].dequantise(Rounded(codes, scales=scales)), DEQUANTIZE[name](codes, scales))


@each_type
@each_row
@weighted_or_not
def test_no_group_is_worse_than_rtns(name: str, rows: str, weighted: bool) -> None:
    x, importance = hard_rows()[rows], importance_of(N) if weighted else None
    if name == "NVFP4":
        x = x / nvfp4_global_scale(np.abs(x).max())
    ours, theirs = (group_errors(name, x, importance, search) for search in ("opt-rtn", "rtn"))
    assert (ours <= theirs * (1 + 1e-5)).all()


# The squared error of a bell curve in parts of rtn's: without and with importance
GAINS = {"MXFP4": (0.969, 0.927), "NVFP4": (0.736, 0.573)}


@each_type
def test_the_better_search_keeps_the_stated_gain(name: str) -> None:
    x = (0.02 * np.random.default_rng(7).standard_normal((64, N))).astype(np.float32)
    x /= nvfp4_global_scale(np.abs(x).max())
    for importance, stated in zip((None, importance_of(N)), GAINS[name], strict=True):
        ours, theirs = (group_errors(name, x, importance, search).sum() for search in ("opt-rtn", "rtn"))
        assert 0.99 * stated < ours / theirs < 1.005 * stated


@each_type
@pytest.mark.parametrize("search", SEARCHES)
def test_zeros_stay_zeros_and_every_value_is_finite(name: str, search: Search) -> None:
    for row, x in hard_rows().items():
        rounded = FP4[name].search(x, importance_of(N), search)
        assert rounded.scales is not None
        assert rounded.codes.max() < 16
        assert rounded.scales.max() < (255 if name == "MXFP4" else 127), row
        back = FP4[name].dequantise(rounded)
        assert np.isfinite(back).all(), row
        assert (back[x == 0] == 0).all(), row


@each_type
@weighted_or_not
def test_blocks_are_independent_and_nothing_passed_in_is_changed(name: str, weighted: bool) -> None:
    x = np.random.default_rng(2).standard_t(3, (5, 192)).astype(np.float32)
    importance, kept = importance_of(192) if weighted else None, x.copy()
    for search in SEARCHES:
        whole = FP4[name].search(x, importance, search)
        for first in range(0, 192, 64):
            columns = slice(first, first + 64)
            w = None if importance is None else importance[columns].copy()
            alone = FP4[name].search(x[:, columns].copy(), w, search)
            np.testing.assert_array_equal(alone.codes, whole.codes[:, columns])
    np.testing.assert_array_equal(x, kept)


def test_every_nvfp4_scale_is_found_again() -> None:
    codes = np.arange(1, 127)
    x = np.tile(E2M1, 4)[None, :] * E4M3[codes][:, None]
    rounded = FP4["NVFP4"].search(x, None, "rtn")
    np.testing.assert_array_equal(rounded.scales, np.repeat(codes[:, None], 4, axis=1))
    np.testing.assert_array_equal(FP4["NVFP4"].dequantise(rounded), x)


@each_type
def test_wrong_arguments_are_refused_by_name(name: str) -> None:
    codec, x = FP4[name], np.zeros((3, 128), np.float32)
    rounded = codec.search(x, None, "rtn")
    with pytest.raises(ValueError, match=rf"^{name}: weights of shape \(3, 112\)"):
        codec.search(x[:, :-16].copy(), None, "rtn")
    with pytest.raises(ValueError, match=f"^{name}: weights is float64"):
        codec.search(x.astype(np.float64), None, "rtn")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^{name}: importance"):
        codec.search(x, np.ones(32, np.float32), "opt-rtn")
    with pytest.raises(ValueError, match=f"^{name}: search 'best'"):
        codec.search(x, None, "best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^{name}: scales"):
        codec.dequantise(rounded._replace(scales=None))
    with pytest.raises(ValueError, match=f"^{name}: codes"):
        codec.dequantise(rounded._replace(codes=x))  # type: ignore[arg-type]
    assert codec.search(x[:0], None, "opt-rtn").codes.shape == (0, 128)
