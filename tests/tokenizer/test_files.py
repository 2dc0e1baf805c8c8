"""Damaged and hostile tokenizer files: one InputError each, in bounded time and memory."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from ggufround.errors import GgufroundError, InputError
from ggufround.tokenizer import load_vocab
from ggufround.tokenizer.spm import read_pieces
from tiny_tokenizers import CASES, SPLITS, TEXT, Case, byte_bpe, dump, spm_model, spm_pieces, token
from tiny_vocabularies import CASES as OTHERS

PLAIN = CASES["gpt2"]


def broken(folder: Path, name: str, data: bytes, case: Case = PLAIN) -> None:
    load_vocab(Case(case.files | {name: data}, case.config, case.order).checkpoint(folder), case.order)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "not sound JSON"),
        (b"[]", "JSON object"),
        (b'{"a": 1, "a": 2}', "appears twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a":' * 100_000, "nested deeper"),
        (b'{"a": "\xff"}', "not sound JSON"),
        (b"{}", "vocabulary must be an object"),
        (b'{"model": {"type": "Unigram", "vocab": {"a": 0}}}', "Unigram"),
        (b'{"model": {"type": "BPE", "vocab": {"a": -1}}}', "token ids"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 99999999}}}', "token ids"),
        (b'{"model": {"type": "BPE", "vocab": {"a": true}}}', "token ids"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}}, "added_tokens": [{"id": 1}]}', "no content"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}}, "added_tokens": [{"id": "1", "content": "b"}]}', "'1'"),
    ],
)
def test_a_broken_tokenizer_json_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        broken(tmp_path, "tokenizer.json", data)


def test_a_file_beyond_its_limit_is_not_read(tmp_path: Path) -> None:
    checkpoint = PLAIN.checkpoint(tmp_path)
    with (tmp_path / "tokenizer_config.json").open("r+b") as file:
        file.truncate(1 << 33)
    with pytest.raises(InputError, match="at most 16777216 are allowed"):
        load_vocab(checkpoint, ("bpe",))


def test_a_lone_surrogate_is_refused(tmp_path: Path) -> None:
    config = {"tokenizer_class": "GPT2Tokenizer", "chat_template": "\ud800"}
    with pytest.raises(InputError, match="surrogate"):
        broken(tmp_path, "tokenizer_config.json", json.dumps(config).encode())


def test_tokens_of_glm_play_the_parts_that_its_files_leave_open(tmp_path: Path) -> None:
    names = ("<|endoftext|>", "[gMASK]", "<|user|>", "<|observation|>")
    document = byte_bpe(SPLITS["gpt-2"], [token(name) for name in names])
    ids = {row["content"]: row["id"] for row in document["added_tokens"]}
    files = dump(tokenizer_json=document, tokenizer_config_json={"eos_token": "<|user|>"})
    parts = {}
    for kind in ("glm", "glm4"):
        case = Case(files, {"vocab_size": max(ids.values()) + 1}, (kind,))
        (tmp_path / kind).mkdir()
        found = load_vocab(case.checkpoint(tmp_path / kind), case.order, "gpt-2").metadata
        parts[kind] = {
            role: found[f"tokenizer.ggml.{key}_token_id"].value
            for role, key in (("bos", "bos"), ("eos", "eos"), ("eot", "eot"), ("unk", "unknown"), ("eom", "eom"))
            if f"tokenizer.ggml.{key}_token_id" in found
        }
    end, mask, user, seen = (ids[name] for name in names)
    assert parts["glm"] == {"bos": mask, "eos": user, "eot": user, "unk": end, "eom": seen}
    assert parts["glm4"] == {"bos": end, "eos": user, "eot": user, "unk": end}


def test_hunyuan_ends_where_its_configs_say(tmp_path: Path) -> None:
    files = PLAIN.files | dump(generation_config_json={"eos_token_id": [9, 8]})
    case = Case(files, PLAIN.config | {"eod_token_id": 7}, ("hunyuan",))
    found = load_vocab(case.checkpoint(tmp_path), case.order).metadata
    assert (found["tokenizer.ggml.eos_token_id"].value, found["tokenizer.ggml.eot_token_id"].value) == (7, 9)
    with pytest.raises(InputError, match="the id of the eos token is 'x'"):
        load_vocab(Case(files, PLAIN.config | {"eod_token_id": "x"}, ("hunyuan",)).checkpoint(tmp_path), case.order)


def test_no_tokenizer_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.model or tokenizer\.json"):
        load_vocab(Case({}, {}).checkpoint(tmp_path))


def test_a_vocabulary_smaller_than_its_ids_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="376, but the model's vocabulary has 376"):
        load_vocab(PLAIN.checkpoint(tmp_path), ("bpe",), vocab_size=376)


@pytest.mark.parametrize("size", [0, -1, 1 << 40])
@pytest.mark.parametrize("name", ["gpt2", "llama 2"])
def test_a_vocabulary_of_absurd_size_is_refused(name: str, size: int, tmp_path: Path) -> None:
    case = CASES[name]
    with pytest.raises(InputError, match=r"allowed are 1 to"):
        load_vocab(case.checkpoint(tmp_path), case.order, vocab_size=size)


def test_two_tokens_of_one_text_are_refused_since_llama_cpp_aborts(tmp_path: Path) -> None:
    document = byte_bpe((), [token("\u2581", False), token(" ", False)])
    case = Case(dump(tokenizer_json=document), {}, ("bpe",))
    with pytest.raises(InputError, match="same text ' '"):
        load_vocab(case.checkpoint(tmp_path), ("bpe",), "gpt-2")


VARIED = ("llama 3", "qwen 2", "llama 2", "phi 3", "llama from tokenizer.json alone")
JSON = "tokenizer.json"
OTHER_VARIED = ("bert", "xlm-roberta from tokenizer.json", "tekken with its own special tokens", "roberta")


@pytest.mark.parametrize("name", [*VARIED, *OTHER_VARIED])
def test_files_with_any_value_replaced_load_or_raise_our_errors(name: str, tmp_path: Path) -> None:
    case, rng = (CASES | OTHERS)[name], random.Random(name)
    values: list[Any] = [None, True, -1, 2**70, 1.5, "", "x", [], {}, [[]], {"a": {}}, [1], [None]]
    names = sorted(file for file in case.files if file.endswith(".json"))
    refused = 0
    for _ in range(60):
        file = rng.choice(names)
        document = json.loads(case.files[file])
        spots: list[tuple[Any, Any]] = []

        def walk(part: Any, spots: list[tuple[Any, Any]] = spots) -> None:
            keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else []
            for key in rng.sample(list(keys), min(len(keys), 12)):
                spots.append((part, key))
                walk(part[key])

        walk(document)
        part, key = rng.choice(spots)
        part[key] = rng.choice(values)
        try:
            broken(tmp_path, file, json.dumps(document).encode(), case)
        except GgufroundError:
            refused += 1
    assert 0 < refused < 60


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        ("bert", JSON, b'"continuing_subword_prefix": "##"', b'"continuing_subword_prefix": "_"', "begin with"),
        ("bert from vocab.txt", "vocab.txt", b"[UNK]\n", b"[PAD]\n", "twice"),
        ("bert from vocab.txt", "vocab.txt", b"[SEP]\n", b"[SEQ]\n", "no token '\\[SEP\\]'"),
        ("t5", "spiece.model", b"\x12\x02\x18\x01", b"\x12\x02\x18\x02", "kind 2"),
        ("t5 from tokenizer.json", JSON, b'"precompiled_charsmap": "', b'"precompiled_charsmap": "!', "base64"),
        ("t5 from tokenizer.json", JSON, b'"Precompiled"', b'"Lowercase"', "no normalizer Lowercase"),
        ("tekken", "tekken.json", b'"rank": 300', b'"rank": 301', "rank 300"),
        ("tekken", "tekken.json", b'_special_tokens": 24', b'_special_tokens": 2', "special tokens"),
        ("tekken", "tekken.json", b'"default_vocab_size": 3', b'"default_vocab_size": 9', "promises"),
        ("rwkv", "rwkv_vocab_v20230424.txt", b"257 'the' 3", b"257 'the' 4", "line 257"),
        ("rwkv", "rwkv_vocab_v20230424.txt", b"257 'the' 3", b"257 open('x') 3", "line 257"),
        ("rwkv", "rwkv_vocab_v20230424.txt", b"257 'the' 3\n", b"257 'the' 3\n" * 99, "another model's"),
    ],
)  # fmt: skip
def test_a_damaged_vocabulary_of_another_kind_is_refused(
    name: str, file: str, old: bytes, new: bytes, message: str, tmp_path: Path
) -> None:
    case = OTHERS[name]
    assert old in case.files[file]
    with pytest.raises(GgufroundError, match=message):
        broken(tmp_path, file, case.files[file].replace(old, new, 1), case)


@pytest.mark.parametrize(("kind", "file"), [("wpm", "vocab.txt"), ("ugm", "spiece.model"), ("rwkv", "rwkv_vocab")])
def test_what_is_missing_is_named(kind: str, file: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=file):
        load_vocab(Case({}, {}).checkpoint(tmp_path), (kind,))


def test_a_flag_that_llama_cpp_lacks_is_told(tmp_path: Path) -> None:
    text = OTHERS["bert"].files["tokenizer.json"].replace(b'"clean_text": true', b'"clean_text": false')
    case = Case(OTHERS["bert"].files | {"tokenizer.json": text}, {}, ("wpm",))
    assert "clean_text" in load_vocab(case.checkpoint(tmp_path), case.order).notes[0]


def test_pieces_are_what_sentencepiece_reads(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(TEXT * 4)
    for kind in ("unigram", "bpe"):
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(tmp_path / kind), vocab_size=400, model_type=kind, byte_fallback=True,
            user_defined_symbols=["[USER]"], control_symbols=["[CTRL]"], hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
        data = (tmp_path / f"{kind}.model").read_bytes()
        peer = sentencepiece.SentencePieceProcessor(model_proto=data)
        types = [
            2
            if peer.is_unknown(i)
            else 3
            if peer.is_control(i)
            else 5
            if peer.is_unused(i)
            else 6
            if peer.is_byte(i)
            else 1
            for i in range(peer.vocab_size())
        ]
        want = [(peer.id_to_piece(i), peer.get_score(i), types[i]) for i in range(peer.vocab_size())]
        assert list(map(tuple, read_pieces(data, kind))) == want


def test_a_cut_or_flipped_tokenizer_model_loads_or_is_refused() -> None:
    data, rng = spm_model(spm_pieces()), random.Random(1)
    refused = 0
    for _ in range(400):
        damaged = bytearray(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
        for _ in range(rng.randrange(1, 4)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            list(read_pieces(bytes(damaged), "tokenizer.model"))
        except InputError:
            refused += 1
    assert refused > 100
    with pytest.raises(InputError, match=r"tokenizer\.model is no sentencepiece model"):
        list(read_pieces(data[:100], "tokenizer.model"))
