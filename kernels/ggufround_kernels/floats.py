"""F32, F16 and BF16 rows, and the widening of what a checkpoint stores: one pass each, at the memory's speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ggufround_kernels._jit import kernel
from ggufround_kernels.codec import F32, U8, Search


class FloatType(NamedTuple):
    """A type without blocks: `quantize` rounds each weight on its own, whatever importance and search say."""

    nbytes: int  # of one weight
    quantize: Callable[[F32, F32 | None, Search, U8], None]  # (weights, importance, search, out packed)
    unpack: Callable[[U8, F32], None]  # (packed, out weights)


@kernel
def _widen_bf16(raw: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = np.uint32(raw[i]) << np.uint32(16)


# ggml_compute_fp32_to_bf16: round to nearest even, a NaN stays one and quiet
@kernel
def _store_bf16(bits: Any, out: Any) -> None:
    for i in range(out.size):
        b = bits[i]
        rounded = (b + (np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
        nan = (b & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        out[i] = np.uint16((b >> np.uint32(16)) | np.uint32(64)) if nan else np.uint16(rounded)


# IEEE 754 round to nearest even, as GGML_FP32_TO_FP16; below 2^-14 the implicit one is shifted into the mantissa
@kernel
def _store_f16(bits: Any, out: Any) -> None:
    one = np.uint32(1)
    for i in range(out.size):
        size = bits[i] & np.uint32(0x7FFFFFFF)
        normal = (size - np.uint32(0x38000000) + np.uint32(0xFFF) + ((size >> np.uint32(13)) & one)) >> np.uint32(13)
        mantissa = (size & np.uint32(0x7FFFFF)) | np.uint32(0x800000)
        shift = min(np.uint32(126) - min(size >> np.uint32(23), np.uint32(112)), np.uint32(31))
        half = (mantissa + (one << (shift - one)) - one + ((mantissa >> shift) & one)) >> shift
        half = normal if size >= np.uint32(0x38800000) else half
        half = np.uint32(0x7C00) if size >= np.uint32(0x477FF000) else half
        half = np.uint32(0x7E00) if size > np.uint32(0x7F800000) else half
        out[i] = np.uint16(half | ((bits[i] >> np.uint32(16)) & np.uint32(0x8000)))


@kernel
def _largest_bits(bits: Any) -> Any:
    largest = np.uint32(0)
    for i in range(bits.size):
        largest = max(largest, bits[i] & np.uint32(0x7FFFFFFF))
    return largest


def widen_bf16(raw: U8, out: F32) -> None:
    """BF16 bytes (uint8 [2 n], C-contiguous) to float32 [n]."""
    _widen_bf16(raw.reshape(-1).view(np.uint16), out.reshape(-1).view(np.uint32))


def absmax(weights: F32) -> float:
    """The largest magnitude; NaN if any weight is NaN, infinity if any is infinite (and none NaN), 0 if empty."""
    return float(np.uint32(_largest_bits(weights.reshape(-1).view(np.uint32))).view(np.float32))


def first_nonfinite(weights: F32) -> int:
    """The flat index of the first NaN or infinity, -1 if there is none."""
    if np.isfinite(absmax(weights)):
        return -1
    return int(np.argmin(np.isfinite(weights.reshape(-1))))


def _f32_quantize(weights: F32, importance: F32 | None, search: Search, out: U8) -> None:
    np.copyto(out.reshape(-1).view(np.float32), weights.reshape(-1))


def _f32_unpack(packed: U8, out: F32) -> None:
    np.copyto(out.reshape(-1), packed.reshape(-1).view(np.float32))


def _f16_quantize(weights: F32, importance: F32 | None, search: Search, out: U8) -> None:
    _store_f16(weights.reshape(-1).view(np.uint32), out.reshape(-1).view(np.uint16))


def _f16_unpack(packed: U8, out: F32) -> None:
    np.copyto(out.reshape(-1), packed.reshape(-1).view(np.float16))


def _bf16_quantize(weights: F32, importance: F32 | None, search: Search, out: U8) -> None:
    _store_bf16(weights.reshape(-1).view(np.uint32), out.reshape(-1).view(np.uint16))


FLOATS: dict[str, FloatType] = {
    "F32": FloatType(4, _f32_quantize, _f32_unpack),
    "F16": FloatType(2, _f16_quantize, _f16_unpack),
    "BF16": FloatType(2, _bf16_quantize, widen_bf16),
}
