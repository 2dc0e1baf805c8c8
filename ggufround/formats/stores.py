"""The arrangements of a layer's records that formats share: GPTQ's, AWQ's, rows of words, FP4 and FP8."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ggufround.formats.spec import ACTIVE, GLOBAL_SCALE, U8, Arrays, Member, Store
from ggufround.quants.schemes import Scheme
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


def gptq(scheme: Scheme, shape: Shape) -> Store:
    """GPTQ's: words run down the columns of the transposed matrix, zero points are packed across.

    The zero points of symmetric types, all the middle code, are stored less one, as GPTQ's first version has it. Those
    of asymmetric ones are stored as they are (version 2), since readers differ in what a zero point of 0 less one is.
    """
    codec, (rows, columns) = codec_of(scheme.type_for(shape[1])), shape
    bits, groups = codec.bits, columns // codec.group
    members = (
        Member(".qweight", "I32", (columns * bits // 32, rows), 1),
        Member(".qzeros", "I32", (groups, rows * bits // 32), 1),
        Member(".scales", "F16", (groups, rows), 1),
    )

    def split(packed: U8) -> Arrays:
        parts = fields(codec, packed)
        zeros = zero_points(codec, parts) - np.uint8(codec.sym)
        return words(parts.stream).T, words(pack_bits(zeros.T, bits)), parts.scales.T

    def join(arrays: Arrays) -> U8:
        qweight, qzeros, scales = arrays
        zeros = None if codec.sym else unpack_bits(stream_of(qzeros), bits).T
        return recorded(codec, Fields(stream_of(qweight.T), scales.T, zeros))

    return Store(members, split, join)


def awq(scheme: Scheme, shape: Shape) -> Store:
    """AWQ's: a word holds eight rows of one column."""
    codec, (rows, columns) = codec_of(scheme.type_for(shape[1])), shape
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


def floats(scheme: Scheme, shape: Shape) -> Store:
    """FP4 pairs or FP8 bytes along the rows, the scales of their groups, and what static activations need."""
    codec, (rows, columns) = codec_of(scheme.type_for(shape[1])), shape
    code = Member(".weight_packed", "U8", (rows, columns // 2)) if codec.bits == 4 else Member(
        ".weight", "F8_E4M3", shape
    )  # fmt: skip
    groups = columns // codec.group
    more = [Member(GLOBAL_SCALE, "F32", (1,), None)] if scheme.data == "nv_fp" else []
    if scheme.active == "static":
        more.append(Member(ACTIVE[scheme.data == "fp"], "F32", (1,), None))
    if scheme.tall > 1:
        steps = -(-rows // scheme.tall)
        scale = Member(".weight_scale", "F32", (steps, groups), tall=scheme.tall)
    elif scheme.data == "fp":
        scale = Member(".weight_scale", "F32", (rows, 1))
    else:
        scale = Member(".weight_scale", "F8_E4M3" if scheme.data == "nv_fp" else "U8", (rows, groups))

    def split(packed: U8) -> Arrays:
        parts = fields(codec, packed)
        return parts.stream, parts.scales[:: scheme.tall]

    def join(arrays: Arrays) -> U8:
        stream, scales = arrays
        return recorded(codec, Fields(stream, np.repeat(scales, scheme.tall, axis=0)[: len(stream)]))

    return Store((code, scale, *more), split, join, global_scale, input_scale if scheme.data == "fp" else active_scale)


def global_scale(scale: float) -> bytes:
    """What runtimes divide by, where ours multiplies: float32, computed from the largest magnitude as they do."""
    return active_scale(float(np.float32(scale * NVFP4_TOP)))


def active_scale(largest: float) -> bytes:
    """NVFP4's: what puts the largest magnitude on the topmost value. float32."""
    return (np.float32(NVFP4_TOP) * (np.float32(1) / np.float32(largest))).tobytes()


def input_scale(largest: float) -> bytes:
    """FP8's: the other way round. float32."""
    return (np.float32(largest) / np.float32(448)).tobytes()
