"""Shared by all tests: a tiny Llama checkpoint, made once; the command line in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import tiny_models
from ggufround.cli.app import main


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a two-layer random Llama with a BPE tokenizer. Read only."""
    return tiny_models.write(tiny_models.CASES["llama"], tmp_path_factory.mktemp("llama") / "tiny-llama")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a module's tests keep the models that they share."""
    return tmp_path_factory.mktemp("tiny")


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line."""

    def call(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["ggufround", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capfd.readouterr()
        return Ran(int(exit_.value.code or 0), printed.out, printed.err)

    return call


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers whether or not the processor has bfloat16."""
    monkeypatch.setattr("ggufround.tune.device.fast_bfloat16", lambda device: False)


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of 2048 weights instead of a million, so that a tiny model has many."""
    monkeypatch.setattr("ggufround.planning.SLAB", 2048)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models gain nothing from torch's threads, and results depend on their number."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
