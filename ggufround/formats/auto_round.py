"""auto_round: what Intel's auto-round writes and its transformers, vLLM and SGLang integrations read.

Integers lie as GPTQ lays them. Symmetric ones have the middle code as zero point, stored less one; asymmetric ones have
raw zero points (packing_format "auto_round"), which is the one form of them that also loads on a CPU. MXFP4, MXFP8 and
NVFP4 lie as compressed-tensors lays them, and tiles of FP8 as DeepSeek's models have them (quant_method "fp8"), which
transformers reads by itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ggufround.formats.spec import Format, Store
from ggufround.formats.stores import floats, gptq
from ggufround.quants.schemes import Layers, Scheme, described

PACKING = {"int": "auto_round:auto_gptq", "fp": "auto_round:fp8_static"}


def refusal(scheme: Scheme) -> str | None:
    """Eight bits with a zero point have no kernel anywhere, and FP4 weights none for activations of 16 bits."""
    if scheme.data in ("mx_fp", "nv_fp") and scheme.active == "no":
        return "its runtimes round activations as well; use llm_compressor, or the scheme without A16"
    return "no runtime has a kernel for 8 bits with zero points; use --sym" if is_w8_asym(scheme) else None


def is_w8_asym(scheme: Scheme) -> bool:
    return scheme.data == "int" and scheme.bits == 8 and not scheme.symmetric


def store(scheme: Scheme, shape: tuple[int, int]) -> Store:
    if scheme.data == "int":
        return gptq(scheme, shape)
    found = floats(scheme, shape)
    if scheme.data != "fp":
        return found
    code, scale, *more = found.members  # as this format calls and shapes them
    scale = replace(scale, suffix=".weight_scale_inv") if scheme.tall > 1 else replace(scale, shape=scale.shape[:1])
    return replace(found, members=(code, scale, *more))


def config(layers: Layers) -> dict[str, Any]:
    scheme = layers.scheme
    if scheme.tall > 1:
        return _tiles(layers)
    packing = PACKING.get(scheme.data, "auto_round:llm_compressor")
    if scheme.data == "int" and not scheme.symmetric:
        packing = "auto_round"
    inside = f"{layers.blocks}."  # a reader looks for quantised layers there, and elsewhere for those that are named
    other = {n: described(s) for n, s in layers.quantised.items() if s != scheme or not n.startswith(inside)}
    other |= {name: {"bits": 16, "data_type": "float"} for name in layers.kept}
    return {
        "quant_method": "auto-round",
        "packing_format": packing,
        **described(scheme),
        "block_name_to_quantize": layers.blocks,
        "provider": "ggufround",
        **({"extra_config": other} if other else {}),
    }


def _tiles(layers: Layers) -> dict[str, Any]:
    head = [] if layers.head in layers.quantised else [layers.head]
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [layers.scheme.tall, layers.scheme.group],
        "modules_to_not_convert": [*head, *layers.kept, *(f".*{tower}" for tower in layers.towers)],
        "provider": "ggufround",
    }


def mixes(most: Scheme, other: Scheme) -> bool:
    """One packing_format holds for all layers: they may differ in bits and groups."""
    return replace(other, bits=most.bits, group=most.group) == most and (most.data == "int" or most == other)


FORMAT = Format(
    "auto_round", "transformers with auto-round, vLLM, SGLang", refusal, store, config, mixes,
    more={"quantization_config.json": config},
)  # fmt: skip
