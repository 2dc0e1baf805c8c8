"""What an error costs: by position and by direction."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from ggufround.tune.metric import FLOOR, Metric, square_root  # noqa: E402

pytestmark = pytest.mark.torch


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_without_weights_it_is_the_mean_of_squares() -> None:
    error = states(3, 5, 8)
    assert torch.isclose(Metric(torch.ones(5)).loss(error), error.square().mean())


def test_parts_of_a_sequence_add_up_to_the_whole() -> None:
    error, weights = states(2, 6, 8), torch.rand(6)
    metric = Metric(weights, square_root(states(8, 8, seed=2) @ states(8, 8, seed=2).T))
    parts = metric.loss(error[:, :1]) + metric.loss(error[:, 1:], 1)
    assert torch.isclose(parts, metric.loss(error))


def test_a_position_counts_by_its_weight() -> None:
    error = torch.zeros(1, 4, 8)
    error[0, 2] = 1
    weights = torch.tensor([1.0, 1.0, 5.0, 1.0])
    assert float(Metric(weights).loss(error)) == pytest.approx(5 / 4)


def test_the_factor_makes_the_quadratic_form_of_the_curvature() -> None:
    slopes, error = states(50, 8), states(1, 1, 8, seed=3)
    curvature = slopes.T @ slopes
    scaled = curvature / curvature.diagonal().mean() + FLOOR * torch.eye(8)
    found = Metric(torch.ones(1), square_root(curvature)).loss(error)
    assert torch.isclose(found, error[0, 0] @ scaled @ error[0, 0] / 8, rtol=1e-4)


def test_a_curvature_of_fewer_gradients_than_directions_has_a_root() -> None:
    slopes = states(2, 64)
    assert bool(torch.isfinite(square_root(slopes.T @ slopes)).all())
    assert bool(torch.isfinite(square_root(torch.zeros(64, 64))).all())
