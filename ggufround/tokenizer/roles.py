"""Byte-level BPE of families whose files leave open, or tell wrongly, which tokens begin and end a text or a turn."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ggufround.errors import InputError
from ggufround.gguf_file import u32
from ggufround.tokenizer.bpe import load_bpe
from ggufround.tokenizer.files import Files, read_json
from ggufround.tokenizer.spec import Vocab
from ggufround.tokenizer.special import ID_KEYS

GLM = {"bos": "[gMASK]", "eot": "<|user|>", "unk": "<|endoftext|>", "eom": "<|observation|>"}
GLM4 = {"eos": "<|endoftext|>", "eot": "<|user|>", "unk": "<|endoftext|>", "bos": "<|endoftext|>"}

load_glm = partial(load_bpe, roles=GLM)
load_glm4 = partial(load_bpe, roles=GLM4)


def load_hunyuan(files: Files, pre: str | None, vocab_size: int | None) -> Vocab | None:
    """config.json tells the end of a text, the first of several in generation_config.json the end of a turn."""
    vocab = load_bpe(files, pre, vocab_size)
    ends = (read_json(files.paths, "generation_config.json") or {}).get("eos_token_id")
    found = {
        "eos": files.model.get("eod_token_id"),
        "eot": ends[0] if isinstance(ends, list) and len(ends) > 1 else None,
    }
    fields = {}
    for role, number in found.items():
        if number is not None:
            if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 32:
                raise InputError(f"the id of the {role} token is {number!r:.60}; a token id is a whole number")
            fields[ID_KEYS[role]] = u32(number)
    return vocab and replace(vocab, metadata={**vocab.metadata, **fields})
