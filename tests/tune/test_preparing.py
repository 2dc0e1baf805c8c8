"""What a tuned run refuses before it starts, and what its file will say of it."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_models
from ggufround import Options, Run, convert
from ggufround.errors import UsageError

pytest.importorskip("torch")
pytest.importorskip("transformers")
from ggufround.tune.calibration import CalibrationOptions  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


def test_too_little_memory_for_one_block_says_what_it_would_take_and_leaves_no_file(tmp_path: Path) -> None:
    model = tiny_models.write(tiny_models.CASES["llama"], tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 100)
    out = tmp_path / "out.gguf"
    with pytest.raises(UsageError, match=r"--max-ram 100 MB is too little: one block and a micro-batch take about \d"):
        convert(
            model,
            out,
            options=Options(("q4_0",), "light"),
            run=Run(threads=1, max_ram=100_000_000),
            calibration=CalibrationOptions((str(text),), samples=4, seqlen=32),
        )
    assert not list(tmp_path.glob("out*"))
