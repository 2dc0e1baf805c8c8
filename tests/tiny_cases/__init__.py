"""Tiny models, a family or a few a file; each has its `CASES`."""

from tiny_cases import arcee, baichuan, cohere, dbrx, deci, exaone, first, internlm, mimo, olmo

MODULES = (first, arcee, baichuan, cohere, dbrx, deci, exaone, internlm, mimo, olmo)
