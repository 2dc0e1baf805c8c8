"""Hidden states come back as they were put, from memory and from a file, and a full disk is a message."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggufround.errors import OutputError

torch = pytest.importorskip("torch")
from ggufround.tune.activations import Activations, runs  # noqa: E402

pytestmark = pytest.mark.torch
SHAPE = (7, 5, 12)


def states(count: int, seed: int = 0) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, *SHAPE[1:])).astype(np.float32))


def open_files() -> set[str]:
    return {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, SHAPE[0] - 1), min_size=1, max_size=5, unique=True), min_size=1, max_size=8))
def test_memory_and_file_hold_the_same(tmp_path: Path, puts: list[list[int]]) -> None:
    memory, file = Activations(SHAPE), Activations(SHAPE, tmp_path)
    truth = torch.zeros(SHAPE)
    for held in (memory, file):
        held.put(range(SHAPE[0]), truth)
    for seed, numbers in enumerate(puts):
        values = states(len(numbers), seed)
        truth[numbers] = values
        for held in (memory, file):
            held.put(numbers, values)
            assert torch.equal(held.get(numbers), values)
    order = [4, 0, 6, 1, 2, 5, 3]
    for held in (memory, file):
        assert torch.equal(held.get(order), truth[order])
        assert torch.equal(held.get(range(2, 5)), truth[2:5])
        held.close()


@pytest.mark.parametrize("in_file", [False, True])
def test_what_is_given_and_taken_is_a_copy_in_float32_on_the_cpu(in_file: bool, tmp_path: Path) -> None:
    held = Activations(SHAPE, tmp_path if in_file else None)
    assert held.shape == SHAPE
    assert held.nbytes == 4 * 7 * 5 * 12
    mixed = states(2).to(torch.bfloat16).requires_grad_(True)
    held.put([3, 1], mixed)
    found = held.get([1, 3])
    assert (found.dtype, found.requires_grad, found.device.type) == (torch.float32, False, "cpu")
    assert torch.equal(found, mixed.detach().float()[[1, 0]])
    kept = found.clone()
    found += 1
    assert torch.equal(held.get([1, 3]), kept)
    wide = states(4).transpose(1, 2).contiguous().transpose(1, 2)  # not contiguous
    held.put(range(4), wide)
    assert torch.equal(held.get(range(4)), wide)
    with torch.inference_mode():
        held.put([0], states(1, 9))
    assert torch.equal(held.get([0]), states(1, 9))
    held.close()


def test_a_file_has_no_name_and_its_room_at_once(tmp_path: Path) -> None:
    held = Activations((100, 50, 64), tmp_path)
    assert list(tmp_path.iterdir()) == []
    mine = [os.fstat(fd) for fd in map(int, os.listdir("/proc/self/fd")) if _in(fd, tmp_path)]
    assert [m.st_size for m in mine] == [held.nbytes]
    assert mine[0].st_blocks * 512 >= held.nbytes  # a full disk is met here, not in the middle of a run
    held.close()


def _in(fd: int, folder: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(str(folder))
    except OSError:
        return False


@pytest.mark.parametrize("in_file", [False, True])
def test_closing_frees_memory_and_file(in_file: bool, tmp_path: Path) -> None:
    before = open_files()
    held = Activations(SHAPE, tmp_path if in_file else None)
    held.put(range(7), states(7))
    held.close()
    held.close()
    assert held._memory is None
    assert open_files() == before
    with pytest.raises((AssertionError, ValueError)):
        held.get([0])


def full(*_: Any) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def broken(*_: Any) -> int:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(("failure", "words"), [(full, "the disk is full; free some space"), (broken, "output error")])
def test_no_room_for_the_file_is_said_at_once(
    failure: Callable[..., int], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_files()
    monkeypatch.setattr(os, "posix_fallocate", failure)
    with pytest.raises(OutputError, match=rf"cannot keep 3\.2 GB of activations: .*{words}"):
        Activations((1000, 2048, 390), tmp_path)
    gc.collect()  # a file left open would be an unraisable warning here
    assert open_files() == before


@pytest.mark.parametrize(("failure", "words"), [(full, "the disk is full; free some space"), (broken, "output error")])
def test_a_disk_that_fills_later_is_the_same_message(
    failure: Callable[..., int], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Activations(SHAPE, tmp_path)
    monkeypatch.setattr(os, "pwritev", failure)
    with pytest.raises(OutputError, match=rf"cannot keep 0\.0 GB of activations: .*{words}"):
        held.put([2], states(1))
    held.close()


def test_a_folder_that_is_not_there_is_the_same_message(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot keep .* of activations: No such file"):
        Activations(SHAPE, tmp_path / "absent")


def test_reads_and_writes_that_the_system_cuts_short_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux moves 2 GB at most in a call, and less where a signal comes between."""
    write, read = os.pwritev, os.preadv
    monkeypatch.setattr(os, "pwritev", lambda fd, parts, place: write(fd, [parts[0][:50]], place))
    monkeypatch.setattr(os, "preadv", lambda fd, parts, place: read(fd, [parts[0][:70]], place))
    held = Activations(SHAPE, tmp_path)
    held.put(range(7), states(7))
    assert torch.equal(held.get(range(7)), states(7))
    held.close()


@given(st.integers(0, 40), st.integers(1, 50))
def test_runs_hold_every_number_once_and_are_no_longer_than_asked(count: int, size: int) -> None:
    found = list(runs(count, size))
    assert [k for run in found for k in run] == list(range(count))
    assert all(0 < len(run) <= size for run in found)
    assert len(found) == -(-count // size)
