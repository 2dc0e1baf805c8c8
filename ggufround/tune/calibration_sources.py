"""Where calibration text comes from: files, data sets on the hub, the built-in text.

A source is written PLACE[:KEY=VALUE]...: PLACE is a .txt or .md file, taken as one text; a .jsonl file, one JSON object
a line; or a data set's hub id, user/name. Keys: `weight` (a number, 1 where it is left out: the source's part of the
sequences), `field` (where an entry's text or messages stand), `split` ("train" where it is left out) and `config` (of a
data set).

An entry's text stands in "text" or "content"; a conversation in "messages" or "conversations", a list of
{"role", "content"} or {"from", "value"}.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

from ggufround.checkpoint.hub import HUB_ID
from ggufround.checkpoint.json_file import parse_json
from ggufround.errors import InputError, MissingExtraError, UsageError
from ggufround.tune.chat_layouts import Conversation

Entry = str | Conversation

LINE_LIMIT = 16 << 20  # bytes of one line of a .jsonl file
TEXT_LIMIT = 256 << 20  # bytes of a plain text that are looked at: for far more tokens than can be asked for
ENTRY_LIMIT = 1 << 20  # entries of a source that are looked at
PLAIN, LINES = (".txt", ".md"), ".jsonl"
FIELDS = ("text", "messages", "conversations", "content")
BUILT_IN = "built-in text"
_TEXTS = Path(__file__).parent / "texts"
_ORDER = ("prose.txt", "code.txt", "dialogue.jsonl", "technical.txt", "languages.txt", "maths.txt")
_SEPARATOR = "\n=====\n"
_OPTION = re.compile(r"(.+):([a-z]+)=([^:]*)", re.DOTALL)
_FORM = "write FILE.txt, FILE.jsonl or a data set's user/name, and :KEY=VALUE after it (weight, field, split, config)"


@dataclass(frozen=True)
class Source:
    place: str  # a path, a hub id, or BUILT_IN
    kind: str  # "text", "lines", "hub" or "built-in"
    weight: float = 1.0
    field: str = ""
    split: str = "train"
    config: str = ""

    @property
    def name(self) -> str:
        """What may be published: no directory."""
        return self.place if self.kind in ("hub", "built-in") else Path(self.place).name


def parse_sources(texts: Iterable[str]) -> tuple[Source, ...]:
    """The sources as written, the built-in text for none. Raises as `parse_source` does."""
    sources = tuple(map(parse_source, texts))
    bare = [replace(source, weight=1.0) for source in sources]
    for source in bare:
        if bare.count(source) > 1:
            raise UsageError(
                f"the calibration source {source.place} is given twice; to count it double, write "
                f"{source.place}:weight=2"
            )
    return sources or (Source(BUILT_IN, "built-in"),)


def parse_source(text: str) -> Source:
    """One source. Raises UsageError for what cannot be one, InputError for a file that is not there."""
    place, options = text, dict[str, str]()
    while match := _OPTION.fullmatch(place):
        place, key, value = match.groups()
        if key not in ("weight", "field", "split", "config"):
            raise UsageError(f"calibration source {text!r}: there is no key {key!r}; {_FORM}")
        if key in options or not value:
            raise UsageError(f"calibration source {text!r}: {key} must be given once, with a value; {_FORM}")
        options[key] = value
    kind = _kind(place, text)
    for key in options.keys() - {"text": {"weight"}, "lines": {"weight", "field"}}.get(kind, options.keys()):
        raise UsageError(f"calibration source {text!r}: {key} says nothing about a {Path(place).suffix} file")
    weight = options.pop("weight", "1")
    try:
        number = float(weight)
    except ValueError:
        number = 0.0
    if not 1e-6 <= number <= 1e6:
        raise UsageError(f"calibration source {text!r}: a weight is a number from 1e-6 to 1e6, not {weight!r}")
    return Source(place, kind, number, **options)


def _kind(place: str, text: str) -> str:
    path, suffix = Path(place), Path(place).suffix.lower()
    try:
        exists, folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:
        raise UsageError(f"calibration source {text!r} is no file name: {error}; {_FORM}") from error
    if folder:
        raise UsageError(f"calibration source {text!r} is a directory; {_FORM}")
    if suffix in PLAIN or suffix == LINES:
        if not exists:
            raise InputError(f"the calibration text {place} is not there")
        return "lines" if suffix == LINES else "text"
    if exists:
        raise UsageError(
            f"calibration source {text!r}: a file must be {', '.join(PLAIN)} (plain text) or {LINES} (one JSON object "
            f"a line), not {suffix or 'without an extension'}"
        )
    if HUB_ID.fullmatch(place):
        return "hub"
    raise UsageError(f"calibration source {text!r} is neither a file nor a data set's hub id; {_FORM}")


def entries(source: Source) -> Iterator[Entry]:
    """The source's texts and conversations in their order, blank ones left out; not for plain text files.

    Raises InputError where the source cannot be read, MissingExtraError for the hub without `datasets`.
    """
    found: Iterable[Entry | None]
    if source.kind == "built-in":
        found = built_in()
    elif source.kind == "hub":
        found = _hub(source)
    else:
        found = _lines(Path(source.place), source.field)
    for number, entry in enumerate(found):
        if number >= ENTRY_LIMIT:
            return
        if entry:
            yield entry


def prefixes(path: Path, nbytes: int) -> Iterator[str]:
    """Longer and longer beginnings of a UTF-8 text, the first of about `nbytes` bytes; the last one is all of it.

    Raises InputError for what is no text.
    """
    while True:
        nbytes = min(nbytes, TEXT_LIMIT)
        with _open(path) as file:
            data = file.read(nbytes)
            last = nbytes == TEXT_LIMIT or len(data) < nbytes
            ended = last and not file.read(1)
        try:
            text = codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=ended)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path} is not UTF-8: {error.reason} at byte {error.start}; calibration text must be UTF-8"
            ) from error
        if "\0" in text:
            raise InputError(f"{path} holds a zero byte at character {text.index(chr(0))}, so it is no plain text")
        yield text
        if last:
            return
        nbytes *= 4


def _open(path: Path) -> BinaryIO:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not block
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    file = open(fd, "rb")  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        file.close()
        raise InputError(f"{path} is not a regular file")
    return file


def built_in() -> Iterator[Entry]:
    """The project's own texts, a different kind every time, so that any beginning of them is varied."""
    kinds = [_built_in_file(_TEXTS / name) for name in _ORDER]
    for group in zip_longest(*kinds):
        yield from (entry for entry in group if entry)


def _built_in_file(path: Path) -> list[Entry]:
    if path.suffix == LINES:
        return [entry for entry in _lines(path, "") if entry]
    return list(path.read_text(encoding="utf-8").removesuffix("\n").split(_SEPARATOR))


def _lines(path: Path, field: str) -> Iterator[Entry | None]:
    with _open(path) as file:
        number = 0
        while line := file.readline(LINE_LIMIT + 1):
            number += 1
            where = f"{path}, line {number}"
            if len(line) > LINE_LIMIT:
                raise InputError(f"{where} has more than {LINE_LIMIT} bytes")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield _entry(parse_json(line, where), field, where)


def _hub(source: Source) -> Iterator[Entry | None]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"calibration with {source.place} from the hub needs the `datasets` package, which is not installed; "
            'install it with: pip install "ggufround[tune]"'
        ) from error
    try:
        rows = datasets.load_dataset(source.place, source.config or None, split=source.split, streaming=True)
        pending = iter(rows)
    except Exception as error:  # the library's own errors and whatever its HTTP client raises
        raise _not_had(source, error) from error
    number = 0
    while True:
        try:
            row = next(pending)
        except StopIteration:
            return
        except Exception as error:
            raise _not_had(source, error) from error
        number += 1
        where = f"{source.place}, split {source.split}, row {number}"
        if not isinstance(row, Mapping):
            raise InputError(f"{where} is a {type(row).__name__}; a row must have named fields")
        yield _entry(row, source.field, where)


def _not_had(source: Source, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    config = f" (config {source.config})" if source.config else ""
    return InputError(
        f"cannot read split {source.split} of the data set {source.place}{config} from the hub: {reason}; check the "
        "name and the network, or give a text file"
    )


def _entry(row: Mapping[str, Any], field: str, where: str) -> Entry | None:
    """A row's text or conversation, None for a blank one."""
    key = next((key for key in ((field,) if field else FIELDS) if key in row), None)
    if key is None:
        wanted = f"the field {field!r}" if field else f"none of the fields {', '.join(FIELDS)}"
        raise InputError(
            f"{where} has {'not ' if field else ''}{wanted}, but {', '.join(map(repr, list(row)[:12])) or 'no field'}; "
            "say which one holds the text with :field=NAME"
        )
    value = row[key]
    if value is None:
        return None
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, list):
        turns = tuple(_turn(turn, f"{where}, field {key!r}") for turn in value)
        return turns if any(content.strip() for _, content in turns) else None
    raise InputError(f"{where}: the field {key!r} must hold a text or a list of messages, not {type(value).__name__}")


def _turn(message: Any, where: str) -> tuple[str, str]:
    if isinstance(message, Mapping):
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        if isinstance(content, list):  # parts, of which the texts count
            parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
            content = "\n".join(part for part in parts if isinstance(part, str))
        if calls := message.get("tool_calls"):
            said = json.dumps(calls, ensure_ascii=False, default=str)
            content = f"{content}\n{said}" if content else said
        if isinstance(role, str) and isinstance(content, str | None):
            return role, content or ""
    raise InputError(f'{where}: a message must be {{"role": ..., "content": ...}}, both texts, not {str(message):.80}')
