"""Grids say of every type what its codec does, to the bit; ladders go between stored codes and real numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ggufround.quants.grids import GRIDS, Grid, Ladder, dequantised, half, integer_grid, scale_and_shift
from ggufround.quants.types import QUANT_TYPES
from ggufround_kernels import CODECS, MXFP8, Rounded, Search, integer_codec
from hard_rows import hard_rows
from packed_error import importance_of, unpacked

F32 = NDArray[np.float32]
SEARCHES: tuple[Search, ...] = ("rtn", "opt-rtn")
WITH_CODEC = sorted(set(GRIDS) & set(CODECS))
TUNABLE = {
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS", "TQ1_0",
    "TQ2_0", "Q1_0", "Q2_0", "MXFP4", "NVFP4", "MXFP8",
}  # fmt: skip
LADDERS = {
    f"{name} {part}": ladder
    for name, grid in GRIDS.items()
    for part, ladder in (("codes", grid.codes), ("scales", grid.scales), ("mins", grid.mins))
    if ladder is not None
}
INTEGERS = [(bits, group, sym) for bits in (2, 3, 4, 8) for group in (20, 32, 128) for sym in (True, False)]

each_grid = pytest.mark.parametrize("name", WITH_CODEC)
each_ladder = pytest.mark.parametrize("name", LADDERS)
each_search = pytest.mark.parametrize("search", SEARCHES)
each_rows = pytest.mark.parametrize("rows", [*hard_rows(), "rows of a model"])


def weights_named(rows: str) -> F32:
    if rows == "rows of a model":
        return (0.02 * np.random.default_rng(0).standard_normal((24, 1024))).astype(np.float32)
    return hard_rows()[rows]


def packed_and_unpacked(name: str, rounded: Rounded) -> F32:
    codec, (rows, n) = CODECS[name], rounded.codes.shape
    out = np.empty((rows, n // codec.block * codec.nbytes), np.uint8)
    codec.pack(rounded, out)
    return unpacked(name, out)


def assert_same_bits(found: F32, truth: F32, zeros: bool = True) -> None:
    """Equal to the bit; without `zeros` the sign of a zero may differ."""
    assert found.dtype == truth.dtype == np.float32
    found, truth = (found, truth) if zeros else (found + np.float32(0), truth + np.float32(0))
    np.testing.assert_array_equal(found.view(np.uint32), truth.view(np.uint32))


def test_every_type_that_is_tuned_has_a_grid() -> None:
    assert set(GRIDS) == TUNABLE
    assert set(GRIDS) - set(CODECS) == {"MXFP8"}
    quantised = {name for name, kind in QUANT_TYPES.items() if kind.search is not None}
    assert quantised <= set(GRIDS)


@each_grid
def test_a_grid_has_its_codecs_block(name: str) -> None:
    grid, codec = GRIDS[name], CODECS[name]
    rounded = codec.search(np.ones((1, 2 * codec.block), np.float32), None, "opt-rtn")
    if grid.d:
        assert grid.block == codec.block
    assert grid.d == (rounded.d is not None)
    assert (grid.scales is not None) == (rounded.scales is not None)
    assert (grid.mins is not None) == (rounded.mins is not None)
    assert (grid.shift in ("dmin * min", "-dmin")) == (rounded.dmin is not None)
    if rounded.scales is not None:
        assert rounded.scales.shape[1] == 2 * codec.block // grid.group


@each_grid
@each_search
@each_rows
def test_what_a_grid_makes_of_a_rounding_is_what_the_codec_stores(name: str, search: Search, rows: str) -> None:
    weights = weights_named(rows)
    for importance in (None, importance_of(weights.shape[1])):
        rounded = CODECS[name].search(weights, importance, search)
        with np.errstate(over="ignore", invalid="ignore"):
            ours = dequantised(GRIDS[name], rounded)
        assert_same_bits(ours, packed_and_unpacked(name, rounded))


@each_grid
def test_any_codes_and_scales_of_the_grid_are_stored_as_they_are(name: str) -> None:
    """Also those that no search chooses, since the tuner may."""
    grid, rng = GRIDS[name], np.random.default_rng(7)
    for _ in range(3):
        rounded = random_rounding(grid, 5, 768, rng)
        assert_same_bits(dequantised(grid, rounded), packed_and_unpacked(name, rounded))


def random_rounding(grid: Grid, rows: int, n: int, rng: np.random.Generator) -> Rounded:
    def codes(ladder: Ladder | None, size: int) -> NDArray[np.uint8] | None:
        return None if ladder is None else rng.choice(ladder.codes, (rows, size))

    def halves(wanted: bool) -> F32 | None:
        return half((0.1 * rng.standard_normal((rows, n // grid.block))).astype(np.float32)) if wanted else None

    found = codes(grid.codes, n)
    assert found is not None
    scales = codes(grid.scales, n // grid.group)
    if grid.scales is not None and not grid.d:  # powers of two: none whose sums would be infinite
        scales = rng.choice(grid.scales.codes[: min(200, len(grid.scales.codes))], (rows, n // grid.group))
    has_dmin = grid.shift in ("dmin * min", "-dmin")
    return Rounded(found, halves(grid.d), halves(has_dmin), scales, codes(grid.mins, n // grid.group))


@pytest.mark.parametrize(("bits", "group", "sym"), INTEGERS)
@each_search
def test_integer_grids_equal_the_codecs_own_values(bits: int, group: int, sym: bool, search: Search) -> None:
    codec, grid = integer_codec(bits, group, sym), integer_grid(bits, group, sym)
    for name in ("rows of a model", "heavy tails", "zeros", "constants", "every size"):
        weights = np.ascontiguousarray(weights_named(name)[:, :640])
        rounded = codec.search(weights, None, search)
        assert_same_bits(dequantised(grid, rounded), codec.dequantise(rounded), zeros=False)
    rounded = random_rounding(grid, 5, 640, np.random.default_rng(bits))
    assert_same_bits(dequantised(grid, rounded), codec.dequantise(rounded), zeros=False)


@each_search
@each_rows
def test_mxfp8s_grid_equals_the_codecs_own_values(search: Search, rows: str) -> None:
    rounded = MXFP8.search(weights_named(rows), None, search)
    with np.errstate(over="ignore"):
        ours = dequantised(GRIDS["MXFP8"], rounded)
    assert_same_bits(ours, MXFP8.dequantise(rounded), zeros=False)  # MXFP8 stores -0 too


@each_grid
def test_scale_and_shift_are_those_of_the_formula(name: str) -> None:
    """weight = scale * value - shift for each group."""
    grid = GRIDS[name]
    rounded = CODECS[name].search(weights_named("rows of a model"), None, "opt-rtn")
    scale, shift = scale_and_shift(grid, rounded)
    values = grid.codes.values[grid.codes.places(rounded.codes).astype(int)]
    weights = np.repeat(scale, grid.group, 1) * values - np.repeat(shift, grid.group, 1)
    np.testing.assert_array_equal(weights, dequantised(grid, rounded))
    assert (shift != 0).any() == (grid.shift != "none")


@each_ladder
def test_a_ladder_ascends_and_names_each_place_once(name: str) -> None:
    ladder = LADDERS[name]
    assert (np.diff(ladder.values) > 0).all()
    assert np.isfinite(ladder.values).all()
    assert len(np.unique(ladder.codes)) == len(ladder.codes) == len(ladder.values) == ladder.top + 1


@each_ladder
def test_places_lead_back_to_the_codes(name: str) -> None:
    ladder = LADDERS[name]
    places = ladder.places(ladder.codes)
    assert places.dtype == np.float32
    np.testing.assert_array_equal(places, np.arange(len(ladder.codes)))
    np.testing.assert_array_equal(ladder.codes[places.astype(int)], ladder.codes)
    matrix = np.random.default_rng(0).choice(ladder.codes, (3, 5))
    np.testing.assert_array_equal(ladder.codes[ladder.places(matrix).astype(int)], matrix)


def test_minus_zero_has_the_place_of_zero() -> None:
    for grid, code in ((GRIDS["MXFP4"], 8), (GRIDS["NVFP4"], 8), (GRIDS["MXFP8"], 128)):
        place = int(grid.codes.places(np.array([code], np.uint8))[0])
        assert grid.codes.values[place] == 0


@each_ladder
def test_values_of_a_ladder_are_whole_latents(name: str) -> None:
    ladder = LADDERS[name]
    np.testing.assert_array_equal(ladder.latents(ladder.values), np.arange(len(ladder.values)))


@each_ladder
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_latents_round_to_the_nearest_value_and_ascend(name: str, data: st.DataObject) -> None:
    ladder = LADDERS[name]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    spread = float(np.diff(ladder.values)[rng.integers(ladder.top)])
    near = ladder.values[rng.integers(ladder.top + 1, size=200)].astype(np.float64) + spread * rng.standard_normal(200)
    values = np.sort(near).astype(np.float32)
    latents = ladder.latents(values)
    assert latents.dtype == np.float32
    assert (np.diff(latents) >= 0).all()
    assert latents.min() >= -np.float32(0.499)
    assert latents.max() <= np.float32(ladder.top) + np.float32(0.499)
    apart = np.abs(values.astype(np.float64)[:, None] - ladder.values.astype(np.float64))
    best, chosen = apart.min(1), apart[np.arange(200), np.floor(latents + np.float32(0.5)).astype(int)]
    steps = np.diff(ladder.values.astype(np.float64))[np.clip(latents.astype(int), 0, ladder.top - 1)]
    assert (chosen <= best + 1e-4 * steps).all()  # ties, and what float32 makes of a place between two


@each_ladder
def test_latents_stop_just_beyond_the_ends(name: str) -> None:
    ladder = LADDERS[name]
    values = ladder.values.astype(np.float64)
    low, high = values[1] - values[0], values[-1] - values[-2]
    beyond = np.array([values[0] - 5 * low, values[0] - 0.3 * low, values[-1] + 0.3 * high, values[-1] + 0.9 * high])
    found = ladder.latents(beyond.astype(np.float32))
    np.testing.assert_allclose(found, [-0.499, -0.3, ladder.top + 0.3, ladder.top + 0.499], atol=1e-4)


def test_half_is_float16_without_infinity() -> None:
    values = np.array([0, -0.0, 1 / 3, 65504, 65519, 65520, 1e9, -1e9, 1e-9, 6e-8], np.float32)
    with np.errstate(over="ignore"):
        truth = values.astype(np.float16).astype(np.float32)
    found = half(values)
    np.testing.assert_array_equal(found[:5], truth[:5])
    np.testing.assert_array_equal(found[5:8], [65504, 65504, -65504])
    np.testing.assert_array_equal(found[8:], truth[8:])


def test_a_grid_without_any_scale_is_refused() -> None:
    codes = GRIDS["Q4_0"].codes
    with pytest.raises(AssertionError):
        Grid(codes, 32, 32, d=False)
    with pytest.raises(AssertionError):
        Grid(codes, 32, 48)
