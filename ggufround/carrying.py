"""Carrying packed weights over: which types hold their codes as they are, and the codes as such a type has them.

A weight that was rounded once needs no second rounding where a block of the new type lies within a group of the old
one: d is the group's scale, and a code means the same multiple of it. Zero points are subtracted where the differences
are codes too, else the type needs a minimum of its own, which is -scale * zero as float16 holds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufround.arch.spec import Output, Piece
from ggufround.checkpoint.spec import Packing
from ggufround.checkpoint.unpacking import Parts
from ggufround.errors import UsageError
from ggufround.quants.grids import half
from ggufround.quants.mixes import FLOATS, MIXES, Choice, Mix, fitted
from ggufround.quants.spec import QuantType
from ggufround.quants.types import QUANT_TYPES
from ggufround_kernels import Rounded

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


class Holder(NamedTuple):
    """value = d * code, or d * code + m, with codes low .. high; d may be negative, so -high .. -low do as well."""

    low: int
    high: int
    minimum: bool = False

    def holds(self, low: int, high: int) -> bool:
        return (self.low <= low and high <= self.high) or (self.low <= -high and -low <= self.high)


HOLDERS = {  # of integers, the smallest first
    "Q2_0": Holder(-1, 2), "Q4_0": Holder(-8, 7), "Q4_1": Holder(0, 15, True), "Q5_0": Holder(-16, 15),
    "Q5_1": Holder(0, 31, True), "Q8_0": Holder(-128, 127),
}  # fmt: skip
AS_SOURCE = Mix("AS-SOURCE", 0, "BF16")  # of a packed source, where no type is asked for; see `as_source`
FINE, COARSE = "Q8_0", "Q6_K"  # for what no type holds, by its bits: their rounding adds little to the first
COARSE_BITS = 4


def own_type(output: Output) -> str:
    """The ggml type that is nearest to how the source has an output: its floats, what holds its codes, or what is fine
    enough for a second rounding to matter little."""
    packings = [piece.source.packing for piece in output.pieces]
    if not packings or any(packing is None for packing in packings):
        own = output.pieces[0].source.dtype if output.pieces else "F32"
        return "F32" if own == "F64" else own if own in FLOATS else "BF16"
    for name in (*HOLDERS, "MXFP4", "NVFP4"):
        if carries(output, QUANT_TYPES[name]):
            return name
    return COARSE if max(packing.bits for packing in packings if packing) <= COARSE_BITS else FINE


def carries(output: Output, kind: QuantType) -> bool:
    """Whether all codes of an output can be stored in the type as they are."""
    matrices = output.shape[0] if len(output.shape) == 3 else 1
    if kind.name == "NVFP4" and (len(output.pieces) != matrices or not _multiplied(output.name)):
        return False  # a factor each, by which llama.cpp multiplies
    return bool(output.pieces) and all(_holds(piece, kind) and _reorders(piece) for piece in output.pieces)


def _multiplied(name: str) -> bool:
    """Whether llama.cpp multiplies by a `.scale` beside the tensor: it looks rows of the embedding up without it."""
    return name.endswith(".weight") and name != "token_embd.weight"


def _holds(piece: Piece, kind: QuantType) -> bool:
    packing = piece.source.packing
    if packing is None or packing.reordered or piece.source.columns % kind.block:
        return False
    if packing.kind != "int":
        return kind.name == packing.kind and (kind.codec is None or kind.name == "MXFP4")
    if packing.group % kind.block:
        return False
    if kind.codec is not None:
        alike = kind.codec.name.startswith("INT") and kind.codec.bits == packing.bits
        return alike and packing.biases is None and (packing.symmetric or not kind.codec.sym)
    holder, top = HOLDERS.get(kind.name), (1 << packing.bits) - 1
    if holder is None or holder.minimum:
        return holder is not None and top <= holder.high
    if packing.symmetric:
        return holder.holds(-(top + 1) // 2, top // 2)
    return packing.zeros is not None and holder.holds(-top - packing.lowered, top)


def _reorders(piece: Piece) -> bool:
    """Whether what is done to the rows on the way only changes their order, or leaves some out."""
    if piece.columns:
        return False
    return piece.via is None or order_of(piece.via, piece.read or piece.granule) is not None


def order_of(via: Callable[[F32], F32], rows: int) -> I64 | None:
    """Which of so many rows each row of via(...) was before; None where `via` does more than move some of them."""
    numbers = np.arange(rows, dtype=np.float32)[:, None] + np.array([0, 0.5], np.float32)  # to see columns move
    try:
        found = via(numbers)
    except ValueError:  # it needs the true columns
        return None
    order = found[:, 0].astype(np.int64)
    moved = found.shape[1] == 2 and len(np.unique(order)) == len(order)
    return order if moved and np.array_equal(found, numbers[order.clip(0, rows - 1)]) else None


def rounded(kind: QuantType, packing: Packing, parts: Parts) -> Rounded | None:
    """The parts of rows as a type that `carries` them has them, scales as float16 holds them; None where their values
    are not what the config promised of them: columns out of order, zero points that are not the middle code."""
    if packing.kind != "int":
        exponents = np.asarray(parts.scales, np.uint8)
        if packing.kind == "MXFP4":
            return Rounded(parts.codes, scales=exponents)
        signs = np.repeat((exponents & np.uint8(128)) >> 4, packing.group, axis=1)  # UE4M3 has none: the codes get it
        return Rounded(parts.codes ^ signs, scales=exponents & np.uint8(127))
    if parts.order is not None:
        return None
    groups = np.arange(0, parts.codes.shape[1], kind.block) // packing.group  # of the blocks
    scales = np.take(np.asarray(parts.scales, np.float32), groups, axis=1)
    d = half(scales)
    if parts.biases is not None:
        return Rounded(parts.codes, d=d, dmin=half(np.take(parts.biases, groups, axis=1)))
    middle = 1 << (packing.bits - 1)
    zeros: F32 = np.full_like(d, middle) if parts.zeros is None else np.take(parts.zeros, groups, axis=1)
    if kind.codec is not None:
        if kind.codec.sym:
            return _signed(kind, Holder(-middle, middle - 1), parts.codes, zeros, d)
        return Rounded(parts.codes, d=d, mins=zeros.astype(np.uint8)) if zeros.max() < 2 * middle else None
    holder = HOLDERS[kind.name]
    if holder.minimum:
        return Rounded(parts.codes, d=d, dmin=half(-scales * zeros))
    return _signed(kind, holder, parts.codes, zeros, d)


def _signed(kind: QuantType, holder: Holder, stored: NDArray[np.uint8], zeros: F32, d: F32) -> Rounded | None:
    """Codes less their zero points, turned over with d in blocks that only fit in this way."""
    codes = stored.reshape(len(stored), -1, kind.block) - zeros.astype(np.int16)[:, :, None]
    if codes.min() < holder.low or codes.max() > holder.high:
        turned = (codes.min(axis=2) < holder.low) | (codes.max(axis=2) > holder.high)
        codes = np.where(turned[:, :, None], -codes, codes)
        if codes.min() < holder.low or codes.max() > holder.high:
            return None
        d = np.where(turned, -d, d)
    offset = 0 if kind.name == "Q8_0" else holder.low  # Q8_0 has signed bytes
    return Rounded((codes - offset).astype(np.uint8).reshape(stored.shape), d=d)


def check_tunable(outputs: Sequence[Output], types: Mapping[str, QuantType], inside: str) -> None:
    """Raises UsageError where all that could be tuned is carried over. Names of blocks' outputs begin with `inside`."""
    tuned = [o for o in outputs if o.name.startswith(inside) and types[o.name].grid is not None]
    if tuned and all(carries(o, types[o.name]) for o in tuned):
        raise UsageError(
            "all matrices of the blocks keep the codes that they have, so there is nothing to tune; leave out the "
            "recipe, or choose a type that does not hold these codes"
        )


def as_source(outputs: Sequence[Output], choices: Mapping[str, Choice]) -> tuple[Mix, dict[str, Choice]]:
    """The mix without a --type: what no flag decided gets the source's own type; its file type is that of most weights.

    `choices` are those of AS_SOURCE.
    """
    own = {o.name: own_type(o) for o in outputs if choices[o.name].reason == "default"}
    columns = {o.name: o.shape[-1] for o in outputs}
    made = {n: fitted(Choice(own[n], "source"), columns[n]) if n in own else c for n, c in choices.items()}
    weights: Counter[str] = Counter()
    for output in outputs:
        if output.name in own:
            weights[made[output.name].type] += prod(output.shape)
    most = weights.most_common(1)[0][0] if weights else AS_SOURCE.type
    return replace(AS_SOURCE, file_type=MIXES[most].file_type), made


def remarks(name: str, outputs: Sequence[Output], types: Mapping[str, QuantType]) -> tuple[str, ...]:
    """What happens to the packed weights under the mix of that name, in a line each."""
    notes, kept, again = [], Counter[str](), []
    minima = narrowed = 0
    for output in outputs:
        kind = types[output.name]
        packings = [p.source.packing for p in output.pieces if p.source.packing is not None]
        if not packings:
            continue
        packing = packings[0]
        if carries(output, kind):
            kept[f"{packing.name} in {kind.name}"] += 1
            holder = HOLDERS.get(kind.name) if kind.codec is None else None
            minima += holder is not None and holder.minimum and packing.biases is None
            narrowed += packing.kind == "int" and packing.scales.ref.dtype != "F16"
        elif kind.kind == "quant":
            again.append((output.name, kind.name, packing))
    if name == AS_SOURCE.name and (eight := [o for o in outputs if any(p.source.scale for p in o.pieces)]):
        notes.append(f"{name}: {len(eight)} matrices of 8-bit floats become {types[eight[0].name].name}")
    if kept:
        listed = ", ".join(f"{count} {what}" for what, count in kept.items())
        notes.append(f"{name}: the codes of {kept.total()} matrices are carried over as they are ({listed})")
    if minima:
        notes.append(f"{name}: the zero points of {minima} matrices become offsets, rounded to float16")
    if narrowed:
        notes.append(f"{name}: the scales of {narrowed} matrices are not float16 yet and are rounded to it")
    for reordered in (False, True):
        rows = [row for row in again if row[2].reordered == reordered]
        if rows:
            first, kind_name, packing = rows[0]
            why = "their columns are grouped out of order" if reordered else "that type does not hold their codes"
            notes.append(
                f"{name}: {len(rows)} matrices are rounded a second time (first: {first}, {packing.name} to "
                f"{kind_name}), since {why}"
            )
    return tuple(notes)
