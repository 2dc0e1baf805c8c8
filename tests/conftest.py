"""Shared by all tests: a tiny Llama checkpoint, made once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny_models


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a two-layer random Llama with a BPE tokenizer. Read only."""
    return tiny_models.write(tiny_models.CASES["llama"], tmp_path_factory.mktemp("llama") / "tiny-llama")


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
