"""Plan of the projector file (llama.cpp's "mmproj"): the vision part of a composite checkpoint, beside its text model.

It is carried out by the same loop as any other plan. Types are those of llama.cpp's converter for the asked one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ggufround import arch
from ggufround.arch.spec import Output
from ggufround.checkpoint.json_file import read_json
from ggufround.checkpoint.members import CONFIG_LIMIT, SIDE_FILES
from ggufround.checkpoint.reading import check_readable
from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import UsageError
from ggufround.planning import Options, Plan, Target, in_reading_order, provenance
from ggufround.quants.mixes import Choice
from ggufround.quants.mixes import mix as mix_named
from ggufround.quants.types import QUANT_TYPES
from ggufround.recipes import recipe

TYPES = ("f16", "bf16", "f32", "q8_0")
ALWAYS_F16 = ("mm.input_projection.weight",)  # clip.cpp transposes it, which no quantised type bears
PATCHES = (".patch_embd.weight", ".patch_merger.weight")  # convolutions, which run in F16 or F32 only


def processor(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What preprocessor_config.json and, over it, processor_config.json say, their inner objects lifted out."""
    merged: dict[str, Any] = {}
    for name, inner in (("preprocessor_config.json", "media_proc_cfg"), ("processor_config.json", "image_processor")):
        if name in checkpoint.files:
            found = read_json(checkpoint.files[name], CONFIG_LIMIT)
            nested = found.get(inner)
            merged |= {**found, **(nested if isinstance(nested, dict) else {})}
    return merged


def token(checkpoint: Checkpoint, content: str) -> int | None:
    """The id of an added token; None where the tokenizer has none of that content."""
    if "tokenizer_config.json" in checkpoint.files:
        added = read_json(checkpoint.files["tokenizer_config.json"], SIDE_FILES["tokenizer_config.json"])
        entries = added.get("added_tokens_decoder")
        for text, entry in (entries if isinstance(entries, dict) else {}).items():
            if text.isdecimal() and isinstance(entry, dict) and entry.get("content") == content:
                return int(text)
    if "tokenizer.json" in checkpoint.files:
        found = read_json(checkpoint.files["tokenizer.json"], SIDE_FILES["tokenizer.json"]).get("added_tokens")
        for entry in found if isinstance(found, list) else ():
            if isinstance(entry, dict) and entry.get("content") == content and isinstance(entry.get("id"), int):
                return int(entry["id"])
    return None


def tower_type(output: Output, kind: str) -> str:
    """The type of an output in a projector file of the type `kind`, as llama.cpp's converter chooses it."""
    if output.name in ALWAYS_F16:
        return "F16"
    if output.float32 or (kind != "F16" and any(name in output.name for name in PATCHES)):
        return "F32"
    return "F16" if output.shape[-1] % QUANT_TYPES[kind].block else kind


def vision_part(checkpoint: Checkpoint, architecture: str | None = None) -> tuple[arch.Architecture, Checkpoint]:
    """The projector's rows, and the checkpoint with the config that they are read with."""
    row = arch.find_projector(checkpoint.config)
    text = arch.find_architecture(checkpoint.config, architecture)
    config = arch.projector_config(checkpoint.config, text, processor(checkpoint), partial(token, checkpoint))
    return row, replace(checkpoint, config=config)


def build_projector(checkpoint: Checkpoint, kind: str = "f16", architecture: str | None = None) -> Plan:
    """Everything that is needed to write the projector of `checkpoint`, from headers alone.

    `kind` is one of `TYPES`; `architecture` as in Options.arch. Raises UsageError for another type or a .gguf source,
    and what finding and laying out an architecture raises.
    """
    if kind.lower() not in TYPES:
        raise UsageError(f"--mmproj-type must be one of {', '.join(TYPES)}; got {kind!r}")
    if checkpoint.is_gguf:
        raise UsageError("--mmproj needs the checkpoint: a .gguf file holds the text model alone")
    mix = mix_named(kind)
    row, vision = vision_part(checkpoint, architecture)
    layout = arch.outputs(row, vision)
    fields = arch.metadata(row, vision, layout)
    outputs = in_reading_order(layout.outputs)
    names = {output.name: tower_type(output, mix.name.upper()) for output in outputs}
    chosen = recipe("rtn")
    target = Target(
        mix=mix,
        types={name: QUANT_TYPES[kind] for name, kind in names.items()},
        choices={name: Choice(kind, "rule") for name, kind in names.items()},
        metadata=provenance(fields, mix, Options(), chosen, None, checkpoint),
    )
    for output in outputs:
        for piece in output.pieces:
            check_readable(piece.source)
    return Plan(vision, row.name, outputs, layout.dropped, (target,), chosen, None, ())
