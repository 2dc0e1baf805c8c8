"""Headers that we write, read back by our reader and by the gguf package's."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ggufround.gguf_file import Field, Kind, TensorInfo, array, boolean, encode_header, f32, padded, string, u32
from ggufround.gguf_read import read_gguf

METADATA = {
    "general.architecture": string("llama"),
    "llama.block_count": u32(2),
    "llama.eps": f32(1e-5),
    "tokenizer.ggml.add_bos_token": boolean(True),
    "tokenizer.ggml.tokens": array(Kind.STRING, ["a", "é", ""]),
    "tokenizer.ggml.scores": array(Kind.F32, [0.5, -1.0, 0.0]),
    "tokenizer.ggml.token_type": array(Kind.I32, [1, 1, 6]),
    "empty": array(Kind.STRING, []),
    "big": Field(Kind.U64, 2**63),
    "negative": Field(Kind.I64, -(2**40)),
}


def write(path: Path) -> Path:
    header = encode_header(METADATA, [TensorInfo("x.weight", (3, 5), 0, 0), TensorInfo("y.weight", (7,), 0, 64)])
    x, y = np.arange(15, dtype=np.float32), np.ones(7, np.float32)
    path.write_bytes(header.data + x.tobytes() + bytes(4) + y.tobytes() + bytes(4))
    return path


def test_our_reader_reads_what_we_write(tmp_path: Path) -> None:
    header = read_gguf(write(tmp_path / "x.gguf"))
    assert dict(header.metadata) == {k: Field(f.kind, f.value, f.item) for k, f in METADATA.items()} | {
        "llama.eps": Field(Kind.F32, float(np.float32(1e-5)))
    }
    assert [(t.name, t.shape) for t in header.tensors.values()] == [("x.weight", (3, 5)), ("y.weight", (7,))]


def test_the_gguf_package_reads_what_we_write(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(write(tmp_path / "x.gguf"))
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert fields["tokenizer.ggml.tokens"] == ["a", "é", ""]
    assert fields["big"] == 2**63
    assert fields["negative"] == -(2**40)
    assert [t.data.tolist() for t in reader.tensors] == [
        np.arange(15, dtype=np.float32).reshape(3, 5).tolist(),
        [1.0] * 7,
    ]


def test_room_for_a_string_value_lies_where_the_header_says() -> None:
    header = encode_header({"a": u32(1), "digest": string("0" * 64), "b": string("x")}, [])
    start = header.values["digest"]
    assert header.data[start : start + 64] == b"0" * 64
    assert header.data[header.values["b"]] == ord("x")


@given(st.integers(0, 2**40))
def test_padding_reaches_the_next_multiple_of_32(size: int) -> None:
    assert padded(size) % 32 == 0
    assert 0 <= padded(size) - size < 32
