"""Every tensor of a checkpoint comes back from the GGUF file that was made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_models
from ggufround import convert
from ggufround.arch.spec import Output, Piece
from ggufround.arch.transforms import add_one, in_columns, interleave_heads, on_vector
from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.gguf_source import open_gguf
from ggufround.checkpoint.reading import Reader
from ggufround.checkpoint.spec import TensorRef
from ggufround.errors import UnsupportedError
from ggufround.planning import Options, build

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from ggufround.tune.outputs import output_weights  # noqa: E402
from ggufround.tune.weights import source_weights  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
Readers = tuple[Any, Any]


@contextmanager
def both(model: Path, file: Path) -> Iterator[tuple[Readers, Readers, set[str]]]:
    """(tensor, rows) of the checkpoint, the same from the file, and the names of all tensors that the file holds."""
    plan, found = build(model, Options(types=("f32",))), open_gguf(str(file), file)

    def rows(name: str, first: int, count: int) -> NDArray[np.float32]:
        out = np.empty((count, found.tensors[name].columns), np.float32)
        packed.read_rows(found.tensors[name], first, count, out, np.empty(0, np.uint8))
        return out

    with Reader(plan.checkpoint) as reader, Reader(found) as packed:
        names = {piece.source.name for output in plan.outputs for piece in output.pieces}
        yield source_weights(plan.checkpoint, reader), output_weights(plan.outputs, rows), names


@pytest.mark.parametrize("name", [*tiny_models.TUNABLE, "gpt2"])
def test_every_tensor_is_read_back_from_an_f32_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = tiny_models.CASES[name]
    model = tiny_models.write(case, tmp_path / name)
    convert(model, tmp_path / "f32.gguf", type="f32")
    monkeypatch.setattr("ggufround.tune.outputs.SLAB", 5 * tiny_models.EMBD)  # cuts heads, spans several reads
    draw = np.random.default_rng(1)
    with both(model, tmp_path / "f32.gguf") as ((tensor, rows), (their_tensor, their_rows), names):
        dropped = set(open_checkpoint(model).tensors) - names
        assert not [other for other in dropped if tiny_models.of_text(other, case)]
        for key in sorted(names):
            truth, found = tensor(key), their_tensor(key)
            assert found.shape == truth.shape, key
            # 1 + weight - 1 loses what is below float32's last bit of 1, a logarithm's exponential likewise
            lossy = (case.zero_norms and "norm" in key) or key.endswith("A_log")
            assert torch.allclose(found, truth, rtol=0, atol=6e-8 if lossy else 0), key
            if truth.dim() > 1:
                count = truth.numel() // truth.shape[-1]
                some = np.flatnonzero(draw.random(count) < 0.4)
                assert torch.allclose(their_rows(key, some), rows(key, some), rtol=0, atol=6e-8 if lossy else 0), key
                assert their_rows(key, some[:0]).shape == (0, truth.shape[-1])


def test_rows_beyond_the_vocabulary_are_zero(tmp_path: Path) -> None:
    case = tiny_models.CASES["gemma3"]
    name = "model.embed_tokens.weight"
    padded = replace(case, shapes={**case.shapes, name: (tiny_models.VOCAB + 10, tiny_models.EMBD)})
    model = tiny_models.write(padded, tmp_path / "padded")
    convert(model, tmp_path / "f32.gguf", type="f32")
    with both(model, tmp_path / "f32.gguf") as ((tensor, _), (their_tensor, their_rows), _):
        truth = tensor(name)
        truth[tiny_models.VOCAB :] = 0
        assert torch.equal(their_tensor(name), truth)
        assert torch.equal(their_rows(name, np.array([3, 319, 320, 329])), truth[[3, 319, 320, 329]])


def test_a_scale_in_a_tensor_of_its_own_is_part_of_the_weight(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "nvfp4.gguf", type="nvfp4")
    with both(llama, tmp_path / "nvfp4.gguf") as ((tensor, _), (their_tensor, _), names):
        for key in (n for n in names if "mlp" in n):
            truth = tensor(key)
            assert float((their_tensor(key) - truth).norm() / truth.norm()) < 0.12, key


REF = TensorRef("w", "F32", (12, 8), Path("x"), 0, 0)
VECTOR = TensorRef("b", "F32", (12,), Path("x"), 0, 0)
HEADS: Callable[..., Any] = partial(interleave_heads, head=6)
TURNED = in_columns(np.array([3, 0, 1, 2, 7, 6, 4, 5]))


@pytest.mark.parametrize(
    ("piece", "shape"),
    [
        (Piece(REF, 0, 12, 6, HEADS), (12, 8)),
        (Piece(REF, 0, 12, 1, add_one), (12, 8)),
        (Piece(REF, 0, 12, 4, lambda rows: rows.reshape(-1, 4, 8)[:, ::-1].reshape(rows.shape) - 5), (12, 8)),
        (Piece(REF, 0, 12, 1, TURNED.function, back=TURNED.back, columns=TURNED.columns), (12, 8)),
        (Piece(VECTOR, 0, 1, 1, partial(on_vector, HEADS)), (12,)),
        (Piece(VECTOR, 0, 1, 1, partial(on_vector, add_one)), (12,)),
    ],
)
def test_whatever_moves_rows_or_adds_a_constant_is_undone(piece: Piece, shape: tuple[int, ...]) -> None:
    truth = np.random.default_rng(2).integers(0, 99, piece.source.shape).astype(np.float32)
    assert piece.via is not None
    there = piece.via(truth.reshape(piece.source.rows, -1).copy())
    read, _ = output_weights([Output("o", shape, (piece,))], lambda name, first, count: there[first : first + count])
    assert np.array_equal(read(piece.source.name).numpy(), truth)


@pytest.mark.parametrize(
    "via",
    [lambda rows: rows * 2, lambda rows: rows[:, ::-1], lambda rows: np.zeros_like(rows), lambda rows: -rows],
    ids=["scaled", "columns", "lost", "negated"],
)
def test_what_does_more_is_refused(via: Any) -> None:
    with pytest.raises(UnsupportedError, match="cannot be read back"):
        output_weights([Output("o", (12, 8), (Piece(REF, 0, 12, 3, via),))], lambda name, first, count: np.zeros(0))


def test_a_tensor_that_no_output_holds_is_named() -> None:
    read, rows = output_weights([], lambda name, first, count: np.zeros(0))
    with pytest.raises(UnsupportedError, match=r"lm_head\.weight, which the model needs"):
        read("lm_head.weight")
    with pytest.raises(UnsupportedError, match=r"lm_head\.weight"):
        rows("lm_head.weight", np.arange(3))
