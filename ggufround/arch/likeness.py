"""What a model of an unknown class resembles: its headers held against every architecture. Only names come of it;
tensors do not say what is computed with them, so that nothing is converted without --arch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from ggufround.arch.config import flatten
from ggufround.arch.layout import DROPS, outputs
from ggufround.arch.metadata import metadata
from ggufround.arch.spec import Architecture
from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import GgufroundError

SHOWN = 6  # names listed of each kind
NUMBER = re.compile(r"(?<=\.)(?:\d+|\{[ie]\})(?=\.|$)")


def resemblance(architectures: Mapping[str, Architecture], checkpoint: Checkpoint) -> str:
    """A sentence for a message: the names for --arch that the checkpoint fits, or the nearest and what does not fit.

    Empty where none is near.
    """
    # All layers and experts of a kind count as one: headers may name a hundred thousand tensors.
    kinds = {NUMBER.sub("{}", name): name for name in reversed(list(checkpoint.tensors))}
    rows: dict[int, tuple[str, Architecture]] = {}
    for class_name, arch in architectures.items():
        rows.setdefault(id(arch), (class_name, arch))
    compared = [(*_differences(arch, kinds), name, arch) for name, arch in rows.values()]
    errors = {name: _error(arch, checkpoint) for left, missing, name, arch in compared if not left and not missing}
    fitting = [(name, arch) for _, _, name, arch in compared if errors.get(name, "") is None]
    fitting.sort(key=lambda row: row[1].name != checkpoint.config.get("model_type"))  # what it calls itself comes first
    names: dict[str, str] = {}  # the first class of each GGUF name
    for name, arch in fitting:
        names.setdefault(arch.name, _offered(name, arch, architectures))
    if names:
        return (
            f"its tensors and its config fit {_some(names.values())}: if it computes the same as "
            f"{'that' if len(names) == 1 else 'one of them'}, convert it with --arch {next(iter(names.values()))}"
            + ("" if len(names) == 1 else ", or another of these names")
        )
    left, missing, name, arch = min(compared, key=lambda row: len(row[0]) + len(row[1]))
    if len(left) + len(missing) > len(kinds) - len(left):  # less than half alike
        return ""
    found = f"the nearest is {_offered(name, arch, architectures)}"
    if left:
        found += f", which has no place for {_some(left)}"
    if missing:
        found += f"{', and' if left else ', which'} needs {_some(missing)} (names without their prefix)"
    if not left and not missing:
        found += f", but {errors[name]}"
    return found


def _differences(arch: Architecture, kinds: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Tensors that no rule takes, one a kind, and sources of rules of which the checkpoint has no alternative."""
    patterns = [drop.pattern for drop in (*DROPS, *arch.drops)]
    have: dict[str, str] = {}
    for kind, name in kinds.items():
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            short = kind
            while prefix := next((prefix for prefix in arch.prefixes if short.startswith(prefix)), None):
                short = short.removeprefix(prefix)
            have[short] = name
    taken: set[str] = set()
    missing: dict[str, str] = {}
    made: set[str] = set()
    for rule in arch.rules:
        sources = [NUMBER.sub("{}", name) for name in ([rule.source] if isinstance(rule.source, str) else rule.source)]
        taken |= {*sources, *(name.removesuffix(".weight") + ".bias" for name in sources if rule.bias)}
        if have.keys() >= set(sources):
            made.add(rule.to)
        elif not rule.optional and rule.where is None:
            missing.setdefault(rule.to, sources[0].replace("{}", "*"))
    return (
        [name for kind, name in have.items() if kind not in taken],
        [source for to, source in missing.items() if to not in made],
    )


def _error(arch: Architecture, checkpoint: Checkpoint) -> str | None:
    """Why it cannot be converted as `arch`; None if it can."""
    try:
        if arch.variant is not None:
            arch = arch.variant(flatten(checkpoint.config, arch.defaults))
        metadata(arch, checkpoint, outputs(arch, checkpoint))
    except GgufroundError as error:
        return str(error)
    except Exception:  # the config was not written for it, and may lead any of its functions astray
        return "its config says something else"
    return None


def _offered(name: str, arch: Architecture, architectures: Mapping[str, Architecture]) -> str:
    """The name that --arch takes for it: the GGUF name, which means the first of those that share it, or the class."""
    return arch.name if next(a for a in architectures.values() if a.name == arch.name) is arch else name


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")
