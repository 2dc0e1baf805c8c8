"""A checkpoint's tokenizer, whichever files it lies in."""

from __future__ import annotations

import base64
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import tiny_tokenizers
from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import InputError
from ggufround.tune.text_tokens import open_tokenizer
from tiny_vocabularies import CASES as OTHERS

TEXT = "The quick brown fox, and then\n\nmore of it: 12345 kennels. " * 5


def with_file(folder: Path, name: str, data: bytes) -> Checkpoint:
    (folder / name).write_bytes(data)
    return Checkpoint("model", folder, {}, {}, {name: folder / name})


def test_a_tokenizer_that_cuts_pads_or_draws_lots_does_not_do_so_here(tmp_path: Path) -> None:
    case = tiny_tokenizers.CASES["gpt2"]
    document = json.loads(case.files["tokenizer.json"])
    document["truncation"] = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    document["padding"] = {"strategy": {"Fixed": 999}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 3,
                           "pad_type_id": 0, "pad_token": "x"}  # fmt: skip
    document["model"]["dropout"] = 0.9
    odd = with_file(tmp_path, "tokenizer.json", json.dumps(document).encode())
    usual = case.checkpoint(tmp_path / "usual")
    assert list(open_tokenizer(odd).encode(TEXT)) == list(open_tokenizer(usual).encode(TEXT))


@pytest.mark.parametrize(
    ("case", "bos", "eos"),
    [
        ("gpt2", None, 376),
        ("llama 3", 376, 378),
        ("no tokenizer_config", 376, None),
        ("qwen 2", None, 378),
        ("llama 2", 1, 2),
        ("llama from tokenizer.json alone", 1, 424),
        ("gemma 3 from tokenizer.json alone", 425, 426),
    ],
)
def test_what_starts_a_sequence_and_ends_a_text(case: str, bos: int | None, eos: int | None, tmp_path: Path) -> None:
    found = open_tokenizer(tiny_tokenizers.CASES[case].checkpoint(tmp_path))
    assert (found.bos, found.eos) == (bos, eos)
    assert bos not in found.encode(TEXT)


def test_the_flag_that_the_gguf_file_gets_decides_about_bos(tmp_path: Path) -> None:
    case = tiny_tokenizers.CASES["llama 2"]
    config = json.dumps({"add_bos_token": False, "bos_token": "<s>", "eos_token": "</s>"}).encode()
    files = case.files | {"tokenizer_config.json": config}
    assert open_tokenizer(replace(case, files=files).checkpoint(tmp_path)).bos is None


def test_markers_are_tokens_that_a_text_can_hold(tmp_path: Path) -> None:
    qwen = open_tokenizer(tiny_tokenizers.CASES["qwen 2"].checkpoint(tmp_path / "a"))
    assert qwen.has_marker("<|im_start|>")
    assert not qwen.has_marker("<|im_sep|>")
    llama = open_tokenizer(tiny_tokenizers.CASES["llama 2"].checkpoint(tmp_path / "b"))
    assert not llama.has_marker("</s>")  # a control piece, which sentencepiece never finds in a text
    assert llama.encode(TEXT)


def test_a_model_without_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"model has neither tokenizer.json nor tokenizer.model.*found config.json"):
        open_tokenizer(with_file(tmp_path, "config.json", b"{}"))


@pytest.mark.torch
def test_files_that_transformers_cannot_read_either(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match=r"neither .*, and transformers cannot read its tokenizer \("):
        open_tokenizer(with_file(tmp_path, "config.json", b"{}"))


@pytest.mark.parametrize("data", [b"{}", b'{"version": "1.0", "model": {"type": "new"}}', b"{", b"[]"])
def test_a_damaged_tokenizer(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer.json cannot be read as a tokenizer"):
        open_tokenizer(with_file(tmp_path, "tokenizer.json", data))


def test_a_damaged_sentencepiece_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer.model cannot be read as a sentencepiece model"):
        open_tokenizer(with_file(tmp_path, "tokenizer.model", b"no model"))


def test_a_tokenizer_without_a_token_for_what_it_does_not_know(tmp_path: Path) -> None:
    document = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
                "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}}  # fmt: skip
    found = open_tokenizer(with_file(tmp_path, "tokenizer.json", json.dumps(document).encode()))
    with pytest.raises(InputError, match=r"tokenizer.json cannot tokenize the text: .*UNK"):
        found.encode(TEXT)


@pytest.mark.torch
def test_other_files_go_through_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    bare = open_tokenizer(tiny_tokenizers.CASES["vocab.json and merges.txt"].checkpoint(tmp_path / "a"))
    usual = open_tokenizer(tiny_tokenizers.CASES["gpt2"].checkpoint(tmp_path / "b"))
    assert list(bare.encode(TEXT)) == list(usual.encode(TEXT))
    assert (bare.bos, bare.eos) == (usual.bos, usual.eos)
    assert bare.has_marker("<|endoftext|>")


def test_other_files_need_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="other kinds of tokenizers, is not installed.*vocab.json"):
        open_tokenizer(tiny_tokenizers.CASES["vocab.json and merges.txt"].checkpoint(tmp_path))


def test_a_tekken_json_is_cut_by_its_expression_and_ranks(tmp_path: Path) -> None:
    case = OTHERS["tekken"]
    read = open_tokenizer(case.checkpoint(tmp_path))
    document = json.loads(case.files["tekken.json"])
    first = document["config"]["default_num_special_tokens"]
    tokens = [base64.b64decode(row["token_bytes"]) for row in document["vocab"]]
    ids = read.encode("the weather</s>")
    assert ids[-1] == read.eos == 2
    assert b"".join(tokens[i - first] for i in ids[:-1]) == b"the weather"
    assert len(ids) < 8  # merged
    assert read.bos == 1
