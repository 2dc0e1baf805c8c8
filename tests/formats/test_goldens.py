"""Plain rounding writes auto-round's own bytes (tools/make_format_goldens.py makes tests/formats/goldens)."""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import deserialize

import tiny_models
from checkpoints import make, options
from ggufround.quants.schemes import scheme

GOLDENS: dict[str, Any] = json.loads((Path(__file__).parent / "goldens" / "auto_round.json").read_text())
IN_BFLOAT16 = "auto-round computes these scales in the model's bfloat16, outside of its model-free mode"
PRODUCT = "auto-round divides by the product of both scales: what lies half way between two codes may go to the other"
KNOWN = (  # format, scheme, end of the name, why it differs
    ("auto_gptq", "*-asym", ".[qs]*", IN_BFLOAT16), ("auto_awq", "*-asym", "*", IN_BFLOAT16),
    ("llm_compressor", "*-asym", ".weight_packed", IN_BFLOAT16),
    ("llm_compressor", "*-asym", ".weight_scale", IN_BFLOAT16),
    ("llm_compressor", "*-asym", ".weight_zero_point", IN_BFLOAT16),
    ("mlx", "*-asym", "*", IN_BFLOAT16), ("*", "FP8_*", "*", IN_BFLOAT16),
    ("*", "NVFP4", ".weight_packed", PRODUCT), ("*", "NVFP4", ".input_global_scale", "another calibration text"),
)  # fmt: skip


def known(name: str, of: str, suffix: str) -> str | None:
    rows = (why for *row, why in KNOWN if all(map(fnmatchcase, (name, of, suffix), row)))
    return next(rows, None)


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """The tensors of the layer, by the end of their names."""
    return {
        name.removeprefix(GOLDENS["layer"]): entry
        for path in sorted(folder.glob("*.safetensors"))
        for name, entry in deserialize(path.read_bytes())
        if name.startswith(GOLDENS["layer"] + ".")
    }


@pytest.mark.parametrize("case", GOLDENS["tensors"])
def test_a_layer_is_auto_rounds(case: str, folder: Path, tmp_path: Path) -> None:
    name, of = case.split()
    more = {}
    if scheme(of).active == "static":
        pytest.importorskip("torch")
        from tune.tuned_runs import TEXTS

        more = {"calibration": TEXTS}
    make(tiny_models.written(folder, GOLDENS["model"]), tmp_path / "x", options(name, of), **more)
    ours, theirs = stored(tmp_path / "x"), GOLDENS["tensors"][case]
    assert set(ours) == set(theirs)
    for suffix, (dtype, shape, digest, *counts) in theirs.items():
        found, why = ours[suffix], known(name, of, suffix)
        same = hashlib.sha256(found["data"]).hexdigest() == digest
        assert same == (why is None), f"{suffix}: {why or 'differs'}"
        assert found["shape"] == shape, suffix
        assert found["dtype"] == ("F32" if dtype == "BF16" else dtype), suffix
        if counts:
            raw = np.frombuffer(found["data"], np.uint8)
            often = np.bincount(np.r_[raw & 15, raw >> 4], minlength=16)
            assert np.abs(often - counts[0]).sum() < 2e-3 * often.sum(), suffix
