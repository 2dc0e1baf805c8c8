"""Packed weights: X.weight out of the tensors that a method stores for it, all of their shapes checked.

GPTQ and auto-round  X.qweight I32 [columns * bits / 32, rows], X.qzeros I32 [groups, rows * bits / 32],
                     X.scales [groups, rows], and mostly X.g_idx I32 [columns]
AWQ                  X.qweight I32 [columns, rows / 8], X.qzeros I32 [groups, rows / 8], X.scales [groups, rows]
compressed-tensors   X.weight_packed I32 [rows, columns * bits / 32], X.weight_scale [rows, groups], X.weight_shape I64,
                     X.weight_zero_point I32 [rows * bits / 32, groups] where there are some, X.weight_g_idx
                     or of 8 bits as they are: X.weight I8 [rows, columns], X.weight_zero_point I8 [rows, groups]
MXFP4, NVFP4         X.weight_packed U8 [rows, columns / 2], X.weight_scale [rows, groups], X.weight_global_scale F32
GPT-OSS's MXFP4      X_blocks U8 [..., rows, columns / 32, 16], X_scales U8 [..., rows, columns / 32]
MLX                  X.weight U32 [rows, columns * bits / 32], X.scales and X.biases [rows, groups]

The number of columns follows from the words, as far as their width does not hide it: only MLX's config says how many
bits a code has there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NoReturn

from ggufround.checkpoint.methods import BITS, WHOLE, Method, Stated
from ggufround.checkpoint.spec import Member, Packing, TensorRef
from ggufround.errors import InputError

FLOATS = ("F16", "BF16", "F32")
Tensors = Mapping[str, TensorRef]
ReadBytes = Callable[[TensorRef], bytes]  # a small tensor's
ACTIVATIONS = (".input_global_scale", ".input_scale", ".output_scale")  # beside packed weights; serve no weight
MEMBERS = (".qweight", ".qzeros", ".scales", ".g_idx", ".weight_packed")  # of packed weights alone


def pack_up(tensors: Tensors, method: Method, source: str, read: ReadBytes) -> dict[str, TensorRef]:
    """The tensors, those of packed weights replaced by one X.weight each; `read` gets nothing but weight_shapes.

    Raises InputError naming the tensor where one is missing or where shapes and config contradict each other.
    """
    out, used = {}, set[str]()
    for name, ref in tensors.items():
        made = _packed(name, ref, tensors, method, source, read)
        if made is None:
            out[name] = ref
            continue
        logical, names = made
        if logical.name != name and logical.name in tensors:
            _fail(source, f"both {name} and {logical.name} are there; which of them is the weight?")
        out[logical.name] = logical
        used |= names
    left = {name: ref for name, ref in out.items() if name not in used or ref.packing is not None}
    if used and (stray := next((n for n in left if n.endswith(MEMBERS)), None)):
        _fail(source, f"{stray} belongs to no packed weight")
    return left


def _packed(
    name: str, ref: TensorRef, tensors: Tensors, method: Method, source: str, read: ReadBytes
) -> tuple[TensorRef, set[str]] | None:
    """The weight whose codes `name` holds, and the names of all that it is stored as; None for any other tensor."""
    for suffix, dtypes, build in KINDS:
        if name.endswith(suffix) and ref.dtype in dtypes:
            if not method.name and suffix == ".weight":
                return None  # numbers of another kind
            if not method.name:
                _fail(source, f"{name} is packed, but config.json does not say by which method")
            stem = name.removesuffix(suffix)
            packing, rows, columns = build(_Found(stem, tensors, method, source, read))
            stored = [member.ref for member in packing.members]
            high = packing.codes.ref.shape[:-1] if packing.codes.lies == "rows" else (rows,)
            shape = (*high, columns)
            size = sum(s.nbytes for s in stored)
            weight = TensorRef(stem + ".weight", packing.name, shape, ref.path, ref.offset, size, packing=packing)
            further = {stem + end for end in (".weight_shape", *ACTIVATIONS)}
            return weight, {s.name for s in stored} | (further & tensors.keys())
    return None


class _Found:
    """The stored tensors of one weight."""

    def __init__(self, stem: str, tensors: Tensors, method: Method, source: str, read: ReadBytes) -> None:
        self.stem, self.tensors, self.method, self.source, self.read = stem, tensors, method, source, read
        self.stated = method.of(stem)

    def get(self, suffix: str, dtypes: tuple[str, ...]) -> TensorRef | None:
        """Raises InputError for another dtype than these and for what holds nothing."""
        ref = self.tensors.get(self.stem + suffix)
        if ref is not None and (ref.dtype not in dtypes or not ref.nbytes):
            _fail(self.source, f"{ref.name} is {list(ref.shape)} in {ref.dtype}; must be in {' or '.join(dtypes)}")
        return ref

    def need(self, suffix: str, *dtypes: str) -> TensorRef:
        """Likewise, and InputError for one that is missing."""
        ref = self.get(suffix, dtypes)
        if ref is None:
            _fail(self.source, f"{self.stem}.weight is packed, but {self.stem}{suffix} is missing; download it again")
        return ref

    def check(self, ref: TensorRef | None, *shape: int) -> None:
        """Raises InputError for another shape."""
        if ref is not None and ref.shape != shape:
            _fail(self.source, f"{ref.name} has the shape {list(ref.shape)}; beside {self.stem}'s others {list(shape)}")

    def group(self, columns: int, groups: int, bits: int) -> int:
        """Columns that share a scale: as stated, where that gives the number of groups, else what divides them."""
        for row in sorted(self.stated, key=lambda row: row.bits != bits):
            size = columns if row.group == WHOLE else row.group
            if -(-columns // size) == groups:
                return size
        if columns % groups:
            _fail(self.source, f"{self.stem}.weight has {columns} columns in {groups} groups, which config.json denies")
        return columns // groups

    def symmetric(self, bits: int) -> bool:
        """Whether all that is stated of so many bits is symmetric; what is said of the layer itself counts alone."""
        named = self.method.by_name.get(self.stem)
        rows: tuple[Stated, ...] = (named,) if named and named.bits == bits else self.stated
        alike = [row.symmetric for row in rows if row.bits == bits]
        return bool(alike) and all(alike)


def _gptq(found: _Found) -> tuple[Packing, int, int]:
    codes, zeros, scales = found.need(".qweight", "I32"), found.need(".qzeros", "I32"), found.need(".scales", *FLOATS)
    order = found.get(".g_idx", ("I32",))
    if not len(codes.shape) == len(zeros.shape) == len(scales.shape) == 2:
        _fail(found.source, f"{codes.name} and what belongs to it must be matrices")
    (high, wide), (groups, rows) = codes.shape, scales.shape
    awq = wide * 8 == rows
    if awq:
        bits, columns = 4, high
    elif wide == rows:
        bits = _bits_of(found, rows, zeros.shape[1], high)
        columns = high * 32 // bits
    else:
        _fail(found.source, f"{codes.name} of {list(codes.shape)} does not fit {scales.name} of {list(scales.shape)}")
    found.check(zeros, groups, -(-rows * bits // 32))
    found.check(order, columns)
    packing = Packing(
        "int", bits, found.group(columns, groups, bits),
        Member(codes, "across" if awq else "columns"), Member(scales, "columns"), Member(zeros, "across"),
        order=None if order is None else Member(order, "whole"), symmetric=found.symmetric(bits),
        reordered=found.method.reordered and order is not None, lowered=found.method.lowered and not awq, awq=awq,
    )  # fmt: skip
    return packing, rows, columns


def _bits_of(found: _Found, rows: int, zero_words: int, code_words: int) -> int:
    """The bits of GPTQ's codes: zero points take so many words for all rows."""
    fit = [b for b in BITS if -(-rows * b // 32) == zero_words and code_words * 32 % b == 0]
    if not fit:
        _fail(found.source, f"{found.stem}.qzeros has {zero_words} words for {rows} rows, which fits no number of bits")
    return next((row.bits for row in found.stated if row.bits in fit), fit[0])


def _compressed(found: _Found) -> tuple[Packing, int, int]:
    codes, scales = found.need(".weight_packed", "I32"), found.need(".weight_scale", *FLOATS)
    zeros = found.get(".weight_zero_point", ("I32", "I8"))
    order = found.get(".weight_g_idx", ("I32",))
    shape = found.need(".weight_shape", "I64", "I32")
    found.check(shape, 2)
    rows, columns = struct.unpack("<2q" if shape.dtype == "I64" else "<2i", found.read(shape))
    if len(codes.shape) != 2 or codes.shape[0] != rows:
        _fail(found.source, f"{codes.name} has the shape {list(codes.shape)}, {shape.name} says {rows} x {columns}")
    fit = [b for b in BITS if columns > 0 and -(-columns * b // 32) == codes.shape[1]]
    bits = next((row.bits for row in found.stated if row.bits in fit), next(iter(fit), 0))
    if not bits:
        _fail(found.source, f"{codes.name} holds {codes.shape[1]} words a row, {shape.name} says {columns} columns")
    found.check(scales, rows, scales.columns)
    packed = zeros is not None and zeros.dtype == "I32"
    found.check(zeros, -(-rows * bits // 32) if packed else rows, scales.columns)
    found.check(order, columns)
    packing = Packing(
        "int", bits, found.group(columns, scales.columns, bits), Member(codes, "rows"), Member(scales, "rows"),
        None if zeros is None else Member(zeros, "down" if packed else "rows"),
        order=None if order is None else Member(order, "whole"), symmetric=zeros is None, reordered=order is not None,
    )  # fmt: skip
    return packing, rows, columns


def _bytes(found: _Found) -> tuple[Packing, int, int]:
    codes, scales = found.need(".weight", "I8"), found.need(".weight_scale", *FLOATS)
    zeros = found.get(".weight_zero_point", ("I8",))
    rows, columns = codes.rows, codes.columns
    for ref in (scales, zeros):
        found.check(ref, *codes.shape[:-1], scales.columns)
    packing = Packing(
        "int", 8, found.group(columns, scales.columns, 8), Member(codes, "rows"), Member(scales, "rows"),
        None if zeros is None else Member(zeros, "rows"), symmetric=zeros is None,
    )  # fmt: skip
    return packing, rows, columns


def _fp4(found: _Found) -> tuple[Packing, int, int]:
    codes = found.need(".weight_packed", "U8")
    scales = found.need(".weight_scale", "U8", "F8_E8M0", "F8_E4M3")
    rows, columns = codes.rows, codes.columns * 2
    if scales.dtype == "F8_E4M3":
        group, divisor = 16, found.need(".weight_global_scale", "F32")
        if divisor.rows * divisor.columns != 1:
            _fail(found.source, f"{divisor.name} has the shape {list(divisor.shape)}; must hold one number")
        found.check(scales, *codes.shape[:-1], -(-columns // group))
        members = Member(codes, "rows"), Member(scales, "rows")
        return Packing("NVFP4", 4, group, *members, divisor=Member(divisor, "whole"), symmetric=True), rows, columns
    found.check(scales, *codes.shape[:-1], -(-columns // 32))
    return Packing("MXFP4", 4, 32, Member(codes, "rows"), Member(scales, "rows"), symmetric=True), rows, columns


def _blocks(found: _Found) -> tuple[Packing, int, int]:
    codes, scales = found.need("_blocks", "U8"), found.need("_scales", "U8")
    if len(codes.shape) < 3 or codes.shape[-1] != 16:
        _fail(found.source, f"{codes.name} has the shape {list(codes.shape)}; must be blocks of 16 bytes")
    found.check(scales, *codes.shape[:-1])
    flat = replace(codes, shape=(*codes.shape[:-2], codes.shape[-2] * 16))  # a row's blocks lie side by side
    packing = Packing("MXFP4", 4, 32, Member(flat, "rows"), Member(scales, "rows"), symmetric=True)
    return packing, flat.rows, flat.columns * 2


def _mlx(found: _Found) -> tuple[Packing, int, int]:
    codes, scales = found.need(".weight", "U32"), found.need(".scales", *FLOATS)
    biases = found.need(".biases", *FLOATS)
    stated = found.stated[0] if found.stated else None
    if stated is None or stated.group == WHOLE:
        _fail(found.source, f"config.json does not say how many weights of {found.stem} share a scale")
    groups, bits = scales.columns, stated.bits
    columns = groups * stated.group
    if codes.columns * 32 != columns * bits:
        _fail(
            found.source,
            f"{codes.name} holds {codes.columns} words a row; {groups} groups of {stated.group} weights of {bits} "
            f"bits would take {columns * bits / 32:g}",
        )
    found.check(scales, *codes.shape[:-1], groups)
    found.check(biases, *codes.shape[:-1], groups)
    members = Member(codes, "rows"), Member(scales, "rows")
    return Packing("int", bits, stated.group, *members, biases=Member(biases, "rows")), codes.rows, columns


KINDS = (  # what codes are called, their dtypes, and what makes a packing of them
    (".qweight", ("I32",), _gptq),
    (".weight_packed", ("I32",), _compressed),
    (".weight_packed", ("U8",), _fp4),
    ("_blocks", ("U8",), _blocks),
    (".weight", ("U32",), _mlx),
    (".weight", ("I8",), _bytes),
)


def _fail(source: str, what: str) -> NoReturn:
    raise InputError(f"{source}: {what}")
