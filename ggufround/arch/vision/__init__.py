"""Projectors: the part of a composite model that turns images into embeddings, as the file that llama.cpp loads beside
the text model ("mmproj"). A projector is an Architecture too; its rules are over the vision tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ggufround.arch.config import flatten
from ggufround.arch.spec import Architecture, Config
from ggufround.arch.vision import glm4v, internvl, kimi_vl, llama4, llava, pixtral, qwen_vl, siglip
from ggufround.arch.vision.parts import section
from ggufround.errors import InputError, UnsupportedError

FAMILIES = (siglip, qwen_vl, internvl, llama4, glm4v, kimi_vl)
# By class name, and for classes that any tower may stand in by "class/model_type of vision_config".
TOWERS = {**llava.FAMILY, "pixtral": pixtral.FAMILY}
PROJECTORS: dict[str, Architecture] = {
    name: row for family in FAMILIES for row in family.FAMILY for name in row.classes
} | {f"{name}/{kind}": row for kind, rows in TOWERS.items() for row in rows for name in row.classes}


def find_projector(config: Config) -> Architecture:
    """The projector of a model from its config.json. Raises UnsupportedError where there is none or none is known."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    vision = section(config, "vision_config")
    found = PROJECTORS.get(name) or PROJECTORS.get(f"{name}/{vision.get('model_type', 'clip_vision_model')}")
    if found is not None and (vision or config.get("vision_config") is None):
        if not vision:
            raise InputError("config.json has no vision_config; --mmproj needs what it says about the tower")
        return found
    if not vision:
        raise UnsupportedError(f"{name[:80] or 'the model'} has no vision part; leave --mmproj out")
    raise UnsupportedError(
        f"--mmproj: the vision part of {name[:80]!r} is not known; known are those of "
        + ", ".join(dict.fromkeys(key.partition("/")[0] for key in PROJECTORS))
    )


def projector_config(
    config: Config, text: Architecture, processor: Mapping[str, Any], token: Callable[[str], int | None]
) -> dict[str, Any]:
    """The config that a projector's rows are read with (see `parts`)."""
    vision = {key: value for key, value in section(config, "vision_config").items() if key != "architectures"}
    return {
        **vision,
        "_name_or_path": config.get("_name_or_path"),
        "model": dict(config),
        "text": flatten(config, text.defaults),
        "processor": dict(processor),
        "token": token,
    }
