"""Rows of weights on which quantisers go wrong, by name."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
N = 1024  # weights in a row: a multiple of every block


@cache
def hard_rows() -> dict[str, F32]:
    """float32 [rows, N] each, all finite. Read only."""
    rng = np.random.default_rng(0)
    bell = rng.standard_normal((32, N))
    below_powers = ((np.arange(1, 255, dtype=np.uint32) << 23)[:, None] - np.arange(1, 65, dtype=np.uint32)).reshape(-1)
    near = rng.uniform(-1, 1, (below_powers.size, 32)) * below_powers.view(np.float32)[:, None]
    near[:, 0] = below_powers.view(np.float32)
    grid = rng.integers(-254, 255, (32, N)) / 2
    grid[:, ::16] = 127
    rows = {
        "bell": 0.02 * bell,
        "tiny": 1e-4 * bell,
        "bf16": (bell.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32),
        "heavy tails": rng.standard_t(2, (32, N)),
        "zeros": np.zeros((2, N)),
        "negative zeros": -np.zeros((2, N)),
        "constants": np.tile(np.array([[0.004], [-0.3], [1], [65504]]), N),
        "sparse": bell * (rng.random(bell.shape) < 0.02),
        "ternary": 0.37 * rng.integers(-1, 2, (16, N)),
        "halves of a step": grid * 2.0 ** rng.integers(-20, 3, (32, 1)),
        "eighths": rng.integers(-12, 13, (32, N)) / 8 * 2.0 ** rng.integers(-20, 20, (32, 1)),
        "every size": (rng.standard_normal((32, N // 16, 16)) * 10.0 ** rng.uniform(-12, 6, (32, N // 16, 1))),
        "1e20": 1e20 * bell,
        "largest": rng.uniform(-3.4e38, 3.4e38, (16, N)),
        "denormal": 1e-40 * bell,
        "smallest": bell * 10.0 ** rng.uniform(-45, -36, (32, 1)),
        "just below powers of two": near,
    }
    return {name: np.ascontiguousarray(x.reshape(-1, N), np.float32) for name, x in rows.items()}
