"""Packed weights: every layout against values written bit by bit, at any cut; what contradicts itself is refused."""

from __future__ import annotations

import tracemalloc
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufround.checkpoint import Reader
from ggufround.checkpoint.methods import Method, Stated
from ggufround.checkpoint.packings import pack_up
from ggufround.checkpoint.reading import scratch_bytes
from ggufround.checkpoint.shards import BITS
from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.errors import InputError
from packed_layouts import (
    F32,
    GPTQ4,
    Layer,
    Stored,
    awq,
    compressed,
    config,
    fp4,
    gptq,
    groups_config,
    layer,
    mlx,
    mxfp4_blocks,
    rows_of,
    whole,
    write,
)

ROWS, COLUMNS = 96, 128
RNG = np.random.default_rng(2)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def gptq_config(x: Layer, **further: Any) -> dict[str, Any]:
    return config("gptq", bits=x.bits, group_size=x.group, sym=False, **further)


def int_config(x: Layer) -> dict[str, Any]:
    return groups_config("pack-quantized", {"type": "int", "num_bits": x.bits, "group_size": x.group})


def mlx_config(x: Layer, **further: Any) -> dict[str, Any]:
    return {"quantization": {"bits": x.bits, "group_size": x.group, **further}}


def fp4_values(codes: Any) -> F32:
    return np.where(codes & 8, -1, 1).astype(np.float32) * E2M1[codes & 7]


def e4m3(codes: Any) -> F32:
    exponent, mantissa = (codes >> 3 & 15).astype(np.float64), codes & 7
    size = np.where(exponent > 0, (1 + mantissa / 8) * 2 ** (exponent - 7), mantissa / 8 * 2.0**-6)
    return np.where(codes & 128, -size, size).astype(np.float32)


Case = tuple[Stored, dict[str, Any], F32]


def cases() -> dict[str, Case]:
    out: dict[str, Case] = {}
    for bits in (2, 3, 4, 5, 6, 8):
        for symmetric in (True, False):
            kind = f"{bits} {'sym' if symmetric else 'asym'}"
            x = layer(ROWS, COLUMNS, bits, 32, symmetric, seed=bits)
            out[f"gptq {kind}"] = gptq("a", x), gptq_config(x), x.weights
            out[f"compressed {kind}"] = compressed("a", x, zeros=not symmetric), int_config(x), x.weights
        biases = RNG.normal(0, 0.1, x.scales.shape).astype(np.float16).astype(np.float32)
        wanted = x.codes.astype(np.float32) * np.repeat(x.scales, 32, 1) + np.repeat(biases, 32, 1)
        out[f"mlx {bits}"] = mlx("a", x, biases), mlx_config(x), wanted
    x = layer(ROWS, COLUMNS, 4, 32, symmetric=False)
    raw = gptq("a", x, lowered=False, order=False)
    out["gptq v2"] = raw, gptq_config(x, checkpoint_format="gptq_v2"), x.weights
    out["auto_round"] = raw, config("auto-round", bits=4, group_size=32, packing_format="auto_round"), x.weights
    out["awq"] = awq("a", x), config("awq", bits=4, group_size=32), x.weights
    packing = {"packing_format": "auto_round:auto_awq"}
    out["auto_round awq"] = awq("a", x), config("auto-round", bits=4, group_size=32, **packing), x.weights
    for dtype in ("BF16", "F32"):
        rounded = Layer(4, x.codes, np.float32(2) ** np.round(np.log2(x.scales)), x.zeros, 32)
        out[f"gptq {dtype}"] = gptq("a", rounded, scales=dtype), gptq_config(x), rounded.weights
    x = layer(ROWS, COLUMNS, 4, 32, symmetric=False, reordered=True)
    out["gptq reordered"] = gptq("a", x), gptq_config(x, desc_act=True), x.weights
    out["compressed reordered"] = compressed("a", x, zeros=True), int_config(x), x.weights
    x = layer(ROWS, COLUMNS, 4, COLUMNS)
    out["whole rows"] = gptq("a", x), config("gptq", bits=4, group_size=-1), x.weights
    out["channels"] = compressed("a", x), int_config(x), x.weights
    x = layer(ROWS, 192, 4, 128)
    out["a short last group"] = gptq("a", x), gptq_config(x), x.weights
    x = layer(20, 100, 5, 100)
    out["ends of words unused"] = compressed("a", x, zeros=True), int_config(x), x.weights
    signed = RNG.integers(-128, 128, (ROWS, COLUMNS))
    scales = RNG.uniform(0.01, 0.1, (ROWS, 1)).astype(np.float16).astype(np.float32)
    stored = {"a.weight": whole(signed, "I8"), "a.weight_scale": ("F32", (ROWS, 1), scales.tobytes())}
    wanted = signed.astype(np.float32) * scales
    out["bytes"] = stored, groups_config("int-quantized", {"type": "int", "num_bits": 8}), wanted
    codes = RNG.integers(0, 16, (ROWS, COLUMNS))
    exponents = RNG.integers(100, 140, (ROWS, COLUMNS // 32)).astype(np.uint8)
    wanted = fp4_values(codes) * np.repeat(np.ldexp(np.float32(1), exponents.astype(int) - 127), 32, 1)
    four = {"type": "float", "num_bits": 4}
    out["mxfp4"] = fp4("a", codes, exponents), groups_config("mxfp4-pack-quantized", four), wanted
    out["mxfp4 blocks"] = mxfp4_blocks("a", codes, exponents), config("mxfp4"), wanted
    small = RNG.integers(0, 127, (ROWS, COLUMNS // 16)).astype(np.uint8)
    small[3, 2] |= 128
    wanted = fp4_values(codes) * np.repeat(e4m3(small), 16, 1) * (np.float32(1) / np.float32(700))
    out["nvfp4"] = fp4("a", codes, small, 700.0), groups_config("nvfp4-pack-quantized", four), wanted
    return out


CASES = cases()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("packed")
    return {name: write(folder / name, stored, said) for name, (stored, said, _) in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_packed_weight_is_one_tensor_with_the_values_that_its_layout_means(
    found: dict[str, Checkpoint], case: str
) -> None:
    tensors = found[case].tensors
    assert tensors.keys() == {"a.weight"}
    assert tensors["a.weight"].shape == CASES[case][2].shape
    np.testing.assert_array_equal(rows_of(found[case], "a.weight"), CASES[case][2])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_rows_can_be_read_alone(found: dict[str, Checkpoint], data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(sorted(CASES)))
    wanted = CASES[case][2]
    first = data.draw(st.integers(0, len(wanted) - 1))
    count = data.draw(st.integers(1, len(wanted) - first))
    np.testing.assert_array_equal(rows_of(found[case], "a.weight", first, count), wanted[first : first + count])


@pytest.mark.parametrize("case", CASES)
def test_the_stated_scratch_is_enough_and_every_byte_is_handed_over(found: dict[str, Checkpoint], case: str) -> None:
    ref = found[case].tensors["a.weight"]
    out = np.empty((ref.rows, ref.columns), np.float32)
    with Reader(found[case]) as reader:
        raw = reader.read_rows(ref, 0, ref.rows, out, np.empty(0, np.uint8))
        stored = [member.ref for member in ref.packing.members] if ref.packing else []
        assert bytes(raw) == b"".join(r.path.read_bytes()[r.offset : r.offset + r.nbytes] for r in stored)
        assert ref.nbytes == len(raw)
        for count in (1, 7, 32, ref.rows - 5):
            scratch = np.empty(scratch_bytes(ref, count), np.uint8)
            for first in range(ref.rows - count + 1):
                view = reader.read_rows(ref, first, count, out[:count], scratch)
                assert view.obj is scratch or np.shares_memory(np.asarray(view), scratch)


def test_a_zero_point_of_all_ones_is_raised_by_one(tmp_path: Path) -> None:
    x = layer(32, 32, 4, 32, symmetric=False)
    x.zeros[:] = 16  # stored as 15: what AutoGPTQ's and vLLM's kernels make of it
    found = write(tmp_path / "m", gptq("a", x), GPTQ4)
    np.testing.assert_array_equal(rows_of(found, "a.weight"), x.weights)


def test_layers_of_several_widths_need_no_config_of_their_own(tmp_path: Path) -> None:
    layers = {f"model.layers.{bits}.x": layer(64, 128, bits, 32, seed=bits) for bits in (2, 3, 4, 8)}
    stored: Stored = {}
    for name, x in layers.items():
        stored |= gptq(name, x)
    found = write(tmp_path / "m", stored, GPTQ4)
    for name, x in layers.items():
        assert found.tensors[f"{name}.weight"].dtype == f"INT{x.bits}"
        np.testing.assert_array_equal(rows_of(found, f"{name}.weight"), x.weights)


def test_what_only_the_config_knows_is_symmetric_where_all_it_says_is(tmp_path: Path) -> None:
    stored = gptq("a", layer(64, 128, 4, 32)) | gptq("b", layer(64, 128, 8, 32))

    def symmetric(**said: Any) -> list[bool]:
        made = write(tmp_path / "m", stored, config("auto-round", bits=4, group_size=32, **said))
        return [t.packing.symmetric for t in made.tensors.values() if t.packing]

    assert symmetric(sym=True, extra_config={"b": {"bits": 8}}) == [True, True]
    assert symmetric(sym=False, extra_config={"b": {"bits": 8, "sym": True}}) == [False, True]
    assert symmetric(sym=True, extra_config={".*b.*": {"bits": 8, "sym": False}}) == [True, False]
    assert symmetric(sym=True) == [True, False]  # of 8 bits nothing is said


def test_mlx_packs_embeddings_too_and_says_by_name_how(tmp_path: Path) -> None:
    plain, fine = layer(64, 128, 4, 64), layer(320, 128, 8, 32, seed=1)  # as many words a scale
    zeros = {id(x): np.zeros_like(x.scales) for x in (plain, fine)}
    stored = mlx("a", plain, zeros[id(plain)]) | mlx("model.embed_tokens", fine, zeros[id(fine)])
    found = write(tmp_path / "m", stored, mlx_config(plain, **{"model.embed_tokens": {"bits": 8, "group_size": 32}}))
    assert [t.dtype for t in found.tensors.values()] == ["INT4", "INT8"]
    wanted = fine.codes * np.repeat(fine.scales, 32, 1)
    np.testing.assert_array_equal(rows_of(found, "model.embed_tokens.weight", 311, 1)[0], wanted[311])


def test_what_is_not_packed_stays_as_it_is(tmp_path: Path) -> None:
    more: Stored = {"norm.weight": ("F16", (4,), bytes(8)), "a.bias": ("F16", (64,), bytes(128))}
    found = write(tmp_path / "m", gptq("a", layer(64, 128, 4, 32)) | more, GPTQ4)
    assert found.tensors.keys() == {"a.weight", "norm.weight", "a.bias"}


def changed(stored: Stored, name: str, dtype: str | None = None, shape: tuple[int, ...] | None = None) -> Stored:
    old_dtype, old_shape, raw = stored[name]
    size = int(np.prod(shape)) * {"I32": 4, "F16": 2, "U8": 1}[dtype or old_dtype] if shape or dtype else len(raw)
    return stored | {name: (dtype or old_dtype, shape or old_shape, raw[:size].ljust(size, b"\0"))}


X = layer(64, 128, 4, 32)
G, A, C = gptq("a", X), awq("a", X), compressed("a", X, zeros=True)
N = CASES["nvfp4"][0]
B = CASES["mxfp4 blocks"][0]
AWQ4 = config("awq", bits=4, group_size=32)
WRONG: dict[str, tuple[Stored, dict[str, Any], str]] = {
    "qweight without scales": ({k: v for k, v in G.items() if "scales" not in k}, GPTQ4, "a.scales is missing"),
    "qweight without zeros": ({k: v for k, v in G.items() if "zeros" not in k}, GPTQ4, "a.qzeros is missing"),
    "scales without qweight": (
        {k: v for k, v in G.items() if "qweight" not in k} | gptq("b", X), GPTQ4, "belongs to no packed weight",
    ),
    "scales of integers": (changed(G, "a.scales", "I32", (4, 64)), GPTQ4, "a.scales is .* in I32"),
    "too few scales": (changed(G, "a.scales", shape=(3, 64)), GPTQ4, "a.qzeros has the shape"),
    "another width": (changed(G, "a.scales", shape=(4, 96)), GPTQ4, "does not fit a.scales"),
    "zeros of no width": (changed(G, "a.qzeros", shape=(4, 40)), GPTQ4, "fits no number of bits"),
    "groups that the columns deny": (
        gptq("a", Layer(4, X.codes, X.scales[:, :3], X.zeros[:, :3], 32, X.columns)), GPTQ4, "128 columns in 3 groups",
    ),
    "an order of other columns": (changed(G, "a.g_idx", shape=(64,)), GPTQ4, "a.g_idx has the shape"),
    "no columns": (changed(G, "a.qweight", shape=(0, 64)), GPTQ4, "a.qweight is"),
    "one dimension": (changed(G, "a.qweight", shape=(1024,)), GPTQ4, "must be matrices"),
    "awq beside other zeros": (changed(A, "a.qzeros", shape=(4, 16)), AWQ4, "a.qzeros has the shape"),
    "no method": (G, {}, "does not say by which method"),
    "no weight_shape": ({k: v for k, v in C.items() if "shape" not in k}, int_config(X), "weight_shape is missing"),
    "a weight_shape of other rows": (
        C | {"a.weight_shape": whole(np.array([1 << 40, 128]), "I64")}, int_config(X), "weight_shape says",
    ),
    "a weight_shape of other columns": (
        C | {"a.weight_shape": whole(np.array([64, -5]), "I64")}, int_config(X), "weight_shape says",
    ),
    "a weight_shape that is none": (C | {"a.weight_shape": whole(np.zeros(3), "I64")}, int_config(X), "shape"),
    "zeros of other groups": (changed(C, "a.weight_zero_point", shape=(8, 3)), int_config(X), "zero_point has the"),
    "nvfp4 without its divisor": (
        {k: v for k, v in N.items() if "weight_global" not in k}, CASES["nvfp4"][1], "weight_global_scale is missing",
    ),
    "nvfp4 with other groups": (
        changed(N, "a.weight_packed", shape=(48, 128)), CASES["nvfp4"][1], "a.weight_scale has the shape",
    ),
    "blocks without scales": ({"a_blocks": B["a_blocks"]}, config("mxfp4"), "a_scales is missing"),
    "blocks beside other scales": (changed(B, "a_scales", shape=(96, 3)), config("mxfp4"), "a_scales has the shape"),
    "blocks of another size": (changed(B, "a_blocks", shape=(96, 8, 8)), config("mxfp4"), "must be blocks of 16"),
    "mlx with another width": (mlx("a", X, X.scales), mlx_config(layer(1, 32, 8, 32)), "128 weights|would take"),
    "mlx without biases": (
        {k: v for k, v in mlx("a", X, X.scales).items() if "biases" not in k}, mlx_config(X), "a.biases is missing",
    ),
    "both packed and not": (G | {"a.weight": ("F16", (64, 128), bytes(64 * 128 * 2))}, GPTQ4, "which of them"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_contradicts_itself_is_refused_with_the_tensor_named(tmp_path: Path, case: str) -> None:
    stored, said, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        write(tmp_path / "m", stored, said)


def test_a_group_that_does_not_exist_is_refused_when_it_is_read(tmp_path: Path) -> None:
    found = write(tmp_path / "m", G | {"a.g_idx": whole(np.full(128, 4), "I32")}, GPTQ4)
    with pytest.raises(InputError, match="a.g_idx puts columns into groups 4 to 4 of only 4"):
        rows_of(found, "a.weight")


def test_a_slab_of_a_transposed_weight_takes_the_memory_of_a_slab(tmp_path: Path) -> None:
    found = write(tmp_path / "m", gptq("a", layer(1024, 1024, 4, 128)), GPTQ4)
    ref = found.tensors["a.weight"]
    out, scratch = np.empty((64, 1024), np.float32), np.empty(scratch_bytes(ref, 64), np.uint8)
    assert scratch.size < 64 * 1024
    tracemalloc.start()
    with Reader(found) as reader:
        reader.read_rows(ref, 512, 64, out, scratch)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 8 * out.size  # bytes, as planned for


SUFFIXES = (
    ".qweight", ".qzeros", ".scales", ".g_idx", ".weight_packed", ".weight_scale", ".weight_shape", ".weight",
    ".weight_zero_point", ".weight_global_scale", ".biases", "_blocks", "_scales",
)  # fmt: skip
SIZES = st.sampled_from([0, 1, 2, 3, 4, 8, 12, 16, 32, 64, 128, 1 << 20, 1 << 40])
TENSORS = st.dictionaries(
    st.sampled_from(SUFFIXES),
    st.tuples(st.sampled_from(["I32", "U32", "U8", "I8", "F16", "F32", "F8_E4M3", "I64"]), st.lists(SIZES, max_size=3)),
)
METHODS = st.sampled_from([
    Method("gptq", (Stated(4, 32, True),)), Method("mlx", (Stated(4, 32, True),)), Method("auto-round"),
    Method("compressed-tensors", (Stated(8, -1, True),)), Method("mxfp4"), Method(),
])  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(tensors=TENSORS, method=METHODS, numbers=st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 2))
def test_headers_that_lie_are_refused_or_make_a_weight_that_fits_them(
    tensors: dict[str, tuple[str, list[int]]], method: Method, numbers: tuple[int, int]
) -> None:
    refs = {
        "a" + end: TensorRef("a" + end, dtype, tuple(shape), Path("x"), 0, prod(shape) * BITS[dtype] // 8)
        for end, (dtype, shape) in tensors.items()
    }
    try:
        made = pack_up(refs, method, "m", lambda ref: np.array(numbers, "<i8").tobytes()[: ref.nbytes])
    except InputError:
        return
    for ref in made.values():
        if ref.packing is not None:
            assert 0 < prod(ref.shape) <= 4 * ref.packing.codes.ref.nbytes
            assert scratch_bytes(ref, 1) > 0
