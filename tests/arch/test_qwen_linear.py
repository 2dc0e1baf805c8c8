"""Qwen3-Next and Qwen 3.5: what the config states and the tensors show of blocks that predict further tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tiny_models
from arch.test_goldens import checkpoint
from ggufround.arch import find_architecture, metadata, outputs
from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import InputError, UnsupportedError


def changed(folder: Path, name: str, drop: str = "nothing", **text: Any) -> Checkpoint:
    """The case's headers less the tensors that begin with `drop`, with other keys of the text model's config."""
    source = checkpoint(tiny_models.CASES[name], folder)
    config = {**source.config, "text_config": {**source.config.get("text_config", {}), **text}}
    return replace(
        source, config=config, tensors={k: ref for k, ref in source.tensors.items() if not k.startswith(drop)}
    )


def made(source: Checkpoint) -> tuple[set[str], Any]:
    arch = find_architecture(source.config)
    fields = metadata(arch, source)
    keys = ("block_count", "nextn_predict_layers")
    return {output.name for output in outputs(arch, source).outputs}, [
        fields[f"{arch.name}.{key}"].value if f"{arch.name}.{key}" in fields else None for key in keys
    ]


def test_a_model_that_transformers_saved_without_its_further_head_has_none_in_the_file(tmp_path: Path) -> None:
    names, numbers = made(changed(tmp_path, "qwen35", "mtp."))
    assert numbers == [3, None]
    assert not any(name.startswith("blk.3.") for name in names)


def test_the_further_head_is_a_block_of_its_own(tmp_path: Path) -> None:
    names, numbers = made(changed(tmp_path, "qwen3next"))
    assert numbers == [4, 1]
    assert {"blk.3.nextn.eh_proj.weight", "blk.3.attn_q.weight", "blk.3.ffn_up_shexp.weight"} <= names


@pytest.mark.parametrize("absent", ["mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight"])
def test_half_a_further_head_is_refused(absent: str, tmp_path: Path) -> None:
    source = changed(tmp_path, "qwen35", absent)
    with pytest.raises(InputError, match=f"lacks 1 tensors .*{absent}"):
        outputs(find_architecture(source.config), source)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"linear_value_head_dim": 64}, "needs one size"),
        ({"linear_num_value_heads": 3}, "a whole number for each"),
        ({"layer_types": ["full_attention"]}, "3 times full_attention or linear_attention"),
        ({"layer_types": ["sliding_attention"] * 3}, "3 times full_attention or linear_attention"),
        ({"hidden_act": "gelu"}, "silu"),
    ],
)
def test_a_config_that_llama_cpp_could_not_follow_is_refused(text: Any, words: str, tmp_path: Path) -> None:
    source = changed(tmp_path, "qwen35", **text)
    with pytest.raises((InputError, UnsupportedError), match=words):
        outputs(find_architecture(source.config), source)
