"""The importance of a whole model: llama.cpp's own on the same tokens, and the command that writes it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llama_imatrix
import tiny_models
from ggufround import Options, convert
from ggufround.checkpoint import open_checkpoint
from ggufround.cli.app import main
from ggufround.errors import InputError, UnsupportedError, UsageError
from ggufround.quants.importance import read_imatrix
from ggufround.quants.squares import importance_from

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from ggufround.tune.calibration import CalibrationOptions  # noqa: E402
from ggufround.tune.imatrix import (  # noqa: E402
    Collected,
    Computing,
    collect_importance,
    make_imatrix,
    matrices_of,
)
from ggufround.tune.skeleton import Skeleton  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
IDS = np.random.default_rng(0).integers(3, tiny_models.VOCAB, (3, 64)).astype(np.int32)
# What llama.cpp multiplies with these lies within its way of computing attention; transformers forms other numbers.
ABSORBED = ("attn_k_b.weight", "attn_v_b.weight")
TOLERANCES = {
    "qwen3next": 1e-4,  # linear attention is a long sum, which transformers makes in chunks
    "qwen35": 1e-4,
    "qwen2-vl": 5e-5,  # rotations by sections are worked out in another order of float32 steps
    "qwen2.5-vl": 5e-5,
    "kimi": 1e-4,  # and it has an epsilon of 1e-6 in some norms, where llama.cpp has the config's
}
FEW = CalibrationOptions(samples=4, seqlen=64, holdout=0)


def collected(path: Path, ids: Any = IDS, **further: Any) -> Collected:
    checkpoint = open_checkpoint(path)
    return collect_importance(Skeleton(checkpoint), matrices_of(checkpoint), ids, **further)


@pytest.mark.peer
@pytest.mark.parametrize("name", [n for n in tiny_models.TUNABLE if tiny_models.CASES[n].altered is None])
def test_it_is_what_llama_cpp_collects_on_the_same_tokens(name: str, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    path = tiny_models.written(folder, name)
    convert(path, tmp_path / "m.gguf", type="f32")
    ours = collected(path, process_output=True).squares
    theirs = llama_imatrix.run(tmp_path / "m.gguf", IDS, tmp_path, process_output=True)
    gelu = "gelu" in str(tiny_models.CASES[name].config) or name.startswith(("bloom", "falcon", "mpt"))
    usual = 2e-3 if gelu else 1e-5  # ggml looks GELU up in a table of float16
    tolerance = next((value for start, value in TOLERANCES.items() if name.startswith(start)), usual)
    ours = {key: seen for key, seen in ours.items() if not key.endswith(ABSORBED)}
    assert ours.keys() == {key for key in theirs.sums if not key.endswith(ABSORBED)}
    for key, seen in ours.items():
        np.testing.assert_array_equal(seen.counts, theirs.counts[key])
        largest = theirs.sums[key].max()
        np.testing.assert_allclose(seen.sums, theirs.sums[key], rtol=tolerance, atol=tolerance * 1e-3 * largest)


def test_hidden_states_in_a_file_give_the_same_to_the_bit(folder: Path, tmp_path: Path) -> None:
    path = tiny_models.written(folder, "llama")
    steps: list[tuple[str, int, int]] = []
    memory = collected(path, progress=lambda *step: steps.append(step)).squares
    disk = collected(path, computing=Computing(in_memory=0, folder=tmp_path)).squares
    assert list(memory) == list(disk)
    for key, seen in memory.items():
        np.testing.assert_array_equal(seen.sums, disk[key].sums)
    assert list(tmp_path.iterdir()) == []
    assert steps[-1] == ("block 2 of 2", 6, 6)
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)


def test_bfloat16_products_give_nearly_the_same(folder: Path) -> None:
    path = tiny_models.written(folder, "llama")
    exact, fast = collected(path).squares, collected(path, computing=Computing(amp=True)).squares
    for key, seen in exact.items():
        np.testing.assert_allclose(fast[key].sums.mean(), seen.sums.mean(), rtol=0.02)
    assert any((fast[key].sums != seen.sums).any() for key, seen in exact.items())


def test_the_output_matrix_is_looked_at_only_if_asked_for_and_if_it_is_one_of_its_own(folder: Path) -> None:
    path = tiny_models.written(folder, "llama")
    assert "output.weight" not in collected(path).squares
    assert "output.weight" in collected(path, process_output=True).squares
    tied = collected(tiny_models.written(folder, "llama3"), process_output=True)
    assert "output.weight" not in tied.squares
    assert "no output matrix of its own" in tied.notes[0]


def test_experts_that_no_token_reached_are_told(folder: Path) -> None:
    found = collected(tiny_models.written(folder, "mixtral"), IDS[:1, :1])
    assert "no token reached 4 experts" in found.notes[0]  # two of four in each of two blocks
    entries = importance_from(found.squares).entries
    for key, seen in found.squares.items():
        assert (entries[key][seen.counts == 0] == 1).all()


def test_the_file_serves_convert(folder: Path, tmp_path: Path) -> None:
    path, out = tiny_models.written(folder, "qwen3moe"), tmp_path / "i.gguf"
    report = make_imatrix(path, out, FEW)
    found = read_imatrix(out)
    assert (found.chunks, len(found.entries)) == (4, report.entries)
    assert found.datasets == ("built-in text",)
    done = convert(path, tmp_path / "m.gguf", options=Options(types=("q4_k_m",), imatrix=out))
    assert not any("imatrix" in line for line in done.notes)
    again = make_imatrix(path, out, FEW)  # its own file may be written again
    assert again.digest == report.digest


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "model-00001-of-00002.safetensors"])
def test_a_file_of_the_model_is_never_written_over(name: str, llama: Path) -> None:
    before = (llama / name).read_bytes()
    with pytest.raises(UsageError, match="a file of the model itself"):
        make_imatrix(llama, llama / name, FEW)
    assert (llama / name).read_bytes() == before


def test_what_is_no_imatrix_is_never_written_over(llama: Path, tmp_path: Path) -> None:
    model, text = tmp_path / "m.gguf", tmp_path / "notes.dat"
    convert(llama, model, type="q8_0")
    text.write_text("to be kept")
    for path in (model, text):
        before = path.read_bytes()
        with pytest.raises(UsageError, match="exists and is not an imatrix"):
            make_imatrix(llama, path, FEW)
        assert path.read_bytes() == before
    for path, word in ((tmp_path, "is a folder"), (tmp_path / "no" / "i.gguf", "does not exist")):
        with pytest.raises(UsageError, match=word):
            make_imatrix(llama, path, FEW)


def test_a_gguf_is_refused_as_a_model(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "m.gguf", type="f16")
    with pytest.raises(UnsupportedError, match=r"a \.gguf lacks what transformers needs"):
        make_imatrix(tmp_path / "m.gguf", tmp_path / "i.gguf", FEW)


def test_a_model_that_computes_infinity_is_refused_and_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = Skeleton.embed
    monkeypatch.setattr(Skeleton, "embed", lambda *arguments: embed(*arguments) * float("inf"))
    with pytest.raises(InputError, match="NaN or infinite"):
        make_imatrix(tiny_models.written(folder, "llama"), tmp_path / "i.gguf", FEW)
    assert list(tmp_path.iterdir()) == []


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["ggufround", "imatrix", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


def test_the_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out, text = tiny_models.written(folder, "llama"), tmp_path / "i.dat", tmp_path / "calib.txt"
    text.write_text("".join(f"line {i} of some text, and no other\n" for i in range(200)))
    few = ("--samples", 4, "--seqlen", 64, "--calib", text)
    assert command(monkeypatch, path, out, *few, "--process-output", "--json") == 0
    shown = json.loads(capfd.readouterr().out)
    assert (shown["sequences"], shown["seqlen"], shown["calibration"]) == (4, 64, "calib.txt")
    assert shown["entries"] == 15
    found = read_imatrix(out)
    assert found.legacy
    assert "output.weight" in found.entries

    assert command(monkeypatch, path, tmp_path / "i.gguf", *few) == 0
    printed = capfd.readouterr()
    assert "importance of 14 tensors from 4 x 64 tokens of calib.txt" in printed.out
    assert "peak memory" in printed.out

    for wrong, word in (
        (("--calib", tmp_path / "absent.txt"), "is not there"),
        (("--samples", 0), "must be at least"),
        (("--device", "abacus"), "unknown device"),
    ):
        assert command(monkeypatch, path, tmp_path / "i.gguf", *wrong) == 2
        assert word in capfd.readouterr().err.replace(os.linesep, " ")


def test_an_interruption_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Skeleton, "run", interrupted)
    assert (
        command(monkeypatch, tiny_models.written(folder, "llama"), tmp_path / "i.gguf", "--samples", 2, "--seqlen", 64)
        == 1
    )
    assert "nothing was written" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
