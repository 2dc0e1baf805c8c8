"""Tiny models, a family or a few a file; each has its `CASES`."""

from tiny_cases import falcon_h1, first, jamba, mamba, nemotron, nemotron_h, rwkv

MODULES = (first, mamba, falcon_h1, nemotron, nemotron_h, jamba, rwkv)
