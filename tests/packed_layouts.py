"""Packed weights as other tools store them, written bit by bit from the layouts' descriptions: an independent twin of
what reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufround.checkpoint import Reader, open_checkpoint
from ggufround.checkpoint.spec import Checkpoint
from tiny import bf16_bits, write_safetensors

Raw = tuple[str, tuple[int, ...], bytes]
Stored = dict[str, Raw]
Ints = NDArray[np.int64]
F32 = NDArray[np.float32]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ's order_map


@dataclass(frozen=True)
class Layer:
    """Codes [rows, n] of `bits` bits, and of each group of neighbours a scale and a zero point."""

    bits: int
    codes: Ints
    scales: F32
    zeros: Ints
    group: int
    order: Ints | None = None  # the group of each column

    @property
    def columns(self) -> Ints:
        """The group of each column."""
        neighbours: Ints = np.arange(self.codes.shape[1]) // self.group
        return neighbours if self.order is None else self.order

    @property
    def weights(self) -> F32:
        found: F32 = (self.codes - self.zeros[:, self.columns]).astype(np.float32) * self.scales[:, self.columns]
        return found


def layer(
    rows: int, n: int, bits: int, group: int, symmetric: bool = True, seed: int = 0, reordered: bool = False
) -> Layer:
    """Random codes; scales are float16 values of either sign where symmetric."""
    rng = np.random.default_rng(seed)
    groups = -(-n // group)
    scales = rng.uniform(0.001, 0.02, (rows, groups)).astype(np.float16).astype(np.float32)
    zeros = np.full((rows, groups), 1 << (bits - 1))
    if symmetric:
        scales *= rng.choice([-1, 1], scales.shape).astype(np.float32)
    else:
        zeros = rng.integers(1, 1 << bits, (rows, groups))
    order = rng.permutation(np.arange(n) // group) if reordered else None
    return Layer(bits, rng.integers(0, 1 << bits, (rows, n)), scales, zeros, group, order)


def stream(codes: Ints, bits: int) -> NDArray[np.int32]:
    """Each row's codes one after the other from the lowest bit on, in whole words: int32 [rows, words]."""
    rows, n = codes.shape
    ones = (codes[:, :, None] >> np.arange(bits)) & 1
    padded = np.zeros((rows, -(-n * bits // 32) * 32), np.uint8)
    padded[:, : n * bits] = ones.reshape(rows, -1)
    return np.packbits(padded, axis=1, bitorder="little").view("<i4")


def floats(values: F32, dtype: str = "F16") -> Raw:
    kinds = {"F16": np.float16, "F32": np.float32}
    raw = bf16_bits(values).tobytes() if dtype == "BF16" else values.astype(kinds[dtype]).tobytes()
    return dtype, values.shape, raw


def whole(values: NDArray[Any], dtype: str) -> Raw:
    kinds = {"I32": "<i4", "U32": "<i4", "I64": "<i8", "U8": "u1", "F8_E4M3": "u1", "I8": "i1"}
    return dtype, values.shape, np.ascontiguousarray(values, kinds[dtype]).tobytes()


def gptq(name: str, x: Layer, lowered: bool = True, scales: str = "F16", order: bool = True) -> Stored:
    out = {
        f"{name}.qweight": whole(stream(x.codes, x.bits).T, "I32"),
        f"{name}.qzeros": whole(stream(x.zeros.T - lowered, x.bits), "I32"),
        f"{name}.scales": floats(x.scales.T, scales),
    }
    return out | ({f"{name}.g_idx": whole(x.columns, "I32")} if order else {})


def _awq_words(codes: Ints) -> Ints:
    """[n, rows / 8] of codes [rows, n]."""
    eights = codes.T.reshape(codes.shape[1], -1, 8)[:, :, list(AWQ_ORDER)]
    words: Ints = (eights << (4 * np.arange(8))).sum(-1)
    return words.astype(np.uint32).view(np.int32)


def awq(name: str, x: Layer) -> Stored:
    return {
        f"{name}.qweight": whole(_awq_words(x.codes), "I32"),
        f"{name}.qzeros": whole(_awq_words(x.zeros), "I32"),
        f"{name}.scales": floats(x.scales.T),
    }


def compressed(name: str, x: Layer, zeros: bool = False, scales: str = "F16") -> Stored:
    out = {
        f"{name}.weight_packed": whole(stream(x.codes, x.bits), "I32"),
        f"{name}.weight_scale": floats(x.scales, scales),
        f"{name}.weight_shape": whole(np.array(x.codes.shape), "I64"),
    }
    if zeros:
        out[f"{name}.weight_zero_point"] = whole(stream(x.zeros.T, x.bits).T, "I32")
    if x.order is not None:
        out[f"{name}.weight_g_idx"] = whole(x.order, "I32")
    return out


def mlx(name: str, x: Layer, biases: F32, dtype: str = "F16") -> Stored:
    return {
        f"{name}.weight": whole(stream(x.codes, x.bits), "U32"),
        f"{name}.scales": floats(x.scales, dtype),
        f"{name}.biases": floats(biases, dtype),
    }


def fp4(name: str, codes: Ints, scales: NDArray[np.uint8], divisor: float | None = None) -> Stored:
    """`scales` as bytes: E8M0, or with a divisor E4M3."""
    out = {
        f"{name}.weight_packed": whole(codes[:, ::2] | codes[:, 1::2] << 4, "U8"),
        f"{name}.weight_scale": whole(scales, "U8" if divisor is None else "F8_E4M3"),
    }
    if divisor is not None:
        out[f"{name}.weight_global_scale"] = floats(np.array([divisor], np.float32), "F32")
        out[f"{name}.input_global_scale"] = floats(np.array([3], np.float32), "F32")
    return out


def config(method: str, **further: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, **further}}


def groups_config(layout: str, *weights: Mapping[str, Any]) -> dict[str, Any]:
    groups = {f"group_{k}": {"targets": ["Linear"], "weights": dict(row)} for k, row in enumerate(weights)}
    return config("compressed-tensors", format=layout, config_groups=groups)


def mxfp4_blocks(name: str, codes: Ints, exponents: NDArray[np.uint8]) -> Stored:
    """GPT-OSS's: codes [..., rows, columns], of which 32 at a time make a block of 16 bytes."""
    pairs = codes.reshape(*codes.shape[:-1], -1, 16, 2)
    return {
        f"{name}_blocks": whole(pairs[..., 0] | pairs[..., 1] << 4, "U8"),
        f"{name}_scales": whole(exponents, "U8"),
    }


GPTQ4 = config("gptq", bits=4, group_size=32, sym=True, desc_act=False)


def write(folder: Path, stored: Stored, config: Mapping[str, Any]) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    write_safetensors(folder / "model.safetensors", stored)
    return open_checkpoint(folder)


def rows_of(found: Checkpoint, name: str, first: int = 0, count: int | None = None) -> F32:
    """float32 [count, columns]: rows from `first` on, all of them if nothing else is said."""
    ref = found.tensors[name]
    count = ref.rows - first if count is None else count
    out = np.full((count, ref.columns), np.nan, np.float32)
    with Reader(found) as reader:
        reader.read_rows(ref, first, count, out, np.empty(0, np.uint8))
    return out
