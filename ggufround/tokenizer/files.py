"""The small files beside the weights, read within limits: UTF-8, strict JSON, no surprises.

`at` walks a parsed document without trusting its shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufround.checkpoint.json_file import parse_json, read_small_file
from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import InputError

LIMITS = {
    "tokenizer.json": 128 << 20,
    "tekken.json": 128 << 20,
    "tiktoken.model": 64 << 20,
    "tokenizer.model": 64 << 20,
    "spiece.model": 64 << 20,
    "sentencepiece.bpe.model": 64 << 20,
    "vocab.json": 64 << 20,
    "merges.txt": 64 << 20,
}
LIMIT = 16 << 20  # bytes, every other file


@dataclass(frozen=True)
class Files:
    """A checkpoint's tokenizer files, each read once; None stands for a file that is not there."""

    paths: Mapping[str, Path]  # all side files by base name
    model: Mapping[str, Any]  # config.json
    tokenizer: dict[str, Any] | None  # tokenizer.json
    config: dict[str, Any] | None  # tokenizer_config.json
    specials: dict[str, Any] | None  # special_tokens_map.json
    added: dict[str, Any] | None  # added_tokens.json
    token_types: int = 1  # rows of a BERT's embedding of sentence A and B, which a GGUF file tells with the vocabulary


def read_files(checkpoint: Checkpoint) -> Files:
    """InputError for a file that is too large, not UTF-8 or not sound JSON."""
    stated = checkpoint.config.get("type_vocab_size", 1)
    shapes = (ref.shape for name, ref in checkpoint.tensors.items() if name.endswith("token_type_embeddings.weight"))
    return Files(
        checkpoint.files,
        checkpoint.config,
        read_json(checkpoint.files, "tokenizer.json"),
        read_json(checkpoint.files, "tokenizer_config.json"),
        read_json(checkpoint.files, "special_tokens_map.json"),
        read_json(checkpoint.files, "added_tokens.json"),
        next((shape[0] for shape in shapes if shape), stated if isinstance(stated, int) and 0 < stated < 99 else 1),
    )


def read_bytes(path: Path) -> bytes:
    """The whole file; InputError if it is larger than the limit for its name or cannot be read."""
    return read_small_file(path, LIMITS.get(path.name, LIMIT))


def read_text(path: Path) -> str:
    """UTF-8 text with \\n as its only line end."""
    try:
        return read_bytes(path).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error


def read_json(files: Mapping[str, Path], name: str) -> dict[str, Any] | None:
    """The JSON object in file `name`, None where the checkpoint has no such file."""
    path = files.get(name)
    return None if path is None else parse_json(read_bytes(path), str(path))


def at(document: Any, *keys: str | int) -> Any:
    """The value under a path of keys and indices; None where there is none."""
    for key in keys:
        if isinstance(document, dict) and isinstance(key, str):
            document = document.get(key)
        elif isinstance(document, list) and isinstance(key, int) and -len(document) <= key < len(document):
            document = document[key]
        else:
            return None
    return document


def items(document: Any, *keys: str | int) -> list[Any]:
    """The list under a path, empty where there is none."""
    found = at(document, *keys)
    return found if isinstance(found, list) else []


def table(document: Any, *keys: str | int) -> dict[str, Any]:
    """The object under a path, empty where there is none."""
    found = at(document, *keys)
    return found if isinstance(found, dict) else {}


def steps(document: Any, key: str) -> list[Any]:
    """The steps of a normalizer or pre-tokenizer, nested sequences laid flat."""
    if at(document, "type") == "Sequence":
        return [step for part in items(document, key) for step in steps(part, key)]
    return [document] if isinstance(document, dict) else []


def content(token: Any) -> str | None:
    """The text of a special token, which the files write as a string or as an object with its flags."""
    text = at(token, "content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
