"""What each checkpoint format makes of a layer's codes, scales and zero points, as its readers expect it.

`tensors(format, layer)` gives arrays by the suffix of their names. Slow and plain; `values` is how a reader multiplies
them out again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reference_integers import E4M3
from reference_packing import awq_words, gptq_words, pairs, streams, values_of_pairs

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Tensors = dict[str, NDArray]


class Layer(NamedTuple):
    """codes uint8 [rows, n]; scales [rows, groups] of integers float16, of MXFP and NVFP uint8, of FP8 float32; zeros
    uint8 [rows, groups] of asymmetric integers."""

    bits: int
    codes: U8
    scales: NDArray
    zeros: U8 | None = None
    tall: int = 1  # rows that share a scale
    static: bool = False  # whether activations have a scale that is found before

    @property
    def group(self) -> int:
        return self.codes.shape[1] // self.scales.shape[1]

    @property
    def middle_or_zeros(self) -> U8:
        """Symmetric integers are asymmetric ones around the middle code."""
        return np.full(self.scales.shape, 1 << (self.bits - 1), np.uint8) if self.zeros is None else self.zeros


def words_along(codes: U8, bits: int) -> NDArray[np.int32]:
    """int32 [rows, n * bits / 32]: dense words along each row."""
    return streams(codes, bits).view("<i4")


def words_down(codes: U8, bits: int) -> NDArray[np.int32]:
    """int32 [n * bits / 32, rows]: dense words down the columns of the transposed matrix."""
    return gptq_words(codes, bits) if bits in (2, 3, 4, 8) else words_along(codes, bits).T


def gptq(layer: Layer) -> Tensors:
    """Zero points in words across the layer's rows: symmetric ones less one, as in GPTQ's first version, others as in
    its second."""
    zeros = layer.middle_or_zeros - np.uint8(layer.zeros is None)
    return {
        ".qweight": words_down(layer.codes, layer.bits),
        ".qzeros": words_down(zeros.T, layer.bits).T,
        ".scales": layer.scales.T,
    }


def floats(layer: Layer) -> Tensors:
    """FP4 pairs or FP8 codes, the scales of groups, and a number or two for all of it, here 1."""
    number, found = np.ones(1, np.float32), {".weight_scale": layer.scales[:: layer.tall]}
    found |= {".weight_packed": pairs(layer.codes)} if layer.bits == 4 else {".weight": layer.codes}
    if layer.bits == 4 and layer.group == 16:
        found[".weight_global_scale"] = number
    if layer.static:
        found[".input_global_scale" if layer.bits == 4 else ".input_scale"] = number
    return found


def auto_round(layer: Layer) -> Tensors:
    if layer.scales.dtype == np.float16:
        return gptq(layer)
    found = floats(layer)
    if layer.tall > 1:
        found[".weight_scale_inv"] = found.pop(".weight_scale")
    elif layer.scales.dtype == np.float32:
        found[".weight_scale"] = found[".weight_scale"].reshape(-1)
    return found


def auto_gptq(layer: Layer) -> Tensors:
    group_of_column = np.arange(layer.codes.shape[1]) // layer.group
    return gptq(layer) | {".g_idx": group_of_column.astype(np.int32)}


def auto_awq(layer: Layer) -> Tensors:
    return {
        ".qweight": awq_words(layer.codes).view(np.int32),
        ".qzeros": awq_words(layer.middle_or_zeros).view(np.int32),
        ".scales": layer.scales.T,
    }


def llm_compressor(layer: Layer) -> Tensors:
    if layer.scales.dtype != np.float16:
        return floats(layer)
    found: Tensors = {
        ".weight_packed": words_along(layer.codes, layer.bits),
        ".weight_scale": layer.scales,
        ".weight_shape": np.array(layer.codes.shape, np.int64),
    }
    if layer.zeros is not None:
        found[".weight_zero_point"] = words_along(layer.zeros.T, layer.bits).T
    return found


def mlx(layer: Layer) -> Tensors:
    biases = -layer.scales.astype(np.float32) * layer.middle_or_zeros
    return {
        ".weight": words_along(layer.codes, layer.bits).view(np.uint32),
        ".scales": layer.scales,
        ".biases": biases.astype(np.float16),
    }


TENSORS: dict[str, Callable[[Layer], Tensors]] = {
    "auto_round": auto_round,
    "auto_gptq": auto_gptq,
    "auto_awq": auto_awq,
    "llm_compressor": llm_compressor,
    "mlx": mlx,
}


# --- read again ------------------------------------------------------------------------------------------------------


def codes_along(words: NDArray, bits: int) -> U8:
    """uint8 [rows, n] of dense words along the rows."""
    digits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return np.packbits(digits.reshape(len(words), -1, bits), axis=2, bitorder="little")[..., 0]


def awq_codes(words: NDArray) -> U8:
    """uint8 [rows, n] of AWQ's words [n, rows / 8]."""
    halves = words.view(np.uint32)[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15
    return halves[..., [0, 4, 1, 5, 2, 6, 3, 7]].reshape(len(words), -1).T.astype(np.uint8)


def values(name: str, found: Tensors, bits: int, lowered: bool) -> F32:
    """float32 [rows, n]: the weights that format `name` stores as these tensors. `lowered`: GPTQ's zero points are less
    one."""
    if ".weight_packed" in found and found[".weight_packed"].dtype == np.uint8:
        codes = values_of_pairs(found[".weight_packed"])
        if ".weight_global_scale" in found:
            return spread(E4M3[found[".weight_scale"]] / found[".weight_global_scale"], codes) * codes
        return spread(power(found[".weight_scale"]), codes) * codes
    if ".weight" in found and found[".weight"].dtype == np.uint8:
        codes, scales = found[".weight"], found.get(".weight_scale", found.get(".weight_scale_inv"))
        assert scales is not None
        if ".weight_scale_inv" in found or len(scales) < len(codes):  # tiles
            scales = np.repeat(scales, 128, axis=0)[: len(codes)]
        of_groups = power(scales) if scales.dtype == np.uint8 else scales.reshape(len(codes), -1)
        return spread(of_groups, codes) * E4M3[codes]
    if name == "mlx":
        codes = codes_along(found[".weight"], bits)
        scales, biases = (found[f".{k}"].astype(np.float32) for k in ("scales", "biases"))
        return spread(scales, codes) * codes + spread(biases, codes)
    if name == "llm_compressor":
        codes, scales = codes_along(found[".weight_packed"], bits), found[".weight_scale"]
        zeros = np.full(scales.shape, 1 << (bits - 1), np.uint8)
        if ".weight_zero_point" in found:
            zeros = codes_along(found[".weight_zero_point"].T, bits).T
    elif name == "auto_awq":
        codes, zeros, scales = awq_codes(found[".qweight"]), awq_codes(found[".qzeros"]), found[".scales"].T
    else:
        codes, scales = codes_along(found[".qweight"].T, bits), found[".scales"].T
        zeros = codes_along(found[".qzeros"], bits).T
        if lowered:
            zeros = zeros + np.uint8(1)
    steps = codes.astype(np.float32) - spread(zeros.astype(np.float32), codes)
    return spread(scales.astype(np.float32), codes) * steps


def power(e: U8) -> F32:
    return np.ldexp(np.float32(1), e.astype(np.int32) - 127)


def spread(of_groups: NDArray, codes: NDArray) -> NDArray:
    """What belongs to groups, for each of their weights."""
    return np.repeat(of_groups, codes.shape[1] // of_groups.shape[1], axis=1)
