"""Numba kernels for every quant type: numpy in, numpy out. Knows no file, no model, no torch."""

from ggufround_kernels.codec import Codec, Search
from ggufround_kernels.rounded import Rounded

__all__ = ["Codec", "Rounded", "Search"]
