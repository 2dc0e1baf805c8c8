"""Plan of a quantised checkpoint: which layers get which scheme, from headers alone.

Every tensor keeps its name. Linear layers of the blocks are quantised: matrices called `.weight` below a numbered
block, but for those that are no linear layers (embeddings, norms, convolutions) or are better left alone: routers of
mixtures of experts, towers for images and sound, and what 32 does not divide, as in AutoRound. The rest stays as it is;
tensors of FP8 and packed sources
become BF16.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ggufround.arch.spec import Output, Piece
from ggufround.carrying import carries, check_tunable, remarks
from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.reading import check_readable
from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.errors import InputError, UnsupportedError, UsageError
from ggufround.formats.spec import Format
from ggufround.formats.table import FORMATS, checkpoint_format
from ggufround.gguf_file import Field, string
from ggufround.planning import Plan, Target, is_copy, side_files_digest, source_name
from ggufround.quants.schemes import Layers, Scheme
from ggufround.quants.spec import QuantType
from ggufround.quants.types import QUANT_TYPES, copied_type
from ggufround.recipes import Recipe, recipe
from ggufround.version import __version__

BLOCK = re.compile(r"^(.*?\b(?:layers|blocks|block|h))\.(\d+)\.")
DIVISOR = 32  # of both sizes of a layer
NOT_LINEAR = ("*norm*", "*embed*", "*conv*", "*rotary*", "*bias_table*", "*.wpe.*", "*.wte.*")
ROUTERS = ("*.gate.weight", "*router*", "*shared_expert_gate*", "*gate_inp*", "*.wg.weight")
TOWERS = (
    "visual.*", "*.visual.*", "*vision*", "*image*", "*audio*", "*multi_modal_projector*", "*mm_projector*",
    "*connector*",
)  # fmt: skip
TRANSPOSED = ("gpt2", "imagegpt", "openai-gpt", "decision_transformer")  # Conv1D: [in, out]
HEADS = ("lm_head.weight", "output.weight", "embed_out.weight")
FUSED = (  # layers that runtimes run as one, and so with one global scale
    ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"), ("query", "key", "value"),
)  # fmt: skip


@dataclass(frozen=True)
class CheckpointOptions:
    """What the user asked for. `layers`: patterns of module names, each with its scheme (None: 16 bits); the last
    that matches counts."""

    scheme: Scheme
    formats: tuple[str, ...] = ("auto_round",)
    recipe: str | Recipe = "opt-rtn"
    layers: tuple[tuple[str, Scheme | None], ...] = ()
    quant_lm_head: bool = False
    calibrated: bool = False


def build_checkpoint(model: str | Path, options: CheckpointOptions, source: Checkpoint | None = None) -> Plan:
    """Everything that a run will do with `model`, from headers alone; one target a format, all of the same types.

    Raises UsageError for a scheme or a mixture of schemes that a format cannot hold, for groups that do not divide a
    layer, and for a head that cannot be quantised; InputError, UnsupportedError as `open_checkpoint` does.
    """
    chosen = recipe(options.recipe) if isinstance(options.recipe, str) else options.recipe
    formats = [checkpoint_format(name) for name in options.formats]
    if not formats:
        raise UsageError(f"no format was given; there are: gguf, {', '.join(FORMATS)}")
    if twice := {f.name for f in formats if formats.count(f) > 1}:
        raise UsageError(f"format {twice.pop()} was given twice")
    checkpoint = source or open_checkpoint(str(model))
    if checkpoint.is_gguf:
        raise UsageError(f"{checkpoint.source} is a GGUF file; other formats are made of safetensors checkpoints")
    if checkpoint.config.get("model_type") in TRANSPOSED:
        raise UnsupportedError(f"{checkpoint.source}: {checkpoint.config['model_type']} stores its layers transposed")
    layers, notes = _layers(checkpoint, options)
    for given in formats:
        _check_format(given, layers)
    types = {ref.name: _type(ref, layers) for ref in _weights(checkpoint)}
    outputs = tuple(
        sorted((_output(ref, types[ref.name]) for ref in _weights(checkpoint)), key=lambda o: _disk_order(o))
    )
    scaled = frozenset(n for n, kind in types.items() if kind.name == "NVFP4")
    active = frozenset(f"{name}.weight" for name, s in layers.quantised.items() if s.active == "static")
    if f"{layers.head}.weight" in active:
        raise UsageError(f"the inputs of {layers.head} are not measured; give it a scheme for weights only (--layer)")
    if chosen.iterations:
        check_tunable(outputs, types, layers.blocks)
    carried = frozenset(o.name for o in outputs if carries(o, types[o.name]))
    notes += remarks(options.scheme.name, outputs, types)
    provenance = _provenance(checkpoint, options.scheme, chosen)
    targets = tuple(
        Target(options.scheme, types, {}, provenance, scaled, active, _together(scaled), given.name, layers, carried)
        for given in formats
    )
    architecture = str((checkpoint.config.get("architectures") or ["unknown"])[0])
    plan = Plan(checkpoint, architecture, outputs, (), targets, chosen, None, notes)
    for output in outputs:
        if not is_copy(plan, output):
            check_readable(output.pieces[0].source)
    return plan


def _weights(checkpoint: Checkpoint) -> Iterator[TensorRef]:
    """All tensors but the scales of others."""
    scales = {ref.scale.name for ref in checkpoint.tensors.values() if ref.scale is not None}
    return (ref for ref in checkpoint.tensors.values() if ref.name not in scales)


def _module(name: str) -> str:
    return name.removesuffix(".weight")


def _layers(checkpoint: Checkpoint, options: CheckpointOptions) -> tuple[Layers, tuple[str, ...]]:
    """The layers and what the user should know about them."""
    quantised: dict[str, Scheme] = {}
    kept, odd, blocks = [], [], set()
    idle = {pattern for pattern, _ in options.layers}
    for ref in _weights(checkpoint):
        if not _is_linear(ref, options.quant_lm_head):
            continue
        module, found = _module(ref.name), BLOCK.match(ref.name)
        if found:
            blocks.add(found[1])
        scheme: Scheme | None = options.scheme
        if any(fnmatchcase(ref.name, pattern) for pattern in ROUTERS):
            scheme = None
        elif ref.shape[0] % DIVISOR or ref.shape[1] % DIVISOR:
            scheme = None
            odd.append(module)
        for pattern, other in options.layers:
            if matches(pattern, module):
                scheme = other
                idle.discard(pattern)
        if scheme is None:
            kept.append(module)
        else:
            _check_shape(module, ref, scheme)
            quantised[module] = scheme
    if not quantised:
        raise UsageError(f"{checkpoint.source}: no layer is left to be quantised")
    if len(blocks) > 1:
        raise UnsupportedError(f"{checkpoint.source} has blocks under several names: {', '.join(sorted(blocks))}")
    head = next((_module(name) for name in HEADS if name in checkpoint.tensors), "lm_head")
    if options.quant_lm_head and (head not in quantised or _is_tied(checkpoint)):
        raise UsageError(
            f"{checkpoint.source} has no head of its own to quantise: it is tied to the embedding; leave out the flag"
        )
    notes = [f"{pattern!r} matches no linear layer" for pattern in sorted(idle)]
    if stacks := [ref.name for ref in _weights(checkpoint) if _is_stack(ref)]:
        notes.append(
            f"{len(stacks)} stacks of experts stay in 16 bits (first: {stacks[0]}): only a model that was saved with a "
            f"tensor for each expert can have them quantised"
        )
    if odd:
        notes.append(f"{len(odd)} layers stay in 16 bits, since {DIVISOR} does not divide them (first: {odd[0]})")
    layers = Layers(options.scheme, quantised, tuple(kept), next(iter(blocks), ""), head, _towers(checkpoint))
    return layers, tuple(notes)


def _towers(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The parts of names by which layers are known to be of a tower: "visual", "vision_tower"."""
    named = (ref.name for ref in _weights(checkpoint) if any(fnmatchcase(ref.name, t) for t in TOWERS))
    parts = (next((p for p in name.split(".") if any(fnmatchcase(f"{p}.", t) for t in TOWERS)), "") for name in named)
    return tuple(sorted({part for part in parts if part}))


def matches(pattern: str, module: str) -> bool:
    """Whether a pattern means a module: a regular expression that is found in its name, as in auto-round and
    llama-quantize. Raises UsageError for what is none."""
    try:
        return re.search(pattern, module) is not None
    except re.error as error:
        raise UsageError(f"{pattern!r} is no regular expression: {error}") from error


def _is_linear(ref: TensorRef, head: bool) -> bool:
    name = ref.name
    if len(ref.shape) != 2 or not name.endswith(".weight") or any(fnmatchcase(name, t) for t in TOWERS):
        return False
    if name in HEADS:
        return head
    return BLOCK.match(name) is not None and not any(fnmatchcase(name, pattern) for pattern in NOT_LINEAR)


def _is_stack(ref: TensorRef) -> bool:
    left_out = any(fnmatchcase(ref.name, pattern) for pattern in (*TOWERS, *NOT_LINEAR))
    return len(ref.shape) == 3 and BLOCK.match(ref.name) is not None and not left_out


def _is_tied(checkpoint: Checkpoint) -> bool:
    """Whether readers take the embedding for the head, even where the checkpoint holds both."""
    text = checkpoint.config.get("text_config")
    of_text = text.get("tie_word_embeddings", False) if isinstance(text, dict) else False
    return bool(checkpoint.config.get("tie_word_embeddings", of_text))


def _check_shape(module: str, ref: TensorRef, scheme: Scheme) -> None:
    rows, columns = ref.shape
    kind = scheme.type_for(columns)
    if columns % kind.block:
        raise UsageError(
            f"{module} has rows of {columns}, not a multiple of {scheme.name}'s groups of {kind.block}; choose "
            f"another group size, or keep it in 16 bits with --ignore '{module}'"
        )
    if rows % DIVISOR or columns % DIVISOR:
        raise UsageError(
            f"{module} is {rows} x {columns}, which is not a multiple of {DIVISOR}, and cannot be packed; keep it in "
            f"16 bits with --ignore '{module}'"
        )


def _check_format(given: Format, layers: Layers) -> None:
    for module, scheme in layers.quantised.items():
        if reason := given.refusal(scheme):
            raise UsageError(f"{given.name} cannot hold {scheme.name} ({module}): {reason}")
        if not given.mixes(layers.scheme, scheme):
            raise UsageError(
                f"{given.name} cannot hold {scheme.name} ({module}) beside {layers.scheme.name}; keep that layer in 16 "
                f"bits with --ignore, or choose llm_compressor, which can"
            )


def _type(ref: TensorRef, layers: Layers) -> QuantType:
    scheme = layers.quantised.get(_module(ref.name))
    if scheme is not None and len(ref.shape) == 2:
        return scheme.type_for(ref.columns)
    if ref.scale is not None or ref.packing is not None:
        return QUANT_TYPES["BF16"]
    return QUANT_TYPES.get(ref.dtype) or copied_type(ref.dtype, ref.nbytes // max(1, ref.rows * ref.columns))


def _output(ref: TensorRef, kind: QuantType) -> Output:
    if not ref.shape:
        raise InputError(f"{ref.name} in {ref.path.name} is a single number, which has no place in a checkpoint here")
    return Output(ref.name, ref.shape, (Piece(ref, 0, ref.rows, kind.granule),))


def _disk_order(output: Output) -> tuple[str, int]:
    source = output.pieces[0].source
    return str(source.path), source.offset


def _together(scaled: frozenset[str]) -> Mapping[str, str]:
    """Layers that runtimes fuse share their global scale."""
    found = {}
    for name in scaled:
        prefix, _, last = _module(name).rpartition(".")
        for group in FUSED:
            if last in group:
                found[name] = f"{prefix}.{group[0]}"
    return found


def _provenance(checkpoint: Checkpoint, scheme: Scheme, chosen: Recipe) -> dict[str, Field]:
    return {
        "ggufround.version": string(__version__),
        "ggufround.scheme": string(scheme.name),
        "ggufround.recipe": string(chosen.name),
        "ggufround.source": string(source_name(checkpoint)),
        "ggufround.source.config_sha256": string(side_files_digest(checkpoint)),
    }
