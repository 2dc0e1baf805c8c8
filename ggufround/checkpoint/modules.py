"""What sentence-transformers keeps beside a model: modules.json lists what follows the transformer, each module in a
folder of its own. A pooling's config.json and a dense layer's config.json and weights are read; no other folder is."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ggufround.checkpoint.json_file import parse_json, read_small_file
from ggufround.checkpoint.members import CONFIG_LIMIT, member
from ggufround.errors import InputError

LIST = "modules.json"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
KINDS = {"Pooling": (CONFIG,), "Dense": (CONFIG, WEIGHTS)}  # by the end of the class's name
MOST = 16  # modules


def module_files(root: Path, names: Collection[str]) -> list[str]:
    """The modules' files, "folder/name", in the list's order. Raises InputError for a list that is damaged."""
    if LIST not in names:
        return []
    path = member(root, LIST)
    raw = read_small_file(path, CONFIG_LIMIT)
    listed = parse_json(b'{"modules": ' + raw + b"}", str(path))["modules"]
    if not isinstance(listed, list) or len(listed) > MOST or not all(isinstance(m, dict) for m in listed):
        raise InputError(f"{path} is not a list of at most {MOST} modules")
    found = []
    for module in listed:
        kind, folder = str(module.get("type", "")), module.get("path")
        for end, files in KINDS.items():
            if kind.endswith(end):
                if not isinstance(folder, str):
                    raise InputError(f"{path}: the module {kind[:80]} has no path")
                found += [f"{folder.strip('/')}/{name}" for name in files]
    return found


def module_path(root: Path, name: str) -> Path | None:
    """Where a module's file lies, None where it is absent. Raises InputError for one that leads out of the model."""
    folder, _, file = name.rpartition("/")
    inside = member(root, folder)
    if not inside.is_dir():
        return None
    path = member(inside, file)
    return path if path.is_file() else None
