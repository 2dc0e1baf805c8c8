"""A tuned run may be stopped at any moment: the same command ends in the same bytes, another one is refused."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ggufround import Run
from ggufround.errors import UsageError
from ggufround.journal import Journal
from ggufround.recipes import RECIPES, Recipe

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from ggufround.tune.calibration import CalibrationOptions  # noqa: E402
from tune.tuned_runs import LAYERS, SHORT, TEXTS, Stop, log_of, stop_at, tune, written  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("in_float32")]


@pytest.mark.usefixtures("small_slabs")
@pytest.mark.parametrize(("name", "kind"), [("llama", "q4_0"), ("qwen3moe", "nvfp4")])
def test_a_run_stopped_at_random_moments_ends_in_the_same_bytes(
    name: str, kind: str, folder: Path, tmp_path: Path
) -> None:
    model, calls = written(folder, name), []
    tune(model, tmp_path / "whole.gguf", kind, SHORT, progress=lambda *a: calls.append(a))
    assert {phase for phase, _, _ in calls} >= {"measure", "tune"}
    for call in random.Random(0).sample(range(len(calls)), 5):
        with pytest.raises(Stop):
            tune(model, tmp_path / "x.gguf", kind, SHORT, progress=stop_at(call))
        assert not (tmp_path / "x.gguf").exists()
        report = tune(model, tmp_path / "x.gguf", kind, SHORT)
        assert report.resumed > 0  # what lies outside the blocks, at the least
        assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
        assert [line["block"] for line in log_of(tmp_path / "x.gguf")] == [f"blk.{i}" for i in range(LAYERS)]
        (tmp_path / "x.gguf").unlink()


@pytest.mark.usefixtures("small_slabs")
def test_a_run_stopped_while_a_block_is_written_ends_in_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = written(folder, "llama")
    tune(model, tmp_path / "whole.gguf", recipe=SHORT)
    add, times = Journal.add, random.Random(1).sample(range(30, 90), 4)
    for most in sorted(times):  # one run, stopped four times

        def add_until(journal: Journal, done: Any, most: int = most) -> None:
            if len(journal.done) >= most:
                raise Stop
            add(journal, done)

        monkeypatch.setattr(Journal, "add", add_until)
        with pytest.raises(Stop):
            tune(model, tmp_path / "x.gguf", recipe=SHORT)
    monkeypatch.setattr(Journal, "add", add)
    assert tune(model, tmp_path / "x.gguf", recipe=SHORT).resumed > 0.2
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


KILLED = """
import os, signal
import torch
import ggufround.tune.device
from dataclasses import replace
from ggufround import Options, Run, convert
from ggufround.recipes import RECIPES
from ggufround.tune.calibration import CalibrationOptions
ggufround.tune.device.fast_bfloat16 = lambda device: False
def progress(phase, done, total):
    if phase == "tune" and done == total - 2:
        os.kill(os.getpid(), signal.SIGKILL)
recipe = replace(RECIPES["light"], iterations=5, batch=8, curvature=2)
convert({model!r}, {out!r}, options=Options(types=("q4_0",), recipe=recipe), run=Run(threads=1), progress=progress,
        calibration=CalibrationOptions(samples=6, seqlen=64, holdout=0.2))
"""


def test_a_killed_run_goes_on_after_its_last_block(folder: Path, tmp_path: Path) -> None:
    model, out = written(folder, "llama"), tmp_path / "x.gguf"
    script = KILLED.format(model=str(model), out=str(out))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    died = subprocess.run([sys.executable, "-W", "ignore", "-c", script], env=environment, timeout=300)
    assert died.returncode == -signal.SIGKILL
    assert not out.exists()
    calls: list[tuple[str, int, int]] = []
    assert tune(model, out, recipe=SHORT, progress=lambda *a: calls.append(a)).resumed > 0.3
    assert not any(phase == "tune" and 0 < done < SHORT.iterations for phase, done, _ in calls)  # not tuned again
    tune(model, tmp_path / "whole.gguf", recipe=SHORT)
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_other_settings_do_not_discard_an_unfinished_run(folder: Path, tmp_path: Path) -> None:
    model, out = written(folder, "llama"), tmp_path / "x.gguf"
    (tmp_path / "text.txt").write_text("Other words than those that come with the tool. " * 400)
    with pytest.raises(Stop):
        tune(model, out, recipe=SHORT, progress=stop_at(8))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    others: dict[str, tuple[Recipe, CalibrationOptions]] = {
        "seed": (SHORT, replace(TEXTS, seed=7)),
        "text": (SHORT, replace(TEXTS, sources=(str(tmp_path / "text.txt"),))),
        "samples": (SHORT, replace(TEXTS, samples=5)),
        "length": (SHORT, replace(TEXTS, seqlen=48)),
        "iterations": (replace(SHORT, iterations=6), TEXTS),
        "batch": (replace(SHORT, batch=2), TEXTS),
        "rate": (replace(SHORT, rate=0.1), TEXTS),
        "rate of scales": (replace(SHORT, scale_rate=0.1), TEXTS),
        "rate of d": (replace(SHORT, d_rate=0.01), TEXTS),
        "curvature": (replace(SHORT, curvature=0), TEXTS),
        "recipe": (RECIPES["opt-rtn"], TEXTS),
    }
    for recipe, texts in others.values():
        with pytest.raises(UsageError, match="unfinished run .* --fresh"):
            tune(model, out, recipe=recipe, texts=texts)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    recipe, texts = others["seed"]
    assert tune(model, out, recipe=recipe, texts=texts, run=Run(threads=1, fresh=True)).resumed == 0
