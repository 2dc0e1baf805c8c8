"""The arrangements of a layer's records that formats share: GPTQ's, AWQ's, rows of words, FP4 and FP8."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggufround.formats.spec import U8, Arrays, Member, Store
from ggufround.quants.spec import QuantType
from ggufround_kernels import GroupCodec
from ggufround_kernels.grouped import Fields, fields, record
from ggufround_kernels.packing import pack_awq, pack_bits, unpack_awq, unpack_bits

NVFP4_TOP = 6 * 448  # the largest code times the largest scale
Shape = tuple[int, int]  # rows, columns of the layer's weight


def codec_of(kind: QuantType) -> GroupCodec:
    """The codec of a type of checkpoints."""
    assert kind.codec is not None, kind.name
    return kind.codec


def recorded(codec: GroupCodec, parts: Fields) -> U8:
    """Records of the parts of rows."""
    out = np.empty((len(parts.stream), parts.scales.shape[1] * codec.nbytes), np.uint8)
    record(codec, parts, out)
    return out


def words(stream: U8) -> NDArray[np.int32]:
    """The bytes of streams, uint8 [rows, k * 4], as int32 [rows, k]."""
    return np.ascontiguousarray(stream).view("<i4")


def stream_of(given: NDArray[np.int32]) -> U8:
    """The other way round."""
    return np.ascontiguousarray(given).view(np.uint8)


def zero_points(codec: GroupCodec, parts: Fields) -> U8:
    """uint8 [rows, groups]: stored zero points, or the middle code of symmetric types."""
    return np.full(parts.scales.shape, 1 << (codec.bits - 1), np.uint8) if parts.zeros is None else parts.zeros


def gptq(kind: QuantType, shape: Shape, lowered: bool) -> Store:
    """GPTQ's: words run down the columns of the transposed matrix; zero points are packed across, `lowered` by one.

    A lowered zero point of 0 would be -1, which no reader takes: such a group is moved up by one code, the topmost code
    excepted. Only a group without negative weights has that zero point.
    """
    codec, (rows, columns) = codec_of(kind), shape
    bits, groups, top = codec.bits, columns // codec.group, (1 << codec.bits) - 1
    members = (
        Member(".qweight", "I32", (columns * bits // 32, rows), 1),
        Member(".qzeros", "I32", (groups, rows * bits // 32), 1),
        Member(".scales", "F16", (groups, rows), 1),
    )

    def split(packed: U8) -> Arrays:
        parts = fields(codec, packed)
        zeros, stream = zero_points(codec, parts), parts.stream
        if lowered:
            if not zeros.all():
                low = np.repeat(zeros == 0, codec.group, axis=1)
                codes = unpack_bits(stream, bits)
                stream = pack_bits(np.where(low, np.minimum(codes + 1, top), codes).astype(np.uint8), bits)
            zeros = np.maximum(zeros, 1) - 1
        return words(stream).T, words(pack_bits(zeros.T, bits)), parts.scales.T

    def join(arrays: Arrays) -> U8:
        qweight, qzeros, scales = arrays
        zeros = (unpack_bits(stream_of(qzeros), bits) + lowered).T
        return recorded(codec, Fields(stream_of(qweight.T), scales.T, None if codec.sym else zeros))

    return Store(members, split, join)


def awq(kind: QuantType, shape: Shape) -> Store:
    """AWQ's: a word holds eight rows of one column."""
    codec, (rows, columns) = codec_of(kind), shape
    groups = columns // codec.group
    members = (
        Member(".qweight", "I32", (columns, rows // 8), 1),
        Member(".qzeros", "I32", (groups, rows // 8), 1),
        Member(".scales", "F16", (groups, rows), 1),
    )

    def split(packed: U8) -> Arrays:
        parts = fields(codec, packed)
        zeros = np.ascontiguousarray(zero_points(codec, parts))
        codes = unpack_bits(parts.stream, 4)
        return pack_awq(codes).view(np.int32), pack_awq(zeros).view(np.int32), parts.scales.T

    def join(arrays: Arrays) -> U8:
        qweight, qzeros, scales = (np.ascontiguousarray(a) for a in arrays)
        codes, zeros = unpack_awq(qweight.view(np.uint32)), unpack_awq(qzeros.view(np.uint32))
        return recorded(codec, Fields(pack_bits(codes, 4), scales.T, None if codec.sym else zeros))

    return Store(members, split, join)


def floats(kind: QuantType, shape: Shape, more: tuple[Member, ...] = ()) -> Store:
    """FP4 pairs or FP8 bytes along the rows, and the scales of their groups."""
    codec, (rows, columns) = codec_of(kind), shape
    code = Member(".weight_packed", "U8", (rows, columns // 2)) if codec.bits == 4 else Member(
        ".weight", "F8_E4M3", (rows, columns)
    )  # fmt: skip
    scale = Member(".weight_scale", "F8_E4M3" if codec.name == "NVFP4" else "U8", (rows, columns // codec.group))
    size = code.shape[1]

    def split(packed: U8) -> Arrays:
        return packed[:, :size], packed[:, size:]

    def join(arrays: Arrays) -> U8:
        return np.concatenate(arrays, axis=1)

    return Store((code, scale, *more), split, join, global_scale if codec.name == "NVFP4" else None)


def global_scale(scale: float) -> bytes:
    """What runtimes divide by, where ours multiplies: float32, computed from the largest magnitude as they do."""
    largest = np.float32(np.float64(scale) * NVFP4_TOP)
    return (np.float32(NVFP4_TOP) * (np.float32(1) / largest)).tobytes()
