"""Lanes: one SIMD-wide value per block, so that a kernel reads like scalar code and runs 32 blocks at a time.

Method. Vectorising within a block would reorder the sums of the reference and change its bytes. Vectorising across
blocks does not: take 32 blocks, lay their elements out as [element][lane], and let every operation act on one element
of all 32 blocks. Each lane then performs the reference's float32 operations in the reference's order. Branches become
`select`; an early exit becomes a select or goes away.

Types (Numba types, created and consumed only inside kernels):
    f32   32 float32        i32   32 int32        mask  32 booleans

Operators. f32: + - * / unary -, comparisons. i32: + - * & | ^ << >> (arithmetic), unary -, comparisons.
mask: & | ~. A scalar operand is converted to the lanes' element type first (so 0.5 is a float32 here, never a
float64). Comparisons are false on NaN except `!=`, as in C.

Functions
    broadcast(x)            f32 of a float scalar, i32 of an integer scalar
    load(array, row)        32 elements from flat position 32 * row of a C-contiguous array: float32 -> f32,
                            int32 -> i32, uint8 -> i32 (zero-extended)
    store(array, row, v)    the inverse; an i32 into a uint8 array keeps the low 8 bits
    select(m, a, b)         m ? a : b, both f32 or both i32 (one may be a scalar)
    larger(a, b)            a > b ? a : b      the order of the operands decides NaN, exactly as C's ternary
    smaller(a, b)           a < b ? a : b
    absolute(x) sqrt(x)     f32
    nearest(x)              i32: add 12582912, take the mantissa bits (half to even); the reference's integer form
    round_even(x)           f32: the same by adding and subtracting 12582912; only for |x| < 2**22
    truncate(x)             i32: C's (int) cast
    to_float(i)             f32
    bits(x) from_bits(i)    bit casts
    any_lane(m)             scalar boolean
    half_bits(x)            i32: float16 bits of x, round to nearest even, by integer operations (ggml's trick)
    half_value(h)           f32: the value of float16 bits
    round_half(x)           f32: half_value(half_bits(x))
Moves between rows of blocks and lanes (both transposes)
    load_blocks(weights, first, count, size, scratch)
                            blocks first .. first+count of the flat float32 array `weights`, `size` floats each, to
                            scratch [size, 32] float32; lanes beyond `count` repeat the last block
    store_blocks(scratch, size, out, first, count)
                            scratch [size, 32] uint8 to blocks of `size` bytes in the flat uint8 array `out`
    load_bytes(packed, first, count, size, scratch), store_floats(scratch, size, out, first, count)
                            the same for bytes in and floats out
    aligned(shape, dtype)   plain Python: a zeroed array on a 64-byte boundary, for scratch

Nothing here contracts or reassociates: LLVM gets plain fadd, fmul, fdiv. 32 lanes measured best on SSE2, AVX2 and
AVX-512; the count is `LANES` and nothing else depends on its value. Only x86-64 has been checked for equal bytes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending
from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model
from numpy.typing import DTypeLike, NDArray

from ggufround_kernels._jit import kernel

LANES = 32

intrinsic: Any = extending.intrinsic


class Lanes(types.Type):
    """The Numba type of a vector of LANES elements; `element` is its scalar type."""

    def __init__(self, name: str, element: Any, llvm: ir.Type) -> None:
        super().__init__(name=f"{name}x{LANES}")
        self.element = element
        self.llvm = ir.VectorType(llvm, LANES)


f32 = Lanes("f32", types.float32, ir.FloatType())
i32 = Lanes("i32", types.int32, ir.IntType(32))
mask = Lanes("mask", types.boolean, ir.IntType(1))


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, lanes.llvm)


def _splat(builder: ir.IRBuilder, value: ir.Value, llvm: ir.VectorType) -> ir.Value:
    one = builder.insert_element(ir.Constant(llvm, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), llvm.count), None)
    return builder.shuffle_vector(one, ir.Constant(llvm, ir.Undefined), zeros)


def _lift(context: Any, builder: ir.IRBuilder, value: ir.Value, given: Any, wanted: Lanes) -> ir.Value:
    """The value as lanes: unchanged, or a scalar cast to the element type and broadcast."""
    if given == wanted:
        return value
    return _splat(builder, context.cast(builder, value, given, wanted.element), wanted.llvm)


def _common(a: Any, b: Any) -> Lanes | None:
    """The lanes type of an operation on a and b: at least one of them has lanes, the other agrees or is a scalar."""
    if isinstance(a, Lanes) and isinstance(b, Lanes):
        return a if a == b else None
    lanes, scalar = (a, b) if isinstance(a, Lanes) else (b, a)
    if not isinstance(lanes, Lanes) or lanes == mask:
        return None
    number = types.Number if lanes == f32 else types.Integer
    return lanes if isinstance(scalar, number) else None


# --- operators: one template per symbol, one lowering per element type ---------------------------------------------

_COMPARE = {
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
    operator.eq: "==",
    operator.ne: "!=",
}
_BINARY: dict[Any, dict[Lanes, str]] = {
    operator.add: {f32: "fadd", i32: "add"},
    operator.sub: {f32: "fsub", i32: "sub"},
    operator.mul: {f32: "fmul", i32: "mul"},
    operator.truediv: {f32: "fdiv"},
    operator.and_: {i32: "and_", mask: "and_"},
    operator.or_: {i32: "or_", mask: "or_"},
    operator.xor: {i32: "xor"},
    operator.lshift: {i32: "shl"},
    operator.rshift: {i32: "ashr"},
}
_UNARY: dict[Any, dict[Lanes, str]] = {operator.neg: {f32: "fneg", i32: "neg"}, operator.invert: {mask: "not_"}}


def _type_operator(symbol: Any, allowed: Any, compares: bool) -> None:
    @infer_global(symbol)
    class Operator(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            lanes = args[0] if len(args) == 1 else _common(*args)
            if not isinstance(lanes, Lanes) or lanes not in allowed:
                return None
            return signature(mask if compares else lanes, *args)


def _lower_binary(symbol: Any, lanes: Lanes, emit: Callable[..., ir.Value], scalar: Any) -> None:
    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        a, b = (_lift(context, builder, value, given, lanes) for value, given in zip(args, sig.args, strict=True))
        return emit(builder, a, b)

    lower_builtin(symbol, lanes, lanes)(lower)
    if scalar is not None:
        lower_builtin(symbol, lanes, scalar)(lower)
        lower_builtin(symbol, scalar, lanes)(lower)


def _lower_unary(symbol: Any, lanes: Lanes, method: str) -> None:
    @lower_builtin(symbol, lanes)
    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return getattr(builder, method)(args[0])


def _register() -> None:
    scalars = {f32: types.Number, i32: types.Integer, mask: None}
    for symbol, methods in _BINARY.items():
        for name in (symbol, getattr(operator, f"i{symbol.__name__.rstrip('_')}")):  # `a + b` and `a += b`
            _type_operator(name, methods, compares=False)
            for lanes, method in methods.items():
                _lower_binary(name, lanes, _method(method), scalars[lanes])
    for symbol, methods in _UNARY.items():
        _type_operator(symbol, methods, compares=False)
        for lanes, method in methods.items():
            _lower_unary(symbol, lanes, method)
    for symbol, sign in _COMPARE.items():
        _type_operator(symbol, (f32, i32), compares=True)
        for lanes in (f32, i32):
            _lower_binary(symbol, lanes, partial(_compare, lanes, sign), scalars[lanes])


def _method(name: str) -> Callable[..., ir.Value]:
    return lambda builder, a, b: getattr(builder, name)(a, b)


def _compare(lanes: Lanes, sign: str, builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    if lanes == i32:
        return builder.icmp_signed(sign, a, b)
    if sign == "!=":
        return builder.fcmp_unordered(sign, a, b)
    return builder.fcmp_ordered(sign, a, b)


_register()


# --- functions -----------------------------------------------------------------------------------------------------


def _pointer(context: Any, builder: ir.IRBuilder, array: Any, array_type: Any, row: Any, row_type: Any) -> ir.Value:
    """Address of element LANES * row of a contiguous array."""
    data = context.make_array(array_type)(context, builder, array).data
    row = context.cast(builder, row, row_type, types.intp)
    return builder.gep(data, [builder.mul(row, ir.Constant(row.type, LANES))])


def _alignment(held: ir.VectorType) -> int:
    """Bytes of one element: arrays from outside promise no more, and for aligned data it costs nothing."""
    return 1 if held.element == ir.IntType(8) else 4


_MEMORY = {types.float32: f32, types.int32: i32, types.uint8: i32}


def _memory_lanes(array: Any) -> Lanes | None:
    if not isinstance(array, types.Array) or array.layout != "C":
        return None
    return _MEMORY.get(array.dtype)


@intrinsic
def load(typingctx: Any, array: Any, row: Any) -> Any:
    """LANES elements from flat position LANES * row of a contiguous float32, int32 or uint8 array."""
    lanes = _memory_lanes(array)
    if lanes is None:
        raise TypingError(f"load: {array} is not a contiguous array of float32, int32 or uint8")

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = _pointer(context, builder, args[0], sig.args[0], args[1], sig.args[1])
        held = ir.VectorType(pointer.type.pointee, LANES)
        value = builder.load(builder.bitcast(pointer, held.as_pointer()), align=_alignment(held))
        return value if held == lanes.llvm else builder.zext(value, lanes.llvm)

    return lanes(array, row), emit


@intrinsic
def store(typingctx: Any, array: Any, row: Any, value: Any) -> Any:
    """Write lanes to flat position LANES * row; an i32 into a uint8 array keeps the low 8 bits."""
    if _memory_lanes(array) != value:
        raise TypingError(f"store: {value} does not go into {array}")

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = _pointer(context, builder, args[0], sig.args[0], args[1], sig.args[1])
        held = ir.VectorType(pointer.type.pointee, LANES)
        lanes = args[2] if held == args[2].type else builder.trunc(args[2], held)
        builder.store(lanes, builder.bitcast(pointer, held.as_pointer()), align=_alignment(held))
        return context.get_dummy_value()

    return types.void(array, row, value), emit


@intrinsic
def broadcast(typingctx: Any, value: Any) -> Any:
    """A scalar in every lane."""
    lanes = f32 if isinstance(value, types.Float) else i32 if isinstance(value, types.Integer) else None
    if lanes is None:
        raise TypingError(f"broadcast: {value} is not a number")

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return _lift(context, builder, args[0], sig.args[0], lanes)

    return lanes(value), emit


@intrinsic
def select(typingctx: Any, chosen: Any, a: Any, b: Any) -> Any:
    """chosen ? a : b in every lane."""
    lanes = _common(a, b)
    if chosen != mask or lanes is None:
        raise TypingError(f"select: no choice by {chosen} between {a} and {b}")

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        a, b = (_lift(context, builder, args[k], sig.args[k], lanes) for k in (1, 2))
        return builder.select(args[0], a, b)

    return lanes(chosen, a, b), emit


def _pick(sign: str) -> Callable[..., Any]:
    def typed(typingctx: Any, a: Any, b: Any) -> Any:
        lanes = _common(a, b)
        if lanes is None or lanes == mask:
            raise TypingError(f"larger or smaller of {a} and {b}")

        def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            a, b = (_lift(context, builder, value, given, lanes) for value, given in zip(args, sig.args, strict=True))
            return builder.select(_compare(lanes, sign, builder, a, b), a, b)

        return lanes(a, b), emit

    return typed


def _map(given: Lanes, result: Any, emit_value: Callable[[ir.IRBuilder, ir.Value], ir.Value]) -> Callable[..., Any]:
    def typed(typingctx: Any, value: Any) -> Any:
        if value != given:
            raise TypingError(f"expected {given}, not {value}")

        def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            return emit_value(builder, args[0])

        return result(value), emit

    return typed


def _llvm_unary(name: str) -> Callable[[ir.IRBuilder, ir.Value], ir.Value]:
    def emit(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
        kind = ir.FunctionType(f32.llvm, [f32.llvm])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32"), [value])

    return emit


_MAGIC = 12582912.0  # 1.5 * 2**23: adding it leaves the rounded integer in the low mantissa bits


def _magic_sum(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.fadd(value, ir.Constant(f32.llvm, [_MAGIC] * LANES))


def _emit_nearest(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    raw = builder.bitcast(_magic_sum(builder, value), i32.llvm)
    low = builder.and_(raw, ir.Constant(i32.llvm, [0x007FFFFF] * LANES))
    return builder.sub(low, ir.Constant(i32.llvm, [0x00400000] * LANES))


def _emit_round_even(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.fsub(_magic_sum(builder, value), ir.Constant(f32.llvm, [_MAGIC] * LANES))


def _emit_any(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    whole = builder.bitcast(value, ir.IntType(LANES))
    return builder.icmp_unsigned("!=", whole, ir.Constant(whole.type, 0))


larger = intrinsic(_pick(">"))
smaller = intrinsic(_pick("<"))
absolute = intrinsic(_map(f32, f32, _llvm_unary("fabs")))
sqrt = intrinsic(_map(f32, f32, _llvm_unary("sqrt")))
nearest = intrinsic(_map(f32, i32, _emit_nearest))
round_even = intrinsic(_map(f32, f32, _emit_round_even))
truncate = intrinsic(_map(f32, i32, lambda builder, value: builder.fptosi(value, i32.llvm)))
to_float = intrinsic(_map(i32, f32, lambda builder, value: builder.sitofp(value, f32.llvm)))
bits = intrinsic(_map(f32, i32, lambda builder, value: builder.bitcast(value, i32.llvm)))
from_bits = intrinsic(_map(i32, f32, lambda builder, value: builder.bitcast(value, f32.llvm)))
any_lane = intrinsic(_map(mask, types.boolean, _emit_any))


@kernel
def half_bits(x: Any) -> Any:
    """float16 bits of every lane, rounded to nearest even: adding a power of two 13 bits above x's exponent rounds."""
    raw = bits(x)
    scaled = (absolute(x) * np.float32(2.0**112)) * np.float32(2.0**-110)  # overflows to inf where float16 does
    exponent = larger(raw & 0x7F800000, 0x38800000)
    rounded = bits(from_bits(exponent + 0x07800000) + scaled)
    value = ((rounded >> 13) & 0x7C00) + (rounded & 0x0FFF)
    return select(x != x, 0x7E00, value) | ((raw >> 16) & 0x8000)


@kernel
def half_value(half: Any) -> Any:
    """The float32 value of float16 bits in the low half of every lane."""
    magnitude = half & 0x7FFF
    normal = from_bits((magnitude << 13) + 0x70000000) * np.float32(2.0**-112)
    subnormal = from_bits(magnitude | 0x3F000000) - np.float32(0.5)
    value = bits(select(magnitude < 0x400, subnormal, normal))
    return from_bits(value | ((half & 0x8000) << 16))


@kernel
def round_half(x: Any) -> Any:
    """Every lane rounded to the nearest float16 value."""
    return half_value(half_bits(x))


# --- between rows of blocks and lanes --------------------------------------------------------------------------------


@kernel
def load_blocks(weights: Any, first: Any, count: Any, size: Any, scratch: Any) -> None:
    """Blocks first .. first+count of `size` floats to scratch [size, LANES]; spare lanes repeat the last block."""
    for lane in range(LANES):
        start = (first + min(lane, count - 1)) * size
        for i in range(size):
            scratch[i, lane] = weights[start + i]


@kernel
def load_bytes(packed: Any, first: Any, count: Any, size: Any, scratch: Any) -> None:
    """Blocks first .. first+count of `size` bytes to scratch [size, LANES]; spare lanes repeat the last block."""
    for lane in range(LANES):
        start = (first + min(lane, count - 1)) * size
        for i in range(size):
            scratch[i, lane] = packed[start + i]


@kernel
def store_blocks(scratch: Any, size: Any, out: Any, first: Any, count: Any) -> None:
    """scratch [size, LANES] bytes to blocks first .. first+count of `size` bytes in `out`."""
    for lane in range(count):
        start = (first + lane) * size
        for i in range(size):
            out[start + i] = scratch[i, lane]


@kernel
def store_floats(scratch: Any, size: Any, out: Any, first: Any, count: Any) -> None:
    """scratch [size, LANES] floats to blocks first .. first+count of `size` floats in `out`."""
    for lane in range(count):
        start = (first + lane) * size
        for i in range(size):
            out[start + i] = scratch[i, lane]


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """A zeroed C-contiguous array that starts on a 64-byte boundary, so that no vector load crosses a cache line."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(dtype).reshape(shape)
