"""A .gguf file as a source: tensors as they lie, metadata instead of a config. Split files are opened together."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.errors import InputError
from ggufround.gguf_file import Field
from ggufround.gguf_read import GGUFHeader, read_gguf

SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def open_gguf(source: str, path: Path) -> Checkpoint:
    """The checkpoint in `path`, or in all files of the split that it belongs to.

    Raises InputError for a file that is not sound GGUF, and for a split with a missing or foreign file.
    """
    name = SPLIT.fullmatch(path.name)
    first = read_gguf(path)
    count = _number(first, "split.count")
    if count is None or count < 2:
        parts = [(path, first)]
    else:
        if name is None or int(name[3]) != count:
            raise InputError(f"{path} is one of {count} files, but its name does not end in -00001-of-{count:05d}.gguf")
        parts = [_part(path.with_name(f"{name[1]}-{n + 1:05d}-of-{count:05d}.gguf"), n, count) for n in range(count)]
    tensors: dict[str, TensorRef] = {}
    for place, header in parts:
        for tensor in header.tensors.values():
            if tensor.name in tensors:
                raise InputError(f"tensor {tensor.name!r} is in {tensors[tensor.name].path.name} and in {place.name}")
            tensors[tensor.name] = TensorRef(
                tensor.name, tensor.type, tensor.shape, place, tensor.offset, tensor.nbytes
            )
    header = parts[0][1]
    total = _number(header, "split.tensors.count")
    if total is not None and count is not None and count > 1 and total != len(tensors):
        raise InputError(f"the split of {source} promises {total} tensors and holds {len(tensors)}")
    if not tensors:
        raise InputError(f"{source} holds no tensor: it is only a vocabulary")
    return Checkpoint(source, parts[0][0], _with_scales(tensors, source), {}, {}, header.metadata)


def _part(path: Path, number: int, count: int) -> tuple[Path, GGUFHeader]:
    if not path.exists():
        raise InputError(f"{path} is missing: the model is split over {count} files; download all of them")
    header = read_gguf(path)
    if (_number(header, "split.no"), _number(header, "split.count")) != (number, count):
        raise InputError(f"{path} does not say that it is file {number + 1} of {count}; it belongs to another split")
    return path, header


def _number(header: GGUFHeader, key: str) -> int | None:
    field: Field | None = header.metadata.get(key)
    return field.value if field is not None and type(field.value) is int else None


def _with_scales(tensors: dict[str, TensorRef], source: str) -> dict[str, TensorRef]:
    """NVFP4 weights with their global scale (STEM.scale, one value or one an expert), which is part of the weight.

    STEM.input_scale, which serves NVFP4 activations alone, is left out with it.
    """
    out = dict(tensors)
    for name, ref in tensors.items():
        stem = name.removesuffix(".weight")
        scale = tensors.get(stem + ".scale")
        if ref.dtype != "NVFP4" or scale is None:
            continue
        stacks = ref.shape[0] if len(ref.shape) == 3 else 1
        count = scale.rows * scale.columns
        if scale.dtype != "F32" or count not in (1, stacks):
            raise InputError(f"{source}: {scale.name} must hold {stacks} in F32, not {scale.shape} in {scale.dtype}")
        out[name] = replace(ref, scale=scale, scale_block=(0 if count == 1 else ref.rows // stacks, 0))
        for used in (scale.name, stem + ".input_scale"):
            out.pop(used, None)
    return out
