"""Headers of safetensors files that lie, and damaged ones: refused quickly, in little memory, with the file's name."""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggufround.checkpoint.json_file import parse_json
from ggufround.checkpoint.shards import read_shard
from ggufround.errors import InputError
from tiny import write_safetensors


def entry(begin: Any, end: Any, shape: Any = (2, 2), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


def write(path: Path, header: Any, data: int = 32) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


def refused(path: Path, word: str) -> None:
    started = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=word) as caught:
            read_shard(path)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - started < 2
    assert str(path) in str(caught.value)


def test_what_is_written_is_read_in_file_order(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    rows = {
        "z": ("F32", (2, 2), bytes(16)),
        "a": ("I64", (), bytes(8)),
        "e": ("BF16", (0, 4), b""),
        "f": ("F4", (2,), b"1"),
    }
    write_safetensors(path, rows)
    found = read_shard(path)
    assert [(r.name, r.dtype, r.shape, r.nbytes) for r in found.values()] == [
        (name, dtype, shape, len(raw)) for name, (dtype, shape, raw) in rows.items()
    ]
    assert found["z"].offset == path.stat().st_size - 25


def test_it_reads_what_the_safetensors_package_writes(tmp_path: Path) -> None:
    numpy_files = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "a.safetensors"
    rng = np.random.default_rng(0)
    dtypes = (np.float16, np.float32, np.float64)
    arrays = {f"t{k}": rng.normal(size=(k + 1, 3)).astype(dtype) for k, dtype in enumerate(dtypes)}
    numpy_files.save_file(arrays, path, metadata={"format": "np"})
    found = read_shard(path)
    assert found.keys() == arrays.keys()
    for name, values in arrays.items():
        ref = found[name]
        assert path.read_bytes()[ref.offset : ref.offset + ref.nbytes] == values.tobytes()


def test_null_for_metadata_is_none(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors", {"__metadata__": None, "a": entry(0, 32, (8,))})  # as MLX writes it
    assert read_shard(tmp_path / "a.safetensors").keys() == {"a"}


BAD = {
    "not json": (b"{not json", "not sound JSON"),
    "a list": (b"[1]", "begin with"),
    "a space before it": (b' {"a": 1}', "begin with"),
    "not UTF-8": (b'{"\xff": 1}', "not sound JSON"),
    "half a surrogate pair": (b'{"\\ud800": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}', "JSON"),
    "a name twice": (
        b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},'
        b' "a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]}}', "'a' appears twice",
    ),
    "NaN": (b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 32]}}', "NaN"),
    "a number of 5000 digits": (b'{"a": {"shape": [' + b"9" * 5000 + b"]}}", "JSON"),
    "nested 100 deep": (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested"),
    "nested 100000 deep": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
    "3 million objects": (b'{"a": [' + b"{}," * 3_000_000 + b"1]}", "4000000 values"),
    "metadata that is no object": ({"__metadata__": 1, "a": entry(0, 32, (8,))}, "__metadata__"),
    "metadata that is not strings": ({"__metadata__": {"a": {}}, "a": entry(0, 32, (8,))}, "__metadata__"),
    "an entry that is no object": ({"a": 7}, "'a' is not just"),
    "an entry with more keys": ({"a": entry(0, 32, (8,)) | {"x": 1}}, "'a' is not just"),
    "an unknown dtype": ({"a": entry(0, 32, (8,), "F31")}, "unknown dtype 'F31'"),
    "a dtype that is a list": ({"a": entry(0, 32, (8,), ["F32"])}, "unknown dtype"),
    "a negative dimension": ({"a": entry(0, 32, (-8,))}, "impossible shape"),
    "a dimension of 2^63": ({"a": entry(0, 32, (2**63,))}, "impossible shape"),
    "a dimension that is true": ({"a": entry(0, 4, (True,))}, "impossible shape"),
    "a dimension that is a float": ({"a": entry(0, 32, (8.0,))}, "impossible shape"),
    "20 dimensions": ({"a": entry(0, 4, (1,) * 20)}, "impossible shape"),
    "a shape that wraps to 32 bytes in 64 bits": ({"a": entry(0, 32, (2**32, 2**32, 8))}, "takes"),
    "a shape that does not match its bytes": ({"a": entry(0, 32, (7,))}, "takes 28 bytes, not 32"),
    "half a byte": ({"a": entry(0, 1, (3,), "F4")}, "takes 1.5 bytes, not 1"),
    "offsets backwards": ({"a": entry(32, 0, (8,))}, "impossible data_offsets"),
    "three offsets": ({"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32, 32]}}, "impossible data_offsets"),
    "negative offsets": ({"a": entry(-32, 0, (8,))}, "impossible data_offsets"),
    "offsets of 2^63": ({"a": entry(2**63, 2**63 + 32, (8,))}, "impossible data_offsets"),
    "an overlap": ({"a": entry(0, 16), "b": entry(0, 16)}, "overlaps"),
    "half an overlap": ({"a": entry(0, 16), "b": entry(8, 24)}, "overlaps"),
    "a gap": ({"a": entry(0, 16, (4,)), "b": entry(20, 32, (3,))}, "leaves a gap"),
    "a gap at the beginning": ({"a": entry(4, 32, (7,))}, "leaves a gap"),
    "a tensor beyond the end": ({"a": entry(0, 36, (9,))}, "truncated"),
    "an exabyte": ({"a": entry(0, 2**60, (2**58,))}, "truncated"),
    "trailing bytes": ({"a": entry(0, 28, (7,))}, "4 bytes follow"),
    "bytes without a tensor": ({}, "32 bytes follow"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_headers_that_lie_are_refused(tmp_path: Path, name: str) -> None:
    header, word = BAD[name]
    refused(write(tmp_path / "a.safetensors", header), word)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**8 + 1, 41, 0])
def test_header_lengths_that_lie_are_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" + bytes(38))
    refused(path, "a header of|begin with")


def test_a_header_of_more_than_100_megabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 200_000_000))
        file.truncate(300_000_000)
    refused(path, "100000000 are allowed")


@pytest.mark.parametrize("data", [b"", b"\0\0\0\0"])
def test_files_too_short_for_a_header_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    refused(path, "bytes")


def test_a_web_page_saved_as_a_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"<!doctype html><html>404</html>" * 10)
    refused(path, "a header of")


@pytest.mark.parametrize("text", [b'{"a": 1e999}', b'{"a": Infinity}', b'{"a": -Infinity}', b"[]", b"7", b'"\\ud8"'])
def test_json_that_cannot_be_trusted_is_refused(text: bytes) -> None:
    with pytest.raises(InputError, match="the config"):
        parse_json(text, "the config")


def test_where_limits_are_stated_infinity_is_one_and_nan_is_not() -> None:
    assert parse_json(b'{"a": [0, Infinity]}', "the config", infinity=True) == {"a": [0, float("inf")]}
    for text in (b'{"a": NaN}', b'{"a": 1e999}'):
        with pytest.raises(InputError, match="the config"):
            parse_json(text, "the config", infinity=True)


@settings(max_examples=300, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.none() | st.integers(0, 10_000),
)
def test_a_damaged_file_is_read_or_refused_but_nothing_else(
    tmp_path: Path, flips: list[tuple[int, int]], cut: int | None
) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"w": ("F32", (2, 2), bytes(16)), "v": ("BF16", (3,), bytes(6)), "s": ("U8", (), b"1")})
    data = bytearray(path.read_bytes())
    for position, value in flips:
        data[position % len(data)] = value
    path.write_bytes(data if cut is None else data[: cut % len(data)])
    try:
        found = read_shard(path)
    except InputError:
        return
    assert sum(ref.nbytes for ref in found.values()) == len(data if cut is None else data[: cut % len(data)]) - min(
        (ref.offset for ref in found.values()), default=len(data)
    )
