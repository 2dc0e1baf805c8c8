"""FORMATS: the checkpoint formats. GGUF, which holds other types, stands beside them (gguf.py)."""

from __future__ import annotations

from ggufround.errors import UsageError
from ggufround.formats import auto_awq, auto_gptq, auto_round, llm_compressor, mlx
from ggufround.formats.spec import Format

FORMATS: dict[str, Format] = {m.FORMAT.name: m.FORMAT for m in (auto_round, auto_gptq, auto_awq, llm_compressor, mlx)}


def checkpoint_format(name: str) -> Format:
    """The format of that name. Raises UsageError for an unknown one."""
    if name.lower() == "gguf":
        raise UsageError("gguf holds other types than checkpoint formats: make it in a run of its own")
    found = FORMATS.get(name.lower())
    if found is None:
        raise UsageError(f"unknown format {name!r}; there are: gguf, {', '.join(FORMATS)}")
    return found
