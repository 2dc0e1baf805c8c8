"""auto_gptq: GPTQ's checkpoints, for GPTQModel, transformers, vLLM, SGLang, ExLlama.

Symmetric ones are of the first version. Asymmetric ones are of the second (checkpoint_format "gptq_v2", raw zero
points): GPTQModel takes no others that it did not write itself.
"""

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
    """And the group of each column, of use only where columns were reordered, but transformers wants it."""
    plain, columns = gptq(scheme, shape), shape[1]
    order = (np.arange(columns) // codec_of(scheme.type_for(columns)).group).astype("<i4").tobytes()
    return replace(plain, members=(*plain.members, Member(".g_idx", "I32", (columns,), None, constant=order)))


def config(layers: Layers) -> dict[str, Any]:
    scheme = layers.scheme
    dynamic: dict[str, Any] = {f"+:^{re.escape(name)}$": _rule(s) for name, s in layers.others.items()}
    if layers.head in layers.quantised:  # outside the blocks; auto-round's reader wants it said in so many words
        dynamic[f"+:^{re.escape(layers.head)}$"] = _rule(layers.quantised[layers.head])
    dynamic |= {f"-:^{re.escape(name)}$": {} for name in layers.kept}
    dynamic |= {f"-:.*{re.escape(tower)}.*": {} for tower in layers.towers}
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if scheme.symmetric else "gptq_v2",
        "bits": scheme.bits,
        "group_size": scheme.group,
        "sym": scheme.symmetric,
        "desc_act": False,
        "true_sequential": False,
        "damp_percent": 0.01,
        "lm_head": layers.head in layers.quantised,
        "provider": "ggufround",
        **({"dynamic": dynamic} if dynamic else {}),
        **({"modules_in_block_to_quantize": _modules(layers)} if layers.kept else {}),
    }


def _rule(scheme: Scheme) -> dict[str, Any]:
    return {"bits": scheme.bits, "group_size": scheme.group, "sym": scheme.symmetric}


def _modules(layers: Layers) -> list[list[str]]:
    """What is quantised in a block: transformers reads this, not `dynamic`."""
    inside = re.compile(re.escape(layers.blocks) + r"\.\d+\.(.+)")
    return [sorted({found[1] for name in layers.quantised if (found := inside.fullmatch(name))})]


def mixes(most: Scheme, other: Scheme) -> bool:
    """One checkpoint_format holds for all layers."""
    return most.symmetric == other.symmetric


FORMAT = Format(
    "auto_gptq", "GPTQModel, transformers, vLLM, SGLang, ExLlama", refusal, store, config, mixes,
    more={"quantize_config.json": config},
)  # fmt: skip
