"""The door to everything here: free of torch, so that its absence is a message and not a traceback."""

from __future__ import annotations

from ggufround.errors import MissingExtraError

INSTALL = 'pip install "ggufround[tune]"'


def require_extra() -> None:
    """Call it before importing a module of this package that imports torch.

    Raises MissingExtraError where torch is absent, or transformers absent or older than 5 (which renames and fuses
    tensors by a table that we read).
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"tuning and evaluation need torch: {INSTALL} ({error})") from error
    try:
        import transformers.conversion_mapping
        import transformers.core_model_loading  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"tuning and evaluation need transformers 5 or newer: {INSTALL} ({error})") from error
