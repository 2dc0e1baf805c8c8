"""Importance: the mean of squares of each input channel, read from llama.cpp's imatrix files of both kinds.

The GGUF kind holds for every weight NAME the sums NAME.in_sum2 [matrices, inputs] and NAME.counts [matrices, 1]; an
expert that no token reached (count 0) gets ones. The legacy kind (.dat) holds mean * calls and the calls, without the
number of matrices. Semantics as in common_imatrix_load and llama-quantize's load_imatrix; a file that says what
squares cannot be (NaN, infinity, a negative number) is refused.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from ggufround.errors import InputError
from ggufround.gguf_file import MAGIC, Field, Kind, string, u32
from ggufround.gguf_read import COUNT_LIMIT, GGUFHeader, GGUFTensor, read_gguf

F32 = NDArray[np.float32]
SUMS, COUNTS = ".in_sum2", ".counts"
NAME_LIMIT = 4096  # bytes, of a tensor or a data set in a legacy file
OVERRIDE_LIMIT = 127  # bytes: llama.cpp cuts the strings that it passes from llama-quantize to its library
DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"


@dataclass(frozen=True)
class Importance:
    """`entries`: tensor name -> float32 [matrices, inputs], in the order of the names. A legacy file does not say how
    many matrices an entry has: it stays one row until `fitted`."""

    entries: Mapping[str, F32]
    datasets: tuple[str | bytes, ...] = ()
    chunks: int = 0  # of the calibration text that were run; 0: not known
    legacy: bool = False
    path: Path | None = None  # where it was read

    def fitted(self, shapes: Mapping[str, tuple[int, int]]) -> Importance:
        """The same for a model whose tensors have `shapes`, name -> (matrices, inputs).

        Raises InputError if none of its entries is one of these tensors, or for an entry of another size, but drops
        that of token_embd.weight, as llama-quantize does
        (an imatrix may be that of the same model with an output matrix of its own).
        """
        entries = {}
        if self.entries and not self.entries.keys() & shapes.keys():
            raise InputError(
                f"the imatrix has no entry for any tensor of the model (but for {next(iter(self.entries))}, ...): it "
                f"belongs to another model"
            )
        for name, entry in self.entries.items():
            wanted = shapes.get(name, entry.shape)
            if entry.size == wanted[0] * wanted[1] and (self.legacy or entry.shape == wanted):
                entries[name] = entry.reshape(wanted)
            elif name != "token_embd.weight":
                raise InputError(
                    f"the imatrix has {' x '.join(map(str, entry.shape))} values for {name}, the model "
                    f"{wanted[0]} x {wanted[1]}: it belongs to another model"
                )
        return replace(self, entries=entries)

    def metadata(self, path: str) -> dict[str, Field]:
        """The quantize.imatrix.* keys that llama-quantize writes for an imatrix given as `path`."""
        out = {"quantize.imatrix.file": string(_cut(path.encode(errors="surrogateescape")))}
        if self.datasets:
            first = self.datasets[0]
            out["quantize.imatrix.dataset"] = string(_cut(first if isinstance(first, bytes) else first.encode()))
        out["quantize.imatrix.entries_count"] = u32(len(self.entries))
        if self.chunks > 0:
            out["quantize.imatrix.chunks_count"] = u32(self.chunks)
        return out


def _cut(raw: bytes) -> str:
    return raw[:OVERRIDE_LIMIT].decode(errors="ignore")


def read_imatrix(path: Path) -> Importance:
    """An imatrix file of either kind. Memory: its size. Raises InputError for whatever is wrong with it."""
    if not os.path.isfile(path):
        raise InputError(f"the imatrix {path} does not exist or is not a file")
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
            file.seek(0)
            found = _read_gguf_kind(path, file) if magic == MAGIC else _read_legacy_kind(path, file)
    except OSError as error:
        raise InputError(f"cannot read the imatrix {path}: {error.strerror}") from error
    return replace(found, entries=dict(sorted(found.entries.items())), path=path)


def _read_gguf_kind(path: Path, file: BinaryIO) -> Importance:
    header = read_gguf(path)
    names = [n.removesuffix(SUMS) for n in header.tensors if n.endswith(SUMS)]
    lone = [n for n in header.tensors if n.endswith(COUNTS) and n.removesuffix(COUNTS) + SUMS not in header.tensors]
    if not names:
        _fail(path, "it holds no sums of squares; is it a model?")
    if lone:
        _fail(path, f"it holds {lone[0]} without {lone[0].removesuffix(COUNTS)}{SUMS}")
    datasets = _field(path, header, DATASETS, Kind.ARRAY)
    if datasets.item != Kind.STRING:
        _fail(path, f"its {DATASETS} are not strings")
    chunks = _field(path, header, CHUNK_COUNT, Kind.U32).value
    _field(path, header, CHUNK_SIZE, Kind.U32)
    entries = {name: _mean_of_squares(path, file, header, name) for name in names}
    return Importance(entries, tuple(datasets.value), chunks if chunks < 1 << 31 else 0)


def _field(path: Path, header: GGUFHeader, key: str, kind: Kind) -> Field:
    field = header.metadata.get(key)
    if field is None or field.kind != kind:
        _fail(path, f"it lacks the key {key} of type {kind.name}, without which llama.cpp refuses it too")
    return field


def _mean_of_squares(path: Path, file: BinaryIO, header: GGUFHeader, name: str) -> F32:
    counts = _floats(path, file, header.tensors.get(name + COUNTS), name + COUNTS)
    sums = _floats(path, file, header.tensors[name + SUMS], name + SUMS)
    if sums.size % counts.size:
        _fail(path, f"{name} has {sums.size} sums for {counts.size} counts")
    means = sums.reshape(counts.size, -1)
    rounded = np.floor(counts + np.float32(0.5))
    np.divide(means, rounded[:, None], out=means, where=rounded[:, None] > 0)
    means[rounded <= 0] = 1
    return means


def _floats(path: Path, file: BinaryIO, tensor: GGUFTensor | None, name: str) -> F32:
    if tensor is None or tensor.type != "F32":
        _fail(path, f"it lacks {name} in F32")
    file.seek(tensor.offset)
    return _checked(path, file.read(tensor.nbytes), tensor.nbytes, name)


def _checked(path: Path, raw: bytes, nbytes: int, name: str) -> F32:
    """A writable array of what was read, all of it finite and none of it negative."""
    if len(raw) != nbytes:
        _fail(path, f"it ends within {name}")
    values = np.frombuffer(raw, "<f4").astype(np.float32)
    if not np.isfinite(values).all() or values.min() < 0:
        _fail(path, f"{name} holds NaN, infinity or negative numbers, which sums of squares cannot be")
    return values


def _read_legacy_kind(path: Path, file: BinaryIO) -> Importance:
    size = os.fstat(file.fileno()).st_size
    count = _i32(path, file, "the number of entries")
    if not 1 <= count <= COUNT_LIMIT:
        _fail(path, f"as a legacy file it would have {count} entries; is it an imatrix at all?")
    entries: dict[str, F32] = {}
    for number in range(count):
        name = _text(path, file, f"the name of entry {number}")
        calls = _i32(path, file, f"the calls of {name!r:.80}")
        values = _i32(path, file, f"the size of {name!r:.80}")
        if values < 1 or 4 * values > size - file.tell():
            _fail(path, f"{name!r:.80} has {values} values, but {size - file.tell()} bytes are left in the file")
        if name in entries:
            _fail(path, f"it holds {name!r:.80} twice")
        entry = _checked(path, file.read(4 * values), 4 * values, name)
        entries[name] = (entry / np.float32(calls) if calls > 0 else entry).reshape(1, -1)
    if file.tell() == size:
        return Importance(entries, legacy=True)
    chunks = _i32(path, file, "the number of chunks")
    datasets = (_text(path, file, "the data set"),) if file.tell() < size else ()
    return Importance(entries, tuple(filter(None, datasets)), max(chunks, 0), legacy=True)


def _i32(path: Path, file: BinaryIO, what: str) -> int:
    raw = file.read(4)
    if len(raw) != 4:
        _fail(path, f"it ends within {what}")
    return int(struct.unpack("<i", raw)[0])


def _text(path: Path, file: BinaryIO, what: str) -> str:
    length = _i32(path, file, f"the length of {what}")
    if not 0 <= length <= NAME_LIMIT:
        _fail(path, f"{what} would be {length} bytes long; {NAME_LIMIT} are allowed")
    raw = file.read(length)
    if len(raw) != length:
        _fail(path, f"it ends within {what}")
    try:
        return raw.split(b"\0")[0].decode()
    except UnicodeDecodeError:
        _fail(path, f"{what} is not UTF-8")


def _fail(path: Path, what: str) -> NoReturn:
    raise InputError(f"{path} is not a sound imatrix file: {what}. Make or download it again")
