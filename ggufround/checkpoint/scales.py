"""FP8 checkpoints: every FP8 weight gets its scale, and what only serves FP8 activations is left out.

Layouts: transformers' "fp8" (weight_scale_inv over blocks of weight_block_size, or one scale a tensor) and
compressed-tensors' "float-quantized" (weight_scale a tensor, a row or a block). Despite its name weight_scale_inv
multiplies, as all of them do. Other methods are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ggufround.checkpoint.spec import TensorRef
from ggufround.errors import InputError, UnsupportedError

FP8 = ("F8_E4M3", "F8_E5M2")
SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0")
ACTIVATION_SUFFIXES = (
    ".input_scale", ".activation_scale", "_activation_scale", ".output_scale", ".q_scale", ".k_scale", ".v_scale",
    ".qscale_act",
)  # fmt: skip
BLOCK_LIMIT = 1 << 20


def attach_scales(tensors: Mapping[str, TensorRef], config: Mapping[str, Any], source: str) -> dict[str, TensorRef]:
    """The tensors, FP8 weights with their scales; scale tensors are no longer among them.

    Raises UnsupportedError for a quantisation method that cannot be read, InputError for FP8 without a scale or for
    a scale whose shape does not fit.
    """
    block = _block_size(config, source)
    out, used = dict(tensors), set()
    for name, ref in tensors.items():
        scale = next((tensors[n] for n in _scale_names(name) if n in tensors), None)
        if ref.dtype in FP8:
            if scale is None:
                raise InputError(
                    f"{source}: {name} is {ref.dtype} without a scale ({_scale_names(name)[0]}), so its weights are "
                    f"unknown; download the model again, or start from its unquantised version"
                )
            out[name] = replace(ref, scale=scale, scale_block=_scale_block(ref, scale, block, source))
            used.add(scale.name)
    if used:
        used |= {n for n in tensors if n.endswith(ACTIVATION_SUFFIXES)}
    return {name: ref for name, ref in out.items() if name not in used}


def _scale_names(name: str) -> tuple[str, ...]:
    return (name + "_scale_inv", name + "_scale", name.removesuffix("weight") + "qscale_weight")


def _block_size(config: Mapping[str, Any], source: str) -> tuple[int, int] | None:
    """Rows and columns of a block where the method states them; refuses all methods but FP8."""
    text = config.get("text_config")
    for place in (config, text if isinstance(text, dict) else {}):
        found = place.get("quantization_config")
        if found is None and isinstance(place.get("quantization"), dict) and "bits" in place["quantization"]:
            raise _refused(source, "mlx")  # MLX states its packed integers this way
        if found is not None:
            if not isinstance(found, dict):
                raise InputError(f"{source}: quantization_config in config.json is not an object")
            return _method_block(found, source)
    return None


def _method_block(found: Mapping[str, Any], source: str) -> tuple[int, int] | None:
    method = found.get("quant_method")
    if method == "fp8":
        return _pair(found.get("weight_block_size"), source)
    if method != "compressed-tensors":
        raise _refused(source, method)
    layout = found.get("format")
    groups = found.get("config_groups")
    sparsity = found.get("sparsity_config") or {}
    if layout not in ("float-quantized", "naive-quantized") or not isinstance(groups, dict) or not groups:
        raise _refused(source, f"{method} in the format {layout}")
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise _refused(source, f"{method} with sparsity")
    blocks = []
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict) or (weights.get("type"), weights.get("num_bits")) != ("float", 8):
            raise _refused(source, f"{method} with weights other than 8-bit floats")
        blocks.append(_pair(weights.get("block_structure"), source))
    if len(set(blocks)) > 1:
        raise _refused(source, f"{method} with blocks of several sizes")
    return blocks[0]


def _refused(source: str, method: object) -> UnsupportedError:
    return UnsupportedError(
        f"{source} is quantised already, by {str(method):.100}, which cannot be read yet (FP8 can); "
        f"start from the model's unquantised or FP8 version"
    )


def _pair(value: Any, source: str) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 < n <= BLOCK_LIMIT for n in value):
        return value[0], value[1]
    raise InputError(f"{source}: the block size {value!r:.80} in quantization_config is not two positive numbers")


def _scale_block(ref: TensorRef, scale: TensorRef, block: tuple[int, int] | None, source: str) -> tuple[int, int]:
    """Rows and columns that share a scale, 0 for all; rows are those of the weight seen as a matrix.

    A stack [experts, rows, columns] may have one scale for all, one an expert, one a row, or blocks that do not
    cross from one expert to the next.
    """
    if scale.dtype not in SCALE_DTYPES:
        raise InputError(f"{source}: {scale.name} is {scale.dtype}; a scale is one of {', '.join(SCALE_DTYPES)}")
    shape = scale.shape
    count = scale.rows * scale.columns
    if count == 1:
        return 0, 0
    rows = ref.shape[-2] if len(ref.shape) > 1 else 1
    stacks = ref.rows // max(rows, 1)
    if count == ref.rows and (shape in ((ref.rows,), (*ref.shape[:-1], 1)) or shape == ref.shape[:-1]):
        return 1, 0
    if stacks > 1 and count == stacks and shape[0] == stacks:
        return rows, 0
    if block is not None:
        high, wide = block
        blocks = (*ref.shape[:-2], -(-rows // high), -(-ref.columns // wide))
        if shape == blocks and (stacks == 1 or rows % high == 0):
            return block
    raise InputError(
        f"{source}: {scale.name} of shape {list(shape)} does not fit {ref.name} of shape {list(ref.shape)}"
        + (f" in blocks of {block[0]} x {block[1]}" if block else "; config.json states no block size")
    )
