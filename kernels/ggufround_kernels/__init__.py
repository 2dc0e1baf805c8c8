"""Numba kernels for every quant type: numpy in, numpy out. Knows no file, no model, no torch."""

from ggufround_kernels.rounded import Rounded

__all__ = ["Rounded"]
