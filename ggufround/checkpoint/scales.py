"""FP8 checkpoints: every FP8 weight gets its scale, and what only serves FP8 activations is left out.

Layouts: transformers' "fp8" (weight_scale_inv over blocks of weight_block_size, or one scale a tensor),
compressed-tensors' "float-quantized" (weight_scale a tensor, a row or a block) and MXFP8 (a power of two for each 32
neighbours, as bytes). Despite its name weight_scale_inv multiplies, as all of them do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ggufround.checkpoint.spec import TensorRef
from ggufround.errors import InputError

FP8 = ("F8_E4M3", "F8_E5M2")
SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0")
ACTIVATION_SUFFIXES = (
    ".input_scale", ".activation_scale", "_activation_scale", ".output_scale", ".q_scale", ".k_scale", ".v_scale",
    ".qscale_act",
)  # fmt: skip
MX_GROUP = 32


def attach_scales(tensors: Mapping[str, TensorRef], block: tuple[int, int] | None, source: str) -> dict[str, TensorRef]:
    """The tensors, FP8 weights with their scales; scale tensors are no longer among them. `block`: rows and columns
    that share a scale, where the config says so.

    Raises InputError for FP8 without a scale or for a scale whose shape does not fit.
    """
    out, used = dict(tensors), set()
    for name, ref in tensors.items():
        scale = next((tensors[n] for n in _scale_names(name) if n in tensors), None)
        if ref.dtype in FP8:
            if scale is None:
                raise InputError(
                    f"{source}: {name} is {ref.dtype} without a scale ({_scale_names(name)[0]}), so its weights are "
                    f"unknown; download the model again, or start from its unquantised version"
                )
            if scale.dtype == "U8" and scale.shape == (*ref.shape[:-1], ref.columns // MX_GROUP):
                scale, fitting = replace(scale, dtype="F8_E8M0"), (1, MX_GROUP)
            else:
                fitting = _scale_block(ref, scale, block, source)
            out[name] = replace(ref, scale=scale, scale_block=fitting)
            used.add(scale.name)
    if used:
        used |= {n for n in tensors if n.endswith(ACTIVATION_SUFFIXES)}
    return {name: ref for name, ref in out.items() if name not in used}


def _scale_names(name: str) -> tuple[str, ...]:
    return (name + "_scale_inv", name + "_scale", name.removesuffix("weight") + "qscale_weight")


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
