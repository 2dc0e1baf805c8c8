"""The log beside a tuned file: one JSON line a block, readable while the run goes on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ggufround import measure
from ggufround.errors import not_written

if TYPE_CHECKING:
    from ggufround.tune.blocks import Losses


class TuningLog:
    """OUT.tuning.jsonl; an unfinished run's lines stay with `append`."""

    def __init__(self, out: Path, append: bool) -> None:
        self.path = out.with_name(out.name + ".tuning.jsonl")
        try:
            if not append:
                self.path.write_text("")
        except OSError as error:
            raise not_written(error, f"cannot write {self.path}") from error

    def add(self, stage: str, losses: Losses | None) -> None:
        """One line for a block that was tuned; none for other stages."""
        if losses is None:
            return
        line = {"block": stage, **asdict(losses), "peak_memory": measure.peak_memory()}
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise not_written(error, f"cannot write {self.path}") from error
