"""SentencePiece vocabularies: tokenizer.model with the added tokens of the files around it.

tokenizer.model is one protobuf message (sentencepiece_model.proto): field 1, repeated, holds a piece (1: text,
2: score as float32, 3: type). The few wire types are read here directly, since sentencepiece would build its whole
search structure first, which takes seconds for a large vocabulary. Matched: _create_vocab_sentencepiece of llama.cpp's
converter, and what its Phi-3 class does differently.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from ggufround.errors import InputError
from ggufround.gguf_file import boolean
from ggufround.tokenizer.bpe import ADDED_SCORE, TokenType, check_size, looks_special, sentencepiece_fields
from ggufround.tokenizer.files import Files, at, content, items, read_bytes, table
from ggufround.tokenizer.spec import Vocab
from ggufround.tokenizer.special import special_fields

PAD_SCORE = -10000.0
ADD_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
# SentencePiece's types have the same numbers, but llama.cpp writes its user-defined pieces as normal ones
_TYPES = {1: 1, 2: 2, 3: 3, 4: 1, 5: 5, 6: 6}


class Piece(NamedTuple):
    text: str
    score: float
    type: int  # TokenType


class Settings(NamedTuple):
    """What a model says besides its pieces."""

    kind: int  # trainer_spec.model_type: 1 unigram, 2 BPE
    table: bytes  # normalizer_spec.precompiled_charsmap
    prefix: bool  # add_dummy_prefix
    merges_spaces: bool  # remove_extra_whitespaces


class _Override(NamedTuple):
    id: int
    text: str
    special: bool


def load_spm(files: Files, vocab_size: int | None) -> Vocab | None:
    """None where there is no tokenizer.model."""
    return _load(files, vocab_size, phi3=False)


def load_gemma(files: Files, vocab_size: int | None) -> Vocab | None:
    """As `load_spm`; Gemma's text is tokenized without a space in front."""
    vocab = _load(files, vocab_size, phi3=False)
    if vocab is None:
        return None
    return replace(vocab, metadata={**vocab.metadata, ADD_SPACE_PREFIX: boolean(False)})


def load_phi3(files: Files, vocab_size: int | None, change: Callable[[Piece], Piece] | None = None) -> Vocab | None:
    """As `load_spm`, but tokenizer.json's added tokens count too, and only their own flag makes a token special.
    None for Phi-4, whose tokenizer is GPT-2's. `change`: what is made of each piece of tokenizer.model."""
    if at(files.config, "tokenizer_class") == "GPT2Tokenizer":
        return None
    return _load(files, vocab_size, phi3=True, change=change)


def _load(
    files: Files, vocab_size: int | None, phi3: bool, change: Callable[[Piece], Piece] | None = None
) -> Vocab | None:
    path = files.paths.get("tokenizer.model")
    if path is None:
        return None
    pieces = [change(piece) if change else piece for piece in read_pieces(read_bytes(path), str(path))]
    size = check_size(len(pieces) if vocab_size is None else vocab_size, str(path))
    notes = []
    if len(pieces) > size:
        notes.append(f"{len(pieces) - size} tokens of {path.name} beyond the model's vocabulary of {size} left out")
    pieces = pieces[:size] + [Piece(f"[PAD{i}]", PAD_SCORE, TokenType.UNUSED) for i in range(len(pieces), size)]
    for text, value in (files.added or {}).items():
        if (number := _number(value, text)) < size:
            pieces[number] = Piece(text, ADDED_SCORE, TokenType.USER_DEFINED)
    for override in _overrides(files, phi3):
        if override.id >= size:
            continue
        special = override.special or (not phi3 and looks_special(override.text))
        text = override.text if special or phi3 else override.text.replace("\u2581", " ")
        kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
        pieces[override.id] = Piece(text, ADDED_SCORE, kind)
    tokens, scores, types = ([piece[i] for piece in pieces] for i in range(3))
    fields = sentencepiece_fields(tokens, scores, types) | special_fields(files, limit=size)  # type: ignore[arg-type]
    return Vocab("llama", "default", size, fields, notes=tuple(notes))


def _overrides(files: Files, phi3: bool) -> Iterator[_Override]:
    for key, token in table(files.config, "added_tokens_decoder").items():
        text = content(token)
        number = int(key) if key.isdecimal() and len(key) < 10 else key
        if text is None:
            raise InputError(f"tokenizer_config.json: added token {key} has no content")
        yield _Override(_number(number, text), text, bool(at(token, "special")))
    for token in items(files.tokenizer, "added_tokens") if phi3 else []:
        text = content(token)
        if text is None:
            raise InputError("tokenizer.json: an added token has no content")
        yield _Override(_number(at(token, "id"), text), text, bool(at(token, "special")))


def _number(number: object, text: str) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise InputError(f"the added token {text!r} has the id {number!r}; a token id is a whole number from 0")
    return number


def adds_prefix(data: bytes) -> bool:
    """Whether a tokenizer.model (one that `read_pieces` takes) puts a space in front of a text: normalizer_spec (field
    3), add_dummy_prefix (3), which is true where it is absent."""
    parts = (value for field, value in _fields(data, 0, len(data)) if field == 3 and isinstance(value, slice))
    found = [value for part in parts for field, value in _fields(data, part.start, part.stop) if field == 3]
    return bool(found[-1]) if found else True


def read_pieces(data: bytes, where: str) -> Iterator[Piece]:
    """The pieces of a tokenizer.model in the order of their ids; InputError where the bytes are no such message."""
    whole = False  # the trainer's settings (field 2) follow the pieces in every file that a trainer wrote
    try:
        for field, value in _fields(data, 0, len(data)):
            whole |= field == 2
            if field != 1 or not isinstance(value, slice):
                continue
            text, score, kind = "", 0.0, 1
            for part, inner in _fields(data, value.start, value.stop):
                if part == 1 and isinstance(inner, slice):
                    text = data[inner].decode("utf-8")
                elif part == 2 and isinstance(inner, bytes):
                    (score,) = struct.unpack("<f", inner)
                elif part == 3 and isinstance(inner, int):
                    kind = inner
            yield Piece(text, score, _TYPES[kind])
    except (IndexError, KeyError, ValueError, struct.error) as error:
        raise InputError(f"{where} is no sentencepiece model: {error or 'truncated'}") from error
    if not whole:
        raise InputError(f"{where} ends before its trainer_spec: it was cut off; download it again")


def read_settings(data: bytes, where: str) -> Settings:
    """Of a tokenizer.model: trainer_spec (field 2) and normalizer_spec (field 3), whose absent fields have defaults."""
    found: dict[tuple[int, int], Any] = {(2, 3): 1, (3, 2): slice(0), (3, 3): 1, (3, 4): 1}
    try:
        for field, value in _fields(data, 0, len(data)):
            if field in (2, 3) and isinstance(value, slice):
                found |= {(field, part): inner for part, inner in _fields(data, value.start, value.stop)}
    except (IndexError, ValueError) as error:
        raise InputError(f"{where} is no sentencepiece model: {error or 'truncated'}") from error
    table = found[3, 2]
    if not isinstance(table, slice) or not all(isinstance(found[key], int) for key in ((2, 3), (3, 3), (3, 4))):
        raise InputError(f"{where} is no sentencepiece model: a setting of the wrong type")
    return Settings(found[2, 3], data[table], bool(found[3, 3]), bool(found[3, 4]))


def _fields(data: bytes, position: int, stop: int) -> Iterator[tuple[int, int | bytes | slice]]:
    """(number, value) of each field of a protobuf message: an int, 4 or 8 bytes, or a slice of `data`."""
    while position < stop:
        key, position = _varint(data, position)
        wire = key & 7
        value: int | bytes | slice
        if wire == 0:
            value, position = _varint(data, position)
        elif wire == 2:
            size, position = _varint(data, position)
            value = slice(position, position + size)
            position += size
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value = data[position : position + size]
            position += size
        else:
            raise ValueError(f"wire type {wire}")
        if position > stop:
            raise ValueError("a field runs over the end")
        yield key >> 3, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    byte = data[position]
    if byte < 0x80:
        return byte, position + 1
    number = 0
    for i in range(10):
        byte = data[position + i]
        number |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return number, position + i + 1
    raise ValueError("a number of more than ten bytes")
