"""The run: same bytes for any threads and any interruption, nothing half-written under the final name."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from ggufround import Options, Report, Run, convert, plan
from ggufround.conversion import carry_out, lay_out_all
from ggufround.errors import InputError, OutputError, UsageError, WeightError
from ggufround.gguf_read import read_gguf
from ggufround.planning import slabs
from tiny import write_checkpoint

pytestmark = pytest.mark.usefixtures("small_slabs")
MIX = "q5_0"


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".gguf")


class Stop(Exception):
    pass


def stop_after(weights: int) -> Any:
    def progress(_phase: str, done: int, _total: int) -> None:
        if done > weights:
            raise Stop

    return progress


def test_a_file_appears_whole_and_nothing_else_stays(llama: Path, tmp_path: Path) -> None:
    report = convert(llama, tmp_path / "x.gguf", type=MIX)
    assert isinstance(report, Report)
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
    assert report.size == (tmp_path / "x.gguf").stat().st_size
    assert report.peak_memory > 0
    assert set(report.phases) == {"plan", "convert", "verify", "sync"}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_bytes(llama: Path, tmp_path: Path, threads: int) -> None:
    convert(llama, tmp_path / "one.gguf", type=MIX, run=Run(threads=1))
    convert(llama, tmp_path / "many.gguf", type=MIX, run=Run(threads=threads))
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "many.gguf").read_bytes()


def test_several_types_in_one_read_equal_single_runs(llama: Path, tmp_path: Path) -> None:
    report = convert(llama, tmp_path / "x-{type}.gguf", type="q8_0,q4_0,bf16")
    assert [p.name for p in report.files] == ["x-Q8_0.gguf", "x-Q4_0.gguf", "x-BF16.gguf"]
    for name in ("Q8_0", "Q4_0", "BF16"):
        convert(llama, tmp_path / "single.gguf", type=name)
        assert (tmp_path / "single.gguf").read_bytes() == (tmp_path / f"x-{name}.gguf").read_bytes()


def test_several_types_without_a_place_for_their_name_are_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="{type}"):
        convert(llama, tmp_path / "x.gguf", type="q8_0,q4_0")


def test_a_split_file_holds_the_same_tensors(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "whole.gguf", type=MIX)
    report = convert(llama, tmp_path / "parts.gguf", type=MIX, run=Run(split_max_size=60_000))
    assert len(report.files) > 2
    assert report.files[0].name == f"parts-00001-of-{len(report.files):05d}.gguf"
    parts = {n: (t, p) for p in report.files for n, t in read_gguf(p).tensors.items()}
    whole = read_gguf(tmp_path / "whole.gguf")
    raw = (tmp_path / "whole.gguf").read_bytes()
    assert list(parts) == list(whole.tensors)
    for name, tensor in whole.tensors.items():
        part, path = parts[name]
        assert (part.type, part.shape) == (tensor.type, tensor.shape)
        there = path.read_bytes()[part.offset : part.offset + part.nbytes]
        assert there == raw[tensor.offset : tensor.offset + tensor.nbytes]
    first = read_gguf(report.files[0]).metadata
    assert first["split.count"].value == len(report.files)
    assert first["split.tensors.count"].value == len(whole.tensors)
    assert "general.architecture" not in read_gguf(report.files[1]).metadata


def test_a_split_smaller_than_a_tensor_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"smaller than \w+\.weight, which takes"):
        convert(llama, tmp_path / "x.gguf", type=MIX, run=Run(split_max_size=4000))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(llama: Path, tmp_path: Path, share: float) -> None:
    convert(llama, tmp_path / "whole.gguf", type=MIX)
    total = plan(llama, Options(types=(MIX,))).weights
    with pytest.raises(Stop):
        convert(llama, tmp_path / "x.gguf", type=MIX, progress=stop_after(int(share * total)))
    assert not (tmp_path / "x.gguf").exists()
    assert leftovers(tmp_path) == ["x.gguf.journal", "x.gguf.partial"]
    report = convert(llama, tmp_path / "x.gguf", type=MIX)
    assert report.resumed >= share
    assert leftovers(tmp_path) == []
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


KILLED = """
import os, signal, sys
import ggufround.planning
ggufround.planning.SLAB = 2048
from ggufround import convert
def progress(phase, done, total):
    if done >= {share} * total:
        os.kill(os.getpid(), signal.SIGKILL)
convert({model!r}, {out!r}, type={mix!r}, progress=progress)
"""


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_a_killed_process_leaves_work_that_the_same_command_finishes(llama: Path, tmp_path: Path, share: float) -> None:
    out = tmp_path / "x.gguf"
    script = KILLED.format(share=share, model=str(llama), out=str(out), mix=MIX)
    died = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert died.returncode == -signal.SIGKILL
    assert not out.exists()
    report = convert(llama, out, type=MIX)
    assert report.resumed >= min(share, 0.4)
    convert(llama, tmp_path / "whole.gguf", type=MIX)
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def interrupt(llama: Path, out: Path) -> None:
    total = plan(llama, Options(types=(MIX,))).weights
    with pytest.raises(Stop):
        convert(llama, out, type=MIX, progress=stop_after(total // 2))


def test_a_damaged_partial_file_is_repaired_on_resume(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "whole.gguf", type=MIX)
    interrupt(llama, tmp_path / "x.gguf")
    partial = tmp_path / "x.gguf.partial"
    raw = bytearray(partial.read_bytes())
    for place in (10, len(raw) // 4, len(raw) // 2, len(raw) - 50):
        raw[place] ^= 0x55
    partial.write_bytes(raw)
    convert(llama, tmp_path / "x.gguf", type=MIX)
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_a_partial_file_of_the_wrong_size_is_started_again(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "whole.gguf", type=MIX)
    interrupt(llama, tmp_path / "x.gguf")
    partial = tmp_path / "x.gguf.partial"
    partial.write_bytes(partial.read_bytes()[:-7])
    assert convert(llama, tmp_path / "x.gguf", type=MIX).resumed == 0
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_another_type_does_not_discard_an_unfinished_run(llama: Path, tmp_path: Path) -> None:
    interrupt(llama, tmp_path / "x.gguf")
    before = (tmp_path / "x.gguf.journal").read_bytes()
    with pytest.raises(UsageError, match="--fresh"):
        convert(llama, tmp_path / "x.gguf", type="q8_0")
    assert (tmp_path / "x.gguf.journal").read_bytes() == before
    report = convert(llama, tmp_path / "x.gguf", type="q8_0", run=Run(fresh=True))
    assert report.resumed == 0


def test_a_changed_source_does_not_resume(llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(llama, tmp_path / "model")
    interrupt(model, tmp_path / "x.gguf")
    weights = next(model.glob("*.safetensors"))
    os.utime(weights, ns=(1, 1))
    with pytest.raises(UsageError, match="another source"):
        convert(model, tmp_path / "x.gguf", type=MIX)


UP = "model.layers.1.mlp.up_proj.weight"


def broken(llama: Path, folder: Path, value: float, name: str = UP) -> Path:
    """A copy of the model with `value` in one weight."""
    case = tiny_models.CASES["llama"]
    tensors = {n: tiny_models.weight(case, n, s) for n, s in case.shapes.items()}
    tensors[name][5, 7] = value
    shutil.copytree(llama, folder)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    return write_checkpoint(folder, tensors, case.config)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_or_infinity_stops_at_the_named_tensor_and_keeps_the_work(
    llama: Path, tmp_path: Path, value: float
) -> None:
    model = broken(llama, tmp_path / "model", value)
    with pytest.raises(WeightError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds .*(nan|inf)"):
        convert(model, tmp_path / "x.gguf", type=MIX)
    assert not (tmp_path / "x.gguf").exists()
    assert (tmp_path / "x.gguf.partial").exists()
    assert (tmp_path / "x.gguf.journal").exists()


def test_the_row_named_for_a_nan_is_the_one_in_the_checkpoint(llama: Path, tmp_path: Path) -> None:
    model = broken(llama, tmp_path / "model", np.nan, "model.layers.0.self_attn.q_proj.weight")
    with pytest.raises(WeightError, match=r"q_proj\.weight holds nan in row 5, column 7"):
        convert(model, tmp_path / "x.gguf", type=MIX)


def test_a_weight_that_float16_cannot_hold_stops_with_the_way_out(llama: Path, tmp_path: Path) -> None:
    model = broken(llama, tmp_path / "model", 3e8)
    with pytest.raises(WeightError, match=r"blk\.1\.ffn_up\.weight has weights too large for Q8_0.*bf16"):
        convert(model, tmp_path / "x.gguf", type="q8_0")
    convert(model, tmp_path / "y.gguf", type="bf16")


def test_a_disk_that_fills_stops_at_the_named_tensor_and_the_run_goes_on_later(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(llama, tmp_path / "whole.gguf", type=MIX)
    real, written = os.pwrite, []

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if len(written) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(len(data))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OutputError, match=r"cannot write tensor .*: the disk is full"):
        convert(llama, tmp_path / "x.gguf", type=MIX, run=Run(threads=2))
    monkeypatch.setattr(os, "pwrite", real)
    assert leftovers(tmp_path) == ["x.gguf.journal", "x.gguf.partial"]
    assert convert(llama, tmp_path / "x.gguf", type=MIX).resumed > 0
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_too_little_disk_is_told_before_anything_is_written(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OutputError, match="MB free, the output takes"):
        convert(llama, tmp_path / "x.gguf", type=MIX)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_permission_is_refused(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="no permission"):
        convert(llama, tmp_path / "x.gguf", type=MIX)


@pytest.mark.parametrize("out", ["", "absent/x.gguf"])
def test_an_output_that_is_no_file_is_refused(llama: Path, tmp_path: Path, out: str) -> None:
    with pytest.raises(UsageError, match="folder"):
        convert(llama, tmp_path / out, type=MIX)


def test_the_model_itself_is_never_the_output(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "x.gguf", type="q8_0")
    before = (tmp_path / "x.gguf").read_bytes()
    (tmp_path / "link.gguf").symlink_to(tmp_path / "x.gguf")
    for out in ("x.gguf", "link.gguf"):
        with pytest.raises(UsageError, match="the model itself"):
            convert(tmp_path / "x.gguf", tmp_path / out, type="q4_0")
    with pytest.raises(UsageError, match="the model itself"):
        convert(llama, next(llama.glob("*.safetensors")), type="q4_0")
    assert (tmp_path / "x.gguf").read_bytes() == before


def test_a_gguf_file_is_quantised_again_with_its_metadata(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "f32.gguf", type="f32")
    convert(llama, tmp_path / "straight.gguf", type="q4_0", recipe="rtn")
    report = convert(tmp_path / "f32.gguf", tmp_path / "twice.gguf", type="q4_0", recipe="rtn")
    assert "second rounding" not in " ".join(report.notes)
    straight, twice = read_gguf(tmp_path / "straight.gguf"), read_gguf(tmp_path / "twice.gguf")
    kept = {k: v for k, v in straight.metadata.items() if not k.startswith("ggufround.")}
    assert kept == {k: v for k, v in twice.metadata.items() if not k.startswith("ggufround.")}
    data = [
        (tmp_path / name).read_bytes()[header.data_offset :]
        for name, header in (("straight.gguf", straight), ("twice.gguf", twice))
    ]
    assert data[0] == data[1]


def test_a_quantised_source_is_named_a_second_rounding_and_same_types_are_copied(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "q8.gguf", type="q8_0")
    report = convert(tmp_path / "q8.gguf", tmp_path / "q4.gguf", type="q4_0")
    assert "second rounding" in " ".join(report.notes)
    convert(tmp_path / "q8.gguf", tmp_path / "again.gguf", type="q8_0")
    first, again = read_gguf(tmp_path / "q8.gguf"), read_gguf(tmp_path / "again.gguf")
    assert (tmp_path / "q8.gguf").read_bytes()[first.data_offset :] == (tmp_path / "again.gguf").read_bytes()[
        again.data_offset :
    ]


def test_slabs_cover_every_row_of_every_output_once(llama: Path) -> None:
    made = plan(llama, Options(types=(MIX,)))
    covered = {o.name: np.zeros(int(np.prod(o.shape[:-1])), int) for o in made.outputs}
    for slab in slabs(made):
        covered[made.outputs[slab.output].name][slab.first : slab.first + slab.rows] += 1
    assert all((rows == 1).all() for rows in covered.values())


def test_max_ram_lowers_the_threads_and_refuses_what_cannot_be(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--max-ram 1 MB is too little: one thread needs about"):
        convert(llama, tmp_path / "x.gguf", type=MIX, run=Run(max_ram=1_000_000))
    with pytest.raises(UsageError, match="--threads"):
        convert(llama, tmp_path / "x.gguf", type=MIX, run=Run(threads=0))


def test_layouts_are_exact_to_the_byte(llama: Path, tmp_path: Path) -> None:
    for name in ("f32", "f16", "q8_0", "q4_k_m", "mxfp4", "tq2_0"):
        made = plan(llama, Options(types=(name,)))
        layouts = lay_out_all(made, tmp_path / f"{name}.gguf")
        carry_out(made, layouts, Run())
        assert layouts[0].size == (tmp_path / f"{name}.gguf").stat().st_size


def test_provenance_says_what_made_the_file(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "x.gguf", type=MIX, recipe="rtn")
    metadata = read_gguf(tmp_path / "x.gguf").metadata
    assert metadata["ggufround.mix"].value == "Q5_0"
    assert metadata["ggufround.recipe"].value == "rtn"
    assert metadata["ggufround.source"].value == llama.name
    for key in ("ggufround.data_sha256", "ggufround.source.weights_sha256", "ggufround.source.config_sha256"):
        assert len(set(metadata[key].value)) > 4, key


def test_damaged_side_files_are_refused_before_any_output(llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(InputError):
        convert(model, tmp_path / "x.gguf", type=MIX)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
