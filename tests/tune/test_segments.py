"""Every row of every matrix of a file comes from some parameter, and tuned rows go back to their own places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_models
from ggufround.arch.spec import Output, Piece
from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.reading import Reader
from ggufround.checkpoint.spec import TensorRef
from ggufround.planning import Options, build, rows_of
from ggufround_kernels import Rounded

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from ggufround.tune.driver import assemble  # noqa: E402
from ggufround.tune.segments import Segment, segments, source_rows  # noqa: E402
from ggufround.tune.skeleton import Place, Skeleton  # noqa: E402
from ggufround.tune.weights import source_weights  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
NAMES = tiny_models.TUNABLE
I64 = NDArray[np.int64]


def numbered(source: str, rows: I64, sources: dict[str, int]) -> NDArray[np.uint8]:
    """uint8 [rows, 8]: a name for each row of a checkpoint tensor."""
    names = (sources[source] << 32) + rows
    return np.ascontiguousarray(names, np.int64).view(np.uint8).reshape(-1, 8)


def row_names_of(output: Output, sources: dict[str, int]) -> NDArray[np.uint8]:
    """The names of the file's rows, by what its pieces do to row numbers, worked out anew."""
    parts = []
    for piece in output.pieces:
        rows = np.arange(piece.first, piece.first + piece.rows)
        if piece.via is not None:
            cut = [rows[i : i + piece.granule] for i in range(0, piece.rows, piece.granule)]
            doubled = [np.stack([c, c], 1).astype(np.float32) for c in cut]  # two columns alike, as weights would be
            rows = np.concatenate([piece.via(d)[:, 1] for d in doubled]).astype(np.int64)
        parts.append(numbered(piece.source.name, rows, sources))
    return np.concatenate(parts)


def tuned(segment: Segment, places: dict[str, tuple[Place, ...]], sources: dict[str, int]) -> Rounded:
    """What the tuner would hand over: codes, scales and d that hold the name of their checkpoint row."""
    rows = np.arange(segment.first, segment.last)
    found = np.zeros((len(rows), 8), np.uint8)
    seen = np.zeros(len(rows), int)
    for place in places[segment.parameter]:
        inside = (rows >= place.first) & (rows < place.first + place.rows)
        found[inside] = numbered(place.source, place.index[rows[inside] - place.first], sources)
        seen += inside
    assert (seen == 1).all(), segment
    return Rounded(found, d=found[:, 4:].view(np.float32), scales=found[:, :2].copy())


def matrices_of_blocks(outputs: Iterable[Output], blocks: int) -> list[Output]:
    """Vectors in another shape are none, numbers that stay in F32 as something else (decays of logarithms) are not
    tuned, and blocks beyond are no part of transformers' model: they predict further tokens."""
    return [
        o
        for o in outputs
        if o.name.startswith("blk.")
        and len(o.shape) > 1
        and any(len(piece.source.shape) > 1 for piece in o.pieces)
        and (not o.float32 or all(piece.moves_rows_only for piece in o.pieces))
        and int(o.name.split(".")[1]) < blocks
    ]


@pytest.mark.parametrize("name", NAMES)
def test_tuned_rows_are_assembled_in_the_order_of_the_file(name: str, folder: Path) -> None:
    path = tiny_models.written(folder, name)
    made = build(path, Options(types=("q4_0",)))
    skeleton = Skeleton(made.checkpoint)
    sources = {source: number for number, source in enumerate(made.checkpoint.tensors, 1)}
    outputs = {o.name: o for o in made.outputs}
    covered: set[str] = set()
    for i in range(skeleton.blocks):
        places = skeleton.places(i)
        parts = [(segment, tuned(segment, dict(places), sources)) for segment in segments(places, made.outputs)]
        for key, rounded in assemble(parts).items():
            truth = row_names_of(outputs[key], sources)
            assert rounded.codes.shape[0] == rows_of(outputs[key]), key
            np.testing.assert_array_equal(rounded.codes, truth, err_msg=key)
            assert rounded.scales is not None
            assert rounded.d is not None
            np.testing.assert_array_equal(rounded.scales, truth[:, :2])
            np.testing.assert_array_equal(rounded.d.view(np.uint8), truth[:, 4:])
            covered.add(key)
    assert covered == {o.name for o in matrices_of_blocks(made.outputs, skeleton.blocks)}


@pytest.mark.parametrize("name", NAMES)
def test_every_row_of_a_block_is_in_one_segment(name: str, folder: Path) -> None:
    made = build(tiny_models.written(folder, name), Options(types=("q4_0",)))
    skeleton = Skeleton(made.checkpoint)
    seen = {o.name: np.zeros(rows_of(o), int) for o in matrices_of_blocks(made.outputs, skeleton.blocks)}
    for i in range(skeleton.blocks):
        taken: dict[str, list[tuple[int, int]]] = {}
        for segment in segments(skeleton.places(i), made.outputs):
            assert segment.output.startswith(f"blk.{i}.")
            assert segment.last - segment.first == len(segment.rows) > 0
            assert 0 <= segment.rows.min() <= segment.rows.max() < segment.height
            np.add.at(seen[segment.output], segment.matrix * segment.height + segment.rows, 1)
            taken.setdefault(segment.parameter, []).append((segment.first, segment.last))
        for runs in taken.values():  # no row of a parameter is tuned twice
            ordered = sorted(runs)
            assert all(a[1] <= b[0] for a, b in zip(ordered, ordered[1:], strict=False))
    assert all((rows == 1).all() for rows in seen.values())


@pytest.mark.parametrize("name", ["llama", "mixtral", "phi3", "qwen3moe-stacked", "gemma3-composite"])
def test_the_rows_of_a_segment_are_the_weights_of_the_file(name: str, folder: Path) -> None:
    """The numbers themselves, read from the checkpoint by either side."""
    made = build(tiny_models.written(folder, name), Options(types=("f32",)))
    skeleton = Skeleton(made.checkpoint)
    with Reader(made.checkpoint) as reader:
        read, _ = source_weights(made.checkpoint, reader)
        module = skeleton.load(1, read)
        for segment in segments(skeleton.places(1), made.outputs):
            output = next(o for o in made.outputs if o.name == segment.output)
            whole = np.concatenate([arranged(piece, read(piece.source.name)) for piece in output.pieces])
            height = output.shape[-2]
            matrix = whole[segment.matrix * height : (segment.matrix + 1) * height]
            parameter = module.get_parameter(segment.parameter)
            rows = parameter.view(-1, parameter.shape[-1])[segment.first : segment.last]
            np.testing.assert_array_equal(rows.numpy(), matrix[segment.rows])


def arranged(piece: Piece, source: Any) -> NDArray[np.float32]:
    rows = source.reshape(-1, source.shape[-1])[piece.first : piece.first + piece.rows].numpy()
    if piece.via is None:
        return np.asarray(rows)
    cut = [np.ascontiguousarray(rows[i : i + piece.granule]) for i in range(0, piece.rows, piece.granule)]
    return np.concatenate([piece.via(c) for c in cut])


# --- arrangements that no model of ours has --------------------------------------------------------------------------


def piece(name: str, first: int, rows: int, of: int, ref: TensorRef) -> Piece:
    return Piece(replace(ref, name=name, shape=(of, 8)), first, rows)


@pytest.fixture
def ref(folder: Path) -> TensorRef:
    return next(iter(open_checkpoint(tiny_models.written(folder, "llama")).tensors.values()))


def test_a_fused_parameter_is_cut_where_outputs_and_experts_change(ref: TensorRef) -> None:
    """[2 experts, 3 up over 2 gate], in a checkpoint as one stack each; the second expert's rows in reverse."""
    places = {
        "fused": (
            Place("fused", 0, "up", np.array([0, 1, 2])),
            Place("fused", 3, "gate", np.array([0, 1])),
            Place("fused", 5, "up", np.array([5, 4, 3])),
            Place("fused", 8, "gate", np.array([3, 2])),
        )
    }
    outputs = (
        Output("blk.0.ffn_up_exps.weight", (2, 3, 8), (piece("up", 0, 6, 6, ref),)),
        Output("blk.0.ffn_gate_exps.weight", (2, 2, 8), (piece("gate", 0, 4, 4, ref),)),
        Output("blk.0.ffn_norm.weight", (8,), (piece("norm", 0, 1, 1, ref),)),
    )
    found = segments(places, outputs)
    assert [(s.output, s.first, s.last, s.matrix, s.rows.tolist()) for s in found] == [
        ("blk.0.ffn_up_exps.weight", 0, 3, 0, [0, 1, 2]),
        ("blk.0.ffn_gate_exps.weight", 3, 5, 0, [0, 1]),
        ("blk.0.ffn_up_exps.weight", 5, 8, 1, [2, 1, 0]),
        ("blk.0.ffn_gate_exps.weight", 8, 10, 1, [1, 0]),
    ]


def test_one_run_that_crosses_experts_and_outputs_is_several_segments(ref: TensorRef) -> None:
    places = {"stack": (Place("stack", 0, "all", np.arange(12)),)}
    outputs = (
        Output("a", (2, 3, 8), (piece("all", 0, 6, 12, ref),)),
        Output("b", (4, 8), (piece("all", 7, 4, 12, ref),)),  # rows 6 and 11 go nowhere
    )
    found = segments(places, outputs)
    assert [(s.output, s.first, s.last, s.matrix) for s in found] == [("a", 0, 3, 0), ("a", 3, 6, 1), ("b", 7, 11, 0)]


def test_a_matrix_of_several_sources_is_put_together(ref: TensorRef) -> None:
    """Q, K and V in one: parameters in another order than the file's rows."""
    places = {
        "k": (Place("k", 0, "k", np.arange(2)),),
        "v": (Place("v", 0, "v", np.arange(2)),),
        "q": (Place("q", 0, "q", np.arange(4)),),
    }
    pieces = (piece("q", 0, 4, 4, ref), piece("k", 0, 2, 2, ref), piece("v", 0, 2, 2, ref))
    output = Output("blk.0.attn_qkv.weight", (8, 8), pieces)
    parts = []
    for segment in segments(places, (output,)):
        codes = np.array([[ord(segment.parameter), r] for r in range(len(segment.rows))], np.uint8)
        parts.append((segment, Rounded(codes)))
    rows = assemble(parts)["blk.0.attn_qkv.weight"].codes
    assert ["".join(map(chr, rows[:, 0]))] == ["qqqqkkvv"]
    assert rows[:, 1].tolist() == [0, 1, 2, 3, 0, 1, 0, 1]


def test_a_transform_that_changes_values_is_not_taken_for_an_order(ref: TensorRef) -> None:
    for via in (lambda x: x + 1, lambda x: 2 * x, np.zeros_like):
        changed = replace(piece("q", 0, 4, 4, ref), via=via)
        with pytest.raises(AssertionError, match="more than another order of rows"):
            source_rows(changed)
