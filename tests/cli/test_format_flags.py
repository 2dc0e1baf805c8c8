"""Checkpoint formats from the command line: what is refused, with the way out, before any work."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from checkpoints import READERS, Read, read_layer
from tiny import write_checkpoint

OUT = "out"
BAD: dict[str, tuple[str, str]] = {  # flags, what the message says
    "an unknown format": ("--format awq", "unknown format 'awq'; there are: gguf, auto_round, auto_gptq, auto_awq"),
    "no format": ("--format ,", "no format was given; there are: gguf, auto_round"),
    "a format twice": ("--format mlx,MLX", "format mlx was given twice"),
    "GGUF among checkpoint formats": ("--format gguf,mlx --group-size 32", "several formats need {format} in OUT"),
    "an unknown scheme": ("--format mlx --scheme W4A17", "unknown scheme 'W4A17'; there are: W2A16"),
    "an unknown scheme of a layer": ("--format mlx --layer q_proj=W7A16", "unknown scheme 'W7A16'"),
    "bits that are none": ("--format mlx --bits 7", "7 bits; can be 2, 3, 4, 5, 6, 8"),
    "a group that is none": ("--format auto_round --group-size 12", "groups of 12 weights; must be a multiple of 8"),
    "bits of a float scheme": ("--format auto_round --scheme MXFP4 --bits 8", "MXFP4 has bits and groups of its own"),
    "AWQ at 3 bits": ("--format auto_awq --scheme W3A16G32", "auto_awq cannot hold W3A16G32 (model.layers.0."),
    "AWQ of floats": ("--format auto_awq --scheme MXFP4", "AWQ holds integers of 4 bits"),
    "AWQ with layers apart": (
        "--format auto_awq --scheme W4A16G32 --layer down_proj=W4A16G64",
        "auto_awq cannot hold W4A16G64 (model.layers.0.mlp.down_proj) beside W4A16G32; keep that layer in 16 bits "
        "with --ignore, or choose llm_compressor, which can",
    ),
    "auto_round with both kinds of zero points": (
        "--format auto_round --scheme W4A16G32-asym --layer down_proj=W8A16G32",
        "auto_round cannot hold W8A16G32 (model.layers.0.mlp.down_proj) beside W4A16G32-asym",
    ),
    "auto_gptq with both kinds of zero points": (
        "--format auto_gptq --scheme W4A16G32 --layer down_proj=W4A16G32-asym",
        "auto_gptq cannot hold W4A16G32-asym (model.layers.0.mlp.down_proj) beside W4A16G32",
    ),
    "auto_round with integers and floats": (
        "--format auto_round --scheme W4A16G32 --layer down_proj=MXFP4", "cannot hold MXFP4 (model.layers.0.mlp.down",
    ),
    "GPTQ at 5 bits": ("--format auto_gptq --scheme W5A16G32", "GPTQ holds integers of 2, 3, 4 or 8 bits"),
    "8 bits with zero points in auto_round": ("--format auto_round --bits 8 --group-size 32 --asym", "use --sym"),
    "8 bits with zero points in auto_gptq": ("--format auto_gptq --scheme W8A16G32-asym", "use --sym"),
    "a group that MLX has not": ("--format mlx --group-size 16", "MLX has kernels for groups of 32, 64, 128 only"),
    "floats in MLX": ("--format mlx --scheme NVFP4A16", "hold integers"),
    "FP4 for activations of 16 bits in auto_round": ("--format auto_round --scheme NVFP4A16", "use llm_compressor"),
    "a group that does not divide": (
        "--format auto_round",
        "model.layers.0.mlp.down_proj has rows of 192, not a multiple of W4A16's groups of 128; choose another group "
        "size, or keep it in 16 bits with --ignore 'model.layers.0.mlp.down_proj'",
    ),
    "tiles that do not divide": ("--format auto_round --scheme FP8_BLOCK", "FP8_BLOCK's groups of 128"),
    "a pattern without a scheme": ("--format mlx --layer q_proj", "must be PATTERN=SCHEME"),
    "a layer that is no pattern": ("--format mlx --layer (=8", "'(' is no regular expression"),
    "ignoring what is no pattern": ("--format mlx --ignore [", "'[' is no regular expression"),
    "nothing left": ("--format mlx --ignore .", "no layer is left to be quantised"),
    "a shard that is too small": ("--format mlx --group-size 32 --split-max-size 4K", "is smaller than model."),
}  # fmt: skip


def refused(run: Any, model: object, out: Path, *flags: object) -> str:
    """The message; nothing was written, and it looks like all messages."""
    before = sorted(out.parent.rglob("*"))
    ran = run("convert", model, out, *flags)
    assert ran.code == 2, ran.err
    assert ran.err.startswith("error:")
    assert sorted(out.parent.rglob("*")) == before
    return " ".join(ran.err.split())


@pytest.mark.parametrize("case", BAD)
def test_bad_flags_are_refused_with_the_way_out(run: Any, llama: Path, tmp_path: Path, case: str) -> None:
    flags, hint = BAD[case]
    assert hint in refused(run, llama, tmp_path / OUT, *flags.split())


FOR_GGUF = (
    "--type q8_0", "--pure", "--imatrix x.gguf", "--pre qwen2", "--arch LlamaForCausalLM", "--leave-output-tensor",
    "--output-tensor-type f16", "--token-embedding-type f16", "--tensor-type-file x.txt",
)  # fmt: skip
FOR_CHECKPOINTS = (
    "--scheme W4A16", "--bits 4", "--group-size 32", "--sym", "--asym", "--quant-lm-head", "--ignore down_proj",
)  # fmt: skip


@pytest.mark.parametrize("flags", FOR_GGUF)
def test_flags_for_gguf_are_refused_with_a_checkpoint_format(run: Any, llama: Path, tmp_path: Path, flags: str) -> None:
    told = refused(run, llama, tmp_path / OUT, "--format", "mlx", "--group-size", "32", *flags.split())
    assert f"{flags.split()[0]} is for GGUF, not for --format mlx" in told


@pytest.mark.parametrize("flags", FOR_CHECKPOINTS)
def test_flags_for_checkpoints_are_refused_with_gguf(run: Any, llama: Path, tmp_path: Path, flags: str) -> None:
    told = refused(run, llama, tmp_path / "x.gguf", *flags.split())
    assert flags.split()[0] in told
    assert "is for checkpoint formats (--format), not for GGUF" in told


def test_several_formats_need_a_place_for_their_name(run: Any, llama: Path, tmp_path: Path) -> None:
    told = refused(run, llama, tmp_path / OUT, "--format", "mlx,auto_round", "--group-size", 32)
    assert "several formats need {format} in OUT, e.g. out-{format}" in told


def test_a_tied_head_cannot_be_quantised(run: Any, folder: Path, tmp_path: Path) -> None:
    model = tiny_models.written(folder, "llama3")
    told = refused(run, model, tmp_path / OUT, "--format", "mlx", "--group-size", 32, "--quant-lm-head")
    assert "has no head of its own to quantise: it is tied to the embedding; leave out the flag" in told


def test_a_head_that_readers_take_from_the_embedding_cannot_be_quantised(run: Any, tmp_path: Path) -> None:
    case = tiny_models.CASES["qwen2"]
    tied = replace(case, config=case.config | {"tie_word_embeddings": True})  # and saved all the same
    model = tiny_models.write(tied, tmp_path / "model")
    told = refused(run, model, tmp_path / OUT, "--format", "mlx", "--group-size", 32, "--quant-lm-head")
    assert "it is tied to the embedding" in told


def test_a_head_whose_inputs_are_not_measured_cannot_be_quantised(run: Any, folder: Path, tmp_path: Path) -> None:
    model = tiny_models.written(folder, "qwen2")
    flags = ("--format", "llm_compressor", "--scheme", "NVFP4", "--quant-lm-head")
    assert "the inputs of lm_head are not measured" in refused(run, model, tmp_path / OUT, *flags)


@pytest.mark.parametrize("name", ["notes.txt", "model-00001-of-00002.safetensors"])
def test_a_folder_that_holds_something_else_stays_as_it_is(run: Any, llama: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / OUT).mkdir()
    (tmp_path / OUT / name).write_text("mine")
    told = refused(run, llama, tmp_path / OUT, "--format", "mlx", "--group-size", 32)
    assert f"holds something else ({name}); give an empty or a new folder" in told
    assert (tmp_path / OUT / name).read_text() == "mine"


def test_the_models_own_folder_is_never_the_output(run: Any, llama: Path, folder: Path, tmp_path: Path) -> None:
    for name in ("llama", "llama3"):  # in two shards, in one
        model = shutil.copytree(tiny_models.written(folder, name), tmp_path / name)
        before = {p.name: p.read_bytes() for p in model.iterdir()}
        for form in ("mlx", "auto_gptq"):
            told = refused(run, model, model, "--format", form, "--group-size", 32)
            assert "the model itself" in told or "holds something else" in told
        assert {p.name: p.read_bytes() for p in model.iterdir()} == before


def test_an_output_that_is_a_file_or_has_no_parent_is_refused(run: Any, llama: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    flags = ("--format", "mlx", "--group-size", 32)
    assert "is a file; give a folder" in refused(run, llama, tmp_path / "mine", *flags)
    assert "does not exist; create it first" in refused(run, llama, tmp_path / "absent" / OUT, *flags)


def test_a_gguf_file_is_no_source_of_checkpoints(run: Any, llama: Path, tmp_path: Path) -> None:
    run("convert", llama, tmp_path / "x.gguf", "--type", "q8_0")
    told = refused(run, tmp_path / "x.gguf", tmp_path / OUT, "--format", "mlx")
    assert "x.gguf is a GGUF file; other formats are made of safetensors checkpoints" in told


def test_transposed_layers_are_refused(run: Any, llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    assert "gpt2 stores its layers transposed" in refused(run, model, tmp_path / OUT, "--format", "mlx")


def test_a_tensor_without_dimensions_is_refused(run: Any, tmp_path: Path) -> None:
    case = tiny_models.CASES["llama"]
    tensors = tiny_models.weights(case) | {"model.layers.0.scale": np.float32(1).reshape(())}
    model = write_checkpoint(tmp_path / "model", tensors, case.config)
    told = refused(run, model, tmp_path / OUT, "--format", "mlx", "--group-size", 32)
    assert "model.layers.0.scale in model.safetensors is a single number" in told


def test_blocks_under_several_names_are_refused(run: Any, tmp_path: Path) -> None:
    case = tiny_models.CASES["llama"]
    tensors = tiny_models.weights(case)
    more = {n.replace("model.", "model.decoder."): x for n, x in tensors.items() if ".layers." in n}
    model = write_checkpoint(tmp_path / "model", tensors | more, case.config)
    told = refused(run, model, tmp_path / OUT, "--format", "mlx", "--group-size", 32)
    assert "has blocks under several names: model.decoder.layers, model.layers" in told


# --- what is taken ---------------------------------------------------------------------------------------------------


def test_flags_say_the_scheme_of_all_layers_and_of_some(run: Any, folder: Path, tmp_path: Path) -> None:
    model = tiny_models.written(folder, "qwen2")
    flags = "--format llm_compressor --bits 4 --group-size 32 --asym --layer q_proj=8 --layer k_proj=W3A16G64"
    more = ("--layer", "v_proj=16", "--ignore", "o_proj", "--quant-lm-head", "--recipe", "rtn")
    ran = run("convert", model, tmp_path / OUT, *flags.split(), *more, "--json")
    assert ran.code == 0, ran.err
    read = {
        name: read_layer("llm_compressor", tmp_path / OUT, f"model.layers.1.self_attn.{name}_proj") for name in "qkvo"
    }
    assert read == {"q": Read(8, 32, False), "k": Read(3, 64, True), "v": None, "o": None}
    assert read_layer("llm_compressor", tmp_path / OUT, "lm_head") == Read(4, 32, False)
    assert ran.json["files"] == [str(tmp_path / OUT / "model.safetensors")]


def test_formats_and_their_schemes_are_listed(run: Any) -> None:
    rows = {row["format"]: row for row in run("list", "formats", "--json").json}
    assert list(rows) == ["gguf", *READERS]
    assert "W4A16" in rows["auto_awq"]["schemes"].split()
    assert "W3A16" not in rows["auto_awq"]["schemes"].split()


def test_a_folder_that_is_named_like_a_file_is_refused(run: Any, llama: Path, tmp_path: Path) -> None:
    said = refused(run, llama, tmp_path / "out.gguf", "--format", "mlx", "--group-size", 64)
    assert "mlx is a folder; give it another name than out.gguf" in said


def test_the_plan_names_each_format(run: Any, llama: Path) -> None:
    ran = run("plan", llama, "--format", "auto_round,mlx", "--group-size", 64)
    assert ran.code == 0, ran.err
    assert "auto_round W4A16G64, recipe opt-rtn" in ran.out
    assert "mlx W4A16G64, recipe opt-rtn" in ran.out
