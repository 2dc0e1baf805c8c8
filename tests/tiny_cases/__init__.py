"""Tiny models, a family or a few a file; each has its `CASES`."""

from tiny_cases import encoders, first, t5

MODULES = (first, encoders, t5)
