"""Tiny models, a family or a few a file; each has its `CASES`."""

from tiny_cases import cohere, first, olmo

MODULES = (first, cohere, olmo)
