"""QUANT_TYPES: every tensor type that can be written, as a row over ggufround_kernels."""

from __future__ import annotations

from ggufround.ggml_types import GGML_TYPES
from ggufround.quants.spec import QuantType
from ggufround_kernels import CODECS, FLOATS

_IDS = {t.name: t.id for t in GGML_TYPES.values()}

QUANT_TYPES: dict[str, QuantType] = {
    name: QuantType(name, _IDS[name], 1, row.nbytes, "float", row.quantize, row.unpack) for name, row in FLOATS.items()
} | {
    name: QuantType(
        name, _IDS[name], row.block, row.nbytes, "quant", row.quantize, row.unpack, row.search, row.pack,
        row.uses_importance,
    )
    for name, row in sorted(CODECS.items(), key=lambda item: _IDS[item[0]])
}  # fmt: skip
