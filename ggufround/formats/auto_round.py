"""auto_round: what Intel's auto-round writes and its transformers, vLLM and SGLang integrations read.

Integers lie as GPTQ lays them. Symmetric ones have the middle code as zero point, stored less one; asymmetric ones have
raw zero points (packing_format "auto_round"), which is the one form of them that also loads on a CPU. MXFP4, MXFP8 and
NVFP4 lie as compressed-tensors lays them.
"""

from __future__ import annotations

from typing import Any

from ggufround.formats import llm_compressor
from ggufround.formats.spec import Format, Store
from ggufround.formats.stores import codec_of, gptq
from ggufround.quants.schemes import Layers, Scheme
from ggufround.quants.spec import QuantType

ACTIVATIONS = {  # what the runtime does to activations
    "mx_fp": {"act_data_type": "mx_fp", "act_dynamic": True, "act_sym": True},
    "nv_fp": {"act_data_type": "nv_fp4_with_static_gs", "act_dynamic": True, "act_sym": True},
}


def refusal(scheme: Scheme) -> str | None:
    """Eight bits with a zero point have no kernel anywhere."""
    return "no runtime has a kernel for 8 bits with zero points; use --sym" if is_w8_asym(scheme) else None


def is_w8_asym(scheme: Scheme) -> bool:
    return scheme.data == "int" and scheme.bits == 8 and not scheme.symmetric


def store(kind: QuantType, shape: tuple[int, int]) -> Store:
    codec = codec_of(kind)
    return gptq(kind, shape, lowered=codec.sym) if codec.half else llm_compressor.store(kind, shape)


def config(layers: Layers) -> dict[str, Any]:
    scheme = layers.scheme
    packing = "auto_round:llm_compressor" if scheme.data != "int" else "auto_round:auto_gptq"
    if scheme.data == "int" and not scheme.symmetric:
        packing = "auto_round"
    other = {name: _described(s) for name, s in layers.others.items()}
    other |= {name: {"bits": 16, "data_type": "float"} for name in layers.kept}
    return {
        "quant_method": "auto-round",
        "packing_format": packing,
        **_described(scheme),
        "block_name_to_quantize": layers.blocks,
        "provider": "ggufround",
        **({"extra_config": other} if other else {}),
    }


def _described(scheme: Scheme) -> dict[str, Any]:
    found: dict[str, Any] = {
        "bits": scheme.bits, "group_size": scheme.group, "sym": scheme.symmetric, "data_type": scheme.data,
    }  # fmt: skip
    if scheme.data in ACTIVATIONS:
        found |= {"act_bits": scheme.bits, "act_group_size": scheme.group, **ACTIVATIONS[scheme.data]}
    return found


FORMAT = Format(
    "auto_round", "transformers with auto-round, vLLM, SGLang", refusal, store, config,
    more={"quantization_config.json": config},
)  # fmt: skip
