"""Calibration: from texts to sequences of token ids, the same for the same options, with a digest of what was used.

The tokens of a text are cut where llama.cpp's tools cut them: one after the other, the rest dropped, and where the
model is used with a bos token, it takes the place of each sequence's first token. So the first sequences of a plain
text are those that llama-imatrix sees (with --parse-special), and peers can be given the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import InputError, UsageError
from ggufround.tune.calibration_sources import BUILT_IN, Source, entries, parse_sources, prefixes
from ggufround.tune.chat_layouts import LAYOUTS, PLAIN, ChatLayout, find_layout, render
from ggufround.tune.text_tokens import TextTokenizer, open_tokenizer

SHORTEST = 256  # tokens that calibration needs at the least, and the length that sequences are not cut below
FEW = 8  # sequences; with fewer, shorter ones are made
SEEDS = 1 << 31  # what every generator takes
MOST = 1 << 25  # tokens; they are all in memory
_MARGIN = 256  # tokens at the end of a cut text, which might have been others had it gone on
_BYTES_PER_TOKEN = 8


@dataclass(frozen=True)
class CalibrationOptions:
    """What the user asks for. `sources` as calibration_sources reads them, () for the built-in text.

    `chat`: None puts conversations into the model's own markers if it has a chat template; True wants the markers, and
    puts the texts of .jsonl files and data sets into turns of the user as well; False writes "role: content".
    """

    sources: tuple[str, ...] = ()
    samples: int = 128  # sequences, the held-out ones included
    seqlen: int = 2048
    seed: int = 42
    chat: bool | None = None
    holdout: float = 0.1  # the part of the sequences that is not tuned on; 0 for none


@dataclass(frozen=True)
class Calibration:
    ids: NDArray[np.int32]  # [sequences, seqlen]
    held_out: NDArray[np.int32]  # [k, seqlen], other sequences of the same texts
    digest: str  # SHA-256 over all of these ids and their shapes
    name: str  # of the sources, without directories
    distinct_tokens: int  # in both, sequences that are equal counted once
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Pool:
    """What sequences are cut from: a source's tokens, or those of several short ones together."""

    name: str
    weight: float
    tokens: NDArray[np.int32]  # [n], without a bos

    def count(self, seqlen: int, bos: int | None) -> int:
        return (len(self.tokens) + (bos is not None)) // seqlen


def load_calibration(options: CalibrationOptions, checkpoint: Checkpoint, vocab: int) -> Calibration:
    """Sequences for a model whose embedding has `vocab` rows.

    Raises UsageError for options that cannot be met, InputError for text that cannot be read, is too short or does not
    go with the model, MissingExtraError where a package is absent.
    """
    _check(options)
    sources = parse_sources(options.sources)
    tokenizer = open_tokenizer(checkpoint)
    notes: list[str] = []
    layout = PLAIN if all(s.kind == "text" for s in sources) else _layout(options.chat, tokenizer, notes)
    wanted = _within_context(options.seqlen, checkpoint, notes)
    need = options.samples * wanted
    pools = [
        _Pool(source.name, source.weight, _tokens(source, need, tokenizer, layout, options.chat is True))
        for source in sources
    ]
    total = sum(len(pool.tokens) for pool in pools)
    if total < min(SHORTEST, need):
        raise InputError(
            f"the calibration text is too short: {_names(sources)} gives {total} tokens, at least {SHORTEST} are "
            "needed, and some ten thousands are useful; give more text, or none to use the built-in text"
        )
    seqlen = _fit(pools, wanted, options.samples, tokenizer)
    pools = _join_short(pools, seqlen, tokenizer)
    counts = _allot(
        min(need // seqlen, sum(pool.count(seqlen, tokenizer.bos) for pool in pools)),
        [pool.weight for pool in pools],
        [pool.count(seqlen, tokenizer.bos) for pool in pools],
    )
    cut = np.concatenate([_cut(pool, n, seqlen, tokenizer.bos) for pool, n in zip(pools, counts, strict=True)])
    _check_ids(cut, vocab, checkpoint)
    if len(pools) > 1:
        cut = cut[_order(options.seed, "sources", len(cut))]
    held = np.sort(_order(options.seed, "held out", len(cut))[: _held(len(cut), options.holdout)])
    ids, held_out = np.delete(cut, held, axis=0), cut[held]
    distinct = len(np.unique(cut, axis=0)) * seqlen
    if any(source.kind == "built-in" for source in sources):
        notes.append(
            f"calibrated on the {BUILT_IN} ({cut.size:,} tokens); more text, and closer to the model's use, is better"
        )
    if len(cut) < need // seqlen:
        notes.append(f"asked for {options.samples} x {wanted} tokens, the text gives {len(cut)} x {seqlen}")
    if len(pools) > 1:
        notes += _shares(pools, counts)
    notes.append(
        f"calibration on {_names(sources)}: {len(cut)} sequences of {seqlen} tokens, {distinct:,} of them distinct; "
        f"{len(held) or 'none'} of the sequences {'is' if len(held) == 1 else 'are'} held out"
    )
    return Calibration(ids, held_out, _digest(ids, held_out), _names(sources), distinct, tuple(notes))


def _check(options: CalibrationOptions) -> None:
    for name, value, least in (("samples", options.samples, 1), ("seqlen", options.seqlen, 16)):
        if not least <= value or options.samples * options.seqlen > MOST:
            raise UsageError(
                f"{options.samples} samples of {options.seqlen} tokens: {name} must be at least {least}, and both "
                f"together no more than {MOST:,} tokens"
            )
    if not 0 <= options.seed < SEEDS:
        raise UsageError(f"the seed must be from 0 to {SEEDS - 1:,}, not {options.seed}")
    if not 0 <= options.holdout <= 0.5:
        raise UsageError(f"the held-out part must be from 0 to 0.5, not {options.holdout}")


def _layout(chat: bool | None, tokenizer: TextTokenizer, notes: list[str]) -> ChatLayout:
    if chat is False or (chat is None and not tokenizer.template):
        return PLAIN
    found = find_layout(tokenizer.has_marker, tokenizer.template)
    if found is not None:
        return found
    missing = "the tokenizer has none of the known chat markers (" + ", ".join(row.markers[0] for row in LAYOUTS) + ")"
    if chat:
        raise UsageError(f"{missing}; leave out --chat to have conversations written as plain text")
    notes.append(f"{missing}: conversations are written as plain text")
    return PLAIN


def _within_context(seqlen: int, checkpoint: Checkpoint, notes: list[str]) -> int:
    config = checkpoint.config
    text = config.get("text_config")
    limit = (text if isinstance(text, dict) else config).get("max_position_embeddings")
    if not isinstance(limit, int) or not 16 <= limit < seqlen:
        return seqlen
    notes.append(f"the model has {limit} positions: sequences of that length, not of {seqlen}")
    return limit


def _tokens(source: Source, need: int, tokenizer: TextTokenizer, layout: ChatLayout, chat: bool) -> NDArray[np.int32]:
    """The source's first `need` tokens, fewer if it has no more: int32 [n]. InputError if it has none."""
    if source.kind == "text":
        ids = _text_tokens(source, need, tokenizer)
    else:
        ids = []
        for entry in entries(source):
            turns = (("user", entry),) if chat and isinstance(entry, str) else entry
            text = turns if isinstance(turns, str) else render(turns, layout)
            if ids:
                ids += _between(ids, tokenizer)
            ids += tokenizer.encode(text)
            if len(ids) >= need:
                break
    if not ids:
        raise InputError(f"the calibration text {source.place} is empty")
    return np.array(ids[:need], np.int64).astype(np.int32)


def _text_tokens(source: Source, need: int, tokenizer: TextTokenizer) -> list[int]:
    """A text is one piece, tokenized as a whole, but of a long one not more than is needed."""
    ids: Sequence[int] = ()
    for text in prefixes(Path(source.place), (need + _MARGIN) * _BYTES_PER_TOKEN):
        ids = tokenizer.encode(text) if text.strip() else ()
        if len(ids) >= need + _MARGIN:
            break
    return list(ids)


def _between(ids: Sequence[int], tokenizer: TextTokenizer) -> Sequence[int]:
    """What stands between two texts: the end token, unless the first one has ended so, perhaps with a newline."""
    if tokenizer.eos is None:
        return tokenizer.encode("\n")
    return () if tokenizer.eos in ids[-2:] else (tokenizer.eos,)


def _check_ids(ids: NDArray[np.int32], vocab: int, checkpoint: Checkpoint) -> None:
    largest = int(ids.max())
    if largest >= vocab:
        raise InputError(
            f"the tokenizer of {checkpoint.source} disagrees with the model: the calibration text has the token "
            f"{largest}, but the embedding has {vocab} rows; the tokenizer files belong to another model, or tokens "
            "were added without a row"
        )


def _fit(pools: Sequence[_Pool], seqlen: int, samples: int, tokenizer: TextTokenizer) -> int:
    """The longest of `seqlen` and the powers of two down to SHORTEST that gives a few sequences."""

    def count(length: int) -> int:
        return sum(pool.count(length, tokenizer.bos) for pool in _join_short(pools, length, tokenizer))

    while count(seqlen) < min(FEW, samples) and seqlen > SHORTEST:
        seqlen = max(SHORTEST, 1 << (seqlen - 1).bit_length() - 1)
    return seqlen


def _join_short(pools: Sequence[_Pool], seqlen: int, tokenizer: TextTokenizer) -> list[_Pool]:
    """Sources too short for one sequence joined to their neighbours, so that nothing given is left out."""
    out: list[_Pool] = []
    for pool in pools:
        if out and min(out[-1].count(seqlen, tokenizer.bos), pool.count(seqlen, tokenizer.bos)) == 0:
            # the short one first, where it is used for certain
            first, second = sorted((out.pop(), pool), key=lambda one: one.count(seqlen, tokenizer.bos) > 0)
            between = np.array(_between(first.tokens[-2:].tolist(), tokenizer), np.int32)
            tokens = np.concatenate([first.tokens, between, second.tokens])
            pool = _Pool(f"{first.name} with {second.name}", first.weight + second.weight, tokens)
        out.append(pool)
    return out


def _allot(total: int, weights: Sequence[float], available: Sequence[int]) -> list[int]:
    """How many of `total` sequences each pool gives: in proportion to the weights (Sainte-Laguë's divisors), and where
    one has too few, the others give more."""
    counts = [0] * len(weights)
    for _ in range(total):
        open_ones = [i for i, most in enumerate(available) if counts[i] < most]
        best = min(open_ones, key=lambda i: ((counts[i] + 0.5) / weights[i], i))
        counts[best] += 1
    return counts


def _cut(pool: _Pool, count: int, seqlen: int, bos: int | None) -> NDArray[np.int32]:
    """The pool's first sequences: int32 [count, seqlen]."""
    if bos is None:
        return pool.tokens[: count * seqlen].reshape(count, seqlen)
    marked = np.concatenate([np.array([bos], np.int32), pool.tokens])[: count * seqlen].reshape(count, seqlen)
    marked[:, 0] = bos
    return marked


def _held(sequences: int, part: float) -> int:
    """How many sequences are held out: none of fewer than four."""
    return 0 if sequences < 4 or part == 0 else max(1, round(sequences * part))


def _order(seed: int, purpose: str, count: int) -> NDArray[np.int64]:
    """A permutation of `count` that no version of any library changes."""
    keys = [hashlib.sha256(f"{seed} {purpose} {i}".encode()).digest() for i in range(count)]
    return np.array(sorted(range(count), key=keys.__getitem__), np.int64)


def _shares(pools: Sequence[_Pool], counts: Sequence[int]) -> Iterable[str]:
    total, weight = sum(counts), sum(pool.weight for pool in pools)
    for pool, count in zip(pools, counts, strict=True):
        wanted = total * pool.weight / weight
        short = f", less than its share of {wanted:.0f}" if count < wanted - 1 else ""
        yield f"{pool.name} gives {count} of {total} sequences{short}"


def _names(sources: Sequence[Source]) -> str:
    if len(sources) == 1:
        return sources[0].name
    return " + ".join(s.name + (f":weight={s.weight:g}" if s.weight != 1 else "") for s in sources)


def _digest(*parts: NDArray[np.int32]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.shape[0]} x {part.shape[1]};".encode())
        digest.update(part.astype("<i4").tobytes())
    return digest.hexdigest()
