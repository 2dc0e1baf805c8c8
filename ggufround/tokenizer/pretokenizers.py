"""Which of llama.cpp's pre-tokenizers cuts text as this tokenizer does: `tokenizer.ggml.pre` of a BPE vocabulary.

llama.cpp's loader knows a fixed list of pre-tokenizers by name, and its converter finds the name by a fingerprint: the
hash of the token ids of one fixed text. A fine-tune that adds tokens or a bos token has other ids, and the converter
gives up. Here the name is found in this order:

1. the user's own choice (`--pre`);
2. the fingerprint, of the ids as AutoTokenizer gives them; and then with and without the special tokens around
   them, since these say nothing about how text is cut;
3. the structure: the regular expressions of tokenizer.json's pre-tokenizer, in order, looked up among those that
   the C++ code of llama.cpp implements (STRUCTURES). llama.cpp splits by each expression in turn and keeps what
   lies between the matches, as `Split` with behaviour Isolated does;
4. else the tokenizer is refused, and the nearest structures are named.

The check text needs few tokens: a byte-level BPE can only ever produce substrings of the text's bytes, so a model
cut down to the vocabulary and merges that are such substrings gives the same ids, in a tenth of the time.
"""

from __future__ import annotations

import json
import unicodedata
from difflib import SequenceMatcher, get_close_matches
from hashlib import sha256
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from ggufround.errors import InputError, UnsupportedError, UsageError
from ggufround.tokenizer.files import at, items, steps
from ggufround.tokenizer.hugging_face import HuggingFace
from ggufround.tokenizer.pretokenizers_table import CHECK_TEXT, FINGERPRINTS, NAMES

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_CASED_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4O = f"{_CASED[0]}{_CONTRACTION}?|{_CASED[1]}{_CONTRACTION}?|\\p{{N}}{{1,3}}{_CASED_TAIL}"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_BLOOM_STOPS = ".,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c"


SPACES, FALLBACK, NO_BYTES = "<spaces as U+2581>", "<byte fallback>", "<no ByteLevel>"


class Structure(NamedTuple):
    """A row: llama.cpp's name for text split by these expressions in turn, as tokenizer.json writes them; <...> stands
    for a step that is no expression."""

    name: str
    splits: tuple[str, ...]
    ignore_merges: bool | None = None  # the flag of the model, where two names differ in nothing else


STRUCTURES = (
    Structure("gpt-2", (GPT2,)),
    Structure("smollm", (r"\p{N}", GPT2)),
    Structure("llama-bpe", (_LLAMA3,), True),
    Structure("smaug-bpe", (_LLAMA3,), False),
    Structure("qwen2", (_QWEN2,)),
    Structure(
        "qwen35",
        (
            _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    Structure("ufakzeka", (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL,)),
    Structure("laguna", (r"[^\n]+|[\n]+", _QWEN2)),
    Structure("minicpm5", (r"\p{N}{1,3}", _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+" + _TAIL)),
    Structure(
        "jais-2",
        (
            _LLAMA3.removesuffix(r"\s+(?!\S)|\s+")
            + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
            + r"|\s{1,2}(?!\S)|\s{1}",
        ),
    ),
    Structure(
        "seed-coder",
        (_CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",),
    ),
    Structure(
        "bailingmoe",
        (
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
            r"|\s+(?!\S)|\s+",
        ),
    ),
    Structure("gpt-4o", (_GPT4O,)),
    Structure("tekken", (f"{_CASED[0]}|{_CASED[1]}|\\p{{N}}{_CASED_TAIL}",)),
    Structure("deepseek-v3", (r"\p{N}{1,3}", _CJK, _DEEPSEEK3)),
    Structure(
        "deepseek-coder",
        ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}"),
    ),
    Structure("bloom", (f" ?[^(\\s|[{_BLOOM_STOPS}])]+",)),
    Structure("gemma4", (SPACES, FALLBACK, NO_BYTES)),  # also Gemma 3's tokenizer.json
    Structure("viking", (f" ?[^(\\s|[{_BLOOM_STOPS}])]+", r"\p{N}")),
)

# spellings of one and the same expression
_SAME = (
    (r"'(?i:[sdmt]|ll|ve|re)|", _CONTRACTION + "|"),
    ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _CONTRACTION),
    (r"\p{N}{1}|", r"\p{N}|"),
    ("\r", r"\r"),
    ("\n", r"\n"),
)


class Found(NamedTuple):
    pre: str
    note: str | None  # how it was found, if not by llama.cpp's own way
    by_structure: bool = False


def check_name(pre: str) -> str:
    """`pre` if llama.cpp's loader knows it, else UsageError with the nearest names."""
    if pre in NAMES:
        return pre
    near = get_close_matches(pre, NAMES, 3, 0.4) or sorted(NAMES)
    raise UsageError(f"llama.cpp knows no pre-tokenizer {pre!r}; did you mean {', '.join(near)}?")


def find_pre(tokenizer: HuggingFace, pre: str | None = None) -> Found:
    """tokenizer.ggml.pre for a BPE tokenizer. UnsupportedError where llama.cpp has no such pre-tokenizer."""
    if pre is not None:
        return Found(check_name(pre), "pre-tokenizer given by the user")
    asked: list[str] = []
    for ids, how in fingerprinted(tokenizer):
        asked.append(fingerprint(ids))
        if (name := FINGERPRINTS.get(asked[-1])) in NAMES:
            assert name is not None
            return Found(name, how)
    splits = structure(tokenizer.document)
    ignore = bool(at(tokenizer.document, "model", "ignore_merges"))
    for row in STRUCTURES:
        if tuple(map(_plain, row.splits)) == splits and row.ignore_merges in (None, ignore):
            return Found(row.name, f"pre-tokenizer {row.name} found by its structure: its fingerprint is new", True)
    raise UnsupportedError(
        f"llama.cpp has no pre-tokenizer like that of {tokenizer.source} (fingerprint {asked[0][:12]}...): "
        f"it splits by {_shown(splits)}; nearest are {', '.join(nearest(splits))}. "
        "If one of them cuts text in the same way, name it with --pre"
    )


def fingerprint(ids: list[int]) -> str:
    return sha256(str(ids).encode()).hexdigest()


def fingerprinted(tokenizer: HuggingFace) -> list[tuple[list[int], str | None]]:
    """The ids of the check text that are worth a look in the table, AutoTokenizer's own first."""
    model = cut_down(tokenizer)
    bare = model.encode(CHECK_TEXT, add_special_tokens=False).ids
    bos, eos = (tokenizer.id_of(tokenizer.specials.get(key)) for key in ("bos_token", "eos_token"))
    front, back = [] if bos is None else [bos], [] if eos is None else [eos]
    if tokenizer.adds is None:
        own = model.encode(CHECK_TEXT).ids
    else:
        own = front * tokenizer.adds[0] + bare + back * tokenizer.adds[1]
    other = "pre-tokenizer found by its fingerprint, with other special tokens around the text than the tokenizer adds"
    candidates = [(own, None), *((ids, other) for ids in (bare, front + bare, front + bare + back))]
    return [(ids, how) for i, (ids, how) in enumerate(candidates) if all(ids != seen for seen, _ in candidates[:i])]


def cut_down(tokenizer: HuggingFace) -> Tokenizer:
    """A tokenizer that encodes the check text as the whole one does, with only the tokens that can occur in it."""
    document = tokenizer.document
    model = dict(document["model"])
    if (reach := _reach(document)) is not None:
        vocab = {token: number for token, number in tokenizer.vocab.items() if token in reach}
        vocab |= {token: row.id for token, row in tokenizer.added.items()}
        model["merges"] = [
            pair for pair in tokenizer.merges if pair[0] in vocab and pair[1] in vocab and pair[0] + pair[1] in vocab
        ]
        model |= {"vocab": vocab, "unk_token": None}
    flags = {str(at(token, "content")): token for token in items(document, "added_tokens")}
    added = [
        {"single_word": False, "lstrip": False, "rstrip": False}
        | flags.get(token, {})
        | {"content": token, **row._asdict()}
        for token, row in sorted(tokenizer.added.items(), key=lambda item: item[1].id)
    ]
    return load(tokenizer, document | {"model": model, "added_tokens": added})


def load(tokenizer: HuggingFace, document: dict[str, Any]) -> Tokenizer:
    """The `tokenizers` object for a document; it neither truncates nor pads, as AutoTokenizer has it."""
    try:
        return Tokenizer.from_str(json.dumps(document | {"truncation": None, "padding": None}))
    except Exception as error:  # tokenizers raises Exception itself
        raise InputError(f"{tokenizer.source} is no tokenizer that `tokenizers` can load: {error}") from error


def structure(document: dict[str, Any]) -> tuple[str, ...]:
    """The expressions by which tokenizer.json splits, in order; a step that is no expression appears as <...>."""
    splits = []
    for step in steps(at(document, "normalizer"), "normalizers"):
        if step.get("type") == "Replace" and (at(step, "pattern", "String"), at(step, "content")) == (" ", "\u2581"):
            splits.append(SPACES)
        elif step.get("type") != "NFC":  # llama.cpp normalizes nothing; text mostly is NFC already
            splits.append(f"<{step.get('type')}>")
    if at(document, "model", "byte_fallback"):
        splits.append(FALLBACK)
    byte_level = False
    for step in steps(at(document, "pre_tokenizer"), "pretokenizers"):
        kind = at(step, "type")
        if SPACES in splits and kind == "Split" and at(step, "pattern", "String") == " ":
            continue  # no space is left
        if byte_level:
            splits.append(f"<{kind} after ByteLevel>")
        elif kind == "Digits":
            splits.append(r"\p{N}" if at(step, "individual_digits") else r"\p{N}+")
        elif kind == "ByteLevel":
            byte_level = True
            if at(step, "add_prefix_space") is not False:
                splits.append("<ByteLevel with add_prefix_space>")
            if at(step, "use_regex") is not False:
                splits.append(GPT2)
        elif kind == "Split" and isinstance(pattern := at(step, "pattern", "Regex"), str):
            how = (at(step, "behavior"), bool(at(step, "invert")))
            # matches kept and gaps removed is the same where the expression leaves no gap
            kept = how == ("Isolated", False) or (how == ("Removed", True) and pattern.endswith(r"|\s+"))
            splits.append(_plain(pattern) if kept else f"<Split {how[0]}: {pattern}>")
        else:
            splits.append(f"<{kind}>")
    return (*splits, *(() if byte_level else (NO_BYTES,)))


def nearest(splits: tuple[str, ...]) -> list[str]:
    """Names of the three structures whose expressions look most alike, the nearest first."""
    wanted = "\0".join(splits)
    likeness = {
        row.name: SequenceMatcher(None, wanted, "\0".join(map(_plain, row.splits)), autojunk=False).ratio()
        for row in STRUCTURES
    }
    return sorted(likeness, key=lambda name: -likeness[name])[:3]


def byte_letters() -> dict[int, str]:
    """Byte -> the character that stands for it in a byte-level vocabulary (GPT-2's bytes_to_unicode)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = (byte for byte in range(256) if byte not in shown)
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def _reach(document: dict[str, Any]) -> str | None:
    """A string that every token of the encoded check text is a part of; None where that is not known."""
    model = document["model"]
    normalizers = {str(at(step, "type")) for step in steps(document.get("normalizer"), "normalizers")}
    kinds = {str(at(step, "type")) for step in steps(document.get("pre_tokenizer"), "pretokenizers")}
    odd = any(at(model, key) for key in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"))
    if at(model, "type") != "BPE" or odd or normalizers - {"NFC"} or "ByteLevel" not in kinds:
        return None
    text = unicodedata.normalize("NFC", CHECK_TEXT) if normalizers else CHECK_TEXT
    letters = byte_letters()
    return "".join(letters[byte] for byte in (" " + text).encode())


def _plain(pattern: str) -> str:
    for spelling, plain in _SAME:
        pattern = pattern.replace(spelling, plain)
    return pattern


def _shown(splits: tuple[str, ...]) -> str:
    text = ", then ".join(splits)
    return text if len(text) < 300 else text[:300] + "..."
