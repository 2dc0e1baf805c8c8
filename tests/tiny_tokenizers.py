"""Tiny tokenizers of every kind, as the files of a checkpoint: deterministic, a few kilobytes each.

CASES is shared by the tests and by tools/make_tokenizer_goldens.py, which has llama.cpp's converter read them.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufround.checkpoint.spec import Checkpoint
from ggufround.tokenizer.pretokenizers import GPT2, STRUCTURES, byte_letters

TEXT = (
    "The quick brown fox can't jump over the lazy dog's 12345 kennels, they're 3.14 m wide.  Two  spaces\n\n"
    "def f(x):\n\treturn x ** 2  # squared\nнещо на Български 我想在apple工作1314151天 I'll make it, WE'VE seen "
    "the thing that the others think there is; then they thought of other things and the weather.\r\n"
) * 2
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPLITS = {row.name: row.splits for row in STRUCTURES}


@dataclass(frozen=True)
class Case:
    files: dict[str, bytes]
    config: dict[str, Any]
    order: tuple[str, ...] = ("spm", "llama_hf", "bpe")
    converter: str = "LlamaModel"  # llama.cpp's class
    pre: str | None = None

    def checkpoint(self, folder: Path) -> Checkpoint:
        """The case written to `folder`."""
        files = {name: folder / name for name in self.files}
        for name, data in self.files.items():
            files[name].parent.mkdir(parents=True, exist_ok=True)
            files[name].write_bytes(data)
        (folder / "config.json").write_text(json.dumps(self.config))
        return Checkpoint(str(folder), folder, {}, self.config, files)


def merges(words: list[str], count: int) -> list[tuple[str, str]]:
    """Byte-pair merges learnt from words of letters, the most frequent first, ties by text."""
    counts = Counter(words)
    pieces = {word: list(word) for word in counts}
    found = []
    for _ in range(count):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in zip(parts, parts[1:], strict=False):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        found.append(best)
        for parts in pieces.values():
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = ["".join(best)]
                i += 1
    return found


def byte_bpe(splits: tuple[str, ...], added: list[dict[str, Any]], count: int = 120, **more: Any) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE: 256 bytes, `count` merges of TEXT, then the added tokens."""
    letters = byte_letters()
    words = ["".join(letters[b] for b in (" " * (i > 0) + word).encode()) for i, word in enumerate(TEXT.split(" "))]
    pairs = merges(words, count)
    vocab = {letter: i for i, letter in enumerate(letters[b] for b in range(256))}
    for pair in pairs:
        vocab.setdefault("".join(pair), len(vocab))
    steps = [{"type": "Split", "pattern": {"Regex": r}, "behavior": "Isolated", "invert": False} for r in splits]
    model = {"type": "BPE", "dropout": None, "unk_token": None, "vocab": vocab, "merges": [list(p) for p in pairs]}
    free = iter(range(len(vocab), len(vocab) + len(added)))
    tokens = [{"id": next(free) if t["content"] not in vocab else vocab[t["content"]], **FLAGS, **t} for t in added]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": tokens,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, BYTE_LEVEL]},
        "post_processor": None,
        "decoder": {**BYTE_LEVEL, "use_regex": True},
    } | more | {"model": model | more.get("model", {})}  # fmt: skip


FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def token(content: str, special: bool = True, normalized: bool = False) -> dict[str, Any]:
    return {"content": content, "special": special, "normalized": normalized}


def named(content: str, special: bool = True, normalized: bool = False) -> dict[str, Any]:
    """A special token as tokenizer_config.json writes it when it has flags."""
    return {"__type": "AddedToken", **FLAGS, **token(content, special, normalized)}


def decoder_entries(document: dict[str, Any]) -> dict[str, Any]:
    """`added_tokens_decoder` of tokenizer_config.json, as transformers writes it beside a tokenizer.json."""
    return {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in document["added_tokens"]}


def template(start: tuple[str, int] | None, end: tuple[str, int] | None, middle: tuple[str, int] | None = None) -> Any:
    """A TemplateProcessing post-processor."""

    def special(t: tuple[str, int] | None, kind: int) -> list[Any]:
        return [{"SpecialToken": {"id": t[0], "type_id": kind}}] if t else []

    def sequence(name: str, kind: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": kind}}

    return {
        "type": "TemplateProcessing",
        "single": [*special(start, 0), sequence("A", 0), *special(end, 0)],
        "pair": [*special(start, 0), sequence("A", 0), *special(middle, 0), sequence("B", 1), *special(end, 1)],
        "special_tokens": {t[0]: {"id": t[0], "ids": [t[1]], "tokens": [t[0]]} for t in (start, end, middle) if t},
    }


def spm_model(pieces: list[tuple[str, float, int]]) -> bytes:
    """tokenizer.model: (text, score, type) a piece, then that it is a BPE (3: 2) with byte fallback (35: 1)
    and that its normalizer keeps extra spaces (4: 0)."""

    def block(number: int, data: bytes) -> bytes:
        size = len(data)
        head = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
        return bytes([number << 3 | 2]) + head + data

    return b"".join(
        block(1, block(1, text.encode()) + b"\x15" + struct.pack("<f", score) + (b"\x18" + bytes([kind])) * (kind != 1))
        for text, score, kind in pieces
    ) + block(2, b"\x18\x02\x98\x02\x01") + block(3, b"\x0a\x08identity\x20\x00")  # fmt: skip


def spm_pieces(count: int = 100) -> list[tuple[str, float, int]]:
    """As Llama 2's: unk, bos, eos, the bytes, merged pieces by rank, then letters; a few odd types at the end."""
    words = ["\u2581" + word for word in TEXT.replace("\n", " ").split()]
    ranked = list(dict.fromkeys("".join(pair) for pair in merges(words, count)))
    letters = sorted(set("".join(words)))
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(piece, -float(i), 1) for i, piece in enumerate(ranked + letters)]
    return [*pieces, ("[USER]", -7.5, 4), ("<unused7>", -8.5, 5), ("x" * 200, -9.25, 1)]


def llama_hf(added: list[dict[str, Any]]) -> dict[str, Any]:
    """tokenizer.json of a Llama 2: BPE over characters with byte fallback, spaces as U+2581."""
    words = ["\u2581" + word for word in TEXT.replace("\n", " ").split()]
    pairs = merges(words, 100)
    vocab = {piece: i for i, (piece, _, kind) in enumerate(spm_pieces()) if kind in (2, 3, 6)}
    for piece in ["".join(pair) for pair in pairs] + sorted(set("".join(words))):
        vocab.setdefault(piece, len(vocab))
    free = iter(range(len(vocab), len(vocab) + len(added)))
    tokens = [{"id": next(free) if t["content"] not in vocab else vocab[t["content"]], **FLAGS, **t} for t in added]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": tokens,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": template(("<s>", 1), None),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocab, "merges": [list(pair) for pair in pairs],
        },
    }  # fmt: skip


def dump(**files: Any) -> dict[str, bytes]:
    """JSON files by name, underscores for the dots of `tokenizer_json`."""
    return {
        name.replace("_json", ".json"): json.dumps(value, ensure_ascii=False).encode() for name, value in files.items()
    }


def _cases() -> dict[str, Case]:
    cases = {}
    end = "<|endoftext|>"

    gpt2 = byte_bpe((), [token(end)], pre_tokenizer={**BYTE_LEVEL, "use_regex": True}, post_processor=BYTE_LEVEL)
    size = 256 + 120 + 1
    cases["gpt2"] = Case(
        dump(tokenizer_json=gpt2, tokenizer_config_json={"tokenizer_class": "GPT2Tokenizer", "bos_token": end,
             "eos_token": end, "unk_token": named(end)}),
        {"vocab_size": size + 3, "pad_token_id": size - 1}, ("bpe",), "Olmo2Model",
    )  # fmt: skip
    cases["small granite"] = Case(
        cases["gpt2"].files, {"vocab_size": 49152, "bos_token_id": 0}, converter="GraniteModel"
    )

    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|reserved_special_token_0|>", "<extra>"]
    llama3 = byte_bpe(SPLITS["llama-bpe"], [token(n, n != "<extra>") for n in names], model={"ignore_merges": True})
    begin = llama3["added_tokens"][0]["id"]
    llama3["post_processor"] = {"type": "Sequence", "processors": [BYTE_LEVEL, template((names[0], begin), None)]}
    cases["llama 3"] = Case(
        dump(
            tokenizer_json=llama3,
            tokenizer_config_json={
                "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": names[0], "eos_token": names[2],
                "added_tokens_decoder": decoder_entries(llama3), "clean_up_tokenization_spaces": True,
                "chat_template": [
                    {"name": "default", "template": "{{ a }}"},
                    {"name": "tool_use", "template": "{{ b }}"},
                    {"name": "tool-rag", "template": "{{ c }}"},
                ],
            },
        ),
        {"vocab_size": begin + 6, "eos_token_id": [begin + 1, begin + 2], "bos_token_id": begin},
    )  # fmt: skip
    strings = json.loads(json.dumps(llama3))
    strings["model"]["merges"] = [" ".join(pair) for pair in strings["model"]["merges"]]
    strings["post_processor"] = template((names[0], begin), (names[1], begin + 1), (names[1], begin + 1))
    cases["another end token in the template"] = Case(
        dump(tokenizer_json=strings, tokenizer_config_json={"bos_token": named(names[0]), "eos_token": names[2],
             "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": None})
        | {"chat_template.jinja": b"unused"},
        {"vocab_size": begin + 5},
    )  # fmt: skip
    cases["no tokenizer_config"] = Case(
        dump(tokenizer_json=strings) | {"chat_template.jinja": b"unused"},
        {"vocab_size": begin + 9, "model_type": "llama"},
    )
    roberta = json.loads(json.dumps(llama3))
    roberta["post_processor"] = {"type": "RobertaProcessing", "sep": [names[1], begin + 1], "cls": [names[0], begin],
                                 "trim_offsets": True, "add_prefix_space": False}  # fmt: skip
    roberta["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "StripAccents"}]}
    cases["roberta processor, normalizer flags"] = Case(
        dump(tokenizer_json=roberta, tokenizer_config_json={"tokenizer_class": "PreTrainedTokenizerFast",
             "add_bos_token": False, "mask_token": names[3]}),
        {"vocab_size": begin + 5}, ("bpe",), "Olmo2Model", "llama-bpe",
    )  # fmt: skip
    template_pair = json.loads(json.dumps(llama3))
    template_pair["post_processor"] = template(None, None, (names[1], begin + 1))
    cases["separator between pairs"] = Case(
        dump(tokenizer_json=template_pair, tokenizer_config_json={"tokenizer_class": "PreTrainedTokenizerFast",
             "eos_token": names[1], "cls_token": names[0]}),
        {"vocab_size": begin + 5}, ("bpe",), "Olmo2Model",
    )  # fmt: skip

    chat = [token(end), token("<|im_start|>"), token("<|im_end|>"), token("<tool_call>", False),
            token("<think>", False, True), token("<|box|>", False)]  # fmt: skip
    qwen2 = byte_bpe(SPLITS["qwen2"], chat, normalizer={"type": "NFC"}, post_processor=BYTE_LEVEL)
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder_entries(qwen2), "bos_token": None,
              "eos_token": "<|im_end|>", "pad_token": end, "unk_token": None, "add_bos_token": False,
              "add_prefix_space": False, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}  # fmt: skip
    jinja = b"{% for m in messages %}\r\n{{ m }}\n{% endfor %}"
    cases["qwen 2"] = Case(
        dump(tokenizer_json=qwen2, tokenizer_config_json=config)
        | {"chat_template.jinja": jinja, "additional_chat_templates/tool.jinja": b"{{ t }}"},
        {"vocab_size": 400, "bos_token_id": 376, "eos_token_id": 378}, ("spm", "bpe"), "Qwen2Model",
    )  # fmt: skip
    config = config | {"added_tokens_decoder": {"380": {**FLAGS, **token("<think>", True)},
                       "382": {**FLAGS, **token("<late>", False)}}, "unk_token": "<unk>"}  # fmt: skip
    cases["tokens only in tokenizer_config"] = Case(
        dump(tokenizer_json=qwen2, tokenizer_config_json=config, chat_template_json={"chat_template": "{{ j }}"}),
        {"vocab_size": 400}, ("spm", "bpe"), "Qwen3Model",
    )  # fmt: skip

    deep = ["<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"]
    odd = [
        token(deep[0]),
        token(deep[1]),
        token("\u0120caf\u00c3\u00a9", False),
        token("\u2581\u2581x", False, True),
        token("\u00ff", False),
    ]
    deepseek = byte_bpe(SPLITS["deepseek-v3"], odd, post_processor=BYTE_LEVEL)
    cases["llama class over byte level"] = Case(
        dump(tokenizer_json=deepseek, tokenizer_config_json={"tokenizer_class": "LlamaTokenizerFast",
             "add_bos_token": True, "add_eos_token": False, "bos_token": named(deep[0]),
             "eos_token": named(deep[1]), "unk_token": None, "pad_token": deep[1]}),
        {"vocab_size": 382},
    )  # fmt: skip

    lines = ["#version: 0.2"] + [" ".join(pair) for pair in gpt2["model"]["merges"]]
    bare = dump(vocab_json=gpt2["model"]["vocab"], added_tokens_json={end: 376, "<extra>": 377}) | {
        "merges.txt": "\n".join(lines).encode()
    }
    cases["vocab.json and merges.txt"] = Case(
        bare | dump(tokenizer_config_json={"tokenizer_class": "GPT2Tokenizer"},
                    special_tokens_map_json={"bos_token": end, "eos_token": {"content": end, "normalized": False}}),
        {"vocab_size": 378, "eos_token_id": 376}, ("bpe",), "Olmo2Model",
    )  # fmt: skip
    cases["qwen 2 from vocab.json"] = Case(
        bare | dump(tokenizer_config_json={"tokenizer_class": "Qwen2Tokenizer", "pad_token": end, "eos_token": end,
                    "added_tokens_decoder": {"376": {**FLAGS, **token(end)},
                                             "377": {**FLAGS, **token("<extra>", False)}}}),
        {"vocab_size": 380, "eos_token_id": 376}, ("spm", "bpe"), "Qwen2Model",
    )  # fmt: skip

    model = spm_model(spm_pieces())
    count = len(spm_pieces())
    cases["llama 2"] = Case(
        {"tokenizer.model": model} | dump(
            tokenizer_config_json={"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
                "add_prefix_space": True, "bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None,
                "added_tokens_decoder": {"0": token("<unk>"), "1": token("<s>"), "2": token("</s>"),
                    str(count): token("<|im_end|>", False), str(count + 1): token("\u2581\u2581y", False)}}),
        {"vocab_size": count + 4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": -0},
    )  # fmt: skip
    cases["mistral with tokenizer.json"] = Case(
        {"tokenizer.model": model} | dump(
            tokenizer_json=llama_hf([token("<unk>"), token("<s>"), token("</s>"), token("[INST]")]),
            added_tokens_json={"[INST]": count, "<pad>": count + 1, "too far": count + 9},
            tokenizer_config_json={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                                   "sep_token": "[INST]"}),
        {"vocab_size": count + 2, "bos_token_id": 1},
    )  # fmt: skip
    cases["fewer rows than pieces"] = Case(
        {"tokenizer.model": model}, {"vocab_size": 300, "eos_token_id": 2, "pad_token_id": 301}
    )
    cases["no vocab_size"] = Case({"tokenizer.model": model}, {"eos_token_id": 2})
    cases["code llama"] = Case(
        {"tokenizer.model": model} | dump(tokenizer_config_json={"bos_token": "<s>", "eos_token": "</s>"}),
        {"vocab_size": 32016, "bos_token_id": 1, "eos_token_id": 2},
    )  # fmt: skip
    gemma = {"tokenizer.model": model} | dump(tokenizer_config_json={
        "tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "bos_token": "<bos>", "eos_token": "<eos>",
        "added_tokens_decoder": {"0": token("<pad>", False), "1": token("<eos>"), "2": token("<mask>", False),
            "3": token("<2mass>", False), "4": token("[@BOS@]", False), "5": token("<unused0>", False),
            "6": token("\u2581\u2581", False), "7": token("<h1>", False), "8": token("\n\n", False)}})  # fmt: skip
    cases["gemma 2"] = Case(gemma, {"vocab_size": count, "eos_token_id": 1}, ("gemma",), "Gemma2Model")
    cases["gemma 3"] = Case(
        gemma, {"vocab_size": count + 64, "eos_token_id": [1, 106]}, ("gemma", "bpe"), "Gemma3Model"
    )
    phi3 = [token("<unk>"), token("<s>"), token("</s>", False), token("<|user|>", False), token("\u2581z", False)]
    cases["phi 3"] = Case(
        {"tokenizer.model": model} | dump(
            tokenizer_json=llama_hf(phi3), added_tokens_json={"<|assistant|>": count + 1},
            tokenizer_config_json={"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "<unk>",
                "added_tokens_decoder": {str(count): token("<|end|>", False), str(count + 2): token("<|system|>")}}),
        {"vocab_size": count + 64, "bos_token_id": 1}, ("phi3", "bpe"), "Phi3MiniModel",
    )  # fmt: skip
    cases["phi 4"] = Case(cases["gpt2"].files, {"vocab_size": size}, ("phi3", "bpe"), "Phi3MiniModel")
    odd = [*spm_pieces(), ("\0", -20.0, 1), ("[UNUSED_TOKEN_1]", -21.0, 1), ("[UNUSED_TOKEN_2]", -22.0, 1)]
    cases["internlm 2"] = Case(
        {"tokenizer.model": spm_model(odd)} | dump(
            tokenizer_config_json={"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True,
                "added_tokens_decoder": {"2": token("</s>"), str(count + 2): token("<|im_end|>"),
                                         "300": token("\u2581<x>", False)}}),
        {"vocab_size": len(odd), "bos_token_id": 1, "eos_token_id": 2}, ("internlm2",), "InternLM2Model",
    )  # fmt: skip
    cases["internlm 3"] = Case(
        {"tokenizer.model": model} | dump(
            tokenizer_config_json={"bos_token": "<s>", "eos_token": "</s>", "add_prefix_space": False,
                "added_tokens_decoder": {"2": token("</s>"), str(count): token("<|im_end|>"),
                                         str(count + 1): token("<|im_start|>", False)}}),
        {"vocab_size": count + 4, "bos_token_id": 1, "eos_token_id": [2, count]}, ("internlm3",), "InternLM3Model",
    )  # fmt: skip
    hf = llama_hf([token("<unk>"), token("<s>"), token("</s>"), token("<|im_end|>"), token("<tool>", False)])
    cases["llama from tokenizer.json alone"] = Case(
        dump(tokenizer_json=hf, tokenizer_config_json={"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>",
             "eos_token": "<|im_end|>", "unk_token": "<unk>", "add_bos_token": True}),
        {"vocab_size": len(hf["model"]["vocab"]) + 2, "bos_token_id": 1},
    )  # fmt: skip
    hf = llama_hf([token("<pad>"), token("<bos>"), token("<eos>"), token("\n", False), token("\n\n", False)])
    hf["normalizer"] = hf["normalizer"]["normalizers"][1]
    hf["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    hf["decoder"]["decoders"].pop()
    hf["post_processor"] = template(("<bos>", hf["added_tokens"][1]["id"]), None)
    cases["gemma 3 from tokenizer.json alone"] = Case(
        dump(tokenizer_json=hf, tokenizer_config_json={"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>",
             "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>", "add_bos_token": True}),
        {"vocab_size": len(hf["model"]["vocab"]) + 7, "bos_token_id": 2}, ("gemma", "bpe"), "Gemma3Model",
    )  # fmt: skip
    return cases


CASES = _cases()
assert GPT2 in SPLITS["gpt-2"]
