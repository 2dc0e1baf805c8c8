"""imatrix files as llama-imatrix writes them: GGUF, or the older kind where the name ends in .dat.

The file appears under its name when it is complete. `importance.read_imatrix` reads both kinds.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ggufround.errors import not_written
from ggufround.gguf_file import Field, Kind, TensorInfo, array, encode_header, padded, string, u32
from ggufround.quants.importance import CHUNK_COUNT, CHUNK_SIZE, COUNTS, DATASETS, NAME_LIMIT, SUMS, Importance
from ggufround.quants.squares import Squares, importance_from

F32_ID = 0  # GGML_TYPE_F32
LEGACY = ".dat"


def write_imatrix(
    path: Path,
    squares: Mapping[str, Squares],
    datasets: Sequence[str],
    chunks: int,
    chunk_size: int,
    further: Mapping[str, Field] | None = None,
) -> None:
    """Writes what was collected over `chunks` sequences of `chunk_size` tokens; entries sorted by name.

    `further` are keys for the GGUF kind besides llama.cpp's own. The older kind holds one data set and no counts: it
    gives the same importance to within a rounding of float32, with ones for experts that no token reached.
    Raises InputError for sums that are not finite, OutputError where the file cannot be written.
    """
    importance = importance_from(squares)  # refuses what is not finite
    datasets = [name.encode(errors="surrogateescape").decode(errors="replace") for name in datasets]  # file names
    if path.suffix == LEGACY:
        data = _legacy(importance, squares, datasets, chunks, chunk_size)
    else:
        data = _gguf(squares, datasets, chunks, chunk_size, further or {})
    _write(path, data)


def _gguf(
    squares: Mapping[str, Squares],
    datasets: Sequence[str],
    chunks: int,
    chunk_size: int,
    further: Mapping[str, Field],
) -> list[bytes]:
    keys = {
        "general.type": string("imatrix"),
        DATASETS: array(Kind.STRING, list(datasets)),
        CHUNK_COUNT: u32(chunks),
        CHUNK_SIZE: u32(chunk_size),
        **further,
    }
    infos, data, offset = [], [], 0
    for name in sorted(squares):
        for suffix, values in ((SUMS, squares[name].sums), (COUNTS, squares[name].counts[:, None])):
            raw = values.astype("<f4").tobytes()
            infos.append(TensorInfo(name + suffix, values.shape, F32_ID, offset))
            data.append(raw + bytes(padded(len(raw)) - len(raw)))
            offset += len(data[-1])
    return [encode_header(keys, infos).data, *data]


def _legacy(
    importance: Importance, squares: Mapping[str, Squares], datasets: Sequence[str], chunks: int, chunk_size: int
) -> list[bytes]:
    """Per entry the calls, here those of a chunk each, and the means multiplied by them."""
    reached = {name: means for name, means in importance.entries.items() if squares[name].counts.any()}
    parts = [_i32(len(reached))]
    for name, means in reached.items():
        calls = -(-int(squares[name].counts.max()) // chunk_size)
        raw = (means * np.float32(calls)).astype("<f4").tobytes()
        parts += [_text(name), _i32(calls), _i32(means.size), raw]
    return [*parts, _i32(chunks), _text(datasets[0] if datasets else "")]


def _i32(value: int) -> bytes:
    return struct.pack("<i", value)


def _text(value: str) -> bytes:
    raw = value.encode()[:NAME_LIMIT].decode(errors="ignore").encode()
    return _i32(len(raw)) + raw


def _write(path: Path, data: Sequence[bytes]) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise not_written(error, f"cannot write {path}") from error
