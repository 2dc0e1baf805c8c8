"""llm_compressor: compressed-tensors, for vLLM, SGLang, and transformers, which also runs them on a CPU.

Integers ("pack-quantized") lie along the rows, as offset codes; zero points are packed down the columns. MXFP4, MXFP8
and NVFP4 have formats of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ggufround.formats.spec import U8, Arrays, Format, Member, Store
from ggufround.formats.stores import codec_of, floats, recorded, stream_of, words
from ggufround.quants.schemes import WHOLE, Layers, Scheme
from ggufround_kernels.grouped import Fields, fields
from ggufround_kernels.packing import pack_bits, unpack_bits

FORMATS = {
    ("int", 0): "pack-quantized", ("mx_fp", 4): "mxfp4-pack-quantized", ("mx_fp", 8): "mxfp8-quantized",
    ("nv_fp", 4): "nvfp4-pack-quantized", ("fp", 8): "float-quantized",
}  # fmt: skip

SCALES = {"mx_fp": "torch.uint8", "nv_fp": "torch.float8_e4m3fn"}


def refusal(scheme: Scheme) -> str | None:
    return None


def store(scheme: Scheme, shape: tuple[int, int]) -> Store:
    if scheme.data != "int":
        return floats(scheme, shape)
    codec, (rows, columns) = codec_of(scheme.type_for(shape[1])), shape
    bits, groups = codec.bits, columns // codec.group
    members = [
        Member(".weight_packed", "I32", (rows, columns * bits // 32)),
        Member(".weight_scale", "F16", (rows, groups)),
        Member(".weight_shape", "I64", (2,), None, constant=np.array(shape, "<i8").tobytes()),
    ]
    if not codec.sym:
        members.append(Member(".weight_zero_point", "I32", (rows * bits // 32, groups)))

    def split(packed: U8) -> Arrays:
        parts = fields(codec, packed)
        zeros = () if parts.zeros is None else (words(pack_bits(parts.zeros.T, bits)).T,)
        return words(parts.stream), parts.scales, *zeros

    def join(arrays: Arrays) -> U8:
        packed, scales, *zeros = arrays
        found = unpack_bits(stream_of(zeros[0].T), bits).T if zeros else None
        return recorded(codec, Fields(stream_of(packed), np.ascontiguousarray(scales), found))

    return Store(tuple(members), split, join)


def config(layers: Layers) -> dict[str, Any]:
    """Groups of layers that are alike; "Linear" stands for the rest."""
    several: dict[Scheme, list[str]] = {layers.scheme: ["Linear"]}
    for name, scheme in layers.others.items():
        several.setdefault(scheme, []).append(name)
    ordered = sorted(several.items(), key=lambda item: item[0] == layers.scheme)  # named ones before "Linear"
    groups = {f"group_{k}": _group(scheme, names) for k, (scheme, names) in enumerate(ordered)}
    formats = {group["format"] for group in groups.values()}
    head = [] if layers.head in layers.quantised else [layers.head]
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [*head, *layers.kept, *(f"re:.*{tower}.*" for tower in layers.towers)],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "provider": "ggufround",
    }


def _group(scheme: Scheme, targets: list[str]) -> dict[str, Any]:
    integers = scheme.data == "int"
    weights: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": "int" if integers else "float",
        "symmetric": scheme.symmetric,
        "dynamic": False,
        "strategy": _strategy(scheme),
        "group_size": None if scheme.group == WHOLE or scheme.tall > 1 else scheme.group,
    }
    if scheme.tall > 1:
        weights["block_structure"] = [scheme.tall, scheme.group]
    if scheme.data in SCALES:
        weights["scale_dtype"] = SCALES[scheme.data]
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": _activations(scheme, weights),
        "output_activations": None,
        "format": FORMATS[scheme.data, 0 if integers else scheme.bits],
    }


def _strategy(scheme: Scheme) -> str:
    if scheme.tall > 1:
        return "block"
    return "channel" if scheme.group == WHOLE else "tensor_group" if scheme.data == "nv_fp" else "group"


def _activations(scheme: Scheme, weights: dict[str, Any]) -> dict[str, Any] | None:
    """The same type: in groups, whose scales are found as they come (NVFP4's below one that was found before)."""
    if scheme.active == "no":
        return None
    same = {key: weights[key] for key in ("num_bits", "type", "symmetric")}
    if scheme.data == "fp" and scheme.active == "static":
        return same | {"dynamic": False, "strategy": "tensor", "group_size": None}
    found = same | {"strategy": "group", "group_size": scheme.group, "dynamic": True}
    if scheme.data in SCALES:
        found["scale_dtype"] = SCALES[scheme.data]
    return found | ({"strategy": "tensor_group", "dynamic": "local"} if scheme.data == "nv_fp" else {})


FORMAT = Format("llm_compressor", "vLLM, SGLang, transformers with compressed-tensors", refusal, store, config)
