"""Importance of a whole model: the full-precision blocks one after the other over all calibration sequences.

What is in memory: one block, the hidden states of all sequences (in a file where they are large), the sums.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ggufround import arch, measure
from ggufround.arch.spec import Output
from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.reading import Reader, check_readable
from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import InputError, UnsupportedError, UsageError
from ggufround.gguf_file import Field, string
from ggufround.quants.imatrix_file import write_imatrix
from ggufround.quants.importance import read_imatrix
from ggufround.tune.activations import Activations, runs
from ggufround.tune.blocks import micro_batch
from ggufround.tune.calibration import Calibration, CalibrationOptions, load_calibration
from ggufround.tune.device import choose, mixed
from ggufround.tune.importance import Squares, collecting, destinations, looking_at, unreached
from ggufround.tune.skeleton import Skeleton
from ggufround.tune.weights import source_weights
from ggufround.version import __version__

Progress = Callable[[str, int, int], None]  # (phase, sequences through a block, in all)
IN_MEMORY = 4 << 30  # bytes of hidden states
CALIBRATION = CalibrationOptions(seqlen=512, holdout=0)  # llama-imatrix's chunks; nothing is left to hold out for
HEAD = "output.weight"


@dataclass(frozen=True)
class Computing:
    """How the model is run. Hidden states of more than `in_memory` bytes lie in an unnamed file in `folder`."""

    device: str = "cpu"
    amp: bool = False  # products in bfloat16
    in_memory: int = IN_MEMORY
    folder: Path | None = None  # None: the system's folder for temporary files


@dataclass(frozen=True)
class Collected:
    squares: Mapping[str, Squares]  # by GGUF tensor name
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What `make_imatrix` did. Time in seconds, memory in bytes."""

    file: Path
    entries: int
    sequences: int
    seqlen: int
    calibration: str  # its name
    digest: str  # of its tokens
    seconds: float
    peak_memory: int
    notes: tuple[str, ...]


def make_imatrix(
    model: str | Path,
    out: str | Path,
    options: CalibrationOptions = CALIBRATION,
    *,
    process_output: bool = False,
    architecture: str | None = None,
    computing: Computing | None = None,
    progress: Progress | None = None,
) -> Report:
    """Writes the importance of `model` (directory or hub id) as the imatrix file `out`: GGUF, or .dat by its name.

    Raises the leaves of GgufroundError, for all that can be seen beforehand before the first weight is read.
    """
    started = time.perf_counter()
    checkpoint, out = open_checkpoint(str(model)), Path(out)
    check_out(out, checkpoint)
    outputs = matrices_of(checkpoint, architecture)
    run = computing or Computing(folder=out.parent)
    skeleton = Skeleton(checkpoint, choose(run.device))
    rows = checkpoint.tensors[skeleton.embedding_name()].rows
    calibration = load_calibration(options, checkpoint, rows)
    found = collect_importance(skeleton, outputs, calibration.ids, process_output, run, progress)
    chunks, chunk_size = calibration.ids.shape
    write_imatrix(out, found.squares, [calibration.name], chunks, chunk_size, _provenance(calibration))
    return Report(
        file=out,
        entries=len(found.squares),
        sequences=chunks,
        seqlen=chunk_size,
        calibration=calibration.name,
        digest=calibration.digest,
        seconds=time.perf_counter() - started,
        peak_memory=measure.peak_memory(),
        notes=calibration.notes + found.notes,
    )


def matrices_of(checkpoint: Checkpoint, architecture: str | None = None) -> tuple[Output, ...]:
    """The GGUF tensors of a checkpoint that are matrices or stacks of them, from headers alone.

    Raises UnsupportedError or InputError for a model that cannot be converted or not be run.
    """
    if checkpoint.is_gguf:
        raise UnsupportedError(
            f"{checkpoint.source}: a .gguf lacks what transformers needs to run the model; give the checkpoint that it "
            f"was made from"
        )
    layout = arch.outputs(arch.architecture_of(checkpoint, architecture), checkpoint)
    found = tuple(output for output in layout.outputs if len(output.shape) > 1)
    for output in found:
        for piece in output.pieces:
            check_readable(piece.source)
    return found


def check_out(out: Path, checkpoint: Checkpoint) -> None:
    """Raises UsageError for an output that would take the place of a part of the model, or of any file that is not an
    imatrix, or that lies in no writable folder."""
    model = {ref.path.resolve() for ref in checkpoint.tensors.values()}
    model |= {path.resolve() for path in checkpoint.files.values()}
    for path in (out, out.with_name(out.name + ".partial")):
        if path.resolve() in model:
            raise UsageError(f"OUT {path} is a file of the model itself; choose another name")
        if path.is_dir():
            raise UsageError(f"OUT {path} is a folder; give a file name such as {path / 'imatrix.gguf'}")
    if not out.parent.is_dir():
        raise UsageError(f"the folder {out.parent} does not exist; create it first")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise UsageError(f"no permission to write into {out.parent}")
    if out.exists():
        try:
            read_imatrix(out)
        except InputError:
            raise UsageError(
                f"OUT {out} exists and is not an imatrix; choose another name, or remove it first"
            ) from None


def collect_importance(
    skeleton: Skeleton,
    outputs: Sequence[Output],
    ids: NDArray[np.int32],
    process_output: bool = False,
    computing: Computing | None = None,
    progress: Progress | None = None,
) -> Collected:
    """Sums of squares of the inputs of all matrices in the blocks for the sequences `ids` [sequences, tokens].

    `process_output` adds the output matrix where it is one of its own, as llama-imatrix's flag does. The embedding is
    never looked at: its rows are taken, not multiplied.
    """
    run = computing or Computing()
    count, length = ids.shape
    folder = None if 4 * ids.size * skeleton.hidden <= run.in_memory else run.folder or Path(tempfile.gettempdir())
    goes_to = destinations(outputs)
    parts = [list(part) for part in runs(count, micro_batch(length))]
    total = count * skeleton.blocks
    found: dict[str, Squares] = {}
    with (
        Reader(skeleton.checkpoint) as reader,
        closing(Activations((count, length, skeleton.hidden), folder)) as states,
        torch.no_grad(),
    ):
        read, read_rows = source_weights(skeleton.checkpoint, reader)
        for part in parts:
            states.put(part, skeleton.embed(torch.from_numpy(ids[part].astype(np.int64)), read_rows))
        for i in range(skeleton.blocks):
            block = skeleton.load(i, read)
            with collecting(block, skeleton.places(i), goes_to) as of_block, mixed(skeleton.device, run.amp):
                for part in parts:
                    states.put(part, skeleton.run(i, block, states.get(part).to(skeleton.device)))
                    if progress is not None:
                        progress(f"block {i + 1} of {skeleton.blocks}", i * count + part[-1] + 1, total)
            skeleton.unload(i)
            found |= of_block
        if process_output and HEAD in {output.name for output in outputs}:
            skeleton.load_head(read)
            one_row = torch.zeros(1, skeleton.hidden, device=skeleton.device)  # what comes out does not matter
            with looking_at(skeleton._head) as of_head:
                for part in parts:
                    skeleton.logits(states.get(part).to(skeleton.device), one_row)
            found[HEAD] = of_head()
    return Collected(dict(sorted(found.items())), tuple(_notes(found, outputs, process_output)))


def _notes(found: Mapping[str, Squares], outputs: Sequence[Output], process_output: bool) -> Iterator[str]:
    rounded = (o.name for o in outputs if o.name.startswith("blk.") and not o.float32)
    absent = [name for name in rounded if name not in found]
    if absent:
        yield (
            f"nothing was collected for {len(absent)} tensors (first: {absent[0]}): transformers holds them in a form "
            f"that is not known here"
        )
    if process_output and HEAD not in found:
        yield "the model has no output matrix of its own, and llama.cpp knows no importance of the embedding"
    if (line := unreached(found)) is not None:
        yield line


def _provenance(calibration: Calibration) -> dict[str, Field]:
    return {
        "ggufround.version": string(__version__),
        "ggufround.calibration.sha256": string(calibration.digest),
    }
