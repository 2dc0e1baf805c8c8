"""NumPy twins of how codes are packed, as the formats' own code does it: slow and plain.

Codes are uint8 [rows, n], a row for each output channel of a layer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reference_simple import E2M1

U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def stream(codes: NDArray, bits: int) -> bytes:
    """Codes as one large number, code i at bit i * bits, its lowest byte first."""
    number = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    return number.to_bytes(len(codes) * bits // 8, "little")


def streams(codes: U8, bits: int) -> U8:
    """uint8 [rows, n * bits / 8]: the stream of each row."""
    size = codes.shape[1] * bits // 8
    return np.frombuffer(b"".join(stream(row, bits) for row in codes), np.uint8).reshape(len(codes), size)


def gptq_words(codes: U8, bits: int) -> I32:
    """int32 [n * bits / 32, rows]: words run down the columns. GPTQ writes three words of 3-bit codes out by hand."""
    columns = codes.T.astype(np.uint32)
    if bits == 3:
        return np.concatenate([_three_words(columns[i : i + 32]) for i in range(0, len(columns), 32)]).view(np.int32)
    per = 32 // bits
    words = np.zeros((len(columns) // per, columns.shape[1]), np.uint32)
    for i, row in enumerate(columns):
        words[i // per] |= row << np.uint32(bits * (i % per))
    return words.view(np.int32)


def _three_words(c: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Of 32 codes: 10 and the low two bits of one, its high bit, 10, the low bit of one, its high two, 10."""
    words = np.zeros((3, c.shape[1]), np.uint32)
    for i in range(10):
        words[0] |= c[i] << np.uint32(3 * i)
        words[1] |= c[11 + i] << np.uint32(3 * i + 1)
        words[2] |= c[22 + i] << np.uint32(3 * i + 2)
    words[0] |= c[10] << np.uint32(30)
    words[1] |= c[10] >> np.uint32(2) | c[21] << np.uint32(31)
    words[2] |= c[21] >> np.uint32(1)
    return words


def awq_words(codes: U8) -> NDArray[np.uint32]:
    """uint32 [n, rows / 8]: word by word as AutoAWQ packs them."""
    across = codes.T.astype(np.uint32)
    words = np.zeros((across.shape[0], across.shape[1] // 8), np.uint32)
    for word in range(words.shape[1]):
        for place, row in enumerate(AWQ_ORDER):
            words[:, word] |= across[:, 8 * word + row] << np.uint32(4 * place)
    return words


def pairs(codes: U8) -> U8:
    """uint8 [rows, n / 2]: 4-bit codes of neighbours, the even one in the low half."""
    return codes[:, 0::2] | codes[:, 1::2] << 4


def values_of_pairs(packed: U8) -> NDArray[np.float32]:
    """float32 [rows, n]: the E2M1 values of pairs."""
    return E2M1[np.stack([packed & 15, packed >> 4], axis=2).reshape(len(packed), -1)]


def records(codes: U8, bits: int, scales: NDArray, zeros: U8 | None = None) -> U8:
    """uint8 [rows, bytes]: a row's stream, its scales as they are stored, its zero points."""
    parts = [streams(codes, bits), np.frombuffer(scales.tobytes(), np.uint8).reshape(len(codes), -1)]
    return np.concatenate([*parts, *([] if zeros is None else [zeros])], axis=1)
