"""Architectures as data: which tensor of a checkpoint becomes which tensor of a GGUF file, and which key of its config
which metadata. A new model is a row in a family's file, or a file and a line here, and a golden."""

from __future__ import annotations

from difflib import get_close_matches

from ggufround.arch import (
    baichuan,
    bailing,
    bert,
    cohere,
    composite,
    dbrx,
    deci,
    deepseek,
    deepseek_sparse,
    diffusion,
    ernie,
    exaone,
    falcon_h1,
    gemma,
    gemma3n,
    gemma4,
    glm,
    gpt,
    gpt_oss,
    granite,
    hunyuan,
    internlm,
    jais,
    jamba,
    kimi,
    lfm2,
    llama,
    llama4,
    mamba,
    mimo,
    minicpm,
    minimax,
    mistral,
    nemotron,
    nemotron_h,
    olmo,
    openelm,
    phi,
    qwen,
    qwen_linear,
    rwkv,
    sparse,
    stablelm,
    t5,
)
from ggufround.arch.config import NESTED, flatten
from ggufround.arch.layout import keeps_float32, outputs
from ggufround.arch.likeness import resemblance
from ggufround.arch.metadata import metadata
from ggufround.arch.spec import Architecture, Config, Layout, Output, Piece, Rule
from ggufround.arch.vision import find_projector, projector_config
from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import InputError, UnsupportedError

FAMILIES = (
    llama,
    qwen,
    gemma,
    phi,
    olmo,
    mamba,
    falcon_h1,
    bert,
    gpt,
    stablelm,
    cohere,
    exaone,
    internlm,
    baichuan,
    deci,
    mimo,
    dbrx,
    deepseek,
    glm,
    ernie,
    hunyuan,
    minicpm,
    bailing,
    granite,
    qwen_linear,
    lfm2,
    minimax,
    kimi,
    gpt_oss,
    mistral,
    gemma3n,
    llama4,
    gemma4,
    deepseek_sparse,
    jais,
    diffusion,
    openelm,
    sparse,
    nemotron,
    nemotron_h,
    jamba,
    rwkv,
    t5,
)
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
        found = ARCHITECTURES[name]
        return found.variant(flatten(config, found.defaults)) if found.variant else found
    # A GGUF name that several share ("llama") means the first of them.
    named = {key.lower(): value for key, value in reversed(ARCHITECTURES.items())}
    named |= {value.name: value for value in reversed(ARCHITECTURES.values())}
    if override is not None and name.lower() in named:
        found = named[name.lower()]
        return found.variant(flatten(config, found.defaults)) if found.variant else found
    known = [*ARCHITECTURES, *composite.CLASSES, *dict.fromkeys(value.name for value in ARCHITECTURES.values())]
    near = get_close_matches(name, known, 3, 0.5)
    raise UnsupportedError(
        f"architecture {name[:80]!r} is not known"
        + (f"; near it: {', '.join(near)}" if near else "")
        + "; `ggufround list architectures` shows all, --arch NAME converts the model as another one (where llama.cpp "
        "has no code for a model, no runtime reads its file yet)"
    )


def architecture_of(checkpoint: Checkpoint, override: str | None = None) -> Architecture:
    """`find_architecture` for a checkpoint, whose headers then say what a model of an unknown class resembles."""
    try:
        return find_architecture(checkpoint.config, override)
    except InputError as error:
        if override is not None:
            raise
        said = [str(error)]
        if found := resemblance(ARCHITECTURES, checkpoint):
            said.append(found)
        if checkpoint.config.get("auto_map"):
            said.append(
                "the model comes with code of its own (auto_map) that says what it computes; ggufround never executes "
                "code from a model"
            )
        raise type(error)("; ".join(said)) from None


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
    "architecture_of",
    "find_architecture",
    "find_projector",
    "keeps_float32",
    "metadata",
    "outputs",
    "projector_config",
]
