"""Plan: everything a run will do, known from headers alone.

`build` turns a checkpoint and the user's options into outputs (what is read and how it is arranged) and targets
(which type each output gets in which file); `validate` is what can still fail cheaply. Nothing here reads a weight.

A slab is the unit of work, of hashing and of resuming: whole rows of one piece of one output, about SLAB weights.
Its size depends on the tensor's shape alone, never on threads or memory, so that any run cuts a model the same way.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggufround import arch
from ggufround.arch.spec import Output, Piece
from ggufround.carrying import AS_SOURCE, as_source, carries, check_tunable, remarks
from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.reading import check_readable
from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.errors import InputError, UnsupportedError, UsageError
from ggufround.gguf_file import Field, Kind, array, string, u32
from ggufround.quants.importance import Importance, read_imatrix
from ggufround.quants.mixes import (
    Choice,
    Mix,
    ModelFacts,
    Overrides,
    TensorInfo,
    assign,
    idle_patterns,
    missing_types,
    needs_imatrix,
)
from ggufround.quants.mixes import mix as mix_named
from ggufround.quants.schemes import Layers, Scheme
from ggufround.quants.spec import QuantType
from ggufround.quants.types import QUANT_TYPES
from ggufround.recipes import Recipe, recipe
from ggufround.tokenizer.load import load_vocab
from ggufround.version import __version__

DEFAULT = "q4_k_m"
SLAB = 1 << 20  # weights
DIGEST = "0" * 64  # room for a SHA-256, filled in when the file is closed
QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION


@dataclass(frozen=True)
class Options:
    """What the user asked for, before anything is looked at."""

    types: tuple[str, ...] | None = None  # names of mixes; None: Q4_K_M, or of a packed source the types it has
    recipe: str | Recipe = "opt-rtn"
    overrides: Overrides = Overrides()
    imatrix: Path | None = None
    pre: str | None = None
    arch: str | None = None
    calibrated: bool = False  # importance will come from a calibration text; always so with a tuned recipe


@dataclass(frozen=True)
class Target:
    """One quantised model: the type of every output, and the metadata of its file (of a checkpoint: its provenance)."""

    mix: Mix | Scheme
    types: Mapping[str, QuantType]
    choices: Mapping[str, Choice]
    metadata: Mapping[str, Field]
    scaled: frozenset[str] = frozenset()  # outputs that get a global scale in a tensor of their own (NVFP4)
    active: frozenset[str] = frozenset()  # outputs that get the scale of their inputs, found in calibration
    together: Mapping[str, str] = field(default_factory=dict)  # scaled outputs that share it, by a name of the group
    format: str = "gguf"
    layers: Layers | None = None  # of a checkpoint format
    carried: frozenset[str] = frozenset()  # outputs that get the codes that the source has


@dataclass(frozen=True)
class Slab:
    """Rows [first, first + rows) of an output, all from one piece (`piece` is None for computed values)."""

    output: int
    piece: int | None
    first: int
    rows: int


@dataclass(frozen=True)
class Plan:
    checkpoint: Checkpoint
    architecture: str
    outputs: tuple[Output, ...]  # in the order in which they are read
    dropped: tuple[tuple[str, str], ...]  # source tensors that are not used, with the reason
    targets: tuple[Target, ...]
    recipe: Recipe
    importance: Importance | None
    notes: tuple[str, ...]

    @property
    def weights(self) -> int:
        return sum(rows_of(o) * o.shape[-1] for o in self.outputs)


def rows_of(output: Output) -> int:
    """Rows of an output when it is seen as a matrix of its last dimension."""
    rows = 1
    for n in output.shape[:-1]:
        rows *= n
    return rows


def build(model: str | Path, options: Options, source: Checkpoint | None = None) -> Plan:
    """Everything that `convert` will do with `model`, from headers alone.

    Raises UsageError, InputError or UnsupportedError for whatever headers, config, tokenizer and options can tell.
    """
    chosen = recipe(options.recipe) if isinstance(options.recipe, str) else options.recipe
    calibrated = options.calibrated or chosen.iterations > 0
    if calibrated and options.imatrix:
        raise UsageError(
            f"--imatrix and {f'the recipe {chosen.name}' if chosen.iterations else '--calib'} both give importance; "
            f"leave one of them out"
        )
    asked = () if options.types is None else _mixes(options.types)
    checkpoint = source or open_checkpoint(str(model))
    importance = read_imatrix(options.imatrix) if options.imatrix else None
    outputs, dropped, metadata, notes = _contents(checkpoint, options, calibrated)
    outputs = tuple(sorted(outputs, key=_reading_order))
    if importance is not None:
        importance = importance.fitted({o.name: (_experts(o), o.shape[-1]) for o in outputs})
    facts = _facts(metadata, outputs)
    mixes = asked or (_default_mix(outputs, options.overrides),)
    targets = tuple(
        _target(m, outputs, facts, metadata, options, chosen, importance, checkpoint, calibrated) for m in mixes
    )
    notes += _remarks(outputs, targets, importance)
    notes += tuple(
        f"--tensor-type {pattern!r} matches no tensor that is quantised"
        for pattern in idle_patterns(_infos(outputs), facts.arch, options.overrides)
    )
    name = str(metadata["general.architecture"].value)
    plan = Plan(checkpoint, name, outputs, dropped, targets, chosen, importance, notes)
    for output in outputs:
        if not is_copy(plan, output):
            for piece in output.pieces:
                check_readable(piece.source)
    return plan


def slabs(plan: Plan) -> Iterator[Slab]:
    """The units of work, in the order in which they are read and hashed."""
    for index, output in enumerate(plan.outputs):
        if output.values is not None:
            yield Slab(index, None, 0, rows_of(output))
            continue
        first = 0
        for number, piece in enumerate(output.pieces):
            step = slab_rows(output, piece)
            for start in range(0, piece.rows, step):
                yield Slab(index, number, first + start, min(step, piece.rows - start))
            first += piece.rows


def _experts(output: Output) -> int:
    return output.shape[0] if len(output.shape) == 3 else 1


def slab_rows(output: Output, piece: Piece) -> int:
    """Rows of a slab: about SLAB weights, in whole granules; of a solid piece, all."""
    return max(1, SLAB // (output.shape[-1] * piece.granule)) * piece.granule


def is_copy(plan: Plan, output: Output) -> bool:
    """Whether all targets keep the source's own quantised or integer bytes: those are copied, not rounded again."""
    kept = {p.source.dtype for p in output.pieces if p.via is None and _is_bare(p.source)}
    wanted = {t.types[output.name].name for t in plan.targets}
    return bool(output.pieces) and kept == wanted and not wanted & {"F32", "F16", "BF16"}


def _is_bare(source: TensorRef) -> bool:
    """Whether the tensor is stored as one, and so as its dtype says."""
    return source.scale is None and source.packing is None


def _mixes(names: tuple[str, ...]) -> tuple[Mix, ...]:
    found = tuple(map(mix_named, names))
    if not found:
        raise UsageError("no type was given; `ggufround list mixes` shows them")
    twice = [m.name for m in found if found.count(m) > 1]
    if twice:
        raise UsageError(f"type {twice[0]} was given twice")
    return found


def _default_mix(outputs: tuple[Output, ...], overrides: Overrides) -> Mix:
    if not any(piece.source.packing for output in outputs for piece in output.pieces):
        return mix_named(DEFAULT)
    if overrides.pure:
        raise UsageError("--pure wants one type for all; say with --type which one")
    return AS_SOURCE


def _contents(
    checkpoint: Checkpoint, options: Options, tuned: bool
) -> tuple[tuple[Output, ...], tuple[tuple[str, str], ...], dict[str, Field], tuple[str, ...]]:
    """Outputs, dropped tensors, metadata and notes of any source."""
    if checkpoint.is_gguf:
        return _gguf_contents(checkpoint)
    architecture = arch.find_architecture(checkpoint.config, options.arch)
    if tuned and architecture.untunable:
        raise UnsupportedError(
            f"{architecture.name} cannot be tuned or calibrated: {architecture.untunable}; choose --recipe opt-rtn, "
            f"with --imatrix if you have one"
        )
    layout = arch.outputs(architecture, checkpoint)
    rows = next((o.shape[0] for o in layout.outputs if o.name == "token_embd.weight"), None)
    vocab = load_vocab(checkpoint, architecture.tokenizers, options.pre, rows)
    metadata = arch.metadata(architecture, checkpoint, layout) | dict(vocab.metadata)
    return layout.outputs, layout.dropped, metadata, tuple(vocab.notes)


def _gguf_contents(
    checkpoint: Checkpoint,
) -> tuple[tuple[Output, ...], tuple[tuple[str, str], ...], dict[str, Field], tuple[str, ...]]:
    """A GGUF file as a source: names, order of values and metadata stay; only types change."""
    if "general.architecture" not in checkpoint.metadata:
        raise InputError(f"{checkpoint.source}: no general.architecture in its metadata; is it a model?")
    outputs = tuple(
        Output(ref.name, ref.shape, _matrices(ref), float32=ref.dtype == "F32" and ref.rows == 1)
        for ref in checkpoint.tensors.values()
    )
    skipped = ("split.", "general.file_type", "general.quantization_version", "general.alignment", "ggufround.")
    metadata = {k: v for k, v in checkpoint.metadata.items() if not k.startswith(skipped)}
    coarse = sorted({t.dtype for t in checkpoint.tensors.values()} - {"F32", "F16", "BF16"})
    notes = (f"the source is quantised already ({', '.join(coarse)}): this is a second rounding",) if coarse else ()
    return outputs, (), metadata, notes


def _matrices(ref: TensorRef) -> tuple[Piece, ...]:
    """One piece a matrix: a stack of experts has an importance and a global scale for each."""
    size = ref.shape[-2] if len(ref.shape) == 3 else ref.rows
    return tuple(Piece(ref, first, size) for first in range(0, ref.rows, size))


def _reading_order(output: Output) -> tuple[str, int]:
    """Disk order of the first piece, computed values last: the source is read from front to back."""
    if not output.pieces:
        return ("\U0010ffff", 0)
    source = output.pieces[0].source
    return (str(source.path), source.offset + output.pieces[0].first)


def _facts(metadata: Mapping[str, Field], outputs: tuple[Output, ...]) -> ModelFacts:
    name = str(metadata["general.architecture"].value)

    def number(key: str, default: int = 0) -> int:
        field = metadata.get(f"{name}.{key}")
        if field is None:
            return default
        value = field.value[0] if field.kind == Kind.ARRAY else field.value
        return int(value)

    heads = number("attention.head_count")
    return ModelFacts(
        arch=name,
        n_layer=number("block_count"),
        n_head=heads,
        n_head_kv=number("attention.head_count_kv", heads),
        n_expert=number("expert_count"),
    )


def _target(
    mix: Mix,
    outputs: tuple[Output, ...],
    facts: ModelFacts,
    metadata: Mapping[str, Field],
    options: Options,
    chosen: Recipe,
    importance: Importance | None,
    checkpoint: Checkpoint,
    calibrated: bool,
) -> Target:
    infos = _infos(outputs)
    weighted = calibrated or importance is not None
    assigned = assign(mix, infos, facts, options.overrides, weighted)
    choices = {info.name: choice for info, choice in zip(infos, assigned, strict=True)}
    if mix is AS_SOURCE:
        mix, choices = as_source(outputs, choices)
    types = _types(mix, choices)
    for output in outputs:
        _check_shape(output, types[output.name])
    blind = [n for n, c in choices.items() if not weighted and needs_imatrix(mix, n, c.type)]
    if blind:
        raise UsageError(
            f"{mix.name} needs --imatrix or --calib: {len(blind)} tensors would be unusable (first: {blind[0]})"
        )
    if chosen.iterations:
        check_tunable(outputs, types, "blk.")
    carried = frozenset(o.name for o in outputs if carries(o, types[o.name]))
    copied = {o.name for o in outputs if o.pieces and _is_bare(o.pieces[0].source) and _source_type(o) == "NVFP4"}
    scaled = frozenset(
        n for n, t in types.items()
        if t.name == "NVFP4" and n != "token_embd.weight" and n.endswith(".weight")
        and (n in carried or chosen.search != "rtn") and n not in copied
    )  # fmt: skip
    provenance = _metadata(metadata, mix, options, chosen, importance, checkpoint)
    return Target(mix, types, choices, provenance, scaled, carried=carried)


def _infos(outputs: tuple[Output, ...]) -> list[TensorInfo]:
    return [
        TensorInfo(o.name, o.shape, _source_type(o), o.float32, tuple(p.source.name for p in o.pieces)) for o in outputs
    ]


def _types(mix: Mix, choices: Mapping[str, Choice]) -> dict[str, QuantType]:
    missing = missing_types(choices.values(), QUANT_TYPES)
    if missing:
        raise UsageError(
            f"{mix.name} needs {', '.join(missing)}, which ggufround cannot write yet; `ggufround list types` shows "
            f"what it can"
        )
    return {name: QUANT_TYPES[choice.type] for name, choice in choices.items()}


def _source_type(output: Output) -> str:
    return output.pieces[0].source.dtype if output.pieces else "F32"


def _check_shape(output: Output, kind: QuantType) -> None:
    if output.shape[-1] % kind.block:
        raise UsageError(
            f"{output.name} has rows of {output.shape[-1]}, not a multiple of {kind.name}'s block of {kind.block}; "
            f"choose another type for it with --tensor-type '{output.name}=TYPE'"
        )


def _metadata(
    metadata: Mapping[str, Field],
    mix: Mix,
    options: Options,
    chosen: Recipe,
    importance: Importance | None,
    checkpoint: Checkpoint,
) -> dict[str, Field]:

    out = dict(metadata)
    out["general.quantization_version"] = u32(QUANTIZATION_VERSION)
    out["general.file_type"] = u32(mix.file_type)
    if importance is not None and options.imatrix is not None:
        out |= importance.metadata(str(options.imatrix))
    out["ggufround.version"] = string(__version__)
    out["ggufround.mix"] = string(mix.name)
    out["ggufround.recipe"] = string(chosen.name)
    if options.overrides != Overrides():
        out["ggufround.overrides"] = array(Kind.STRING, _wishes(options.overrides))
    if importance is not None and options.imatrix is not None:
        out["ggufround.imatrix.sha256"] = string(hashlib.sha256(options.imatrix.read_bytes()).hexdigest())
    out["ggufround.source"] = string(source_name(checkpoint))
    out["ggufround.source.config_sha256"] = string(side_files_digest(checkpoint))
    out["ggufround.source.weights_sha256"] = string(DIGEST)
    out["ggufround.data_sha256"] = string(DIGEST)
    return out


def source_name(checkpoint: Checkpoint) -> str:
    """The hub id, or the base name of a local model: where it lies is nobody's business."""
    name = checkpoint.root.name if Path(checkpoint.source).exists() else checkpoint.source
    return os.fsencode(name).decode(errors="replace")


def _wishes(overrides: Overrides) -> list[str]:
    """The overrides as flags, for the provenance."""
    rows = [f"--tensor-type {pattern}={kind}" for pattern, kind in overrides.tensor_types]
    if overrides.output_tensor_type:
        rows.append(f"--output-tensor-type {overrides.output_tensor_type}")
    if overrides.token_embedding_type:
        rows.append(f"--token-embedding-type {overrides.token_embedding_type}")
    rows += [
        f for f, on in (("--leave-output-tensor", overrides.leave_output_tensor), ("--pure", overrides.pure)) if on
    ]
    return rows


def side_files_digest(checkpoint: Checkpoint) -> str:
    """SHA-256 over names and contents of config, tokenizer and the other small files beside the weights."""
    total = hashlib.sha256()
    for name, path in sorted(checkpoint.files.items()):
        total.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _remarks(
    outputs: tuple[Output, ...], targets: tuple[Target, ...], importance: Importance | None
) -> tuple[str, ...]:
    """What the user should know before it happens, and no peer says aloud."""
    notes: list[str] = []
    for target in targets:
        notes += remarks(target.mix.name, outputs, target.types)
        fallen = [n for n, c in target.choices.items() if c.fallback_from]
        if fallen:
            first = target.choices[fallen[0]]
            notes.append(
                f"{target.mix.name}: {len(fallen)} tensors have rows that {first.fallback_from} does not divide "
                f"and get {first.type} or wider instead (first: {fallen[0]})"
            )
    if importance is not None:
        wanted = {n for t in targets for n, k in t.types.items() if k.uses_importance}
        absent = sorted(
            n for n in wanted if n not in importance.entries and n not in ("token_embd.weight", "output.weight")
        )
        if absent:
            notes.append(f"the imatrix has no entry for {len(absent)} tensors (first: {absent[0]}): searched without")
    return tuple(notes)


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as plain values, for --json and for the fingerprint that ties a journal to its run."""
    return {
        "architecture": plan.architecture,
        "recipe": plan.recipe.name,
        "weights": plan.weights,
        "dropped": [list(d) for d in plan.dropped],
        "notes": list(plan.notes),
        "targets": [
            {
                "mix": t.mix.name,
                "format": t.format,
                "tensors": [
                    {"name": o.name, "shape": list(o.shape), "type": t.types[o.name].name} | _reason(t, o.name)
                    for o in plan.outputs
                ],
            }
            for t in plan.targets
        ],
    }  # fmt: skip


def _reason(target: Target, name: str) -> dict[str, Any]:
    choice = target.choices.get(name)
    return {} if choice is None else {"why": choice.reason, "fallback_from": choice.fallback_from}


__all__ = ["DIGEST", "SLAB", "Options", "Plan", "Slab", "Target", "build", "describe", "slabs"]
