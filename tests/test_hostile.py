"""Hostile, sloppy and unlucky use through the real command: one clear message, its exit code, and nothing lost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from ggufround import Options, Run, convert, plan
from ggufround.errors import InputError, OutputError, UsageError, WeightError
from ggufround.gguf_read import read_gguf
from ggufround.journal import Journal
from ggufround.planning import slabs
from ggufround.preflight import workers

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
FLAGS = ("--type", "q4_0")


def run(*arguments: str | bytes | Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "ggufround", *arguments], env=ENVIRONMENT | environment, capture_output=True, timeout=120
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_the_index_of_the_model_is_never_the_output(llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(llama, tmp_path / "model")
    before = contents(model)
    with pytest.raises(UsageError, match="the model itself"):
        convert(model, model / "model.safetensors.index.json", type="q4_0")
    assert contents(model) == before
    for _ in range(2):  # a file of ours in the model's folder may be made, and made again
        convert(model, model / "x.gguf", type="q4_0")
    assert {k: v for k, v in contents(model).items() if k != "x.gguf"} == before


@pytest.mark.parametrize("suffix", ["", ".partial", ".journal"])
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_no_link_makes_a_run_write_over_the_model(llama: Path, tmp_path: Path, suffix: str, link: Any) -> None:
    model = shutil.copytree(llama, tmp_path / "model")
    before = contents(model)
    link(model / "config.json", tmp_path / f"x.gguf{suffix}")
    with pytest.raises(UsageError, match="the model itself"):
        convert(model, tmp_path / "x.gguf", type="q4_0")
    assert contents(model) == before


def legacy_imatrix(path: Path, entries: dict[str, int]) -> Path:
    rows = [struct.pack("<i", len(entries))]
    for name, size in entries.items():
        rows.append(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 1, size))
        rows.append(np.ones(size, "<f4").tobytes())
    path.write_bytes(b"".join(rows))
    return path


def test_the_imatrix_is_never_the_output(llama: Path, tmp_path: Path) -> None:
    imatrix = legacy_imatrix(tmp_path / "x.gguf", {"blk.0.attn_q.weight": tiny_models.EMBD})
    before = imatrix.read_bytes()
    ran = run("convert", llama, imatrix, "--imatrix", imatrix, *FLAGS)
    assert ran.returncode == 2
    assert b"or its imatrix" in ran.stderr
    assert contents(tmp_path) == {"x.gguf": before}


def test_an_imatrix_that_names_no_tensor_of_the_model_is_refused(llama: Path, tmp_path: Path) -> None:
    imatrix = legacy_imatrix(tmp_path / "other.dat", {"blk.77.attn_q.weight": 64})
    ran = run("convert", llama, tmp_path / "x.gguf", "--imatrix", imatrix, *FLAGS)
    assert ran.returncode == 2
    assert b"belongs to another model" in ran.stderr
    assert not (tmp_path / "x.gguf").exists()


def test_a_pipe_or_device_is_not_replaced_by_a_model(llama: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="device or pipe"):
        convert(llama, tmp_path / "pipe", type="q4_0")
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_an_output_without_a_name_is_a_usage_error(llama: Path) -> None:
    ran = run("convert", llama, "", *FLAGS)
    assert ran.returncode == 2
    assert ran.stderr.startswith(b"error: OUT")


def test_names_that_are_not_text_convert(llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(llama, tmp_path / "model\udcff")
    out = os.fsencode(tmp_path) + b"/out\xff.gguf"
    ran = run("convert", model, out, *FLAGS, LC_ALL="C.UTF-8", PYTHONIOENCODING="ascii:strict")
    assert (ran.returncode, b"Traceback" in ran.stderr) == (0, False)
    assert read_gguf(Path(os.fsdecode(out))).metadata["ggufround.source"].value == "model\ufffd"


def test_more_threads_than_slabs_are_not_started(llama: Path) -> None:
    made = plan(llama, Options(types=("q4_0",)))
    parts = tuple(slabs(made))
    assert workers(made, parts, Run(threads=1_000_000)) == len(parts)


def test_a_cut_tokenizer_is_refused_before_any_output(llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(llama, tmp_path / "model")
    whole = (model / "tokenizer.model").read_bytes()
    for size in (0, whole.index(b"<0x10>") - 4):  # also exactly between two pieces
        (model / "tokenizer.model").write_bytes(whole[:size])
        with pytest.raises(InputError, match="tokenizer.model"):
            convert(model, tmp_path / "x.gguf", type="q4_0")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_nan_in_a_quantised_source_is_not_copied(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "q8.gguf", type="q8_0")
    raw = bytearray((tmp_path / "q8.gguf").read_bytes())
    place = read_gguf(tmp_path / "q8.gguf").tensors["blk.1.ffn_up.weight"].offset
    raw[place : place + 2] = b"\x00\x7e"  # the scale of the first block
    (tmp_path / "q8.gguf").write_bytes(raw)
    with pytest.raises(WeightError, match=r"blk\.1\.ffn_up\.weight holds nan"):
        convert(tmp_path / "q8.gguf", tmp_path / "x.gguf", type="q8_0")
    assert not (tmp_path / "x.gguf").exists()


def test_nvfp4_without_a_global_scale_is_copied_as_it_is(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "rtn.gguf", type="nvfp4", recipe="rtn")
    convert(tmp_path / "rtn.gguf", tmp_path / "x.gguf", type="nvfp4", recipe="opt-rtn")
    first, again = read_gguf(tmp_path / "rtn.gguf"), read_gguf(tmp_path / "x.gguf")
    assert list(first.tensors) == list(again.tensors)
    data = [(tmp_path / "rtn.gguf").read_bytes()[first.data_offset :]]
    assert data == [(tmp_path / "x.gguf").read_bytes()[again.data_offset :]]


@pytest.mark.parametrize("flags", [{}, {"fresh": True}])
def test_a_second_run_leaves_the_files_of_a_first_one_alone(
    llama: Path, tmp_path: Path, flags: dict[str, bool]
) -> None:
    partial = tmp_path / "x.gguf.partial"
    partial.write_bytes(b"the work of another run")
    with partial.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another run is writing"):
            convert(llama, tmp_path / "x.gguf", type="q4_0", run=Run(**flags))
    assert contents(tmp_path) == {"x.gguf.partial": b"the work of another run"}


SIGNALLED = """
import os, signal, sys
import ggufround.conversion as conversion
add = conversion.Journal.add
def then_stop(journal, done):
    add(journal, done)
    os.kill(os.getpid(), {signal})
conversion.Journal.add = then_stop
from ggufround.cli.app import main
sys.argv = ["ggufround", "convert", {model!r}, {out!r}, "--type", "nvfp4,q4_0", "--split-max-size", "60K", "--json"]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_that_it_can_go_on_and_does(llama: Path, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole").mkdir()
    out = tmp_path / "cut" / "x-{type}.gguf"
    script = SIGNALLED.format(signal=int(number), model=str(llama), out=str(out))
    ran = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (1, b"")
    assert ran.stderr == b"error: interrupted; the same command goes on from here\n"
    assert not list(out.parent.glob("*.gguf"))
    flags = ("--type", "nvfp4,q4_0", "--split-max-size", "60K", "--json")
    again = run("convert", llama, out, *flags)
    assert json.loads(again.stdout)["resumed"] > 0
    run("convert", llama, tmp_path / "whole" / out.name, *flags)
    assert contents(out.parent) == contents(tmp_path / "whole")


class _FullDisk:
    """A file on a disk that takes ten more bytes."""

    def __init__(self, file: Any) -> None:
        self.file, self.room = file, 10

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written, self.room = int(self.file.write(data[: self.room])), 0
        return written

    def close(self) -> None:
        self.file.close()


def test_a_disk_too_full_for_the_journal_says_so_and_keeps_its_sound_lines(
    llama: Path, tmp_path: Path, small_slabs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Journal.add

    def add_until_full(journal: Journal, done: Any) -> None:
        if len(journal.done) == 5:
            monkeypatch.setattr(journal, "_file", _FullDisk(journal._file))
        add(journal, done)

    monkeypatch.setattr(Journal, "add", add_until_full)
    with pytest.raises(OutputError, match=r"x\.gguf\.journal: the disk is full; .* the same command again"):
        convert(llama, tmp_path / "x.gguf", type="q4_0")
    monkeypatch.setattr(Journal, "add", add)
    assert convert(llama, tmp_path / "x.gguf", type="q4_0").resumed > 0
    convert(llama, tmp_path / "whole.gguf", type="q4_0")
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_a_journal_of_something_else_is_not_trusted(llama: Path, tmp_path: Path) -> None:
    text = json.dumps({"run": 5})
    (tmp_path / "x.gguf.journal").write_text(f"{zlib.crc32(text.encode()):08x} {text}\n")
    ran = run("convert", llama, tmp_path / "x.gguf", *FLAGS)
    assert ran.returncode == 2
    assert b"--fresh" in ran.stderr
    assert run("convert", llama, tmp_path / "x.gguf", "--fresh", *FLAGS).returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]


def test_a_failure_prints_nothing_on_stdout_even_with_json(llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(llama, tmp_path / "model")
    (model / "model-00002-of-00002.safetensors").unlink()
    ran = run("convert", model, tmp_path / "x.gguf", "--json", *FLAGS)
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert ran.stderr.count(b"\n") == 1
    assert b"missing: model-00002-of-00002.safetensors; download" in ran.stderr


def test_a_pattern_that_matches_nothing_is_said_aloud(llama: Path) -> None:
    ran = run("plan", llama, *FLAGS, "--tensor-type", "fnn_down=q8_0", "--tensor-type", "ffn_up=q8_0", "--json")
    notes = [n for n in json.loads(ran.stdout)["notes"] if "--tensor-type" in n]
    assert notes == ["--tensor-type 'fnn_down' matches no tensor that is quantised"]


def test_the_room_that_a_discarded_run_took_counts_as_free(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.gguf.partial").write_bytes(b"x" * (1 << 20))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    report = convert(llama, tmp_path / "x.gguf", type="q4_0", run=Run(fresh=True))
    assert (tmp_path / "x.gguf").stat().st_size == report.size
