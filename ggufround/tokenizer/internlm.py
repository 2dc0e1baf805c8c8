"""The SentencePiece vocabularies of InternLM 2 and 3, as the two classes of conversion/internlm.py write them."""

from __future__ import annotations

from dataclasses import replace

from ggufround.gguf_file import Field, boolean, u32
from ggufround.tokenizer.bpe import TYPES, TokenType
from ggufround.tokenizer.files import Files, at, content, items, read_bytes, table
from ggufround.tokenizer.spec import Vocab
from ggufround.tokenizer.special import ID_KEYS
from ggufround.tokenizer.spm import ADD_SPACE_PREFIX, Piece, adds_prefix, load_phi3, load_spm

END_OF_TURN = "<|im_end|>"  # with it, and not with the end of a text, a chat model ends what it says
NUL = "\N{DRAGON}"  # what stands for a zero byte, at which llama.cpp would end a string


def load_internlm2(files: Files, vocab_size: int | None) -> Vocab | None:
    """None where there is no tokenizer.model."""
    vocab = load_phi3(files, vocab_size, _piece)
    if vocab is None:
        return None
    added = {int(key): value for key, value in table(files.config, "added_tokens_decoder").items() if key.isdecimal()}
    added |= {at(token, "id"): token for token in items(files.tokenizer, "added_tokens")}
    ends = [number for number, token in added.items() if content(token) == END_OF_TURN]
    return _with(vocab, adds_prefix(read_bytes(files.paths["tokenizer.model"])), ends)


def load_internlm3(files: Files, vocab_size: int | None) -> Vocab | None:
    """None where there is no tokenizer.model."""
    vocab = load_spm(files, vocab_size)
    if vocab is None:
        return None
    added = table(files.config, "added_tokens_decoder").items()
    ends = [int(key) for key, token in added if at(token, "special") and content(token) == END_OF_TURN]
    prefix = at(files.config, "add_prefix_space")
    return _with(vocab, None if prefix is None else bool(prefix), ends if ID_KEYS["eos"] in vocab.metadata else [])


def _piece(piece: Piece) -> Piece:
    if piece.text == "\0":
        return piece._replace(text=NUL, type=int(TokenType.UNUSED))  # to sentencepiece, too, it is none
    return piece._replace(type=int(TokenType.UNUSED)) if piece.text.startswith("[UNUSED") else piece


def _with(vocab: Vocab, prefix: bool | None, ends: list[int]) -> Vocab:
    """`prefix` goes after the types; the last of `ends` becomes the token at which generation stops."""
    fields: dict[str, Field] = {}
    for key, field in vocab.metadata.items():
        fields[key] = field
        if key == TYPES and prefix is not None:
            fields[ADD_SPACE_PREFIX] = boolean(prefix)
    if ends:
        fields[ID_KEYS["eos"]] = u32(ends[-1])
    return replace(vocab, metadata=fields)
