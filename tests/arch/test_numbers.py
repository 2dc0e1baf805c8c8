"""Numbers that a checkpoint has in tensors and a GGUF file in its metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny_models
from ggufround import convert
from ggufround.arch import find_architecture, outputs
from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.errors import InputError
from ggufround.gguf_read import read_gguf

CASE = tiny_models.CASES["apertus"]
NUMBER = "model.layers.1.mlp.act_fn.beta"


def headers(shapes: dict[str, tuple[int, ...]]) -> Checkpoint:
    tensors = {
        name: TensorRef(name, "BF16", shape, Path("model.safetensors"), 0, 2 * int(np.prod(shape)))
        for name, shape in shapes.items()
    }
    return Checkpoint("m", Path("m"), tensors, CASE.config)


def test_the_file_has_a_list_of_them_and_no_tensor(tmp_path: Path) -> None:
    convert(tiny_models.write(CASE, tmp_path / "m"), tmp_path / "x.gguf", type="q4_0")
    header = read_gguf(tmp_path / "x.gguf")
    assert header.metadata["xielu.alpha_p"].value == [0.5, 0.75]
    assert not any("act" in name for name in header.tensors)


def test_a_missing_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"lacks 1 of 2 numbers of xielu\.beta: layers\.1\.mlp\.act_fn\.beta"):
        outputs(find_architecture(CASE.config), headers({n: s for n, s in CASE.shapes.items() if n != NUMBER}))


def test_one_of_several_values_is_refused() -> None:
    with pytest.raises(InputError, match=r"act_fn\.beta has the shape \[3\]; must hold one number"):
        outputs(find_architecture(CASE.config), headers({**CASE.shapes, NUMBER: (3,)}))
