"""Tiny models, a family or a few a file; each has its `CASES`."""

from tiny_cases import first, gemma, gemma4, gpt_oss, llama4, mistral, relatives

MODULES = (first, gemma, gemma4, gpt_oss, llama4, mistral, relatives)
