"""Unigram vocabularies ("t5"): T5's spiece.model, XLM-RoBERTa's sentencepiece.bpe.model, or tokenizer.json alone.

A trained SentencePiece model says in field 2 (trainer_spec) of which kind it is and in field 3 (normalizer_spec) what
is done to text before it is cut: a table of replacements, a space in front, several spaces made one. Matched:
T5Model.set_vocab and _xlmroberta_set_vocab of llama.cpp's converter.
"""

from __future__ import annotations

from base64 import b64decode
from dataclasses import replace
from typing import Any, NamedTuple

from ggufround.errors import InputError, UnsupportedError
from ggufround.gguf_file import Field, Kind, array, boolean, string, u32
from ggufround.tokenizer.bpe import ADDED_SCORE, MODEL, PRE, SCORES, TOKENS, TYPES, TokenType, check_size
from ggufround.tokenizer.files import Files, at, items, read_bytes, steps
from ggufround.tokenizer.hugging_face import load_hugging_face
from ggufround.tokenizer.spec import Vocab
from ggufround.tokenizer.special import TOKEN_TYPES, special_fields
from ggufround.tokenizer.spm import ADD_SPACE_PREFIX, PAD_SCORE, Piece, Settings, load_spm, read_pieces, read_settings

REMOVE_SPACES = "tokenizer.ggml.remove_extra_whitespaces"
CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
UNIGRAM, BPE = 1, 2  # trainer_spec.model_type


class _Read(NamedTuple):
    pieces: list[Piece]
    settings: Settings


def load_ugm(files: Files, vocab_size: int | None) -> Vocab | None:
    """T5's: tokenizer.model or spiece.model, else tokenizer.json. A tokenizer.model that is a BPE, as Pile-T5's, is
    read as such. None where there is none of them."""
    for name in ("tokenizer.model", "spiece.model"):
        if name not in files.paths:
            continue
        found = _from_model(files, name)
        if found.settings.kind == BPE and name == "tokenizer.model":
            return load_spm(files, vocab_size)
        _check_kind(found.settings, name)
        size = check_size(len(found.pieces) if vocab_size is None else vocab_size, name)
        pieces = _padded(found.pieces, size)
        for text, number in (files.added or {}).items():
            if isinstance(number, int) and 0 <= number < size:
                pieces[number] = Piece(text, ADDED_SCORE, TokenType.USER_DEFINED)
        return _vocab(files, pieces, found.settings, with_types=False)
    return _load_json(files, vocab_size, with_types=False)


def load_unigram(files: Files, vocab_size: int | None) -> Vocab | None:
    """CamemBERT's: tokenizer.json alone, since its SentencePiece model counts otherwise still."""
    return _load_json(files, vocab_size, with_types=True)


def load_xlmr(files: Files, vocab_size: int | None) -> Vocab | None:
    """XLM-RoBERTa's: sentencepiece.bpe.model (a unigram model in spite of its name), else tokenizer.json.

    transformers counts otherwise than the model: four special tokens stand before the fourth piece, and the mask is
    the last token. (The converter writes the mask for Nomic's models only, and an unused token in its place.)
    """
    name = "sentencepiece.bpe.model"
    if name not in files.paths:
        return _load_json(files, vocab_size, with_types=True)
    found = _from_model(files, name)
    _check_kind(found.settings, name)
    count = len(found.pieces)
    size = check_size(max(vocab_size or 0, count), name)
    pieces = _padded(found.pieces, size)
    special = [Piece(text, 0.0, TokenType.CONTROL) for text in ("<s>", "<pad>", "</s>")]
    pieces = [*special, Piece("<unk>", 0.0, TokenType.UNKNOWN), *pieces[3:-1]]
    if size >= count + 2:
        pieces[count + 1] = Piece("<mask>", 0.0, TokenType.CONTROL)
    return _vocab(files, pieces, found.settings, with_types=True)


def _load_json(files: Files, vocab_size: int | None, with_types: bool) -> Vocab | None:
    document = files.tokenizer
    if at(document, "model", "type") != "Unigram":
        return None
    assert document is not None
    source = files.paths["tokenizer.json"]
    rows = items(document, "model", "vocab")
    if not rows or any(not isinstance(at(row, 0), str) or not _is_number(at(row, 1)) for row in rows):
        raise InputError(f"{source}: every entry of the vocabulary must be a token and its score")
    size = check_size(max(vocab_size or 0, len(rows)), str(source))
    unigram: dict[str, Any] = {"type": "Unigram", "vocab": {row[0]: number for number, row in enumerate(rows)}}
    unknown = at(document, "model", "unk_id")
    read = load_hugging_face(replace(files, tokenizer=document | {"model": unigram}))
    assert read is not None
    if (named := read.specials.get("unk_token")) in read.added:
        unknown = read.added[named].id
    special = {read.id_of(token) for token in read.specials.values()}
    special |= {row.id for row in read.added.values() if row.special}
    added = {row.id for row in read.added.values()}

    def kind(number: int) -> TokenType:
        if number == unknown:
            return TokenType.UNKNOWN
        if number in special:
            return TokenType.CONTROL
        return TokenType.USER_DEFINED if number in added else TokenType.NORMAL

    pieces = [Piece(row[0], float(row[1]), kind(number)) for number, row in enumerate(rows)]
    return _vocab(files, _padded(pieces, size), _json_settings(document, str(source)), with_types)


def _json_settings(document: dict[str, Any], where: str) -> Settings:
    """What a tokenizer.json does to text, in SentencePiece's words."""
    table = b""
    prefix = merged = False
    for step in steps(at(document, "normalizer"), "normalizers"):
        what = at(step, "type")
        if what == "Precompiled":
            try:
                table = b64decode(at(step, "precompiled_charsmap") or "", validate=True)
            except (TypeError, ValueError) as error:
                raise InputError(f"{where}: its precompiled_charsmap is not base64") from error
        elif what == "Replace" and at(step, "content") in (" ", "\u2581") and at(step, "pattern", "Regex") == " {2,}":
            merged = True
        elif what not in ("Strip", "Nmt", "NFKC"):
            raise UnsupportedError(f"{where}: llama.cpp has no normalizer {str(what)[:40]} for a unigram vocabulary")
    for step in steps(at(document, "pre_tokenizer"), "pretokenizers"):
        merged |= at(step, "type") == "WhitespaceSplit"
        if at(step, "type") == "Metaspace":
            scheme = at(step, "prepend_scheme")
            prefix = scheme in ("always", "first") if scheme is not None else at(step, "add_prefix_space") is not False
    return Settings(UNIGRAM, table, prefix, merged)


def _from_model(files: Files, name: str) -> _Read:
    data = read_bytes(files.paths[name])
    return _Read(list(read_pieces(data, name)), read_settings(data, name))


def _check_kind(settings: Settings, name: str) -> None:
    if settings.kind != UNIGRAM:
        raise UnsupportedError(f"{name} is no unigram model but of SentencePiece's kind {settings.kind}")


def _padded(pieces: list[Piece], size: int) -> list[Piece]:
    more = (Piece(f"[PAD{number}]", PAD_SCORE, TokenType.UNUSED) for number in range(len(pieces), size))
    return [*pieces[:size], *more]


def _vocab(files: Files, pieces: list[Piece], settings: Settings, with_types: bool) -> Vocab:
    tokens, scores, types = ([piece[i] for piece in pieces] for i in range(3))
    fields = {
        MODEL: string("t5"),
        PRE: string("default"),
        TOKENS: array(Kind.STRING, tokens),
        SCORES: array(Kind.F32, scores),
        TYPES: array(Kind.I32, types),
        ADD_SPACE_PREFIX: boolean(settings.prefix),
        **({TOKEN_TYPES: u32(files.token_types)} if with_types else {}),
        REMOVE_SPACES: boolean(settings.merges_spaces),
    } | _table(settings.table)
    fields |= special_fields(files, limit=len(pieces))
    return Vocab("t5", "default", len(pieces), fields)


def _table(table: bytes) -> dict[str, Field]:
    """The replacements: the size of a search structure, the structure, and texts that each end in a zero."""
    if not table:
        return {}
    if len(table) <= 4 + int.from_bytes(table[:4], "little") or table[-1:] != b"\0":
        raise InputError("the tokenizer's precompiled_charsmap is cut off")
    return {CHARSMAP: array(Kind.U8, list(table))}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
