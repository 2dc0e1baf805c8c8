"""Quantised files and checkpoints beside the one they were made from: do they go together, how far apart are they?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ggufround.arch.spec import Output
from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.gguf_source import open_gguf
from ggufround.checkpoint.reading import Reader, check_readable
from ggufround.checkpoint.spec import Checkpoint
from ggufround.conversion import Progress
from ggufround.errors import InputError, UnsupportedError, UsageError
from ggufround.evaluate.chains import Candidate, evaluate_weights
from ggufround.evaluate.summary import Evaluation, Scored
from ggufround.gguf_file import Field
from ggufround.planning import Options, Plan, build
from ggufround.tune.outputs import ReadOutput, output_weights
from ggufround.tune.weights import source_weights

TOKENS = "tokenizer.ggml.tokens"
ENDS = ("token_embd.weight", "output.weight")  # one row a token; a converter leaves rows beyond the vocabulary out
# What has no influence on what our forward pass computes, or is no part of the model.
UNUSED = ("context_length", "vocab_size", "rope.dimension_count")


@dataclass(frozen=True)
class Reference:
    """The full-precision model and what a GGUF file made of it holds."""

    checkpoint: Checkpoint
    plan: Plan

    @property
    def metadata(self) -> Mapping[str, Field]:
        return self.plan.targets[0].metadata

    @property
    def outputs(self) -> tuple[Output, ...]:
        return self.plan.outputs


@dataclass(frozen=True)
class Model:
    """A file that goes with the reference. `size`: bytes of all its parts."""

    checkpoint: Checkpoint
    size: int
    bits_per_weight: float
    notes: tuple[str, ...]


def open_reference(model: str) -> Reference:
    """Raises UsageError for a .gguf, else what planning a conversion of it raises."""
    checkpoint = open_checkpoint(model)
    if checkpoint.is_gguf:
        raise UsageError(f"--reference wants the checkpoint that the files were made from, not a .gguf such as {model}")
    return Reference(checkpoint, build(model, Options(types=("f32",)), checkpoint))


def open_model(path: Path, reference: Reference) -> Model:
    """`path`, all its parts if it is split; a folder is a checkpoint. Raises InputError unless its tensors and its
    vocabulary are those of the reference's GGUF file, UnsupportedError for a type that cannot be read."""
    if path.is_dir():
        return _open_folder(path, reference)
    found = open_gguf(str(path), path)
    ours, theirs = (m.get("general.architecture") for m in (reference.metadata, found.metadata))
    if theirs is None or ours is None or theirs.value != ours.value:
        stated = "no architecture" if theirs is None else f"the architecture {theirs.value}"
        raise InputError(f"{path} states {stated}, {reference.checkpoint.source} is {ours.value if ours else None}")
    held = {output.name: output.shape for output in reference.outputs}
    for name, shape in held.items():
        if name not in found.tensors:
            raise InputError(f"{path} lacks {name}, which {reference.checkpoint.source} gives: another model")
        if found.tensors[name].shape != shape:
            raise InputError(
                f"{path}: {name} is {list(found.tensors[name].shape)}, {reference.checkpoint.source} makes it "
                f"{list(shape)}: another model"
            )
        check_readable(found.tensors[name])
    if more := [name for name in found.tensors if name not in held]:
        raise UnsupportedError(
            f"{path} holds {len(more)} tensors that {reference.checkpoint.source} does not give (first: {more[0]})"
        )
    notes = (*_token_notes(path, found.metadata, reference), *_key_notes(path, found.metadata, reference))
    refs = [r for ref in found.tensors.values() for r in (ref, ref.scale) if r is not None]
    bits = 8 * sum(ref.nbytes for ref in refs) / sum(prod(ref.shape) for ref in found.tensors.values())
    return Model(found, _size(found), bits, notes)


def _open_folder(path: Path, reference: Reference) -> Model:
    """A checkpoint whose tensors are the reference's. Raises InputError otherwise."""
    found, given = open_checkpoint(str(path)), reference.checkpoint
    for name, ref in given.tensors.items():
        other = found.tensors.get(name)
        if other is None or other.shape != ref.shape:
            stated = "lacks it" if other is None else f"makes it {list(other.shape)}"
            raise InputError(f"{given.source} holds {name} {list(ref.shape)}, {path} {stated}: another model")
        check_readable(other)
    size = _size(found)
    return Model(found, size, 8 * size / sum(prod(ref.shape) for ref in found.tensors.values()), ())


def _size(found: Checkpoint) -> int:
    """Bytes of the files that hold weights."""
    return sum(part.stat().st_size for part in {ref.path for ref in found.tensors.values()})


def _token_notes(path: Path, metadata: Mapping[str, Field], reference: Reference) -> list[str]:
    ours, theirs = (list(m[TOKENS].value) if TOKENS in m else [] for m in (reference.metadata, metadata))
    differ = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
    if len(ours) != len(theirs) or len(differ) > len(ours) // 100:
        raise InputError(
            f"{path} has another vocabulary than {reference.checkpoint.source}: {len(theirs)} tokens beside "
            f"{len(ours)}, {len(differ)} of them with another text; it was made from another model"
        )
    return [f"{path}: {len(differ)} tokens have another text than the model's (first: {differ[0]})"] if differ else []


def _key_notes(path: Path, metadata: Mapping[str, Field], reference: Reference) -> Iterator[str]:
    """Hyper-parameters that the file states otherwise: llama.cpp would use them, we use the reference's."""
    prefix = f"{reference.plan.architecture}."
    for key, ours in reference.metadata.items():
        theirs = metadata.get(key)
        if key.startswith(prefix) and not key.endswith(UNUSED) and theirs is not None and _differ(ours, theirs):
            yield f"{path}: {key} is {theirs.value!r:.60}, the model's {ours.value!r:.60}, which is used"


def _differ(ours: Field, theirs: Field) -> bool:
    a, b = np.asarray(ours.value), np.asarray(theirs.value)
    if a.dtype.kind in "fiub" and b.dtype.kind in "fiub":
        return a.shape != b.shape or not np.allclose(a, b, rtol=1e-6, atol=0)
    return bool(ours.value != theirs.value)


@contextmanager
def as_candidate(name: str, model: Model, reference: Reference) -> Iterator[Candidate]:
    """The file's weights, dequantised, by the names of the reference's tensors; the file is open within."""
    if not model.checkpoint.is_gguf:
        with Reader(model.checkpoint) as reader:
            yield Candidate(name, *source_weights(model.checkpoint, reader))
        return
    ends = {output.name: output for output in reference.outputs if output.name in ENDS}
    embedding = ends[ENDS[0]].pieces[0].source.name
    # a head that the converter leaves out since it is the embedding
    dropped = {key for key, _ in reference.plan.dropped if key.endswith("lm_head.weight")}
    with Reader(model.checkpoint) as reader:
        read, read_rows = output_weights(reference.outputs, _reading(model.checkpoint, reader))

        def rows(key: str, numbers: NDArray[np.int64]) -> Tensor:
            return read_rows(embedding if key in dropped else key, numbers)

        yield Candidate(name, read, rows, min(output.shape[0] for output in ends.values()))


def _reading(checkpoint: Checkpoint, reader: Reader) -> ReadOutput:
    scratch = np.empty(0, np.uint8)  # the reader takes what it needs

    def rows(name: str, first: int, count: int) -> NDArray[np.float32]:
        ref = checkpoint.tensors[name]
        out = np.empty((count, ref.columns), np.float32)
        reader.read_rows(ref, first, count, out, scratch)
        return out

    return rows


def evaluate(
    files: Sequence[str | Path],
    reference: str | Path | Reference,
    ids: NDArray[np.integer],
    *,
    scored: Scored = "half",
    progress: Progress | None = None,
    threads: int | None = None,
    device: str = "cpu",
) -> tuple[Evaluation, ...]:
    """Each GGUF file or quantised checkpoint beside the checkpoint `reference` on token ids [chunks, context].

    Raises what `open_reference`, `open_model` and `evaluate_weights` raise, before the first long step where it can.
    """
    known = reference if isinstance(reference, Reference) else open_reference(str(reference))
    models = [open_model(Path(file), known) for file in files]
    with ExitStack() as stack:
        candidates = [
            stack.enter_context(as_candidate(str(file), model, known))
            for file, model in zip(files, models, strict=True)
        ]
        results = evaluate_weights(
            known.checkpoint, candidates, ids, scored=scored, progress=progress, threads=threads, device=device
        )
    return tuple(
        replace(result, size=model.size, bits_per_weight=model.bits_per_weight, notes=model.notes)
        for result, model in zip(results, models, strict=True)
    )


__all__ = ["Candidate", "Evaluation", "Model", "Reference", "Scored", "evaluate", "evaluate_weights", "open_reference"]
