"""RWKV's "world" vocabulary ("rwkv"): rwkv_vocab_v20230424.txt, a line a token: id, Python literal, bytes.

Matched: _set_vocab_rwkv_world of llama.cpp's converter; a token is written as Python shows its bytes.
"""

from __future__ import annotations

import ast

from ggufround.errors import InputError
from ggufround.gguf_file import Kind, array, string, u32
from ggufround.tokenizer.bpe import MODEL, TOKENS, TYPES, TokenType, check_size
from ggufround.tokenizer.files import Files, read_text
from ggufround.tokenizer.spec import Vocab
from ggufround.tokenizer.special import ID_KEYS, TEMPLATE, special_fields

FILE = "rwkv_vocab_v20230424.txt"
SIZE = 65536  # where config.json does not say
BLANK_LINE = 261  # two line feeds: what ends a turn
# llama.cpp names its own template for these models so where it finds this name in a template
ROLES = "{'system': 'System', 'user': 'User', 'assistant': 'Assistant'}"
CHAT = (
    f"{{#- rwkv-world -#}}{{{{- bos_token -}}}}{{%- set names = {ROLES} -%}}{{%- for m in messages -%}}"
    "{{- names.get(m['role'], 'User') + ': ' + m['content']|trim + '\\n\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)


def load_rwkv(files: Files, vocab_size: int | None) -> Vocab | None:
    """None where the vocabulary's file is not there."""
    path = files.paths.get(FILE)
    if path is None:
        return None
    lines = read_text(path).removesuffix("\n").split("\n")
    tokens, types = ["<s>"], [int(TokenType.CONTROL)]
    for number, line in enumerate(lines, 1):
        tokens.append(repr(_token(line, f"{path}, line {number}"))[2:-1])
        types.append(int(TokenType.NORMAL))
    size = check_size(SIZE if vocab_size is None else vocab_size, str(path))
    if len(tokens) > size:
        raise InputError(f"{path} has {len(tokens)} tokens, but the model's vocabulary {size}; it is another model's")
    types += [int(TokenType.UNUSED)] * (size - len(tokens))
    tokens += [f"[PAD{number}]" for number in range(len(tokens), size)]
    fields = {
        MODEL: string("rwkv"),
        TOKENS: array(Kind.STRING, tokens),
        TYPES: array(Kind.I32, types),
    }
    special = special_fields(files, preset={"eot": BLANK_LINE, "bos": 0, "eos": 0})
    special |= {ID_KEYS[kind]: u32(0) for kind in ("bos", "eos")}  # what config.json says of them is wrong
    special.setdefault(TEMPLATE, string(CHAT))
    return Vocab("rwkv", "default", size, fields | special)


def _token(line: str, where: str) -> bytes:
    """The bytes of `ID LITERAL LENGTH`; the literal is a string or bytes, and may hold spaces."""
    parts = line.split(" ")
    literal, length = " ".join(parts[1:-1]), parts[-1]
    try:
        if len(line) > 4096:
            raise ValueError("too long")
        value = ast.literal_eval(literal)
        token = value.encode() if isinstance(value, str) else value
        if not isinstance(token, bytes) or len(token) != int(length):
            raise ValueError("the length is another")
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(f"{where} is no token of an RWKV vocabulary: {line[:60]!r}") from error
    return token
