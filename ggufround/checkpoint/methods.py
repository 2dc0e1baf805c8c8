"""Which method a checkpoint says it was quantised by, and what only its config can say. Others are refused by name.

Known are transformers' "fp8" and "mxfp4", GPTQ, AWQ (gemm), auto-round, compressed-tensors and MLX. How many bits a
layer has and how many weights share a scale follows from the shapes of its tensors, mostly; what the config says of
that decides where several answers fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from ggufround.errors import InputError, UnsupportedError

BITS = range(2, 9)
BLOCK_LIMIT = 1 << 20
WHOLE = -1  # a group is a row
GPTQ_FORMATS = {"gptq": True, "gptq_v2": False}  # whether zero points are stored less one
AUTO_ROUND_FORMATS = {
    "auto_round": False, "auto_round:gptqmodel": False, "auto_round:auto_gptq": True, "auto_round:gptq": True,
    "auto_round:auto_awq": False, "auto_round:awq": False, "auto_round:llm_compressor": False,
    "auto_round:fp8": False, "auto_round:fp8_static": False,
}  # fmt: skip
COMPRESSED_FORMATS: dict[str, tuple[str, Sequence[int]]] = {  # the kind of weights of each
    "pack-quantized": ("int", BITS), "mxfp4-pack-quantized": ("float", (4,)), "nvfp4-pack-quantized": ("float", (4,)),
    "int-quantized": ("int", (8,)), "mxfp8-quantized": ("float", (8,)), "float-quantized": ("float", (8,)),
    "naive-quantized": ("float", (8,)),
}  # fmt: skip
OF_BLOCKS = ("float-quantized", "naive-quantized")


class Stated(NamedTuple):
    """What a config says of the integers of some layers. `group` is WHOLE where a row shares one scale."""

    bits: int
    group: int
    symmetric: bool


@dataclass(frozen=True)
class Method:
    """`stated`: what is said of most layers, then of groups of others; `by_name`: of single ones, by their modules."""

    name: str = ""  # for messages; nothing for a checkpoint that is not quantised
    stated: tuple[Stated, ...] = ()
    by_name: Mapping[str, Stated] = field(default_factory=dict)
    lowered: bool = False  # zero points of GPTQ's layout are stored less one
    reordered: bool = False  # columns of a group are not neighbours
    block: tuple[int, int] | None = None  # FP8: rows and columns that share a scale

    def of(self, module: str) -> tuple[Stated, ...]:
        """What may hold for a layer, the likeliest first."""
        named = self.by_name.get(module)
        return self.stated if named is None else (named, *self.stated)


def method_of(config: Mapping[str, Any], source: str) -> Method:
    """The method of a config.json. Raises UnsupportedError for one that is not known, InputError for one that
    contradicts itself."""
    text = config.get("text_config")
    for place in (config, text if isinstance(text, dict) else {}):
        found, mlx = place.get("quantization_config"), place.get("quantization")
        if isinstance(mlx, dict) and "bits" in mlx:
            return _mlx(mlx, source)
        if found is None:
            continue
        if not isinstance(found, dict):
            raise InputError(f"{source}: quantization_config in config.json is not an object")
        name = found.get("quant_method")
        if name is None and {"bits", "group_size"} <= found.keys():
            return _mlx(found, source)
        if not isinstance(name, str) or name not in METHODS:
            _refuse(source, name)
        return METHODS[name](found, source)
    return Method()


def _fp8(found: Mapping[str, Any], source: str) -> Method:
    return Method("fp8", block=_pair(found.get("weight_block_size"), source))


def _mxfp4(found: Mapping[str, Any], source: str) -> Method:
    return Method("mxfp4")


def _gptq(found: Mapping[str, Any], source: str) -> Method:
    layout = found.get("checkpoint_format", found.get("format", "gptq"))
    if found.get("is_marlin_format"):
        layout = "marlin"
    if layout not in GPTQ_FORMATS:
        _refuse(source, f"gptq in the format {layout}")
    default = _stated(found, source)
    dynamic = _object(found.get("dynamic"), "dynamic", source)
    others = [_stated(row, source, default) for row in dynamic.values() if isinstance(row, dict) and row]
    return Method(
        "gptq", _distinct([default, *others]), {}, GPTQ_FORMATS[str(layout)], bool(found.get("desc_act", False))
    )


def _awq(found: Mapping[str, Any], source: str) -> Method:
    version = found.get("version", found.get("checkpoint_format", found.get("format", "gemm")))
    if str(version).lower() != "gemm":
        _refuse(source, f"awq in the version {version}")
    bits = found.get("bits", found.get("w_bit", 4))
    group = found.get("group_size", found.get("q_group_size", 128))
    symmetric = not found.get("zero_point", True)
    return Method("awq", (_stated({"bits": bits, "group_size": group, "sym": symmetric}, source),))


def _auto_round(found: Mapping[str, Any], source: str) -> Method:
    packing = found.get("packing_format", "auto_round:auto_gptq")
    if packing not in AUTO_ROUND_FORMATS:
        _refuse(source, f"auto-round in the format {packing}")
    block = _pair(found.get("weight_block_size"), source)
    if found.get("data_type", "int") != "int":
        return Method("auto-round", block=block)
    default = _stated(found, source)
    extra = _object(found.get("extra_config"), "extra_config", source)
    by_name = {
        name: _stated(row, source, default)
        for name, row in extra.items()
        if isinstance(row, dict) and row.get("data_type", "int") == "int" and row.get("bits", default.bits) in BITS
    }
    # a name may be a regular expression too, so that what it says may hold for others
    return Method(
        "auto-round", _distinct([default, *by_name.values()]), by_name, AUTO_ROUND_FORMATS[packing], block=block
    )


def _compressed(found: Mapping[str, Any], source: str) -> Method:
    name = "compressed-tensors"
    groups, sparsity = found.get("config_groups"), found.get("sparsity_config") or {}
    if not isinstance(groups, dict) or not groups:
        _refuse(source, f"{name} in the format {found.get('format')}")
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        _refuse(source, f"{name} with sparsity")
    blocks, stated = set(), []
    for group in groups.values():
        layout = (group.get("format") if isinstance(group, dict) else None) or found.get("format")
        if layout not in COMPRESSED_FORMATS:
            _refuse(source, f"{name} in the format {layout}")
        weights = group.get("weights") if isinstance(group, dict) else None
        kind, bits = COMPRESSED_FORMATS[layout]
        if not isinstance(weights, dict) or weights.get("type") != kind or weights.get("num_bits") not in bits:
            _refuse(source, f"{name} with weights in {layout} other than {kind} of {_listed(bits)} bits")
        if layout in OF_BLOCKS:
            blocks.add(_pair(weights.get("block_structure"), source))
        elif kind == "int":
            stated.append(_stated({"bits": weights["num_bits"], "group_size": weights.get("group_size")}, source))
    if len(blocks) > 1:
        _refuse(source, f"{name} with blocks of several sizes")
    return Method(name, _distinct(stated), block=next(iter(blocks), None))


def _mlx(found: Mapping[str, Any], source: str) -> Method:
    rows = {name: row for name, row in found.items() if isinstance(row, dict) and "bits" in row}
    for row in (found, *rows.values()):
        if row.get("mode", "affine") != "affine":
            _refuse(source, f"mlx in the mode {row['mode']}")
    default = _stated(found, source)
    return Method("mlx", (default,), {name: _stated(row, source, default) for name, row in rows.items()})


METHODS = {
    "fp8": _fp8, "gptq": _gptq, "awq": _awq, "auto-round": _auto_round, "intel/auto-round": _auto_round,
    "compressed-tensors": _compressed, "mlx": _mlx, "mxfp4": _mxfp4,
}  # fmt: skip


def _stated(row: Mapping[str, Any], source: str, default: Stated | None = None) -> Stated:
    """Integers as a config describes them, in the words of GPTQ. Raises InputError for what cannot be."""
    bits = row.get("bits", default and default.bits)
    group = row.get("group_size", default.group if default else WHOLE)
    group = WHOLE if group is None else group
    if type(bits) is not int or bits not in BITS:
        raise InputError(f"{source}: config.json states integers of {bits!r:.40} bits; can be {_listed(BITS)}")
    if type(group) is not int or not (group == WHOLE or 0 < group <= BLOCK_LIMIT):
        raise InputError(f"{source}: config.json states groups of {group!r:.40} weights")
    return Stated(bits, group, bool(row.get("sym", default.symmetric if default else True)))


def _distinct(rows: Iterable[Stated]) -> tuple[Stated, ...]:
    return tuple(dict.fromkeys(rows))


def _object(value: Any, key: str, source: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{source}: {key} in quantization_config is not an object")
    return value or {}


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _refuse(source: str, method: object) -> NoReturn:
    raise UnsupportedError(
        f"{source} is quantised already, by {str(method):.100}, which cannot be read; can be: {', '.join(METHODS)}. "
        f"Start from the model's unquantised version"
    )


def _pair(value: Any, source: str) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 < n <= BLOCK_LIMIT for n in value):
        return value[0], value[1]
    raise InputError(f"{source}: the block size {value!r:.80} in quantization_config is not two positive numbers")
