"""WordPiece vocabularies ("bert"): tokenizer.json, or the vocab.txt of older checkpoints.

llama.cpp has no "##": a piece that starts a word begins with U+2581 instead, and one that goes on has nothing in front
(`BertModel.set_vocab` of llama.cpp's converter). Its loader lowers the text and strips accents as two flags say,
and always drops control characters and cuts Chinese text into characters.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ggufround.errors import InputError
from ggufround.gguf_file import Kind, array, string, u32
from ggufround.tokenizer.bpe import MODEL, PRE, TOKENS, TYPES, TokenType, bpe_tokens, check_size, fit
from ggufround.tokenizer.files import Files, at, content, read_text, steps
from ggufround.tokenizer.hugging_face import load_hugging_face
from ggufround.tokenizer.pretokenizers import fingerprint, fingerprinted
from ggufround.tokenizer.pretokenizers_table import FINGERPRINTS
from ggufround.tokenizer.spec import Vocab
from ggufround.tokenizer.special import TOKEN_TYPES, special_fields

PREFIX = "##"
# what BertTokenizer assumes where tokenizer_config.json is silent
SPECIALS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


def load_wpm(files: Files, vocab_size: int | None) -> Vocab | None:
    """None where there is neither a tokenizer.json of this kind nor a vocab.txt."""
    kind = at(files.tokenizer, "model", "type")
    if files.tokenizer is None and "vocab.txt" in files.paths:
        files = _from_vocab_txt(files)
    elif kind != "WordPiece":
        return None
    tokenizer = load_hugging_face(files)
    assert tokenizer is not None
    model = tokenizer.document["model"]
    if model.get("continuing_subword_prefix", PREFIX) != PREFIX:
        raise InputError(
            f"{tokenizer.source}: pieces inside a word begin with {model['continuing_subword_prefix']!r}, and with "
            f"{PREFIX!r} only in what llama.cpp runs"
        )
    size = check_size(tokenizer.size if vocab_size is None else vocab_size, str(tokenizer.source))
    tokenizer, dropped = fit(tokenizer, size)
    tokens, types = bpe_tokens(tokenizer, size)
    ids = fingerprinted(tokenizer)[0][0]
    fields = {
        TOKEN_TYPES: u32(files.token_types),
        MODEL: string("bert"),
        PRE: string(FINGERPRINTS.get(fingerprint(ids), "default")),  # which llama.cpp does not look at
        TOKENS: array(Kind.STRING, [_phantom(*pair) for pair in zip(tokens, types, strict=True)]),
        TYPES: array(Kind.I32, types),
    }
    fields |= special_fields(files, limit=size)
    return Vocab("bert", "default", size, fields, notes=(*_unlike(tokenizer.document), *dropped))


def _phantom(token: str, kind: int) -> str:
    if kind == TokenType.CONTROL:
        return token
    return token.removeprefix(PREFIX) if token.startswith(PREFIX) else "\u2581" + token


def _unlike(document: dict[str, Any]) -> tuple[str, ...]:
    """What the tokenizer does otherwise than llama.cpp, which has no flags for it."""
    return tuple(
        f"the tokenizer's {flag} is off, which llama.cpp cannot say: some texts are cut otherwise there"
        for step in steps(at(document, "normalizer"), "normalizers")
        if at(step, "type") == "BertNormalizer"
        for flag in ("clean_text", "handle_chinese_chars")
        if at(step, flag) is False
    )


def _from_vocab_txt(files: Files) -> Files:
    """The tokenizer.json that transformers makes of vocab.txt, a token a line."""
    path = files.paths["vocab.txt"]
    lines = read_text(path).removesuffix("\n").split("\n")
    vocab = {token: number for number, token in enumerate(lines)}
    if len(vocab) != len(lines):
        twice = next(line for number, line in enumerate(lines) if vocab[line] != number)
        raise InputError(f"{path}: the token {twice!r} stands there twice")
    config = files.config or {}
    named = {key: content(config.get(key)) or text for key, text in SPECIALS.items()}
    cls, sep = named["cls_token"], named["sep_token"]
    if absent := [token for token in (named["unk_token"], cls, sep) if token not in vocab]:
        raise InputError(f"{path} has no token {absent[0]!r}, which the tokenizer needs")
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
        "strip_accents": config.get("strip_accents"),
        "lowercase": config.get("do_lower_case", True),
    }
    around = [{"SpecialToken": {"id": text, "type_id": 0}} for text in (cls, sep)]
    first, second = ({"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1)))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    document = {
        "version": "1.0",
        "added_tokens": [{"id": vocab[text], "content": text, **flags} for text in named.values() if text in vocab],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [around[0], first, around[1]],
            "pair": [around[0], first, around[1], second, around[1]],
            "special_tokens": {text: {"id": text, "ids": [vocab[text]], "tokens": [text]} for text in (cls, sep)},
        },
        "decoder": {"type": "WordPiece", "prefix": PREFIX, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": named["unk_token"],
            "continuing_subword_prefix": PREFIX,
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }
    return replace(files, tokenizer=document, config=named | config, paths={**files.paths, "tokenizer.json": path})
