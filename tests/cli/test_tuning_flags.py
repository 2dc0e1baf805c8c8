"""Tuned rounding as a user types it: what it prints, what it refuses, how it is stopped and gone on with."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tiny_models
from ggufround import convert
from ggufround.recipes import RECIPES

needs_torch = pytest.mark.torch
pytestmark = pytest.mark.filterwarnings("ignore")
FEW = ("--recipe", "light", "--iters", "2", "--samples", "4", "--seqlen", "32", "--threads", "1")
INSTALL = 'pip install "ggufround[tune]"'


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """--threads is torch's too, for the whole process."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of many different tokens, a few thousand of them."""
    path = tmp_path_factory.mktemp("text") / "own.txt"
    path.write_text("".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz ,.", k=6000)))
    return path


def child(*arguments: object, **how: Any) -> subprocess.Popen[str]:
    """A Python of its own, with what this one can import."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, **how,
    )  # fmt: skip


@needs_torch
@pytest.mark.usefixtures("torch_threads")
def test_a_tuned_file_says_how_it_was_made_and_passes_verify(run: Any, llama: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    ran = run("convert", llama, out, "--type", "q4_0", *FEW, "--calib", text, "--seed", 7, "--batch-size", 2)
    assert ran.code == 0
    assert str(out) in ran.out
    assert "peak memory" in ran.out
    assert f"note: calibration on {text.name}: 4 sequences of 32 tokens, 128 of them distinct" in ran.err
    said = json.loads(run("inspect", out, "--json").out)["metadata"]
    assert said["ggufround.recipe"] == "light"
    assert said["ggufround.calibration.name"] == text.name
    assert (said["ggufround.tuning.iterations"], said["ggufround.tuning.batch"]) == (2, 2)
    assert said["ggufround.tuning.seed"] == 7
    lines = [json.loads(line) for line in (tmp_path / "x.gguf.tuning.jsonl").read_text().splitlines()]
    assert [line["block"] for line in lines] == ["blk.0", "blk.1"]
    assert run("verify", out, "--source", llama).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.gguf", "x.gguf.tuning.jsonl"]


@needs_torch
@pytest.mark.usefixtures("torch_threads")
def test_json_is_all_that_is_printed_and_holds_the_notes(run: Any, llama: Path, text: Path, tmp_path: Path) -> None:
    ran = run("convert", llama, tmp_path / "x.gguf", "--type", "q4_0", *FEW, "--calib", text, "--json")
    assert (ran.code, ran.err) == (0, "")
    made = json.loads(ran.out)
    assert made["bytes"] == (tmp_path / "x.gguf").stat().st_size
    assert made["resumed"] == 0
    assert any(text.name in note for note in made["notes"])


@needs_torch
@pytest.mark.usefixtures("torch_threads")
def test_without_a_text_the_built_in_one_serves_and_the_run_says_that_more_is_better(
    run: Any, llama: Path, tmp_path: Path
) -> None:
    ran = run("convert", llama, tmp_path / "x.gguf", "--type", "q4_0", *FEW)
    assert ran.code == 0
    assert "note: calibrated on the built-in text" in ran.err


@needs_torch
@pytest.mark.usefixtures("torch_threads")
def test_a_text_gives_importance_without_tuning(run: Any, llama: Path, text: Path, tmp_path: Path) -> None:
    few = ("--samples", 4, "--seqlen", 32, "--threads", 1)
    ran = run("convert", llama, tmp_path / "x.gguf", "--type", "q4_0", "--calib", text, *few)
    assert ran.code == 0
    assert text.name in ran.err
    plain = tmp_path / "plain.gguf"
    convert(llama, plain, type="q4_0")
    assert (tmp_path / "x.gguf").read_bytes()[-4096:] != plain.read_bytes()[-4096:]


@needs_torch
@pytest.mark.usefixtures("torch_threads")
def test_experts_that_no_token_reached_are_told_of(run: Any, tmp_path: Path) -> None:
    model = tiny_models.write(tiny_models.CASES["qwen3moe"], tmp_path / "moe")
    (tmp_path / "one.txt").write_text("\x01" * 600)
    ran = run("convert", model, tmp_path / "x.gguf", "--type", "q4_0", *FEW, "--calib", tmp_path / "one.txt")
    assert ran.code == 0
    assert "note: no token reached 4 experts" in ran.err


CALIB = ("--calib", "TEXT")
BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "iterations without tuning": (("--iters", "3"), "--iters is for the tuned recipes"),
    "a step without tuning": (("--recipe", "rtn", "--lr", "1"), "--lr is for the tuned recipes"),
    "a batch without tuning": (("--batch-size", "8", *CALIB), "--batch-size is for the tuned recipes"),
    "samples without a text": (("--samples", "4"), "--samples is for calibration"),
    "a seed without a text": (("--seed", "4"), "--seed is for calibration"),
    "a device without a text": (("--device", "cuda"), "--device is for calibration"),
    "markers without a text": (("--chat",), "--chat is for calibration"),
    "no markers without a text": (("--plain",), "--plain is for calibration"),
    "an imatrix and tuning": ((*FEW, "--imatrix", "TEXT"), "--imatrix and"),
    "an imatrix and a text": (("--imatrix", "TEXT", *CALIB), "--imatrix and --calib"),
    "no step": ((*FEW, "--lr", "0"), "--lr must be more than 0"),
    "a step backwards": ((*FEW, "--lr", "-1"), "--lr must be more than 0"),
    "a step without end": ((*FEW, "--lr", "inf"), "--lr must be finite"),
    "a step that is no number": ((*FEW, "--lr", "nan"), "--lr must be more than 0"),
    "no iterations": ((*FEW, "--iters", "0"), "--iters must be more than 0"),
    "an empty batch": ((*FEW, "--batch-size", "0"), "--batch-size must be more than 0"),
    "no samples": ((*FEW, "--samples", "0"), "samples must be at least 1"),
    "no threads": ((*FEW, "--threads", "0"), "--threads must be at least 1"),
    "an unknown device": ((*FEW, *CALIB, "--device", "abacus"), "unknown device 'abacus'"),
    "an absent device": ((*FEW, *CALIB, "--device", "xpu"), "finds no such device"),
    "several types": ((*FEW, *CALIB, "--type", "q4_0,q8_0"), "one type at a time"),
    "a text that is missing": ((*FEW, "--calib", "absent.txt"), "absent.txt is not there"),
    "a text that is too short": ((*FEW, "--calib", "SHORT"), "too short"),
    "a text that is empty": ((*FEW, "--calib", "EMPTY"), "is empty"),
    "too little memory": ((*FEW, *CALIB, "--max-ram", "50MB"), "--max-ram 50 MB is too little"),
}


@needs_torch
@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize("case", BAD)
def test_what_does_not_go_together_is_refused_in_one_line(
    case: str, run: Any, llama: Path, text: Path, tmp_path: Path
) -> None:
    texts = {"TEXT": text, "SHORT": tmp_path / "short.txt", "EMPTY": tmp_path / "empty.txt"}
    texts["SHORT"].write_text("too short")
    texts["EMPTY"].touch()
    flags, message = BAD[case]
    ran = run("convert", llama, tmp_path / "x-{type}.gguf", *(texts.get(flag, flag) for flag in flags))
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "short.txt"]


@needs_torch
@pytest.mark.usefixtures("torch_threads")
def test_a_gguf_is_converted_but_not_tuned(run: Any, llama: Path, text: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "source.gguf", type="q8_0")
    ran = run("convert", tmp_path / "source.gguf", tmp_path / "x.gguf", "--type", "q4_0", *FEW, "--calib", text)
    assert ran.code == 2
    assert ran.err.startswith("error: ")
    assert "can be converted but not tuned" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["source.gguf"]


@pytest.mark.parametrize("absent", ["torch", "transformers.conversion_mapping"])
@pytest.mark.parametrize("command", ["tuned", "calibrated", "devices"])
def test_an_absent_extra_says_what_to_install(
    command: str, absent: str, run: Any, llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if absent != "torch":
        pytest.importorskip("transformers")
    monkeypatch.setitem(sys.modules, absent, None)
    words = {
        "tuned": ("convert", llama, tmp_path / "x.gguf", "--type", "q4_0", *FEW, "--calib", text),
        "calibrated": ("convert", llama, tmp_path / "x.gguf", "--type", "q4_0", "--calib", text),
        "devices": ("list", "devices"),
    }
    ran = run(*words[command])
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert INSTALL in ran.err
    assert absent.split(".")[0] in ran.err
    assert list(tmp_path.iterdir()) == []


def test_planning_a_tuned_file_needs_no_torch(llama: Path, tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        f"sys.argv = ['ggufround', 'plan', {str(llama)!r}, '--type', 'q4_0', *{FEW!r}, '--json']\n"
        "from ggufround.cli.app import main\n"
        "main()"
    )
    planned = child("-c", script, cwd=tmp_path)
    out, err = planned.communicate()
    assert (planned.returncode, err) == (0, "")
    planned_json = json.loads(out)
    assert planned_json["recipe"] == "light"
    assert any(INSTALL in note for note in planned_json["notes"])
    assert "seconds" not in planned_json
    assert list(tmp_path.iterdir()) == []


@needs_torch
@pytest.mark.usefixtures("torch_threads")
def test_a_dry_run_says_what_tuning_takes_and_refuses_what_it_would_refuse(
    run: Any, llama: Path, text: Path, tmp_path: Path
) -> None:
    ran = run("convert", llama, tmp_path / "x.gguf", "--type", "q4_0", *FEW, "--calib", text, "--dry-run")
    assert ran.code == 0
    assert "2 steps of 8 x 32 a block" in " ".join(ran.out.split())
    untuned = json.loads(run("plan", llama, "--type", "q4_0", "--json").out)
    tuned = json.loads(run("plan", llama, "--type", "q4_0", *FEW, "--calib", text, "--json").out)
    assert tuned["peak_memory"] > untuned["peak_memory"]
    refused = run("plan", llama, "--type", "q4_0,q8_0", *FEW, "--calib", text)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "one type at a time" in refused.err
    assert list(tmp_path.iterdir()) == []


def test_recipes_are_listed_with_their_numbers(run: Any) -> None:
    rows = {row["recipe"]: row for row in json.loads(run("list", "recipes", "--json").out)}
    assert rows["best"]["iterations"] == RECIPES["best"].iterations
    assert rows["light"]["samples"] == RECIPES["light"].samples


@needs_torch
@pytest.mark.usefixtures("torch_threads")
def test_devices_are_listed_usable_or_not(run: Any) -> None:
    rows = {row["device"]: row for row in json.loads(run("list", "devices", "--json").out)}
    assert list(rows) == ["auto", "cpu", "cuda", "xpu"]
    assert rows["cpu"]["usable"] == rows["auto"]["usable"] == "yes"
    assert "torch" in rows["cpu"]["what it is"]
    assert run("list", "devices").code == 0


@needs_torch
@pytest.mark.slow
@pytest.mark.usefixtures("torch_threads")
def test_ctrl_c_keeps_what_is_done_and_the_same_command_ends_in_the_same_bytes(
    run: Any, text: Path, tmp_path: Path
) -> None:
    layers = 4
    case = tiny_models.Tiny(
        "deep", tiny_models.config("LlamaForCausalLM", "llama", num_hidden_layers=layers),
        tiny_models.llama_like(layers=layers),
    )  # fmt: skip
    model = tiny_models.write(case, tmp_path / "model")
    folders = [tmp_path / "stopped", tmp_path / "whole"]
    for folder in folders:
        folder.mkdir()
    stopped, whole = (folder / "x.gguf" for folder in folders)
    flags = ("--recipe", "light", "--type", "q4_0", "--iters", 24, "--samples", 10, "--seqlen", 128)
    flags += ("--threads", 1, "--calib", text)  # a second or so a block

    first = child("-m", "ggufround", "convert", model, stopped, *flags)
    log = stopped.with_name("x.gguf.tuning.jsonl")
    try:
        while not (log.exists() and log.read_text().count("\n") > 1) and first.poll() is None:  # a block is stored
            time.sleep(0.01)
        first.send_signal(signal.SIGINT)
        _, err = first.communicate(timeout=60)
    finally:
        first.kill()
    assert first.returncode == 1, err
    assert "Traceback" not in err
    assert err.endswith("error: interrupted; the same command goes on from here\n")
    kept = ["x.gguf.journal", "x.gguf.partial", "x.gguf.tuning.jsonl"]
    assert sorted(path.name for path in stopped.parent.iterdir()) == kept
    assert 0 < len(log.read_text().splitlines()) < layers

    again = run("convert", model, stopped, *flags, "--json")
    assert (again.code, again.err) == (0, "")
    assert 0 < json.loads(again.out)["resumed"] < 1
    assert [json.loads(line)["block"] for line in log.read_text().splitlines()] == [f"blk.{i}" for i in range(layers)]
    assert json.loads(run("convert", model, whole, *flags, "--json").out)["resumed"] == 0
    assert stopped.read_bytes() == whole.read_bytes()
    for path in (stopped, whole):
        assert sorted(p.name for p in path.parent.iterdir()) == ["x.gguf", "x.gguf.tuning.jsonl"]
