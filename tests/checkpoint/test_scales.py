"""FP8 checkpoints: which scale belongs to which weight, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ggufround.checkpoint.methods import method_of
from ggufround.checkpoint.scales import attach_scales
from ggufround.checkpoint.spec import TensorRef
from ggufround.errors import InputError

FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
PER_TENSOR = {"quantization_config": {"quant_method": "fp8"}}


def compressed(**weights: Any) -> dict[str, Any]:
    group = {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"} | weights}
    method = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}}
    return {"quantization_config": method}


def refs(**tensors: tuple[str, tuple[int, ...]]) -> dict[str, TensorRef]:
    """`a__weight` stands for a.weight."""
    named = {name.replace("__", "."): row for name, row in tensors.items()}
    return {n: TensorRef(n, dtype, shape, Path("x"), 0, 0) for n, (dtype, shape) in named.items()}


def attach(tensors: dict[str, TensorRef], config: dict[str, Any]) -> dict[str, TensorRef]:
    return attach_scales(tensors, method_of(config, "m").block, "m")


E4 = "F8_E4M3"


@pytest.mark.parametrize(
    ("config", "shape", "suffix", "scale", "block"),
    [
        (FP8, (256, 512), "_scale_inv", (2, 4), (128, 128)),
        (FP8, (200, 300), "_scale_inv", (2, 3), (128, 128)),
        (FP8, (3, 256, 512), "_scale_inv", (3, 2, 4), (128, 128)),
        (FP8, (3, 256, 512), "_scale_inv", (3, 1, 1), (256, 0)),
        (FP8, (3, 256, 512), "_scale_inv", (3,), (256, 0)),
        (PER_TENSOR, (256, 512), "_scale", (), (0, 0)),
        (PER_TENSOR, (256, 512), "_scale_inv", (1,), (0, 0)),
        (PER_TENSOR, (3, 256, 512), "_scale_inv", (1, 1, 1), (0, 0)),
        (compressed(), (256, 512), "_scale", (256, 1), (1, 0)),
        (compressed(), (256, 512), "_scale", (256,), (1, 0)),
        (compressed(), (3, 256, 512), "_scale", (3, 256, 1), (1, 0)),
        (compressed(block_structure=[64, 32]), (256, 512), "_scale", (4, 16), (64, 32)),
        ({}, (256, 512), "_scale", (256, 1), (1, 0)),
    ],
)
def test_scales_are_attached(
    config: dict[str, Any], shape: tuple[int, ...], suffix: str, scale: tuple[int, ...], block: tuple[int, int]
) -> None:
    tensors = refs(a__weight=(E4, shape), norm__weight=("BF16", (512,)))
    tensors |= refs(**{"a__weight" + suffix: ("F32", scale)})
    found = attach(tensors, config)
    assert found.keys() == {"a.weight", "norm.weight"}
    assert found["a.weight"].scale == tensors["a.weight" + suffix]
    assert found["a.weight"].scale_block == block
    assert found["norm.weight"] == tensors["norm.weight"]


def test_what_serves_activations_is_dropped() -> None:
    tensors = refs(
        a__q_proj__weight=("F8_E5M2", (4, 8)),
        a__q_proj__qscale_weight=("BF16", ()),
        a__q_proj__qscale_act=("BF16", ()),
        a__q_proj__input_scale=("F32", ()),
        a__k_scale=("F32", ()),
    )
    assert attach(tensors, PER_TENSOR).keys() == {"a.q_proj.weight"}


def test_without_fp8_nothing_is_dropped() -> None:
    tensors = refs(a__weight=("BF16", (4, 8)), a__input_scale=("F32", ()))
    assert attach(tensors, {}) == tensors


def test_fp8_without_a_scale_is_refused() -> None:
    with pytest.raises(InputError, match=r"a.weight is F8_E4M3 without a scale \(a.weight_scale_inv\)"):
        attach(refs(a__weight=(E4, (4, 8))), FP8)


@pytest.mark.parametrize(
    ("config", "shape", "scale"),
    [
        (FP8, (256, 512), (2, 5)),
        (FP8, (256, 512), (4, 2)),
        (FP8, (256, 512), (0, 4)),
        (PER_TENSOR, (256, 512), (2, 4)),
        (PER_TENSOR, (256, 512), (512,)),
        (FP8, (3, 200, 512), (3, 2, 4)),  # blocks would cross from one expert to the next
    ],
)
def test_a_scale_that_does_not_fit_is_refused(
    config: dict[str, Any], shape: tuple[int, ...], scale: tuple[int, ...]
) -> None:
    with pytest.raises(InputError, match="does not fit a.weight"):
        attach(refs(a__weight=(E4, shape), a__weight_scale=("F32", scale)), config)


def test_bytes_of_mxfp8_are_powers_of_two_for_32_neighbours() -> None:
    tensors = refs(a__weight=(E4, (2, 96)), a__weight_scale=("U8", (2, 3)))
    found = attach(tensors, {})["a.weight"]
    assert found.scale_block == (1, 32)
    assert found.scale is not None
    assert found.scale.dtype == "F8_E8M0"


def test_a_scale_of_integers_is_refused() -> None:
    with pytest.raises(InputError, match="I32"):
        attach(refs(a__weight=(E4, (4, 8)), a__weight_scale=("I32", ())), FP8)


@pytest.mark.parametrize("size", [[128], [0, 128], [128.0, 128], "128", [2**40, 1], [True, True]])
def test_an_impossible_block_size_is_refused(size: Any) -> None:
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": size}}
    with pytest.raises(InputError, match="block size"):
        attach(refs(a__weight=(E4, (4, 8))), config)


def test_a_quantization_config_that_is_no_object_is_refused() -> None:
    with pytest.raises(InputError, match="not an object"):
        attach(refs(a__weight=("BF16", (4, 8))), {"quantization_config": [1]})
