"""Byte-level BPE from a tiktoken file, which has tokens with their ranks and no merges: Kimi's tiktoken.model.

Ranks and merges tell the same: a token is made of the two parts that remain when all joints of lower rank are made.
"""

from __future__ import annotations

import binascii
from math import inf

from ggufround.errors import InputError
from ggufround.gguf_file import Kind, array, string
from ggufround.tokenizer.bpe import MERGES, MODEL, PRE, TOKENS, TYPES, TokenType, check_size
from ggufround.tokenizer.files import Files, at, content, read_bytes
from ggufround.tokenizer.pretokenizers import byte_letters
from ggufround.tokenizer.spec import Vocab
from ggufround.tokenizer.special import special_fields

KIMI, KIMI_PRE = "tiktoken.model", "kimi-k2"
RESERVED = 256  # ids after the file's that Kimi's code keeps for special tokens, named or not
LONGEST = 1024  # bytes of a token


def load_kimi(files: Files, pre: str | None, vocab_size: int | None) -> Vocab | None:
    """None where there is no tiktoken.model. What llama.cpp's converter makes of it (conversion/deepseek.py)."""
    path = files.paths.get(KIMI)
    if path is None:
        return None
    ranks = read_ranks(read_bytes(path), str(path))
    size = check_size(len(ranks) + RESERVED if vocab_size is None else vocab_size, str(path))
    if len(ranks) > size:
        raise InputError(f"{path}: {len(ranks)} tokens, but the model has {size}")
    letters = byte_letters()

    def shown(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    tokens = [shown(token) for token in ranks]
    types = [TokenType.NORMAL] * len(tokens)
    named = at(files.config, "added_tokens_decoder")
    for number in range(len(ranks), min(size, len(ranks) + RESERVED)):
        text = content(at(named, str(number)))
        tokens.append(f"<|reserved_token_{number}|>" if text is None else text)
        types.append(TokenType.CONTROL)
    tokens += [f"[PAD{number}]" for number in range(len(tokens), size)]
    types += [TokenType.UNUSED] * (size - len(types))
    merges = [" ".join(map(shown, pair)) for token in ranks if (pair := parts(token, ranks)) is not None]
    name = pre or KIMI_PRE
    fields = {
        MODEL: string("gpt2"),
        PRE: string(name),
        TOKENS: array(Kind.STRING, tokens),
        TYPES: array(Kind.I32, types),
        MERGES: array(Kind.STRING, merges),
    }
    return Vocab("gpt2", name, size, fields | special_fields(files))


def read_ranks(data: bytes, where: str) -> dict[bytes, int]:
    """Tokens by rank, from lines of base64 and a number. InputError unless the ranks count from 0."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines()):
        try:
            text, rank = line.split()
            token = binascii.a2b_base64(text, strict_mode=True)
            sound = int(rank) == number and 0 < len(token) <= LONGEST and token not in ranks
        except ValueError:
            sound = False
        if not sound:
            raise InputError(f"{where}: line {number + 1} is no token of its own with the rank {number}")
        ranks[token] = number
    return ranks


def parts(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that are joined to this one; None for a byte, and for a token that no joints lead to."""
    limit = ranks[token]
    found = [token[i : i + 1] for i in range(len(token))]
    while len(found) > 1:
        joints = [ranks.get(left + right, inf) for left, right in zip(found, found[1:], strict=False)]
        least = min(joints)
        if least >= limit:
            break
        at = joints.index(least)
        found[at : at + 2] = [found[at] + found[at + 1]]
    return (found[0], found[1]) if len(found) == 2 else None
