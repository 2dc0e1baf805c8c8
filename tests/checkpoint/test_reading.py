"""Rows as float32: every dtype against an independent decoding, scales, threads, and files that shrink."""

from __future__ import annotations

import hashlib
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufround.checkpoint import Reader, open_checkpoint
from ggufround.checkpoint.reading import check_readable, scratch_bytes
from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.errors import InputError, UnsupportedError
from ggufround.ggml_types import GGML_TYPES
from ggufround.gguf_file import TensorInfo, encode_header, u32
from tiny import bf16_bits, write_checkpoint, write_safetensors

RNG = np.random.default_rng(5)
WEIGHTS = RNG.normal(0, 0.02, (37, 96)).astype(np.float32)


def read(checkpoint: Checkpoint, name: str, step: int = 7) -> NDArray[np.float32]:
    """The whole tensor, a few rows at a time, checked against the hash of the stored bytes."""
    ref = checkpoint.tensors[name]
    out = np.full((ref.rows, ref.columns), np.nan, np.float32)
    scratch = np.empty(scratch_bytes(ref, step), np.uint8)
    stored = b""
    with Reader(checkpoint) as reader:
        for first in range(0, ref.rows, step):
            count = min(step, ref.rows - first)
            raw = bytes(reader.read_rows(ref, first, count, out[first : first + count], scratch))
            stored += raw[: count * ref.nbytes // ref.rows]
    assert stored == ref.path.read_bytes()[ref.offset : ref.offset + ref.nbytes]
    return out


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_floats_are_widened(tmp_path: Path, dtype: str) -> None:
    found = open_checkpoint(write_checkpoint(tmp_path, {"w": WEIGHTS, "b": WEIGHTS[0]}, {}, dtype=dtype))
    bf16 = (bf16_bits(WEIGHTS).astype(np.uint32) << 16).view(np.float32)
    wanted = {"BF16": bf16, "F16": WEIGHTS.astype(np.float16).astype(np.float32)}.get(dtype, WEIGHTS)
    np.testing.assert_array_equal(read(found, "w"), wanted)
    np.testing.assert_array_equal(read(found, "b"), wanted[:1])


def test_a_double_beyond_float32_becomes_infinity_without_a_warning(tmp_path: Path) -> None:
    found = open_checkpoint(write_checkpoint(tmp_path, {"w": np.array([[1e300, -1e300, 2.5]])}, {}))
    np.testing.assert_array_equal(read(found, "w"), [[np.inf, -np.inf, 2.5]])


def write(path: Path, tensors: dict[str, tuple[str, NDArray[Any]]]) -> Checkpoint:
    """A checkpoint of raw arrays with their dtype names; FP8 in blocks of 16 x 32."""
    path.mkdir(exist_ok=True)
    config = '{"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 32]}}'
    (path / "config.json").write_text(config)
    write_safetensors(path / "model.safetensors", {n: (d, v.shape, v.tobytes()) for n, (d, v) in tensors.items()})
    return open_checkpoint(path)


def fp8_value(code: int, exponent_bits: int) -> float:
    """One code, from the text of the OCP FP8 specification: sign, exponent, mantissa."""
    mantissa_bits = 7 - exponent_bits
    exponent = (code & 127) >> mantissa_bits
    fraction = (code & (2**mantissa_bits - 1)) / 2**mantissa_bits
    sign = -1.0 if code & 128 else 1.0
    if exponent_bits == 5 and exponent == 31:
        return float("nan") if fraction else sign * float("inf")
    if exponent_bits == 4 and code & 127 == 127:
        return float("nan")
    bias = 2 ** (exponent_bits - 1) - 1
    return sign * (2.0 ** (exponent - bias) * (1 + fraction) if exponent else 2.0 ** (1 - bias) * fraction)


@pytest.mark.parametrize(("dtype", "exponent_bits"), [("F8_E4M3", 4), ("F8_E5M2", 5)])
def test_every_fp8_code_is_decoded(tmp_path: Path, dtype: str, exponent_bits: int) -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    found = write(tmp_path, {"w": (dtype, codes), "w_scale": ("F32", np.ones(1, np.float32))})
    wanted = [[fp8_value(int(c), exponent_bits) for c in row] for row in codes]
    np.testing.assert_array_equal(read(found, "w"), np.array(wanted, np.float32))


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_fp8_codes_are_those_of_torch(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    found = write(tmp_path, {"w": (dtype, codes), "w_scale": ("F32", np.ones(1, np.float32))})
    kind = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}[dtype]
    np.testing.assert_array_equal(read(found, "w"), torch.from_numpy(codes).view(kind).float().numpy())


def expanded(scales: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """One scale a weight; an axis has one scale for each, one for all, or one for a block of 16 x 32."""
    for axis, (count, size) in enumerate(zip(scales.shape, shape, strict=False)):
        shared = 1 if count == size else size if count == 1 else (16, 32)[axis - len(shape) + 2]
        scales = scales.take(np.arange(size) // shared, axis)
    return scales


@pytest.mark.parametrize(
    ("shape", "scale"),
    [
        ((37, 96), ()),
        ((37, 96), (37, 1)),
        ((37, 96), (3, 3)),
        ((37, 70), (3, 3)),
        ((3, 32, 96), (3, 2, 3)),
        ((3, 10, 96), (3, 1, 1)),
        ((3, 10, 96), (3, 10, 1)),
    ],
)
@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_fp8_is_multiplied_by_its_scales(
    tmp_path: Path, shape: tuple[int, ...], scale: tuple[int, ...], kind: str
) -> None:
    codes = RNG.integers(0, 120, shape).astype(np.uint8)
    scales = bf16_bits(RNG.uniform(0.5, 2, scale or (1,)).astype(np.float32)).reshape(scale)
    values = (scales.astype(np.uint32) << 16).view(np.float32)
    stored = values if kind == "F32" else scales
    found = write(tmp_path, {"w": ("F8_E4M3", codes), "w_scale_inv": (kind, stored)})
    plain = np.array([fp8_value(c, 4) for c in range(256)], np.float32)[codes]
    wanted = plain * expanded(values, shape)
    for step in (1, 7, 1000):
        np.testing.assert_array_equal(read(found, "w", step), wanted.reshape(-1, shape[-1]))


def test_a_power_of_two_scale_is_read(tmp_path: Path) -> None:
    codes = np.full((16, 32), 0x38, np.uint8)  # 1.0
    found = write(tmp_path, {"w": ("F8_E4M3", codes), "w_scale_inv": ("F8_E8M0", np.array([[124]], np.uint8))})
    np.testing.assert_array_equal(read(found, "w"), np.full((16, 32), 0.125, np.float32))


def test_the_scales_follow_the_rows_in_what_is_hashed(tmp_path: Path) -> None:
    codes, scales = np.ones((37, 96), np.uint8), np.arange(9, dtype=np.float32).reshape(3, 3)
    found = write(tmp_path, {"w": ("F8_E4M3", codes), "w_scale_inv": ("F32", scales)})
    ref, out = found.tensors["w"], np.empty((20, 96), np.float32)
    with Reader(found) as reader:
        for scratch in (np.empty(scratch_bytes(ref, 20), np.uint8), np.empty(0, np.uint8)):
            raw = reader.read_rows(ref, 10, 20, out, scratch)
            assert bytes(raw) == codes[10:30].tobytes() + scales[:2].tobytes()


def test_raw_rows_are_the_stored_bytes(tmp_path: Path) -> None:
    found = open_checkpoint(write_checkpoint(tmp_path, {"w": WEIGHTS}, {}, dtype="F16"))
    with Reader(found) as reader:
        raw = reader.raw_rows(found.tensors["w"], 3, 5, np.empty(10_000, np.uint8))
        assert bytes(raw) == WEIGHTS[3:8].astype(np.float16).tobytes()


@pytest.mark.parametrize("values", [np.ones((2, 4), np.int64), np.ones((2, 4), np.uint8), np.ones((2, 4), bool)])
def test_integers_are_not_weights(tmp_path: Path, values: NDArray[Any]) -> None:
    found = open_checkpoint(write_checkpoint(tmp_path, {"w": values}, {}))
    with pytest.raises(UnsupportedError, match="w in model.safetensors is stored as .*cannot be read as weights"):
        check_readable(found.tensors["w"])
    with pytest.raises(UnsupportedError), Reader(found) as reader:
        reader.read_rows(found.tensors["w"], 0, 2, np.empty((2, 4), np.float32), np.empty(64, np.uint8))


def test_a_file_that_shrinks_while_it_is_read_is_refused_by_the_tensors_name(tmp_path: Path) -> None:
    found = open_checkpoint(write_checkpoint(tmp_path, {"w": WEIGHTS}, {}))
    ref = found.tensors["w"]
    os.truncate(ref.path, ref.offset + ref.nbytes - 1)
    with Reader(found) as reader:
        out, scratch = np.empty((37, 96), np.float32), np.empty(ref.nbytes, np.uint8)
        reader.read_rows(ref, 0, 36, out[:36], scratch)
        with pytest.raises(InputError, match="ends within tensor w"):
            reader.read_rows(ref, 0, 37, out, scratch)
        with pytest.raises(InputError, match="ends within tensor w"):
            reader.raw_rows(ref, 36, 1, scratch)


def test_a_file_that_vanishes_is_refused_by_the_tensors_name(tmp_path: Path) -> None:
    found = open_checkpoint(write_checkpoint(tmp_path, {"w": WEIGHTS}, {}))
    found.tensors["w"].path.unlink()
    with Reader(found) as reader, pytest.raises(InputError, match="cannot read tensor w from"):
        reader.raw_rows(found.tensors["w"], 0, 1, np.empty(1000, np.uint8))


def test_threads_share_a_reader_and_no_file_stays_open(tmp_path: Path) -> None:
    tensors = {f"t{k}": RNG.normal(size=(64, 96)).astype(np.float32) for k in range(6)}
    found = open_checkpoint(write_checkpoint(tmp_path, tensors, {}, dtype="F32", shards=3))
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    def digest(job: tuple[str, int]) -> tuple[str, int, str]:
        name, first = job
        out = np.empty((8, 96), np.float32)
        reader.read_rows(found.tensors[name], first, 8, out, np.empty(8 * 96 * 4, np.uint8))
        return name, first, hashlib.sha256(out.tobytes()).hexdigest()

    with Reader(found) as reader, ThreadPoolExecutor(8) as pool:
        jobs = [(name, first) for name in tensors for first in range(0, 64, 8)] * 5
        for name, first, value in pool.map(digest, jobs):
            assert value == hashlib.sha256(tensors[name][first : first + 8].tobytes()).hexdigest()
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_reading_allocates_no_more_than_a_slab(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    os.truncate(path, 1 << 30)
    ref = TensorRef("w", "BF16", (1 << 17, 1 << 12), path, 0, 1 << 30)
    out, scratch = np.empty((64, 1 << 12), np.float32), np.empty(64 << 13, np.uint8)
    with Reader(Checkpoint("m", tmp_path, {"w": ref}, {})) as reader:
        tracemalloc.start()
        try:
            for first in range(0, 1 << 17, 1 << 13):
                reader.read_rows(ref, first, 64, out, scratch)
            assert tracemalloc.get_traced_memory()[1] < 64 << 10
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(("dtype", "row_bytes"), [("Q4_0", 144), ("Q5_0", 176), ("Q6_K", 210)])
def test_quantised_gguf_tensors_are_unpacked_as_gguf_py_does(tmp_path: Path, dtype: str, row_bytes: int) -> None:
    quants = pytest.importorskip("gguf.quants")
    kind = quants.GGMLQuantizationType[dtype]
    packed = RNG.integers(0, 256, (9, row_bytes)).astype(np.uint8)
    block = packed.reshape(9, -1, kind_bytes(dtype))
    scales = RNG.uniform(0.001, 0.1, block.shape[:2]).astype(np.float16)  # random bytes would hold NaN
    place = slice(208, 210) if dtype == "Q6_K" else slice(0, 2)
    block[:, :, place] = scales[:, :, None].view(np.uint8)
    header = encode_header({"x": u32(1)}, [TensorInfo("w", (9, 256), int(kind), 0)])
    path = tmp_path / "m.gguf"
    path.write_bytes(header.data + packed.tobytes())
    np.testing.assert_array_equal(read(open_checkpoint(path), "w", 4), quants.dequantize(packed, kind))


def kind_bytes(dtype: str) -> int:
    """Bytes of a block."""
    return next(t.nbytes for t in GGML_TYPES.values() if t.name == dtype)


def test_quantised_types_without_a_kernel_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="IQ1_S"):
        check_readable(TensorRef("w", "IQ1_S", (1, 256), Path("x.gguf"), 0, 50))
