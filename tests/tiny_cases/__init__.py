"""Tiny models, a family or a few a file; each has its `CASES`."""

from tiny_cases import baichuan, cohere, exaone, first, internlm, olmo

MODULES = (first, baichuan, cohere, exaone, internlm, olmo)
