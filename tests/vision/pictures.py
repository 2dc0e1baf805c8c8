"""Pictures for tiny vision models, as PNG files and as what the towers' processors make of them."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]


def picture(seed: int, width: int, height: int) -> U8:
    """Colours that change from place to place, uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels: U8) -> bytes:
    """The picture as a PNG file: every row unfiltered, in one zlib stream."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def normalised(pixels: U8, processor: dict[str, Any]) -> NDArray[np.float32]:
    """float32 [3, height, width]: what image processors make of a picture that needs no resizing."""
    mean, std = (np.array(processor[key], np.float32) for key in ("image_mean", "image_std"))
    return np.ascontiguousarray(((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1))
