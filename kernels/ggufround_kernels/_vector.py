"""One block, or a part of it, as one vector: 32 neighbouring weights in a `Lanes` value.

`_lanes.py` lays 32 blocks side by side, because the reference's sums have an order. Where the reference only takes
the largest magnitude, which has none, a vector may as well hold the weights of one block as they lie in memory:
nothing is transposed. Sums that are ours alone (opt-rtn) go through the fixed trees below, so that they are the same
bits on every machine.

Functions (lanes are those of `_lanes.py`)
    load_at(array, i)       32 elements from flat position i: float32 -> f32, uint8 -> i32
    store_at(array, i, v)   the inverse; an i32 into a uint8 array keeps the low 8 bits
    total(v), peak(v)       scalar: the sum, the largest element of an f32
    totals16(v), peaks16(v) lanes: each holds the sum, the largest element of its half of 16
    lane_of(v, lane)        scalar: one lane
    bits_of(x)              scalar: the int32 that has the bits of a float32
    from_bits_of(i)         scalar: the inverse
    round_away(x)           i32: nearest, halves away from zero (C's roundf); for |x| < 2**22
    half_bits_of(x)         scalar: float16 bits of a float32
    round_half_of(x)        scalar: its float16 value
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.errors import TypingError

from ggufround_kernels._jit import kernel
from ggufround_kernels._lanes import (
    LANES,
    bits,
    broadcast,
    f32,
    from_bits,
    half_bits,
    half_value,
    i32,
    intrinsic,
    truncate,
)

_HELD = {types.float32: f32, types.uint8: i32}
_INDEX = ir.IntType(32)
_SIGN = -0x80000000
_BELOW_HALF = 0x3EFFFFFF  # the bits of the float32 before 0.5: added and cut off, it rounds halves away from zero


def _address(context: Any, builder: ir.IRBuilder, array: Any, kind: Any, index: Any, index_kind: Any) -> ir.Value:
    data = context.make_array(kind)(context, builder, array).data
    pointer = builder.gep(data, [context.cast(builder, index, index_kind, types.intp)])
    return builder.bitcast(pointer, ir.VectorType(pointer.type.pointee, LANES).as_pointer())


def _align(pointer: ir.Value) -> int:
    return 1 if pointer.type.pointee.element == ir.IntType(8) else 4


def _lanes_of(array: Any) -> Any:
    if not isinstance(array, types.Array) or array.layout != "C" or array.dtype not in _HELD:
        raise TypingError(f"{array} is not a contiguous array of float32 or uint8")
    return _HELD[array.dtype]


@intrinsic
def load_at(typingctx: Any, array: Any, index: Any) -> Any:
    """LANES elements from flat position `index` of a contiguous float32 or uint8 array."""
    lanes = _lanes_of(array)

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = _address(context, builder, args[0], sig.args[0], args[1], sig.args[1])
        value = builder.load(pointer, align=_align(pointer))
        return value if value.type == lanes.llvm else builder.zext(value, lanes.llvm)

    return lanes(array, index), emit


@intrinsic
def store_at(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Write lanes from flat position `index` on; an i32 into a uint8 array keeps the low 8 bits."""
    if _lanes_of(array) != value:
        raise TypingError(f"store_at: {value} does not go into {array}")

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        pointer = _address(context, builder, args[0], sig.args[0], args[1], sig.args[1])
        held = pointer.type.pointee
        lanes = args[2] if held == args[2].type else builder.trunc(args[2], held)
        builder.store(lanes, pointer, align=_align(pointer))
        return context.get_dummy_value()

    return types.void(array, index, value), emit


def _shuffle(builder: ir.IRBuilder, value: ir.Value, order: list[int]) -> ir.Value:
    picked = ir.Constant(ir.VectorType(_INDEX, len(order)), order)
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), picked)


def _add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.fadd(a, b)


def _larger(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


Combine = Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]


def _tree(combine: Combine) -> Callable[..., Any]:
    """Halves of the vector combined until one element is left: a scalar."""

    def typed(typingctx: Any, value: Any) -> Any:
        if value != f32:
            raise TypingError(f"expected {f32}, not {value}")

        def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            value, width = args[0], LANES // 2
            while width:
                low = _shuffle(builder, value, list(range(width)))
                high = _shuffle(builder, value, list(range(width, 2 * width)))
                value, width = combine(builder, low, high), width // 2
            return builder.extract_element(value, ir.Constant(_INDEX, 0))

        return types.float32(value), emit

    return typed


def _butterfly(combine: Combine) -> Callable[..., Any]:
    """Every lane combined with the others of its half of 16, in all lanes alike."""

    def typed(typingctx: Any, value: Any) -> Any:
        if value != f32:
            raise TypingError(f"expected {f32}, not {value}")

        def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            value = args[0]
            for step in (8, 4, 2, 1):
                value = combine(builder, value, _shuffle(builder, value, [lane ^ step for lane in range(LANES)]))
            return value

        return f32(value), emit

    return typed


total = intrinsic(_tree(_add))
peak = intrinsic(_tree(_larger))
totals16 = intrinsic(_butterfly(_add))
peaks16 = intrinsic(_butterfly(_larger))


@intrinsic
def lane_of(typingctx: Any, value: Any, lane: Any) -> Any:
    """One lane as a scalar."""
    scalar = {f32: types.float32, i32: types.int32}[value]

    def emit(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.extract_element(args[0], args[1])

    return scalar(value, lane), emit


@kernel
def round_away(x: Any) -> Any:
    """i32: the nearest integer, halves away from zero, as C's roundf."""
    return truncate(x + from_bits((bits(x) & _SIGN) | _BELOW_HALF))


@kernel
def bits_of(x: Any) -> Any:
    """The int32 that has the bits of a float32."""
    return lane_of(bits(broadcast(x)), 0)


@kernel
def from_bits_of(i: Any) -> Any:
    """The float32 that has the low 32 bits of an integer."""
    return lane_of(from_bits(broadcast(np.int32(i))), 0)


@kernel
def half_bits_of(x: Any) -> Any:
    """float16 bits of a scalar."""
    return lane_of(half_bits(broadcast(x)), 0)


@kernel
def round_half_of(x: Any) -> Any:
    """A scalar rounded to the nearest float16 value."""
    return lane_of(half_value(half_bits(broadcast(x))), 0)


@kernel
def half_value_of(half: Any) -> Any:
    """The float32 value of float16 bits."""
    return lane_of(half_value(broadcast(np.int32(half))), 0)
