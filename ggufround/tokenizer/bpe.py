"""Vocabularies from tokenizer.json: byte-level BPE ("gpt2"), and the BPE with byte fallback of a Llama whose
tokenizer.model is missing ("llama"). Matched: get_vocab_base, _set_vocab_gpt2 and LlamaHfVocab of llama.cpp's
converter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from enum import IntEnum

from ggufround.errors import InputError
from ggufround.gguf_file import Field, Kind, array, boolean, string
from ggufround.tokenizer.files import Files, at, items
from ggufround.tokenizer.hugging_face import MAX_ID, HuggingFace, load_hugging_face
from ggufround.tokenizer.pretokenizers import byte_letters, cut_down, find_pre, load
from ggufround.tokenizer.spec import Vocab
from ggufround.tokenizer.special import special_fields

MODEL, PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
TOKENS, SCORES, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type"
MERGES, ADD_BOS, ADD_EOS = "tokenizer.ggml.merges", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"
ADDED_SCORE = -1000.0
VISIBLE = {"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'}
RANKS_NOTE = "scores are the ranks of tokenizer.json's merges (llama.cpp's converter writes -1000 for every token)"


class TokenType(IntEnum):
    """enum llama_token_type."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def looks_special(token: str) -> bool:
    """Added tokens that are meant as control tokens though their files do not say so."""
    if token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]"):
        return True
    ends = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))
    return any(token.startswith(start) and token.endswith(end) for start, end in ends)


def check_size(size: int, where: str) -> int:
    """InputError for a vocabulary of a size that no model has; a bound on memory."""
    if not 0 < size <= MAX_ID:
        raise InputError(f"{where}: a vocabulary of {size} tokens; allowed are 1 to {MAX_ID}")
    return size


def load_bpe(
    files: Files, pre: str | None, vocab_size: int | None, roles: Mapping[str, str] | None = None
) -> Vocab | None:
    """A byte-level BPE; None where the checkpoint has neither tokenizer.json nor vocab.json with merges.txt.

    `roles`: added tokens that play a part ("eot") where the files name none for it.

    Raises UnsupportedError where llama.cpp knows no such pre-tokenizer (see `pretokenizers`).
    """
    tokenizer = load_hugging_face(files)
    if tokenizer is None:
        return None
    if at(tokenizer.document, "model", "type") != "BPE":
        raise InputError(
            f"{tokenizer.source} holds a {at(tokenizer.document, 'model', 'type')} tokenizer; "
            "BPE is what is supported without a tokenizer.model"
        )
    size = check_size(tokenizer.size if vocab_size is None else vocab_size, str(tokenizer.source))
    tokenizer, dropped = fit(tokenizer, size)
    found = find_pre(tokenizer, pre)
    tokens, types = bpe_tokens(tokenizer, size)
    fields = {
        MODEL: string("gpt2"),
        PRE: string(found.pre),
        TOKENS: array(Kind.STRING, tokens),
        TYPES: array(Kind.I32, types),
    }
    if merges := _merges(tokenizer):
        fields[MERGES] = array(Kind.STRING, merges)
    added = {role: tokenizer.added[token].id for role, token in (roles or {}).items() if token in tokenizer.added}
    fields |= special_fields(files, preset=added)
    if found.by_structure:
        fields |= _adds(tokenizer, fields)
    notes = (*(() if found.note is None else (found.note,)), *dropped)
    return Vocab("gpt2", found.pre, size, fields, notes=notes)


def load_llama_hf(files: Files, vocab_size: int | None) -> Vocab | None:
    """The SentencePiece-like BPE with byte fallback that Llama 2 and its kin keep in tokenizer.json; None where
    tokenizer.json is absent or of another kind.

    llama.cpp joins the pair with the highest score first. Its converter gives every token here the score -1000, so
    that llama.cpp joins from the left and cuts some words otherwise than the tokenizer does. We write the ranks of
    the merges, as a tokenizer.model has them: the one place where metadata differs from the converter's on purpose.
    """
    model = at(files.tokenizer, "model")
    if (
        at(model, "type") != "BPE"
        or not at(model, "byte_fallback")
        or at(files.tokenizer, "decoder", "type") != "Sequence"
    ):
        return None
    tokenizer = load_hugging_face(files)
    assert tokenizer is not None
    base = len(tokenizer.vocab)
    size = max(tokenizer.size, vocab_size or 0)
    check_size(size, str(tokenizer.source))
    texts = {number: token for token, number in tokenizer.vocab.items()}
    texts |= {row.id: token for token, row in tokenizer.added.items()}
    special = {tokenizer.id_of(token) for token in tokenizer.specials.values()}
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(tokenizer.merges):
        ranks.setdefault(left + right, rank)
    tokens, scores, types = [], [], []
    for number in range(size):
        text = texts.get(number)
        if text is None:
            kind, text = TokenType.UNUSED, f"[PAD{number}]"  # unlike the converter, which leaves the vocabulary short
        elif number < base and re.fullmatch("<0x[0-9A-Fa-f]{2}>", text):
            kind = TokenType.BYTE
        elif number in special:
            kind = TokenType.CONTROL
        else:
            kind = TokenType.NORMAL if number < base else TokenType.USER_DEFINED
        tokens.append(text)
        scores.append(-float(ranks[text]) if kind == TokenType.NORMAL and text in ranks else ADDED_SCORE)
        types.append(int(kind))
    fields = sentencepiece_fields(tokens, scores, types) | special_fields(files, limit=size)
    return Vocab("llama", "default", size, fields, notes=(RANKS_NOTE,))


def load_gemma4(files: Files, vocab_size: int | None) -> Vocab | None:
    """As `load_llama_hf`, but llama.cpp joins by the merges; marks of tools and channels stay visible in its output."""
    vocab = load_llama_hf(files, vocab_size)
    if vocab is None:
        return None
    tokenizer = load_hugging_face(files)
    assert tokenizer is not None
    fields = dict(vocab.metadata)
    tokens, types = fields.pop(TOKENS).value, fields.pop(TYPES).value
    del fields[PRE], fields[SCORES]
    types = [
        int(TokenType.USER_DEFINED) if token in VISIBLE else kind for token, kind in zip(tokens, types, strict=True)
    ]
    fields = {
        MODEL: string("gemma4"),
        TOKENS: array(Kind.STRING, tokens),
        SCORES: array(Kind.F32, [ADDED_SCORE] * len(tokens)),
        TYPES: array(Kind.I32, types),
        MERGES: array(Kind.STRING, _merges(tokenizer)),
        **{key: field for key, field in fields.items() if key != MODEL},
        "tokenizer.ggml.add_space_prefix": boolean(False),
        ADD_BOS: boolean(True),
    }
    return Vocab("gemma4", "gemma4", vocab.size, fields)


def sentencepiece_fields(tokens: list[str], scores: list[float], types: list[int]) -> dict[str, Field]:
    return {
        MODEL: string("llama"),
        PRE: string("default"),
        TOKENS: array(Kind.STRING, tokens),
        SCORES: array(Kind.F32, scores),
        TYPES: array(Kind.I32, types),
    }


def fit(tokenizer: HuggingFace, size: int) -> tuple[HuggingFace, tuple[str, ...]]:
    """Without the tokens that have no row in the embedding, and what to say about them; InputError if tokenizer.json
    itself gives one such an id."""
    fitting = {token: row for token, row in tokenizer.added.items() if row.id < size}
    beyond = [token for token in tokenizer.added if token not in fitting]
    written = {at(token, "content") for token in items(tokenizer.document, "added_tokens")}
    if max(tokenizer.vocab.values()) >= size or not written.isdisjoint(beyond):
        largest = max([*tokenizer.vocab.values(), *(row.id for row in tokenizer.added.values())])
        raise InputError(
            f"{tokenizer.source} has the token id {largest}, but the model's vocabulary has {size} tokens; "
            "the tokenizer belongs to another model, or vocab_size in config.json is wrong"
        )
    notes = tuple(f"token {token!r} left out: it has no row in the embedding" for token in beyond)
    return replace(tokenizer, added=fitting), notes


def bpe_tokens(tokenizer: HuggingFace, size: int) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [int(TokenType.UNUSED)] * size
    for token, number in tokenizer.vocab.items():
        tokens[number] = token
        types[number] = 1  # NORMAL
    decoded = _decoded(tokenizer)
    for token, row in tokenizer.added.items():
        text = decoded.get(token, token)
        types[row.id] = TokenType.CONTROL
        if not row.special and not looks_special(text):
            types[row.id] = TokenType.USER_DEFINED
            text = text.replace("\u2581", " ")
        tokens[row.id] = text
    return tokens, types


def _decoded(tokenizer: HuggingFace) -> dict[str, str]:
    """The added tokens that are matched before normalization, encoded and decoded again: llama.cpp compares them with
    the text as it is."""
    tokens = [token for token, row in tokenizer.added.items() if not row.normalized]
    if at(tokenizer.document, "decoder", "type") == "ByteLevel":
        # this decoder keeps a token as it is if one of its characters stands for no byte
        byte_of = {letter: byte for byte, letter in byte_letters().items()}
        return {
            token: bytes(byte_of[letter] for letter in token).decode("utf-8", "replace")
            if all(letter in byte_of for letter in token)
            else token
            for token in tokens
        }
    whole = load(tokenizer, tokenizer.document)
    ids = {token: whole.encode(token, add_special_tokens=False).ids for token in tokens}
    return {token: whole.decode(ids[token], skip_special_tokens=False) for token in tokens}


def _merges(tokenizer: HuggingFace) -> list[str]:
    """One string a merge; a space inside a part is written as the byte-level vocabulary writes it."""
    pairs = tokenizer.merges
    if any(" " in left or " " in right for left, right in pairs):
        pairs = [(left.replace(" ", "\u0120"), right.replace(" ", "\u0120")) for left, right in pairs]
    return [f"{left} {right}" for left, right in pairs]


def _adds(tokenizer: HuggingFace, fields: Mapping[str, Field]) -> dict[str, Field]:
    """Where only the structure told the pre-tokenizer, whether bos and eos are added is not left to its default."""
    if tokenizer.adds is not None:
        flags = tokenizer.adds
    else:
        ids = cut_down(tokenizer).encode("").ids
        bos, eos = (tokenizer.id_of(tokenizer.specials.get(key)) for key in ("bos_token", "eos_token"))
        flags = (bos is not None and ids[:1] == [bos], eos is not None and ids[-1:] == [eos])
    return {key: boolean(flag) for key, flag in zip((ADD_BOS, ADD_EOS), flags, strict=True) if key not in fields}
