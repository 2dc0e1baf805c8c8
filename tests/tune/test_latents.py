"""Latents stand for the weights that will be stored, start where the search ended, and go down the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ggufround.quants.grids import GRIDS, Grid, Ladder, dequantised, integer_grid
from ggufround_kernels import CODECS, MXFP8, Rounded, integer_codec
from ggufround_kernels.tuning import EDGE
from hard_rows import hard_rows
from packed_error import unpacked

torch = pytest.importorskip("torch")
from ggufround.tune import latents as module  # noqa: E402
from ggufround.tune.latents import Latents, Rates  # noqa: E402

pytestmark = pytest.mark.torch
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
FACTOR = 0.0371  # a global scale, of NVFP4 alone


class Type(NamedTuple):
    grid: Grid
    search: Callable[..., Rounded]
    stored: Callable[[Rounded], F32]  # the weights that a reader makes of it
    factor: float = 1.0


def through_bytes(name: str) -> Callable[[Rounded], F32]:
    def stored(rounded: Rounded) -> F32:
        codec, (rows, n) = CODECS[name], rounded.codes.shape
        out = np.empty((rows, n // codec.block * codec.nbytes), np.uint8)
        codec.pack(rounded, out)
        return unpacked(name, out)

    return stored


TYPES = {name: Type(GRIDS[name], codec.search, through_bytes(name)) for name, codec in CODECS.items()}
TYPES["NVFP4 scaled"] = TYPES["NVFP4"]._replace(factor=float(np.float32(FACTOR)))
TYPES["MXFP8"] = Type(GRIDS["MXFP8"], MXFP8.search, MXFP8.dequantise)
for bits, group, sym in ((2, 64, True), (4, 128, True), (8, 24, True), (2, 32, False), (4, 128, False), (8, 24, False)):
    codec = integer_codec(bits, group, sym)
    TYPES[codec.name] = Type(integer_grid(bits, group, sym), codec.search, codec.dequantise)

each_type = pytest.mark.parametrize("name", TYPES)
N = 768  # a multiple of every block, and of 24


def bell(rows: int = 6, seed: int = 0) -> F32:
    return (0.02 * np.random.default_rng(seed).standard_normal((rows, N))).astype(np.float32)


def started(kind: Type, true: F32) -> tuple[Latents, Rounded]:
    start = kind.search(np.ascontiguousarray(true / np.float32(kind.factor)), None, "opt-rtn")
    return Latents(kind.grid, torch.from_numpy(true.copy()), start, kind.factor), start


def stored(kind: Type, rounded: Rounded) -> F32:
    return kind.stored(rounded) * np.float32(kind.factor)


def assert_same_bits(found: F32, truth: F32) -> None:
    """But for the sign of a zero, which MXFP8 stores and integers with a zero point have none of."""
    found, truth = found + np.float32(0), truth + np.float32(0)
    np.testing.assert_array_equal(found.view(np.uint32), truth.view(np.uint32))


def assert_same_fields(found: Rounded, start: Rounded, grid: Grid) -> None:
    """All that the start says, unless a code (-0) is one of two for the same value."""
    for field, ladder in (("codes", grid.codes), ("scales", grid.scales), ("mins", grid.mins)):
        given, kept = getattr(start, field), getattr(found, field)
        assert (given is None) == (kept is None), field
        if given is not None and ladder is not None:
            assert kept.dtype == np.uint8
            known = np.isin(given, ladder.codes)
            np.testing.assert_array_equal(kept[known], given[known])
    for field in ("d", "dmin"):
        given, kept = getattr(start, field), getattr(found, field)
        assert (given is None) == (kept is None), field
        if given is not None:
            assert kept.dtype == np.float32
            np.testing.assert_array_equal(kept.view(np.uint32), given.view(np.uint32))


@each_type
@pytest.mark.parametrize("rows", [*hard_rows(), "of a model"])
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_fresh_start_is_the_search_s_own_rounding(name: str, rows: str) -> None:
    kind = TYPES[name]
    true = bell() if rows == "of a model" else np.ascontiguousarray(hard_rows()[rows][:16, :N])
    x, start = started(kind, true)
    assert_same_bits(x.weights.numpy(), dequantised(kind.grid, start) * np.float32(kind.factor))
    assert_same_bits(x.weights.numpy(), stored(kind, start))
    assert_same_fields(x.rounded(), start, kind.grid)


@pytest.mark.parametrize("beyond", [-1.0, 0.0, 1.0])
def test_a_weight_halfway_between_two_codes_keeps_the_search_s_choice(beyond: float) -> None:
    """Whichever of the two it is, and where float32 makes a half of what is just below."""
    half = np.nextafter(np.float32(0.5), np.float32(beyond)) if beyond else np.float32(0.5)
    for chosen in range(16):
        for side in (-half, half):
            start = Rounded(np.full((1, 32), chosen, np.uint8), d=np.ones((1, 1), np.float32))
            true = np.full((1, 32), np.float32(chosen - 8) + side, np.float32)
            x = Latents(GRIDS["Q4_0"], torch.from_numpy(true), start)
            assert (x.rounded().codes == chosen).all(), (chosen, side)
            assert (x.weights.numpy() == chosen - 8).all()


@each_type
def test_latents_begin_where_the_true_weights_lie(name: str) -> None:
    """Unless that is beyond the codes' ends, or nearer to another code than the search's."""
    kind, true = TYPES[name], bell()
    x, start = started(kind, true)
    codes, values = x.codes.numpy(), kind.grid.codes.values.astype(np.float64)
    chosen = kind.grid.codes.places(start.codes)
    assert np.abs(codes - chosen).max() < 0.5
    between = np.interp(codes, np.arange(len(values)), values)
    scale, shift = (np.repeat(s.numpy().astype(np.float64), kind.grid.group, 1) for s in (x.scale, x.shift))
    reached = (scale * between - shift) * kind.factor
    inside = (codes >= 0) & (codes <= kind.grid.codes.top) & (np.abs(codes - chosen) < 0.4989) & (scale != 0)
    assert inside.mean() > (0.05 if name in ("Q1_0", "TQ1_0", "TQ2_0") else 0.5)
    np.testing.assert_allclose(reached[inside], true[inside], atol=1e-6)


@each_type
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.001, 1), st.floats(0, 1), st.floats(0, 0.1))
def test_what_is_stored_is_what_was_measured(name: str, seed: int, codes: float, scales: float, d: float) -> None:
    kind, rng = TYPES[name], np.random.default_rng(seed)
    x, _ = started(kind, bell(3, seed) * np.float32(10 ** rng.uniform(-6, 3)))
    for left in (1, 0.7, 0.4):
        x.step(torch.from_numpy(rng.standard_normal((3, N)).astype(np.float32)), Rates(codes * left, scales, d))
        x.refresh()
        assert_same_bits(x.weights.numpy(), stored(kind, x.rounded()))


@each_type
def test_without_rates_for_them_scales_stay(name: str) -> None:
    kind = TYPES[name]
    x, start = started(kind, bell())
    for seed in range(5):
        x.step(torch.from_numpy(bell(seed=seed)), Rates(0.3))
        x.refresh()
    end = x.rounded()
    assert (end.codes != start.codes).any()
    assert_same_fields(end._replace(codes=start.codes), start, kind.grid)


@each_type
def test_rows_of_zeros_stay_zeros(name: str) -> None:
    kind = TYPES[name]
    true = bell()
    true[1:3] = 0
    x, _ = started(kind, true)
    zero = x.weights.numpy()[1:3].copy()
    for seed in range(5):
        x.step(torch.from_numpy(bell(seed=seed)), Rates(0.3, 0.3, 0.05))
        x.refresh()
    assert torch.isfinite(x.weights).all()
    if name not in ("MXFP4", "MXFP8", "NVFP4", "NVFP4 scaled") and not name.startswith(("INT", "Q4_1", "Q5_1")):
        np.testing.assert_array_equal(x.weights.numpy()[1:3], zero)  # the others' scales or shifts are never zero


# --- directions ------------------------------------------------------------------------------------------------------


def weights_of(grid: Grid, codes: F64, parts: dict[str, F64]) -> F64:
    """The formula of Grid's docstring for real d, dmin, and values (not places) of scales and mins; float64."""
    n, per = codes.shape[1], grid.block // grid.group

    def spread(values: F64, size: int) -> F64:
        return np.repeat(values, size, axis=1)[:, :n]

    scale: Any = 1.0
    if "d" in parts:
        scale = scale * spread(parts["d"], grid.block)
    if "scales" in parts:
        scale = scale * spread(parts["scales"], grid.group)
    shift: Any = 0.0
    if grid.shift == "d * min":
        shift = spread(parts["d"], grid.block) * spread(parts["mins"], grid.group)
    if grid.shift == "dmin * min":
        shift = spread(parts["dmin"], grid.block) * spread(parts["mins"], grid.group)
    if grid.shift == "-dmin":
        shift = -spread(parts["dmin"], grid.block)
    assert per * grid.group == grid.block
    return np.asarray(scale * codes - shift)


def parts_of(x: Latents) -> dict[str, F64]:
    """Real values of all that is stored beside the codes, as it would be stored now."""
    rounded, found = x.rounded(), {}
    for name in ("d", "dmin"):
        if getattr(rounded, name) is not None:
            found[name] = getattr(rounded, name).astype(np.float64)
    for name, ladder in (("scales", x.grid.scales), ("mins", x.grid.mins)):
        if ladder is not None:
            found[name] = ladder.values[ladder.places(getattr(rounded, name)).astype(int)].astype(np.float64)
    return found


def slopes(x: Latents, gradient: F64) -> dict[str, F64]:
    """The derivatives of sum gradient * weight, which is linear in each part: by differences."""
    codes = x.grid.codes.values[x.grid.codes.places(x.rounded().codes).astype(int)].astype(np.float64)
    parts, found = parts_of(x), {}
    groups = {"d": x.grid.block, "dmin": x.grid.block, "scales": x.grid.group, "mins": x.grid.group}
    for name, values in parts.items():
        step = np.where(values == 0, 1.0, values)
        up, down = (weights_of(x.grid, codes, parts | {name: values + sign * step / 2}) for sign in (1, -1))
        change = gradient * (up - down)
        found[name] = change.reshape(len(change), -1, groups[name]).sum(2) / step
    return found


@each_type
@pytest.mark.parametrize("seed", range(4))
def test_scales_and_shifts_step_against_the_slope_of_the_loss(name: str, seed: int) -> None:
    kind, rng = TYPES[name], np.random.default_rng(seed)
    grid = kind.grid
    x, _ = started(kind, bell(seed=seed))
    for _ in range(seed):  # away from the start, where scales and signs are the search's
        x.step(torch.from_numpy(rng.standard_normal((6, N)).astype(np.float32)), Rates(0.5, 0.8, 0.1))
        x.refresh()
    gradient = rng.standard_normal((6, N)).astype(np.float32)
    truth = slopes(x, gradient.astype(np.float64))
    still = x.scale.numpy() == 0
    before = {key: getattr(x, key).numpy().copy() for key in truth}
    x.step(torch.from_numpy(gradient), Rates(0.1, 0.25, 0.03))
    checked = 0
    for key, slope in truth.items():
        old, new = before[key], getattr(x, key).numpy()
        clear = np.abs(slope) > 1e-4 * np.abs(slope).max()
        if key in ("d", "dmin"):
            expected = np.clip(old * (1 - np.float32(0.03) * np.sign(slope * old)), -65504, 65504)
        else:
            ladder = grid.scales if key == "scales" else grid.mins
            assert ladder is not None
            expected = np.clip(old - np.float32(0.25) * np.sign(slope), -EDGE, np.float32(ladder.top) + EDGE)
            clear &= ~still if key == "scales" else True
        np.testing.assert_allclose(new[clear], expected[clear], rtol=1e-6, err_msg=key)
        checked += int(clear.sum())
    assert checked > 10


@each_type
@pytest.mark.parametrize("rates", [Rates(1.0), Rates(1.0, 1.0, 0.02), Rates(0.0, 0.0, 0.05)], ids=["codes", "all", "d"])
def test_tuning_lowers_the_loss_of_a_layer(name: str, rates: Rates) -> None:
    """|x W^T - x T^T|^2 for correlated inputs: what rounding each weight for itself does not minimise."""
    kind, rng, true = TYPES[name], np.random.default_rng(0), bell(8)
    inputs = rng.standard_normal((256, N)) * np.exp(rng.standard_normal(N) / 2)
    inputs += 2 * rng.standard_normal((256, 4)) @ rng.standard_normal((4, N))
    curvature = torch.from_numpy((inputs.T @ inputs / 256).astype(np.float32))
    x, _ = started(kind, true)
    losses = []
    for k in range(101):
        error = x.weights - torch.from_numpy(true)
        slope = error @ curvature
        losses.append(float((error * slope).sum()))
        left = (1 - k / 100) / 100
        x.step(slope, Rates(rates.codes * left, rates.scales * left, rates.d * left))
        x.refresh()
    if rates.codes:
        assert losses[-1] < 0.4 * losses[0]
    elif kind.grid.d:
        assert losses[-1] < 0.97 * losses[0]
    else:
        assert losses[-1] == losses[0]


# --- devices and memory ----------------------------------------------------------------------------------------------


@each_type
def test_the_path_of_accelerators_gives_the_same_as_the_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, true = TYPES[name], bell()
    gradients = [torch.from_numpy(bell(seed=seed)) for seed in range(4)]
    gradients[0][:, ::7] = 0
    found = []
    for number, kernels in enumerate((module._KERNELS[True], module._KERNELS[False])):
        monkeypatch.setattr(module, "_KERNELS", {True: kernels})
        x, _ = started(kind, true)
        weights, sums = [x.weights.clone()], []
        for gradient in gradients:
            x.step(gradient, Rates(0.2, 0.2, 0.02))
            x.refresh()
            weights.append(x.weights.clone())
            sums.append((x._by_scale.clone(), x._by_shift.clone()))
        found.append((weights, sums, x.codes.clone()))
        assert x.codes.min() >= -float(EDGE), number
    for ours, theirs in zip(found[0][0], found[1][0], strict=True):
        assert_same_bits(ours.numpy(), theirs.numpy())
    assert torch.equal(found[0][2], found[1][2])
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_the_parameter_itself_is_overwritten_and_only_its_rows() -> None:
    parameter = torch.from_numpy(bell(10))
    true = parameter.clone()
    rows = parameter[3:7]
    start = CODECS["Q4_K"].search(rows.numpy().copy(), None, "opt-rtn")
    x = Latents(GRIDS["Q4_K"], rows, start)
    gradient = torch.from_numpy(bell(10, seed=1))
    x.step(gradient[3:7], Rates(0.4, 0.4, 0.01))
    x.refresh()
    assert torch.equal(parameter[3:7], x.weights)
    assert not torch.equal(parameter[3:7], true[3:7])
    assert torch.equal(parameter[:3], true[:3])
    assert torch.equal(parameter[7:], true[7:])


def test_a_gradient_need_not_be_contiguous() -> None:
    kind, gradient = TYPES["Q4_K"], bell(N, seed=1)
    ends = []
    for way in (torch.from_numpy(np.ascontiguousarray(gradient[:, :6].T)), torch.from_numpy(gradient[:, :6]).T):
        x, _ = started(kind, bell())
        x.step(way, Rates(0.4, 0.4, 0.01))
        x.refresh()
        ends.append(x.weights.clone())
    assert torch.equal(*ends)


def test_the_largest_scale_stays_finite() -> None:
    kind = TYPES["Q8_0"]
    x, _ = started(kind, np.full((1, N), 65504 * 127, np.float32))
    for _ in range(20):
        x.step(torch.full((1, N), -1.0), Rates(0.1, 0.1, 0.1))
        x.refresh()
    assert float(x.weights.max()) == 65504 * 127


def test_ladders_of_a_grid_may_be_equal_objects() -> None:
    """Tables are told apart by identity: one ladder for codes, scales and mins."""
    ladder: Ladder = integer_grid(4, 32, False).codes
    grid = Grid(ladder, 32, 32, mins=ladder, shift="d * min")
    start = integer_codec(4, 32, False).search(bell(), None, "opt-rtn")
    x = Latents(grid, torch.from_numpy(bell()), start)
    assert_same_bits(x.weights.numpy(), integer_codec(4, 32, False).dequantise(start))
