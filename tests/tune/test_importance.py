"""Importance collected while blocks are streamed is what the whole model's own inputs have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from ggufround.arch.spec import Output
from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.reading import Reader
from ggufround.planning import Options
from ggufround.planning import build as plan
from ggufround.quants.squares import Squares

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from ggufround.tune import importance as collection  # noqa: E402
from ggufround.tune.importance import Destination, collecting, destinations  # noqa: E402
from ggufround.tune.skeleton import Place, Skeleton  # noqa: E402
from ggufround.tune.weights import source_weights  # noqa: E402
from tiny_cases import first  # noqa: E402
from tune.test_skeleton import whole_model  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
NAMES = sorted(case.name for case in first.CASES)  # for all others llama.cpp itself is asked, in test_imatrix.py
BATCH, LENGTH = 3, 40
EXPERTS = 4


def tokens() -> Any:
    return torch.from_numpy(np.random.default_rng(3).integers(0, tiny_models.VOCAB, (BATCH, LENGTH)))


def collected(path: Path, ids: Any) -> tuple[dict[str, Squares], tuple[Output, ...]]:
    """Of all blocks, in two batches."""
    checkpoint = open_checkpoint(path)
    outputs = plan(str(path), Options(("f16",))).outputs
    found: dict[str, Squares] = {}
    with Reader(checkpoint) as reader, torch.no_grad():
        read, rows = source_weights(checkpoint, reader)
        skeleton = Skeleton(checkpoint)
        parts = [skeleton.embed(part, rows) for part in (ids[:1], ids[1:])]
        for i in range(skeleton.blocks):
            module = skeleton.load(i, read)
            plain = [skeleton.run(i, module, part) for part in parts]
            with collecting(module, skeleton.places(i), destinations(outputs)) as of_block:
                parts = [skeleton.run(i, module, part) for part in parts]
            assert all(map(torch.equal, plain, parts))  # who looks on changes nothing
            found |= of_block
            skeleton.unload(i)
    return found, outputs


def expected(network: Any, ids: Any) -> dict[str, Squares]:
    """From hooks on the whole model, by parameter name; experts by brute force from the router's choices."""
    found: dict[str, Squares] = {}

    def note(name: str) -> Any:
        def hook(module: Any, args: Any) -> None:
            rows = args[0].reshape(-1, args[0].shape[-1]).double().numpy()
            found[name] = Squares((rows**2).sum(0)[None], np.array([len(rows)]))

        return hook

    def experts(name: str) -> Any:
        def hook(module: Any, args: Any) -> None:
            hidden, chosen, _ = args
            into, between = np.zeros((EXPERTS, hidden.shape[-1])), np.zeros((EXPERTS, tiny_models.FF))
            counts = np.zeros(EXPERTS, np.int64)
            for row, several in zip(hidden, chosen.tolist(), strict=True):
                for e in several:
                    gate, up = (module.gate_up_proj[e] @ row).chunk(2)
                    into[e] += row.double().numpy() ** 2
                    between[e] += (torch.nn.functional.silu(gate) * up).double().numpy() ** 2
                    counts[e] += 1
            found[f"{name}.gate_up_proj"] = Squares(into, counts)
            found[f"{name}.down_proj"] = Squares(between, counts)

        return hook

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear) or name.endswith("mlp.gate"):
            handles.append(module.register_forward_pre_hook(note(name)))
        elif name.endswith("mlp.experts"):
            handles.append(module.register_forward_pre_hook(experts(name)))
    with torch.no_grad():
        network(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


# GGUF name within its block -> transformers' module within its block
MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_up_proj",
    "ffn_up_exps": "mlp.experts.gate_up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}


def assert_near(found: Squares, truth: Squares) -> None:
    np.testing.assert_array_equal(found.counts, truth.counts)
    assert found.sums.shape == truth.sums.shape
    np.testing.assert_allclose(found.sums, truth.sums, rtol=2e-5, atol=1e-6 * truth.sums.max())


@pytest.mark.parametrize("name", NAMES)
def test_streamed_sums_are_those_of_the_whole_model(name: str, folder: Path) -> None:
    path = tiny_models.written(folder, name)
    found, outputs = collected(path, tokens())
    matrices = {o.name: o.shape for o in outputs if o.name.startswith("blk.") and len(o.shape) > 1}
    assert found.keys() == matrices.keys()
    truth = expected(whole_model(tiny_models.CASES[name], path), tokens())
    for key, seen in found.items():
        _, block, short, _ = key.split(".")
        module = MODULES[short]
        if name.startswith("phi3"):
            module = {"ffn_up": "mlp.gate_up_proj"}.get(short, module)
        assert seen.sums.dtype == np.float64
        assert seen.counts.dtype == np.int64
        assert seen.sums.shape == (*matrices[key][:-2], matrices[key][-1])[-2:] or len(seen.sums) == 1
        assert_near(seen, truth[f"model.layers.{block}.{module}"])


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe-stacked"])
def test_small_slices_give_the_same_sums(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_models.written(folder, name)
    whole, _ = collected(path, tokens())
    monkeypatch.setattr(collection, "SLICE", 2 * tiny_models.FF * 3)  # three rows at a time
    sliced, _ = collected(path, tokens())
    for key, seen in whole.items():
        assert_near(sliced[key], seen)


def test_an_expert_that_no_token_reached_has_a_count_of_zero(folder: Path) -> None:
    found, _ = collected(tiny_models.written(folder, "qwen3moe"), tokens()[:2, :1])
    experts = {key: seen for key, seen in found.items() if "_exps" in key}
    for key, seen in experts.items():
        assert seen.counts.sum() == 2 * 2
        assert (seen.counts == 0).any(), key
        assert not seen.sums[seen.counts == 0].any()
        assert seen.sums[seen.counts > 0].any(1).all()
        np.testing.assert_array_equal(seen.counts, experts[key.replace("up", "down").replace("gate", "down")].counts)


def test_experts_that_are_modules_of_their_own_are_matrices_of_a_stack(folder: Path) -> None:
    """As older models hold them: one is never called."""
    block = torch.nn.ModuleDict({"experts": torch.nn.ModuleList(torch.nn.Linear(8, 6, bias=False) for _ in range(3))})
    places = {f"experts.{e}.weight": (Place(f"experts.{e}.weight", 0, f"e{e}", np.arange(6)),) for e in range(3)}
    to = {f"e{e}": (Destination("blk.0.ffn_up_exps.weight", 3, e, 0, 6),) for e in range(3)}
    inputs = torch.from_numpy(np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32))
    with collecting(block, places, to) as found:
        for e, part in ((2, inputs[:4]), (0, inputs[3:]), (2, inputs[:1])):
            block["experts"][e](part)
        assert found == {}
    seen = found["blk.0.ffn_up_exps.weight"]
    np.testing.assert_array_equal(seen.counts, [2, 0, 5])
    squares = inputs.double().numpy() ** 2
    truth = np.stack([squares[3:].sum(0), np.zeros(8), squares[:4].sum(0) + squares[0]])
    np.testing.assert_allclose(seen.sums, truth, rtol=1e-6)


def test_an_input_that_is_changed_in_place_is_looked_at_again() -> None:
    block = torch.nn.ModuleDict({name: torch.nn.Linear(4, 2, bias=False) for name in ("a", "b", "c")})
    places = {f"{name}.weight": (Place(f"{name}.weight", 0, name, np.arange(2)),) for name in ("a", "b", "c")}
    to = {name: (Destination(name, 1, 0, 0, 2),) for name in ("a", "b", "c")}
    for context in (torch.no_grad(), torch.inference_mode()):
        with context, collecting(block, places, to) as found:
            inputs = torch.ones(3, 4)
            block["a"](inputs)
            block["b"](inputs)
            inputs *= 2
            block["c"](inputs)
        assert [found[name].sums[0, 0] for name in ("a", "b", "c")] == [3, 3, 12]


def test_nothing_of_the_hooks_is_left_even_after_an_error(folder: Path) -> None:
    block = torch.nn.Sequential(torch.nn.Linear(4, 4))
    places = {"0.weight": (Place("0.weight", 0, "a", np.arange(4)),)}
    with pytest.raises(RuntimeError), collecting(block, places, {}):
        block(torch.ones(2, 5))
    assert not block[0]._forward_pre_hooks


def test_rows_that_change_order_and_rows_that_go_nowhere_find_their_matrix() -> None:
    """A fused parameter [3, 4, columns] whose rows come from two tensors, the second from back to front."""
    places = {
        "stack": (
            Place("stack", 0, "first", np.array([0, 2, 1, 3, 4])),
            Place("stack", 5, "second", np.arange(7)[::-1].copy()),
        )
    }
    to = {
        "first": (Destination("up", 2, 0, 0, 4), Destination("up", 2, 1, 4, 1)),
        "second": (Destination("down", 1, 0, 0, 3),),  # its rows from 3 on are left out
    }
    pairs = {(n, d) for place in places["stack"] for n, d in collection._pairs(place, 4, to[place.source])}
    assert pairs == {(0, to["first"][0]), (1, to["first"][1]), (2, to["second"][0])}
