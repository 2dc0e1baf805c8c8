"""--mmproj: two files with the promises of one, and refusals before a weight is read."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from ggufround import convert
from ggufround.errors import InputError, UnsupportedError, UsageError, WeightError
from ggufround.gguf_read import read_gguf
from ggufround.planning import Options
from ggufround.preflight import Run as Threads

LLAVA = tiny_models.CASES["llava"]


def made(folder: Path, case: tiny_models.Tiny = LLAVA, **config: Any) -> Path:
    """The case's checkpoint, with other keys in its config."""
    return tiny_models.write(replace(case, config=case.config | config), folder / "model")


def without(case: tiny_models.Tiny, *parts: str) -> tiny_models.Tiny:
    """The case without the tensors whose names hold one of `parts`."""
    kept = {name: shape for name, shape in case.shapes.items() if not any(part in name for part in parts)}
    return replace(case, shapes=kept)


def write(model: Path, **further: Any) -> Any:
    return convert(model, model.parent / "out.gguf", type="q8_0", mmproj=model.parent / "mmproj.gguf", **further)


def untouched(model: Path) -> bool:
    return [path for path in model.parent.iterdir() if path != model] == []


def test_both_files_come_from_one_checkpoint(tmp_path: Path) -> None:
    report = write(made(tmp_path))
    assert [path.name for path in report.files] == ["out.gguf", "mmproj.gguf"]
    text, vision = (read_gguf(path) for path in report.files)
    assert not {name for name in text.tensors if name.startswith(("v.", "mm."))}
    assert all(name.startswith(("v.", "mm.")) for name in vision.tensors)
    said = {key: field.value for key, field in vision.metadata.items()}
    assert (said["general.architecture"], said["general.type"], said["general.file_type"]) == ("clip", "mmproj", 1)
    assert said["clip.vision.feature_layer"] == [2]
    assert len(said["ggufround.data_sha256"].strip("0")) > 0
    assert not [key for key in said if key.startswith("tokenizer.")]
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob("*.journal"))


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "q8_0"])
def test_matrices_get_the_type_and_convolutions_stay_floats(kind: str, tmp_path: Path) -> None:
    write(made(tmp_path), mmproj_type=kind)
    tensors = read_gguf(tmp_path / "mmproj.gguf").tensors
    assert tensors["v.blk.0.attn_q.weight"].type == tensors["mm.2.weight"].type == kind.upper()
    assert tensors["v.patch_embd.weight"].type == ("F16" if kind == "f16" else "F32")
    assert {t.type for n, t in tensors.items() if n.endswith(("bias", "ln1.weight", "class_embd"))} == {"F32"}
    assert tensors["v.position_embd.weight"].type == "F32"


def test_a_missing_vision_tensor_is_named_before_anything_is_written(tmp_path: Path) -> None:
    model = made(tmp_path, without(LLAVA, "layers.1.mlp.fc2.bias"))
    with pytest.raises(InputError, match=r"lacks 1 tensors that clip with 3 layers needs: .*layers\.1\.mlp\.fc2\.bias"):
        write(model)
    assert untouched(model)


def test_a_checkpoint_without_its_vision_part_is_refused(tmp_path: Path) -> None:
    model = made(tmp_path, without(LLAVA, "vision_tower", "multi_modal"))
    with pytest.raises(InputError, match="lacks 5. tensors that clip"):
        write(model)
    assert untouched(model)


def test_a_model_without_vision_is_refused(tmp_path: Path) -> None:
    model = made(tmp_path, tiny_models.CASES["llama"])
    with pytest.raises(UnsupportedError, match="LlamaForCausalLM has no vision part; leave --mmproj out"):
        write(model)
    assert untouched(model)


def test_an_unknown_tower_is_refused(tmp_path: Path) -> None:
    vision = LLAVA.config["vision_config"] | {"model_type": "other_tower"}
    with pytest.raises(UnsupportedError, match="vision part of 'LlavaForConditionalGeneration' is not known"):
        write(made(tmp_path, vision_config=vision))


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"crop_size": {"height": 56, "width": 56}}, r"crop_size is 56, but the weights are made for 28"),
        ({"size": {"shortest_edge": 14}}, "size is 14, but the weights are made for 28"),
        ({"patch_size": 14}, "patch_size is 14, but the weights are made for 7"),
        ({"image_mean": [0.5]}, r"needs image_mean, three numbers"),
        ({"image_std": None}, r"needs image_std, three numbers"),
    ],
)
def test_a_processor_for_other_weights_is_refused(processor: dict[str, Any], message: str, tmp_path: Path) -> None:
    said = json.loads(LLAVA.files["preprocessor_config.json"]) | processor
    model = made(tmp_path, replace(LLAVA, files={"preprocessor_config.json": json.dumps(said)}))
    with pytest.raises(InputError, match=message):
        write(model)
    assert untouched(model)


def test_a_model_without_a_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--mmproj needs image_mean, .* which is absent"):
        write(made(tmp_path, replace(LLAVA, files={})))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_size", 56, "position_embedding.weight has shape"),
        ("patch_size", 14, "patch_embedding.weight has shape"),
        ("hidden_act", "relu", "hidden_act is 'relu'"),
        ("intermediate_size", 64, "exchanges the two matrices"),
        ("num_hidden_layers", 0, "expected a whole number from 1 to 512"),
    ],
)
def test_a_config_of_another_tower_is_refused(key: str, value: object, message: str, tmp_path: Path) -> None:
    files = {"preprocessor_config.json": json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})}
    model = made(tmp_path, replace(LLAVA, files=files), vision_config=LLAVA.config["vision_config"] | {key: value})
    with pytest.raises((InputError, UnsupportedError), match=message):
        write(model)
    assert untouched(model)


def test_flags_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    model = made(tmp_path)
    with pytest.raises(UsageError, match="--mmproj-type must be one of f16, bf16, f32, q8_0; got 'q4_k'"):
        write(model, mmproj_type="q4_k")
    with pytest.raises(UsageError, match="give them two names"):
        convert(model, tmp_path / "out.gguf", type="f16", mmproj=tmp_path / "out.gguf")
    convert(model, tmp_path / "text.gguf", type="f16")
    with pytest.raises(UsageError, match="a .gguf file holds the text model alone"):
        convert(tmp_path / "text.gguf", tmp_path / "out.gguf", type="q8_0", mmproj=tmp_path / "mmproj.gguf")


def test_a_damaged_vision_weight_stops_the_run_before_the_text_model(tmp_path: Path) -> None:
    name = "multi_modal_projector.linear_2.weight"
    weights = tiny_models.weights(LLAVA)
    weights[name] = np.full_like(weights[name], np.nan)
    model = tiny_models.write(LLAVA, tmp_path / "model", weights)
    with pytest.raises(WeightError, match="linear_2.weight holds nan"):
        write(model)
    assert sorted(path.name for path in tmp_path.glob("*.gguf*")) == ["mmproj.gguf.journal", "mmproj.gguf.partial"]


def test_an_unfinished_run_of_the_text_model_stops_both(tmp_path: Path) -> None:
    model = made(tmp_path)
    line = json.dumps({"run": "another"})
    (tmp_path / "out.gguf.journal").write_text(f"{zlib.crc32(line.encode()):08x} {line}\n")
    with pytest.raises(UsageError, match="unfinished run"):
        write(model)
    assert not (tmp_path / "mmproj.gguf").exists()
    write(model, options=Options(types=("q8_0",)), run=Threads(fresh=True))
    assert (tmp_path / "mmproj.gguf").exists()


def test_the_command_line_plans_and_writes_both(tmp_path: Path, run: Any) -> None:
    model, out, mmproj = made(tmp_path), tmp_path / "out.gguf", tmp_path / "mmproj.gguf"
    planned = json.loads(run("plan", model, "--type", "q8_0", "--mmproj", mmproj, "--json").out)
    assert planned["mmproj"]["architecture"] == "clip"
    shown = run("plan", model, "--type", "q8_0", "--mmproj", mmproj)
    assert "clip, " in shown.out
    assert "tensors are not used (first: language_model." in " ".join(shown.err.split())
    report = json.loads(run("convert", model, out, "--type", "q8_0", "--mmproj", mmproj, "--json").out)
    assert report["files"] == [str(out), str(mmproj)]
    assert mmproj.stat().st_size == planned["mmproj"]["targets"][0]["files"][0]["bytes"]
    assert "--mmproj-type is for --mmproj" in run("convert", model, out, "--mmproj-type", "f16").err


@pytest.mark.parametrize("name", ["llava", "qwen2-vl", "pixtral"])
def test_verify_finds_a_projectors_source(name: str, tmp_path: Path, run: Any) -> None:
    model = made(tmp_path, tiny_models.CASES[name])
    write(model, mmproj_type="q8_0")
    checked = run("verify", tmp_path / "mmproj.gguf", "--source", model)
    assert checked.code == 0
    assert "data digest: ok; source digest: ok" in checked.out
