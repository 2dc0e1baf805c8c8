"""Configs that transformers runs and llama.cpp would run as something else, a few of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny_models
from ggufround.arch import find_architecture, outputs
from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.errors import InputError

CASES: list[tuple[str, dict[str, Any], str]] = [
    ("gpt-oss", {"swiglu_limit": 5.0}, "swiglu_limit is 5.0"),
    ("gpt-oss", {"layer_types": ["full_attention"] * 3}, "layer_types is"),
    ("gpt-oss", {"rope_scaling": {"rope_type": "linear", "factor": 2}}, "rope_type is 'linear'"),
    ("mistral3", {"model_type": "mistral4"}, "model_type is 'mistral4'"),
    ("ministral3", {"rope_parameters": {"rope_type": "default"}}, "rope parameters of ministral3 are not"),
    ("ministral3", {"rope_parameters": {"rope_type": "yarn", "mscale": 0.7}}, "rope parameters of ministral3 are not"),
    ("gemma", {"rope_theta": 5e5}, "rope_theta is 500000.0"),
    ("gemma3n", {"num_kv_shared_layers": 10}, "num_kv_shared_layers is 10 with 25 layers"),
    ("gemma3n", {"activation_sparsity_pattern": [0.0] * 25}, "activation_sparsity_pattern is"),
    ("gemma3n", {"laurel_rank": 32}, "laurel_rank is 32"),
    ("gemma3n", {"intermediate_size": [1, 2]}, "expected the same number for each layer"),
    ("gemma4", {"num_kv_shared_layers": 3}, "num_kv_shared_layers is 3, but the layers before are not"),
    ("gemma4", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention is 'all'"),
    ("gemma4", {"layer_types": ["full_attention"]}, "expected a list of 6 kinds of attention"),
    ("gemma4", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_type is 'default'"),
    ("gemma4", {"global_head_dim": None, "per_layer_config": {"0": {"head_dim": 9}}}, "per_layer_config is"),
    ("llama4", {"use_qk_norm": False}, "use_qk_norm is False; llama.cpp runs this model with True"),
    ("llama4", {"moe_layers": [0, 1]}, r"moe_layers is \[0, 1\]"),
    ("llama4", {"no_rope_layers": [1, 1, 1, 1]}, "no_rope_layers is"),
    ("llama4", {"attention_chunk_size": 64}, "attention_chunk_size is 64"),
]


def test_gemma_4_may_state_its_wide_heads_layer_by_layer() -> None:
    case = tiny_models.CASES["gemma4-moe"]
    row = {"head_dim": 128, "num_key_value_heads": 1}
    newer = {key: value for key, value in case.config.items() if "global" not in key} | {
        "per_layer_config": {"1": row, "3": row}
    }
    made = [
        outputs(find_architecture(config), Checkpoint("m", Path("m"), headers(case), config)).outputs
        for config in (case.config, newer)
    ]
    assert [o.shape for o in made[0]] == [o.shape for o in made[1]]


def headers(case: tiny_models.Tiny) -> dict[str, TensorRef]:
    return {name: TensorRef(name, "BF16", shape, Path("x"), 0, 2) for name, shape in case.shapes.items()}


@pytest.mark.parametrize(("name", "config", "message"), CASES)
def test_it_is_refused_by_key(name: str, config: dict[str, Any], message: str) -> None:
    whole = tiny_models.CASES[name].config
    nested = "text_config" in whole
    changed = {**whole, "text_config": {**whole["text_config"], **config}} if nested else {**whole, **config}
    with pytest.raises(InputError, match=message):
        outputs(find_architecture(changed), Checkpoint("m", Path("m"), {}, changed))
