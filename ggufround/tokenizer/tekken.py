"""Mistral's own tokenizer file, tekken.json, where no tokenizer.json stands beside it.

Token ids are the special tokens, then the ranks of a byte-level BPE. It has no merges; the two parts of a token are
found among the pairs of tokens that make it up, each such pair being a merge, the lower ranks first. Matched:
_set_vocab_mistral of llama.cpp's converter (which needs mistral-common for it).
"""

from __future__ import annotations

from base64 import b64decode
from typing import Any

from ggufround.errors import InputError
from ggufround.gguf_file import Field, Kind, array, boolean, string, u32
from ggufround.tokenizer.bpe import ADD_BOS, ADD_EOS, MERGES, MODEL, PRE, SCORES, TOKENS, TYPES, TokenType, check_size
from ggufround.tokenizer.files import Files, at, items, read_json
from ggufround.tokenizer.pretokenizers import byte_letters
from ggufround.tokenizer.spec import Vocab
from ggufround.tokenizer.special import ID_KEYS, TEMPLATE, special_fields

FILE = "tekken.json"
# the special tokens of files that do not list them, by id
FIRST = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
NAMED = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
TEMPLATES = {"v3": "mistral-v3-tekken", "v7": "mistral-v7-tekken"}  # llama.cpp's names for its built-in ones


def load_tekken(files: Files, vocab_size: int | None) -> Vocab | None:
    """None where there is no tekken.json, and where a tokenizer.json says the same."""
    if FILE not in files.paths or "tokenizer.json" in files.paths:
        return None
    document = read_json(files.paths, FILE)
    where = str(files.paths[FILE])
    specials = _specials(document, where)
    stated = at(document, "config", "default_vocab_size")
    count = check_size(stated if isinstance(stated, int) else 0, where)
    ranks = _ranks(items(document, "vocab"), count - len(specials), where)
    size = check_size(count if vocab_size is None else vocab_size, where)
    if count > size:
        raise InputError(f"{where} has {count} tokens, but the model's vocabulary {size}; it is another model's")
    letters = byte_letters()
    written = {token: "".join(letters[byte] for byte in token) for token in ranks}
    padding = [f"[PAD{number}]" for number in range(count, size)]
    types = [TokenType.CONTROL] * len(specials) + [TokenType.NORMAL] * len(ranks) + [TokenType.UNUSED] * len(padding)
    ids = {kind: specials.index(text) for kind, text in NAMED.items() if text in specials}
    ids.setdefault("pad", ids["eos"])
    fields: dict[str, Field] = {
        MODEL: string("gpt2"),
        PRE: string("tekken"),
        MERGES: array(Kind.STRING, [f"{written[left]} {written[right]}" for left, right in _merges(ranks, where)]),
        **{ID_KEYS[kind]: u32(ids[kind]) for kind in NAMED},
        TOKENS: array(Kind.STRING, [*specials, *written.values(), *padding]),
        SCORES: array(Kind.I32, [0] * size),
        TYPES: array(Kind.I32, [int(kind) for kind in types]),
        ADD_BOS: boolean(True),
        ADD_EOS: boolean(False),
    }
    template = special_fields(files).get(TEMPLATE)
    version = str(at(document, "config", "version"))
    if template is None and version in TEMPLATES:
        template = string(TEMPLATES[version])
    if template is not None:
        return Vocab("gpt2", "tekken", size, fields | {TEMPLATE: template})
    note = f"no chat template: the checkpoint has none, and llama.cpp none for tekken's version {version}"
    return Vocab("gpt2", "tekken", size, fields, notes=(note,))


def as_document(files: Files) -> dict[str, Any]:
    """The tokenizer.json that cuts text as tekken.json does."""
    vocab = load_tekken(files, None)
    assert vocab is not None
    tokens, types = vocab.metadata[TOKENS].value, vocab.metadata[TYPES].value
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    pattern = {"Regex": at(read_json(files.paths, FILE), "config", "pattern")}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    cut = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": text, **flags}
            for number, (text, kind) in enumerate(zip(tokens, types, strict=True))
            if kind == TokenType.CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, level]},
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "vocab": {text: number for number, text in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in vocab.metadata[MERGES].value],
        },
    }


def _specials(document: Any, where: str) -> list[str]:
    """The special tokens by id: listed, or those of all early files, and stand-ins up to their stated number."""
    listed = items(document, "special_tokens")
    found = dict(enumerate(FIRST))
    if listed:
        found = {rank: at(token, "token_str") for token in listed if isinstance(rank := at(token, "rank"), int)}
    count = at(document, "config", "default_num_special_tokens")
    check_size(count if isinstance(count, int) else 0, where)
    specials = [found.get(number, f"<SPECIAL_{number}>") for number in range(count)]
    if (
        len(found) > count
        or len(found) < len(listed)
        or not all(isinstance(text, str) for text in specials)
        or len(set(specials)) < count
    ):
        raise InputError(f"{where}: its special tokens are not {count} texts, each with an id of its own")
    if absent := [text for kind, text in NAMED.items() if text not in specials and kind != "pad"]:
        raise InputError(f"{where} has no special token {absent[0]}")
    return specials


def _ranks(vocab: list[Any], count: int, where: str) -> dict[bytes, int]:
    """The bytes of each token, in the order of their ids."""
    ranks: dict[bytes, int] = {}
    try:
        for number, token in enumerate(vocab[: max(count, 0)]):
            ranks[b64decode(token["token_bytes"], validate=True)] = number
            if token["rank"] != number or (number < 256 and bytes([number]) not in ranks):
                raise ValueError(f"rank {number} stands for something else")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: its vocabulary is not a list of ranked bytes: {error}") from error
    if not 256 <= len(ranks) == count:
        raise InputError(f"{where}: config.default_vocab_size promises {count} tokens of bytes, {len(ranks)} are there")
    return ranks


def _merges(ranks: dict[bytes, int], where: str) -> list[tuple[bytes, bytes]]:
    merges = []
    for token, rank in ranks.items():
        if rank < 256:
            continue
        parts = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        if not parts:
            raise InputError(f"{where}: the token {token!r:.60} is not made of two others")
        merges += sorted(parts, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges
