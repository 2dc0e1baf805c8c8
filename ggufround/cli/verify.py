"""ggufround verify"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ggufround.cli import show
from ggufround.cli.values import Json, Threads
from ggufround.evaluate.file_check import verify
from ggufround.evaluate.folder_check import verify_folder
from ggufround.preflight import cores


def verify_command(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .gguf (of a split one, any part), or a checkpoint's folder.")
    ],
    source: Annotated[str | None, typer.Option("--source", metavar="MODEL", help="The model it was made from.")] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Check what was written: structure, digest, finite values; with --source the error of every tensor."""
    result = (verify_folder if file.is_dir() else verify)(file, source, threads or cores())
    if json:
        show.dump(asdict(result) | {"errors": [e._asdict() for e in result.errors], "sound": result.sound})
    else:
        show.say(f"{file}: {result.tensors} tensors; data digest: {result.data}; source digest: {result.source}")
        for name in result.damaged:
            show.note(f"{name} holds NaN or infinity")
        if result.errors:
            worst = sorted(result.errors, key=lambda e: -e.relative)
            rows = [(e.name, e.type, e.weights, e.relative) for e in worst]
            show.table("error against the source", ("tensor", "type", "weights", "relative RMS error"), list(rows))
    if not result.sound:
        raise typer.Exit(1)
