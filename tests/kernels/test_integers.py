"""Integers in groups: AutoRound's plain rounding, and a search that finds the best scales and zero points."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ggufround_kernels import Rounded, Search
from ggufround_kernels.grouped import GroupCodec
from ggufround_kernels.integers import BITS, FLOOR, integer_codec
from hard_rows import N, hard_rows
from packed_error import importance_of
from reference_integers import dequantize_integers, quantize_integers

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

SEARCHES: tuple[Search, ...] = ("rtn", "opt-rtn")
each_bits = pytest.mark.parametrize("bits", BITS)
each_kind = pytest.mark.parametrize("sym", [True, False], ids=["sym", "asym"])
each_row = pytest.mark.parametrize("rows", hard_rows())
weighted_or_not = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
GROUPS = (1, 8, 32, 40, 128, 640)


def bell(rows: int, n: int, seed: int = 0) -> F32:
    return (0.02 * np.random.default_rng(seed).standard_normal((rows, n))).astype(np.float32)


def special_rows(n: int) -> F32:
    """What the hard rows lack: one outlier, all of one sign, halves of a step, a row that AutoRound's ties decide."""
    rng = np.random.default_rng(3)
    outlier, alternating = 1e-3 * rng.standard_normal(n), np.tile([0.5, -0.5], n // 2)
    outlier[n // 2] = 7
    odd = np.arange(n) % 31 - 15.5
    rows = [outlier, -outlier, alternating, np.abs(outlier), odd, -odd, 1e4 * odd, np.linspace(-1, 8, n), np.ones(n)]
    return np.array(rows, np.float32)


def group_errors(codec: GroupCodec, weights: F32, importance: F32 | None, search: Search) -> F64:
    """sum w (x - y)^2 of each group, in float64."""
    y = codec.dequantise(codec.search(weights, importance, search)).astype(np.float64)
    w = np.float64(1) if importance is None else importance.astype(np.float64)
    return (w * np.square(weights - y)).reshape(-1, codec.group).sum(axis=1)


def assert_same(ours: Rounded, theirs: tuple[NDArray, ...], sym: bool) -> None:
    codes, d, zero = theirs
    assert ours.d is not None
    np.testing.assert_array_equal(ours.d, d)
    np.testing.assert_array_equal(ours.codes, codes)
    if sym:
        assert ours.mins is None
    else:
        assert ours.mins is not None
        np.testing.assert_array_equal(ours.mins, zero)


@each_bits
@each_kind
@each_row
def test_rtn_is_the_twins(bits: int, sym: bool, rows: str) -> None:
    x = hard_rows()[rows]
    for group in (16, 128, N):
        ours = integer_codec(bits, group, sym).search(x, None, "rtn")
        assert_same(ours, quantize_integers(x, bits, group, sym), sym)


@each_bits
@each_kind
def test_rtn_is_the_twins_for_any_group_and_rows_with_ties(bits: int, sym: bool) -> None:
    x = np.concatenate([special_rows(640), bell(3, 640)])
    for group in (*GROUPS, 5, 20, 64):
        ours = integer_codec(bits, group, sym).search(x, None, "rtn")
        assert_same(ours, quantize_integers(x, bits, group, sym), sym)


@each_kind
def test_rtn_ignores_importance(sym: bool) -> None:
    x, codec = bell(4, N), integer_codec(4, 128, sym)
    plain, weighted = codec.search(x, None, "rtn"), codec.search(x, importance_of(N), "rtn")
    np.testing.assert_array_equal(plain.codes, weighted.codes)


@each_bits
@each_kind
def test_dequantise_is_the_twins_for_any_codes(bits: int, sym: bool) -> None:
    rng = np.random.default_rng(bits)
    for group in GROUPS:
        shape = 7, 640 // group
        codes, zero = rng.integers(0, 2**bits, (7, 640), np.uint8), rng.integers(0, 2**bits, shape, np.uint8)
        if sym:
            zero[:] = 2 ** (bits - 1)
        d = rng.standard_normal(shape).astype(np.float16).astype(np.float32)
        rounded = Rounded(codes, d=d, mins=None if sym else zero)
        np.testing.assert_array_equal(
            integer_codec(bits, group, sym).dequantise(rounded), dequantize_integers(codes, d, zero)
        )


@each_bits
@each_kind
@each_row
@weighted_or_not
def test_no_group_is_worse_than_rtns(bits: int, sym: bool, rows: str, weighted: bool) -> None:
    x, importance = hard_rows()[rows][:64], importance_of(N) if weighted else None
    for group in (32, N):
        codec = integer_codec(bits, group, sym)
        ours, theirs = (group_errors(codec, x, importance, search) for search in ("opt-rtn", "rtn"))
        assert (ours <= theirs * (1 + 1e-5)).all()


@each_kind
@given(
    st.sampled_from(BITS), st.sampled_from([8, 32, 48, 192]), st.integers(0, 2**32 - 1), st.floats(0.5, 30),
    st.floats(-6, 6), st.floats(-3, 3),
)  # fmt: skip
def test_any_random_group(
    sym: bool, bits: int, group: int, seed: int, tails: float, size: float, offset: float
) -> None:
    """rtn is the twin's; opt-rtn is no worse; what lies inside the window is off by half a step at most."""
    rng = np.random.default_rng(seed)
    x = ((rng.standard_t(tails, (2, 192)) + offset) * 10.0**size).clip(-6e4, 6e4).astype(np.float32)
    importance = rng.exponential(1, 192).astype(np.float32) * (rng.random(192) < 0.9)
    codec = integer_codec(bits, group, sym)
    assert_same(codec.search(x, None, "rtn"), quantize_integers(x, bits, group, sym), sym)
    for w in (None, importance):
        ours, theirs = (group_errors(codec, x, w, search) for search in ("opt-rtn", "rtn"))
        assert (ours <= theirs * (1 + 1e-5)).all()
        for search in SEARCHES:
            rounded = codec.search(x, w, search)
            assert rounded.d is not None
            inside = (rounded.codes > 0) & (rounded.codes < 2**bits - 1)
            half_step = np.abs(np.repeat(rounded.d, group, axis=1)) / 2
            off = np.abs(x.astype(np.float64) - codec.dequantise(rounded))
            assert (off[inside] <= half_step[inside] * (1 + 1e-4)).all()


def least_errors(x: F64, w: F64, bits: int, sym: bool) -> F64:
    """Of each group [groups, n]: the least error over many scales, each fitted to its codes, and all zero points."""
    top, half = 2**bits - 1, 2 ** (bits - 1)
    low, high = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
    extent = 2 * np.maximum(high, -low) if sym else high - low
    least = np.full(len(x), np.inf)
    for parts in top * np.geomspace(0.4, 3, 300):
        steps = np.round(x * (parts / extent)[:, None])
        for zero in (half, half - 1) if sym else range(top + 1):
            codes = np.clip(steps, -zero, top - zero)
            xl, ll = (w * x * codes).sum(axis=1), (w * codes * codes).sum(axis=1)
            least = np.minimum(least, (w * x * x).sum(axis=1) - xl * xl / np.maximum(ll, 1e-300))
    return least


@pytest.mark.parametrize("bits", [2, 3, 4])
@each_kind
@weighted_or_not
@pytest.mark.parametrize("group", [32, 128])
def test_hardly_any_scale_or_zero_point_would_be_better(bits: int, sym: bool, weighted: bool, group: int) -> None:
    x = np.random.default_rng(group).standard_t(5, (4, N)).astype(np.float32) + np.float32(0.5)
    importance = importance_of(N) if weighted else None
    w = np.ones(x.shape) if importance is None else np.tile(importance.astype(np.float64), (len(x), 1))
    errors = group_errors(integer_codec(bits, group, sym), x, importance, "opt-rtn")
    best = least_errors(x.astype(np.float64).reshape(-1, group), w.reshape(-1, group), bits, sym)
    assert errors.sum() <= 1.01 * best.sum()


# The relative error sqrt(sum (x - y)^2 / sum x^2) of a bell curve in groups of 128: rtn's and opt-rtn's
ERRORS = {
    (2, True): (0.4272, 0.3639), (3, True): (0.2087, 0.1864), (4, True): (0.1035, 0.0971), (5, True): (0.0517, 0.0497),
    (6, True): (0.0259, 0.0249), (8, True): (0.00644, 0.00611),
    (2, False): (0.5062, 0.3639), (3, False): (0.2162, 0.1862), (4, False): (0.1009, 0.0953),
    (5, False): (0.0488, 0.0473), (6, False): (0.0241, 0.0233), (8, False): (0.00594, 0.00562),
}  # fmt: skip


@each_bits
@each_kind
def test_the_better_search_keeps_the_stated_error(bits: int, sym: bool) -> None:
    x, codec = bell(64, N), integer_codec(bits, 128, sym)
    for search, stated in zip(SEARCHES, ERRORS[bits, sym], strict=True):
        error = np.sqrt(group_errors(codec, x, None, search).sum() / np.square(x.astype(np.float64)).sum())
        assert 0.99 * stated < error < 1.003 * stated, f"{codec.name} {search}: {error:.5f}"


@each_bits
@each_kind
@pytest.mark.parametrize("search", SEARCHES)
def test_zeros_stay_zeros_and_every_scale_is_a_finite_float16(bits: int, sym: bool, search: Search) -> None:
    for group in (8, 32, N):
        codec = integer_codec(bits, group, sym)
        for name, x in hard_rows().items():
            rounded = codec.search(x[:40], importance_of(N), search)
            assert rounded.d is not None
            assert np.isfinite(rounded.d).all()
            assert (rounded.d == rounded.d.astype(np.float16)).all()
            assert (np.abs(rounded.d) >= FLOOR).all()
            assert sym or (rounded.d > 0).all()
            assert rounded.codes.max() < 2**bits
            back = codec.dequantise(rounded)
            assert (back[x[:40] == 0] == 0).all(), f"{codec.name} {name}"


@each_bits
@each_kind
def test_values_of_the_grid_come_back_from_the_better_search(bits: int, sym: bool) -> None:
    """Also where the codes do not reach the ends of the window, if there are not as many as 8 bits give."""
    rng = np.random.default_rng(9)
    top, half = 2**bits - 1, 2 ** (bits - 1)
    for reach in (top, max(top - 1, 2)):
        zero = np.full((64, 8), half) if sym else rng.integers(0, reach + 1, (64, 8))
        lowest = 1 if sym and reach < top else 0
        codes = rng.integers(lowest, reach + 1, (64, 8 * 64))
        if bits == 8:  # only scales near the extent's are tried
            codes[:, ::64], codes[:, 1::64] = lowest, reach
        d = np.ldexp(rng.integers(1024, 2048, (64, 8)) * (rng.choice([-1, 1], (64, 8)) if sym else 1), -16)
        x = dequantize_integers(codes.astype(np.uint8), d.astype(np.float32), zero.astype(np.uint8))
        codec = integer_codec(bits, 64, sym)
        np.testing.assert_array_equal(codec.dequantise(codec.search(x, None, "opt-rtn")), x)


@each_kind
@weighted_or_not
def test_groups_are_independent(sym: bool, weighted: bool) -> None:
    """Any cut between rows or groups gives the same codes, on one thread or many; nothing passed in is changed."""
    n, group = 640, 40
    codec, x, importance = integer_codec(3, group, sym), bell(37, n), importance_of(n) if weighted else None
    kept = x.copy()
    for search in SEARCHES:
        whole = codec.search(x, importance, search)
        assert whole.d is not None
        for cuts in ([1], [36], [7, 8, 30], list(range(1, 37))):
            with ThreadPoolExecutor(4) as pool:
                futures = [pool.submit(codec.search, part, importance, search) for part in np.split(x, cuts)]
            parts = [future.result() for future in futures]
            np.testing.assert_array_equal(np.concatenate([part.codes for part in parts]), whole.codes)
        for g in range(n // group):
            columns = slice(g * group, (g + 1) * group)
            w = None if importance is None else importance[columns].copy()
            alone = codec.search(x[:, columns].copy(), w, search)
            np.testing.assert_array_equal(alone.codes, whole.codes[:, columns])
            np.testing.assert_array_equal(alone.d, whole.d[:, g : g + 1])
    np.testing.assert_array_equal(x, kept)


@each_kind
def test_only_relations_of_importance_within_a_group_count(sym: bool) -> None:
    x, codec, importance = bell(8, N), integer_codec(4, 32, sym), importance_of(N)
    factors = np.repeat(10.0 ** np.random.default_rng(4).integers(-30, 30, N // 32), 32).astype(np.float32)
    first = codec.search(x, importance, "opt-rtn")
    np.testing.assert_array_equal(
        codec.search(x, np.ldexp(importance, np.repeat(np.arange(-16, 16), 32)), "opt-rtn").codes, first.codes
    )
    assert (codec.search(x, importance * factors, "opt-rtn").codes != first.codes).mean() < 0.01
    for nothing in (0, np.nan, np.inf):
        unknown = np.full(N, nothing, np.float32)
        np.testing.assert_array_equal(codec.search(x, unknown, "opt-rtn").codes, codec.search(x, None, "opt-rtn").codes)


@each_kind
def test_no_rows(sym: bool) -> None:
    codec = integer_codec(4, 32, sym)
    for search in SEARCHES:
        rounded = codec.search(np.empty((0, 64), np.float32), None, search)
        assert rounded.codes.shape == (0, 64)
        assert codec.dequantise(rounded).shape == (0, 64)


def test_equal_arguments_give_the_same_codec() -> None:
    assert integer_codec(4, 128, True) is integer_codec(4, 128, True)
    assert integer_codec(4, 128, True)[:4] == ("INT4 g128 sym", 4, 128, True)
    assert integer_codec(8, 32, False).name == "INT8 g32 asym"


def test_wrong_arguments_are_refused_by_name() -> None:
    codec, x = integer_codec(4, 32, False), np.zeros((3, 64), np.float32)
    rounded = codec.search(x, None, "rtn")
    refused: dict[str, Callable[[], object]] = {
        "a row that is no multiple of the group": lambda: codec.search(x[:, :-1].copy(), None, "rtn"),
        "float64 weights": lambda: codec.search(x.astype(np.float64), None, "rtn"),  # type: ignore[arg-type]
        "every second row": lambda: codec.search(x[::2], None, "rtn"),
        "importance of another length": lambda: codec.search(x, np.ones(32, np.float32), "rtn"),
        "a search of another name": lambda: codec.search(x, None, "best"),  # type: ignore[arg-type]
        "no zero points": lambda: codec.dequantise(rounded._replace(mins=None)),
        "too few scales": lambda: codec.dequantise(rounded._replace(d=np.ones((3, 1), np.float32))),
        "codes of another dtype": lambda: codec.dequantise(rounded._replace(codes=x)),  # type: ignore[arg-type]
    }
    for case, call in refused.items():
        try:
            call()
        except ValueError as error:
            message = str(error)
        else:
            message = ""
        assert message.startswith("INT4 g32 asym: "), case
    for bits, group in ((7, 32), (1, 32), (4, 0), (4, -1)):
        with pytest.raises(ValueError, match=r"must be"):
            integer_codec(bits, group, True)
