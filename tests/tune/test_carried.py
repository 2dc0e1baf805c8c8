"""Tuning a model that is quantised already: what keeps its codes is left alone, the rest is tuned around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny_models
from ggufround import Options, convert, plan
from ggufround.checkpoint import open_checkpoint
from ggufround.errors import UsageError
from ggufround.layer_planning import CheckpointOptions
from ggufround.quants.schemes import scheme
from packed_layouts import rows_of

pytest.importorskip("torch")
pytest.importorskip("transformers")
from tune.tuned_runs import SHORT, log_of, tensors_of, tune  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("in_float32")]


def quantised(llama: Path, folder: Path) -> Path:
    """4 bits, but down_proj of the first block in 8."""
    layers = (("layers.0.mlp.down_proj", scheme("W8A16G32")),)
    convert(llama, folder, options=CheckpointOptions(scheme("W4A16G32"), ("auto_round",), "rtn", layers))
    return folder


def test_only_what_is_rounded_again_is_tuned(llama: Path, tmp_path: Path) -> None:
    model = quantised(llama, tmp_path / "m")
    convert(model, tmp_path / "plain.gguf", type="q4_0")
    tune(model, tmp_path / "x.gguf", "q4_0", SHORT)
    plain, tuned = tensors_of(tmp_path / "plain.gguf"), tensors_of(tmp_path / "x.gguf")
    moved = {name for name in plain if plain[name] != tuned[name]}
    assert moved == {"blk.0.ffn_down.weight"}
    assert [line["block"] for line in log_of(tmp_path / "x.gguf")] == ["blk.0"]
    found = open_checkpoint(tmp_path / "x.gguf")
    name = "model.layers.1.self_attn.o_proj.weight"
    np.testing.assert_array_equal(rows_of(found, "blk.1.attn_output.weight"), rows_of(open_checkpoint(model), name))


def test_with_nothing_to_tune_the_run_is_refused(llama: Path, tmp_path: Path) -> None:
    model = quantised(llama, tmp_path / "m")
    with pytest.raises(UsageError, match="nothing to tune"):
        plan(model, Options(recipe="light"))
    assert tiny_models.LAYERS == 2
