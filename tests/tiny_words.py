"""Tokenizers of tiny encoders, of any number of tokens: WordPiece and unigram."""

from __future__ import annotations

import struct
from typing import Any

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def pieces(count: int) -> list[str]:
    """`count` different texts of one to three letters."""
    letters = "etaoinsrhldcumwfgypbvk"
    every = [*letters, *(a + b for a in letters for b in letters)]
    assert count <= len(every)
    return every[:count]


def wordpiece(vocab: int) -> dict[str, Any]:
    """tokenizer.json as BERT's, whose special tokens are those of real ones in other places."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = pieces(22)
    tokens = [*special, *letters, *("##" + x for x in letters)]
    tokens += [x for x in pieces(400)[22:] if x not in tokens][: vocab - len(tokens)]
    ids = {token: number for number, token in enumerate(tokens)}
    around = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("[CLS]", "[SEP]")]
    first, second = ({"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1)))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[token], "content": token, **FLAGS} for token in special],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [around[0], first, around[1]],
            "pair": [around[0], first, around[1], second, around[1]],
            "special_tokens": {n: {"id": n, "ids": [ids[n]], "tokens": [n]} for n in ("[CLS]", "[SEP]")},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": ids,
        },
    }  # fmt: skip


def unigram_model(vocab: int, special: tuple[tuple[str, int], ...]) -> bytes:
    """A SentencePiece unigram model: the special tokens with their types, then pieces, long ones likelier."""

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    def chunk(number: int, data: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(data)) + data

    rows = [(text, 0.0, kind) for text, kind in special] + [("\u2581", -2.0, 1)]
    rows += [(text, -9.0 + 2 * len(text) - rank / 256, 1) for rank, text in enumerate(pieces(vocab - len(rows)))]
    body = b"".join(
        chunk(1, chunk(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind]))
        for text, score, kind in rows
    )
    return body + chunk(2, b"\x18\x01") + chunk(3, chunk(1, b"identity"))


def unigram_json(vocab: int, special: tuple[str, ...]) -> dict[str, Any]:
    """tokenizer.json of a unigram model, the special tokens first."""
    rows: list[tuple[str, float]] = [(text, 0.0) for text in special] + [("\u2581", -2.0)]
    rows += [(text, -9.0 + 2 * len(text) - rank / 256) for rank, text in enumerate(pieces(vocab - len(rows)))]
    around = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": text, **FLAGS} for number, text in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, around]},
        "post_processor": None,
        "decoder": around,
        "model": {"type": "Unigram", "unk_id": special.index("<unk>"), "vocab": [list(row) for row in rows]},
    }
