"""A run that writes checkpoints may be stopped or fail anywhere: nothing bears a final name, and the same command ends
in the same bytes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from checkpoints import contents, make, options
from ggufround import Run
from ggufround.errors import OutputError, UsageError, WeightError
from ggufround.formats import checkpoint
from ggufround.formats.partial import put
from ggufround.layer_planning import CheckpointOptions, build_checkpoint

pytestmark = pytest.mark.usefixtures("small_slabs")
CASES = (
    ("auto_gptq", "W3A16G32", "llama"), ("auto_awq", "W4A16G32-asym", "llama3"), ("llm_compressor", "MXFP8", "phi3"),
    ("auto_round,mlx", "W4A16G64", "qwen2"),
)  # fmt: skip
each_case = pytest.mark.parametrize(("names", "of", "model"), CASES)


class Stop(Exception):
    pass


def stop_after(weights: float) -> Callable[[str, int, int], None]:
    def progress(_phase: str, done: int, _total: int) -> None:
        if done > weights:
            raise Stop

    return progress


def everything(folder: Path) -> dict[str, bytes]:
    """All files of all folders in `folder`."""
    return {f"{p.name}/{name}": data for p in folder.iterdir() for name, data in contents(p).items()}


def unfinished(folder: Path) -> bool:
    """Whether no file in the folders bears a final name."""
    return all(name.endswith((".partial", ".journal")) for name in everything(folder))


@each_case
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(
    names: str, of: str, model: str, share: float, folder: Path, tmp_path: Path
) -> None:
    source, chosen = tiny_models.written(folder, model), options(names, of)
    make(source, tmp_path / "whole" / "{format}", chosen)
    total = build_checkpoint(source, chosen).weights
    with pytest.raises(Stop):
        make(source, tmp_path / "x" / "{format}", chosen, progress=stop_after(share * total))
    assert unfinished(tmp_path / "x")
    report = make(source, tmp_path / "x" / "{format}", chosen)
    assert report.resumed >= share
    assert everything(tmp_path / "x") == everything(tmp_path / "whole")


@each_case
def test_damaged_partial_files_are_repaired_on_resume(
    names: str, of: str, model: str, folder: Path, tmp_path: Path
) -> None:
    source, chosen = tiny_models.written(folder, model), options(names, of)
    make(source, tmp_path / "whole" / "{format}", chosen)
    total = build_checkpoint(source, chosen).weights
    with pytest.raises(Stop):
        make(source, tmp_path / "x" / "{format}", chosen, progress=stop_after(0.7 * total))
    for partial in tmp_path.glob("x/*/*.partial"):
        raw = bytearray(partial.read_bytes())
        for place in (10, len(raw) // 3, len(raw) // 2, len(raw) - 50):
            raw[place] ^= 0x55
        partial.write_bytes(raw)
    assert 0 < make(source, tmp_path / "x" / "{format}", chosen).resumed < 0.7
    assert everything(tmp_path / "x") == everything(tmp_path / "whole")


KILLED = """
import os, signal
import ggufround.planning
ggufround.planning.SLAB = 2048
from ggufround import convert
from ggufround.layer_planning import CheckpointOptions
from ggufround.quants.schemes import scheme
def progress(phase, done, total):
    if done >= {share} * total:
        os.kill(os.getpid(), signal.SIGKILL)
convert({model!r}, {out!r}, options=CheckpointOptions(scheme({of!r}), {names!r}, "rtn"), progress=progress)
"""


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_killed_process_leaves_work_that_the_same_command_finishes(
    share: float, folder: Path, tmp_path: Path
) -> None:
    model, chosen = tiny_models.written(folder, "llama"), options("auto_gptq,llm_compressor", "W4A16G32-asym")
    make(model, tmp_path / "whole" / "{format}", chosen)
    script = KILLED.format(
        share=share, model=str(model), out=str(tmp_path / "x" / "{format}"), of="W4A16G32-asym", names=chosen.formats
    )
    (tmp_path / "x").mkdir()
    died = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert died.returncode == -signal.SIGKILL
    assert unfinished(tmp_path / "x")
    assert make(model, tmp_path / "x" / "{format}", chosen).resumed >= 0.4
    assert everything(tmp_path / "x") == everything(tmp_path / "whole")


@pytest.mark.parametrize("at", ["ggufround.json", "tokenizer.json", "config.json"])
def test_a_run_that_dies_between_the_small_files_leaves_no_config_and_is_done_again(
    at: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, chosen = tiny_models.written(folder, "llama3"), options("auto_round,mlx")
    make(model, tmp_path / "whole" / "{format}", chosen)

    def put_until(path: Path, data: bytes) -> None:
        if path.name == at:
            raise Stop
        put(path, data)

    monkeypatch.setattr(checkpoint, "put", put_until)
    for _ in range(2):  # also over a finished run's files
        with pytest.raises(Stop):
            make(model, tmp_path / "x" / "{format}", chosen)
        assert not (tmp_path / "x" / "auto_round" / "config.json").exists()
        monkeypatch.setattr(checkpoint, "put", put)
        make(model, tmp_path / "x" / "{format}", chosen)
        assert everything(tmp_path / "x") == everything(tmp_path / "whole")
        monkeypatch.setattr(checkpoint, "put", put_until)


def test_a_disk_that_fills_stops_at_the_named_tensor_and_the_run_goes_on_later(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, chosen = tiny_models.written(folder, "llama"), options("auto_awq")
    make(model, tmp_path / "whole" / "x", chosen)
    real, written = os.pwrite, []

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if len(written) > 500:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(len(data))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OutputError, match=r"cannot write model\.\S+: the disk is full"):
        make(model, tmp_path / "out" / "x", chosen, Run(threads=2))
    assert unfinished(tmp_path / "out")
    monkeypatch.setattr(os, "pwrite", real)
    make(model, tmp_path / "out" / "x", chosen)
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


def test_a_nan_stops_at_the_named_tensor_and_nothing_bears_a_final_name(tmp_path: Path) -> None:
    case = tiny_models.CASES["llama"]
    weights = tiny_models.weights(case)
    weights["model.layers.1.mlp.up_proj.weight"][5, 7] = np.nan
    model = tiny_models.write(case, tmp_path / "model", weights)
    with pytest.raises(WeightError, match=r"layers\.1\.mlp\.up_proj\.weight holds nan in row 5, column 7"):
        make(model, tmp_path / "out" / "x", options("auto_gptq"))
    assert unfinished(tmp_path / "out")


def interrupted(folder: Path, out: Path, chosen: CheckpointOptions) -> Path:
    model = tiny_models.written(folder, "llama")
    with pytest.raises(Stop):
        make(model, out, chosen, progress=stop_after(50_000))
    return model


@pytest.mark.parametrize(
    "other",
    [
        options("auto_round", "W8A16G32"),
        options("auto_round", recipe="opt-rtn"),
        options("auto_round", layers={"down_proj": None}),
        options("auto_round", head=True),
    ],
)
def test_another_wish_does_not_discard_an_unfinished_run(
    other: CheckpointOptions, folder: Path, tmp_path: Path
) -> None:
    model = interrupted(folder, tmp_path / "x", options("auto_round"))
    before = contents(tmp_path / "x")
    with pytest.raises(UsageError, match="--fresh"):
        make(model, tmp_path / "x", other)
    assert contents(tmp_path / "x") == before
    assert make(model, tmp_path / "x", other, Run(threads=1, fresh=True)).resumed == 0
    make(model, tmp_path / "y", other)
    assert contents(tmp_path / "x") == contents(tmp_path / "y")


def test_a_finished_folder_can_be_written_again(folder: Path, tmp_path: Path) -> None:
    model = tiny_models.written(folder, "llama")
    make(model, tmp_path / "x", options("mlx", "W4A16G32"))
    make(model, tmp_path / "x", options("mlx", "W8A16G64"))
    make(model, tmp_path / "y", options("mlx", "W8A16G64"))
    assert contents(tmp_path / "x") == contents(tmp_path / "y")
