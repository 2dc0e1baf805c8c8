"""QUANT_TYPES: every tensor type of ggml that can be written, and the types of checkpoints, over ggufround_kernels."""

from __future__ import annotations

from functools import cache

from ggufround.ggml_types import GGML_TYPES
from ggufround.quants.grids import GRIDS, Grid, integer_grid
from ggufround.quants.spec import QuantType
from ggufround_kernels import CODECS, FLOATS, FP4, FP8_BLOCK, MXFP8, GroupCodec, fp8_codec, integer_codec

WORD = 32  # rows of which any number of bits fills whole words
_IDS = {t.name: t.id for t in GGML_TYPES.values()}

QUANT_TYPES: dict[str, QuantType] = {
    name: QuantType(name, _IDS[name], 1, row.nbytes, "float", row.quantize, row.unpack) for name, row in FLOATS.items()
} | {
    name: QuantType(
        name, _IDS[name], row.block, row.nbytes, "quant", row.quantize, row.unpack, row.search, row.pack,
        row.uses_importance, GRIDS.get(name),
    )
    for name, row in sorted(CODECS.items(), key=lambda item: _IDS[item[0]])
}  # fmt: skip


def _layer_type(codec: GroupCodec, grid: Grid | None, block: int, granule: int = WORD) -> QuantType:
    return QuantType(
        codec.name, -1, block, block // codec.group * codec.nbytes, "quant", codec.quantize, codec.unpack,
        codec.search, codec.pack, True, grid, codec, granule,
    )  # fmt: skip


@cache
def integer_type(bits: int, group: int, symmetric: bool) -> QuantType:
    """Integers with a scale for each `group` neighbours. ValueError for bits or a group that cannot be stored."""
    return _layer_type(integer_codec(bits, group, symmetric), integer_grid(bits, group, symmetric), group)


@cache
def fp8_type(columns: int) -> QuantType:
    """FP8 with a scale for each row of so many weights. ValueError where 32 does not divide them."""
    return _layer_type(fp8_codec(columns), None, columns)


# What safetensors checkpoints hold; their FP4 is rounded as their runtimes round, not as llama.cpp does.
FLOAT_TYPES: dict[str, QuantType] = {
    "MXFP4": _layer_type(FP4["MXFP4"], GRIDS["MXFP4"], 32),
    "MXFP8": _layer_type(MXFP8, GRIDS["MXFP8"], 32),
    "NVFP4": _layer_type(FP4["NVFP4"], GRIDS["NVFP4"], 64),
    "FP8 block": _layer_type(FP8_BLOCK, None, 128, granule=128),
}


@cache
def copied_type(dtype: str, nbytes: int) -> QuantType:
    """Numbers that are no weights, such as I64, `nbytes` each: their bytes are copied."""
    return QuantType(dtype, -1, 1, nbytes, "float", _not_rounded, _not_rounded)


def _not_rounded(*given: object) -> None:
    raise AssertionError("copied as it is")
