"""The tiny checkpoints are what they claim to be: transformers loads them whole, tokenizers know all their tokens."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from tokenizers import Tokenizer

import tiny_models

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # its SWIG types
    from sentencepiece import SentencePieceProcessor


def test_tokenizers_know_every_token_of_the_vocabulary() -> None:
    bpe = Tokenizer.from_str(json.dumps(tiny_models.bpe_tokenizer()))
    spm = SentencePieceProcessor(model_proto=tiny_models.spm_model())
    assert bpe.get_vocab_size() == spm.vocab_size() == tiny_models.VOCAB
    assert bpe.decode(bpe.encode("the rate, é").ids) == spm.decode(spm.encode("the rate, é")) == "the rate, é"
    assert (spm.unk_id(), spm.bos_id(), spm.eos_id()) == (0, 1, 2)


@pytest.mark.torch
@pytest.mark.parametrize("case", [c for c in tiny_models.CASES.values() if c.loads], ids=lambda case: case.name)
def test_transformers_finds_every_tensor_and_no_other(case: tiny_models.Tiny, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tiny_models.write(case, tmp_path)
    causal = case.proof in ("causal", "vision")
    loader = transformers.AutoModelForCausalLM if causal else getattr(transformers, case.config["architectures"][0])
    config = transformers.AutoConfig.for_model(**{**case.config, **case.peer}) if case.peer else None
    _, info = loader.from_pretrained(tmp_path, config=config, output_loading_info=True, dtype=torch.float32)
    info["unexpected_keys"] = {key for key in info["unexpected_keys"] if not key.startswith(case.unread)}
    assert {key: value for key, value in info.items() if value} == {}
