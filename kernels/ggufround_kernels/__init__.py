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
from ggufround_kernels.checked import checked
from ggufround_kernels.codec import Codec, Search
from ggufround_kernels.floats import FLOATS, absmax, first_nonfinite, widen_bf16
from ggufround_kernels.fp4 import FP4
from ggufround_kernels.fp8 import FP8_BLOCK, fp8_codec
from ggufround_kernels.grouped import GroupCodec
from ggufround_kernels.integers import integer_codec
from ggufround_kernels.microfloat import nvfp4_global_scale
from ggufround_kernels.mxfp8 import MXFP8
from ggufround_kernels.rounded import Rounded, stacked

_MODULES = (legacy_symmetric, legacy_affine, kquants_affine, kquants_symmetric, iq4, q8, ternary, microfloat)

CODECS: dict[str, Codec] = {name: checked(name, codec) for module in _MODULES for name, codec in module.CODECS.items()}

__all__ = [
    "CODECS",
    "FLOATS",
    "FP4",
    "FP8_BLOCK",
    "MXFP8",
    "Codec",
    "GroupCodec",
    "Rounded",
    "Search",
    "absmax",
    "fp8_codec",
    "first_nonfinite",
    "integer_codec",
    "nvfp4_global_scale",
    "stacked",
    "widen_bf16",
]
