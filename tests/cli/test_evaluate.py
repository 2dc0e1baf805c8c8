"""`ggufround eval` as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny_models
from ggufround import convert

TEXT = "the rain in spain stays mainly in the plain. " * 40


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A checkpoint, a quantised file of it, and a text."""
    folder = tmp_path_factory.mktemp("eval")
    model = tiny_models.write(tiny_models.CASES["llama"], folder / "model")
    convert(model, folder / "q4_0.gguf", type="q4_0")
    (folder / "text.txt").write_text(TEXT)
    return model, folder / "q4_0.gguf", folder / "text.txt"


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_json_holds_every_figure_and_nothing_else_is_printed(run: Any, files: tuple[Path, Path, Path]) -> None:
    pytest.importorskip("transformers")
    model, file, text = files
    code, out, err = run("eval", file, "--reference", model, "--text", text, "--ctx", 32, "--chunks", 4, "--json")
    assert (code, err) == (0, "")
    (found,) = json.loads(out)["files"]
    assert (found["chunks"], found["context"], found["tokens"], found["scored"]) == (4, 32, 4 * 15, "half")
    assert found["divergence"]["mean"] > 0
    assert found["divergence"]["error"] > 0
    assert found["size"] == file.stat().st_size
    assert set(found["quantiles"]) == {"50 %", "90 %", "95 %", "99 %", "99.9 %", "max"}
    assert len(found["per_chunk"]) == 4
    assert set(found["per_chunk"][0]) == {"loss", "reference_loss", "divergence", "same_top"}


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_people_get_a_table_of_all_files(run: Any, files: tuple[Path, Path, Path]) -> None:
    pytest.importorskip("transformers")
    model, file, text = files
    code, out, _ = run(
        "eval", file, file, "--reference", model, "--text", text, "--ctx", 32, "--all-positions", "--threads", 1,
        "--device", "cpu",
    )  # fmt: skip
    assert code == 0
    for words in ("q4_0.gguf (1)", "KL divergence, 99.9 %", "same top token", "KL less the first file's", "0.00000 ±"):
        assert words in out
    assert "reference perplexity" in out
    assert "peak memory" in out


@pytest.mark.torch
@pytest.mark.parametrize("case", ["short", "no file", "no gguf", "gguf as reference", "no device"])
def test_bad_input_is_refused_with_the_way_out(
    case: str, run: Any, files: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    model, file, text = files
    (tmp_path / "short.txt").write_text("too short")
    given = {
        "short": (file, model, tmp_path / "short.txt", (), "too short"),
        "no file": (tmp_path / "absent.gguf", model, text, (), "absent.gguf"),
        "no gguf": (model / "config.json", model, text, (), "not a sound GGUF file"),
        "gguf as reference": (file, file, text, (), "wants the checkpoint"),
        "no device": (file, model, text, ("--device", "abacus"), "unknown device"),
    }
    what, reference, words, flags, message = given[case]
    ctx = () if case == "short" else ("--ctx", 32)
    code, _, err = run("eval", what, "--reference", reference, "--text", words, *ctx, *flags)
    assert code == 2
    assert err.startswith("error:")
    assert message in err


def test_an_absent_extra_says_what_to_install(
    run: Any, files: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    model, file, text = files
    code, _, err = run("eval", file, "--reference", model, "--text", text)
    assert code == 2
    assert 'pip install "ggufround[tune]"' in err


def test_asking_for_help_does_not_import_torch() -> None:
    script = (
        "import sys; sys.argv = ['ggufround', 'eval', '--help']\n"
        "from ggufround.cli.app import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('heavy:', [m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert "heavy: []" in done.stdout
