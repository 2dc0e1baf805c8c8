"""Names, shapes, values, F32 tensors and metadata of every tiny checkpoint equal those of llama.cpp's converter.
So do those of its projector, where it has one.

The goldens are made by tools/make_goldens.py.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from arch.differences import BESIDE, DIFFERENCES, LESS, MORE, OTHER_PLACE, OTHER_VALUES, RENAMED
from ggufround.arch import Output, find_architecture, metadata, outputs
from ggufround.arch.spec import F32
from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.gguf_file import Field, Kind
from ggufround.projector import tower_type, vision_part
from tiny import bf16_bits

CONVERTED = [case for case in tiny_models.CASES.values() if case.converts]
GOLDENS = Path(__file__).parent / "goldens"
KINDS = {"UINT32": Kind.U32, "INT32": Kind.I32, "FLOAT32": Kind.F32, "BOOL": Kind.BOOL, "STRING": Kind.STRING}


def golden(name: str) -> dict[str, Any]:
    return json.loads((GOLDENS / f"{name}.json").read_text())


def checkpoint(case: tiny_models.Tiny, parent: Path) -> Checkpoint:
    """The case's headers, with its small files on disk; no weight is written, unless numbers are read from there."""
    root = parent / case.name
    if find_architecture(case.config).numbers:
        return open_checkpoint(tiny_models.write(case, root))
    root.mkdir()
    for name, text in case.files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    files = {name: root / name for name in case.files}
    if case.tokens:  # a projector may hold the embedding of one
        files["tokenizer.json"] = root / "tokenizer.json"
        files["tokenizer.json"].write_text(json.dumps(tiny_models.bpe_tokenizer(case.tokens)))
    tensors = {
        name: TensorRef(name, "BF16", shape, root / "model.safetensors", 0, 2 * int(np.prod(shape)))
        for name, shape in case.shapes.items()
    }
    return Checkpoint(str(root), root, tensors, case.config, files)


def evaluate(case: tiny_models.Tiny, output: Output) -> F32:
    """The tensor as float32, one granule at a time, as a slab that is cut anywhere would be read."""
    if output.values is not None:
        return output.values
    parts = []
    for piece in output.pieces:
        stored = bf16_bits(tiny_models.weight(case, piece.source.name, piece.source.shape))
        rows = (stored.astype(np.uint32) << 16).view(np.float32).reshape(piece.source.rows, piece.source.columns)
        if piece.read:
            assert piece.via is not None
            parts.append(piece.via(rows[piece.first : piece.first + piece.read]))
            continue
        for first in range(piece.first, piece.first + piece.rows, piece.granule):
            slab = rows[first : first + piece.granule]
            parts.append(piece.via(slab) if piece.via else slab)
    return np.concatenate(parts).reshape(output.shape)


@pytest.mark.parametrize("case", CONVERTED, ids=lambda case: case.name)
def test_tensors_equal_the_converters(case: tiny_models.Tiny, tmp_path: Path) -> None:
    source = checkpoint(case, tmp_path)
    made = outputs(find_architecture(case.config), source).outputs
    found = {}
    for output in made:
        values = evaluate(case, output)
        assert values.dtype == np.float32
        digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
        found[output.name] = ["F32" if output.float32 else "F16", list(output.shape), digest]
    expected = golden(case.name)["tensors"]
    more, less = MORE.get(case.name, set()), LESS.get(case.name, set())
    assert more <= found.keys() - expected.keys()
    assert less <= expected.keys() - found.keys()
    for pattern in (pattern for name, pattern in OTHER_VALUES if name == case.name):
        for name in fnmatch.filter(expected, pattern):
            assert found[name] != expected[name]
            found[name] = expected[name]
    kept = {name: row for name, row in expected.items() if name not in less}
    assert {name: row for name, row in found.items() if name not in more} == kept


@pytest.mark.parametrize("case", CONVERTED, ids=lambda case: case.name)
def test_metadata_equals_the_converters(case: tiny_models.Tiny, tmp_path: Path) -> None:
    found = metadata(find_architecture(case.config), checkpoint(case, tmp_path))
    expected = {key: field(*entry) for key, entry in golden(case.name)["metadata"].items()}
    expected |= {key: value for (name, key), (value, _) in DIFFERENCES.items() if name == case.name}
    assert {key: comparable(value) for key, value in found.items()} == expected
    assert [key for key in found if key not in OTHER_PLACE] == [key for key in expected if key not in OTHER_PLACE]


WITH_PROJECTOR = [case for case in (tiny_models.CASES | tiny_models.PROJECTORS).values() if case.mmproj]


@pytest.mark.parametrize("case", WITH_PROJECTOR, ids=lambda case: case.name)
def test_tensors_of_projectors_equal_the_converters(case: tiny_models.Tiny, tmp_path: Path) -> None:
    row, source = vision_part(checkpoint(case, tmp_path), case.arch)
    found = {}
    made = [output for output in outputs(row, source).outputs if (case.name, output.name) not in BESIDE]
    for output in made:
        values = evaluate(case, output)
        if tower_type(output, "F32") == "F16":
            values = values.astype(np.float16).astype(np.float32)
        digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
        name = RENAMED.get((case.name, output.name), (output.name,))[0]
        found[name] = [tower_type(output, "F16"), list(output.shape), digest]
    assert found == golden(f"{case.name}.mmproj")["tensors"]


@pytest.mark.parametrize("case", WITH_PROJECTOR, ids=lambda case: case.name)
def test_metadata_of_projectors_equals_the_converters(case: tiny_models.Tiny, tmp_path: Path) -> None:
    found = metadata(*vision_part(checkpoint(case, tmp_path), case.arch))
    expected = {key: field(*entry) for key, entry in golden(f"{case.name}.mmproj")["metadata"].items()}
    expected |= {key: value for (name, key), (value, _) in DIFFERENCES.items() if name == case.name}
    assert {key: comparable(value) for key, value in found.items()} == expected
    assert list(found) == list(expected)


def field(kind: str, value: Any) -> Field:
    first, _, item = kind.partition(":")
    return Field(Kind.ARRAY, value, KINDS[item]) if first == "ARRAY" else Field(KINDS[kind], value)


def comparable(field: Field) -> Field:
    """With a float as the shortest text that gives the same float32, several as float32 has them."""
    if field.item == Kind.F32:
        return field._replace(value=np.array(field.value, np.float32).tolist())
    return field._replace(value=float(str(np.float32(field.value)))) if field.kind == Kind.F32 else field
