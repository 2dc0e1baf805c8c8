"""The one jit decorator: results are the same bits on every x86-64 machine, and threads run side by side.

`fastmath=False` keeps LLVM from contracting to FMA or reassociating sums; `nogil` lets a thread pool work;
`error_model="numpy"` makes 0/0 a NaN, as in C.

Numba keys a cached kernel on the file that defines it alone, so a kernel that calls into a shared file would stay
stale when only the shared file changes. Shared files are those whose names begin with an underscore; a digest of
their text joins the stamp of every cached kernel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit


def _shared_digest() -> str:
    files = sorted(Path(__file__).parent.glob("_*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


_SHARED = _shared_digest()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile `function` on first use, cached on disk until its own file or a shared one changes."""
    compiled = njit(cache=True, nogil=True, fastmath=False, error_model="numpy")(function)
    if hasattr(compiled, "_cache"):  # absent under NUMBA_DISABLE_JIT
        index = compiled._cache._cache_file
        index._source_stamp = (index._source_stamp, _SHARED)
    return compiled
