"""ggufround inspect"""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer

from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.spec import Checkpoint
from ggufround.cli import show
from ggufround.cli.values import Json
from ggufround.errors import InputError
from ggufround.gguf_file import Field, Kind
from ggufround.gguf_read import read_gguf
from ggufround.quants.importance import Importance, read_imatrix

LONG = 8  # array items that are shown


def inspect_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help=".gguf, safetensors directory, hub id, or imatrix.")],
    tensors: Annotated[bool, typer.Option("--tensors/--no-tensors", help="List every tensor.")] = True,
    json: Json = False,
) -> None:
    """Show metadata, tensors, types and sizes, read from headers alone."""
    path = Path(file)
    if path.suffix == ".dat" or (path.is_file() and path.suffix == ".gguf" and _is_imatrix(path)):
        _show_imatrix(read_imatrix(path), json)
        return
    _show_checkpoint(open_checkpoint(file), tensors, json)


def _is_imatrix(path: Path) -> bool:
    kind = read_gguf(path).metadata.get("general.type")
    return kind is not None and kind.value == "imatrix"


def _show_imatrix(importance: Importance, json: bool) -> None:
    rows = [(n, v.shape[0], v.shape[1], float(v.mean()), float(v.max())) for n, v in importance.entries.items()]
    columns = ("tensor", "matrices", "channels", "mean", "max")
    if json:
        show.dump({"entries": [dict(zip(columns, row, strict=True)) for row in rows]})
    else:
        show.table(f"imatrix, {len(rows)} entries", columns, list(rows))


def _show_checkpoint(checkpoint: Checkpoint, tensors: bool, json: bool) -> None:
    if not checkpoint.tensors:
        raise InputError(f"{checkpoint.source} holds no tensors")
    rows = [(t.name, t.dtype, "x".join(map(str, t.shape)), t.nbytes) for t in checkpoint.tensors.values()]
    metadata = {key: _value(field) for key, field in checkpoint.metadata.items()} or dict(checkpoint.config)
    if json:
        names = ("name", "dtype", "shape", "bytes")
        listed = [dict(zip(names, row, strict=True)) for row in rows]
        show.dump({"metadata": metadata, "files": sorted(checkpoint.files), "tensors": listed})
        return
    show.table("metadata", ("key", "value"), [(k, str(v)) for k, v in metadata.items()])
    if tensors:
        show.table("tensors", ("name", "dtype", "shape", "bytes"), list(rows))
    count, size, weights = Counter[str](), Counter[str](), Counter[str]()
    for t in checkpoint.tensors.values():
        count[t.dtype] += 1
        size[t.dtype] += t.nbytes
        weights[t.dtype] += prod(t.shape)
    show.table("types", ("dtype", "tensors", "weights", "bytes"), [(n, count[n], weights[n], size[n]) for n in count])


def _value(field: Field) -> Any:
    if field.kind != Kind.ARRAY:
        return field.value if not isinstance(field.value, bytes) else repr(field.value)
    items = [v if not isinstance(v, bytes) else repr(v) for v in field.value[:LONG]]
    return items if len(field.value) <= LONG else [*items, f"... {len(field.value)} in all"]
