"""Each format's tensors of a layer are what its specification says, for all its schemes and any cut of rows."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from blocks import assert_same_blocks
from ggufround.formats.spec import ITEM, Member, Store
from ggufround.formats.stores import global_scale
from ggufround.formats.table import FORMATS
from ggufround.quants.schemes import WHOLE, Scheme, scheme
from ggufround.quants.spec import QuantType
from ggufround_kernels import nvfp4_global_scale
from reference_packing import records
from reference_stores import TENSORS, Layer, Tensors, values

U8 = NDArray[np.uint8]
ROWS, COLUMNS = 160, 256
SCHEMES = (
    "W2A16G64", "W2A16G64-asym", "W3A16", "W3A16-asym", "W3A16G32-asym", "W4A16", "W4A16-asym", "W4A16G8", "W5A16",
    "W5A16-asym", "W6A16G32", "W6A16G32-asym", "W8A16", "W8A16-asym", "MXFP4", "MXFP4A16", "MXFP8", "NVFP4", "NVFP4A16",
    "FP8_STATIC", "FP8_BLOCK",
)  # fmt: skip
TAKEN = [(f, s) for f in FORMATS for s in SCHEMES if FORMATS[f].refusal(scheme(s)) is None]
each_pair = pytest.mark.parametrize(("name", "of"), TAKEN)
NUMPY = {
    "I32": np.int32, "U32": np.uint32, "F16": np.float16, "F32": np.float32, "I64": np.int64, "U8": np.uint8,
    "F8_E4M3": np.uint8,
}  # fmt: skip


def a_layer(of: str, rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> Layer:
    """Any codes, scales and zero points that the scheme has; some zero points are 0."""
    chosen, rng = scheme(of), np.random.default_rng(seed)
    codes = rng.integers(0, 1 << chosen.bits, (rows, columns), np.uint8)
    shape = rows, columns // (columns if chosen.group == WHOLE else chosen.group)
    if chosen.data == "fp":
        codes[codes & 127 == 127] = 0  # NaN
        scales = np.repeat(rng.uniform(0.5, 2, shape).astype(np.float32)[:: chosen.tall], chosen.tall, axis=0)[:rows]
        return Layer(8, codes, scales, tall=chosen.tall, static=chosen.active == "static")
    if chosen.data != "int":
        codes[codes & 127 == 127] = 0
        scales = rng.integers(100, 127 if chosen.data == "nv_fp" else 160, shape, np.uint8)
        return Layer(chosen.bits, codes, scales, static=chosen.active == "static")
    scales = np.ldexp(rng.uniform(1, 2, shape), rng.integers(-10, 0, shape)).astype(np.float16)
    if chosen.symmetric:
        return Layer(chosen.bits, codes, scales * rng.choice(np.array([-1, 1], np.float16), shape))
    return Layer(chosen.bits, codes, scales, rng.integers(0, 1 << chosen.bits, shape, np.uint8))


def records_of(layer: Layer) -> U8:
    return records(layer.codes, layer.bits, layer.scales, layer.zeros)


def kind_of(of: str) -> QuantType:
    return scheme(of).type_for(COLUMNS)


def store_of(name: str, of: str, rows: int = ROWS) -> Store:
    return FORMATS[name].store(scheme(of), (rows, COLUMNS))


def with_rows(store: Store) -> list[Member]:
    return [m for m in store.members if m.along is not None]


def part(member: Member, whole: NDArray, first: int, count: int) -> NDArray:
    """What so many rows of the layer are of a tensor."""
    size = whole.shape[member.along or 0]
    rows = slice(size * first // ROWS, size * (first + count) // ROWS)
    if member.tall:
        rows = slice(first // member.tall, -(-(first + count) // member.tall))
    return whole[:, rows] if member.along == 1 else whole[rows]


def described(tensors: Tensors) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {suffix: (str(array.dtype), array.shape) for suffix, array in tensors.items()}


def assert_same_tensor(ours: NDArray, theirs: NDArray, what: str) -> None:
    """Fails with the row of the array that differs most. A number a row is passed as a column."""
    theirs = theirs.reshape(len(theirs), -1)
    assert ours.shape == theirs.shape, (what, ours.shape, theirs.shape)
    a, b = (np.ascontiguousarray(x).view(np.uint8).reshape(len(x), -1) for x in (ours, theirs))
    assert_same_blocks(a, b, a.shape[1], what)


@each_pair
def test_names_dtypes_and_shapes_are_the_specifications(name: str, of: str) -> None:
    store = store_of(name, of)
    members = {m.suffix: (np.dtype(NUMPY[m.dtype]).name, m.shape) for m in store.members}
    assert members == described(TENSORS[name](a_layer(of)))
    for member in store.members:
        assert member.nbytes == prod(member.shape) * np.dtype(NUMPY[member.dtype]).itemsize
        assert ITEM.get(member.dtype, 1) == np.dtype(NUMPY[member.dtype]).itemsize


@each_pair
def test_contents_are_the_specifications(name: str, of: str) -> None:
    layer, store = a_layer(of), store_of(name, of)
    expected = TENSORS[name](layer)
    arrays = store.split(records_of(layer))
    for member, array in zip(with_rows(store), arrays, strict=True):
        assert_same_tensor(array, expected[member.suffix], f"{name} {of} {member.suffix}")
    for member in store.members:
        if member.constant:
            assert member.constant == expected[member.suffix].tobytes(), member.suffix


@each_pair
def test_a_reader_gets_the_layers_weights(name: str, of: str) -> None:
    layer = a_layer(of)
    weights = np.empty((ROWS, COLUMNS), np.float32)
    kind_of(of).unpack(records_of(layer), weights)
    back = values(name, TENSORS[name](layer), layer.bits, lowered=scheme(of).symmetric)
    if name == "mlx":  # a bias is rounded to float16, and the reader adds in another order
        np.testing.assert_allclose(back, weights, atol=2.0**-10 * np.abs(weights).max())
    else:
        np.testing.assert_array_equal(back, weights)


@each_pair
@settings(max_examples=6, deadline=None)
@given(st.integers(0, 4), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_any_rows_are_a_part_of_each_tensor_and_come_back_from_there(
    name: str, of: str, first: int, count: int, seed: int
) -> None:
    granule = kind_of(of).granule  # a cut between slabs is a multiple of it
    first = first * granule % ROWS // granule * granule
    count = min(count * granule, ROWS - first)
    store, whole = store_of(name, of), records_of(a_layer(of, seed=seed))
    packed = whole[first : first + count]
    arrays = tuple(np.ascontiguousarray(a) for a in store.split(packed))
    for member, array, of_all in zip(with_rows(store), arrays, store.split(whole), strict=True):
        np.testing.assert_array_equal(array, part(member, of_all, first, count), f"{member.suffix}")
    assert_same_blocks(store.join(arrays), packed, packed.shape[1], f"{name} {of}")


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_whole_row_may_share_a_scale(symmetric: bool) -> None:
    rng = np.random.default_rng(0)
    codes, scales = rng.integers(0, 16, (ROWS, COLUMNS), np.uint8), rng.uniform(0.01, 0.02, (ROWS, 1))
    zeros = None if symmetric else rng.integers(1, 16, (ROWS, 1), np.uint8)
    layer = Layer(4, codes, scales.astype(np.float16), zeros)
    packed = records_of(layer)
    for name in ("auto_round", "auto_gptq", "auto_awq", "llm_compressor"):
        store = FORMATS[name].store(Scheme("int", 4, WHOLE, symmetric), (ROWS, COLUMNS))
        expected = TENSORS[name](layer)
        for member, array in zip(with_rows(store), store.split(packed), strict=True):
            assert_same_tensor(array, expected[member.suffix], f"{name} {member.suffix}")
        assert_same_blocks(store.join(store.split(packed)), packed, packed.shape[1], name)


@pytest.mark.parametrize("largest", [1e-20, 0.37, 1.0, 2688.0, 1e30])
def test_the_global_scale_is_the_largest_magnitude_in_reverse(largest: float) -> None:
    """What auto-round and vLLM compute: 448 * 6 / largest, in float32, a product with the reciprocal."""
    top = np.float32(448) * np.float32(6)
    (stored,) = np.frombuffer(global_scale(float(nvfp4_global_scale(largest))), np.float32)
    np.testing.assert_allclose(stored, top * (np.float32(1) / np.float32(largest)), rtol=2e-7)
    for name in ("auto_round", "llm_compressor"):
        store = store_of(name, "NVFP4")
        assert store.scale is not None
        (member,) = (m for m in store.members if m.suffix == ".weight_global_scale")
        assert member.nbytes == len(store.scale(1.0))


def test_scales_of_activations_are_their_largest_magnitude_on_the_topmost_value() -> None:
    for name in ("auto_round", "llm_compressor"):
        for of, stored in (("NVFP4", 2688 / 7.5), ("FP8_STATIC", 7.5 / 448)):
            store = store_of(name, of)
            assert store.active is not None
            np.testing.assert_allclose(np.frombuffer(store.active(7.5), np.float32), [stored], rtol=2e-7)
