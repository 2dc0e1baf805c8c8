"""What people see: tables and bars on a terminal, plain lines otherwise, JSON when asked for."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from ggufround.conversion import Progress

if TYPE_CHECKING:
    from rich.console import Console


@cache
def console(stderr: bool) -> Console:
    """Where text goes. Rich is imported when there is something to show: it takes longer than a plan."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def complain(message: str) -> None:
    """One error line."""
    console(stderr=True).print(f"[bold red]error:[/] {_plain(message)}")


def note(message: str) -> None:
    """One line that the user should know, on stderr."""
    console(stderr=True).print(f"[yellow]note:[/] {_plain(message)}")


def say(message: str) -> None:
    """One line of result."""
    console(stderr=False).print(_plain(message))


def dump(value: Any) -> None:
    """JSON on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def table(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """A table; numbers stand to the right."""
    from rich.table import Table

    grid = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for number, name in enumerate(columns):
        numeric = bool(rows) and all(isinstance(r[number], int | float) or r[number] == "" for r in rows)
        grid.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(_plain(_number(value)) for value in row))
    console(stderr=False).print(grid)


def human(size: float) -> str:
    """Bytes with a decimal unit, as file sizes are given on hubs."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


@contextmanager
def progress(quiet: bool) -> Iterator[Progress | None]:
    """Something to call with (phase, done, total): a bar with the time left, plain lines, or nothing."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Bars(*columns, console=console(stderr=True), transient=True) as bars:
            task = bars.add_task("convert")
            yield lambda phase, done, total: bars.update(task, description=phase, completed=done, total=total)
    else:
        yield _Lines().update


class _Lines:
    """A plain line every ten seconds."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()

    def update(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last < 10 or not done:
            return
        self.last = now
        left = (now - self.started) * (total - done) / done
        console(stderr=True).print(f"{phase}: {100 * done / total:.0f} %, about {left:.0f} s left")


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
