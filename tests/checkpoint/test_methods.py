"""What a config.json says of how a model was quantised, and the methods that are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from ggufround.checkpoint.methods import WHOLE, Method, Stated, method_of
from ggufround.errors import InputError, UnsupportedError
from packed_layouts import config, groups_config

FLOAT8 = {"type": "float", "num_bits": 8}
INT4 = {"type": "int", "num_bits": 4, "group_size": 128}


def test_a_model_that_is_not_quantised_has_no_method() -> None:
    assert method_of({}, "m") == Method()


def test_gptq_states_bits_and_whether_zero_points_are_lowered() -> None:
    said = {"bits": 4, "group_size": 128, "sym": True, "desc_act": True}
    found = method_of(config("gptq", **said), "m")
    assert (found.stated, found.lowered, found.reordered) == ((Stated(4, 128, True),), True, True)
    assert not method_of(config("gptq", checkpoint_format="gptq_v2", **said), "m").lowered
    mixed = {"+:.*q_proj$": {"bits": 8, "sym": False}, "-:.*down_proj$": {}}
    assert Stated(8, 128, False) in method_of(config("gptq", dynamic=mixed, **said), "m").stated


def test_awq_is_symmetric_where_it_has_no_zero_points() -> None:
    found = method_of(config("awq", bits=4, group_size=64, zero_point=False, version="gemm"), "m")
    assert found.stated == (Stated(4, 64, True),)
    assert not found.lowered


@pytest.mark.parametrize(
    ("packing", "lowered"),
    [("auto_round:auto_gptq", True), ("auto_round", False), ("auto_round:gptqmodel", False),
     ("auto_round:auto_awq", False)],
)  # fmt: skip
def test_auto_round_says_how_it_packed(packing: str, lowered: bool) -> None:
    extra = {"model.layers.0.q": {"bits": 8}, "lm_head": {"bits": 16, "data_type": "float"}}
    said = {"bits": 4, "group_size": 128, "sym": True, "packing_format": packing, "extra_config": extra}
    found = method_of(config("auto-round", **said), "m")
    assert found.lowered == lowered
    assert found.of("model.layers.0.q")[0] == Stated(8, 128, True)
    assert found.of("model.layers.1.q")[0] == Stated(4, 128, True)


def test_mlx_states_layers_by_name() -> None:
    table = {"group_size": 64, "bits": 4, "lm_head": {"group_size": 32, "bits": 6}, "model.norm": False}
    for found in (method_of({"quantization": table}, "m"), method_of({"quantization_config": table}, "m")):
        assert found.of("lm_head")[0] == Stated(6, 32, True)
        assert found.of("other") == (Stated(4, 64, True),)


def test_compressed_tensors_states_groups_and_blocks() -> None:
    found = method_of(groups_config("pack-quantized", INT4, {**INT4, "num_bits": 8, "group_size": None}), "m")
    assert found.stated == (Stated(4, 128, True), Stated(8, WHOLE, True))
    blocks = groups_config("float-quantized", {**FLOAT8, "block_structure": [64, 32]})
    assert method_of(blocks, "m").block == (64, 32)


def test_what_a_composite_model_says_of_its_text_part_counts() -> None:
    found = method_of({"text_config": config("awq", bits=4, group_size=64)}, "m")
    assert found.name == "awq"


REFUSED: dict[str, dict[str, Any]] = {
    "bitsandbytes": config("bitsandbytes"),
    "None": {"quantization_config": {}},
    "gptq in the format marlin": config("gptq", bits=4, checkpoint_format="marlin"),
    "awq in the version gemv": config("awq", bits=4, version="gemv"),
    "auto-round in the format auto_round:fake": config("auto-round", bits=4, packing_format="auto_round:fake"),
    "mlx in the mode mxfp4": {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}},
    "format pack-quantized": config("compressed-tensors", format="pack-quantized"),
    "format marlin-24": groups_config("marlin-24", INT4),
    "other than float of 8 bits": groups_config("float-quantized", INT4),
    "several sizes": groups_config("float-quantized", *({**FLOAT8, "block_structure": [n, n]} for n in (64, 128))),
    "sparsity": config("compressed-tensors", config_groups={"a": {}}, sparsity_config={"format": "sparse-24-bitmask"}),
}


@pytest.mark.parametrize("word", REFUSED)
def test_other_methods_are_refused_by_name(word: str) -> None:
    with pytest.raises(UnsupportedError, match=f"quantised already, by .*{word}"):
        method_of(REFUSED[word], "m")


@pytest.mark.parametrize(
    "wrong",
    [{"bits": 1}, {"bits": 9}, {"bits": "4"}, {"bits": True}, {"bits": 4, "group_size": 0}, {"bits": 4, "dynamic": []},
     {"bits": 4, "group_size": 1 << 40}, {"bits": 4, "dynamic": {"+:a": {"bits": 300}}}, {}],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="m: "):
        method_of(config("gptq", **wrong), "m")
