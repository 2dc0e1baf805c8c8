"""Tokens with ranks become tokens with merges, and llama.cpp cuts text by them as tiktoken does."""

from __future__ import annotations

import base64
import random
from pathlib import Path

import pytest

from ggufround.errors import InputError
from ggufround.tokenizer import load_vocab
from ggufround.tokenizer.pretokenizers import byte_letters
from ggufround.tokenizer.tiktoken import read_ranks
from tiny_tokenizers import TEXT, Case, dump, merges

LETTERS = byte_letters()


def words() -> list[bytes]:
    """Bytes in an order of their own, then tokens as merges of a text make them."""
    singles = [bytes([b]) for b in range(256)]
    random.Random(3).shuffle(singles)
    joined = ["".join(pair) for pair in merges(TEXT.split(), 90)]
    return singles + [word.encode() for word in joined if word.isascii()]


def lines(tokens: list[bytes]) -> bytes:
    return b"".join(base64.b64encode(token) + f" {rank}\n".encode() for rank, token in enumerate(tokens))


def case(tokens: list[bytes], size: int) -> Case:
    named = {str(len(tokens) + 1): {"content": "[BOS]", "special": True}}
    files = {"tiktoken.model": lines(tokens)} | dump(tokenizer_config_json={"added_tokens_decoder": named})
    return Case(files, {"vocab_size": size, "bos_token_id": len(tokens) + 1}, ("bpe", "kimi"))


def by_rank(text: bytes, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's rule, as its documentation has it: the joint of the lowest rank first."""
    found = [text[i : i + 1] for i in range(len(text))]
    while True:
        joints = [(ranks[a + b], i) for i, (a, b) in enumerate(zip(found, found[1:], strict=False)) if a + b in ranks]
        if not joints:
            return [ranks[part] for part in found]
        at = min(joints)[1]
        found[at : at + 2] = [found[at] + found[at + 1]]


def test_merges_cut_words_as_ranks_do(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    tokens = words()
    made = case(tokens, len(tokens) + 300)
    vocab = load_vocab(made.checkpoint(tmp_path), made.order)
    texts = vocab.metadata["tokenizer.ggml.tokens"].value
    pairs = [tuple(pair.split(" ")) for pair in vocab.metadata["tokenizer.ggml.merges"].value]
    assert len(pairs) == len(tokens) - 256
    tokenizer = Tokenizer(BPE({text: i for i, text in enumerate(texts[: len(tokens)])}, pairs))
    ranks = {token: i for i, token in enumerate(tokens)}
    for word in TEXT.split():
        shown = "".join(LETTERS[byte] for byte in word.encode())
        assert tokenizer.encode(shown).ids == by_rank(word.encode(), ranks), word


def test_tokens_beyond_the_file_are_special_or_reserved(tmp_path: Path) -> None:
    tokens = words()
    made = case(tokens, len(tokens) + 300)
    found = load_vocab(made.checkpoint(tmp_path), made.order).metadata
    after = found["tokenizer.ggml.tokens"].value[len(tokens) :]
    assert after[:2] == [f"<|reserved_token_{len(tokens)}|>", "[BOS]"]
    assert after[255] == f"<|reserved_token_{len(tokens) + 255}|>"
    assert after[256] == f"[PAD{len(tokens) + 256}]"
    assert set(found["tokenizer.ggml.token_type"].value[len(tokens) :][:256]) == {3}
    assert found["tokenizer.ggml.bos_token_id"].value == len(tokens) + 1
    assert found["tokenizer.ggml.pre"].value == "kimi-k2"


@pytest.mark.parametrize(
    "data",
    [b"YQ== 0\nYQ== 1\n", b"YQ== 1\n", b"Y? 0\n", b"YQ==\n", b"YQ== x\n", b"YQ== 0 1\n", b"= 0\n",
     base64.b64encode(b"a" * 2000) + b" 0\n"],
)  # fmt: skip
def test_a_damaged_file_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="line"):
        read_ranks(data, "tiktoken.model")


def test_more_tokens_than_the_model_has_are_refused(tmp_path: Path) -> None:
    made = case(words(), 300)
    with pytest.raises(InputError, match="but the model has 300"):
        load_vocab(made.checkpoint(tmp_path), made.order)
