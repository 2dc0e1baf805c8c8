"""How far quantised models are from the full-precision one: perplexity and KL divergence, streamed block by block.

The reference and any number of candidates go through the model side by side, a block of one of them at a time. What is
held in memory are the hidden states of all chunks, chunks * context * columns * 4 bytes for the reference and for each
candidate, beside one block and a few slabs of the output matrix. All is computed in float32: the figures are those of
the stored weights alone. llama.cpp also rounds activations to 8 bits, so that its own figures are slightly higher.

Text is cut as llama.cpp's perplexity tool cuts it, and the same positions are scored: those of the second half of each
chunk, which have seen half a context or more.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ggufround import measure
from ggufround.checkpoint.reading import Reader
from ggufround.checkpoint.spec import Checkpoint
from ggufround.conversion import Progress
from ggufround.errors import InputError
from ggufround.evaluate.scores import Divergence, Softmax
from ggufround.evaluate.summary import Evaluation, Scored, Tokens, summarize
from ggufround.tune.device import choose
from ggufround.tune.skeleton import Skeleton
from ggufround.tune.weights import ReadRows, ReadTensor, source_weights

BATCH = 2048  # tokens that go through a block at once
HEAD_SLAB = 1 << 22  # weights of the output matrix in memory at once, for each model
HEAD_TOKENS = 512  # positions whose logits for a slab are in memory at once


@dataclass(frozen=True)
class Candidate:
    """Weights to be judged, by the checkpoint's tensor names; `vocab`: rows of its output matrix, if not all."""

    name: str
    read: ReadTensor
    read_rows: ReadRows
    vocab: int | None = None


class _Chain:
    """A model on its way through the blocks: its hidden states float32 [chunks, context, columns], on the CPU."""

    def __init__(self, candidate: Candidate, checkpoint: Checkpoint, device: torch.device) -> None:
        self.name, self.read, self.read_rows = candidate.name, candidate.read, candidate.read_rows
        self.skeleton = Skeleton(checkpoint, device)
        self.hidden = torch.empty(0)

    def embed(self, ids: Tensor) -> None:
        self.hidden = torch.empty(*ids.shape, self.skeleton.hidden)
        for at in _batches(ids.shape):
            self.hidden[at] = self.skeleton.embed(ids[at], self.read_rows).cpu()
        self._check("the embedding")

    def step(self, i: int) -> Iterator[int]:
        """Through block i; yields the chunks of each batch that is done."""
        block = self.skeleton.load(i, self.read)
        for at in _batches(self.hidden.shape):
            self.hidden[at] = self.skeleton.run(i, block, self.hidden[at].to(self.skeleton.device)).cpu()
            yield len(self.hidden[at])
        self.skeleton.unload(i)
        self._check(f"block {i}")

    def keep(self, positions: slice) -> None:
        """From here on only the scored positions: hidden becomes [n, columns]."""
        self.hidden = self.hidden[:, positions].reshape(-1, self.skeleton.hidden).clone()
        self.skeleton.load_head(self.read)

    def head_rows(self, start: int, end: int) -> Tensor:
        """Rows of the output matrix: float32 [end - start, columns], on the device."""
        return self.read_rows(self.skeleton.head_name(), np.arange(start, end)).to(self.skeleton.device)

    def logits(self, at: slice, rows: Tensor, first: int) -> Tensor:
        """Float32 [k, v] on the device; `first`: the number of the first row."""
        return self.skeleton.logits(self.hidden[None, at].to(self.skeleton.device), rows, first)[0]

    def _check(self, where: str) -> None:
        for part in torch.split(self.hidden, 64):
            if not part.isfinite().all():
                raise InputError(f"{self.name}: NaN or infinity after {where}; its weights are damaged or overflow")


def evaluate_weights(
    checkpoint: Checkpoint,
    candidates: Sequence[Candidate],
    ids: NDArray[np.integer],
    *,
    scored: Scored = "half",
    progress: Progress | None = None,
    threads: int | None = None,
    device: str = "cpu",
) -> tuple[Evaluation, ...]:
    """Each candidate beside the checkpoint's own weights on token ids [chunks, context]; no autograd.

    Where a model has more rows in its output matrix than another, the distribution is that over the rows of all.
    Raises InputError for tokens that the models have no row for, and for NaN, naming the block.
    """
    started = time.perf_counter()
    tokens = torch.from_numpy(ids.astype(np.int64))
    chunks, context = tokens.shape
    place = choose(device)
    with ExitStack() as stack:
        reader = stack.enter_context(Reader(checkpoint))
        stack.enter_context(_threads(threads))
        reference = Candidate(checkpoint.source, *source_weights(checkpoint, reader))
        chains = [_Chain(one, checkpoint, place) for one in (reference, *candidates)]
        stack.enter_context(torch.inference_mode())  # not before: models are built outside of it
        vocab = min([chains[0].skeleton.vocab, *(c.vocab for c in candidates if c.vocab is not None)])
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab:
            raise InputError(f"the text has the token {int(tokens.max())}, but the output matrix has {vocab} rows")
        positions = slice(context // 2 if scored == "half" else 0, context - 1)
        targets = tokens[:, positions.start + 1 :].reshape(-1)
        bar = _Bar(progress, chains[0].skeleton, len(chains), chunks, vocab)
        for chain in chains:
            chain.embed(tokens)
        for i in range(chains[0].skeleton.blocks):
            for chain in chains:
                for done in chain.step(i):
                    bar.block(i, done)
        for chain in chains:
            chain.keep(positions)
        results = _scored(chains, targets, vocab, bar)
    seconds, memory = time.perf_counter() - started, measure.peak_memory()
    return tuple(
        summarize(one.name, _per_token(result, chunks), context, scored, seconds, memory)
        for one, result in zip(candidates, results, strict=True)
    )


def _scored(chains: Sequence[_Chain], targets: Tensor, vocab: int, bar: _Bar) -> list[Divergence]:
    """The output matrix, slab by slab, for all positions of all chains."""
    reference, *others = (Softmax(targets) for _ in chains)
    results = [Divergence(reference, other) for other in others]
    for start, end in _slabs(vocab, max(1, HEAD_SLAB // chains[0].skeleton.hidden)):
        first_rows, *rows = (chain.head_rows(start, end) for chain in chains)
        for begin in range(0, len(targets), HEAD_TOKENS):
            at = slice(begin, begin + HEAD_TOKENS)
            logits = chains[0].logits(at, first_rows, start)
            weights, shrink = reference.add(at, logits, start)
            for chain, matrix, other, result in zip(chains[1:], rows, others, results, strict=True):
                theirs = chain.logits(at, matrix, start)
                other.add(at, theirs, start)
                result.add(at, weights, shrink, logits - theirs)
        bar.head(end - start)
    for chain, softmax in zip(chains, (reference, *others), strict=True):
        if not softmax.log_total().isfinite().all():
            raise InputError(f"{chain.name}: NaN or infinity among the logits; its output matrix is damaged")
    return results


def _per_token(result: Divergence, chunks: int) -> Tokens:
    same = result.reference.first == result.other.first
    columns = (result.other.log_probs(), result.reference.log_probs(), result.values(), same.double())
    return Tokens(*(column.reshape(chunks, -1).numpy() for column in columns))


def _batches(shape: Sequence[int]) -> Iterator[slice]:
    """Slices of [chunks, context, ...] with a few sequences each."""
    step = max(1, BATCH // shape[1])
    for start in range(0, shape[0], step):
        yield slice(start, start + step)


def _slabs(rows: int, most: int) -> Iterator[tuple[int, int]]:
    for start in range(0, rows, most):
        yield start, min(rows, start + most)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Bar:
    """Progress in multiplications, thousands of them, so that the time left is about right."""

    def __init__(self, progress: Progress | None, skeleton: Skeleton, chains: int, chunks: int, vocab: int) -> None:
        self.progress = progress
        sizes = {name: prod(ref.shape) // 1000 for name, ref in skeleton.checkpoint.tensors.items()}
        self.blocks = [sum(sizes[name] for name in skeleton.block_names(i)) for i in range(skeleton.blocks)]
        self.a_row = chains * chunks * skeleton.hidden / 2000
        self.done = 0.0
        self.total = chains * chunks * sum(self.blocks) + self.a_row * vocab

    def block(self, i: int, chunks: int) -> None:
        self._add(f"block {i + 1} of {len(self.blocks)}", self.blocks[i] * chunks)

    def head(self, rows: int) -> None:
        self._add("output matrix", self.a_row * rows)

    def _add(self, phase: str, work: float) -> None:
        self.done += work
        if self.progress is not None:
            self.progress(phase, round(self.done), round(self.total))
