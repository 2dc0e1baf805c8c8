"""tokenizer.json (or vocab.json with merges.txt) as transformers' AutoTokenizer sees it, without transformers.

llama.cpp's converter reads a BPE vocabulary through AutoTokenizer, which lays the tokens and flags of
tokenizer_config.json (or, in checkpoints older than its `added_tokens_decoder`, special_tokens_map.json and
added_tokens.json) over those of tokenizer.json, adds special tokens that are nowhere else, and for some classes
builds the post-processor anew from add_bos_token and add_eos_token. What follows does the same (transformers 4.57,
the version that llama.cpp pins: tokenization_utils_base.py and tokenization_utils_fast.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ggufround.errors import InputError
from ggufround.tokenizer.files import Files, at, content, items, read_json, read_text, table

SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MAX_ID = 1 << 22  # ids and vocabularies beyond it are damage: the largest known vocabulary has 2^20 tokens


class Added(NamedTuple):
    id: int
    special: bool
    normalized: bool


class TokenizerClass(NamedTuple):
    """What a class of transformers assumes where the files are silent."""

    specials: Mapping[str, str]
    adds: tuple[bool, bool] | None = None  # (bos, eos) that its own post-processor adds; None: it keeps the file's
    files: str = ""  # a key of BARE: how vocab.json with merges.txt is pre-tokenized


_ENDOFTEXT = "<|endoftext|>"
_GPT2 = {"bos_token": _ENDOFTEXT, "eos_token": _ENDOFTEXT, "unk_token": _ENDOFTEXT}
_LLAMA = TokenizerClass({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, (True, False))
_QWEN2 = TokenizerClass({"eos_token": _ENDOFTEXT, "unk_token": _ENDOFTEXT, "pad_token": _ENDOFTEXT}, None, "qwen2")
_BERT = TokenizerClass(
    {f"{key}_token": f"[{key.upper()}]" for key in ("unk", "sep", "pad", "cls", "mask")},
)
_ROBERTA = TokenizerClass(
    {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>",
        "cls_token": "<s>", "mask_token": "<mask>",
    }
)  # fmt: skip
_OTHER = TokenizerClass({})
CLASSES = {
    "BertTokenizer": _BERT,
    "DistilBertTokenizer": _BERT,
    "RobertaTokenizer": _ROBERTA,
    "XLMRobertaTokenizer": _ROBERTA,
    "CamembertTokenizer": _ROBERTA,
    "T5Tokenizer": TokenizerClass({"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}),
    "LlamaTokenizer": _LLAMA,
    "CodeLlamaTokenizer": _LLAMA,
    "GemmaTokenizer": TokenizerClass(
        {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}, (True, False)
    ),
    "CohereTokenizer": TokenizerClass(
        {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "unk_token": "<UNK>"}, (True, False)
    ),
    "GPTNeoXTokenizer": TokenizerClass(_GPT2, (False, False)),
    "GPT2Tokenizer": TokenizerClass(_GPT2, None, "gpt2"),
    "Qwen2Tokenizer": _QWEN2,
}

# AutoTokenizer's choice by model_type where no file names a class
MODEL_CLASSES = {
    "llama": "LlamaTokenizer", "mistral": "LlamaTokenizer", "mixtral": "LlamaTokenizer", "phi3": "LlamaTokenizer",
    "qwen2": "Qwen2Tokenizer", "qwen2_moe": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer", "qwen3_moe": "Qwen2Tokenizer",
    "gemma": "GemmaTokenizer", "gemma2": "GemmaTokenizer", "gemma3": "GemmaTokenizer", "gemma3_text": "GemmaTokenizer",
    "granite": "GPT2Tokenizer", "granitemoe": "GPT2Tokenizer", "gpt2": "GPT2Tokenizer", "olmo2": "GPTNeoXTokenizer",
    "bert": "BertTokenizer", "distilbert": "DistilBertTokenizer", "roberta": "RobertaTokenizer", "t5": "T5Tokenizer",
    "xlm-roberta": "XLMRobertaTokenizer", "camembert": "CamembertTokenizer", "mt5": "T5Tokenizer",
}  # fmt: skip

# transformers' own converters from the slow classes: normalizer and pre-tokenizer of a bare vocab.json
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BARE: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "gpt2": (None, {**_BYTES, "use_regex": True}),
    "qwen2": (
        {"type": "NFC"},
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _QWEN2_SPLIT}, "behavior": "Isolated", "invert": False},
                {**_BYTES, "use_regex": False},
            ],
        },
    ),
}


@dataclass(frozen=True)
class HuggingFace:
    """`vocab` is the model's own, token to id; `added` the added tokens, whose ids may lie inside it."""

    source: Path
    document: dict[str, Any]  # tokenizer.json
    config: dict[str, Any]  # tokenizer_config.json
    vocab: dict[str, int]
    merges: list[Sequence[str]]  # pairs
    added: dict[str, Added]
    specials: dict[str, str]  # "bos_token" -> "<s>"; the named special tokens, and "additional0", ...
    adds: tuple[bool, bool] | None  # as in TokenizerClass, the files' own flags applied

    @property
    def size(self) -> int:
        """Tokens in all, as len(tokenizer.vocab)."""
        return len(self.vocab) + sum(token not in self.vocab for token in self.added)

    def id_of(self, token: str | None) -> int | None:
        if token is None:
            return None
        return self.added[token].id if token in self.added else self.vocab.get(token)


def load_hugging_face(files: Files) -> HuggingFace | None:
    """None where there is neither tokenizer.json nor vocab.json with merges.txt."""
    config = files.config or {}
    name = config.get("tokenizer_class") or files.model.get("tokenizer_class")
    name = name or MODEL_CLASSES.get(str(files.model.get("model_type")))
    cls = CLASSES.get(str(name).removesuffix("Fast"), _OTHER)
    document = files.tokenizer
    source = files.paths.get("tokenizer.json") or files.paths.get("vocab.json")
    if document is None:
        if source is None or "merges.txt" not in files.paths:
            return None
        document = _from_bare_files(files, cls)
    assert source is not None
    vocab = _vocab(at(document, "model", "vocab"), source)
    merges = _merges(items(document, "model", "merges"), source)
    legacy = "added_tokens_decoder" not in config
    named = config | (files.specials or {}) if legacy else config
    specials = {key: text for key in SPECIALS if (text := content(named.get(key, cls.specials.get(key))))}
    extra = [text for token in items(named, "additional_special_tokens") if (text := content(token))]
    specials |= {f"additional{i}": text for i, text in enumerate(extra)}
    adds = cls.adds
    if adds is not None:
        given = (config.get("add_bos_token"), config.get("add_eos_token"))
        adds = (adds[0] if given[0] is None else bool(given[0]), adds[1] if given[1] is None else bool(given[1]))
    added = _added(items(document, "added_tokens"), source)
    if legacy:
        more = {
            text: Added(_id(number, text, source), text in specials.values(), text not in specials.values())
            for text, number in (files.added or {}).items()
            if text not in added
        }
    else:
        rows = table(config, "added_tokens_decoder").items()
        more = _added([table(token) | {"id": _whole(number)} for number, token in rows], source)
    more |= {text: Added(MAX_ID, True, False) for text in specials.values() if text not in added and text not in more}
    free = max([*vocab.values(), *(row.id for row in added.values())]) + 1
    for text, row in sorted(more.items(), key=lambda item: item[1].id):
        number = added[text].id if text in added else vocab.get(text, free)
        free = max(free, number + 1)
        added[text] = Added(number, row.special or text in specials.values(), row.normalized)
    return HuggingFace(source, document, config, vocab, merges, added, specials, adds)


def _vocab(vocab: Any, source: Path) -> dict[str, int]:
    if not isinstance(vocab, dict) or not vocab:
        raise InputError(f"{source}: the model's vocabulary must be an object of tokens and their ids")
    if set(map(type, vocab.values())) != {int} or min(vocab.values()) < 0 or max(vocab.values()) >= MAX_ID:
        raise InputError(f"{source}: token ids must be whole numbers from 0 to {MAX_ID - 1}")
    return vocab


def _merges(merges: list[Any], source: Path) -> list[Sequence[str]]:
    """Both forms that tokenizer.json knows, "left right" and [left, right], as pairs."""
    if merges and set(map(type, merges)) == {str}:
        merges = [merge.split(" ") for merge in merges]
    if merges and (
        set(map(type, merges)) != {list}
        or set(map(len, merges)) != {2}
        or set(map(type, chain.from_iterable(merges))) != {str}
    ):
        raise InputError(f"{source}: every merge must be two tokens, in one string or in a list")
    return merges


def _added(tokens: list[Any], source: Path) -> dict[str, Added]:
    found = {}
    for token in tokens:
        text = content(token)
        if not isinstance(token, dict) or text is None:
            raise InputError(f"{source.parent}: an added token has no content: {str(token)[:80]}")
        special = bool(token.get("special", False))
        found[text] = Added(_id(token.get("id"), text, source), special, bool(token.get("normalized", not special)))
    return found


def _whole(number: str) -> int | str:
    return int(number) if number.isdecimal() and len(number) < 10 else number


def _id(number: Any, token: str, source: Path) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < MAX_ID:
        raise InputError(f"{source.parent}: token {token!r} has the id {number!r}; allowed are 0 to {MAX_ID - 1}")
    return number


def _from_bare_files(files: Files, row: TokenizerClass) -> dict[str, Any]:
    """What convert_slow_tokenizer makes of vocab.json and merges.txt."""
    normalizer, pre_tokenizer = BARE[row.files or "gpt2"]
    lines = read_text(files.paths["merges.txt"]).split("\n")
    pairs = [pair for line in lines if not line.startswith("#version") and len(pair := line.split()) == 2]
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": {**_BYTES, "use_regex": True},
        "decoder": {**_BYTES, "use_regex": True},
        "model": {"type": "BPE", "vocab": read_json(files.paths, "vocab.json"), "merges": pairs},
    }
