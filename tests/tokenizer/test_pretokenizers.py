import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from ggufround.errors import InputError, UnsupportedError, UsageError
from ggufround.tokenizer import Vocab, load_vocab, pretokenizers
from ggufround.tokenizer.files import read_files
from ggufround.tokenizer.hugging_face import HuggingFace, load_hugging_face
from ggufround.tokenizer.pretokenizers import (
    CHECK_TEXT,
    FALLBACK,
    NAMES,
    STRUCTURES,
    cut_down,
    fingerprint,
    fingerprinted,
)
from tiny_tokenizers import BYTE_LEVEL, CASES, SPLITS, Case, byte_bpe, dump, token

BPE = [name for name, case in CASES.items() if "tokenizer.model" not in case.files]
EXPRESSIONS = [row for row in STRUCTURES if FALLBACK not in row.splits]
CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}


def read(case: Case, folder: Path) -> HuggingFace:
    tokenizer = load_hugging_face(read_files(case.checkpoint(folder)))
    assert tokenizer is not None
    return tokenizer


def load(document: dict[str, Any], folder: Path, pre: str | None = None, **config: Any) -> Vocab:
    case = Case(dump(tokenizer_json=document, tokenizer_config_json=CONFIG | config), {}, ("bpe",))
    return load_vocab(case.checkpoint(folder), ("bpe",), pre)


@pytest.mark.parametrize("name", BPE)
def test_the_cut_down_tokenizer_encodes_the_check_text_as_the_whole_one(name: str, tmp_path: Path) -> None:
    tokenizer = read(CASES[name], tmp_path)
    document = tokenizer.document
    if not document["added_tokens"]:  # bare vocab.json: the added tokens are in other files
        document = document | {
            "added_tokens": [
                {"content": text, "single_word": False, "lstrip": False, "rstrip": False, **row._asdict()}
                for text, row in tokenizer.added.items()
            ]
        }
    whole = Tokenizer.from_str(json.dumps(document))
    assert cut_down(tokenizer).encode(CHECK_TEXT).ids == whole.encode(CHECK_TEXT).ids


@pytest.mark.parametrize("row", EXPRESSIONS, ids=lambda row: row.name)
def test_every_structure_is_found_and_said_aloud(row: pretokenizers.Structure, tmp_path: Path) -> None:
    document = byte_bpe(row.splits, [token("<s>")], model={"ignore_merges": bool(row.ignore_merges)})
    vocab = load(document, tmp_path)
    assert vocab.pre == row.name
    assert "structure" in vocab.notes[0]
    # nothing adds bos, and llama.cpp must not do so by the pre-tokenizer's default
    assert vocab.metadata["tokenizer.ggml.add_bos_token"].value is False


def test_structures_are_names_that_the_loader_knows_and_differ() -> None:
    keys = {(row.splits, row.ignore_merges) for row in STRUCTURES}
    assert len(keys) == len(STRUCTURES)
    assert {row.name for row in STRUCTURES} <= NAMES


def test_digits_and_byte_level_regex_are_expressions_too(tmp_path: Path) -> None:
    steps = [{"type": "Digits", "individual_digits": True}, {**BYTE_LEVEL, "use_regex": True}]
    sequence = {"type": "Sequence", "pretokenizers": steps}
    assert load(byte_bpe((), [], pre_tokenizer=sequence), tmp_path).pre == "smollm"


def test_other_spellings_of_an_expression_are_the_same(tmp_path: Path) -> None:
    spelt = SPLITS["qwen2"][0].replace(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    )
    assert load(byte_bpe((spelt.replace(r"\r\n", "\r\n"),), []), tmp_path).pre == "qwen2"


def test_a_fine_tune_that_adds_tokens_keeps_its_pre_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = byte_bpe(SPLITS["qwen2"], [token("<s>")])
    (tmp_path / "base").mkdir()
    base = read(Case(dump(tokenizer_json=document), {}), tmp_path / "base")
    monkeypatch.setitem(pretokenizers.FINGERPRINTS, fingerprint(fingerprinted(base)[0][0]), "megrez")
    assert load(document, tmp_path).pre == "megrez"
    assert load(document, tmp_path).notes == ()
    # a token that the check text holds changes the ids; the structure is still there
    changed = byte_bpe(SPLITS["qwen2"], [token("<s>"), token("apple", False)])
    assert load(changed, tmp_path).pre == "qwen2"


def test_a_fine_tune_that_stops_adding_bos_keeps_its_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = byte_bpe(("whatever",), [token("<s>")])
    tokenizer = read(Case(dump(tokenizer_json=document, tokenizer_config_json=CONFIG), {}), tmp_path)
    bare = fingerprinted(tokenizer)[0][0]
    monkeypatch.setitem(pretokenizers.FINGERPRINTS, fingerprint([tokenizer.added["<s>"].id, *bare]), "viking")
    vocab = load(document, tmp_path)
    assert vocab.pre == "viking"
    assert "special tokens" in vocab.notes[0]


def test_an_unknown_pre_tokenizer_is_refused_with_the_nearest_named(tmp_path: Path) -> None:
    odd = SPLITS["qwen2"][0].replace(r"\p{N}|", r"\p{N}{1,7}|")
    with pytest.raises(UnsupportedError, match=r"nearest are .*qwen2.*--pre") as caught:
        load(byte_bpe((odd,), []), tmp_path)
    assert r"\p{N}{1,7}" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}},
        {"pre_tokenizer": {**BYTE_LEVEL, "use_regex": True, "add_prefix_space": True}},
    ],
)
def test_steps_that_llama_cpp_does_not_take_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError):
        load(byte_bpe((), [], **change), tmp_path)


def test_the_user_may_name_the_pre_tokenizer(tmp_path: Path) -> None:
    vocab = load(byte_bpe(("whatever",), []), tmp_path, pre="tekken")
    assert vocab.pre == vocab.metadata["tokenizer.ggml.pre"].value == "tekken"


def test_an_unknown_name_is_refused_with_near_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="qwen2"):
        load(byte_bpe((), []), tmp_path, pre="qwen-2")


def test_pre_is_refused_for_sentencepiece(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="SentencePiece"):
        load_vocab(CASES["llama 2"].checkpoint(tmp_path), ("spm",), "qwen2")


def test_a_tokenizer_that_does_not_load_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        load(byte_bpe(("(unclosed",), []), tmp_path)
