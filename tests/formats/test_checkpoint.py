"""A quantised checkpoint: a folder that its readers understand, the same for any threads and any interruption."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from checkpoints import (
    READERS,
    Read,
    config_of,
    contents,
    dtypes,
    expected,
    make,
    options,
    read_layer,
    tensors,
    weights_of,
    widened,
)
from ggufround import Run
from ggufround.quants.schemes import WHOLE, Scheme, scheme
from reference_integers import E4M3
from reference_stores import Tensors
from tiny import bf16_bits, encode, write_safetensors

MODELS = ("llama", "llama3", "qwen2", "phi3", "gemma2", "mixtral", "qwen3moe", "gemma3-composite")
CASES = (  # every format with schemes of each kind, every model at least once
    ("auto_round", "W4A16G32", "llama"), ("auto_round", "W2A16G64-asym", "llama3"), ("auto_round", "W3A16G32", "phi3"),
    ("auto_round", "MXFP4", "qwen3moe"), ("auto_gptq", "W3A16G64", "mixtral"), ("auto_gptq", "W4A16G32-asym", "gemma2"),
    ("auto_gptq", "W8A16G64", "qwen2"), ("auto_awq", "W4A16G64-asym", "qwen3moe"), ("auto_awq", "W4A16G32", "phi3"),
    ("llm_compressor", "W4A16G32-asym", "qwen2"), ("llm_compressor", "W3A16G32-asym", "gemma3-composite"),
    ("llm_compressor", "W8A16G64", "llama3"), ("llm_compressor", "MXFP8", "llama"),
    ("llm_compressor", "NVFP4A16", "qwen3moe"), ("llm_compressor", "MXFP4A16", "phi3"),
    ("auto_round", "FP8_BLOCK", "wide"), ("llm_compressor", "FP8_BLOCK", "wide"), ("mlx", "W4A16G64", "mixtral"),
    ("mlx", "W6A16G32-asym", "llama3"), ("mlx", "W3A16G64", "gemma2"),
)  # fmt: skip


def source_of(model: Path) -> Tensors:
    return {name: widened(bits) for name, bits in tensors(model).items()}


def linear(source: Tensors) -> list[str]:
    """Modules of the blocks that are quantised by themselves: no norms, no routers."""
    return [
        name.removesuffix(".weight") for name, x in source.items()
        if x.ndim == 2 and ".layers." in name and not name.endswith(".gate.weight")
    ]  # fmt: skip


def assert_weights(name: str, folder: Path, source: Tensors, chosen: dict[str, str | None], recipe: str) -> None:
    """Each layer is, to its reader, what the search of its scheme made of it; all else is as it was."""
    found = tensors(folder)
    for module, of in chosen.items():
        if of is None:
            continue
        ours, theirs = weights_of(name, folder, module), expected(source, module, scheme(of), recipe)
        assert ours is not None, module
        tolerance = 2.0**-10 * np.abs(theirs).max() if name == "mlx" else 1e-6 * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=module)
        if name != "mlx" and not of.startswith("NVFP4"):
            np.testing.assert_array_equal(ours, theirs, module)
    quantised = {module for module, of in chosen.items() if of is not None}
    for key, x in source.items():
        if key.removesuffix(".weight") not in quantised:
            np.testing.assert_array_equal(widened(found.pop(key)), x, key)
    assert {key.rpartition(".")[0] for key in found} == quantised


@pytest.mark.parametrize(("name", "of", "model"), CASES)
def test_a_reader_finds_the_rounded_weights_and_the_rest_as_it_was(
    name: str, of: str, model: str, folder: Path, tmp_path: Path
) -> None:
    source = tiny_models.written(folder, model)
    report = make(source, tmp_path / "out", options(name, of))
    assert [p.name for p in report.files] == ["model.safetensors"]
    before = source_of(source)
    assert_weights(name, tmp_path / "out", before, dict.fromkeys(linear(before), of), "rtn")


def test_the_search_of_the_recipe_is_what_is_stored(folder: Path, tmp_path: Path) -> None:
    model = tiny_models.written(folder, "llama")
    make(model, tmp_path / "out", options("llm_compressor", "W2A16G64-asym", "opt-rtn"))
    before = source_of(model)
    chosen: dict[str, str | None] = dict.fromkeys(linear(before), "W2A16G64-asym")
    assert_weights("llm_compressor", tmp_path / "out", before, chosen, "opt-rtn")


@pytest.mark.parametrize(("name", "symmetric"), [("auto_gptq", True), ("auto_round", False), ("llm_compressor", False)])
def test_a_whole_row_may_share_a_scale(name: str, symmetric: bool, folder: Path, tmp_path: Path) -> None:
    model, of = tiny_models.written(folder, "qwen2"), Scheme("int", 4, WHOLE, symmetric)
    make(model, tmp_path / "out", replace(options(name), scheme=of))
    before = source_of(model)
    for module in linear(before):
        assert read_layer(name, tmp_path / "out", module) == Read(4, -1, symmetric)
        np.testing.assert_array_equal(weights_of(name, tmp_path / "out", module), expected(before, module, of), module)


# --- the small files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
def test_config_and_the_small_files_are_the_models_own(name: str, folder: Path, tmp_path: Path) -> None:
    model = tiny_models.written(folder, "llama3")
    make(model, tmp_path / "out", options(name))
    before, after = contents(model), contents(tmp_path / "out")
    config = json.loads(after.pop("config.json"))
    assert config.pop("quantization_config") == config.pop("quantization", None) or name != "mlx"
    assert config == json.loads(before.pop("config.json"))
    assert "README.md" in before  # says what the unquantised model is
    for file in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert after.pop(file) == before[file]
    further = {"auto_round": {"quantization_config.json"}, "auto_gptq": {"quantize_config.json"}}.get(name, set())
    assert set(after) == {"model.safetensors", "ggufround.json"} | further
    for file in further:
        assert json.loads(after[file]) == config_of(tmp_path / "out")["quantization_config"]


def test_provenance_says_what_made_the_folder(folder: Path, tmp_path: Path) -> None:
    model = tiny_models.written(folder, "llama")
    make(model, tmp_path / "out", options("mlx"))
    found = json.loads((tmp_path / "out" / "ggufround.json").read_text())
    assert found["ggufround.scheme"] == "W4A16G32"
    assert found["ggufround.recipe"] == "rtn"
    assert found["ggufround.source"] == "llama"
    for key in ("data_sha256", "source.weights_sha256", "source.config_sha256"):
        assert len(set(found[f"ggufround.{key}"])) > 4, key


def test_tensors_lie_aligned_and_the_header_says_pytorch(folder: Path, tmp_path: Path) -> None:
    make(tiny_models.written(folder, "qwen2"), tmp_path / "out", options("llm_compressor"))
    raw = (tmp_path / "out" / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert size % 8 == 0
    for name, entry in header.items():
        wide = {"I64": 8, "I32": 4, "F16": 2, "BF16": 2}[entry["dtype"]]
        assert entry["data_offsets"][0] % wide == 0, name


# --- layers apart ----------------------------------------------------------------------------------------------------

DOWN, QUERY = r"layers\.1\.mlp\.down_proj", r"self_attn\.q_proj$"
MIXED = {"auto_round": "W8A16G64", "auto_gptq": "W8A16G64", "llm_compressor": "W8A16G64-asym", "mlx": "W8A16G64-asym"}


def as_read(name: str, of: str | None) -> Read | None:
    if of is None:
        return None
    found = scheme(of)
    return Read(found.bits, found.group, found.symmetric and name != "mlx")


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("name", READERS)
def test_a_reader_is_told_which_layers_are_apart(name: str, head: bool, folder: Path, tmp_path: Path) -> None:
    model = tiny_models.written(folder, "qwen2")
    before = source_of(model)
    chosen: dict[str, str | None] = dict.fromkeys(linear(before), "W4A16G32") | {
        "lm_head": "W4A16G32" if head else None
    }
    layers: dict[str, str | None] = {DOWN: None}
    if other := MIXED.get(name):
        layers |= {QUERY: other}
        chosen |= {module: other for module in chosen if module.endswith("q_proj")}
    chosen |= {module: None for module in chosen if module.endswith("1.mlp.down_proj")}
    make(model, tmp_path / "out", options(name, "W4A16G32", layers=layers, head=head))
    for module, of in chosen.items():
        assert read_layer(name, tmp_path / "out", module) == as_read(name, of), module
    assert_weights(name, tmp_path / "out", before, chosen, "rtn")


def test_a_reader_leaves_routers_alone(folder: Path, tmp_path: Path) -> None:
    model = tiny_models.written(folder, "mixtral")
    for name in READERS:
        make(model, tmp_path / name, options(name))
        assert read_layer(name, tmp_path / name, "model.layers.0.block_sparse_moe.gate") is None
        assert read_layer(name, tmp_path / name, "model.layers.0.block_sparse_moe.experts.3.w2") is not None


def test_the_last_pattern_that_matches_counts(folder: Path, tmp_path: Path) -> None:
    layers = {"proj": "W8A16G64", "q_proj": None, r"layers\.0\..*q_proj": "W2A16G64"}
    make(tiny_models.written(folder, "llama"), tmp_path / "out", options("llm_compressor", layers=layers))
    assert read_layer("llm_compressor", tmp_path / "out", "model.layers.0.self_attn.q_proj") == Read(2, 64, True)
    assert read_layer("llm_compressor", tmp_path / "out", "model.layers.1.self_attn.q_proj") is None
    assert read_layer("llm_compressor", tmp_path / "out", "model.layers.1.self_attn.k_proj") == Read(8, 64, True)


# --- several files, formats, threads ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "of"), [("auto_gptq", "W3A16G32"), ("auto_awq", "W4A16G64"), ("mlx", "W4A16G32")])
def test_shards_hold_the_same_tensors_and_an_index_says_where(name: str, of: str, folder: Path, tmp_path: Path) -> None:
    model = tiny_models.written(folder, "qwen3moe")
    make(model, tmp_path / "whole", options(name, of))
    report = make(model, tmp_path / "parts", options(name, of), Run(threads=1, split_max_size=120_000))
    count = len(report.files)
    assert count > 3
    assert [p.name for p in report.files] == [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert {n: (x.dtype, x.shape, x.tobytes()) for n, x in whole.items()} == {
        n: (x.dtype, x.shape, x.tobytes()) for n, x in parts.items()
    }
    index = json.loads((tmp_path / "parts" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {n: p.name for p in report.files for n in dtypes(p)}
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in whole.values())
    assert all(p.stat().st_size < 130_000 for p in report.files)
    small = {"model.safetensors", "model.safetensors.index.json", *(p.name for p in report.files)}
    one, other = contents(tmp_path / "whole"), contents(tmp_path / "parts")
    assert {n: x for n, x in one.items() if n not in small} == {n: x for n, x in other.items() if n not in small}


@pytest.mark.usefixtures("small_slabs")
def test_several_formats_from_one_read_equal_single_runs(folder: Path, tmp_path: Path) -> None:
    model = tiny_models.written(folder, "mixtral")
    names = ",".join(READERS)
    report = make(model, tmp_path / "{format}", options(names, "W4A16G32-asym"), Run(threads=2))
    assert [p.parent.name for p in report.files] == list(READERS)
    for name in READERS:
        make(model, tmp_path / "single", options(name, "W4A16G32-asym"))
        assert contents(tmp_path / "single") == contents(tmp_path / name), name
        shutil.rmtree(tmp_path / "single")


@pytest.mark.usefixtures("small_slabs")
@pytest.mark.parametrize(("name", "of"), [("auto_gptq", "W3A16G32"), ("auto_awq", "W4A16G32"), ("auto_round", "MXFP4")])
def test_any_number_of_threads_gives_the_same_bytes(name: str, of: str, folder: Path, tmp_path: Path) -> None:
    model = tiny_models.written(folder, "llama")
    for threads in (1, 3):
        make(model, tmp_path / str(threads), options(name, of), Run(threads=threads))
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_a_plan_is_exact_to_the_byte(folder: Path, tmp_path: Path, run: Any) -> None:
    model = tiny_models.written(folder, "llama3")
    flags = ("--format", "auto_gptq,llm_compressor", "--scheme", "W3A16G32")
    planned = run("plan", model, *flags, "--json").json["targets"]
    done = run("convert", model, tmp_path / "{format}", *flags, "--json").json
    files = [f for target in planned for f in target["files"]]
    assert [f["bytes"] for f in files] == [Path(f).stat().st_size for f in done["files"]]
    total = sum(p.stat().st_size for p in tmp_path.glob("*/*") if p.name != "ggufround.json")
    assert done["bytes"] == total


# --- odd models ------------------------------------------------------------------------------------------------------


def test_a_group_without_negative_weights_is_stored_in_every_format(folder: Path, tmp_path: Path) -> None:
    """Its zero point is 0, which has no place where zero points are stored less one."""
    case = tiny_models.CASES["llama"]
    name = "model.layers.0.mlp.up_proj.weight"
    weights = tiny_models.weights(case)
    weights[name][:5] = np.abs(weights[name][:5])
    weights[name][5:9] = 0
    model = tiny_models.write(case, tmp_path / "model", weights)
    make(model, tmp_path / "{format}", options(",".join(READERS), "W4A16G32-asym"))
    source = source_of(model)[name]
    for form in READERS:
        back = weights_of(form, tmp_path / form, name.removesuffix(".weight"))
        assert back is not None
        np.testing.assert_array_equal(back[5:9], 0, form)
        step = np.abs(source).reshape(-1, 4, 32).max(axis=2).repeat(32, axis=1).reshape(source.shape) / 7
        assert (np.abs(back - source) <= 1.1 * step).all(), form


def test_layers_that_32_does_not_divide_stay_in_16_bits_and_are_named(tmp_path: Path) -> None:
    case = tiny_models.CASES["llama"]
    shapes = {n: (40, 128) if "k_proj" in n else s for n, s in case.shapes.items()}
    model = tiny_models.write(replace(case, shapes=shapes), tmp_path / "model")
    report = make(model, tmp_path / "out", options("auto_gptq"))
    assert "2 layers stay in 16 bits, since 32 does not divide them" in " ".join(report.notes)
    assert read_layer("auto_gptq", tmp_path / "out", "model.layers.1.self_attn.k_proj") is None
    assert "model.layers.1.self_attn.k_proj.weight" in tensors(tmp_path / "out")


@pytest.mark.usefixtures("small_slabs")
@pytest.mark.parametrize("name", ["auto_round", "llm_compressor"])
def test_the_last_tile_of_fp8_may_be_lower(name: str, tmp_path: Path) -> None:
    case = tiny_models.ALL["wide"]
    shapes = {n: (288, 256) if "k_proj" in n else (96, 256) if "v_proj" in n else s for n, s in case.shapes.items()}
    model = tiny_models.write(replace(case, shapes=shapes), tmp_path / "model")
    make(model, tmp_path / "out", options(name, "FP8_BLOCK"), Run(threads=2))
    before = source_of(model)
    assert_weights(name, tmp_path / "out", before, dict.fromkeys(linear(before), "FP8_BLOCK"), "rtn")
    suffix = "weight_scale_inv" if name == "auto_round" else "weight_scale"
    found = tensors(tmp_path / "out")
    assert found[f"model.layers.0.self_attn.k_proj.{suffix}"].shape == (3, 2)
    assert found[f"model.layers.0.self_attn.v_proj.{suffix}"].shape == (1, 2)


def test_stacked_experts_stay_in_16_bits_and_are_named(folder: Path, tmp_path: Path) -> None:
    report = make(tiny_models.written(folder, "qwen3moe-stacked"), tmp_path / "out", options())
    assert any("4 stacks of experts stay in 16 bits (first: model.layers." in note for note in report.notes)
    report = make(tiny_models.written(folder, "qwen3moe"), tmp_path / "other", options())
    assert not any("stack" in note for note in report.notes)


def test_numbers_that_are_no_weights_are_copied(tmp_path: Path) -> None:
    case = tiny_models.CASES["llama"]
    ids = np.arange(7, dtype=np.int64) << 40
    model = tiny_models.write(case, tmp_path / "model", tiny_models.weights(case) | {"model.position_ids": ids})
    make(model, tmp_path / "out", options("mlx"))
    np.testing.assert_array_equal(tensors(tmp_path / "out")["model.position_ids"], ids)


def test_an_fp8_source_is_read_with_its_scales_and_what_is_not_quantised_becomes_bf16(tmp_path: Path) -> None:
    case = tiny_models.ALL["wide"]
    weights, rows = tiny_models.weights(case), {}
    down, rng = "model.layers.0.mlp.down_proj.weight", np.random.default_rng(0)
    codes, scales = rng.integers(0, 120, (256, 256), np.uint8), rng.uniform(1e-4, 2e-4, (2, 2)).astype(np.float32)
    for name, values in (weights | {f"{down}_scale_inv": scales}).items():
        kind, raw = encode(values, "F32" if name.endswith("_inv") else "BF16")
        rows[name] = (kind, values.shape, raw)
    rows[down] = ("F8_E4M3", codes.shape, codes.tobytes())
    model = tiny_models.write(case, tmp_path / "model", weights)
    write_safetensors(model / "model.safetensors", rows)
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (model / "config.json").write_text(json.dumps(case.config | {"quantization_config": fp8}))
    exact = E4M3[codes] * np.repeat(np.repeat(scales, 128, axis=0), 128, axis=1)
    make(model, tmp_path / "kept", options("mlx", layers={"layers.0.mlp": None}))
    found = tensors(tmp_path / "kept")
    assert f"{down}_scale_inv" not in found
    np.testing.assert_array_equal(found[down], bf16_bits(exact))
    assert "quant_method" not in config_of(tmp_path / "kept")["quantization_config"]
    make(model, tmp_path / "out", options("llm_compressor", "W8A16G32"))
    back = weights_of("llm_compressor", tmp_path / "out", down.removesuffix(".weight"))
    right = expected({down: exact.astype(np.float32)}, down.removesuffix(".weight"), scheme("W8A16G32"))
    np.testing.assert_array_equal(back, right)


def test_a_pattern_that_matches_nothing_is_named(folder: Path, tmp_path: Path) -> None:
    report = make(tiny_models.written(folder, "llama"), tmp_path / "out", options(layers={"dwon_proj": None}))
    assert any("'dwon_proj' matches no linear layer" in note for note in report.notes)
