"""Vision-language models: the language model is tuned on text and quantised, what sees stays as it is."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_vision_models
from formats_loader import log_probs
from ggufround import AutoRoundMLLM
from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.reading import Reader
from ggufround.checkpoint.spec import TensorRef

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from ggufround.tune.skeleton import Skeleton  # noqa: E402
from ggufround.tune.weights import source_weights  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
IDS = np.random.default_rng(3).integers(3, 300, (2, 40))
SCRIPT = Path(__file__).parent / "formats_loader.py"
SHORT = {"scheme": "W4A16", "group_size": 32, "iters": 2, "nsamples": 4, "seqlen": 64, "threads": 1}


@pytest.fixture(scope="module", params=tiny_vision_models.NAMES)
def path(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision_models.write(request.param, tmp_path_factory.mktemp("sees") / request.param)


def streamed(folder: Path) -> Any:
    """Log-probabilities of the text model, block by block."""
    checkpoint = open_checkpoint(str(folder))
    with Reader(checkpoint) as reader, torch.no_grad():
        read, rows = source_weights(checkpoint, reader)
        skeleton = Skeleton(checkpoint)
        hidden = skeleton.embed(torch.from_numpy(IDS), rows)
        for i in range(skeleton.blocks):
            hidden = skeleton.run(i, skeleton.load(i, read), hidden)
            skeleton.unload(i)
        skeleton.load_head(read)
        assert not any("vis" in name for name in skeleton.rest_names())
        return log_probs(skeleton.logits(hidden, rows(skeleton.head_name(), np.arange(skeleton.vocab))).numpy())


def test_the_streamed_text_model_computes_what_the_whole_model_does(path: Path) -> None:
    network = transformers.AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        truth = log_probs(network(input_ids=torch.from_numpy(IDS)).logits.numpy())
    np.testing.assert_allclose(streamed(path), truth, rtol=0, atol=1e-5)


@pytest.mark.peer
@pytest.mark.slow
def test_readers_compute_with_the_tuned_weights_of_a_path_or_a_loaded_model(path: Path, tmp_path: Path) -> None:
    for package in ("auto_round", "compressed_tensors"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    _, by_path = AutoRoundMLLM(str(path), **SHORT).quantize_and_save(tmp_path / "a", "auto_round,llm_compressor")
    model = transformers.AutoModelForImageTextToText.from_pretrained(path, dtype=torch.bfloat16)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    _, loaded = AutoRoundMLLM(model, tokenizer, **SHORT).quantize_and_save(tmp_path / "b", "auto_round,llm_compressor")
    np.save(tmp_path / "ids.npy", IDS)
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    for k, (reader, atol) in enumerate((("auto-round", 0.03), ("compressed-tensors", 1e-4))):
        folders = [str(by_path[k]), str(loaded[k])]
        command = [sys.executable, str(SCRIPT), reader, str(tmp_path / "ids.npy"), *folders]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        for folder in folders:
            np.testing.assert_allclose(np.load(folder + ".npy"), streamed(Path(folder)), rtol=0, atol=atol)
    for folder in (*by_path, *loaded):
        assert_vision_untouched(path, folder)


def assert_vision_untouched(before: Path, after: Path) -> None:
    old, new = (open_checkpoint(str(folder)).tensors for folder in (before, after))
    seen = [name for name in old if "vis" in name]
    assert seen
    for name in seen:
        assert (old[name].shape, old[name].dtype) == (new[name].shape, new[name].dtype)
        assert stored(old[name]) == stored(new[name])


def stored(ref: TensorRef) -> bytes:
    with ref.path.open("rb") as file:
        file.seek(ref.offset)
        return file.read(ref.nbytes)
