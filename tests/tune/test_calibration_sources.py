"""How a calibration source is written, and the built-in text."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufround.errors import InputError, UsageError
from ggufround.tune.calibration_sources import Source, built_in, parse_source
from ggufround.tune.chat_layouts import LAYOUTS, PLAIN, render


def test_the_built_in_text_is_varied_and_repeats_nothing() -> None:
    texts = [entry if isinstance(entry, str) else render(entry, PLAIN) for entry in built_in()]
    size = len("".join(texts).encode())
    assert 40_000 < size < 64_000
    assert len(texts) > 70
    said = [line for text in texts for line in text.splitlines() if len(line) > 60]
    assert len(said) == len(set(said))
    assert not any(text != text.strip() or "=====" in text for text in map(str.rstrip, texts))
    assert not any(marker in text for text in texts for layout in LAYOUTS for marker in layout.markers if "|" in marker)
    first = "".join(texts[:12])  # every kind is near the start, so that a few samples see all of them
    assert all(part in first for part in ("The ferry", "import heapq", "#include", "hash table", "Als der Strom", "∎"))


def test_sources_and_their_keys(tmp_path: Path) -> None:
    text, rows = tmp_path / "a:b.txt", tmp_path / "c.JSONL"
    text.touch()
    rows.touch()
    assert parse_source(f"{text}:weight=2.5") == Source(str(text), "text", 2.5)
    assert parse_source(f"{text}:weight=2.5").name == "a:b.txt"
    assert parse_source(f"{rows}:field=body") == Source(str(rows), "lines", field="body")
    assert parse_source("user/name") == Source("user/name", "hub")
    assert parse_source("user/name:split=validation") == Source("user/name", "hub", split="validation")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("nowhere/calib.txt", InputError, "nowhere/calib.txt is not there"),
        ("nowhere.jsonl:weight=2", InputError, "nowhere.jsonl is not there"),
        ("here.pdf", UsageError, r"must be .txt, .md \(plain text\) or .jsonl \(one JSON object a line\), not .pdf"),
        ("bare", UsageError, "not without an extension"),
        ("folder", UsageError, "is a directory"),
        ("what is this", UsageError, "neither a file nor a data set's hub id; write FILE.txt"),
        ("a\0b", UsageError, "neither a file|no file name"),
        ("here.txt:weight=0", UsageError, "a weight is a number from 1e-6 to 1e6, not '0'"),
        ("here.txt:weight=nan", UsageError, "a weight is a number"),
        ("here.txt:weight=lots", UsageError, "a weight is a number"),
        ("here.txt:wieght=2", UsageError, "there is no key 'wieght'; write"),
        ("here.txt:weight=2:weight=3", UsageError, "weight must be given once"),
        ("here.txt:weight=", UsageError, "with a value"),
        ("here.txt:field=text", UsageError, "field says nothing about a .txt file"),
        ("a/b:split=", UsageError, "with a value"),
    ],
)
def test_bad_sources(
    source: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("here.pdf", "bare", "here.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(error, match=message):
        parse_source(source)
