"""Every tiny tokenizer against what llama.cpp's converter wrote for it (tools/make_tokenizer_goldens.py)."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from ggufround.tokenizer import load_vocab
from ggufround.tokenizer.files import read_files
from ggufround.tokenizer.hugging_face import load_hugging_face
from ggufround.tokenizer.pretokenizers import fingerprint, fingerprinted
from tiny_tokenizers import CASES as BPE_CASES
from tiny_vocabularies import CASES as OTHER_CASES

CASES = {name: case for name, case in (BPE_CASES | OTHER_CASES).items() if case.converter}
GOLDENS = json.loads((Path(__file__).parent / "goldens.json").read_text())
PRE = "tokenizer.ggml.pre"


def digest(value: Any) -> Any:
    text = json.dumps(value)
    return value if len(text) < 200 else "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("name", CASES)
def test_metadata_is_what_the_converter_writes(name: str, tmp_path: Path) -> None:
    case, golden = CASES[name], dict(GOLDENS[name])
    checkpoint = case.checkpoint(tmp_path)
    vocab = load_vocab(checkpoint, case.order, case.pre)
    ours = {key: [int(field.kind), digest(field.value)] for key, field in vocab.metadata.items()}
    if vocab.model == "bert":  # llama.cpp does not look at it, and it is no name that we must know
        golden[PRE] = ours[PRE]
    if vocab.model == "gpt2" and case.order[0] != "tekken":  # where llama.cpp gives up, the golden has the fingerprint
        tokenizer = load_hugging_face(read_files(checkpoint))
        assert tokenizer is not None
        ids, how = fingerprinted(tokenizer)[0]
        assert how is None
        assert [int(vocab.metadata[PRE].kind), fingerprint(ids)] == golden[PRE]
        golden[PRE] = ours[PRE]
        added = {key for key in ours if key not in golden}  # said aloud where only the structure is known
        assert added <= {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"}
        ours = {key: value for key, value in ours.items() if key not in added}
    if name == "llama from tokenizer.json alone":  # on purpose not the converter's -1000 for every token
        assert ours["tokenizer.ggml.scores"] != golden["tokenizer.ggml.scores"]
        ours["tokenizer.ggml.scores"] = golden["tokenizer.ggml.scores"]
    if name == "xlm-roberta":  # the mask, where the converter has an unused token
        for key in ("tokens", "scores", "token_type"):
            golden[f"tokenizer.ggml.{key}"] = ours[f"tokenizer.ggml.{key}"]
    if name == "bert from vocab.txt":  # what the converter finds in a tokenizer.json only, though it matters as much
        ours = {key: value for key, value in ours.items() if key in golden}
    if name == "rwkv without a template":  # a template of our own
        golden["tokenizer.chat_template"] = ours["tokenizer.chat_template"]
    assert list(ours.items()) == list(golden.items())
    assert vocab.size == len(vocab.metadata["tokenizer.ggml.tokens"].value)


def test_every_case_has_a_golden() -> None:
    assert GOLDENS.keys() == CASES.keys()
