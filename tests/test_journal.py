"""The journal survives being cut off anywhere, and never takes a damaged line for a sound one."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufround.journal import Done, Journal, fingerprint_of

ENTRIES = [Done(0, "aa" * 32, (1, 2)), Done(3, "bb" * 32, (3, 4)), Done(1, "cc" * 32, (5, 6))]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / "x.journal", "run-1", resume=False)
    for entry in ENTRIES:
        journal.add(entry)
    journal.add_absmax(7, 1.25)
    journal.close()
    return journal.path


def resumed(path: Path) -> Journal:
    journal = Journal(path, "run-1", resume=True)
    journal.close()
    return journal


def test_everything_comes_back(written: Path) -> None:
    journal = resumed(written)
    assert journal.done == {e.slab: e for e in ENTRIES}
    assert journal.absmax == {7: 1.25}
    assert fingerprint_of(written) == "run-1"


def test_a_journal_cut_off_at_any_byte_keeps_its_whole_lines(written: Path) -> None:
    whole = written.read_bytes()
    for cut in range(len(whole)):
        written.write_bytes(whole[:cut])
        lines = whole[:cut].count(b"\n")
        assert len(resumed(written).done) == max(0, min(3, lines - 1))
        assert fingerprint_of(written) == "run-1"  # written again where it was lost


def test_a_changed_byte_ends_the_reading_before_its_line(written: Path) -> None:
    lines = written.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"bb", b"bc", 1)
    written.write_bytes(b"".join(lines))
    assert list(resumed(written).done) == [0]


def test_work_after_a_resume_is_kept_too(written: Path) -> None:
    written.write_bytes(written.read_bytes()[:-5])
    journal = Journal(written, "run-1", resume=True)
    journal.add(Done(9, "dd" * 32, (7, 8)))
    journal.close()
    assert sorted(resumed(written).done) == [0, 1, 3, 9]


def test_no_journal_belongs_to_no_run(tmp_path: Path) -> None:
    assert fingerprint_of(tmp_path / "absent") is None
