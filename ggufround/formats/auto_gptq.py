"""auto_gptq: GPTQ's checkpoints (version 1: zero points stored less one), for GPTQModel, vLLM, SGLang, ExLlama."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from ggufround.formats.auto_round import is_w8_asym
from ggufround.formats.spec import Format, Member, Store
from ggufround.formats.stores import codec_of, gptq
from ggufround.quants.schemes import Layers, Scheme

BITS = (2, 3, 4, 8)


def refusal(scheme: Scheme) -> str | None:
    if scheme.data != "int" or scheme.bits not in BITS:
        return "GPTQ holds integers of 2, 3, 4 or 8 bits"
    return "no runtime has a kernel for 8 bits with zero points; use --sym" if is_w8_asym(scheme) else None


def store(scheme: Scheme, shape: tuple[int, int]) -> Store:
    """And the group of each column, which is only of use where columns were reordered, but readers want it."""
    plain, columns = gptq(scheme, shape, lowered=True), shape[1]
    order = (np.arange(columns) // codec_of(scheme.type_for(columns)).group).astype("<i4").tobytes()
    return replace(plain, members=(*plain.members, Member(".g_idx", "I32", (columns,), None, constant=order)))


def config(layers: Layers) -> dict[str, Any]:
    scheme = layers.scheme
    dynamic: dict[str, Any] = {
        f"+:^{re.escape(name)}$": {"bits": s.bits, "group_size": s.group, "sym": s.symmetric}
        for name, s in layers.others.items()
    }
    dynamic |= {f"-:^{re.escape(name)}$": {} for name in layers.kept}
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": scheme.bits,
        "group_size": scheme.group,
        "sym": scheme.symmetric,
        "desc_act": False,
        "true_sequential": False,
        "damp_percent": 0.01,
        "lm_head": layers.head in layers.quantised,
        "provider": "ggufround",
        **({"dynamic": dynamic} if dynamic else {}),
    }


FORMAT = Format(
    "auto_gptq", "GPTQModel, transformers, vLLM, SGLang, ExLlama", refusal, store, config,
    more={"quantize_config.json": config},
)  # fmt: skip
