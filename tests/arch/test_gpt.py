"""What the first generations of GPT hold besides what their converter understands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny_models
from ggufround.arch import Layout, find_architecture, outputs
from ggufround.arch.spec import Config
from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.errors import InputError, UnsupportedError


def layout(name: str, config: Config | None = None, **extra: tuple[int, ...]) -> Layout:
    """Of the case's headers, with other entries in its config and further tensors."""
    case = tiny_models.CASES[name]
    file = Path("model.safetensors")
    tensors = {
        key: TensorRef(key, "BF16", shape, file, 0, 2 * int(np.prod(shape)))
        for key, shape in (dict(case.shapes) | extra).items()
    }
    stated = {key: value for key, value in {**case.config, **(config or {})}.items() if value is not None}
    source = Checkpoint("here", Path(), tensors, stated, {})
    return outputs(find_architecture(source.config), source)


def test_gpt_2s_causal_masks_are_left_out() -> None:
    """openai-community/gpt2 holds them."""
    made = layout("gpt2-bare", **{"h.0.attn.bias": (1, 1, 512, 512), "h.1.attn.masked_bias": ()})
    assert [name for name, reason in made.dropped if "mask" in reason] == ["h.0.attn.bias", "h.1.attn.masked_bias"]


@pytest.mark.parametrize(
    ("name", "config", "word"),
    [
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_what_llama_cpp_would_run_as_something_else_is_refused(name: str, config: Config, word: str) -> None:
    with pytest.raises(UnsupportedError, match=word):
        layout(name, config)


def test_a_bias_that_llama_cpp_needs_must_be_there() -> None:
    case = tiny_models.CASES["gpt2"]
    shapes = {key: shape for key, shape in case.shapes.items() if key != "transformer.h.1.attn.c_attn.bias"}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match=r"h\.1\.attn\.c_attn\.bias"):
        patch.setitem(tiny_models.CASES, "gpt2", replace(case, shapes=shapes))
        layout("gpt2")
