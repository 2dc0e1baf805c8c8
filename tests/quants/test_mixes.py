"""The choice of types, against llama.cpp's own figures for twelve models and, where these are silent, by hand."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ggufround.errors import InputError, UsageError
from ggufround.quants.mixes import (
    BLOCKS,
    MIXES,
    NO_OVERRIDES,
    Choice,
    ModelFacts,
    Overrides,
    TensorInfo,
    assign,
    missing_types,
    mix,
    needs_imatrix,
    tensor_types,
    type_name,
    visiting_order,
)

GOLDENS = json.loads((Path(__file__).parent / "goldens/mixes.json").read_text())
LLAMA = ModelFacts("llama", 16, 8, 8)


def layers_of(spans: str | None) -> list[int]:
    if spans is None:
        return []
    ends = [span.split("-") for span in spans.split(",")]
    return [i for end in ends for i in range(int(end[0]), int(end[-1]) + 1)]


def tensors_of(rows) -> list[TensorInfo]:
    """The tensors of a golden's rows: stems, layers, columns, number of stacked matrices."""
    return [
        TensorInfo(f"{prefix}{stem}.weight", (256, columns) if matrices == 1 else (matrices, 256, columns), "BF16")
        for stems, spans, columns, matrices in rows
        for stem in stems.split()
        for prefix in ([""] if spans is None else [f"blk.{i}." for i in layers_of(spans)])
    ]


def model(n_layer=16, columns=256, tied=False, experts=0, attention="attn_q attn_k attn_v attn_output"):
    layers = f"0-{n_layer - 1}"
    rows = [("token_embd" if tied else "token_embd output", None, columns, 1), (attention, layers, columns, 1)]
    if experts:
        rows.append(("ffn_gate_exps ffn_up_exps ffn_down_exps", layers, columns, experts))
    else:
        rows.append(("ffn_gate ffn_up ffn_down", layers, columns, 1))
    return tensors_of(rows)


def types(name, tensors, facts=LLAMA, overrides=NO_OVERRIDES, has_imatrix=False) -> dict[str, str]:
    choices = assign(mix(name), tensors, facts, overrides, has_imatrix)
    return {tensor.name: choice.type for tensor, choice in zip(tensors, choices, strict=True)}


def in_layers(found: dict[str, str], stem: str) -> list[str]:
    return [kind for name, kind in found.items() if name.startswith("blk.") and name.split(".")[2] == stem]


@pytest.mark.parametrize("name", GOLDENS)
def test_types_are_llama_cpps_in_every_file_type(name):
    golden = GOLDENS[name]
    tensors, facts = tensors_of(golden["tensors"]), ModelFacts(*golden["facts"])
    order = visiting_order(tensor.name for tensor in tensors)
    for file_type, (digest, counts) in golden["mixes"].items():
        found = types(file_type, tensors[::-1], facts)
        assert dict(Counter(found.values())) == counts, file_type
        text = "".join(f"{tensor} {found[tensor]}\n" for tensor in order)
        assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest, f"{file_type}: see tools/make_mix_goldens.py"


def test_the_goldens_hold_every_mix_but_those_that_llama_cpps_figures_lack():
    covered = set.intersection(*(set(golden["mixes"]) for golden in GOLDENS.values()))
    assert set(MIXES) - covered == {"Q1_0", "Q2_0", "MXFP4", "NVFP4"}


def test_layers_are_visited_by_number_and_after_all_else():
    names = ["blk.10.a", "blk.2.b", "output.weight", "blk.2.a", "token_embd.weight", "mm.0.weight"]
    expected = ["mm.0.weight", "output.weight", "token_embd.weight", "blk.2.a", "blk.2.b", "blk.10.a"]
    assert visiting_order(names) == expected


def test_a_name_an_alias_or_a_number_finds_the_mix():
    assert mix("q4_k") is mix("Q4_K_M") is mix("15") is MIXES["Q4_K_M"]
    assert mix("38").name == "MXFP4_MOE"
    assert mix("nvfp4").file_type == 39


def test_every_type_that_a_mix_names_is_a_type():
    for row in MIXES.values():
        named = {row.type, row.output, row.embedding or row.type, *(rule.type for rule in row.rules)}
        assert named <= BLOCKS.keys(), row.name


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"'q4_k_x'.*Q4_K_M"):
        mix("q4_k_x")
    with pytest.raises(UsageError, match=r"'q9_0'.*Q8_0"):
        type_name("q9_0")


def test_q4_0_and_q5_0_raise_the_first_ffn_down_only_with_an_imatrix():
    tensors = model()
    for name, raised in (("Q4_0", "Q4_1"), ("Q5_0", "Q5_1")):
        assert in_layers(types(name, tensors), "ffn_down") == [name] * 16
        assert in_layers(types(name, tensors, has_imatrix=True), "ffn_down") == [raised] * 2 + [name] * 14


def test_iq4_xs_raises_the_first_ffn_down_only_without_an_imatrix():
    tensors = model()
    assert in_layers(types("IQ4_XS", tensors), "ffn_down") == ["Q5_K"] * 2 + ["IQ4_XS"] * 14
    assert in_layers(types("IQ4_XS", tensors, has_imatrix=True), "ffn_down") == ["IQ4_XS"] * 16


def test_iq3_xxs_with_an_imatrix_trusts_it():
    found = types("IQ3_XXS", model(), has_imatrix=True)
    assert set(in_layers(found, "attn_v") + in_layers(found, "ffn_down")) == {"IQ3_XXS"}


def test_eight_experts_get_more_bits_in_attention():
    tensors, facts = model(experts=8), replace(LLAMA, n_expert=8)
    found = types("Q4_K_M", tensors, facts)
    assert set(in_layers(found, "attn_v") + in_layers(found, "attn_k")) == {"Q8_0"}
    assert set(in_layers(found, "attn_output")) == {"Q5_K"}
    assert set(in_layers(types("Q5_K_S", tensors, facts), "attn_output")) == {"Q5_K"}
    assert set(in_layers(types("Q3_K_L", tensors, facts), "attn_output")) == {"Q3_K"}
    iq2 = types("IQ2_XXS", tensors, facts)
    assert set(in_layers(iq2, "attn_v") + in_layers(iq2, "attn_k")) == {"Q4_K"}
    more = [i < 2 or i >= 14 or i % 3 == 1 for i in range(16)]
    iq3 = in_layers(types("IQ3_M", tensors, facts), "ffn_down_exps")
    assert iq3 == ["Q4_K" if wanted else "IQ3_S" for wanted in more]


def test_experts_go_by_the_number_of_their_layer_and_not_by_their_place():
    tensors = [t for t in model(experts=4) if ".ffn_down" not in t.name or t.name.startswith("blk.15.")]
    facts = replace(LLAMA, n_expert=4)
    assert in_layers(types("Q4_K_S", tensors, facts), "ffn_down_exps") == ["Q4_K"]
    assert in_layers(types("Q4_K_M", tensors, facts), "ffn_down_exps") == ["Q6_K"]
    # the families IQ1 and IQ2 count all the same
    assert in_layers(types("IQ2_XXS", tensors, facts), "ffn_down_exps") == ["Q2_K"]
    with pytest.raises(InputError, match=r"blk\.12\.ffn_gate_exps.*0 to 11"):
        types("Q4_K_M", tensors, replace(facts, n_layer=12))


def test_falcon_has_rules_of_its_own():
    tensors, facts = model(attention="attn_qkv attn_output"), replace(LLAMA, arch="falcon")
    assert types("Q4_K_M", tensors, facts)["output.weight"] == "Q8_0"
    down = in_layers(types("Q4_K_M", tensors, facts), "ffn_down")
    assert down[:5] == ["Q6_K", "Q5_K", "Q4_K", "Q4_K", "Q5_K"]
    down = in_layers(types("Q3_K_M", tensors, facts), "ffn_down")
    assert down[:5] == ["Q5_K", "Q4_K", "Q3_K", "Q3_K", "Q4_K"]
    assert set(in_layers(types("Q3_K_L", tensors, facts), "attn_output")) == {"Q4_K"}
    assert set(in_layers(types("Q2_K", tensors, facts), "attn_output")) == {"Q2_K"}
    assert set(in_layers(types("Q4_K_S", tensors, facts), "ffn_down")) == {"Q4_K"}


def test_a_70b_model_gets_more_bits_in_attn_v():
    tensors = model(n_layer=80)
    large = ModelFacts("llama", 80, 64, 8)
    assert set(in_layers(types("Q4_K_S", tensors, large), "attn_v")) == {"Q5_K"}
    assert in_layers(types("Q4_K_S", tensors, replace(large, n_head_kv=64)), "attn_v")[4:] == ["Q4_K"] * 76
    assert set(in_layers(types("IQ2_XXS", tensors, large), "attn_v")) == {"Q4_K"}


def test_fused_qkv_follows_the_rules_for_v():
    found = in_layers(types("Q4_K_M", model(attention="attn_qkv attn_output")), "attn_qkv")
    assert found[:5] == ["Q6_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K"]


def test_a_tied_embedding_is_typed_as_output():
    assert types("Q2_K", model())["token_embd.weight"] == "Q2_K"
    assert types("Q2_K", model(tied=True))["token_embd.weight"] == "Q6_K"
    assert types("TQ1_0", model())["token_embd.weight"] == "Q4_K"
    assert types("IQ2_XXS", model(tied=True))["token_embd.weight"] == "Q5_K"
    overrides = Overrides(output_tensor_type="F16")
    assert types("Q2_K", model(tied=True), overrides=overrides)["token_embd.weight"] == "F16"
    overrides = Overrides(output_tensor_type="F16", token_embedding_type="Q8_0")
    assert types("Q2_K", model(tied=True), overrides=overrides)["token_embd.weight"] == "Q8_0"


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        ("Q2_K", 576, "Q4_0"), ("Q3_K_S", 576, "Q4_0"), ("Q4_K_S", 576, "Q5_0"), ("Q5_K_S", 576, "Q5_1"),
        ("Q6_K", 576, "Q8_0"), ("IQ4_XS", 576, "IQ4_NL"), ("TQ2_0", 576, "Q4_0"), ("Q2_0", 96, "Q4_0"),
        ("Q1_0", 576, "Q4_0"), ("NVFP4", 96, "Q4_0"), ("Q4_K_S", 100, "F16"), ("Q8_0", 100, "F16"),
    ],
)  # fmt: skip
def test_a_row_that_the_block_does_not_divide_gets_the_next_type(name, columns, expected):
    tensors = model(columns=columns)
    index = [tensor.name for tensor in tensors].index("blk.9.ffn_up.weight")
    choice = assign(mix(name), tensors, LLAMA)[index]
    assert choice == Choice(expected, "default", mix(name).type)


def test_output_is_q8_0_where_the_default_type_does_not_divide_its_row():
    assert types("Q4_K_M", model(columns=576))["output.weight"] == "Q8_0"
    assert types("Q4_0", model(columns=576))["output.weight"] == "Q8_0"  # Q6_K does not fit either


def test_pure_means_the_default_everywhere_but_where_a_flag_says_else():
    overrides = Overrides(pure=True)
    assert set(types("Q4_K_M", model(), overrides=overrides).values()) == {"Q4_K"}
    assert set(types("Q4_K_M", model(columns=96), overrides=overrides).values()) == {"Q5_0"}
    found = types("Q4_K_M", model(), overrides=replace(overrides, output_tensor_type="Q8_0"))
    assert found.pop("output.weight") == "Q8_0"
    assert set(found.values()) == {"Q4_K"}


def test_the_first_pattern_that_is_found_wins_and_its_tensors_are_not_counted():
    overrides = Overrides(tensor_types(["blk.0.ATTN_V=q8_0", "attn_v=Q5_0", r"layers\.3\.mlp\.Up=f16"]))
    tensors = [
        replace(t, hf_names=("model.layers.3.mlp.Up_proj.weight",)) if t.name == "blk.3.ffn_up.weight" else t
        for t in model()
    ]
    found = types("Q4_K_M", tensors, overrides=overrides)
    assert in_layers(found, "attn_v") == ["Q8_0"] + ["Q5_0"] * 15
    assert found["blk.3.ffn_up.weight"] == "F16"
    assert found["blk.4.ffn_up.weight"] == "Q4_K"
    one = Overrides(tensor_types(["blk.0.ffn_down=q8_0"]))
    assert in_layers(types("Q4_K_S", model(), overrides=one), "ffn_down")[:4] == ["Q8_0", "Q5_K", "Q5_K", "Q4_K"]


def test_a_pattern_holds_for_a_float_file_type_too():
    found = types("BF16", model(), overrides=Overrides((("ffn_down", "Q8_0"),)))
    assert set(in_layers(found, "ffn_down")) == {"Q8_0"}
    assert set(in_layers(found, "ffn_up")) == {"BF16"}


def test_a_pattern_names_the_per_layer_embedding_even_beside_token_embedding_type():
    tensors = [*model(), TensorInfo("per_layer_token_embd.weight", (64, 256), "BF16")]
    overrides = Overrides((("token_embd", "Q5_0"),), token_embedding_type="Q8_0")
    found = types("Q4_K_M", tensors, overrides=overrides)
    assert (found["token_embd.weight"], found["per_layer_token_embd.weight"]) == ("Q8_0", "Q5_0")


@pytest.mark.parametrize(
    ("text", "message"), [("ffn=q9", "'q9'"), ("ffn", "PATTERN=TYPE"), ("=q8_0", "PATTERN=TYPE"), ("(=q8_0", "'\\('")]
)
def test_a_bad_pattern_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        tensor_types([text])


def test_what_llama_cpp_never_quantises_keeps_its_type():
    names = {
        "blk.0.attn_norm.weight": (256, 256), "blk.0.ffn_gate_inp.weight": (8, 256),
        "blk.0.ssm_conv1d.weight": (256, 4), "position_embd.weight": (64, 256),
        "blk.0.attn_q.bias": (2, 256), "blk.0.ffn_down.scale": (8, 2), "blk.0.ffn_up.weight": (1, 256),
        "rope_freqs.weight": (64,), "blk.0.time_mix_w1.weight": (8, 256),
    }  # fmt: skip
    sources = {"BF16": "BF16", "F16": "F16", "F32": "F32", "F8_E4M3": "F32", "F64": "F32", "Q8_0": "Q8_0"}
    for source, kept in sources.items():
        found = types("Q4_K_M", [TensorInfo(name, shape, source) for name, shape in names.items()])
        assert found == dict.fromkeys(names, kept)
    found = types("Q4_0", [TensorInfo(name, shape, "BF16", float32=True) for name, shape in names.items()])
    assert set(found.values()) == {"F32"}


def test_the_converters_f32_holds_against_every_flag():
    router = TensorInfo("blk.0.ffn_up.weight", (8, 256), "BF16", float32=True)
    assert assign(mix("F16"), [router], LLAMA, Overrides((("ffn_up", "Q8_0"),))) == [Choice("F32", "kept")]


def test_leave_output_tensor_keeps_it_and_does_not_tie_the_embedding():
    found = types("Q2_K", model(), overrides=Overrides(leave_output_tensor=True))
    assert (found["output.weight"], found["token_embd.weight"]) == ("BF16", "Q2_K")


def test_glm5_next_keeps_more_and_holds_others_at_q8_0():
    tensors = [
        TensorInfo(name, (256, 256), "F16")
        for name in ("blk.0.attn_q_a.weight", "blk.0.attn_k_b.weight", "blk.0.hc_x.weight", "blk.0.ffn_up.weight")
    ]
    facts = replace(LLAMA, arch="glm5-next")
    assert list(types("Q4_K_M", tensors, facts).values()) == ["Q8_0", "F16", "F16", "Q4_K"]
    assert list(types("F16", tensors, facts).values()) == ["F16"] * 4


@pytest.mark.parametrize("name", ["MXFP4", "NVFP4"])
def test_our_fp4_mixes_leave_only_embedding_and_output_wider(name):
    found = types(name, model())
    assert (found.pop("token_embd.weight"), found.pop("output.weight")) == ("Q6_K", "Q6_K")
    assert set(found.values()) == {name}
    assert types(name, model(tied=True))["token_embd.weight"] == "Q6_K"


def test_an_importance_matrix_is_needed_where_llama_quantize_needs_it():
    assert needs_imatrix(mix("IQ2_XXS"), "blk.0.ffn_up.weight", "IQ2_XXS")
    assert not needs_imatrix(mix("IQ2_XXS"), "token_embd.weight", "IQ2_XXS")
    assert not needs_imatrix(mix("IQ3_M"), "blk.0.ffn_up.weight", "IQ3_S")
    assert needs_imatrix(mix("Q2_K_S"), "blk.0.ffn_up.weight", "Q2_K")
    assert not needs_imatrix(mix("Q2_K"), "blk.0.ffn_up.weight", "Q2_K")


def test_types_that_cannot_be_written_are_named():
    choices = assign(mix("IQ2_XXS"), model(), LLAMA)
    assert missing_types(choices, {"Q2_K", "Q5_K"}) == ["IQ2_XXS"]
    assert missing_types(choices, BLOCKS) == []
