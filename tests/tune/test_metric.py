"""What an error costs: by position and by direction."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from ggufround.tune.metric import FLOOR, Metric, lifted  # noqa: E402

pytestmark = pytest.mark.torch


def states(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss(metric: Metric, error: torch.Tensor, first: int = 0) -> torch.Tensor:
    return metric.loss(error, first)[0]


def curvature(gradients: int = 50, width: int = 8) -> torch.Tensor:
    slopes = states(gradients, width, seed=2)
    return slopes.T @ slopes


def test_without_weights_it_is_the_mean_of_squares() -> None:
    error = states(3, 5, 8)
    assert torch.isclose(loss(Metric(torch.ones(5)), error), error.square().mean())


def test_parts_of_a_sequence_add_up_to_the_whole() -> None:
    error, weights = states(2, 6, 8), torch.rand(6)
    metric = Metric(weights, lifted(curvature()))
    (one, by_one), (rest, by_rest), (whole, by_whole) = (
        metric.loss(error[:, :1]), metric.loss(error[:, 1:], 1), metric.loss(error)
    )  # fmt: skip
    assert torch.isclose(one + rest, whole)
    torch.testing.assert_close(torch.cat([by_one, by_rest], 1), by_whole)


def test_a_position_counts_by_its_weight() -> None:
    error = torch.zeros(1, 4, 8)
    error[0, 2] = 1
    weights = torch.tensor([1.0, 1.0, 5.0, 1.0])
    assert float(loss(Metric(weights), error)) == pytest.approx(5 / 4)


def test_it_is_the_quadratic_form_of_the_curvature() -> None:
    error, given = states(1, 1, 8, seed=3), curvature()
    scaled = given / given.diagonal().mean() + FLOOR * torch.eye(8)
    found = loss(Metric(torch.ones(1), lifted(given)), error)
    assert torch.isclose(found, error[0, 0] @ scaled @ error[0, 0] / 8, rtol=1e-4)


@pytest.mark.parametrize("directions", [False, True])
def test_the_gradient_is_the_derivative_of_the_loss(directions: bool) -> None:
    error, weights = states(2, 6, 8).double(), torch.rand(6, dtype=torch.float64)
    form = lifted(curvature()).double() if directions else torch.eye(8, dtype=torch.float64)
    error.requires_grad_(True)
    direct = (torch.einsum("bsi,ij,bsj->s", error, form, error) / 2 / 8 * weights).mean()
    direct.backward()
    found, slope = Metric(weights, form if directions else None).loss(error)
    torch.testing.assert_close(found, direct.detach())
    torch.testing.assert_close(slope, error.grad)


def test_without_any_gradient_all_directions_count_alike() -> None:
    torch.testing.assert_close(lifted(torch.zeros(64, 64)), FLOOR * torch.eye(64))
