"""From one checkpoint format to another without rounding: records are read from one folder and written to the other."""

from __future__ import annotations

from collections.abc import Mapping

from ggufround.formats.checkpoint import CheckpointLayout, reading, records
from ggufround.formats.spec import ACTIVE, GLOBAL_SCALE
from ggufround.planning import SLAB


def repack(source: CheckpointLayout, target: CheckpointLayout, digests: Mapping[str, str]) -> None:
    """Writes the finished checkpoint `source` as `target`, a layout of the same outputs and types. `digests` go into
    its provenance. Raises OutputError."""
    sink = target.open(resume=False)
    try:
        with reading(source) as read:
            for name, place in source.places.items():
                step = max(1, SLAB // (place.shape[-1] * place.type.granule)) * place.type.granule
                for first in range(0, place.rows, step):
                    sink.write(name, first, records(place, read, first, min(step, place.rows - first)))
                for stored in place.members:
                    if stored.member.suffix in (GLOBAL_SCALE, *ACTIVE):
                        data = read(stored.file, stored.member.nbytes, stored.offset)
                        sink.write_number(name, stored.member.suffix, data)
        sink.close(digests)
    finally:
        sink.abandon()
