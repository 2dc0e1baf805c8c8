"""Stored bytes as float32: a decoder for each dtype of safetensors and each type of ggml."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ggufround_kernels import CODECS, widen_bf16

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


def _fp8_table(exponent_bits: int, has_infinity: bool) -> F32:
    """The float32 value of all 256 codes. E4M3 (OCP "FN") has no infinity and NaN only at 0x7F; E5M2 is IEEE-like."""
    mantissa_bits = 7 - exponent_bits
    codes = np.arange(128)
    exponent, mantissa = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    bias = (1 << (exponent_bits - 1)) - 1
    fraction = mantissa / (1 << mantissa_bits) + (exponent > 0)
    values = np.ldexp(fraction, np.maximum(exponent, 1) - bias)
    if has_infinity:
        values[exponent == (1 << exponent_bits) - 1] = np.nan
        values[((1 << exponent_bits) - 1) << mantissa_bits] = np.inf
    else:
        values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


_E4M3 = _fp8_table(4, has_infinity=False)
_E5M2 = _fp8_table(5, has_infinity=True)


def _from_f64(raw: U8, out: F32) -> None:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, which the caller refuses by name
        np.copyto(out, raw.view("<f8"), casting="same_kind")


def _from_e8m0(raw: U8, out: F32) -> None:
    np.ldexp(np.float32(1), raw.astype(np.int32) - 127, out=out)
    out[raw == 255] = np.nan


DECODERS: dict[str, Callable[[U8, F32], None]] = {  # (stored rows [n, bytes of a row], out [n, columns])
    "F32": lambda raw, out: np.copyto(out, raw.view("<f4")),
    "F16": lambda raw, out: np.copyto(out, raw.view("<f2")),
    "BF16": widen_bf16,
    "F64": _from_f64,
    "F8_E4M3": lambda raw, out: np.copyto(out, _E4M3[raw]),
    "F8_E5M2": lambda raw, out: np.copyto(out, _E5M2[raw]),
    "F8_E8M0": _from_e8m0,
    **{name: codec.unpack for name, codec in CODECS.items()},
}


def decoded(raw: U8, dtype: str, columns: int) -> F32:
    """float32 [rows, columns] of stored rows, uint8 [rows, bytes of a row], wherever in memory they begin."""
    out = np.empty((len(raw), columns), np.float32)
    DECODERS[dtype](raw.copy(), out)  # a copy is aligned
    return out
