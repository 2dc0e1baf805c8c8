"""Architectures as data: which tensor of a checkpoint becomes which tensor of a GGUF file, and which key of its config
which metadata. A new model is a row in a family's file, or a file and a line here, and a golden."""

from __future__ import annotations

from difflib import get_close_matches

from ggufround.arch import composite, gemma, llama, olmo, phi, qwen
from ggufround.arch.config import NESTED
from ggufround.arch.layout import keeps_float32, outputs
from ggufround.arch.metadata import metadata
from ggufround.arch.spec import Architecture, Config, Layout, Output, Piece, Rule
from ggufround.arch.vision import find_projector, projector_config
from ggufround.errors import InputError, UnsupportedError

FAMILIES = (llama, qwen, gemma, phi, olmo)
ARCHITECTURES: dict[str, Architecture] = {
    name: architecture for family in FAMILIES for architecture in family.FAMILY for name in architecture.classes
}


def find_architecture(config: Config, override: str | None = None) -> Architecture:
    """The architecture of a model from its config.json, or the one that `override` names (a class name or a GGUF
    architecture, in any case). Raises UnsupportedError naming what is near."""
    outer = config.get("architectures")
    if override is None and isinstance(outer, list) and outer and outer[0] in composite.CLASSES:
        return composite.text_model(config, outer[0])
    name = _class_name(config) if override is None else override
    if override is None and name in ARCHITECTURES:
        return ARCHITECTURES[name]
    # A GGUF name that several share ("llama") means the first of them.
    named = {key.lower(): value for key, value in reversed(ARCHITECTURES.items())}
    named |= {value.name: value for value in reversed(ARCHITECTURES.values())}
    if override is not None and name.lower() in named:
        return named[name.lower()]
    known = [*ARCHITECTURES, *composite.CLASSES, *dict.fromkeys(value.name for value in ARCHITECTURES.values())]
    near = get_close_matches(name, known, 3, 0.5)
    raise UnsupportedError(
        f"architecture {name[:80]!r} is not known"
        + (f"; near it: {', '.join(near)}" if near else "")
        + "; `ggufround list architectures` shows all, --arch NAME converts the model as another one"
    )


def _class_name(config: Config) -> str:
    """`architectures[0]` of the text model where the config is a composite one's, else of the model."""
    nested: Config = next((config[name] for name in NESTED if isinstance(config.get(name), dict)), {})
    for part in (nested, config):
        names = part.get("architectures")
        if isinstance(names, list) and names and isinstance(names[0], str):
            return names[0]
    raise InputError("config.json has no `architectures`; say with --arch NAME what the model is")


__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Layout",
    "Output",
    "Piece",
    "Rule",
    "find_architecture",
    "find_projector",
    "keeps_float32",
    "metadata",
    "outputs",
    "projector_config",
]
