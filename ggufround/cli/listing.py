"""ggufround list"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from ggufround.arch import ARCHITECTURES
from ggufround.arch.composite import CLASSES
from ggufround.arch.vision import PROJECTORS
from ggufround.cli import show
from ggufround.cli.values import Json
from ggufround.errors import UsageError
from ggufround.formats.table import FORMATS
from ggufround.ggml_types import GGML_TYPES
from ggufround.quants.mixes import MIXES
from ggufround.quants.schemes import KNOWN, scheme
from ggufround.quants.types import QUANT_TYPES
from ggufround.recipes import RECIPES
from ggufround.tune.extra import require_extra

Rows = list[tuple[Any, ...]]


class What(StrEnum):
    TYPES = "types"
    MIXES = "mixes"
    FORMATS = "formats"
    RECIPES = "recipes"
    ARCHITECTURES = "architectures"
    DEVICES = "devices"


def _types() -> tuple[tuple[str, ...], Rows]:
    rows: Rows = []
    for number, name, block, nbytes in GGML_TYPES.values():
        kind = QUANT_TYPES.get(name)
        use = "-" if kind is None else "yes" if kind.uses_importance else "ignored"
        rows.append((name, number, block, nbytes, 8 * nbytes / block, "yes" if kind else "no", use))
    return ("type", "id", "block", "bytes", "bits per weight", "written", "importance"), rows


def _mixes() -> tuple[tuple[str, ...], Rows]:
    return ("mix", "file_type", "main type"), [(m.name, m.file_type, m.type) for m in MIXES.values()]


def _formats() -> tuple[tuple[str, ...], Rows]:
    rows: Rows = [("gguf", "llama.cpp, ollama, LM Studio", "all types of `ggufround list mixes`")]
    schemes = [scheme(name) for name in KNOWN]
    for found in FORMATS.values():
        rows.append((found.name, found.about, " ".join(s.name for s in schemes if found.refusal(s) is None)))
    return ("format", "for", "schemes"), rows


def _recipes() -> tuple[tuple[str, ...], Rows]:
    rows = [(r.name, r.iterations, r.samples, r.seqlen, r.about) for r in RECIPES.values()]
    return ("recipe", "iterations", "samples", "seqlen", "what it does"), rows


def _architectures() -> tuple[tuple[str, ...], Rows]:
    seeing = {name.partition("/")[0] for name in PROJECTORS}
    tuned = {name: f"no: {a.untunable}" if a.untunable else "yes" for name, a in ARCHITECTURES.items()}
    named = {name: a.name for name, a in ARCHITECTURES.items()} | dict.fromkeys(CLASSES, "of its text model")
    rows = [
        (name, to, tuned.get(name, "as it"), "yes" if name in seeing else "-") for name, to in sorted(named.items())
    ]
    return ("Hugging Face class", "GGUF architecture", "tuned", "--mmproj"), rows


def _devices() -> tuple[tuple[str, ...], Rows]:
    """What --device takes, and what torch makes of each here. Raises MissingExtraError without torch."""
    require_extra()
    from ggufround.tune.device import KINDS, choose, describe, fast_bfloat16

    rows: Rows = []
    for name in KINDS:
        try:
            found = choose(name)
            rows.append((name, "yes", describe(found, fast_bfloat16(found))))
        except UsageError as error:
            rows.append((name, "no", str(error)))
    return ("device", "usable", "what it is"), rows


TABLES: dict[What, Callable[[], tuple[tuple[str, ...], Rows]]] = {
    What.TYPES: _types,
    What.MIXES: _mixes,
    What.FORMATS: _formats,
    What.RECIPES: _recipes,
    What.ARCHITECTURES: _architectures,
    What.DEVICES: _devices,
}


def list_command(
    what: Annotated[What, typer.Argument(metavar="WHAT", help=", ".join(What))], json: Json = False
) -> None:
    """List types, mixes, formats, recipes, architectures or devices."""
    columns, rows = TABLES[what]()
    if json:
        show.dump([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        show.table(what.value, columns, rows)
