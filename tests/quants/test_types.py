"""The table of types that can be written agrees with ggml's, and holds all that the README names."""

from __future__ import annotations

import pytest

from ggufround.ggml_types import GGML_TYPES
from ggufround.quants.types import QUANT_TYPES

GGML = {t.name: t for t in GGML_TYPES.values()}
FLOATS = {"F32", "F16", "BF16"}
QUANTS = {
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0",
    "TQ2_0", "Q1_0", "Q2_0", "MXFP4", "NVFP4",
}  # fmt: skip


def test_these_types_can_be_written() -> None:
    assert set(QUANT_TYPES) == FLOATS | QUANTS
    assert {name for name, kind in QUANT_TYPES.items() if kind.kind == "float"} == FLOATS


@pytest.mark.parametrize("name", sorted(FLOATS | QUANTS))
def test_a_row_has_ggmls_id_and_sizes(name: str) -> None:
    kind = QUANT_TYPES[name]
    assert (kind.name, kind.id, kind.block, kind.nbytes) == (name, GGML[name].id, GGML[name].block, GGML[name].nbytes)
    assert kind.row_bytes(7 * kind.block) == 7 * kind.nbytes


@pytest.mark.parametrize("name", sorted(FLOATS | QUANTS))
def test_only_quants_can_be_searched_apart_from_packing(name: str) -> None:
    kind, quant = QUANT_TYPES[name], name in QUANTS
    assert (kind.search is not None, kind.pack is not None) == (quant, quant)
    assert kind.uses_importance == quant
