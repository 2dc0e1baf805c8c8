"""The two passes of the tuner over the weights do what their plain twins do, whatever the group and the scale."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ggufround_kernels.tuning import EDGE, dequantise, step

F32 = NDArray[np.float32]
GROUPS = (16, 24, 32, 40, 64, 256, 1)  # a half, whole numbers and an odd part of a vector's 32 lanes
COUNTS = (1, 2, 7)  # groups: two of 16 are done at once
LEVELS = np.array([-7, -4.5, -3, -1, 0, 0.25, 1, 2, 3, 6, 8, 11, 13.5], np.float32)  # any ascending table

each_group = pytest.mark.parametrize("group", GROUPS)
each_count = pytest.mark.parametrize("count", COUNTS)


class Case(NamedTuple):
    """`count` groups of weights with all that one iteration needs."""

    latents: F32
    gradient: F32
    scale: F32
    shift: F32
    group: int
    values: F32
    factor: float = 1.0

    @property
    def top(self) -> int:
        return len(self.values) - 1

    def weights(self) -> F32:
        out = np.full_like(self.latents, np.nan)
        dequantise(self.latents, self.scale, self.shift, self.group, self.values, np.float32(self.factor), out)
        return out

    def part(self, first: int, last: int) -> Case:
        """Groups first .. last alone."""
        a, b = first * self.group, last * self.group
        return self._replace(
            latents=self.latents[a:b].copy(),
            gradient=self.gradient[a:b].copy(),
            scale=self.scale[first:last].copy(),
            shift=self.shift[first:last].copy(),
        )


def case(group: int, count: int, seed: int = 0) -> Case:
    """Latents up to both edges, scales of both signs and zero, gradients that are zero now and then."""
    rng = np.random.default_rng([seed, group, count])
    n = group * count
    latents = rng.uniform(-0.499, len(LEVELS) - 0.501, n).astype(np.float32)
    latents[:: max(1, n // 5)] = -EDGE
    latents[1 :: max(2, n // 5)] = np.float32(len(LEVELS) - 1) + EDGE
    gradient = (1e-4 * rng.standard_normal(n) * (rng.random(n) < 0.8)).astype(np.float32)
    scale = (0.02 * rng.standard_normal(count) * (rng.random(count) < 0.8)).astype(np.float32)
    return Case(latents, gradient, scale, (0.1 * rng.standard_normal(count)).astype(np.float32), group, LEVELS)


def dequantise_twin(x: Case) -> F32:
    places = np.floor(x.latents + np.float32(0.5)).astype(int)
    scale, shift = np.repeat(x.scale, x.group), np.repeat(x.shift, x.group)
    return (scale * x.values[places] - shift) * np.float32(x.factor)


def step_twin(x: Case, rate: float) -> tuple[F32, F32, F32]:
    """New latents, and the loss's derivatives by each group's scale and shift: loss's by a weight are the gradient."""
    slope = np.sign(x.gradient) * np.repeat(np.sign(x.scale), x.group)
    moved = x.latents - np.float32(rate) * slope
    edge = np.float32(x.top) + np.float32(0.499)
    places = np.floor(x.latents + np.float32(0.5)).astype(int)
    products = (x.gradient.astype(np.float64) * x.values[places]).reshape(-1, x.group).sum(1)
    sums = x.gradient.astype(np.float64).reshape(-1, x.group).sum(1)
    by_scale = np.where(x.scale == 0, 0, products)
    return np.clip(moved, -np.float32(0.499), edge), by_scale.astype(np.float32), -sums.astype(np.float32)


def stepped(x: Case, rate: float) -> tuple[F32, F32, F32]:
    """The same of the kernel; nothing but the latents may change."""
    latents, by_scale, by_shift = x.latents.copy(), np.full_like(x.scale, np.nan), np.full_like(x.scale, np.nan)
    weights = x.weights()
    inputs = [a.copy() for a in (x.gradient, weights, x.scale, x.shift)]
    step(latents, inputs[0], inputs[1], inputs[2], inputs[3], x.group, x.top, np.float32(rate), by_scale, by_shift)
    for before, after in zip((x.gradient, weights, x.scale, x.shift), inputs, strict=True):
        np.testing.assert_array_equal(before, after)
    return latents, by_scale, by_shift


def assert_derivatives(found: F32, truth: F32, x: Case) -> None:
    """Equal up to what float32 sums of these terms lose; a scale near 0 divides that."""
    sizes = np.abs(x.gradient).reshape(-1, x.group).sum(1) * (np.abs(x.values).max() + 1)
    with np.errstate(divide="ignore"):
        grown = np.where(x.scale == 0, 1, 1 + np.abs(x.shift / x.scale))
    assert (np.abs(found - truth) <= 1e-5 * sizes * grown).all(), (found, truth)


@each_group
@each_count
@pytest.mark.parametrize("factor", [1.0, 0.0371])
def test_weights_are_scale_times_the_nearest_value_less_shift(group: int, count: int, factor: float) -> None:
    x = case(group, count)._replace(factor=factor)
    np.testing.assert_array_equal(x.weights().view(np.uint32), dequantise_twin(x).view(np.uint32))


@each_group
@each_count
@pytest.mark.parametrize("rate", [0.02, 0.0, 5.0])
def test_a_step_is_the_twins(group: int, count: int, rate: float) -> None:
    x = case(group, count)
    latents, by_scale, by_shift = stepped(x, rate)
    truth, by_scale_truth, by_shift_truth = step_twin(x, rate)
    np.testing.assert_array_equal(latents, truth)
    assert_derivatives(by_scale, by_scale_truth, x)
    assert_derivatives(by_shift, by_shift_truth, x)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([*GROUPS, 48, 96, 128, 5]),
    st.integers(1, 9),
    st.floats(0, 3, width=32),
    st.integers(2, 256),
)
def test_any_groups_with_any_table_step_like_the_twin(seed: int, group: int, count: int, rate: float, top: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.sort(rng.standard_normal(top)).astype(np.float32)
    x = case(group, count, seed)._replace(values=values)
    x = x._replace(latents=np.clip(x.latents, -EDGE, np.float32(x.top) + EDGE))
    np.testing.assert_array_equal(x.weights(), dequantise_twin(x))
    latents, by_scale, by_shift = stepped(x, rate)
    truth, by_scale_truth, by_shift_truth = step_twin(x, rate)
    np.testing.assert_array_equal(latents, truth)
    assert_derivatives(by_scale, by_scale_truth, x)
    assert_derivatives(by_shift, by_shift_truth, x)


@each_group
def test_where_the_scale_is_zero_nothing_moves_and_its_derivative_is_zero(group: int) -> None:
    x = case(group, 6)
    x.scale[:] = [0, 0.5, 0, -0.0, -0.5, 0]
    latents, by_scale, by_shift = stepped(x, 0.3)
    still = np.repeat(x.scale == 0, group)
    np.testing.assert_array_equal(latents[still], x.latents[still])
    assert (by_scale[x.scale == 0] == 0).all()
    assert (by_shift != 0).any()  # a shift alone can still be tuned
    assert np.isfinite(by_shift).all()


@each_group
def test_where_the_gradient_is_zero_nothing_moves(group: int) -> None:
    x = case(group, 4)
    x.gradient[:] = 0
    x.gradient[group : 2 * group : 2] = -0.0
    latents, by_scale, by_shift = stepped(x, 0.3)
    np.testing.assert_array_equal(latents, x.latents)
    assert not by_scale.any()
    assert not by_shift.any()


@each_group
def test_latents_stay_within_half_a_code_of_the_ends_however_long_they_walk(group: int) -> None:
    x = case(group, 2)
    x.scale[:] = 0.1, -0.1
    for sign in (1, -1):
        gradient = np.full_like(x.gradient, sign)
        latents = x.latents
        for _ in range(100):
            latents, _, _ = stepped(x._replace(latents=latents, gradient=gradient), 0.37)
        low, high = -EDGE, np.float32(x.top) + EDGE
        ends = (low, high) if sign > 0 else (high, low)  # a positive slope lowers the weight
        np.testing.assert_array_equal(latents, np.repeat(np.array(ends, np.float32), group))
        weights = x._replace(latents=latents).weights()
        on_the_grid = {float(s * v - m) for s, m in zip(x.scale, x.shift, strict=True) for v in LEVELS}
        assert set(weights.tolist()) <= on_the_grid


@each_group
def test_a_step_goes_down_the_slope(group: int) -> None:
    """Every weight that changes does so against its gradient, for either sign of the scale."""
    x = case(group, 20)
    x.scale[:] = np.tile(np.array([0.3, -0.3, 0.1, -0.2, 0.7], np.float32), 4)
    moved = x._replace(latents=stepped(x, 0.9)[0]).weights()
    change = (moved - x.weights()) * x.gradient
    assert (change <= 0).all()
    assert (change < 0).any()


@each_group
def test_a_factor_of_the_whole_matrix_scales_the_derivative_by_each_scale(group: int) -> None:
    x = case(group, 4)
    x.shift[:] = 0
    plain, scaled = stepped(x, 0.02), stepped(x._replace(factor=0.25), 0.02)
    np.testing.assert_array_equal(scaled[0], plain[0])
    np.testing.assert_array_equal(scaled[1], plain[1] * np.float32(0.25))


@each_group
def test_groups_may_be_handed_out_in_any_runs(group: int) -> None:
    x = case(group, 8)
    whole, weights = stepped(x, 0.02), x.weights()
    for cuts in ([0, 3, 8], [0, 1, 2, 8], [0, 5, 6, 8]):
        parts = [x.part(a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
        np.testing.assert_array_equal(np.concatenate([part.weights() for part in parts]), weights)
        for k, several in enumerate(zip(*(stepped(part, 0.02) for part in parts), strict=True)):
            if k == 0:  # sums of 16 take another order where a group is alone
                np.testing.assert_array_equal(np.concatenate(several), whole[k])
            else:
                assert_derivatives(np.concatenate(several), whole[k], x)


def test_the_same_run_gives_the_same_bits_whatever_lies_around_it() -> None:
    """Threads that share a matrix get runs of whole groups: where those begin must not matter."""
    for group in (16, 32, 64):
        x = case(group, 12)
        whole = stepped(x, 0.02)
        for a, b in ((0, 4), (4, 10), (10, 12)):
            for found, truth in zip(stepped(x.part(a, b), 0.02), whole, strict=True):
                size = group if len(truth) > 12 else 1
                np.testing.assert_array_equal(found, truth[a * size : b * size])
