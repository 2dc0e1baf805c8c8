"""Older models hold, state and lack what newer ones do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny_models
from ggufround.arch import Layout, find_architecture, metadata, outputs
from ggufround.arch.spec import Config
from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.errors import InputError, UnsupportedError


def headers(
    name: str, config: Config | None = None, without: tuple[str, ...] = (), **extra: tuple[int, ...]
) -> Checkpoint:
    """The case's, with other entries in its config, without some tensors and with further ones."""
    case = tiny_models.CASES[name]
    file = Path("model.safetensors")
    tensors = {
        key: TensorRef(key, "BF16", shape, file, 0, 2 * int(np.prod(shape)))
        for key, shape in (dict(case.shapes) | extra).items()
        if key not in without
    }
    stated = {key: value for key, value in {**case.config, **(config or {})}.items() if value is not None}
    return Checkpoint("here", Path(), tensors, stated, {})


def layout(name: str, config: Config | None = None, without: tuple[str, ...] = (), **extra: tuple[int, ...]) -> Layout:
    source = headers(name, config, without, **extra)
    return outputs(find_architecture(source.config), source)


@pytest.mark.parametrize("name", ["gptneox", "gptneox-sequential", "phi2", "phi2-rotated-less", "stablelm-parallel"])
def test_parameters_of_rotation_count_as_newer_configs_state_them_too(name: str) -> None:
    stated = headers(name).config
    old = ("rotary_pct", "rotary_emb_base", "partial_rotary_factor", "rope_theta")
    new = {
        "rope_type": "default",
        "rope_theta": stated.get("rope_theta", stated.get("rotary_emb_base")),
        "partial_rotary_factor": stated.get("partial_rotary_factor", stated.get("rotary_pct")),
    }
    changed = headers(name, {**dict.fromkeys(old), "rope_parameters": new})
    found, truth = (metadata(find_architecture(one.config), one) for one in (changed, headers(name)))
    assert found == truth


def test_gpt_2s_causal_masks_are_left_out() -> None:
    """openai-community/gpt2 holds them."""
    made = layout("gpt2-bare", **{"h.0.attn.bias": (1, 1, 512, 512), "h.1.attn.masked_bias": ()})
    assert [name for name, reason in made.dropped if "mask" in reason] == ["h.0.attn.bias", "h.1.attn.masked_bias"]


def test_a_falcon_of_one_key_head_is_known_without_their_number() -> None:
    """tiiuae/falcon-7b states none, which transformers' config turns into one for each head."""
    for keys in (None, 4):
        assert layout("falcon", {"num_kv_heads": keys}) == layout("falcon")
    old = {"num_attention_heads": None, "num_hidden_layers": None, "num_kv_heads": None, "n_head": 4, "n_layer": 2}
    assert layout("falcon", {**old, "architectures": ["RWForCausalLM"]}) == layout("falcon")
    assert layout("falcon-40b", {**old, "new_decoder_architecture": None, "n_head_kv": 2}) == layout("falcon-40b")


def test_keys_that_heads_cannot_share_are_refused() -> None:
    shape = (128 + 2 * 3 * 32, 128)
    names = [f"transformer.h.{i}.self_attention.query_key_value.weight" for i in range(2)]
    with pytest.raises(InputError, match="4 heads cannot share 3 keys"):
        layout("falcon-40b", {"num_kv_heads": 3}, **dict.fromkeys(names, shape))


@pytest.mark.parametrize(
    ("name", "config", "word"),
    [
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("falcon", {"alibi": True}, "alibi is True"),
        ("falcon", {"parallel_attn": False}, "parallel_attn is False"),
        ("falcon-11b", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ("stablelm", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ("starcoder2", {"norm_type": "rms_norm"}, "norm_type is 'rms_norm'"),
        (
            "phimoe",
            {"rope_scaling": tiny_models.CASES["phimoe"].config["rope_scaling"] | {"long_mscale": 1.5}},
            "short_mscale is 1.25 and long_mscale 1.5",
        ),
        ("mpt", {"attn_config": {"qk_ln": True}}, "qk_ln is True"),
        ("mpt", {"attn_config": {"prefix_lm": True}}, "prefix_lm is True"),
        ("codeshell", {"position_embedding_type": "alibi"}, "position_embedding_type is 'alibi'"),
        ("phi2", {"qk_layernorm": True}, "qk_layernorm is True"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual"),
    ],
)
def test_what_llama_cpp_would_run_as_something_else_is_refused(name: str, config: Config, word: str) -> None:
    with pytest.raises(UnsupportedError, match=word):
        layout(name, config)


def test_biases_and_norms_that_llama_cpp_needs_must_be_there() -> None:
    with pytest.raises(InputError, match=r"h\.1\.attn\.c_attn\.bias"):
        layout("gpt2", None, without=("transformer.h.1.attn.c_attn.bias",))
    with pytest.raises(InputError, match="lacks 1 of 4 tensors of blk.0.attn_q_norm"):
        layout("stablelm-12b", None, without=("model.layers.0.self_attn.q_layernorm.norms.2.weight",))
