"""The `ggufround` command: start fast, end fast. What it does is in `app` and the command modules beside it."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import NoReturn


def entry() -> NoReturn:
    """Runs the command line and ends the process.

    Imports make many objects and no garbage, so the collector neither runs meanwhile nor looks at them later, and it
    runs seldom when kernels and tokenizers are loaded, which make many more. At the end nothing is taken apart piece
    by piece: every file was closed and every table printed before.
    """
    gc.disable()
    main = import_module("ggufround.cli.app").main
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
    gc.enable()
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    with suppress(BrokenPipeError):  # the reader of our output has gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
