"""A model on the hub: only the needed files are fetched, and every way to fail says what to do. The client is faked."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest

from ggufround.checkpoint import open_checkpoint
from ggufround.errors import InputError, UnsupportedError
from tiny import write_checkpoint

TENSORS = {"a": np.ones((2, 4), np.float32), "b": np.ones(4, np.float32)}


class FakeHub:
    """A repository in a folder, with the two calls of the client that are used."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.fetched: list[str] = []
        self.error: Exception | None = None
        self.commits = ["abc"]  # the commit that each download finds; the last one stays

    def model_info(self, model: str, revision: str | None = None) -> Any:
        if self.error is not None:
            raise self.error
        names = [str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file()]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n) for n in names])

    def snapshot_download(
        self,
        model: str,
        *,
        revision: str | None = None,
        allow_patterns: list[str] | None = None,
        local_files_only: bool = False,
    ) -> str:
        commit = self.commits.pop(0) if len(self.commits) > 1 else self.commits[0]
        root = self.cache / "models--org--name" / "snapshots" / commit
        if local_files_only:
            if not root.exists():
                raise FileNotFoundError("not in the cache")
            return str(root)
        assert allow_patterns is not None
        blobs = self.cache / "models--org--name" / "blobs"
        for folder in (root, blobs):
            folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.rglob("*"):
            name = str(path.relative_to(self.folder))
            if path.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (root / name).parent.mkdir(exist_ok=True)
                (blobs / name.replace("/", "-")).write_bytes(path.read_bytes())
                if not (root / name).exists():
                    (root / name).symlink_to(blobs / name.replace("/", "-"))
                self.fetched.append(name)
        return str(root)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(write_checkpoint(tmp_path / "repo", TENSORS, {"x": 1}, shards=2), tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_only_the_needed_files_are_fetched(hub: FakeHub) -> None:
    for name in ("README.md", "tokenizer.json", "pytorch_model.bin", "consolidated.safetensors", "model.onnx"):
        (hub.folder / name).write_bytes(b"{}")
    (hub.folder / "original").mkdir()
    (hub.folder / "original" / "model.safetensors").write_bytes(b"")
    found = open_checkpoint("org/name")
    assert found.source == "org/name"
    assert found.tensors.keys() == TENSORS.keys()
    assert sorted(hub.fetched) == [
        "README.md",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]


def test_the_modules_that_sentence_transformers_lists_are_fetched(hub: FakeHub) -> None:
    listed = [{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"},
              {"path": "2_Dense", "type": "a.Dense"}, {"path": "3_Normalize", "type": "a.Normalize"}]  # fmt: skip
    (hub.folder / "modules.json").write_text(json.dumps(listed))
    write_checkpoint(hub.folder / "1_Pooling", {"never": TENSORS["a"]}, {"pooling_mode": "mean"})
    write_checkpoint(hub.folder / "2_Dense", {"linear.weight": TENSORS["a"]}, {"in_features": 4})
    write_checkpoint(hub.folder / "3_Normalize", {"never": TENSORS["a"]}, {})
    found = open_checkpoint("org/name")
    assert found.tensors.keys() == {*TENSORS, "2_Dense.linear.weight"}
    assert {n for n in hub.fetched if "/" in n} == {
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
    }


def test_a_model_of_one_file_is_fetched(hub: FakeHub) -> None:
    for path in hub.folder.glob("model*"):
        path.unlink()
    write_checkpoint(hub.folder, TENSORS, {"x": 1})
    assert open_checkpoint("org/name", revision="v1").tensors.keys() == TENSORS.keys()


def test_an_incomplete_upload_is_refused_before_its_weights_are_fetched(hub: FakeHub) -> None:
    (hub.folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="model-00002-of-00002.*incomplete"):
        open_checkpoint("org/name")
    assert not any(n.endswith(".safetensors") for n in hub.fetched)


def test_a_repository_of_pickles_is_refused_before_anything_large_is_fetched(hub: FakeHub) -> None:
    for path in hub.folder.glob("model*"):
        path.unlink()
    (hub.folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedError, match="pickle"):
        open_checkpoint("org/name")
    assert hub.fetched == ["config.json"]


def test_a_repository_without_a_config_is_refused(hub: FakeHub) -> None:
    for path in hub.folder.glob("*"):
        path.unlink()
    with pytest.raises(InputError, match="is it a model"):
        open_checkpoint("org/name")


def test_a_model_that_changes_during_the_download_is_refused(hub: FakeHub) -> None:
    hub.commits = ["abc", "def"]
    with pytest.raises(InputError, match="changed on the hub"):
        open_checkpoint("org/name")


def test_a_model_that_does_not_exist_is_refused(hub: FakeHub) -> None:
    hub.error = OSError("404 Client Error")
    hub.error.response = SimpleNamespace(status_code=404)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="neither a local directory nor a model on the hub.*hf auth login"):
        open_checkpoint("org/name")


def test_without_a_network_the_cache_serves_or_the_reason_is_given(hub: FakeHub) -> None:
    open_checkpoint("org/name")
    hub.error = ConnectionError("no route to host\nlong text")
    assert open_checkpoint("org/name").tensors.keys() == TENSORS.keys()
    hub.commits = ["unknown"]
    with pytest.raises(InputError, match=r"cannot be reached \(no route to host\)"):
        open_checkpoint("org/name")


def test_a_download_that_fails_says_why(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise OSError("No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match="cannot download org/name from the hub: No space left"):
        open_checkpoint("org/name")


def test_a_local_directory_wins_over_a_hub_id(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "org" / "name", TENSORS, {"x": 2})
    assert open_checkpoint("org/name").config == {"x": 2}
    assert not hub.fetched
