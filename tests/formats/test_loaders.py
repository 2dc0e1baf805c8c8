"""Checkpoints in the readers of others: what they compute is what the model computes with the weights that we wrote."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_models
from formats_loader import log_probs
from ggufround.conversion import carry_out, lay_out_all, plan_all
from ggufround.formats.checkpoint import CheckpointLayout, global_factor, reading, records
from ggufround.layer_planning import CheckpointOptions
from ggufround.preflight import Run
from ggufround.quants.schemes import Scheme, scheme

pytest.importorskip("torch")
pytestmark = [pytest.mark.peer, pytest.mark.torch, pytest.mark.slow]

SCRIPT = Path(__file__).parent.parent / "formats_loader.py"
PACKAGES = {
    "transformers": "accelerate", "auto-round": "auto_round", "auto-round, GPTQ": "auto_round", "mlx-lm": "mlx_lm",
    "compressed-tensors": "compressed_tensors", "compressed-tensors, dequantize": "compressed_tensors",
    "gptqmodel": "gptqmodel",
}  # fmt: skip
EXACT, HALF, COARSE = 1e-4, 0.03, 0.06  # computed in float32; in float16; or with scales as bfloat16
MIXED = (("q_proj", scheme("W8A16G32")), (r"layers\.1\.mlp\.down_proj", None))
Case = tuple[str, str, str, float, tuple[tuple[str, Scheme | None], ...]]
KEPT = ((r"layers\.1\.mlp\.down_proj", None),)

HEAD = (("lm_head", scheme("W8A16G32")),)
CASES: tuple[Case, ...] = (
    ("auto_round", "W4A16G32", "auto-round", HALF, HEAD), ("auto_gptq", "W4A16G32", "auto-round, GPTQ", HALF, HEAD),
    ("auto_gptq", "W4A16G32", "gptqmodel", EXACT, HEAD), ("mlx", "W4A16G32", "mlx-lm", EXACT, HEAD),
    ("llm_compressor", "W4A16G32", "compressed-tensors", EXACT, HEAD),
    ("llm_compressor", "NVFP4A16", "compressed-tensors", COARSE, HEAD),
    *(("auto_round", of, "auto-round", HALF, ()) for of in ("W4A16G32", "W2A16G32", "W3A16G32", "W8A16G32")),
    *(("auto_round", of, "auto-round", HALF, ()) for of in ("W4A16G32-asym", "W2A16G32-asym")),
    *(("auto_round", of, "auto-round", EXACT, ()) for of in ("MXFP4", "MXFP8", "NVFP4")),
    ("auto_round", "FP8_STATIC", "auto-round", COARSE, ()),
    ("auto_round", "FP8_BLOCK", "transformers", EXACT, ()),
    ("auto_round", "W4A16G32", "auto-round", HALF, MIXED),
    *(("auto_gptq", of, "auto-round, GPTQ", HALF, ()) for of in ("W4A16G32", "W3A16G32", "W2A16G32", "W8A16G32")),
    ("auto_gptq", "W4A16G32", "auto-round, GPTQ", HALF, MIXED),
    *(("auto_gptq", of, "gptqmodel", EXACT, ()) for of in ("W4A16G32", "W3A16G32", "W8A16G32", "W4A16G32-asym")),
    ("auto_gptq", "W4A16G32", "gptqmodel", EXACT, MIXED),
    *(("auto_awq", of, "gptqmodel", HALF, layers) for of in ("W4A16G32", "W4A16G32-asym") for layers in ((), KEPT)),
    ("auto_awq", "W4A16G32", "mlx-lm", EXACT, ()), ("auto_awq", "W4A16G32-asym", "mlx-lm", HALF, ()),
    *(("mlx", f"W{bits}A16G32", "mlx-lm", EXACT, ()) for bits in (2, 3, 4, 5, 6, 8)),
    ("mlx", "W4A16G32-asym", "mlx-lm", HALF, ()), ("mlx", "W4A16G32", "mlx-lm", EXACT, MIXED),
    *(("llm_compressor", f"W{bits}A16G32", "compressed-tensors", EXACT, ()) for bits in (2, 3, 4, 6, 8)),
    *(("llm_compressor", of, "compressed-tensors", EXACT, ()) for of in ("MXFP4", "MXFP4A16", "MXFP8")),
    *(("llm_compressor", of, "compressed-tensors", COARSE, ()) for of in ("NVFP4", "NVFP4A16")),
    *(("llm_compressor", of, "compressed-tensors", EXACT, ()) for of in ("FP8_STATIC", "FP8_BLOCK")),
    ("llm_compressor", "W4A16G32-asym", "compressed-tensors, dequantize", HALF, ()),
    ("llm_compressor", "W4A16G32", "compressed-tensors", EXACT, MIXED),
    ("llm_compressor", "MXFP4", "compressed-tensors", EXACT, (("down_proj", scheme("MXFP8")),)),
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose layers 128 divides, in rows and columns."""
    return tiny_models.write(tiny_models.ALL["wide"], tmp_path_factory.mktemp("wide") / "llama")


def expected(model: Path, layout: CheckpointLayout, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """The model with the weights that the layout's files hold, through our own reader."""
    import torch
    from transformers import AutoModelForCausalLM

    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    parameters = dict(network.named_parameters())
    with reading(layout) as read, torch.no_grad():
        for name, place in layout.places.items():
            if place.type.codec is not None:
                rows = np.frombuffer(records(place, read, 0, place.rows), np.uint8).reshape(place.rows, -1)
                weights = np.empty(place.shape, np.float32)
                place.type.unpack(rows, weights)
                parameters[name].copy_(torch.from_numpy(weights * global_factor(place, read)))
        return log_probs(network(torch.from_numpy(ids)).logits.numpy())


class Read(NamedTuple):
    theirs: NDArray[np.float32]
    ours: NDArray[np.float32]


@pytest.fixture(scope="module")
def read(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[Case, Read]]:
    """All cases of a reader, in one process of it: starting it takes longer than all it does."""

    @cache
    def cases_of(reader: str) -> dict[Case, Read]:
        ids = np.random.default_rng(0).integers(3, 250, (2, 16))
        folder = tmp_path_factory.mktemp("read")
        np.save(folder / "ids.npy", ids)
        cases = [case for case in CASES if case[2] == reader]
        layouts = [written(model, case, folder / f"{k}-{case[0]}") for k, case in enumerate(cases)]
        places = [str(layout.folder) for layout in layouts]
        command = [sys.executable, str(SCRIPT), reader, str(folder / "ids.npy"), *places]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-3000:]
        return {
            case: Read(np.load(f"{place}.npy"), expected(model, layout, ids))
            for case, place, layout in zip(cases, places, layouts, strict=True)
        }

    return cases_of


def written(model: Path, case: Case, out: Path) -> CheckpointLayout:
    options, run = (
        CheckpointOptions(scheme(case[1]), (case[0],), "opt-rtn", case[4], quant_lm_head=case[4] == HEAD),
        Run(threads=1),
    )
    plan, tuning = plan_all(model, options, run=run)
    (layout,) = layouts = lay_out_all(plan, out)
    carry_out(plan, layouts, run, tuning=tuning)
    assert isinstance(layout, CheckpointLayout)
    return layout


@pytest.mark.parametrize(
    "case",
    CASES,
    ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}{'-head' if case[4] == HEAD else '-mixed' * bool(case[4])}",
)
def test_a_reader_computes_with_the_weights_that_were_written(
    case: Case, read: Callable[[str], dict[Case, Read]]
) -> None:
    *_, reader, tolerance, _ = case
    if importlib.util.find_spec(PACKAGES[reader]) is None:
        pytest.skip(f"{PACKAGES[reader]} is not installed")
    found = read(reader)[case]
    np.testing.assert_allclose(found.theirs, found.ours, rtol=0, atol=tolerance)
