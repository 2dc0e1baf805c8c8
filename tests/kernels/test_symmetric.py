"""Q3_K, Q6_K, Q4_0, Q5_0, IQ4_NL, IQ4_XS: llama.cpp's bytes, and a search that packs closer."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from blocks import assert_same_blocks
from ggufround_kernels import iq4, kquants_symmetric, legacy_symmetric
from ggufround_kernels.codec import Codec, Search
from reference_symmetric import IQ4_VALUES, TWINS, iq4_index

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

CODECS: dict[str, Codec] = kquants_symmetric.CODECS | legacy_symmetric.CODECS | iq4.CODECS
RECIPES: tuple[Search, Search] = ("rtn", "opt-rtn")
N = 768  # three super-blocks a row, so that rows begin anywhere in a lane group
HUGE = 5  # the row of `edge_rows` whose scales overflow float16

each_type = pytest.mark.parametrize("name", sorted(CODECS))


def edge_rows() -> F32:
    rng = np.random.default_rng(1)
    normal = rng.standard_normal(N)
    rows = [
        np.zeros(N),
        np.full(N, 0.3),
        np.where(rng.random(N) < 0.05, normal, 0),
        rng.integers(-1, 2, N) * 0.02,
        rng.standard_t(2, N),
        normal * 1e20,
        normal * 1e-39,
        normal * 1e-16,
        normal * 1e-8,
        normal * 3000,
        np.where(np.arange(N) // 16 % 5 == 0, 0, normal),
        np.exp(4 * rng.standard_normal(N)) * 1e-3,
        np.repeat(np.exp(4 * rng.standard_normal(N // 16)), 16) * normal * 1e-2,
        np.tile([1.0, -1.0], N // 2),  # a tie for the largest magnitude
        -np.abs(normal),
    ]
    return np.stack(rows).astype(np.float32)


def weight_rows(rows: int) -> F32:
    """Weights as trained ones lie: near normal, each row at its own scale, some channels larger, bfloat16."""
    rng = np.random.default_rng(2)
    scale = np.exp(0.3 * rng.standard_normal((rows, 1))) * np.exp(0.3 * rng.standard_normal((1, N)))
    weights = (rng.standard_t(6, (rows, N)) * 0.02 * scale).astype(np.float32)
    return (weights.view(np.uint32) & 0xFFFF0000).view(np.float32)


def importances() -> dict[str, F32 | None]:
    rng = np.random.default_rng(3)
    made = {
        "none": None,
        "ones": np.ones(N),
        "random": rng.lognormal(size=N),
        "half zeros": np.where(rng.random(N) < 0.5, 0, rng.random(N)),
        "zeros": np.zeros(N),
        "wide": 10.0 ** rng.uniform(-20, 20, N),
    }
    return {label: None if values is None else values.astype(np.float32) for label, values in made.items()}


def quantize(name: str, weights: F32, importance: F32 | None, search: Search) -> U8:
    codec = CODECS[name]
    packed = np.zeros((len(weights), weights.shape[1] // codec.block * codec.nbytes), np.uint8)
    codec.quantize(weights, importance, search, packed)
    return packed


def unpack(name: str, packed: U8) -> F32:
    codec = CODECS[name]
    weights = np.zeros((len(packed), packed.shape[1] // codec.nbytes * codec.block), np.float32)
    codec.unpack(packed, weights)
    return weights


def error(name: str, weights: F32, packed: U8, importance: F32 | None) -> float:
    """Sum of w (x - packed x)^2, w as llama.cpp weighs this type; w = 1 without importance."""
    x, w = weights.astype(np.float64), np.ones(weights.shape)
    if importance is not None:
        w = w * importance
        if name != "Q6_K":
            factor, span = {"Q3_K": (2, 256), "IQ4_XS": (2, 256), "IQ4_NL": (2, 32)}.get(name, (1, weights.shape[1]))
            squares = (x * x).reshape(len(x), -1, span)
            sigma2 = factor * squares.mean(2, keepdims=True)
            w = w * np.sqrt(sigma2 + squares).reshape(x.shape)
    return float((w * (x - unpack(name, packed)) ** 2).sum())


@each_type
@pytest.mark.parametrize("label", importances())
def test_rtn_equals_the_numpy_twin(name: str, label: str) -> None:
    importance = importances()[label]
    for weights in (edge_rows(), weight_rows(35)):
        ours = quantize(name, weights, importance, "rtn")
        assert_same_blocks(ours, TWINS[name](weights, importance), CODECS[name].nbytes, f"{name}, importance {label}")


@each_type
@pytest.mark.parametrize("label", importances())
@pytest.mark.peer
def test_rtn_equals_llama_cpp(name: str, label: str) -> None:
    libgguf = pytest.importorskip("libgguf")
    qtype = GGMLQuantizationType[name]
    importance = importances()[label]
    for weights in (edge_rows(), weight_rows(700)):
        theirs = np.asarray(libgguf.quantize_rows(weights, qtype, imatrix=importance), np.uint8)
        ours = quantize(name, weights, importance, "rtn")
        context = f"{name}, importance {label}"
        assert_same_blocks(ours, theirs.reshape(ours.shape), CODECS[name].nbytes, context)


@each_type
def test_unpack_equals_the_gguf_package(name: str) -> None:
    codec = CODECS[name]
    packed = np.random.default_rng(4).integers(0, 256, (40, N // codec.block * codec.nbytes), np.uint8)
    with np.errstate(all="ignore"):  # random bytes hold infinite and NaN scales
        theirs = dequantize(packed, GGMLQuantizationType[name])
    np.testing.assert_array_equal(unpack(name, packed), theirs)


@each_type
@pytest.mark.parametrize("label", importances())
def test_opt_rtn_is_never_worse_than_rtn_on_any_row(name: str, label: str) -> None:
    importance = importances()[label]
    rows = np.delete(edge_rows(), HUGE, axis=0)
    rtn, opt = (quantize(name, rows, importance, search) for search in RECIPES)
    for i in range(len(rows)):
        before = error(name, rows[i : i + 1], rtn[i : i + 1], importance)
        after = error(name, rows[i : i + 1], opt[i : i + 1], importance)
        assert after <= before * (1 + 1e-5), f"{name}, importance {label}, row {i}: {after} > {before}"


@each_type
@pytest.mark.parametrize(("label", "most"), [("none", 0.93), ("random", 0.995)])
def test_opt_rtn_lowers_the_error_of_ordinary_weights(name: str, label: str, most: float) -> None:
    importance = importances()[label]
    for weights in (weight_rows(64), np.random.default_rng(5).standard_normal((64, N), np.float32)):
        before, after = (error(name, weights, quantize(name, weights, importance, s), importance) for s in RECIPES)
        assert after <= most * before, f"{name}, importance {label}: {after / before:.4f} of rtn's error"


@each_type
def test_opt_rtn_stores_finite_scales_even_where_float16_overflows(name: str) -> None:
    packed = quantize(name, edge_rows(), None, "opt-rtn")
    assert np.isfinite(unpack(name, packed)).all()


@each_type
def test_opt_rtn_keeps_weights_that_lie_on_a_grid_of_the_type(name: str) -> None:
    once = unpack(name, quantize(name, weight_rows(8), None, "opt-rtn"))
    again = unpack(name, quantize(name, once, None, "opt-rtn"))
    assert ((once - again) ** 2).sum() <= 1e-3 * ((weight_rows(8) - once) ** 2).sum()


@each_type
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_search_then_pack_equals_quantize(name: str, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows, blocks = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 11))
    n = blocks * CODECS[name].block
    weights = (rng.standard_normal((rows, n)) * 10.0 ** data.draw(st.integers(-9, 3))).astype(np.float32)
    weights[rng.random(weights.shape) < data.draw(st.sampled_from([0, 0.5, 0.99]))] = 0
    importance = rng.random(n, np.float32) if data.draw(st.booleans()) else None
    search = data.draw(st.sampled_from(RECIPES))
    given_weights = weights.copy()
    packed = quantize(name, weights, importance, search)
    rounded = CODECS[name].search(weights, importance, search)
    assert rounded.dmin is None
    assert rounded.mins is None
    from_rounded = np.zeros_like(packed)
    CODECS[name].pack(rounded, from_rounded)
    assert_same_blocks(from_rounded, packed, CODECS[name].nbytes, f"{name}, {search}")
    np.testing.assert_array_equal(weights, given_weights)
    np.testing.assert_array_equal(unpack(name, packed), values(name, rounded.codes, rounded.d, rounded.scales))


def values(name: str, codes: U8, d: F32 | None, scales: U8 | None) -> F32:
    """The weights of a Rounded, by its definition."""
    assert d is not None
    block = CODECS[name].block
    scale = np.repeat(d, block, 1)
    if scales is not None:
        signed = scales.view(np.int8) if name == "Q6_K" else scales.astype(np.int32) - 32
        scale = scale * np.repeat(signed.astype(np.float32), codes.shape[1] // scales.shape[1], 1)
    if name.startswith("IQ4"):
        return scale * IQ4_VALUES[codes]
    middle = {"Q3_K": 4, "Q6_K": 32, "Q4_0": 8, "Q5_0": 16}[name]
    return scale * (codes.astype(np.float32) - np.float32(middle))


@each_type
def test_blocks_do_not_depend_on_their_neighbours(name: str) -> None:
    """Slabs of any number of rows give the same bytes: spare lanes of the last group must not leak."""
    weights, importance = weight_rows(37), importances()["random"]
    for search in RECIPES:
        whole = quantize(name, weights, importance, search)
        parts = [quantize(name, weights[a : a + 5], importance, search) for a in range(0, 37, 5)]
        assert_same_blocks(np.concatenate(parts), whole, CODECS[name].nbytes, f"{name}, {search}")


def test_a_value_between_two_iq4_levels_goes_where_the_reference_sends_it() -> None:
    """The kernels compare with exact midpoints, the reference two rounded differences: the same at every float near."""
    middles = (IQ4_VALUES[1:] + IQ4_VALUES[:-1]) / 2
    for k, middle in enumerate(middles):
        bits = np.float32(middle).view(np.int32) + np.arange(-5000, 5000, dtype=np.int32)
        near = bits.view(np.float32)
        np.testing.assert_array_equal(iq4_index(near), np.where(near >= middle, k + 1, k))
