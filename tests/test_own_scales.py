"""Scales of experts that are the model's own keep their place in types that would have a scale there too."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import tiny_models
from ggufround import convert
from ggufround.checkpoint import open_checkpoint
from ggufround.gguf_read import read_gguf
from packed_layouts import rows_of


def test_nvfp4_leaves_the_scales_of_gemma_4_alone(tmp_path: Path) -> None:
    case = tiny_models.CASES["gemma4-moe"]
    model = tiny_models.write(case, tmp_path / "m")
    convert(model, tmp_path / "x.gguf", type="nvfp4")
    header, raw = read_gguf(tmp_path / "x.gguf"), (tmp_path / "x.gguf").read_bytes()
    assert header.tensors["blk.0.ffn_down_exps.weight"].type == "NVFP4"
    assert "blk.0.ffn_gate_up_exps.scale" in header.tensors
    scale = header.tensors["blk.0.ffn_down_exps.scale"]
    stored = np.frombuffer(raw[scale.offset : scale.offset + scale.nbytes], np.float32)
    source = rows_of(open_checkpoint(model), "model.layers.0.router.per_expert_scale")
    np.testing.assert_array_equal(stored, source.reshape(-1))
