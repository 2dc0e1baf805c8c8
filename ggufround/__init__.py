"""ggufround: Hugging Face checkpoints to quantised GGUF files, in one pass and little memory.

The public names are looked up when they are used, so that importing one part does not load all the others.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ggufround.version import __version__

if TYPE_CHECKING:
    from ggufround.api import AutoRound, AutoRoundMLLM
    from ggufround.conversion import Report, convert
    from ggufround.planning import Options, Plan
    from ggufround.planning import build as plan
    from ggufround.preflight import Run

_PUBLIC = {
    "AutoRound": ("api", "AutoRound"),
    "AutoRoundMLLM": ("api", "AutoRoundMLLM"),
    "Options": ("planning", "Options"),
    "Plan": ("planning", "Plan"),
    "Report": ("conversion", "Report"),
    "Run": ("preflight", "Run"),
    "convert": ("conversion", "convert"),
    "plan": ("planning", "build"),
}

__all__ = ["AutoRound", "AutoRoundMLLM", "Options", "Plan", "Report", "Run", "__version__", "convert", "plan"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ggufround' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(f"ggufround.{module}"), attribute)
