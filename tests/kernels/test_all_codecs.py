"""What holds for every codec: its ways to the bytes agree, rows are independent, and wrong arguments are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from blocks import assert_same_blocks
from ggufround_kernels import CODECS, Codec, Rounded, Search
from packed_error import importance_of, quantized, unpacked

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

SEARCHES: tuple[Search, ...] = get_args(Search)
N = 768  # a multiple of every block; three blocks of 256, so that rows begin anywhere in a group of 32 blocks

each_codec = pytest.mark.parametrize("name", sorted(CODECS))
each_search = pytest.mark.parametrize("search", SEARCHES)
with_and_without = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])

GROUPS = {  # weights that share a stored scale code
    "Q2_K": 16, "Q3_K": 16, "Q4_K": 32, "Q5_K": 32, "Q6_K": 16, "IQ4_XS": 32, "MXFP4": 32, "NVFP4": 16,
}  # fmt: skip

# The relative error sqrt(sum (x - y)^2 / sum x^2) of opt-rtn for a bell curve: no more than this
WORST_ERROR = {
    "Q1_0": 0.605, "TQ1_0": 0.445, "TQ2_0": 0.445, "Q2_0": 0.355, "Q2_K": 0.262, "Q3_K": 0.146, "MXFP4": 0.113,
    "NVFP4": 0.0825, "Q4_0": 0.082, "Q4_1": 0.070, "IQ4_NL": 0.0745, "IQ4_XS": 0.075, "Q4_K": 0.0700, "Q5_0": 0.0407,
    "Q5_1": 0.0336, "Q5_K": 0.0346, "Q6_K": 0.0167, "Q8_0": 0.00484,
}  # fmt: skip


def bell(rows: int, n: int = N, seed: int = 0) -> F32:
    """Normal weights; near 1, where also the types without a tensor scale have their range."""
    return np.random.default_rng(seed).standard_normal((rows, n)).astype(np.float32)


def packed(codec: Codec, rounded: Rounded) -> U8:
    rows, n = rounded.codes.shape
    out = np.full((rows, n // codec.block * codec.nbytes), 0x5A, np.uint8)
    codec.pack(rounded, out)
    return out


def test_every_codec_has_a_stated_error() -> None:
    assert set(WORST_ERROR) == set(CODECS)


@each_codec
@each_search
@with_and_without
def test_quantize_is_search_then_pack(name: str, search: Search, weighted: bool) -> None:
    codec, weights, importance = CODECS[name], bell(37), importance_of(N) if weighted else None
    kept, rounded = weights.copy(), codec.search(weights, importance, search)
    direct = quantized(name, weights, importance, search)
    assert_same_blocks(packed(codec, rounded), direct, codec.nbytes, f"{name} {search}")
    assert (weights == kept).all()


@each_codec
@with_and_without
def test_rows_may_be_cut_anywhere(name: str, weighted: bool) -> None:
    """Slabs of any size, and so any number of threads, give the same bytes."""
    codec, weights, importance = CODECS[name], bell(45), importance_of(N) if weighted else None
    for search in SEARCHES:
        whole = quantized(name, weights, importance, search)
        for cuts in ([1], [44], [7, 8, 30], list(range(1, 45))):
            parts = [quantized(name, part, importance, search) for part in np.split(weights, cuts)]
            assert_same_blocks(np.concatenate(parts), whole, codec.nbytes, f"{name} {search} cut at {cuts}")


@each_codec
def test_matrices_larger_than_a_chunk(name: str) -> None:
    """Kernels work through chunks of 131072 weights: their seams must not show."""
    codec, weights, importance = CODECS[name], bell(260, 1280), importance_of(1280)
    for search in SEARCHES:
        whole = quantized(name, weights, importance, search)
        rounded = codec.search(weights, importance, search)
        last = quantized(name, weights[-7:], importance, search)
        assert_same_blocks(whole[-7:], last, codec.nbytes, f"{name} {search}, last rows")
        assert_same_blocks(packed(codec, rounded), whole, codec.nbytes, f"{name} {search}, packed")
        assert (unpacked(name, whole)[-7:] == unpacked(name, last)).all()


@each_codec
@each_search
def test_any_number_of_blocks(name: str, search: Search) -> None:
    codec = CODECS[name]
    for blocks in (1, 2, 31, 32, 33, 65):
        weights = bell(1, blocks * codec.block, seed=blocks)
        one_by_one = weights.reshape(blocks, codec.block)
        context = f"{name} {search}, {blocks} blocks"
        row = quantized(name, weights, None, search)
        assert_same_blocks(row.reshape(blocks, -1), quantized(name, one_by_one, None, search), codec.nbytes, context)
        assert np.isfinite(unpacked(name, row)).all(), context


@each_codec
@each_search
@with_and_without
def test_no_rows(name: str, search: Search, weighted: bool) -> None:
    codec, weights, importance = CODECS[name], np.empty((0, N), np.float32), importance_of(N) if weighted else None
    rounded = codec.search(weights, importance, search)
    assert rounded.codes.shape == (0, N)
    assert packed(codec, rounded).size == quantized(name, weights, importance, search).size == 0
    assert unpacked(name, np.empty((0, N // codec.block * codec.nbytes), np.uint8)).shape == (0, N)


@each_codec
@each_search
def test_rounded_is_as_documented(name: str, search: Search) -> None:
    codec = CODECS[name]
    rounded = codec.search(bell(5), None, search)
    blocks = N // codec.block
    assert rounded.codes.dtype == np.uint8
    assert rounded.codes.shape == (5, N)
    for scale in (rounded.d, rounded.dmin):
        if scale is not None:
            assert scale.dtype == np.float32
            assert scale.shape == (5, blocks)
            assert (scale == scale.astype(np.float16)).all(), "scales are float16 values"
    for codes in (rounded.scales, rounded.mins):
        if codes is not None:
            assert codes.dtype == np.uint8
            assert codes.shape[0] == 5
            assert codes.shape[1] % blocks == 0
    assert (rounded.d is None) == (name in ("MXFP4", "NVFP4"))
    assert (rounded.dmin is not None) == (name in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"))
    assert (rounded.mins is not None) == (name in ("Q2_K", "Q4_K", "Q5_K"))
    groups = GROUPS.get(name)
    assert (rounded.scales is None) == (groups is None)
    if rounded.scales is not None and groups is not None:
        assert rounded.scales.shape[1] == N // groups


@each_codec
def test_better_search_keeps_the_stated_error_and_beats_the_reference(name: str) -> None:
    weights, errors = bell(16), {}
    for search in SEARCHES:
        back = unpacked(name, quantized(name, weights, None, search)).astype(np.float64)
        errors[search] = np.sqrt(((weights - back) ** 2).sum() / (weights.astype(np.float64) ** 2).sum())
    assert errors["opt-rtn"] <= WORST_ERROR[name]
    if name == "Q1_0":  # codes are signs and d is the mean magnitude: nothing is left to search for
        assert errors["opt-rtn"] == errors["rtn"]
    else:
        assert errors["opt-rtn"] < errors["rtn"]


@each_codec
def test_values_of_the_grid_come_back_from_the_better_search(name: str) -> None:
    """What has been rounded already is rounded again without loss worth mentioning."""
    once = unpacked(name, quantized(name, bell(8), None, "opt-rtn"))
    again = unpacked(name, quantized(name, once, None, "opt-rtn"))
    lost = np.sqrt(((once - again) ** 2).sum() / (once**2).sum())
    assert lost < 0.2 * WORST_ERROR[name]


@each_codec
def test_wrong_arguments_are_refused_by_name(name: str) -> None:
    codec, block, nbytes = CODECS[name], CODECS[name].block, CODECS[name].nbytes
    weights, out = np.zeros((3, 2 * block), np.float32), np.zeros((3, 2 * nbytes), np.uint8)
    rounded = codec.search(weights, None, "opt-rtn")
    frozen = out.copy()
    frozen.flags.writeable = False
    refused = {
        "a row that is no multiple of the block": lambda: codec.search(weights[:, :-1].copy(), None, "rtn"),
        "weights as one row without a second axis": lambda: codec.search(weights[0], None, "rtn"),
        "float64 weights": lambda: codec.search(weights.astype(np.float64), None, "rtn"),  # type: ignore[arg-type]
        "every second row": lambda: codec.search(weights[::2], None, "rtn"),
        "importance of another length": lambda: codec.search(weights, np.ones(block, np.float32), "rtn"),
        "importance by row": lambda: codec.quantize(weights, np.ones_like(weights), "rtn", out),
        "a search of another name": lambda: codec.search(weights, None, "best"),  # type: ignore[arg-type]
        "out that is too small": lambda: codec.quantize(weights, None, "rtn", out[:, :-1].copy()),
        "out with too many rows": lambda: codec.quantize(weights[:2], None, "rtn", out),
        "out that is read-only": lambda: codec.quantize(weights, None, "rtn", frozen),
        "codes of another dtype": lambda: codec.pack(rounded._replace(codes=rounded.codes.astype(np.int8)), out),  # type: ignore[arg-type]
        "pack into too small an array": lambda: codec.pack(rounded, out[:2]),
        "packed rows of another size": lambda: codec.unpack(out[:, :-1].copy(), weights),
        "unpack into too small an array": lambda: codec.unpack(out, weights[:, :block].copy()),
        "packed float32": lambda: codec.unpack(out.astype(np.float32), weights),  # type: ignore[arg-type]
    }
    field = next(f for f in ("d", "scales") if getattr(rounded, f) is not None)
    refused["a scale missing"] = lambda: codec.pack(rounded._replace(**{field: None}), out)
    short = getattr(rounded, field)[:, :1].copy()
    refused["too few scales"] = lambda: codec.pack(rounded._replace(**{field: short}), out)
    for case, call in refused.items():
        assert refusal(call).startswith(f"{name}: "), case


def refusal(call: Callable[[], object]) -> str:
    """The message of the ValueError that the call raises, empty if it raises none."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""
