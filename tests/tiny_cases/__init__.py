"""Tiny models, a family or a few a file; each has its `CASES`."""

from tiny_cases import first, gpt_oss, mistral

MODULES = (first, gpt_oss, mistral)
