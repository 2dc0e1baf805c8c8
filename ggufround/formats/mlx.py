"""mlx: Apple's, for mlx-lm and mlx-vlm. Weight = scale * code + bias, codes in a stream along the rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ggufround.formats.spec import U8, Arrays, Format, Member, Store
from ggufround.formats.stores import codec_of, recorded, stream_of, words, zero_points
from ggufround.quants.schemes import Layers, Scheme
from ggufround_kernels.grouped import Fields, fields

GROUPS = (32, 64, 128)


def refusal(scheme: Scheme) -> str | None:
    if scheme.data != "int":
        return "MLX checkpoints of this kind hold integers"
    return None if scheme.group in GROUPS else f"MLX has kernels for groups of {', '.join(map(str, GROUPS))} only"


def store(scheme: Scheme, shape: tuple[int, int]) -> Store:
    """The bias, -scale * zero point, is rounded to float16; where that is the middle code it is exact."""
    codec, (rows, columns) = codec_of(scheme.type_for(shape[1])), shape
    groups = columns // codec.group
    members = (
        Member(".weight", "U32", (rows, columns * codec.bits // 32)),
        Member(".scales", "F16", (rows, groups)),
        Member(".biases", "F16", (rows, groups)),
    )

    def split(packed: U8) -> Arrays:
        parts = fields(codec, packed)
        biases = -parts.scales.astype(np.float32) * zero_points(codec, parts).astype(np.float32)
        return words(parts.stream), parts.scales, np.clip(biases, -65504, 65504).astype(np.float16)

    def join(arrays: Arrays) -> U8:
        packed, scales, biases = (np.ascontiguousarray(a) for a in arrays)
        zeros = None
        if not codec.sym:
            zeros = np.round(-biases.astype(np.float32) / scales.astype(np.float32)).astype(np.uint8)
        return recorded(codec, Fields(stream_of(packed), scales, zeros))

    return Store(members, split, join)


def config(layers: Layers) -> dict[str, Any]:
    def one(scheme: Scheme) -> dict[str, Any]:
        return {"group_size": scheme.group, "bits": scheme.bits, "mode": "affine"}

    table: dict[str, Any] = {name: one(scheme) for name, scheme in layers.others.items()}
    table |= dict.fromkeys(layers.kept, False)
    return {**one(layers.scheme), **table}


def entry(config: Mapping[str, Any]) -> dict[str, Any]:
    """mlx-lm looks for the base of the rotary frequencies where config.json had it before transformers 5."""
    rope = config.get("rope_parameters")
    flat = isinstance(rope, dict) and "rope_theta" in rope and "rope_theta" not in config
    return {"rope_theta": rope["rope_theta"]} if flat and rope else {}


FORMAT = Format(
    "mlx",
    "mlx-lm, mlx-vlm",
    refusal,
    store,
    config,
    keys=("quantization", "quantization_config"),
    entry=entry,
    loaded=False,
)
