"""Calibration: tokens of the built-in text, of files and of data sets, and what is said where they cannot be had."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import tiny_tokenizers
from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import InputError, MissingExtraError, UsageError
from ggufround.tune.calibration import Calibration, CalibrationOptions, _allot, load_calibration
from ggufround.tune.text_tokens import open_tokenizer

VOCAB = 1000
WORDS = [f"word{i} and  some\tmore, {i * i}\n" for i in range(4000)]
TEXT = "".join(WORDS)
BEGIN, END = 376, 378  # of the tiny Llama 3: <|begin_of_text|>, <|eot_id|>; of the tiny Qwen 2: <|im_end|> is 378


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    root = tmp_path_factory.mktemp("models")
    return lambda name: tiny_tokenizers.CASES[name].checkpoint(root / name.replace(" ", "-"))


@pytest.fixture(scope="module")
def gpt2(models: Callable[[str], Checkpoint]) -> Checkpoint:
    return models("gpt2")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def load(checkpoint: Checkpoint, *sources: str | Path, vocab: int = VOCAB, **options: Any) -> Calibration:
    options = {"samples": 8, "seqlen": 32} | options
    return load_calibration(CalibrationOptions(tuple(map(str, sources)), **options), checkpoint, vocab)


def everything(found: Calibration) -> list[list[int]]:
    return sorted(found.ids.tolist() + found.held_out.tolist())


def encoder(checkpoint: Checkpoint) -> Callable[[str], list[int]]:
    tokenizer = Tokenizer.from_file(str(checkpoint.files["tokenizer.json"]))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def text_file(path: Path, text: str = TEXT) -> Path:
    path.write_text(text, newline="")
    return path


# The built-in text


def test_without_sources_the_built_in_text_is_used_and_called_little(gpt2: Checkpoint) -> None:
    found = load(gpt2, samples=128, seqlen=2048)
    assert found.name == "built-in text"
    assert found.ids.shape[1] == 2048
    assert found.ids.dtype == np.int32
    assert 1 <= len(found.held_out) <= 3
    assert found.distinct_tokens == (len(found.ids) + len(found.held_out)) * 2048 < 128 * 2048
    notes = " ".join(found.notes)
    assert "more text, and closer to the model's use, is better" in notes
    assert f"asked for 128 x 2048 tokens, the text gives {len(found.ids) + len(found.held_out)} x 2048" in notes


def test_the_same_options_give_the_same_ids_and_digest_and_others_give_others(gpt2: Checkpoint, scratch: Path) -> None:
    path = text_file(scratch / "same.txt")
    first, again = load(gpt2, path), load(gpt2, path)
    assert np.array_equal(first.ids, again.ids)
    assert first == replace(again, ids=first.ids, held_out=first.held_out)
    others = [load(gpt2, path, **change) for change in ({"samples": 9}, {"seqlen": 33}, {"seed": 43}, {"holdout": 0})]
    assert len({first.digest, *(other.digest for other in others)}) == 5
    assert len(first.digest) == 64


# Plain text


@pytest.mark.parametrize("seed", [-1, 1 << 31, 10**20])
def test_a_seed_that_no_generator_takes_is_refused(gpt2: Checkpoint, seed: int) -> None:
    with pytest.raises(UsageError, match="seed must be from 0"):
        load(gpt2, seed=seed)


def test_the_sequences_of_a_plain_text_are_its_first_chunks_in_order(gpt2: Checkpoint, scratch: Path) -> None:
    path = text_file(scratch / "plain.txt")
    tokens = encoder(gpt2)(TEXT)
    whole = load(gpt2, path, samples=20, holdout=0)
    assert whole.ids.ravel().tolist() == tokens[: 20 * 32]
    assert whole.held_out.shape == (0, 32)
    parted = load(gpt2, path, samples=20)
    assert parted.held_out.shape == (2, 32)
    assert everything(parted) == sorted(whole.ids.tolist())
    assert parted.ids.tolist() == [row for row in whole.ids.tolist() if row not in parted.held_out.tolist()]


@pytest.mark.parametrize("case", ["gpt2", "llama 2", "llama from tokenizer.json alone"])
def test_a_long_text_is_read_only_as_far_as_needed_with_the_tokens_of_the_whole(
    case: str, models: Callable[[str], Checkpoint], scratch: Path
) -> None:
    model = models(case)
    path = text_file(scratch / "long.txt")
    with path.open("ab") as file:
        file.write(b"\xff")  # far behind what is needed: never seen
    tokenizer = open_tokenizer(model)
    tokens = list(tokenizer.encode(TEXT))
    if tokenizer.bos is not None:
        tokens = [tokenizer.bos, *tokens]
    found = load(model, path, samples=10, seqlen=100, holdout=0)
    start = 0 if tokenizer.bos is None else 1
    assert found.ids[:, start:].tolist() == [tokens[i * 100 + start : (i + 1) * 100] for i in range(10)]


def test_every_sequence_starts_with_bos_in_place_of_a_token_where_the_model_wants_it(
    models: Callable[[str], Checkpoint], scratch: Path
) -> None:
    model = models("llama 3")
    path = text_file(scratch / "bos.txt")
    found = load(model, path, samples=6, seqlen=40, holdout=0)
    tokens = [BEGIN, *encoder(model)(TEXT)][: 6 * 40]
    tokens[::40] = [BEGIN] * 6
    assert found.ids.ravel().tolist() == tokens


# Entries of .jsonl files


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60), min_size=1, max_size=30))
def test_short_texts_are_concatenated_and_none_is_lost(gpt2: Checkpoint, scratch: Path, texts: list[str]) -> None:
    texts = ["a first text, so that there is one", *texts]
    encode, end = encoder(gpt2), 376
    wanted: list[int] = []
    for text in filter(str.strip, texts):
        wanted += [end] * (bool(wanted) and end not in wanted[-2:]) + encode(text)
    wanted = wanted[: len(wanted) // 16 * 16]
    path = lines(scratch / "texts.jsonl", *({"text": text} for text in texts), {"text": "z" * 256})
    found = load(gpt2, path, samples=len(wanted) // 16, seqlen=16, holdout=0) if wanted else None
    assert found is None or found.ids.ravel().tolist() == wanted


def test_without_an_end_token_texts_are_parted_by_a_newline(models: Callable[[str], Checkpoint], scratch: Path) -> None:
    model = models("roberta processor, normalizer flags")
    encode = encoder(model)
    path = lines(scratch / "no-eos.jsonl", {"text": "one two three four"}, {"text": "five six seven eight nine"})
    found = load(model, path, samples=1, seqlen=24)
    wanted = [BEGIN, *encode("one two three four"), *encode("\n"), *encode("five six seven eight nine")]
    assert found.ids.ravel().tolist() == wanted[:24]


CHAT = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello {you}?"},
                     {"role": "assistant", "content": "Hi. " * 300}]}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "chat", "start"),
    [
        ("qwen 2", None, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello {you}?<|im_end|>\n"),
        ("qwen 2", True, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello {you}?<|im_end|>\n"),
        ("qwen 2", False, "system: Be brief.\nuser: Hello {you}?\nassistant: Hi."),
        ("gpt2", None, "system: Be brief.\nuser: Hello {you}?\nassistant: Hi."),
        ("llama 3", None, "system: Be brief.\nuser: Hello {you}?\nassistant: Hi."),
    ],
)
def test_conversations_have_the_models_markers_if_it_has_a_chat_template(
    case: str, chat: bool | None, start: str, models: Callable[[str], Checkpoint], scratch: Path
) -> None:
    model = models(case)
    found = load(model, lines(scratch / "chat.jsonl", CHAT), samples=1, seqlen=256, chat=chat)
    wanted = encoder(model)(start)
    skip = case == "llama 3"  # its bos
    assert found.ids[0, skip : skip + len(wanted)].tolist() == wanted
    unknown = "none of the known chat markers" in " ".join(found.notes)
    assert unknown == (case == "llama 3")  # it has a template, but the tiny tokenizer lacks the markers


def test_chat_puts_texts_into_turns_and_ends_none_twice(models: Callable[[str], Checkpoint], scratch: Path) -> None:
    model = models("qwen 2")
    path = lines(scratch / "turns.jsonl", *({"text": f"text {i} " * 9} for i in range(40)))
    found = load(model, path, chat=True, holdout=0)
    turns = "".join(f"<|im_start|>user\n{f'text {i} ' * 9}<|im_end|>\n" for i in range(40))
    assert found.ids.ravel().tolist() == encoder(model)(turns)[: found.ids.size]


def test_chat_needs_known_markers(gpt2: Checkpoint, scratch: Path) -> None:
    with pytest.raises(UsageError, match="none of the known chat markers .*leave out --chat"):
        load(gpt2, lines(scratch / "chat2.jsonl", CHAT), chat=True)


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A" * 300}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "image"}]},
                      {"role": "assistant", "content": "A" * 300}]},
    ],
)  # fmt: skip
def test_other_forms_of_messages(row: dict[str, Any], gpt2: Checkpoint, scratch: Path) -> None:
    found = load(gpt2, lines(scratch / "forms.jsonl", row), samples=1, seqlen=16)
    assert found.ids.ravel().tolist() == encoder(gpt2)("user: Q\nassistant: " + "A" * 300)[:16]


def test_tool_calls_count_as_what_was_said(gpt2: Checkpoint, scratch: Path) -> None:
    call = [{"name": "clock", "arguments": {"zone": "Europe/Berlin", "format": "24 hours"}}]
    row = {"messages": [{"role": "assistant", "content": None, "tool_calls": call}]}
    found = load(gpt2, lines(scratch / "tools.jsonl", row), samples=1, seqlen=16)
    assert found.ids.ravel().tolist() == encoder(gpt2)(f"assistant: {json.dumps(call)}\n")[:16]


# Too little text


@pytest.mark.parametrize(
    ("tokens", "samples", "seqlen", "shape"),
    [
        (4000, 4, 512, (4, 512)),  # enough
        (4000, 128, 512, (15, 256)),  # seven of 512 are too few
        (9000, 128, 1024, (8, 1024)),
        (5000, 128, 2048, (9, 512)),
        (2500, 128, 2048, (9, 256)),
        (1000, 128, 2048, (3, 256)),  # no shorter than 256
        (300, 128, 2048, (1, 256)),
        (3000, 4, 2048, (5, 512)),
        (900, 128, 100, (9, 100)),  # short ones that were asked for stay as they are
        (600, 2, 300, (2, 300)),
    ],
)
def test_a_short_text_is_scaled_down(
    tokens: int, samples: int, seqlen: int, shape: tuple[int, int], gpt2: Checkpoint, scratch: Path
) -> None:
    path = text_file(scratch / "short.txt", "z" * tokens)
    found = load(gpt2, path, samples=samples, seqlen=seqlen, holdout=0)
    assert found.ids.shape == shape
    scaled = any(note == f"asked for {samples} x {seqlen} tokens, the text gives {shape[0]} x {shape[1]}"
                 for note in found.notes)  # fmt: skip
    assert scaled == (shape[0] * shape[1] < samples * seqlen)


def test_a_text_that_repeats_itself_has_fewer_distinct_tokens(gpt2: Checkpoint, scratch: Path) -> None:
    found = load(gpt2, text_file(scratch / "repeats.txt", "z" * 999), samples=16, seqlen=16)
    assert found.distinct_tokens == 16
    assert "16 of them distinct" in found.notes[-1]


@pytest.mark.parametrize(("samples", "held"), [(1, 0), (3, 0), (4, 1), (14, 1), (16, 2), (40, 4)])
def test_a_tenth_is_held_out(samples: int, held: int, gpt2: Checkpoint, scratch: Path) -> None:
    found = load(gpt2, text_file(scratch / "tenth.txt"), samples=samples)
    assert (len(found.ids), len(found.held_out)) == (samples - held, held)


def test_no_sequence_is_longer_than_the_model_has_positions(gpt2: Checkpoint, scratch: Path) -> None:
    small = replace(gpt2, config={**gpt2.config, "max_position_embeddings": 64})
    found = load(small, text_file(scratch / "positions.txt"), samples=4, seqlen=128, holdout=0)
    assert found.ids.shape == (4, 64)
    assert "the model has 64 positions: sequences of that length, not of 128" in found.notes
    assert "asked for" not in " ".join(found.notes)


# Several sources


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_sequences_are_allotted_in_proportion(data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.01, 100), min_size=1, max_size=5))
    most = data.draw(st.lists(st.integers(0, 60), min_size=len(weights), max_size=len(weights)))
    total = data.draw(st.integers(0, sum(most)))
    counts = _allot(total, weights, most)
    assert sum(counts) == total
    assert all(count <= limit for count, limit in zip(counts, most, strict=True))
    if all(count < limit for count, limit in zip(counts, most, strict=True)):
        shares = [total * weight / sum(weights) for weight in weights]
        assert all(abs(c - s) < max(1, len(weights) / 2) for c, s in zip(counts, shares, strict=True))


def test_weighted_sources_are_mixed_and_each_keeps_its_first_sequences(gpt2: Checkpoint, scratch: Path) -> None:
    letters = text_file(scratch / "letters.txt")
    numbers = text_file(scratch / "numbers.txt", " ".join(str(i * 7919) for i in range(3000)))
    encode = encoder(gpt2)
    found = load(gpt2, f"{letters}:weight=3", numbers, samples=40, holdout=0)
    rows = [tuple(row) for row in found.ids.tolist()]
    first, second = (
        [tuple(tokens[i * 32 : i * 32 + 32]) for i in range(count)]
        for tokens, count in ((encode(letters.read_text()), 30), (encode(numbers.read_text()), 10))
    )
    assert sorted(rows) == sorted(first + second)
    assert rows[:30] != first  # mixed
    assert load(gpt2, f"{letters}:weight=3", numbers, samples=40, seed=1, holdout=0).digest != found.digest
    assert found.name == "letters.txt:weight=3 + numbers.txt"
    assert "letters.txt gives 30 of 40 sequences" in found.notes


def test_a_source_with_too_little_gives_what_it_has_and_the_others_the_rest(gpt2: Checkpoint, scratch: Path) -> None:
    large, small = text_file(scratch / "large.txt"), text_file(scratch / "small.txt", "z" * 99)
    found = load(gpt2, large, small, samples=20)
    assert "small.txt gives 3 of 20 sequences, less than its share of 10" in found.notes
    assert len(found.ids) + len(found.held_out) == 20


def test_sources_shorter_than_a_sequence_are_joined_and_none_is_dropped(gpt2: Checkpoint, scratch: Path) -> None:
    encode = encoder(gpt2)
    one, two = text_file(scratch / "one.txt", "0123456789"), text_file(scratch / "two.txt", "abc(def)ghi(jkl)")
    large = text_file(scratch / "large2.txt")
    found = load(gpt2, large, one, two, samples=4, holdout=0)
    wanted = [*encode("abc(def)ghi(jkl)"), 376, *encode("0123456789"), 376, *encode(TEXT)]
    assert found.ids.ravel().tolist() == wanted[:128]


# Data sets of the hub


class Hub:
    """`datasets`, with one data set."""

    def __init__(self, rows: Iterator[Any] | list[Any], error: Exception | None = None) -> None:
        self.rows, self.error, self.calls = rows, error, list[Any]()

    def load_dataset(self, *args: Any, **named: Any) -> Any:
        self.calls.append((args, named))
        if self.error:
            raise self.error
        return self.rows


def test_a_data_set_is_streamed_as_far_as_needed(
    gpt2: Checkpoint, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def rows() -> Iterator[Any]:
        for i in range(10**9):
            seen.append(i)
            yield {"id": i, "body": f"row number {i} of many"}

    hub = Hub(rows())
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=hub.load_dataset))
    found = load(gpt2, "user/name:config=en:split=validation:field=body:weight=2", samples=4)
    assert hub.calls == [(("user/name", "en"), {"split": "validation", "streaming": True})]
    assert 4 < len(seen) < 20
    path = lines(scratch / "rows.jsonl", *({"text": f"row number {i} of many"} for i in range(20)))
    assert found.digest == load(gpt2, path, samples=4).digest
    assert found.name == "user/name"


def failing() -> Iterator[Any]:
    yield {"text": "a row"}
    raise ConnectionError("connection reset\nmore")


@pytest.mark.parametrize(
    ("hub", "message"),
    [
        (
            Hub([], RuntimeError("no such data set\ndetails")),
            "cannot read split train .*user/name.*: no such data set;",
        ),
        (Hub(failing()), "cannot read split train of the data set user/name from the hub: connection reset; check"),
        (Hub([["no", "names"]]), "row 1 is a list; a row must have named fields"),
        (Hub([{"label": 3}]), "split train, row 1 has none of the fields text, .*but 'label'; say which"),
        (Hub([{"text": None}, {"text": " "}]), "the calibration text user/name is empty"),
        (Hub([{"text": b"bytes"}]), "must hold a text or a list of messages, not bytes"),
    ],
)
def test_a_data_set_that_cannot_be_had(
    hub: Hub, message: str, gpt2: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=hub.load_dataset))
    with pytest.raises(InputError, match=message):
        load(gpt2, "user/name")


def test_the_hub_needs_the_tune_extra(gpt2: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "ggufround\[tune\]"'):
        load(gpt2, "user/name")


# Bad input


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.txt", b"", "empty.txt is empty"),
        ("blank.txt", b" \n\t\n" * 100, "blank.txt is empty"),
        ("empty.jsonl", b"", "empty.jsonl is empty"),
        ("blank.jsonl", b'{"text": ""}\n\n{"text": "  "}\n{"messages": []}\n', "blank.jsonl is empty"),
        ("few.txt", b"Twelve words are far too few for anything that calibration could use.",
         "too short: few.txt gives .* tokens, at least 256"),
        ("latin.txt", "Stra\u00dfe ".encode("latin-1") * 500, "latin.txt is not UTF-8: .* at byte 4"),
        ("cut.txt", "Stra\u00dfe".encode()[:5], "cut.txt is not UTF-8"),
        ("utf16.txt", "plain".encode("utf-16-le") * 500, "zero byte at character 1"),
        ("bad.jsonl", b'{"text": "x"}\n\n{"text": "y"\n', "bad.jsonl, line 3 is not sound JSON"),
        ("latin.jsonl", '{"text": "\u00df"}'.encode("latin-1"), "latin.jsonl, line 1 is not sound JSON"),
        ("list.jsonl", b'["text"]\n', "line 1 must hold a JSON object, not a list"),
        ("fields.jsonl", b'{"text": "x"}\n{"txt": "y", "n": 1}\n',
         "line 2 has none of the fields text, messages, .*, but 'txt', 'n'; say which"),
        ("number.jsonl", b'{"text": 7}\n', "the field 'text' must hold a text or a list of messages, not int"),
        ("turn.jsonl", b'{"messages": ["hello"]}\n', "line 1, field 'messages': a message must be"),
        ("role.jsonl", b'{"messages": [{"content": "x"}]}\n', "a message must be"),
    ],
)  # fmt: skip
def test_bad_files(name: str, data: bytes, message: str, gpt2: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        load(gpt2, tmp_path / name, samples=128, seqlen=2048)


def test_a_field_that_is_not_there(gpt2: Checkpoint, scratch: Path) -> None:
    path = lines(scratch / "field.jsonl", {"text": "x"})
    with pytest.raises(InputError, match="line 1 has not the field 'body', but 'text'; say which"):
        load(gpt2, f"{path}:field=body")


def test_a_line_without_end_is_refused(gpt2: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggufround.tune.calibration_sources.LINE_LIMIT", 1000)
    with pytest.raises(InputError, match=r"line 2 has more than 1000 bytes"):
        load(gpt2, lines(tmp_path / "long.jsonl", {"text": "x"}, {"text": "y" * 1000}))


def test_a_fifo_does_not_block(gpt2: Checkpoint, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.txt")
    with pytest.raises(InputError, match="not a regular file"):
        load(gpt2, tmp_path / "fifo.txt")


def test_a_source_given_twice_is_refused(gpt2: Checkpoint, scratch: Path) -> None:
    path = text_file(scratch / "twice.txt")
    with pytest.raises(UsageError, match=r"given twice; to count it double, write .*twice.txt:weight=2"):
        load(gpt2, path, f"{path}:weight=2")


@pytest.mark.parametrize(
    "options",
    [{"samples": 0}, {"seqlen": 8}, {"samples": 1 << 20, "seqlen": 1 << 20}, {"holdout": 0.6}, {"holdout": -1}],
)
def test_options_that_cannot_be_met(options: dict[str, Any], gpt2: Checkpoint) -> None:
    with pytest.raises(UsageError, match="must be"):
        load(gpt2, **options)


@pytest.mark.parametrize(("case", "source"), [("gpt2", "plain"), ("llama 3", "bos")])
def test_a_tokenizer_that_disagrees_with_the_model(
    case: str, source: str, models: Callable[[str], Checkpoint], scratch: Path
) -> None:
    model = models(case)
    path = text_file(scratch / f"{source}.txt")
    largest = max(map(max, load(model, path).ids.tolist()))
    assert load(model, path, vocab=largest + 1)
    with pytest.raises(InputError, match=f"disagrees with the model: .* the token {largest}, but .* {largest} rows"):
        load(model, path, vocab=largest)
