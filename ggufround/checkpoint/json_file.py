"""JSON that others wrote: bounded in size and depth, no key twice, no NaN, nothing that cannot be written as UTF-8."""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from ggufround.errors import InputError

DEPTH_LIMIT = 64
NODE_LIMIT = 4_000_000  # values; a header of 300,000 tensors has 3 million


def read_small_file(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Raises InputError otherwise."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not block
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{path} is not a regular file")
            if found.st_size > limit:
                raise InputError(f"{path} has {found.st_size} bytes; at most {limit} are allowed for such a file")
            return file.read(limit)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def read_json(path: Path, limit: int, infinity: bool = False) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError for anything else."""
    return parse_json(read_small_file(path, limit), str(path), infinity)


def parse_json(raw: bytes, what: str, infinity: bool = False) -> dict[str, Any]:
    """The JSON object in `raw`; `what` names its place in the message of the InputError. `infinity`: allowed as the
    number that Python's writer makes of it."""
    if sum(map(raw.count, (b"{", b"[", b","))) > NODE_LIMIT:  # before the parser makes objects of them
        raise InputError(f"{what} holds more than the {NODE_LIMIT} values that are allowed")
    try:
        value = json.loads(
            raw.decode(),
            object_pairs_hook=_unique,
            parse_constant=_infinity if infinity else _refuse_constant,
            parse_float=_finite,
        )
        if b"\\u" in raw:
            json.dumps(value, ensure_ascii=False).encode()  # refuses halves of surrogate pairs
    except RecursionError as error:
        raise InputError(f"{what} is nested deeper than {DEPTH_LIMIT} levels") from error
    except ValueError as error:
        raise InputError(f"{what} is not sound JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{what} must hold a JSON object, not a {type(value).__name__}")
    _check_depth(value, what)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r:.100} appears twice")
    return out


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _infinity(text: str) -> float:
    return float(text) if "Infinity" in text else _refuse_constant(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.40} is too large a number")
    return value


def _check_depth(value: Any, what: str) -> None:
    level = [value]
    for _ in range(DEPTH_LIMIT):
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    raise InputError(f"{what} is nested deeper than {DEPTH_LIMIT} levels")
