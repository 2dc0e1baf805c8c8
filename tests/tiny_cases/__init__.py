"""Tiny models, a family or a few a file; each has its `CASES`."""

from tiny_cases import first, qwen_linear

MODULES = (first, qwen_linear)
