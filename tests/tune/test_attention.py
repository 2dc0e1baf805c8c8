"""Attention in strips, against torch's own in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from ggufround.tune import attention  # noqa: E402
from ggufround.tune.attention import attend  # noqa: E402

pytestmark = pytest.mark.torch
CAUSAL: Any = SimpleNamespace(is_causal=True, num_key_value_groups=1)


def tensors(heads: int, shared: int, length: int, width: int, wide: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = (heads, width), (shared, width), (shared, wide)
    # as projections give them: [b, s, heads, d], the axes swapped
    return [torch.randn(2, length, h, d, generator=generator).transpose(1, 2) for h, d in shapes]


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    each = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(each, 1), value.repeat_interleave(each, 1)
    scores = query @ key.mT * scale
    scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize(
    ("heads", "shared", "length", "width", "wide"),
    [(4, 4, 64, 8, 8), (6, 2, 130, 16, 16), (4, 1, 5, 8, 8), (3, 3, 2, 12, 4), (2, 1, 1100, 8, 8)],
)
def test_output_and_gradients_are_those_of_plain_attention(
    heads: int, shared: int, length: int, width: int, wide: int
) -> None:
    given = [x.requires_grad_(True) for x in tensors(heads, shared, length, width, wide)]
    exact = [x.detach().double().requires_grad_(True) for x in given]
    out, _ = attend(CAUSAL, *given, None, scaling=0.3)
    expected = reference(exact[0], exact[1], exact[2], 0.3)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(out, given, slope)
    wanted = torch.autograd.grad(expected, exact, slope.double())
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_as_near_as_bfloat16_can_be() -> None:
    given = [x.requires_grad_(True) for x in tensors(6, 2, 200, 16, 16)]
    exact = [x.detach().double().requires_grad_(True) for x in given]
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = attend(CAUSAL, *given, None)
    assert out.dtype == torch.bfloat16
    expected = reference(exact[0], exact[1], exact[2], 0.25)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = torch.autograd.grad(out, given, slope)
    wanted = torch.autograd.grad(expected, exact, slope.double())
    for one, other in zip((out.detach(), *found), (expected.detach(), *wanted), strict=True):
        assert float((one.double() - other).norm() / other.norm()) < 0.01


@pytest.mark.parametrize("how", ["no gradient", "mask", "one token", "not causal"])
def test_whatever_else_is_left_to_torch(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention._Strips, "apply", lambda *args: pytest.fail("called"))
    length = 1 if how == "one token" else 7
    query, key, value = (x.requires_grad_(how != "no gradient") for x in tensors(2, 2, length, 8, 8))
    mask = torch.ones(2, 1, length, length).bool() if how == "mask" else None
    out, _ = attend(CAUSAL, query, key, value, mask, is_causal=False if how == "not causal" else None)
    assert out.shape == (2, length, 2, 8)
