"""Numba kernels for every quant type: numpy in, numpy out. Knows no file, no model, no torch."""

from ggufround_kernels import (
    iq4,
    kquants_affine,
    kquants_symmetric,
    legacy_affine,
    legacy_symmetric,
    microfloat,
    q8,
    ternary,
)
from ggufround_kernels.codec import Codec, Search
from ggufround_kernels.floats import FLOATS, absmax, first_nonfinite, widen_bf16
from ggufround_kernels.microfloat import nvfp4_global_scale
from ggufround_kernels.rounded import Rounded

CODECS: dict[str, Codec] = {
    **legacy_symmetric.CODECS,
    **legacy_affine.CODECS,
    **kquants_affine.CODECS,
    **kquants_symmetric.CODECS,
    **iq4.CODECS,
    **q8.CODECS,
    **ternary.CODECS,
    **microfloat.CODECS,
}

__all__ = [
    "CODECS",
    "FLOATS",
    "Codec",
    "Rounded",
    "Search",
    "absmax",
    "first_nonfinite",
    "nvfp4_global_scale",
    "widen_bf16",
]
