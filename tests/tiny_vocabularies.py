"""Tiny vocabularies that are no BPE of tokenizer.json: WordPiece, unigram, Mistral's tekken, RWKV's, as files.

CASES is shared by the tests and by tools/make_tokenizer_goldens.py, as those of `tiny_tokenizers` are.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from ggufround.tokenizer.tekken import FIRST
from tiny_tokenizers import BYTE_LEVEL, FLAGS, TEXT, Case, byte_bpe, dump, merges, spm_model, template, token

# What sentencepiece made of a list of 14 replacements (tab, line ends and wide spaces become a space; the ligature fi,
# the letter A of full width, a half, the Roman eight, two letters with an accent of their own; a joiner vanishes).
CHARSMAP = zlib.decompress(base64.b85decode(
    'c-ke?X|Rt~90%~<ebNiXOfyY0dQ;YrZ7d^MQYpE%?4d>3m$9Tp+Wc=WuB??MJK0hcDr?qjDRU87vm`P!qY_1nrO(5Q&wS6B-#O1Y=XuT('
    'g(9MOMB%~_x7`|%6_F_@l0?zFBXacbO8cdg$SWFAOnY{Th+CvtnT6`N%S^c>GUj9+j~Mxgc~v8Zoljz2uZS_+Va&Le5p#^UOlGFMQ{L+#'
    '_po?hl5QbNQIay0rY!eSo^n*+ekxIsDpcm{iq<MfqPli9R^=s8Lq0%F9;6m^s7*cUQlE#g<#?C|Jc?t)V?04avS~yU8q<uXJV|pLEn3i;'
    'R<xxJPtlGJwC8C$@+{BLiRXBM=jlRcy3v&$^dFssR~S9%LvQ+~V<sfgU-sig2JjLCd4-o5#H$SEHQwNL-r`M$@HRPd^MelM9fpz12!=C~'
    'JVx;@V;Idi#_}HH`GEJC$OI-ci79-@G^R3x>C9p#bC}IsK4L!eSjYkv@iCwB2}{yD!{>a)GM4fM%lV2gS;-1kr+0$2tYKYxXV}1cHnEX>'
    'HnWv2Y-bza@=aRH&59jzCk5<g7kl`Q@7c?K_HmE{9Oe*5_<>^_<wuV56DK&uNlx=KXZU?_R{SE*rnR$Kaf)BH&!shf;}6brkqi9ApIqh='
    '|L`~e@h?}o!ga32jsL&u$(-D3euQ?}+1b&(mur!~DDqdt|6c{6Q~'
))  # fmt: skip
SPM_WORDS = ["\u2581" + word for word in TEXT.replace("\n", " ").split()]


def wordpiece(added: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), **normalizer: Any) -> Any:
    """tokenizer.json as BERT's: special tokens, letters, each also as a part of a word, merged pieces."""
    words = [word for word in TEXT.lower().replace("\n", " ").split() if word.isalpha()]
    ranked = ["".join(pair) for pair in merges(words, 60)]
    starts = [piece for piece in ranked if any(word.startswith(piece) for word in words)]
    letters = sorted(set("".join(words)) | set("0123456789.,'()*:;+-=!?#_我想在工作天ABCDé"))
    vocab = list(dict.fromkeys([*added, *letters, *("##" + x for x in letters + ranked), *starts]))
    ids = {text: number for number, text in enumerate(vocab)}
    settings = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    cls, sep = ("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])
    processor = template(cls, sep)
    processor["pair"].insert(2, {"SpecialToken": {"id": sep[0], "type_id": 0}})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[text], **FLAGS, **token(text)} for text in added],
        "normalizer": {"type": "BertNormalizer", **settings, **normalizer},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": processor,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": ids,
        },
    }  # fmt: skip


def unigram_pieces() -> list[tuple[str, float]]:
    """Pieces with scores as logarithms of probabilities, none of them a sum of others; letters last."""
    ranked = list(dict.fromkeys("".join(pair) for pair in merges(SPM_WORDS, 100)))
    letters = sorted(set("".join(SPM_WORDS)) | set("fiAVI1é"))
    scored = [(piece, -3.0 - 0.0625 * rank - 1 / (len(piece) + 1)) for rank, piece in enumerate(ranked)]
    return scored + [(letter, -11.5 - rank / 128) for rank, letter in enumerate(letters)]


def unigram_model(special: list[tuple[str, float, int]], table: bytes = CHARSMAP, tail: bytes = b"") -> bytes:
    """spiece.model: `special`, the pieces, an own one of the user's, an unused one; `tail`: further settings of field 3
    (3: a space in front, 4: several spaces made one)."""
    pieces = [
        *special,
        *((text, score, 1) for text, score in unigram_pieces()),
        ("[USER]", 0.0, 4),
        ("unused", -9.0, 5),
    ]
    model = spm_model(pieces)
    end = model.index(b"\x12\x05\x18\x02\x98\x02\x01")  # the settings of a BPE
    size = 1 + len(varint(len(table))) + len(table) if table else 0
    settings = (b"\x12" + varint(len(table)) + table if table else b"") + tail
    assert len(settings) == size + len(tail)
    return model[:end] + b"\x12\x02\x18\x01" + b"\x1a" + varint(len(settings)) + settings


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def unigram_json(special: tuple[str, ...], unknown: str, processor: Any, mask: tuple[str, ...] = ()) -> dict[str, Any]:
    """tokenizer.json of a unigram model, as XLM-RoBERTa's: special tokens, pieces, the mask."""
    vocab = [(text, 0.0) for text in special] + unigram_pieces() + [(text, 0.0) for text in mask]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, **FLAGS, **token(text)}
            for number, (text, _) in enumerate(vocab)
            if text in (*special, *mask)
        ],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(CHARSMAP).decode()},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "WhitespaceSplit"},
                {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
            ],
        },
        "post_processor": processor,
        "decoder": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        "model": {
            "type": "Unigram",
            "unk_id": special.index(unknown),
            "vocab": [list(row) for row in vocab],
            "byte_fallback": False,
        },
    }


def tekken(version: str, special: list[str] | None, count: int, cut: int = 0) -> dict[str, Any]:
    """tekken.json: bytes and merged pieces by rank; `count` special tokens, some of them listed; `cut` tokens more than
    the vocabulary takes."""
    document = byte_bpe((), [], 90)
    letters = {letter: byte for byte, letter in enumerate(document["model"]["vocab"])}
    ranked = [bytes(letters[letter] for letter in text) for text in document["model"]["vocab"]]
    rows = [
        {"rank": rank, "token_bytes": base64.b64encode(text).decode(), "token_str": None}
        for rank, text in enumerate(ranked)
    ]
    config = {
        "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s+",
        "num_vocab_tokens": len(rows),
        "default_vocab_size": len(rows) + count - cut,
        "default_num_special_tokens": count,
        "version": version,
    }
    listed = [{"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(special or [])]
    return {"config": config, "vocab": rows} | ({"special_tokens": listed} if special else {})


def rwkv() -> bytes:
    """Lines of id, literal, length: the bytes, then pieces of several scripts and quotes."""
    words = ["the", " the", "qu", "ick", "нещо", " на", "我", "想在", "\n\n", "''", "\\n", "'\"", "\t\t", " 's"]
    ranked = [bytes([byte]) for byte in range(256)] + [word.encode() for word in words] + [b"\xf0\x9f", b"\xe6\x88"]
    rows = []
    for number, raw in enumerate(ranked, 1):
        try:
            literal = repr(raw.decode())
        except UnicodeDecodeError:
            literal = repr(raw)
        rows.append(f"{number} {literal} {len(raw)}\n")
    return "".join(rows).encode()


def _cases() -> dict[str, Case]:
    cases = {}
    bert = {"tokenizer_class": "BertTokenizer", "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]",
            "cls_token": "[CLS]", "mask_token": "[MASK]", "do_lower_case": True}  # fmt: skip
    document = wordpiece()
    size = len(document["model"]["vocab"])
    cases["bert"] = Case(
        dump(tokenizer_json=document, tokenizer_config_json=bert),
        {"vocab_size": size + 3, "pad_token_id": 0, "model_type": "bert", "type_vocab_size": 2}, ("wpm",), "BertModel",
    )  # fmt: skip
    cased = wordpiece(lowercase=False, strip_accents=False)
    cases["cased bert"] = Case(
        dump(tokenizer_json=cased, tokenizer_config_json=bert | {"do_lower_case": False, "strip_accents": False}),
        {"vocab_size": size, "model_type": "bert"}, ("wpm",), "BertModel",
    )  # fmt: skip
    lines = "".join(f"{text}\n" for text in document["model"]["vocab"])
    cases["bert from vocab.txt"] = Case(
        {"vocab.txt": lines.encode()} | dump(tokenizer_config_json={"tokenizer_class": "BertTokenizer"}),
        {"vocab_size": size, "pad_token_id": 0, "model_type": "bert"}, ("wpm",), "BertModel",
    )  # fmt: skip

    t5 = unigram_model([("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)])
    count = len(unigram_pieces()) + 5
    named = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 0}
    cases["t5"] = Case(
        {"spiece.model": t5} | dump(tokenizer_config_json={"tokenizer_class": "T5Tokenizer", **named},
                                    added_tokens_json={"<extra>": count, "<far>": count + 90}),
        {"vocab_size": count + 28, "eos_token_id": 1, "pad_token_id": 0, "model_type": "t5"}, ("ugm",), "T5Model",
    )  # fmt: skip
    cases["t5 without table and prefix"] = Case(
        {"tokenizer.model": unigram_model([("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)], b"",
                                          b"\x18\x00\x20\x00")},
        {"vocab_size": count, "eos_token_id": 1, "model_type": "t5"}, ("ugm",), "T5Model",
    )  # fmt: skip
    end = ("</s>", 1)
    cases["t5 from tokenizer.json"] = Case(
        dump(tokenizer_json=unigram_json(("<pad>", "</s>", "<unk>"), "<unk>", template(None, end)),
             tokenizer_config_json={"tokenizer_class": "T5Tokenizer", **named}),
        {"vocab_size": count, "model_type": "t5", "eos_token_id": 1}, ("ugm",), "",
    )  # fmt: skip
    roberta = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "cls_token": "<s>",
               "pad_token": "<pad>", "mask_token": "<mask>", "tokenizer_class": "XLMRobertaTokenizer",
               "clean_up_tokenization_spaces": True, "add_prefix_space": True}  # fmt: skip
    spiece = unigram_model([("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)])
    processor = template(("<s>", 0), ("</s>", 2))
    processor["pair"][2:2] = [{"SpecialToken": {"id": "</s>", "type_id": 0}}] * 2
    special = ("<s>", "<pad>", "</s>", "<unk>")
    document = unigram_json(special, "<unk>", processor, ("<mask>",))
    cases["xlm-roberta"] = Case(
        {"sentencepiece.bpe.model": spiece} | dump(tokenizer_json=document, tokenizer_config_json=roberta),
        {"vocab_size": count + 2, "pad_token_id": 1, "model_type": "xlm-roberta", "bos_token_id": 0}, ("xlmr",),
        "XLMRobertaModel",
    )  # fmt: skip
    cases["xlm-roberta from tokenizer.json"] = Case(
        dump(tokenizer_json=document, tokenizer_config_json=roberta),
        {"vocab_size": len(document["model"]["vocab"]) + 2, "pad_token_id": 1, "model_type": "xlm-roberta"}, ("xlmr",),
        "XLMRobertaModel",
    )  # fmt: skip

    cases["tekken"] = Case(
        dump(tekken_json=tekken("v7", None, 24, 6)), {"vocab_size": 256 + 90 + 24 - 6}, ("tekken", "spm", "bpe"),
    )  # fmt: skip
    cases["tekken with its own special tokens"] = Case(
        dump(tekken_json=tekken("v3", [*FIRST, "[THINK]"], 24)), {"vocab_size": 256 + 90 + 24},
        ("tekken", "llama_hf", "bpe"),
    )  # fmt: skip
    cases["rwkv"] = Case(
        {"rwkv_vocab_v20230424.txt": rwkv()} | dump(tokenizer_config_json={"chat_template": "{{ t }}"}),
        {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}, ("rwkv",), "Rwkv6Model",
    )  # fmt: skip
    cases["rwkv without a template"] = Case(
        {"rwkv_vocab_v20230424.txt": rwkv()}, {"vocab_size": 280}, ("rwkv",), "Rwkv6Model"
    )

    around = byte_bpe((), [token(n) for n in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")],
                      pre_tokenizer={**BYTE_LEVEL, "use_regex": True})  # fmt: skip
    ids = {t["content"]: t["id"] for t in around["added_tokens"]}
    around["post_processor"] = {
        "type": "RobertaProcessing", "sep": ["</s>", ids["</s>"]], "cls": ["<s>", ids["<s>"]],
        "trim_offsets": True, "add_prefix_space": False,
    }  # fmt: skip
    cases["roberta"] = Case(
        dump(tokenizer_json=around, tokenizer_config_json=roberta | {"tokenizer_class": "RobertaTokenizer",
                                                                     "add_prefix_space": False}),
        {"vocab_size": 256 + 120 + 5, "model_type": "roberta"}, ("roberta",), "RobertaModel",
    )  # fmt: skip
    around = json.loads(json.dumps(around))
    around["post_processor"] = template(("<s>", ids["<s>"]), ("</s>", ids["</s>"]))
    cases["modern bert"] = Case(
        dump(tokenizer_json=around, tokenizer_config_json={"tokenizer_class": "PreTrainedTokenizerFast",
             "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}),
        {"vocab_size": 256 + 120 + 8, "model_type": "modernbert"}, ("bpe_cls",), "ModernBertModel",
    )  # fmt: skip
    return cases


CASES = _cases()
