"""Small safetensors checkpoints for tests, written with struct and json alone: a test can also write a wrong one."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NAMES = {
    "float64": "F64", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "uint32": "U32", "float16": "F16", "float32": "F32",
}  # fmt: skip


def bf16_bits(values: NDArray[Any]) -> NDArray[np.uint16]:
    """float32 rounded to bfloat16 (nearest even), as its 16 bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def encode(values: NDArray[Any], dtype: str) -> tuple[str, bytes]:
    """dtype name and bytes: float32 arrays become `dtype` (BF16, F16, F32, F64), others stay as they are."""
    if values.dtype != np.float32:
        return _NAMES[values.dtype.name], values.tobytes()
    if dtype == "BF16":
        return dtype, bf16_bits(values).tobytes()
    return dtype, values.astype({"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]).tobytes()


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """One file of (dtype name, shape, raw bytes), in the given order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + len(raw)]}
        position += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(raw for _, _, raw in tensors.values()))


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, NDArray[Any]],
    config: Mapping[str, Any],
    dtype: str = "BF16",
    shards: int = 1,
) -> Path:
    """A checkpoint as transformers saves it: config.json and one file, or an index and `shards` files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    rows = {}
    for name, values in tensors.items():
        kind, raw = encode(values, dtype)
        rows[name] = (kind, values.shape, raw)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", rows)
        return folder
    names = list(rows)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        write_safetensors(folder / file, {name: rows[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    total = sum(len(raw) for _, _, raw in rows.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
