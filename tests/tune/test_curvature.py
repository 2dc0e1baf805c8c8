"""The streamed pass in reverse gives the gradients of the whole model, and labels come from the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.reading import Reader

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from ggufround.tune import curvature as module  # noqa: E402
from ggufround.tune.curvature import edges, measure  # noqa: E402
from ggufround.tune.skeleton import Skeleton  # noqa: E402
from ggufround.tune.weights import source_weights  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
IDS = np.random.default_rng(0).integers(0, tiny_models.VOCAB, (3, 16)).astype(np.int32)


def opened(folder: Path, case: str = "llama") -> tuple[Skeleton, Any, Any]:
    checkpoint = open_checkpoint(tiny_models.write(tiny_models.CASES[case], folder))
    return (Skeleton(checkpoint), *source_weights(checkpoint, Reader(checkpoint)))


def measured(place: Path, case: str = "llama", **changes: Any) -> module.Curvature:
    skeleton, read, rows = opened(place, case)
    options = {"amp": False, "seed": 1, "folder": None, "tick": lambda done: None} | changes
    return measure(skeleton, read, rows, IDS, **options)


@pytest.mark.parametrize("case", ["llama", "gemma2"])
def test_the_reverse_pass_equals_the_whole_models_gradients(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skeleton, read, rows = opened(tmp_path / "whole", case)
    target = torch.randn(1, 1, skeleton.hidden, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(module, "_head_slope", lambda s, r, hidden, amp, generator: hidden - target)
    found = measured(tmp_path / "again", case)

    blocks = [skeleton.load(i, read) for i in range(skeleton.blocks)]
    hidden = skeleton.embed(torch.from_numpy(IDS.astype(np.int64)), rows)
    outs = []
    for i, block in enumerate(blocks):
        hidden = skeleton.run(i, block, hidden.requires_grad_(True) if not i else hidden)
        hidden.retain_grad()
        outs.append(hidden)
    ((hidden - target) ** 2 / 2).sum().backward()
    for i, out in enumerate(outs):
        slopes = out.grad.reshape(-1, skeleton.hidden)
        assert torch.allclose(found.directions.get([i])[0], slopes.T @ slopes, rtol=1e-3, atol=1e-5)
        squares = out.grad.square().sum((0, 2)).numpy()
        assert found.weights[i, 0] == pytest.approx(max(1, squares[0] / squares.mean()), rel=1e-3)
        assert found.weights[i, 1] == pytest.approx(squares[1] / squares.mean(), rel=1e-3)


def test_an_attention_sink_is_not_given_up_for_its_small_gradients() -> None:
    squares = np.array([[1e-6, 4.0, 1.0, 3.0], [8.0, 4.0, 2.0, 2.0]])
    found = module._by_class(squares)
    np.testing.assert_allclose(found, [[1, 2, 1, 1], [2, 1, 0.5, 0.5]], rtol=1e-5)


def test_labels_are_drawn_from_the_model_itself(tmp_path: Path) -> None:
    """Then gradients are zero on average, and their mean square is the Fisher matrix's trace."""
    skeleton, read, rows = opened(tmp_path)
    skeleton.load_head(read)
    hidden = torch.randn(1, 400, skeleton.hidden, generator=torch.Generator().manual_seed(2))[:, :1].expand(1, 400, -1)
    generator = torch.Generator().manual_seed(3)
    slopes = module._head_slope(skeleton, rows, hidden.contiguous(), False, generator)[0]
    state = hidden[:, :1].clone().requires_grad_(True)
    head = rows(skeleton.head_name(), np.arange(skeleton.vocab))
    logs = torch.log_softmax(skeleton.logits(state, head)[0, 0], -1)
    each = torch.stack([torch.autograd.grad(-logs[k], state, retain_graph=True)[0][0, 0] for k in range(len(logs))])
    chances = logs.detach().exp()
    exact = float((chances * each.square().sum(1)).sum())
    assert float(slopes.square().sum(1).mean()) == pytest.approx(exact, rel=0.15)
    assert float(slopes.mean(0).square().sum()) < 3 * exact / 400
    near = torch.cdist(slopes, each).min(1).values  # every draw is the gradient of some label
    assert float(near.max()) < 1e-3 * float(each.norm(dim=1).max())


def test_slabs_of_the_vocabulary_change_nothing_but_the_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skeleton, read, rows = opened(tmp_path)
    skeleton.load_head(read)
    hidden = torch.randn(1, 200, skeleton.hidden, generator=torch.Generator().manual_seed(2))
    totals = []
    for slab in (8192, 100):
        monkeypatch.setattr(module, "SLAB", slab)
        slope = module._head_slope(skeleton, rows, hidden, False, torch.Generator().manual_seed(3))
        totals.append(float(slope.square().sum()))
    assert totals[0] == pytest.approx(totals[1], rel=0.2)


def test_it_is_the_same_for_the_same_seed_and_wherever_states_lie(tmp_path: Path) -> None:
    first, second = measured(tmp_path / "a"), measured(tmp_path / "b", folder=tmp_path)
    other = measured(tmp_path / "c", seed=2)
    assert np.array_equal(first.weights, second.weights)
    assert torch.equal(first.directions.get([0]), second.directions.get([0]))
    assert not np.array_equal(first.weights, other.weights)


def test_positions_are_taken_together_in_classes_that_double() -> None:
    assert edges(10) == [0, 1, 2, 4, 8, 10]
    assert edges(1) == [0, 1]
