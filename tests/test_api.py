"""AutoRound's Python interface: a path is streamed, a loaded model gets its weights, formats are repacked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from ggufround import AutoRound, AutoRoundMLLM
from ggufround.errors import UnsupportedError, UsageError

TEXT = "The tide had gone out, and the boats lay on their sides. " * 60


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write(tiny_models.ALL["wide"], tmp_path_factory.mktemp("api") / "wide")


def loaded(path: Path, tokenizer_of: Path | None = None) -> tuple[Any, Any]:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str((tokenizer_of or path) / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), tokenizer


def test_the_first_example_writes_a_folder_named_as_auto_round_names_it(wide: Path, tmp_path: Path) -> None:
    model, folders = AutoRound(str(wide), scheme="W4A16", iters=0).quantize_and_save(tmp_path, format="auto_round")
    assert model is None
    assert folders == [tmp_path / "wide-w4g128"]
    config = json.loads((folders[0] / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["bits"], config["group_size"]) == ("auto-round", 4, 128)


def test_what_was_quantised_is_saved_in_any_format_without_rounding_again(wide: Path, tmp_path: Path) -> None:
    job = AutoRound(wide, scheme="W4A16", group_size=32, iters=0, layer_config={"q_proj": {"bits": 8}})
    model, config = job.quantize()
    assert model is None
    assert config["model.layers.0.self_attn.q_proj"] == {"bits": 8, "group_size": 32, "sym": True, "data_type": "int"}
    saved = job.save_quantized(tmp_path / "a", "auto_round,mlx,auto_gptq")
    _, at_once = AutoRound(
        wide, scheme="W4A16", group_size=32, iters=0, layer_config={"q_proj": {"bits": 8}}
    ).quantize_and_save(tmp_path / "b", "auto_round,mlx,auto_gptq")
    assert [folder.name for folder in saved] == [f"wide-w4g32-{name}" for name in ("auto_round", "mlx", "auto_gptq")]
    for ours, theirs in zip(saved, at_once, strict=True):
        for name in ("model.safetensors", "config.json"):
            assert digest(ours / name) == digest(theirs / name), (ours, name)


@pytest.mark.torch
def test_a_loaded_model_gets_the_quantised_weights(wide: Path) -> None:
    model, tokenizer = loaded(wide)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    quantised, _ = AutoRound(model, tokenizer, bits=2, group_size=32, iters=0).quantize()
    assert quantised is model
    for name, parameter in model.named_parameters():
        same = bool((parameter == before[name]).all())
        assert same == (not name.endswith("_proj.weight")), name
        if not same:
            groups = parameter.detach().numpy().reshape(-1, 32)
            assert max(len(np.unique(group)) for group in groups) <= 4, name


@pytest.mark.torch
def test_a_list_of_texts_is_calibration(wide: Path, tmp_path: Path) -> None:
    job = AutoRound(wide, iters=2, nsamples=8, seqlen=32, batch_size=2, dataset=[TEXT, TEXT[7:]], threads=1)
    job.quantize_and_save(tmp_path, "llm_compressor")
    assert job.report is not None
    found = json.loads((tmp_path / "wide-w4g128" / "ggufround.json").read_text())
    assert found["ggufround.calibration.name"] == "dataset.jsonl"
    assert found["ggufround.tuning.iterations"] == 2


@pytest.mark.torch
def test_a_vision_language_model_is_quantised_in_its_language_tower(wide: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded(wide)
    given, folders = AutoRoundMLLM(model, tokenizer, iters=0).quantize_and_save(tmp_path)
    assert given is model
    assert (folders[0] / "model.safetensors").exists()


def test_a_gguf_scheme_and_a_gguf_format_write_the_same_file(llama: Path, tmp_path: Path) -> None:
    _, (one,) = AutoRound(llama, scheme="GGUF:Q4_0", iters=0).quantize_and_save(tmp_path / "a")
    _, (other,) = AutoRound(llama, iters=0).quantize_and_save(tmp_path / "b", format="gguf:q4_0")
    assert one.name == other.name == "tiny-llama-q4_0.gguf"
    assert digest(one) == digest(other)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"group_sise": 32}, TypeError, "no argument 'group_sise'; did you mean 'group_size'"),
        ({"scheme": "W9A16"}, UsageError, "unknown scheme 'W9A16'"),
        ({"scheme": "MXFP4", "bits": 3}, UsageError, "has bits and groups of its own"),
        ({"scheme": "GGUF:Q4_0", "sym": False}, UsageError, "its own bits and groups"),
        ({"layer_config": {"q_proj": {"bit": 8}}}, UsageError, "no key 'bit'"),
        ({"iters": -1}, UsageError, "iters must be 0 or more"),
    ],
)
def test_bad_arguments_are_refused_when_they_are_given(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AutoRound("some/model", **given)


@pytest.mark.torch
def test_a_loaded_model_without_its_tokenizer_is_refused(wide: Path, tmp_path: Path) -> None:
    model, _ = loaded(wide)
    with pytest.raises(UsageError, match="needs its tokenizer"):
        AutoRound(model, iters=0).quantize_and_save(tmp_path)


def test_saving_before_quantising_is_refused(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="call quantize first"):
        AutoRound(wide, iters=0).save_quantized(tmp_path)


@pytest.mark.torch
def test_fused_experts_of_a_loaded_model_are_refused_with_a_way_out(folder: Path, wide: Path) -> None:
    model, tokenizer = loaded(tiny_models.written(folder, "mixtral"), wide)
    with pytest.raises(UnsupportedError, match="use quantize_and_save"):
        AutoRound(model, tokenizer, group_size=32, iters=0).quantize()
