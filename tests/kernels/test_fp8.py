"""FP8 of checkpoints: the largest magnitude of each row, or tile of 128 rows and columns, decides its scale."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ggufround_kernels import FP8_BLOCK, GroupCodec, Rounded, Search, fp8_codec
from hard_rows import N, hard_rows
from packed_error import importance_of
from reference_fp4 import dequantize_fp8, quantize_fp8

F32 = NDArray[np.float32]

SEARCHES: tuple[Search, ...] = ("rtn", "opt-rtn")
TALL = {"FP8 channel": 1, "FP8 block": 128}
each_codec = pytest.mark.parametrize("codec", [fp8_codec(N), FP8_BLOCK], ids=TALL)
each_row = pytest.mark.parametrize("rows", hard_rows())


def assert_same(codec: GroupCodec, x: F32, search: Search = "rtn", importance: F32 | None = None) -> None:
    """Codes and scales are the twin's; else the row of a group that differs most is shown."""
    ours, (codes, scales) = codec.search(x, importance, search), quantize_fp8(x, codec.group, TALL[codec.name])
    assert ours.d is not None
    np.testing.assert_array_equal(ours.d, scales)
    wrong = (ours.codes != codes).reshape(-1, codec.group).sum(axis=1)
    worst = int(wrong.argmax()) if wrong.size else 0
    assert not wrong.any(), (
        f"{codec.name}: {np.count_nonzero(wrong)} of {len(wrong)} groups differ; worst is {worst}\n"
        f"  ours   {ours.codes.reshape(-1, codec.group)[worst]}\n  theirs {codes.reshape(-1, codec.group)[worst]}\n"
        f"  weights {x.reshape(-1, codec.group)[worst]} over {scales.reshape(-1)[worst]}"
    )


@each_codec
@each_row
def test_rounding_is_the_twins(codec: GroupCodec, rows: str) -> None:
    assert_same(codec, hard_rows()[rows])


@each_codec
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 150), st.floats(0.5, 30), st.floats(-30, 30))
def test_any_random_rows_are_the_twins(codec: GroupCodec, seed: int, rows: int, tails: float, size: float) -> None:
    """A matrix may end within a tile. Both searches are the same, with and without importance."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_t(tails, (rows, N)).clip(-1e6, 1e6) * 10.0**size).astype(np.float32)
    for search in SEARCHES:
        assert_same(codec, x, search, importance_of(N))


@each_codec
@each_row
def test_values_are_the_twins_and_near_the_weights(codec: GroupCodec, rows: str) -> None:
    x = hard_rows()[rows]
    rounded = codec.search(x, None, "rtn")
    back, (codes, scales) = codec.dequantise(rounded), quantize_fp8(x, codec.group, TALL[codec.name])
    np.testing.assert_array_equal(back, dequantize_fp8(codes, scales))
    assert np.isfinite(back).all()
    assert (back[x == 0] == 0).all()
    half_step = np.maximum(np.abs(x) / 16, np.repeat(scales, codec.group, axis=1) * 2.0**-10)
    assert (np.abs(back.astype(np.float64) - x) <= half_step * (1 + 1e-6)).all()


@each_codec
def test_rows_of_other_tiles_do_not_matter_and_nothing_passed_in_is_changed(codec: GroupCodec) -> None:
    x = np.random.default_rng(2).standard_t(3, (300, N)).astype(np.float32)
    kept, whole = x.copy(), codec.search(x, None, "rtn")
    assert whole.d is not None
    for first in range(0, 300, 128):
        alone = codec.search(x[first : first + 128], None, "rtn")
        np.testing.assert_array_equal(alone.codes, whole.codes[first : first + 128])
        np.testing.assert_array_equal(alone.d, whole.d[first : first + 128])
    np.testing.assert_array_equal(x, kept)


def test_wrong_arguments_are_refused_by_name() -> None:
    x = np.zeros((3, 256), np.float32)
    with pytest.raises(ValueError, match=r"^FP8 block: weights of shape \(3, 192\)"):
        FP8_BLOCK.search(x[:, :192].copy(), None, "rtn")
    with pytest.raises(ValueError, match="^FP8 channel: search 'best'"):
        fp8_codec(256).search(x, None, "best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rows of 100 weights; must be a multiple of 32"):
        fp8_codec(100)
    rounded: Rounded = FP8_BLOCK.search(x, None, "rtn")
    with pytest.raises(ValueError, match="^FP8 block: d"):
        FP8_BLOCK.dequantise(rounded._replace(d=None))
    assert fp8_codec(256) is fp8_codec(256)
