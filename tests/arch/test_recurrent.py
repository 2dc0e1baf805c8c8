"""State-space and recurrent models: what their configs may say, and what is refused since llama.cpp would ignore it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from ggufround.arch import Layout, find_architecture, metadata, outputs
from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.errors import InputError, UnsupportedError


def headers(name: str, **config: Any) -> Checkpoint:
    """A tiny case's headers with keys of its config changed (None: null)."""
    case = tiny_models.CASES[name]
    file = Path("model.safetensors")
    tensors = {key: TensorRef(key, "BF16", s, file, 0, 2 * int(np.prod(s))) for key, s in case.shapes.items()}
    return Checkpoint("tiny", Path("tiny"), tensors, {**case.config, **config})


def layout(name: str, **config: Any) -> Layout:
    source = headers(name, **config)
    return outputs(find_architecture(source.config), source)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("mamba", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("mamba", {"intermediate_size": 192}, "expansion of 2 only"),
        ("mamba-original", {"ssm_cfg": {"layer": "Mamba2"}}, "ssm_cfg is"),
        ("mamba-original", {"rms_norm": False}, "rms_norm is False"),
        ("mamba2", {"time_step_limit": [0.001, 0.1]}, r"time_step_limit is \[0\.001, 0\.1\]"),
        ("mamba2", {"time_step_limit": [0.0, 0.1]}, "does not limit the time steps"),
        ("nemotron-h-moe", {"hybrid_override_pattern": "MEM*-"}, "blocks with experts and blocks without"),
        ("nemotron-h", {"mlp_hidden_act": "silu"}, "mlp_hidden_act is 'silu'"),
        ("jamba", {"mamba_expand": 3}, "mamba_expand is 3"),
        ("rwkv7", {"attn": {"layers": [1]}}, "without attention"),
        ("rwkv7", {"norm_eps": 1e-6}, "for the norm of a head"),
        ("rwkv7", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("falcon-h1", {"mamba_rms_norm": True}, "the gate before the norm"),
        ("falcon-h1", {"tie_word_embeddings": True}, "one matrix for both"),
        ("falcon-h1", {"key_multiplier": 0}, "a multiplier of 0"),
        ("falcon-h1", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
    ],
)
def test_what_llama_cpp_would_run_as_something_else_is_refused(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        layout(name, **config)


@pytest.mark.parametrize("limit", [None, [0.0, float("inf")], [0, {"__float__": "Infinity"}]])
def test_time_steps_without_a_limit_may_be_stated_in_each_way_that_transformers_writes(limit: Any) -> None:
    assert len(layout("mamba2", time_step_limit=limit).outputs) == 21


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("mamba2", {"head_dim": 48}, "does not divide into heads of 48"),
        ("mamba2", {"num_heads": 4}, "num_heads is 4, expected 8"),
        ("mamba2", {"n_groups": 4}, r"in_proj\.weight has shape .* config\.json makes it"),
        ("nemotron-h", {"num_hidden_layers": 4}, "num_hidden_layers is 4, expected 5, the length of the pattern"),
        ("nemotron-h", {"hybrid_override_pattern": "M-MX-"}, "hybrid_override_pattern .* is 'M-MX-'"),
        ("nemotron-h-moe", {"n_routed_experts": 5}, r"gate\.weight has shape"),
        ("jamba", {"num_experts": 5}, "router.weight has shape"),
        ("jamba", {"attn_layer_offset": 0}, "lacks .* tensors that jamba with 4 layers needs"),
        ("rwkv7", {"gate_low_rank_dim": 48}, r"g_lora.* has shape"),
        ("falcon-h1", {"mamba_d_head": 32}, "mamba_d_head is 32, expected the inner size, 192, over 8 heads"),
        ("falcon-h1", {"ssm_multipliers": [1.0]}, "ssm_multipliers is .* a list of 5"),
        ("mamba", {"time_step_rank": 9}, r"x_proj\.weight has shape"),
    ],
)
def test_a_config_that_contradicts_itself_or_the_tensors_is_refused(
    name: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        layout(name, **config)


def test_an_automatic_rank_is_a_sixteenth_of_the_embedding() -> None:
    source = headers("mamba", time_step_rank="auto")
    assert metadata(find_architecture(source.config), source)["mamba.ssm.time_step_rank"].value == 8


def test_a_missing_bias_of_the_convolution_is_named() -> None:
    source = headers("mamba")
    kept = {name: ref for name, ref in source.tensors.items() if name != "backbone.layers.1.mixer.conv1d.bias"}
    with pytest.raises(InputError, match=r"lacks 1 tensors .* layers\.1\.mixer\.conv1d\.bias"):
        outputs(find_architecture(source.config), replace(source, tensors=kept))


def test_a_pattern_with_experts_makes_another_architecture_and_the_heads_for_further_tokens_are_left_out() -> None:
    assert find_architecture(headers("nemotron-h").config).name == "nemotron_h"
    assert find_architecture(headers("nemotron-h-latent").config, "NemotronHForCausalLM").name == "nemotron_h_moe"
    source = headers("nemotron-h")
    extra = replace(source.tensors["lm_head.weight"], name="mtp.layers.0.norm.weight")
    made = outputs(find_architecture(source.config), replace(source, tensors={**source.tensors, extra.name: extra}))
    assert "further tokens" in dict(made.dropped)[extra.name]


def test_ranks_that_are_not_stated_are_those_of_the_authors() -> None:
    source = headers("rwkv7", gate_low_rank_dim=None, hidden_size=2048, decay_low_rank_dim=None)
    arch = find_architecture(source.config)
    assert (arch.sizes["rank_w"](source.config), arch.sizes["rank_g"](source.config)) == (96, 256)
