"""F32, F16 and BF16: every bit as numpy and the definition of bfloat16 say, and the checks for finite weights."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufround_kernels import FLOATS, absmax, first_nonfinite, widen_bf16


def patterns() -> NDArray[np.float32]:
    """Every exponent with both signs and mantissas around each rounding boundary, infinities and NaN included."""
    tails = np.array([0, 1, 0x7FF, 0x800, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    mantissas = (np.arange(0, 128, dtype=np.uint32)[:, None] << 16 | tails).reshape(-1)
    exponents = np.arange(256, dtype=np.uint32) << 23
    bits = (exponents[:, None] | mantissas).reshape(-1)
    return np.concatenate([bits, bits | 0x80000000]).astype(np.uint32).view(np.float32)


def stored(name: str, weights: NDArray[np.float32]) -> NDArray[np.uint16]:
    out = np.zeros(2 * weights.size, np.uint8)
    FLOATS[name].quantize(weights, None, "rtn", out)
    return out.view(np.uint16)


def test_f16_is_numpys_float16_for_every_boundary() -> None:
    weights = patterns()
    with np.errstate(over="ignore", invalid="ignore"):
        expected = weights.astype(np.float16)
    finite = ~np.isnan(weights)
    np.testing.assert_array_equal(stored("F16", weights)[finite], expected.view(np.uint16)[finite])
    assert np.isnan(stored("F16", weights).view(np.float16)[~finite]).all()


def test_bf16_rounds_to_nearest_even_and_keeps_nan() -> None:
    weights = patterns()
    bits = weights.view(np.uint32).astype(np.uint64)
    expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    expected[np.isnan(weights)] = (bits[np.isnan(weights)] >> 16 | 64).astype(np.uint16)
    np.testing.assert_array_equal(stored("BF16", weights), expected)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_what_was_stored_comes_back(name: str) -> None:
    weights = np.random.default_rng(0).standard_normal((3, 37), dtype=np.float32)
    row = FLOATS[name]
    packed, back, again = np.zeros((3, 37 * row.nbytes), np.uint8), np.zeros_like(weights), np.zeros_like(weights)
    row.quantize(weights, None, "opt-rtn", packed)
    row.unpack(packed, back)
    np.testing.assert_allclose(back, weights, rtol=2**-8)
    row.quantize(back, None, "rtn", packed)
    row.unpack(packed, again)
    np.testing.assert_array_equal(again, back)


def test_widening_bf16_puts_the_bits_on_top() -> None:
    raw = np.arange(65536, dtype=np.uint16)
    out = np.empty(65536, np.float32)
    widen_bf16(raw.view(np.uint8), out)
    np.testing.assert_array_equal(out.view(np.uint32), raw.astype(np.uint32) << 16)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 17, 99])
def test_the_first_weight_that_is_not_finite_is_found(value: float, place: int) -> None:
    weights = np.ones((10, 10), np.float32)
    assert first_nonfinite(weights) == -1
    weights.reshape(-1)[place] = value
    weights.reshape(-1)[99] = np.nan
    assert first_nonfinite(weights) == place


def test_absmax_sees_either_sign() -> None:
    assert absmax(np.array([1, -7, 3], np.float32)) == 7
    assert absmax(np.zeros(0, np.float32)) == 0
