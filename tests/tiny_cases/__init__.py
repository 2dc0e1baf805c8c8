"""Tiny models, a family or a few a file; each has its `CASES`."""

from tiny_cases import encoders, falcon_h1, first, gpt, mamba, phi, stablelm, vision

MODULES = (
    first,
    vision,
    mamba,
    falcon_h1,
    encoders,
    gpt,
    phi,
    stablelm,
)
