"""A GGUF file beside a checkpoint: the same codes, from one command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from ggufround import AutoRound
from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.reading import Reader


def weights(path: Path) -> dict[str, Any]:
    checkpoint, found = open_checkpoint(str(path)), {}
    with Reader(checkpoint) as reader:
        for name, ref in checkpoint.tensors.items():
            found[name] = np.empty((ref.rows, ref.columns), np.float32)
            reader.read_rows(ref, 0, ref.rows, found[name], np.empty(0, np.uint8))
    return found


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write(tiny_models.ALL["wide"], tmp_path_factory.mktemp("beside") / "wide")


@pytest.mark.parametrize("scheme", ["W4A16", "W8A16G64", "W2A16G64", "MXFP4A16"])
def test_the_file_holds_the_codes_of_the_checkpoint(scheme: str, wide: Path, tmp_path: Path, run: Any) -> None:
    formats = "llm_compressor,gguf"
    ran = run("convert", wide, tmp_path / "out-{format}", "--format", formats, "--scheme", scheme, "--json")
    assert ran.code == 0, ran.err
    assert [Path(f).name for f in ran.json["files"]] == ["model.safetensors", "out-gguf.gguf"]
    ours, theirs = weights(tmp_path / "out-llm_compressor"), weights(tmp_path / "out-gguf.gguf")
    for source, name in (("mlp.down_proj", "ffn_down"), ("mlp.up_proj", "ffn_up"), ("self_attn.v_proj", "attn_v")):
        np.testing.assert_array_equal(ours[f"model.layers.1.{source}.weight"], theirs[f"blk.1.{name}.weight"])


def test_python_writes_it_too(wide: Path, tmp_path: Path) -> None:
    _, made = AutoRound(wide, iters=0).quantize_and_save(tmp_path, "auto_round,gguf")
    assert [path.name for path in made] == ["wide-w4g128", "wide-w4g128-gguf.gguf"]
    assert all(path.exists() for path in made)


@pytest.mark.parametrize(
    ("out", "words", "message"),
    [
        ("out", (), "several formats need {format} in OUT"),
        ("out-{format}", ("--scheme", "FP8_BLOCK"), "no GGUF type holds FP8_BLOCK"),
        ("out-{format}", ("--scheme", "MXFP8"), "no GGUF type holds MXFP8"),
    ],
)
def test_what_cannot_be_is_refused_before_the_checkpoint_is_made(
    out: str, words: Any, message: str, wide: Path, tmp_path: Path, run: Any
) -> None:
    ran = run("convert", wide, tmp_path / out, "--format", "llm_compressor,gguf", *words)
    assert ran.code == 2
    assert message in " ".join(ran.err.split())
    assert not list(tmp_path.iterdir())
