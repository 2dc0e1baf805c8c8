"""Configs that llama.cpp would run as something else are refused, and so are those that contradict themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tiny_models
from ggufround.arch import find_architecture, metadata, outputs
from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.errors import InputError, UnsupportedError

GROUP = {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 3.0}}
NO_ATTENTION = {"attention": {"n_heads_in_group": None}, "ffn": {"ffn_mult": 3.0}}
ATTENTION_ONLY = {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": None}}
WINDOW = {"attention": {"n_heads_in_group": 2, "window_length": 64}, "ffn": {"ffn_mult": 3.0}}


def headers(name: str, config: dict[str, Any], tmp_path: Any) -> Checkpoint:
    case = tiny_models.CASES[name]
    tensors = {
        key: TensorRef(key, "BF16", shape, tmp_path / "model.safetensors", 0, 2 * int(np.prod(shape)))
        for key, shape in case.shapes.items()
    }
    return Checkpoint(str(tmp_path), tmp_path, tensors, case.config | config, {})


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("cohere", {"use_qk_norm": True}, "normalises queries and keys"),
        ("cohere-norms", {"use_qk_norm": False}, "normalises queries and keys"),
        ("cohere", {"head_dim": 64}, "make up the hidden size"),
        ("cohere2", {"sliding_window_pattern": 2}, "full attention in every layer number 4"),
        ("cohere2", {"attention_bias": True}, "attention_bias is True"),
        ("cohere2", {"rotary_pct": 0.5}, "rotary_pct is 0.5"),
        ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob is True"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv is 8.0"),
        ("olmoe", {"num_key_value_heads": 2}, "only with as many"),
        ("exaone", {"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ("exaone4", {"sliding_window": 32}, "windows where it has 64 layers"),
        ("exaone4-windows", {"sliding_window": None}, "windows where it has 64 layers"),
        ("baichuan", {"num_hidden_layers": 31}, "with 32 .* and 40"),
        ("internlm2", {"num_key_value_heads": 3}, "config.json makes it"),
        ("arcee", {"hidden_act": "silu"}, "hidden_act is 'silu'"),
        ("deci", {"block_configs": [GROUP] * 4}, "a list of 5"),
        ("deci", {"block_configs": [NO_ATTENTION, *[GROUP] * 4]}, "a first layer without attention"),
        ("deci", {"block_configs": [*[GROUP] * 3, ATTENTION_ONLY, GROUP]}, "one with attention only"),
        ("deci", {"block_configs": [*[GROUP] * 4, WINDOW]}, "a window of attention"),
        ("deci", {"block_configs": [GROUP, {}, *[GROUP] * 3]}, "an object with attention and ffn"),
        ("deci-7b", {"num_key_value_heads_per_layer": [2, 0, 1]}, "a whole number above 0"),
        ("dbrx", {"ffn_config": {"moe_num_experts": 4, "moe_normalize_expert_weights": 2}}, "normalize_expert_weights"),
        ("openelm", {"num_kv_heads": [1, 2]}, "a list of 3"),
        ("openelm", {"normalize_qk_projections": False}, "normalize_qk_projections is False"),
        ("smallthinker", {"rope_layout": [1, 1, 1, 1, 1]}, "rope_layout is"),
        ("smallthinker", {"sliding_window_size": 64}, "sliding_window_size other than 4096"),
        ("arctic", {"parallel_attn_mlp_res": False}, "parallel_attn_mlp_res is False"),
        ("mimo", {"use_sliding_window": True}, "use_sliding_window is True"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_run_as_another_model_is_refused(
    name: str, config: dict[str, Any], words: str, tmp_path: Any
) -> None:
    source = headers(name, config, tmp_path)
    with pytest.raises((InputError, UnsupportedError), match=words):
        outputs(find_architecture(source.config), source)


@pytest.mark.parametrize("broken", ["absent", "long", "infinite"])
def test_a_number_that_is_absent_or_none_is_refused(broken: str, tmp_path: Any) -> None:
    case = tiny_models.CASES["apertus"]
    name, tensors = "model.layers.1.mlp.act_fn.beta", tiny_models.weights(case)
    if broken == "absent":
        del tensors[name]
    else:
        tensors[name] = np.ones(2, np.float32) if broken == "long" else np.full((), np.inf, np.float32)
    source = open_checkpoint(tiny_models.write(case, tmp_path, tensors))
    with pytest.raises(InputError, match=r"act_fn\.beta"):
        metadata(find_architecture(source.config), source)
