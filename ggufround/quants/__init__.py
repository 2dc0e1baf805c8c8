"""Quant types and mixes: tables over ggufround_kernels."""
