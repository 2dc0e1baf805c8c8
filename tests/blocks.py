"""Compare packed rows block by block, and say where and how they differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]


def assert_same_blocks(ours: U8, theirs: U8, nbytes: int, context: str = "") -> None:
    """Fails unless two arrays of packed blocks of `nbytes` bytes are equal: how many blocks differ, which one differs
    most, and its bytes on both sides."""
    assert ours.dtype == theirs.dtype == np.uint8, (ours.dtype, theirs.dtype)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    a, b = ours.reshape(-1, nbytes), theirs.reshape(-1, nbytes)
    differing = (a != b).sum(axis=1)
    worst = int(differing.argmax()) if len(differing) else 0
    assert not differing.any(), (
        f"{context}: {np.count_nonzero(differing)} of {len(a)} blocks differ; worst is block {worst} with "
        f"{differing[worst]} of {nbytes} bytes\n  ours   {a[worst].tobytes().hex(' ')}\n"
        f"  theirs {b[worst].tobytes().hex(' ')}"
    )
