"""The commands: each command parses, builds values, calls the library, and shows what came of it.

Exit codes: 0 done, 2 wrong usage or input, 1 anything else.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Annotated

import typer

from ggufround.cli.convert import convert_command, plan_command
from ggufround.cli.evaluate import evaluate_command
from ggufround.cli.imatrix import imatrix_command
from ggufround.cli.inspect import inspect_command
from ggufround.cli.listing import list_command
from ggufround.cli.quantize import STATED, quantize_command
from ggufround.cli.show import complain, say
from ggufround.cli.verify import verify_command
from ggufround.errors import GgufroundError
from ggufround.version import __version__

app = typer.Typer(
    name="ggufround",
    help="Hugging Face checkpoints to quantised GGUF files for llama.cpp: one command, one pass, little memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("convert")(convert_command)
app.command("quantize", context_settings=STATED)(quantize_command)
app.command("plan")(plan_command)
app.command("imatrix")(imatrix_command)
app.command("inspect")(inspect_command)
app.command("verify")(verify_command)
app.command("eval")(evaluate_command)
app.command("list")(list_command)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        say(f"ggufround {__version__}")
        raise typer.Exit


def main() -> None:
    """The `ggufround` command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's threads would burn the time of busy cores waiting
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: say that the work is kept
    try:
        app()
    except GgufroundError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        sys.exit(1)
