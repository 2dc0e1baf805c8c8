"""Tiny models, a family or a few a file; each has its `CASES`."""

from tiny_cases import cohere, exaone, first, internlm, olmo

MODULES = (first, cohere, exaone, internlm, olmo)
