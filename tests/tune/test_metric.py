"""What an error costs: by position, by direction, and along states of unusual length."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from ggufround.tune.metric import FLOOR, LONG, Metric, square_root  # noqa: E402

pytestmark = pytest.mark.torch


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_without_weights_it_is_the_mean_of_squares() -> None:
    error, target = states(3, 5, 8), states(3, 5, 8, seed=1)
    assert torch.isclose(Metric(torch.ones(5), 1.0).loss(error, target), error.square().mean())


def test_parts_of_a_sequence_add_up_to_the_whole() -> None:
    error, target, weights = states(2, 6, 8), states(2, 6, 8, seed=1), torch.rand(6)
    metric = Metric(weights, 1.0, 0.2, square_root(states(8, 8, seed=2) @ states(8, 8, seed=2).T))
    parts = metric.loss(error[:, :1], target[:, :1]) + metric.loss(error[:, 1:], target[:, 1:], 1)
    assert torch.isclose(parts, metric.loss(error, target))


def test_a_position_counts_by_its_weight() -> None:
    error = torch.zeros(1, 4, 8)
    error[0, 2] = 1
    weights = torch.tensor([1.0, 1.0, 5.0, 1.0])
    assert float(Metric(weights, 1.0).loss(error, error)) == pytest.approx(5 / 4)


def test_the_factor_makes_the_quadratic_form_of_the_curvature() -> None:
    slopes, error = states(50, 8), states(1, 1, 8, seed=3)
    curvature = slopes.T @ slopes
    scaled = curvature / curvature.diagonal().mean() + FLOOR * torch.eye(8)
    found = Metric(torch.ones(1), 1e9, 1.0, square_root(curvature)).loss(error, error)
    assert torch.isclose(found, error[0, 0] @ scaled @ error[0, 0] / 8, rtol=1e-4)


def test_a_curvature_of_fewer_gradients_than_directions_has_a_root() -> None:
    slopes = states(2, 64)
    assert bool(torch.isfinite(square_root(slopes.T @ slopes)).all())
    assert bool(torch.isfinite(square_root(torch.zeros(64, 64))).all())


def test_the_length_of_a_long_state_counts_as_little_as_was_measured() -> None:
    target = torch.zeros(1, 1, 8)
    target[0, 0, 0] = 1000.0  # far longer than typical: the part of the error along it is nearly all discounted
    along, across = torch.zeros(1, 1, 8), torch.zeros(1, 1, 8)
    along[0, 0, 0], across[0, 0, 1] = 1.0, 1.0
    metric = Metric(torch.ones(1), typical=1.0, lengthwise=0.04)
    assert float(metric.loss(along, target)) == pytest.approx(0.04 / 8, rel=1e-2)
    assert float(metric.loss(across, target)) == pytest.approx(1 / 8)


def test_a_state_of_common_length_is_not_discounted() -> None:
    target, error = states(1, 3, 8), states(1, 3, 8, seed=1)
    typical = float(target.norm(dim=-1).max()) / LONG
    assert torch.isclose(Metric(torch.ones(3), typical, 0.0).loss(error, target), error.square().mean())
