"""Tiny models, a family or a few a file; each has its `CASES`."""

from tiny_cases import first, granite, kimi, lfm2, minimax, qwen_linear

MODULES = (first, granite, kimi, lfm2, minimax, qwen_linear)
