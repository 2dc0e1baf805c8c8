"""The log beside a tuned file: one JSON line a block, readable while the run goes on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggufround import measure
from ggufround.errors import not_written
from ggufround.formats.spec import Layout

if TYPE_CHECKING:
    from ggufround.tune.blocks import Losses

SUFFIX = ".tuning.jsonl"


def log_beside(layouts: tuple[Layout, ...]) -> Path:
    """The log's path: beside the first file."""
    first = layouts[0].files[0].path
    return first.with_name(first.name + SUFFIX)


class TuningLog:
    """A line for each block that was tuned; with `append` those of an unfinished run stay. There is no file before the
    first line."""

    def __init__(self, path: Path, append: bool) -> None:
        self.path = path
        self._lines: dict[str, dict[str, Any]] = {}
        if append and path.is_file():
            self._lines = {line["block"]: line for line in map(_parsed, path.read_text().splitlines()) if line}

    def add(self, block: str, losses: Losses | None) -> None:
        """Writes the block's line, in place of an earlier one. Without losses there is nothing to say."""
        if losses is None:
            return
        self._lines[block] = {"block": block, **asdict(losses), "peak_memory": measure.peak_memory()}
        try:
            self.path.write_text("".join(json.dumps(line) + "\n" for line in self._lines.values()))
        except OSError as error:
            raise not_written(error, f"cannot write {self.path}") from error


def _parsed(line: str) -> dict[str, Any] | None:
    """None for a line that was cut off."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "block" in found else None
