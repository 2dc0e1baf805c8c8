"""Tuned rounding and static activations in checkpoints: the loss falls, files are sound, any stop is survived."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from checkpoints import contents, expected, make, options, tensors, weights_of, widened
from ggufround.checkpoint import open_checkpoint
from ggufround.errors import UsageError
from ggufround.layer_planning import CheckpointOptions
from ggufround.quants.schemes import scheme

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from ggufround.tune.calibration import load_calibration  # noqa: E402
from ggufround.tune.skeleton import Skeleton  # noqa: E402
from tune.tuned_runs import LAYERS, RECIPE, SHORT, TEXTS, Stop, log_of, stop_at  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("in_float32")]
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")


def tuned(model: Path, out: Path, chosen: CheckpointOptions, **more: Any) -> Any:
    return make(model, out, chosen, calibration=TEXTS, **more)


def without_log(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if not name.endswith(".jsonl")}


@pytest.mark.parametrize(
    ("names", "of"),
    [("auto_round,llm_compressor", "W4A16G32"), ("auto_awq,mlx", "W4A16G32-asym"), ("auto_round", "MXFP4")],
)
def test_a_tuned_checkpoint_is_nearer_to_the_model_and_the_same_in_two_formats(
    names: str, of: str, folder: Path, tmp_path: Path
) -> None:
    model = tiny_models.written(folder, "llama")
    tuned(model, tmp_path / "{format}", options(names, of, RECIPE))
    make(model, tmp_path / "plain-{format}", options(names, of, "opt-rtn"))
    first, *others = names.split(",")
    lines = log_of(tmp_path / first / "model.safetensors")
    assert [line["block"] for line in lines] == [f"blk.{i}" for i in range(LAYERS)]
    assert all(line["after"] < 0.95 * line["before"] for line in lines)
    assert all(line["kept"] for line in lines)
    plain, found = (tensors(tmp_path / f"{prefix}{first}") for prefix in ("plain-", ""))
    assert {n: (x.dtype, x.shape) for n, x in plain.items()} == {n: (x.dtype, x.shape) for n, x in found.items()}
    assert {n for n in found if n.endswith("norm.weight") and (found[n] != plain[n]).any()} == set()
    for module in MODULES:
        weights = weights_of(first, tmp_path / first, module)
        assert weights is not None
        assert (weights != weights_of(first, tmp_path / f"plain-{first}", module)).any()
        for other in others:
            same = weights_of(other, tmp_path / other, module)
            assert same is not None
            np.testing.assert_allclose(same, weights, atol=2.0**-10 * np.abs(weights).max())


@pytest.mark.usefixtures("small_slabs")
@pytest.mark.parametrize(("names", "of"), [("auto_gptq,mlx", "W4A16G32-asym"), ("llm_compressor", "NVFP4")])
def test_a_tuned_run_stopped_at_random_moments_ends_in_the_same_bytes(
    names: str, of: str, folder: Path, tmp_path: Path
) -> None:
    model, chosen, calls = tiny_models.written(folder, "llama"), options(names, of, SHORT), []
    tuned(model, tmp_path / "whole-{format}", chosen, progress=lambda *a: calls.append(a))
    for call in random.Random(0).sample(range(len(calls)), 3):
        with pytest.raises(Stop):
            tuned(model, tmp_path / "x-{format}", chosen, progress=stop_at(call))
        assert not list(tmp_path.glob("x-*/*.safetensors"))
        assert tuned(model, tmp_path / "x-{format}", chosen).resumed > 0
        for name in names.split(","):
            assert without_log(tmp_path / f"x-{name}") == without_log(tmp_path / f"whole-{name}")
            shutil.rmtree(tmp_path / f"x-{name}")


def test_a_calibration_text_weighs_the_search(folder: Path, tmp_path: Path) -> None:
    model = tiny_models.written(folder, "llama")
    make(model, tmp_path / "plain", options("llm_compressor", "W2A16G32", "opt-rtn"))
    make(model, tmp_path / "weighted", options("llm_compressor", "W2A16G32", "opt-rtn"), calibration=TEXTS)
    for module in MODULES:
        plain, weighted = (weights_of("llm_compressor", tmp_path / n, module) for n in ("plain", "weighted"))
        assert plain is not None
        assert weighted is not None
        assert 0.01 < (plain != weighted).mean() < 0.99
    assert not (tmp_path / "weighted" / "model.safetensors.tuning.jsonl").exists()


def largest_inputs(model: Path) -> dict[str, float]:
    """Of each layer, by running the model as transformers has it on the same text."""
    checkpoint = open_checkpoint(str(model))
    texts = load_calibration(TEXTS, checkpoint, Skeleton(checkpoint).vocab)
    whole = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found: dict[str, float] = {}

    def hook(name: str) -> Any:
        def look(_module: Any, args: Any) -> None:
            found[name] = max(found.get(name, 0.0), float(args[0].abs().max()))

        return look

    for name, module in whole.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(hook(name))
    with torch.no_grad():
        whole(torch.from_numpy(texts.ids.astype(np.int64)))
    return found


@pytest.mark.parametrize(
    ("name", "of", "suffix"),
    [
        ("llm_compressor", "NVFP4", "input_global_scale"),
        ("auto_round", "NVFP4", "input_global_scale"),
        ("auto_round", "FP8_STATIC", "input_scale"),
        ("llm_compressor", "FP8_STATIC", "input_scale"),
    ],
)
def test_static_activations_get_the_scale_of_their_largest_magnitude(
    name: str, of: str, suffix: str, folder: Path, tmp_path: Path
) -> None:
    model = tiny_models.written(folder, "qwen2")
    make(model, tmp_path / "x", options(name, of), calibration=TEXTS)
    found, source = tensors(tmp_path / "x"), {n: widened(x) for n, x in tensors(model).items()}
    peaks = largest_inputs(model)
    stored = {n.removesuffix(f".{suffix}"): float(x[0]) for n, x in found.items() if n.endswith(suffix)}
    assert set(stored) == {n for n in peaks if n != "lm_head"}
    for module, value in stored.items():
        peak = 2688 / value if of == "NVFP4" else 448 * value
        np.testing.assert_allclose(peak, peaks[module], rtol=1e-3, err_msg=module)
        weights, right = weights_of(name, tmp_path / "x", module), expected(source, module, scheme(of))
        assert weights is not None
        np.testing.assert_allclose(weights, right, atol=1e-6 * np.abs(right).max())


@pytest.mark.parametrize(("of", "suffix"), [("NVFP4", "input_global_scale"), ("FP8_STATIC", "input_scale")])
def test_an_expert_that_no_token_reached_gets_the_scale_of_its_kind(of: str, suffix: str, tmp_path: Path) -> None:
    case = tiny_models.CASES["qwen3moe"]
    shapes = {n: s for n, s in case.shapes.items() if ".mlp." not in n}
    for i in range(LAYERS):
        names = ("gate_proj", "up_proj", "down_proj")
        shapes |= dict(tiny_models.experts(f"model.layers.{i}.mlp.", *names, count=16))
    config = case.config | {"num_experts": 16, "num_experts_per_tok": 1}
    model = tiny_models.write(replace(case, shapes=shapes, config=config), tmp_path / "model")
    texts = replace(TEXTS, samples=1, seqlen=16, holdout=0)
    report = make(model, tmp_path / "x", options("llm_compressor", of), calibration=texts)
    assert any("no token reached" in note for note in report.notes)
    found = {n: float(x[0]) for n, x in tensors(tmp_path / "x").items() if n.endswith(suffix)}
    assert len(found) == LAYERS * (4 + 16 * 3)
    assert all(0 < value < np.inf for value in found.values())
    extreme = min if of == "NVFP4" else max
    for i in range(LAYERS):
        of_kind = [found[f"model.layers.{i}.mlp.experts.{e}.up_proj.{suffix}"] for e in range(16)]
        assert of_kind.count(extreme(of_kind)) > 1


def test_a_head_with_static_activations_is_refused_before_any_text_is_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the inputs of lm_head are not measured"):
        make(tiny_models.written(folder, "qwen2"), tmp_path / "x", options("llm_compressor", "NVFP4", head=True))
    assert list(tmp_path.iterdir()) == []
