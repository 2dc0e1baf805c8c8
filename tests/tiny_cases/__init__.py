"""Tiny models, a family or a few a file; each has its `CASES`."""

from tiny_cases import arcee, baichuan, cohere, deci, exaone, first, internlm, olmo

MODULES = (first, arcee, baichuan, cohere, deci, exaone, internlm, olmo)
