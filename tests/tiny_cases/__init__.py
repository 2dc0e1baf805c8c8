"""Tiny models, a family or a few a file; each has its `CASES`."""

from tiny_cases import first, gpt, phi, stablelm

MODULES = (first, gpt, phi, stablelm)
