"""Every tensor is used once or dropped with a reason; what does not fit is refused with the name that is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

import tiny_models
from ggufround.arch import ARCHITECTURES, Layout, find_architecture, metadata, outputs
from ggufround.arch.transforms import interleave_heads, on_vector
from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.errors import InputError, UnsupportedError


def headers(
    name: str, config: Mapping[str, Any] | None = None, extra: Mapping[str, tuple[int, ...]] | None = None
) -> Checkpoint:
    """A tiny case's headers with keys of its config changed (None: null) and tensors added."""
    case = tiny_models.CASES[name]
    file = Path("model.safetensors")
    shapes = {k: v for k, v in case.shapes.items() if "_Dense." not in k}  # those come with files of their own
    shapes |= extra or {}
    tensors = {key: TensorRef(key, "BF16", shape, file, 0, 2 * int(np.prod(shape))) for key, shape in shapes.items()}
    return Checkpoint("tiny", Path("tiny"), tensors, {**case.config, **(config or {})})


def layout(name: str, config: Mapping[str, Any] | None = None, **extra: tuple[int, ...]) -> Layout:
    source = headers(name, config, extra)
    return outputs(find_architecture(source.config), source)


def less(name: str, *left_out: str) -> Layout:
    source = headers(name)
    kept = {key: ref for key, ref in source.tensors.items() if key not in left_out}
    return outputs(find_architecture(source.config), replace(source, tensors=kept))


@pytest.mark.parametrize("name", tiny_models.CASES)
def test_each_row_of_the_checkpoint_is_used_once_or_its_tensor_dropped(name: str) -> None:
    source = headers(name)
    made = layout(name)
    rows = {key: np.zeros(ref.rows, int) for key, ref in source.tensors.items()}
    for output in made.outputs:
        solid = any(piece.read for piece in output.pieces)  # of some elements of rows, the others of which others take
        count = sum(piece.rows * (1 if solid else piece.source.columns) for piece in output.pieces)
        assert count in (0, np.prod(output.shape[:-1] if solid else output.shape))
        for piece in output.pieces:
            assert piece.rows % piece.granule == 0
            used = rows[piece.source.name][piece.first : piece.first + piece.source_rows]
            used[:] = 1 if piece.read else used + 1
    for key, used in rows.items():
        assert (used == (0 if key in dict(made.dropped) else 1)).all(), key


def test_outputs_come_in_llama_quantizes_order() -> None:
    names = [output.name for output in layout("llama").outputs]
    assert names[:4] == ["output.weight", "output_norm.weight", "token_embd.weight", "blk.0.attn_k.weight"]
    assert names.index("blk.1.attn_k.weight") > names.index("blk.0.ffn_up.weight")


def test_experts_become_one_output_with_a_piece_for_each() -> None:
    stack = next(o for o in layout("mixtral").outputs if o.name == "blk.1.ffn_down_exps.weight")
    assert stack.shape == (4, tiny_models.EMBD, tiny_models.FF)
    assert [piece.source.name for piece in stack.pieces] == [
        f"model.layers.1.block_sparse_moe.experts.{e}.w2.weight" for e in range(4)
    ]


def test_a_tied_model_with_a_head_keeps_it_but_gemma_2_drops_it() -> None:
    head = {"lm_head.weight": (tiny_models.VOCAB, tiny_models.EMBD)}
    assert "output.weight" in [output.name for output in layout("llama3", None, **head).outputs]
    gemma = layout("gemma2", None, **head)
    assert "output.weight" not in [output.name for output in gemma.outputs]
    assert gemma.dropped == (("lm_head.weight", "the same as the embedding, which llama.cpp uses for the output"),)


def test_what_llama_cpp_computes_itself_is_dropped_with_the_reason() -> None:
    dropped = dict(layout("llama", None, **{"model.layers.0.self_attn.rotary_emb.inv_freq": (16,)}).dropped)
    assert dropped == {
        "model.layers.0.self_attn.rotary_emb.inv_freq": "rotary frequencies: computed by llama.cpp",
    }


def test_gemma_3_drops_the_rows_of_the_embedding_beyond_its_vocabulary() -> None:
    made = layout("gemma3", {"vocab_size": 300})
    embedding = next(output for output in made.outputs if output.name == "token_embd.weight")
    assert embedding.shape == (300, tiny_models.EMBD)
    assert embedding.pieces[0].rows == 300
    assert made.dropped == (("model.embed_tokens.weight", "rows from 300 on: beyond the vocabulary"),)


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(InputError, match=r"lacks 1 tensors that llama with 2 layers needs: layers\.1\.mlp\.up_proj"):
        less("llama", "model.layers.1.mlp.up_proj.weight")


def test_a_missing_expert_is_named() -> None:
    with pytest.raises(InputError, match=r"lacks 1 of 4 experts of blk\.0\.ffn_up_exps\.weight: .*experts\.2\.w3"):
        less("mixtral", "model.layers.0.block_sparse_moe.experts.2.w3.weight")


def test_a_tied_olmo_is_refused_since_llama_cpp_reads_none() -> None:
    with pytest.raises(InputError, match=r"lm_head\.weight"):
        less("olmo2", "lm_head.weight")


def test_leftover_tensors_are_refused_and_some_are_named() -> None:
    extra = {f"model.layers.0.adapter.{k}.weight": (2, 2) for k in range(9)}
    with pytest.raises(
        UnsupportedError, match=r"9 tensors .* no place in llama: model\.layers\.0\.adapter\.0.*, \.\.\."
    ):
        layout("llama", None, **extra)


def test_a_bias_that_llama_cpp_would_not_read_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"o_proj\.bias"):
        layout("qwen2", None, **{"model.layers.0.self_attn.o_proj.bias": (tiny_models.EMBD,)})


def test_more_layers_in_the_checkpoint_than_in_the_config_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"model\.layers\.1\."):
        layout("llama", {"num_hidden_layers": 1})


def test_a_shape_that_contradicts_the_config_names_tensor_found_and_expected() -> None:
    message = r"model\.safetensors: tensor model\.embed_tokens\.weight has shape \[320, 128\], .* \[321, 128\]"
    with pytest.raises(InputError, match=message):
        layout("llama", {"vocab_size": 321})


def test_one_tensor_under_two_prefixes_is_refused() -> None:
    with pytest.raises(InputError, match=r"both .*norm\.weight and norm\.weight"):
        layout("llama", None, **{"norm.weight": (tiny_models.EMBD,)})


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("llama", {"num_hidden_layers": None}, "has no n_layers or num_hidden_layers"),
        ("llama", {"num_hidden_layers": "2"}, "num_hidden_layers is '2', expected a whole number"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers is True, expected a whole number"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers or .* is 0, expected a whole number above 0"),
        ("llama", {"num_hidden_layers": 10**9}, "llama.cpp runs at most 512"),
        ("llama", {"num_hidden_layers": 10**30}, "expected a whole number from 0 to 4294967295"),
        ("mixtral", {"num_local_experts": 10**6}, "llama.cpp runs at most 1024"),
        ("llama", {"hidden_size": 128.5}, "hidden_size is 128.5"),
        ("llama", {"hidden_size": -128}, "hidden_size is -128"),
        ("llama", {"num_attention_heads": 3}, "does not divide into 3 heads"),
        ("llama", {"head_dim": 31}, "heads of 31 columns cannot be rotated in pairs"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; llama.cpp runs this architecture with silu"),
        ("llama", {"rope_scaling": {"rope_type": "longrope"}}, "rope_type is 'longrope'; for llama llama.cpp knows"),
        ("llama", {"rope_scaling": {"rope_type": 7}}, "rope_type is 7, expected a string"),
        ("llama", {"rope_scaling": [1]}, r"rope_scaling is \[1\], expected an object"),
        ("qwen2", {"rope_scaling": {"type": "llama3"}}, "rope_type is 'llama3'; for qwen2"),
        ("llama", {"text_config": 5}, "expected an object, found 5"),
        ("llama3", {"rope_scaling": {"rope_type": "llama3", "factor": 0}}, "factor is 0.0, expected a number above 0"),
        (
            "llama3",
            {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 4, "high_freq_factor": 1}},
            "high_freq_factor is 1.0, expected a number from low_freq_factor, 4.0, on",
        ),
        ("llama", {"head_dim": 0}, "head_dim is 0, expected a whole number above 0"),
        ("phi3-longrope", {"partial_rotary_factor": 2.0}, "partial_rotary_factor is 2.0, expected at most 1"),
        ("phi3-longrope", {"partial_rotary_factor": 1.0}, "long_factor is .* expected a list of 16 numbers"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0, 1]}, "no_rope_layers is"),
        ("smollm3", {"no_rope_layer_interval": 2}, "no_rope_layers is None with an interval of 2"),
        ("gemma2", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar is 100; llama.cpp runs this model with 64"),
        ("gemma2", {"rope_theta": 5e5}, "rope_theta is 500000.0; llama.cpp runs this architecture with 10000.0"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "layer_types is"),
        ("gemma3", {"sliding_window_pattern": 3}, "sliding_window_pattern of 3"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ("qwen3moe", {"norm_topk_prob": False}, "norm_topk_prob is False"),
        ("qwen3moe", {"mlp_only_layers": [0]}, r"mlp_only_layers is \[0\]"),
    ],
)
def test_a_config_that_is_wrong_or_that_llama_cpp_would_ignore_is_refused_by_key(
    name: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        layout(name, config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_position_embeddings": -1}, "max_position_embeddings is -1"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', expected a finite number"),
        ({"rms_norm_eps": float("nan")}, "expected a finite number"),
        ({"rope_theta": 1e39}, "rope_theta is 1e.39, expected a finite number"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "lack original_max_position_embeddings"),
        ({"rope_parameters": {"full_attention": 3}}, "full_attention is 3, expected an object"),
    ],
)
def test_a_wrong_number_of_the_metadata_is_refused_by_key(config: dict[str, Any], message: str) -> None:
    source = headers("llama", config)
    with pytest.raises(InputError, match=message):
        metadata(find_architecture(source.config), source)


def test_olmo_3_needs_a_kind_of_attention_for_every_layer() -> None:
    source = headers("olmo3", {"layer_types": ["sliding_attention"]})
    with pytest.raises(InputError, match=r"layer_types is \['sliding_attention'\], expected a list of 4 names"):
        metadata(find_architecture(source.config), source)


def test_a_config_that_claims_many_layers_is_refused_at_once() -> None:
    begin = perf_counter()
    with pytest.raises(InputError):
        layout("qwen3moe", {"num_hidden_layers": 512, "num_experts": 1024})
    assert perf_counter() - begin < 2


def test_null_means_none_and_not_the_default() -> None:
    source = headers("mistral", {"num_key_value_heads": None})
    kept = {key: ref for key, ref in source.tensors.items() if "k_proj" not in key and "v_proj" not in key}
    square = (tiny_models.EMBD, tiny_models.EMBD)
    for i in range(tiny_models.LAYERS):
        for part in ("k_proj", "v_proj"):
            name = f"model.layers.{i}.self_attn.{part}.weight"
            kept[name] = replace(source.tensors[name], shape=square)
    source = replace(source, tensors=kept)
    found = metadata(find_architecture(source.config), source)
    assert "llama.attention.head_count_kv" not in found  # llama.cpp then takes one for every head


def test_every_architecture_has_a_golden_case() -> None:
    cases = {find_architecture(case.config).classes for case in tiny_models.CASES.values()}
    assert {architecture.classes for architecture in ARCHITECTURES.values()} == cases


def test_an_unknown_architecture_is_refused_with_its_neighbours() -> None:
    with pytest.raises(UnsupportedError, match=r"'Qwen33ForCausalLM' is not known; near it: Qwen3ForCausalLM.*--arch"):
        find_architecture({"architectures": ["Qwen33ForCausalLM"]})


@pytest.mark.parametrize("config", [{}, {"architectures": []}, {"architectures": "x"}, {"architectures": [3]}])
def test_a_config_without_architectures_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no `architectures`; say with --arch"):
        find_architecture(config)


def test_an_override_is_a_class_or_a_gguf_name_in_any_case() -> None:
    assert find_architecture({}, "llama") is ARCHITECTURES["LlamaForCausalLM"]
    assert find_architecture({"architectures": ["Unknown"]}, "QWEN3MOE") is ARCHITECTURES["Qwen3MoeForCausalLM"]
    assert find_architecture({}, "mixtralforcausallm") is ARCHITECTURES["MixtralForCausalLM"]
    with pytest.raises(UnsupportedError, match="near it: .*llama"):
        find_architecture({}, "llamma")


def test_the_text_part_of_a_composite_model_decides_its_architecture() -> None:
    config = {"architectures": ["SomeVisionModel"], "text_config": {"architectures": ["Qwen2ForCausalLM"]}}
    assert find_architecture(config).name == "qwen2"


def test_interleaving_moves_each_row_of_the_second_half_behind_its_partner() -> None:
    rows = np.arange(16, dtype=np.float32).reshape(16, 1) * np.ones((1, 3), np.float32)
    moved = [0, 4, 1, 5, 2, 6, 3, 7]
    expected = [head * 8 + row for head in range(2) for row in moved]
    assert interleave_heads(rows, 8)[:, 0].tolist() == expected
    bias = on_vector(lambda column: interleave_heads(column, 8), rows[:, 0].reshape(1, 16))
    assert bias.shape == (1, 16)
    assert bias[0].tolist() == expected


def test_blocks_that_predict_further_tokens_are_dropped_with_the_reason() -> None:
    dropped = dict(layout("deepseek3").dropped)
    assert all(name.startswith("model.layers.3.") for name in dropped)
    assert "further tokens" in dropped["model.layers.3.eh_proj.weight"]


def test_a_head_at_a_time_is_turned_round() -> None:
    keys = next(o for o in layout("deepseek2").outputs if o.name == "blk.0.attn_k_b.weight")
    assert [(piece.first, piece.source_rows, piece.rows) for piece in keys.pieces] == [
        (0, 32, 64), (56, 32, 64), (112, 32, 64), (168, 32, 64)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 128}}, "mscale"),
        ({"num_hidden_layers": 27}, "q_lora_rank"),
        ({"norm_topk_prob": True}, "norm_topk_prob"),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, "rope_type"),
    ],
)
def test_what_llama_cpp_computes_otherwise_in_latent_attention_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        layout("deepseek2", {**tiny_models.CASES["deepseek2"].config, **config})


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("hunyuan", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "without alpha"),
        ("hunyuan-moe", {"moe_topk": [2, 3]}, "moe_topk"),
        ("hunyuan-moe", {"moe_intermediate_size": [64, 64]}, "moe_intermediate_size"),
        ("ernie4.5-moe", {"moe_layer_end_index": 1}, "moe_layer_end_index"),
        ("ernie4.5-moe", {"moe_layer_interval": 2}, "moe_layer_interval"),
        (
            "deepseek3.2",
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4,
                    "original_max_position_embeddings": 128,
                    "mscale": 0.7,
                    "mscale_all_dim": 0.7,
                }
            },
            "mscale_all_dim",
        ),
        ("glm5", {"indexer_types": ["shared", "full", "full"]}, "nothing to share"),
        ("glm5", {"indexer_types": ["full"]}, "indexer_types"),
        ("deepseek3.2", {"mlp_layer_types": ["sparse"] * 3}, "mlp_layer_types"),
        ("dots1", {"num_key_value_heads": 2}, "num_key_value_heads"),
        ("youtu", {"n_routed_experts": 8}, "n_routed_experts"),
        ("bailing", {"norm_head": True}, "norm_head"),
        ("bailing2", {"moe_shared_expert_intermediate_size": 128}, "moe_shared_expert_intermediate_size"),
        ("glm", {"head_dim": 64}, "head_dim"),
        ("minicpm3", {"scale_emb": 1}, "scale_emb"),
        ("minicpm3", {"v_head_dim": 16}, "v_head_dim"),
        ("minicpm-longrope", {"max_position_embeddings": 1024}, "original_max_position_embeddings"),
        ("glm4", {"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ("glm4moe-lite", {"mlp_layer_types": ["sparse"] * 3}, "mlp_layer_types"),
    ],
)
def test_a_config_that_newer_architectures_cannot_run_is_refused(
    name: str, config: dict[str, Any], message: str
) -> None:
    changed = {**tiny_models.CASES[name].config, **config}
    arch = find_architecture(changed)
    with pytest.raises((InputError, UnsupportedError), match=message):
        metadata(arch, headers(name, changed))


def test_a_block_that_predicts_a_further_token_is_all_there_or_not_at_all() -> None:
    with pytest.raises(InputError, match=r"layers\.3\.eh_proj\.weight"):
        less("glm4moe", "model.layers.3.eh_proj.weight")
