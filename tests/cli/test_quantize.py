"""ggufround quantize: the flags that auto-round's users know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny_models


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write(tiny_models.ALL["wide"], tmp_path_factory.mktemp("cli") / "wide")


@pytest.mark.parametrize("spelled", ["--group_size", "--group-size"])
def test_flags_may_be_written_with_either_line(spelled: str, wide: Path, tmp_path: Path, run: Any) -> None:
    words = ("--bits", 4, spelled, 64, "--format", "auto_round,mlx", "--output_dir", tmp_path, "--iters", 0, "--json")
    ran = run("quantize", "--model", wide, *words)
    assert ran.code == 0, ran.err
    assert ran.json["folders"] == [str(tmp_path / f"wide-w4g64-{name}") for name in ("auto_round", "mlx")]


@pytest.mark.parametrize("text", ["{q_proj:{bits:8}}", '{"q_proj": {"bits": 8}}', "{q_proj: W8A16}"])
def test_layer_config_is_read_with_and_without_quotes(text: str, wide: Path, tmp_path: Path, run: Any) -> None:
    words = ("--output_dir", tmp_path, "--model_free", "--layer_config", text, "--ignore_layers", "down_proj")
    assert run("quantize", wide, *words).code == 0
    config = json.loads((tmp_path / "wide-w4g128" / "config.json").read_text())["quantization_config"]
    assert config["extra_config"]["model.layers.0.self_attn.q_proj"]["bits"] == 8
    assert config["extra_config"]["model.layers.1.mlp.down_proj"]["bits"] == 16


def test_flags_that_change_nothing_say_so(wide: Path, tmp_path: Path, run: Any) -> None:
    ran = run("quantize", "--low_gpu_mem_usage", "--model", wide, "--output_dir", tmp_path, "--iters", 0)
    assert ran.code == 0, ran.err
    assert "low_gpu_mem_usage changes nothing" in ran.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tasks", "piqa"), "use `ggufround eval`"),
        (("--nblocks", "2"), "--nblocks of auto-round is not supported"),
        (("--schemes", "W4A16"), "use --layer_config"),
        (("--groupsize", "2"), "no such flag: --groupsize"),
        (("--layer_config", "q_proj"), "no table of layers"),
        (("--layer_config", "{q_proj: [}"), "cannot be read"),
        (("--scheme", "W1A16"), "unknown scheme"),
        (("--format", "exl3"), "unknown format"),
        (("--format", "gguf"), "gguf needs a type"),
        (("--format", "auto_awq", "--bits", "3"), "AWQ holds integers of 4 bits"),
        (("--recipe", "worst"), "unknown recipe"),
    ],
)
def test_what_is_not_supported_is_named(words: Any, message: str, wide: Path, tmp_path: Path, run: Any) -> None:
    ran = run("quantize", wide, "--output_dir", tmp_path, "--iters", 0, *words)
    assert ran.code == 2
    assert message in " ".join(ran.err.split())


def test_a_call_without_a_model_says_what_is_missing(run: Any) -> None:
    ran = run("quantize", "--bits", 4)
    assert ran.code == 2
    assert "no model was given" in ran.err
