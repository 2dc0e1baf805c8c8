"""A model on the Hugging Face hub, downloaded to the hub's own cache: only the files that are needed."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection
from pathlib import Path

import huggingface_hub

from ggufround.checkpoint.members import INDEX, SIDE_FILES, shard_names
from ggufround.checkpoint.modules import module_files
from ggufround.errors import InputError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def download(model: str, revision: str | None) -> Path:
    """The directory in the hub's cache with the model's small files and shards, all of one commit.

    Without a network, what the cache holds is used. Raises InputError for a model that cannot be had.
    """
    try:
        listed = huggingface_hub.HfApi().model_info(model, revision=revision).siblings or []
    except Exception as error:  # the client's own errors and whatever its HTTP library raises
        return _from_cache(model, revision, error)
    names = {f.rfilename for f in listed}
    small = [n for n in names if n in SIDE_FILES or ("/" not in n and n.endswith(INDEX))]
    if not small:
        raise InputError(f"{model} on the hub has no config.json at its top; is it a model?")
    root = _fetch(model, revision, small)
    shards, _ = shard_names(root, names)
    absent = [n for n in shards if n not in names]
    if absent:
        raise InputError(f"{model} on the hub needs {absent[0]}, which is not there; the upload is incomplete")
    modules = [n for n in module_files(root, names) if n in names]
    if _fetch(model, revision, [*shards, *modules]) != root:
        raise InputError(f"{model} was changed on the hub during the download; run the same command again")
    return root


def _fetch(model: str, revision: str | None, names: Collection[str]) -> Path:
    patterns = sorted(map(glob.escape, names))
    try:
        return Path(huggingface_hub.snapshot_download(model, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise InputError(f"cannot download {model} from the hub: {_first_line(error)}") from error


def _from_cache(model: str, revision: str | None, reason: Exception) -> Path:
    if getattr(getattr(reason, "response", None), "status_code", None) in (401, 403, 404):
        raise InputError(
            f"{model}{f' at {revision}' if revision else ''} is neither a local directory nor a model on the hub that "
            f"you may read; check the name, or log in with `hf auth login` for a private or gated one"
        ) from reason
    try:
        return Path(huggingface_hub.snapshot_download(model, revision=revision, local_files_only=True))
    except Exception as error:
        raise InputError(
            f"{model} is no local directory, the hub cannot be reached ({_first_line(reason)}), and its cache does not "
            f"hold the model"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
