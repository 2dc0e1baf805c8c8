"""A checkpoint's tokenizer as the tuner needs it: text in, ids out. Nothing of the model is run.

`tokenizers` reads tokenizer.json, and tekken.json as one; sentencepiece reads tokenizer.model, the file that the GGUF
vocabulary comes from, for which transformers would want protobuf; and what has neither goes through transformers'
AutoTokenizer: its own files only, no code of the model's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sentencepiece
import tokenizers

from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import InputError
from ggufround.gguf_file import Field
from ggufround.tokenizer.files import read_bytes, read_files
from ggufround.tokenizer.special import ID_KEYS, TEMPLATE, special_fields
from ggufround.tokenizer.tekken import as_document

_ADD_BOS = "tokenizer.ggml.add_bos_token"


@dataclass(frozen=True)
class TextTokenizer:
    """`encode` adds nothing to a text; special tokens that are written in it count as such."""

    encode: Callable[[str], Sequence[int]]
    token_id: Callable[[str], int | None]
    bos: int | None  # what every sequence starts with; None where the model is used without
    eos: int | None  # what ends a text; None where the files name none
    template: str  # the chat template's text, "" where there is none; only ever searched

    def has_marker(self, text: str) -> bool:
        """Whether `text` is one token, and is read as that token where a text contains it."""
        number = self.token_id(text)
        return number is not None and number in self.encode(text)


def open_tokenizer(checkpoint: Checkpoint) -> TextTokenizer:
    """Raises InputError where there is no tokenizer, or none that can be read."""
    if "tokenizer.json" in checkpoint.files:
        read = _from_tokenizer_json(checkpoint)
    elif "tekken.json" in checkpoint.files:
        read = _from_tekken(checkpoint)
    elif "tokenizer.model" in checkpoint.files:
        read = _from_sentencepiece(checkpoint)
    else:
        read = _from_other_files(checkpoint)
    fields = special_fields(read_files(checkpoint))
    bos, eos = _number(fields, ID_KEYS["bos"], read.bos), _number(fields, ID_KEYS["eos"], read.eos)
    # the flag that the GGUF file will have, so that llama.cpp's tools make the same tokens; else what is seen
    adds = fields[_ADD_BOS].value if _ADD_BOS in fields else read.adds_bos
    start = read.bos if read.adds_bos else bos
    template = fields[TEMPLATE].value if TEMPLATE in fields else ""
    return TextTokenizer(read.encode, read.token_id, start if adds else None, eos, str(template))


def _number(fields: Mapping[str, Field], key: str, otherwise: int | None) -> int | None:
    return int(fields[key].value) if key in fields else otherwise


@dataclass(frozen=True)
class _Read:
    encode: Callable[[str], Sequence[int]]
    token_id: Callable[[str], int | None]
    adds_bos: bool
    bos: int | None
    eos: int | None


def _first(marked: Sequence[int], bare: Sequence[int]) -> int | None:
    """The token that stands before a text once special tokens are added; one after it does not matter."""
    return None if list(marked[: len(bare)]) == list(bare) else marked[0]


def _from_tokenizer_json(checkpoint: Checkpoint) -> _Read:
    path = checkpoint.files["tokenizer.json"]
    try:
        tokenizer: Any = tokenizers.Tokenizer.from_buffer(read_bytes(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None):
            tokenizer.model.dropout = None  # a regularizer for training, which draws other tokens every time
        first = _first(tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids)
    except InputError:
        raise
    except Exception as error:  # the library raises Exception itself
        raise InputError(f"{path} cannot be read as a tokenizer: {_line(error)}") from error

    def encode(text: str) -> Sequence[int]:
        try:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # a vocabulary without a token for what it does not know
            raise InputError(f"{path} cannot tokenize the text: {_line(error)}") from error
        return ids

    return _Read(encode, tokenizer.token_to_id, first is not None, first, None)


def _from_tekken(checkpoint: Checkpoint) -> _Read:
    """Mistral's own file, as the tokenizer.json that says the same."""
    path = checkpoint.files["tekken.json"]
    document = as_document(read_files(checkpoint))
    try:
        tokenizer: Any = tokenizers.Tokenizer.from_str(json.dumps(document))
    except Exception as error:  # an expression that the library cannot read
        raise InputError(f"{path} cannot be read as a tokenizer: {_line(error)}") from error

    def encode(text: str) -> Sequence[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return _Read(encode, tokenizer.token_to_id, True, tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>"))


def _from_other_files(checkpoint: Checkpoint) -> _Read:
    reason = "transformers, which knows other kinds of tokenizers, is not installed"
    try:
        from transformers import AutoTokenizer
    except ImportError:
        pass
    else:
        try:
            root = str(checkpoint.root)
            return _from_transformers(
                AutoTokenizer.from_pretrained(root, local_files_only=True, trust_remote_code=False)
            )
        except Exception as error:  # whatever the class that config.json names makes of the files
            reason = f"transformers cannot read its tokenizer ({_line(error)})"
    raise InputError(
        f"{checkpoint.source} has neither tokenizer.json nor tokenizer.model, and {reason}; calibration text cannot "
        f"be tokenized without (found {', '.join(sorted(checkpoint.files)) or 'no file beside the weights'})"
    )


def _from_transformers(tokenizer: Any) -> _Read:
    def encode(text: str) -> Sequence[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids

    def token_id(text: str) -> int | None:
        number = tokenizer.get_vocab().get(text)
        return None if number is None else int(number)

    first = _first(tokenizer.encode("a"), encode("a"))
    bos = tokenizer.bos_token_id if first is None else first
    return _Read(encode, token_id, first is not None, bos, tokenizer.eos_token_id)


def _from_sentencepiece(checkpoint: Checkpoint) -> _Read:
    path = checkpoint.files["tokenizer.model"]
    try:
        processor: Any = sentencepiece.SentencePieceProcessor(model_proto=read_bytes(path))
        pieces = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read as a sentencepiece model: {_line(error)}") from error

    def encode(text: str) -> Sequence[int]:
        ids: list[int] = processor.encode(text)
        return ids

    bos, eos = (number if number >= 0 else None for number in (processor.bos_id(), processor.eos_id()))
    return _Read(encode, pieces.get, bos is not None, bos, eos)  # such models are used with a bos, as in llama.cpp


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
