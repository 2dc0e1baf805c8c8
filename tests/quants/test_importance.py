"""imatrix files of both kinds, written by hand; llama-quantize's semantics, and refusals."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ggufround.errors import InputError
from ggufround.gguf_file import Field, Kind, TensorInfo, array, encode_header, padded, string, u32
from ggufround.quants.importance import Importance, read_imatrix

KEYS = {
    "general.type": string("imatrix"),
    "imatrix.datasets": array(Kind.STRING, ["calib.txt", "more.txt"]),
    "imatrix.chunk_count": u32(12),
    "imatrix.chunk_size": u32(512),
}
SUMS = np.arange(1, 17, dtype=np.float32).reshape(2, 8)
TENSORS = {
    "blk.1.ffn_up_exps.weight.in_sum2": SUMS,
    "blk.1.ffn_up_exps.weight.counts": np.array([[3.0], [0.0]], np.float32),
    "blk.0.attn_q.weight.counts": np.array([[7.0]], np.float32),
    "blk.0.attn_q.weight.in_sum2": SUMS[:1],
}


def write_gguf(
    path: Path, tensors: Mapping[str, NDArray[Any]], keys: Mapping[str, Field] = KEYS, kind: int = 0
) -> Path:
    infos, data = [], b""
    for name, values in tensors.items():
        infos.append(TensorInfo(name, values.shape, kind, len(data)))
        data += values.tobytes() + bytes(padded(values.nbytes) - values.nbytes)
    path.write_bytes(encode_header(keys, infos).data + data)
    return path


def i32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def entry(name: str, calls: int, values: NDArray[np.float32]) -> bytes:
    raw = name.encode()
    return i32(len(raw)) + raw + i32(calls, values.size) + values.tobytes()


LEGACY = i32(2) + entry("b.weight", 4, SUMS[0]) + entry("a.weight", 0, SUMS[1]) + i32(12, 9) + b"calib.txt"


def test_the_gguf_kind_is_divided_by_its_counts_and_an_unreached_expert_gets_ones(tmp_path: Path) -> None:
    found = read_imatrix(write_gguf(tmp_path / "i.gguf", TENSORS))
    assert list(found.entries) == ["blk.0.attn_q.weight", "blk.1.ffn_up_exps.weight"]
    np.testing.assert_array_equal(found.entries["blk.0.attn_q.weight"], SUMS[:1] / np.float32(7))
    np.testing.assert_array_equal(
        found.entries["blk.1.ffn_up_exps.weight"], np.stack([SUMS[0] / np.float32(3), np.ones(8, np.float32)])
    )
    assert (found.datasets, found.chunks, found.legacy) == (("calib.txt", "more.txt"), 12, False)


def test_the_legacy_kind_is_divided_by_its_calls(tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(LEGACY)
    found = read_imatrix(path)
    assert list(found.entries) == ["a.weight", "b.weight"]
    np.testing.assert_array_equal(found.entries["a.weight"], SUMS[1:])
    np.testing.assert_array_equal(found.entries["b.weight"], SUMS[:1] / np.float32(4))
    assert (found.datasets, found.chunks, found.legacy) == (("calib.txt",), 12, True)


def test_the_legacy_trailer_may_be_absent(tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    for trailer, chunks in ((b"", 0), (i32(5), 5), (i32(5, 0), 5)):
        path.write_bytes(i32(1) + entry("a.weight", 1, SUMS[0]) + trailer)
        found = read_imatrix(path)
        assert (found.datasets, found.chunks) == ((), chunks)


@pytest.mark.peer
@pytest.mark.parametrize("kind", ["gguf", "legacy"])
def test_values_are_those_that_libgguf_reads(tmp_path: Path, kind: str) -> None:
    libgguf = pytest.importorskip("libgguf")
    rng = np.random.default_rng(3)
    sums, counts = rng.gamma(1, 9, (3, 64)).astype(np.float32), np.array([[512.0], [0.0], [3.0]], np.float32)
    path = tmp_path / "imatrix"
    if kind == "gguf":
        write_gguf(path, {"blk.0.x.weight.in_sum2": sums, "blk.0.x.weight.counts": counts})
    else:
        path.write_bytes(i32(1) + entry("blk.0.x.weight", 7, sums) + i32(2, 1) + b"d")
    theirs = libgguf.load_imatrix(path)
    ours = read_imatrix(path)
    assert ours.entries.keys() == theirs.keys()
    np.testing.assert_array_equal(ours.entries["blk.0.x.weight"].ravel(), np.ravel(theirs["blk.0.x.weight"]))


def test_metadata_is_what_llama_quantize_writes() -> None:
    found = Importance({"a": SUMS, "b": SUMS}, ("calib.txt", "more.txt"), 12)
    assert found.metadata("/x/i.gguf") == {
        "quantize.imatrix.file": string("/x/i.gguf"),
        "quantize.imatrix.dataset": string("calib.txt"),
        "quantize.imatrix.entries_count": u32(2),
        "quantize.imatrix.chunks_count": u32(12),
    }
    assert list(Importance({"a": SUMS}).metadata("i")) == ["quantize.imatrix.file", "quantize.imatrix.entries_count"]
    assert Importance({}).metadata("x" * 200)["quantize.imatrix.file"].value == "x" * 127


def test_entries_are_fitted_to_the_model_or_refused() -> None:
    legacy = Importance({"up_exps": SUMS.reshape(1, 16), "q": SUMS[:1]}, legacy=True)
    fitted = legacy.fitted({"up_exps": (2, 8), "q": (1, 8), "k": (1, 8)})
    assert {n: e.shape for n, e in fitted.entries.items()} == {"up_exps": (2, 8), "q": (1, 8)}
    with pytest.raises(InputError, match="another model"):
        legacy.fitted({"q": (1, 16)})
    with pytest.raises(InputError, match="1 x 16"):
        Importance({"q": SUMS}).fitted({"q": (1, 16)})
    assert Importance({"token_embd.weight": SUMS}).fitted({"token_embd.weight": (1, 4)}).entries == {}


def without(*names: str) -> dict[str, NDArray[Any]]:
    return {n: v for n, v in TENSORS.items() if n not in names}


Q = "blk.0.attn_q.weight"
BAD_TENSORS = {
    "counts are missing": (without(Q + ".counts"), "counts"),
    "sums are missing": (without(Q + ".in_sum2"), "without"),
    "NaN": (TENSORS | {Q + ".in_sum2": np.full((1, 8), np.nan, np.float32)}, "NaN"),
    "infinity": (TENSORS | {Q + ".in_sum2": np.full((1, 8), np.inf, np.float32)}, "infinity"),
    "a negative sum": (TENSORS | {Q + ".in_sum2": np.full((1, 8), -1, np.float32)}, "negative"),
    "a count that is NaN": (TENSORS | {Q + ".counts": np.full((1, 1), np.nan, np.float32)}, "NaN"),
    "counts that do not divide the sums": (
        TENSORS | {Q + ".counts": np.ones((3, 1), np.float32)}, "8 sums for 3 counts",
    ),
    "a model": ({"blk.0.attn_q.weight": SUMS}, "is it a model"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_a_bad_gguf_imatrix_is_refused(tmp_path: Path, name: str) -> None:
    tensors, word = BAD_TENSORS[name]
    with pytest.raises(InputError, match=word):
        read_imatrix(write_gguf(tmp_path / "i.gguf", tensors))


@pytest.mark.parametrize("key", ["imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"])
def test_a_gguf_imatrix_without_its_keys_is_refused(tmp_path: Path, key: str) -> None:
    for keys in ({k: v for k, v in KEYS.items() if k != key}, KEYS | {key: Field(Kind.F32, 1.0)}):
        with pytest.raises(InputError, match=key):
            read_imatrix(write_gguf(tmp_path / "i.gguf", TENSORS, keys))


def test_sums_in_another_type_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="in F32"):
        read_imatrix(write_gguf(tmp_path / "i.gguf", TENSORS, kind=26))


BAD_LEGACY = {
    "empty": (b"", "number of entries"),
    "no entries": (i32(0), "0 entries"),
    "2^31 - 1 entries": (i32(2**31 - 1), "entries"),
    "a name of 2^31 - 1 bytes": (i32(1, 2**31 - 1), "bytes long"),
    "a name of negative length": (i32(1, -1), "bytes long"),
    "a name that is cut": (i32(1, 10) + b"ab", "ends within"),
    "2^31 - 1 values": (i32(1, 1) + b"a" + i32(1, 2**31 - 1), "left in the file"),
    "no values": (i32(1, 1) + b"a" + i32(1, 0), "0 values"),
    "the same name twice": (i32(2) + 2 * entry("a", 1, SUMS[0]), "twice"),
    "NaN": (i32(1) + entry("a", 1, np.full(4, np.nan, np.float32)), "NaN"),
    "a trailer that is cut": (LEGACY[:-3], "ends within"),
    "not an imatrix": (b"PK\x03\x04" + bytes(100), "is it an imatrix"),
}


@pytest.mark.parametrize("name", BAD_LEGACY)
def test_a_bad_legacy_imatrix_is_refused(tmp_path: Path, name: str) -> None:
    data, word = BAD_LEGACY[name]
    (tmp_path / "i.dat").write_bytes(data)
    with pytest.raises(InputError, match=word):
        read_imatrix(tmp_path / "i.dat")


def test_a_missing_imatrix_and_a_directory_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.gguf"):
        with pytest.raises(InputError, match="does not exist"):
            read_imatrix(path)


@settings(max_examples=150, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    legacy=st.booleans(),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.none() | st.integers(0, 10_000),
)
def test_a_damaged_imatrix_is_read_or_refused_but_nothing_else(
    tmp_path: Path, legacy: bool, flips: list[tuple[int, int]], cut: int | None
) -> None:
    path = tmp_path / "i"
    data = bytearray(LEGACY if legacy else write_gguf(path, TENSORS).read_bytes())
    for position, value in flips:
        data[position % len(data)] = value
    path.write_bytes(data if cut is None else data[: cut % len(data)])
    try:
        found = read_imatrix(path)
    except InputError:
        return
    assert found.metadata("x")
    for values in found.entries.values():
        assert np.isfinite(values).all()
        assert values.min() >= 0
