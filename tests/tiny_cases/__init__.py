"""Tiny models, a family or a few a file; each has its `CASES`."""

from tiny_cases import (
    arcee,
    baichuan,
    cohere,
    dbrx,
    deci,
    diffusion,
    exaone,
    first,
    internlm,
    jais,
    mimo,
    olmo,
    openelm,
    sparse,
)

MODULES = (first, arcee, baichuan, cohere, dbrx, deci, diffusion, exaone, internlm, jais, mimo, olmo, openelm, sparse)
