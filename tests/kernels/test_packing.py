"""Codes packed as the formats' specifications say, and back: streams of bits, GPTQ's and AWQ's words, records."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from blocks import assert_same_blocks
from ggufround_kernels import FP4, FP8_BLOCK, MXFP8, GroupCodec, Rounded, fp8_codec, grouped, integer_codec
from ggufround_kernels.integers import BITS
from ggufround_kernels.packing import pack_awq, pack_bits, unpack_awq, unpack_bits
from reference_packing import awq_words, gptq_words, pairs, records, streams

U8 = NDArray[np.uint8]
each_bits = pytest.mark.parametrize("bits", BITS)
quick = settings(max_examples=40, deadline=None)
CODECS: dict[str, GroupCodec] = {
    codec.name: codec
    for codec in (
        *(integer_codec(bits, group, sym) for bits, group in ((2, 64), (3, 8), (4, 128), (5, 40), (8, 32))
          for sym in (True, False)),
        FP4["MXFP4"], FP4["NVFP4"], MXFP8, FP8_BLOCK, fp8_codec(64),
    )
}  # fmt: skip
each_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())


def random_codes(rows: int, n: int, bits: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 1 << bits, (rows, n), np.uint8)


def random_rounded(codec: GroupCodec, rows: int, n: int, seed: int = 0) -> Rounded:
    """Any codes and scales that the codec can hold, n a multiple of 64 for NVFP4."""
    rng, shape = np.random.default_rng(seed), (rows, n // codec.group)
    codes = random_codes(rows, n, codec.bits, seed)
    if codec.name in ("MXFP4", "MXFP8"):
        return Rounded(codes, scales=rng.integers(0, 255, shape, np.uint8))
    if codec.name == "NVFP4":
        return Rounded(codes, scales=rng.integers(0, 127, shape, np.uint8))
    d = rng.standard_normal(shape).astype(codec.scale).astype(np.float32)
    return Rounded(codes, d=d, mins=None if codec.sym else random_codes(*shape, codec.bits, seed + 1))


def stored_scales(codec: GroupCodec, rounded: Rounded) -> NDArray:
    return rounded.d.astype(codec.scale) if rounded.scales is None else rounded.scales  # type: ignore[union-attr]


def packed(codec: GroupCodec, rounded: Rounded) -> U8:
    rows, n = rounded.codes.shape
    out = np.full((rows, n // codec.group * codec.nbytes), 0xA5, np.uint8)
    codec.pack(rounded, out)
    return out


# --- streams of bits -------------------------------------------------------------------------------------------------


@each_bits
@quick
@given(st.integers(0, 5), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_a_stream_is_the_twins_and_unpacking_gives_the_codes_back(bits: int, rows: int, eights: int, seed: int) -> None:
    codes = random_codes(rows, 8 * eights, bits, seed)
    out = pack_bits(codes, bits)
    assert_same_blocks(out, streams(codes, bits), bits, f"{bits} bits")
    np.testing.assert_array_equal(unpack_bits(out, bits), codes)


@each_bits
@quick
@given(st.binary(max_size=24 * 8))
def test_packing_gives_any_stream_back(bits: int, raw: bytes) -> None:
    stream = np.frombuffer(raw[: len(raw) // bits * bits], np.uint8).reshape(1, -1)
    assert_same_blocks(pack_bits(unpack_bits(stream, bits), bits), stream, bits)


@each_bits
def test_one_code_alone_stands_at_its_own_bits(bits: int) -> None:
    for i in range(32):
        codes = np.zeros((1, 32), np.uint8)
        codes[0, i] = (1 << bits) - 1
        number = int.from_bytes(pack_bits(codes, bits).tobytes(), "little")
        assert number == ((1 << bits) - 1) << (i * bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_streams_of_rows_are_gptqs_words_of_columns(bits: int) -> None:
    codes = random_codes(24, 96, bits)
    words = pack_bits(codes, bits).view("<i4").T
    np.testing.assert_array_equal(words, gptq_words(codes, bits))


def test_streams_of_4_bits_are_pairs_with_the_even_code_low() -> None:
    codes = random_codes(5, 64, 4)
    assert_same_blocks(pack_bits(codes, 4), pairs(codes), 16)


@each_bits
def test_the_layout_in_memory_does_not_matter(bits: int) -> None:
    codes = random_codes(32, 48, bits)
    for given_codes in (np.asfortranarray(codes), np.repeat(codes, 2, axis=1)[:, ::2]):
        assert_same_blocks(pack_bits(given_codes, bits), pack_bits(codes, bits), bits)
    stream = pack_bits(codes, bits)
    np.testing.assert_array_equal(unpack_bits(np.asfortranarray(stream), bits), codes)
    codes &= 15
    for given_codes in (np.asfortranarray(codes), np.repeat(codes, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(pack_awq(given_codes), pack_awq(codes))
    words = pack_awq(codes)
    np.testing.assert_array_equal(unpack_awq(np.asfortranarray(words)), codes)


# --- AWQ -------------------------------------------------------------------------------------------------------------


@quick
@given(st.integers(0, 5), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_awqs_words_are_the_twins_and_unpacking_gives_the_codes_back(eights: int, n: int, seed: int) -> None:
    codes = random_codes(8 * eights, n, 4, seed)
    words = pack_awq(codes)
    np.testing.assert_array_equal(words, awq_words(codes))
    np.testing.assert_array_equal(unpack_awq(words), codes)


def test_an_awq_word_holds_rows_0_2_4_6_1_3_5_7_from_its_lowest_half_byte() -> None:
    codes = np.arange(8, dtype=np.uint8).reshape(8, 1)
    assert f"{pack_awq(codes)[0, 0]:08x}" == "75316420"


# --- records ---------------------------------------------------------------------------------------------------------


@each_codec
def test_a_record_is_the_stream_then_scales_then_zero_points(codec: GroupCodec) -> None:
    n = 640 if 640 % codec.group == 0 else 3 * codec.group
    rounded = random_rounded(codec, 7, n)
    expected = records(rounded.codes, codec.bits, stored_scales(codec, rounded), rounded.mins)
    assert_same_blocks(packed(codec, rounded), expected, expected.shape[1], codec.name)
    assert expected.shape[1] == n // codec.group * codec.nbytes


@each_codec
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_records_keep_everything_that_was_rounded(codec: GroupCodec, rows: int, fours: int, seed: int) -> None:
    rounded = random_rounded(codec, rows, 4 * fours * codec.group, seed)
    out = packed(codec, rounded)
    parts = grouped.fields(codec, out)
    for field, given_field, kept in zip(Rounded._fields, rounded, grouped.rounded(codec, parts), strict=True):
        assert (given_field is None) == (kept is None), field
        if given_field is not None:
            assert given_field.dtype == kept.dtype
            np.testing.assert_array_equal(kept, given_field, field)
    again = np.full_like(out, 0x5A)
    grouped.record(codec, parts, again)
    assert_same_blocks(again, out, out.shape[1], codec.name)
    weights = np.full(rounded.codes.shape, np.nan, np.float32)
    codec.unpack(out, weights)
    np.testing.assert_array_equal(weights, codec.dequantise(rounded))


@each_codec
def test_quantize_is_search_then_pack(codec: GroupCodec) -> None:
    x = np.random.default_rng(3).standard_normal((5, 4 * codec.group)).astype(np.float32)
    for search in ("rtn", "opt-rtn"):
        out = np.full((5, 4 * codec.nbytes), 0xA5, np.uint8)
        codec.quantize(x, None, search, out)  # type: ignore[arg-type]
        assert_same_blocks(out, packed(codec, codec.search(x, None, search)), out.shape[1])  # type: ignore[arg-type]


# --- what is refused -------------------------------------------------------------------------------------------------

ROWS = random_codes(8, 64, 4)
REFUSED: dict[str, Callable[[], object]] = {
    "a row that 8 does not divide": lambda: pack_bits(ROWS[:, :63], 4),
    "codes of another dtype": lambda: pack_bits(ROWS.astype(np.int8), 4),  # type: ignore[arg-type]
    "codes without rows": lambda: pack_bits(ROWS.reshape(-1), 4),
    "a stream that is no multiple of the bits": lambda: unpack_bits(ROWS[:, :32], 3),
    "a stream of words": lambda: unpack_bits(ROWS.view(np.uint32), 4),  # type: ignore[arg-type]
    "rows that 8 does not divide": lambda: pack_awq(ROWS[:7]),
    "AWQ codes of another dtype": lambda: pack_awq(ROWS.astype(np.int32)),  # type: ignore[arg-type]
    "signed AWQ words": lambda: unpack_awq(ROWS.view(np.int32)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_packed_is_refused(case: str) -> None:
    with pytest.raises(ValueError, match=r"must be|no multiple"):
        REFUSED[case]()


@each_codec
def test_wrong_arguments_of_pack_and_unpack_are_refused_by_name(codec: GroupCodec) -> None:
    n = 4 * codec.group
    rounded = random_rounded(codec, 3, n)
    out, weights = packed(codec, rounded), np.zeros((3, n), np.float32)
    scaled = "scales" if rounded.d is None else "d"
    refused: dict[str, Callable[[], object]] = {
        "too few rows to write to": lambda: codec.pack(rounded, out[:1].copy()),
        "rows that are too wide": lambda: codec.pack(rounded, np.zeros((3, out.shape[1] + 1), np.uint8)),
        "rows of another dtype": lambda: codec.pack(rounded, out.astype(np.int8)),  # type: ignore[arg-type]
        "codes that are no multiple of the group": lambda: codec.pack(
            rounded._replace(codes=rounded.codes[:, :-8].copy()), out
        ),
        "one row's scales": lambda: codec.pack(rounded._replace(**{scaled: getattr(rounded, scaled)[:1]}), out),
        "no scales": lambda: codec.pack(rounded._replace(**{scaled: None}), out),
        "a record that is cut off": lambda: codec.unpack(out[:, :-1].copy(), weights),
        "float64 weights": lambda: codec.unpack(out, weights.astype(np.float64)),  # type: ignore[arg-type]
        "too few weights": lambda: codec.unpack(out, weights[:1].copy()),
    }
    if rounded.mins is not None:
        refused["no zero points"] = lambda: codec.pack(rounded._replace(mins=None), out)
    for case, call in refused.items():
        with pytest.raises(ValueError, match=rf"^{codec.name}: ") as error:
            call()
        assert "must be" in str(error.value), case


def test_a_group_whose_codes_fill_no_whole_bytes_cannot_be_stored() -> None:
    with pytest.raises(ValueError, match="groups of 20 weights cannot be stored; must be a multiple of 8"):
        _ = integer_codec(4, 20, True).nbytes
