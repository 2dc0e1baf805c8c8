"""Quantised checkpoints as sources: their codes go into a GGUF file as they are, or it is said that they do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from ggufround import Options, Report, Run, convert, plan
from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import UsageError
from ggufround.evaluate.file_check import verify
from ggufround.gguf_read import read_gguf
from ggufround.layer_planning import CheckpointOptions
from ggufround.quants.mixes import Overrides
from ggufround.quants.schemes import scheme
from llama_cpp import log_probs
from packed_layouts import (
    GPTQ4,
    Stored,
    awq,
    compressed,
    config,
    floats,
    fp4,
    gptq,
    groups_config,
    layer,
    mlx,
    rows_of,
    whole,
)
from tiny import write_safetensors

pytestmark = pytest.mark.usefixtures("small_slabs")
PROMPTS = [[5, 40, 77, 130, 9], [60, 61, 62, 63, 64, 65]]
OUT = "model.layers.0.self_attn.o_proj"
Q = "model.layers.0.self_attn.q_proj"
K = "model.layers.1.self_attn.k_proj"
DOWN = "model.layers.1.mlp.down_proj"
DIVISORS = {Q: 300.0, K: 7.7, DOWN: 1e4}
SHAPES = {Q: (128, 128), K: (64, 128), DOWN: (128, 192)}
RNG = np.random.default_rng(8)


def saved(llama: Path, folder: Path, format_: str, name: str, **options: Any) -> Path:
    """The tiny Llama as a checkpoint that ggufround itself writes."""
    convert(llama, folder, options=CheckpointOptions(scheme(name), (format_,), "rtn", **options))
    return folder


def with_layers(llama: Path, folder: Path, stored: Stored, said: dict[str, Any]) -> Path:
    """The tiny Llama with some layers as another tool has packed them."""
    whole_model = open_checkpoint(llama)
    names = {name.rsplit(".", 1)[0] for name in stored}
    raw: Stored = {
        n: (t.dtype, t.shape, t.path.read_bytes()[t.offset : t.offset + t.nbytes])
        for n, t in whole_model.tensors.items()
        if n.removesuffix(".weight") not in names
    }
    folder.mkdir()
    for path in whole_model.files.values():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_text(json.dumps(dict(whole_model.config) | said))
    write_safetensors(folder / "model.safetensors", raw | stored)
    return folder


def opened(model: Path, out: Path, **further: Any) -> tuple[Checkpoint, Report]:
    report = convert(model, out, **further)
    return open_checkpoint(out), report


def exact(model: Path, out: Path) -> Checkpoint:
    """The source dequantised, in the arrangement of a GGUF file."""
    return opened(model, out, type="f32")[0]


def notes(report: Report, word: str) -> list[str]:
    return [line for line in report.notes if word in line]


OWN = [
    ("auto_round", "W4A16G32", "Q4_0"), ("auto_round", "W2A16G64", "Q2_0"), ("auto_round", "W2A16G32", "Q4_0"),
    ("auto_round", "W3A16G32", "Q4_0"), ("auto_round", "W5A16G32", "Q5_0"), ("auto_round", "W8A16G32", "Q8_0"),
    ("auto_round", "W6A16G32", "Q8_0"), ("auto_round", "W3A16G32-asym", "Q4_0"), ("auto_round", "MXFP4", "MXFP4"),
    ("auto_gptq", "W4A16G32", "Q4_0"), ("auto_gptq", "W8A16G64", "Q8_0"),
    ("auto_gptq", "W2A16G64-asym", "Q4_0"), ("auto_awq", "W4A16G32", "Q4_0"),
    ("llm_compressor", "W4A16G64", "Q4_0"), ("llm_compressor", "W8A16G32", "Q8_0"),
    ("llm_compressor", "W6A16G32-asym", "Q8_0"), ("llm_compressor", "MXFP4A16", "MXFP4"),
    ("llm_compressor", "NVFP4A16", "NVFP4"), ("mlx", "W4A16G32", "Q4_1"), ("mlx", "W2A16G32-asym", "Q4_1"),
    ("mlx", "W5A16G64", "Q5_1"), ("mlx", "W3A16G64", "Q4_1"),
]  # fmt: skip


@pytest.mark.parametrize(("format_", "name", "kind"), OWN)
def test_what_ggufround_wrote_becomes_a_gguf_of_the_same_values(
    llama: Path, tmp_path: Path, format_: str, name: str, kind: str
) -> None:
    model = saved(llama, tmp_path / "m", format_, name)
    source, found = exact(model, tmp_path / "f32.gguf"), opened(model, tmp_path / "x.gguf")
    made, report = found
    assert notes(report, f"in {kind})")
    assert not notes(report, "second time")
    kinds = {t.dtype for n, t in made.tensors.items() if n.startswith("blk.") and len(t.shape) == 2}
    assert kinds == {kind}
    for tensor in source.tensors:
        np.testing.assert_array_equal(rows_of(made, tensor), rows_of(source, tensor), tensor)
    assert verify(tmp_path / "x.gguf", str(model)).source == "ok"


@pytest.mark.parametrize(
    ("format_", "name"),
    [("auto_round", "W4A16G32"), ("auto_round", "MXFP8"), ("auto_awq", "W4A16G32-asym"), ("mlx", "W8A16G32"),
     ("llm_compressor", "NVFP4A16"), ("llm_compressor", "W8A16G32-asym")],
)  # fmt: skip
def test_a_checkpoint_of_ggufround_is_read_as_its_writer_dequantises(
    llama: Path, tmp_path: Path, format_: str, name: str
) -> None:
    """The writer's own type is asked for the rounded weights; MLX's offsets are float16."""
    model = open_checkpoint(saved(llama, tmp_path / "m", format_, name))
    kind = scheme(name).type_for(128)
    plain = rows_of(open_checkpoint(llama), f"{Q}.weight")
    wanted, packed = np.empty_like(plain), np.empty((128, kind.row_bytes(128)), np.uint8)
    factor = np.float32(1)
    if kind.name == "NVFP4":
        group = [rows_of(open_checkpoint(llama), f"{Q[:-6]}{x}_proj.weight") for x in "qkv"]
        factor = np.float32(max(np.abs(x).max() for x in group)) / np.float32(6 * 448)
    kind.quantize(plain / factor, None, "rtn", packed)
    kind.unpack(packed, wanted)
    tolerance = {"mlx": 2e-3, "llm_compressor": 1e-6}.get(format_, 0)
    np.testing.assert_allclose(rows_of(model, f"{Q}.weight"), wanted * factor, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("format_", "name"), [("auto_awq", "W4A16G32-asym"), ("llm_compressor", "W5A16G32-asym")])
def test_codes_with_zero_points_keep_them_but_for_the_offsets_rounding(
    llama: Path, tmp_path: Path, format_: str, name: str
) -> None:
    model = saved(llama, tmp_path / "m", format_, name)
    source, (made, report) = exact(model, tmp_path / "f32.gguf"), opened(model, tmp_path / "x.gguf")
    assert notes(report, "zero points of 14 matrices become offsets, rounded to float16")
    up = "blk.0.ffn_up.weight"
    assert made.tensors[up].dtype == ("Q4_1" if "4" in name else "Q5_1")
    before, after = rows_of(source, up), rows_of(made, up)
    offset = np.abs(before).max() * 2**-11
    np.testing.assert_allclose(after, before, rtol=0, atol=offset)
    assert (after != before).any()


def test_head_and_single_layers_in_other_schemes_keep_their_codes(llama: Path, tmp_path: Path) -> None:
    layers = (("q_proj", scheme("W8A16G32")), ("down_proj", None), ("lm_head", scheme("W2A16G64")))
    for format_ in ("auto_round", "auto_gptq", "llm_compressor"):
        model = saved(llama, tmp_path / format_, format_, "W4A16G32", layers=layers, quant_lm_head=True)
        source = exact(model, tmp_path / "f32.gguf")
        made, _ = opened(model, tmp_path / "x.gguf")
        kinds = {n: t.dtype for n, t in made.tensors.items()}
        assert kinds["blk.0.attn_q.weight"] == "Q8_0"
        assert kinds["blk.0.attn_k.weight"] == "Q4_0"
        assert kinds["blk.1.ffn_down.weight"] == "BF16"
        assert kinds["output.weight"] == "Q2_0"
        assert kinds["token_embd.weight"] == "BF16"
        assert read_gguf(tmp_path / "x.gguf").metadata["general.file_type"].value == 2
        for tensor in source.tensors:
            np.testing.assert_array_equal(rows_of(made, tensor), rows_of(source, tensor), tensor)


def test_a_named_type_keeps_the_codes_that_it_holds_and_rounds_the_others_again(llama: Path, tmp_path: Path) -> None:
    model = saved(llama, tmp_path / "m", "auto_round", "W4A16G32", layers=(("v_proj", scheme("W8A16G32")),))
    source = exact(model, tmp_path / "f32.gguf")
    made, report = opened(model, tmp_path / "x.gguf", type="q4_0")
    assert notes(report, "codes of 12 matrices are carried over")
    assert notes(report, "2 matrices are rounded a second time (first: blk.0.attn_v.weight, INT8 to Q4_0)")
    for tensor in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight"):
        np.testing.assert_array_equal(rows_of(made, tensor), rows_of(source, tensor))
    assert not np.array_equal(rows_of(made, "blk.0.attn_v.weight"), rows_of(source, "blk.0.attn_v.weight"))
    fine, report = opened(model, tmp_path / "y.gguf", type="q8_0")  # holds narrower codes as well
    assert notes(report, "codes of 14 matrices")
    np.testing.assert_array_equal(rows_of(fine, "blk.0.attn_q.weight"), rows_of(source, "blk.0.attn_q.weight"))
    _, report = opened(model, tmp_path / "z.gguf", type="iq4_nl")
    assert notes(report, "14 matrices are rounded a second time")


def test_flags_decide_before_the_source_does(llama: Path, tmp_path: Path) -> None:
    model = saved(llama, tmp_path / "m", "auto_round", "W4A16G32")
    wishes = Overrides(tensor_types=(("ffn_down", "Q6_K"),), token_embedding_type="Q8_0", output_tensor_type="F16")
    made = plan(model, Options(overrides=wishes)).targets[0].types
    assert made["blk.0.ffn_down.weight"].name == "Q8_0"  # 192 columns: what stands in for Q6_K
    assert made["token_embd.weight"].name == "Q8_0"
    assert made["output.weight"].name == "F16"
    assert made["blk.0.attn_q.weight"].name == "Q4_0"
    with pytest.raises(UsageError, match="--pure wants"):
        plan(model, Options(overrides=Overrides(pure=True)))


def test_the_command_line_says_what_happens_to_the_codes(run: Any, llama: Path, tmp_path: Path) -> None:
    model = saved(llama, tmp_path / "m", "auto_awq", "W4A16G32-asym")
    ran = run("convert", model, tmp_path / "{type}.gguf")
    assert ran.code == 0
    assert "AS-SOURCE: the codes of 14 matrices are carried over as they are (14 INT4 in Q4_1)" in ran.err
    assert (tmp_path / "AS-SOURCE.gguf").exists()
    planned = run("plan", model, "--json").json["targets"][0]
    assert planned["tensors"][0]["why"] == "source"
    shown = run("inspect", model, "--json").json
    assert {t["dtype"] for t in shown["tensors"]} == {"INT4", "BF16"}


def test_a_plain_source_still_becomes_q4_k_m(llama: Path) -> None:
    assert plan(llama, Options()).targets[0].mix.name == "Q4_K_M"


FOREIGN = {
    "v2": lambda n, x: gptq(n, x, lowered=False), "awq": awq, "ct": lambda n, x: compressed(n, x, zeros=True)
}  # fmt: skip


def foreign() -> dict[str, tuple[Stored, dict[str, Any]]]:
    """What other tools write and ggufround does not."""
    many = {n: layer(*shape, 4, 32, symmetric=False, seed=k) for k, (n, shape) in enumerate(SHAPES.items())}
    stored = {method: {k: v for n, x in many.items() for k, v in f(n, x).items()} for method, f in FOREIGN.items()}
    mx = {n: RNG.integers(0, 16, shape) for n, shape in SHAPES.items()}
    exponents = {n: RNG.integers(110, 125, (s[0], s[1] // 32)).astype(np.uint8) for n, s in SHAPES.items()}
    steps = {n: RNG.integers(1, 127, (s[0], s[1] // 16)).astype(np.uint8) for n, s in SHAPES.items()}
    steps[Q][0, 0] |= 128  # no encoder writes a negative one, but E4M3 has them
    four = {"type": "float", "num_bits": 4}
    return {
        "gptq v2": (stored["v2"], config("gptq", bits=4, group_size=32, sym=False, checkpoint_format="gptq_v2")),
        "awq": (stored["awq"], config("awq", bits=4, group_size=32, zero_point=True, version="gemm")),
        "compressed": (stored["ct"], groups_config("pack-quantized", {"type": "int", "num_bits": 4, "group_size": 32})),
        "mxfp4": (
            {k: v for n in SHAPES for k, v in fp4(n, mx[n], exponents[n]).items()},
            groups_config("mxfp4-pack-quantized", four),
        ),
        "nvfp4": (
            {k: v for n, g in DIVISORS.items() for k, v in fp4(n, mx[n], steps[n], g).items()},
            groups_config("nvfp4-pack-quantized", four),
        ),
    }


@pytest.mark.parametrize("case", ["gptq v2", "awq", "compressed", "mxfp4", "nvfp4"])
def test_layers_of_other_tools_are_carried_over_with_their_rows_in_order(
    llama: Path, tmp_path: Path, case: str
) -> None:
    """q and k change the order of their rows on the way."""
    model = with_layers(llama, tmp_path / "m", *foreign()[case])
    source, (made, report) = exact(model, tmp_path / "f32.gguf"), opened(model, tmp_path / "x.gguf")
    assert notes(report, "codes of 3 matrices")
    for tensor in ("blk.0.attn_q.weight", "blk.1.attn_k.weight", "blk.1.ffn_down.weight"):
        before = rows_of(source, tensor)
        tolerance = 0 if "fp4" in case else np.abs(before).max() * 2**-11
        np.testing.assert_allclose(rows_of(made, tensor), before, rtol=0, atol=tolerance)
        if "fp4" in case:
            assert made.tensors[tensor].dtype == case.upper()


def test_experts_keep_their_codes_and_a_factor_each(tmp_path: Path) -> None:
    moe = tiny_models.write(tiny_models.CASES["qwen3moe"], tmp_path / "moe")
    stored: Stored = {}
    for name, shape in tiny_models.CASES["qwen3moe"].shapes.items():
        if ".experts." in name:
            codes, scales = RNG.integers(0, 16, shape), RNG.integers(1, 100, (shape[0], shape[1] // 16))
            stored |= fp4(name.removesuffix(".weight"), codes, scales.astype(np.uint8), float(RNG.uniform(100, 9000)))
    said = groups_config("nvfp4-pack-quantized", {"type": "float", "num_bits": 4})
    model = with_layers(moe, tmp_path / "m", stored, said)
    source, (made, _) = exact(model, tmp_path / "f32.gguf"), opened(model, tmp_path / "x.gguf")
    header = read_gguf(tmp_path / "x.gguf")
    assert header.tensors["blk.0.ffn_down_exps.scale"].shape == (4,)
    for tensor in source.tensors:
        np.testing.assert_array_equal(rows_of(made, tensor), rows_of(source, tensor), tensor)
    assert made.tensors["blk.0.ffn_down_exps.weight"].dtype == "NVFP4"


def test_columns_out_of_order_are_read_and_rounded_again(llama: Path, tmp_path: Path) -> None:
    x = layer(128, 128, 4, 32, reordered=True)
    said = config("gptq", bits=4, group_size=32, sym=True, desc_act=True)
    model = with_layers(llama, tmp_path / "m", gptq(OUT, x), said)
    made, report = opened(model, tmp_path / "x.gguf")
    assert made.tensors["blk.0.attn_output.weight"].dtype == "Q8_0"  # 128 columns: what stands in for Q6_K
    assert notes(report, "rounded a second time (first: blk.0.attn_output.weight, INT4 to Q8_0), since their columns")
    np.testing.assert_allclose(rows_of(made, "blk.0.attn_output.weight"), x.weights, atol=np.abs(x.weights).max() / 200)


@pytest.mark.parametrize("lie", ["order", "zeros"])
def test_a_config_that_promises_too_much_costs_a_second_rounding_and_is_named(
    llama: Path, tmp_path: Path, lie: str
) -> None:
    x = layer(128, 128, 4, 32, symmetric=lie == "order", reordered=lie == "order")
    made, report = opened(with_layers(llama, tmp_path / "m", gptq(OUT, x), GPTQ4), tmp_path / "x.gguf")
    assert notes(report, "1 matrices were rounded a second time after all (first: blk.0.attn_output.weight)")
    after = rows_of(made, "blk.0.attn_output.weight")
    assert np.sqrt(np.mean((after - x.weights) ** 2)) < 0.2 * x.weights.std()


def test_scales_that_are_not_float16_are_said_to_be_rounded(llama: Path, tmp_path: Path) -> None:
    x = layer(128, 128, 4, 32)
    for dtype in ("BF16", "F32"):
        x.scales[:] = RNG.uniform(0.01, 0.02, x.scales.shape)
        stored = gptq(OUT, x, scales=dtype)
        model = with_layers(llama, tmp_path / dtype, stored, GPTQ4)
        source, (made, report) = exact(model, tmp_path / "f32.gguf"), opened(model, tmp_path / "x.gguf")
        assert notes(report, "scales of 1 matrices are not float16 yet")
        before, after = (rows_of(c, "blk.0.attn_output.weight") for c in (source, made))
        np.testing.assert_allclose(after, before, rtol=0 if dtype == "BF16" else 2**-11)


def test_mlx_embedding_and_head_are_carried_over(llama: Path, tmp_path: Path) -> None:
    stored: Stored = {}
    for seed, name in enumerate(("model.embed_tokens", "lm_head", DOWN)):
        x = layer(*(320, 128) if name != DOWN else (128, 192), 4, 64, symmetric=False, seed=seed)
        stored |= mlx(name, x, (-x.scales * x.zeros).astype(np.float16).astype(np.float32))
    model = with_layers(llama, tmp_path / "m", stored, {"quantization": {"group_size": 64, "bits": 4}})
    source, (made, report) = exact(model, tmp_path / "f32.gguf"), opened(model, tmp_path / "x.gguf")
    assert not notes(report, "float16")
    for tensor in ("token_embd.weight", "output.weight", "blk.1.ffn_down.weight"):
        assert made.tensors[tensor].dtype == "Q4_1"
        np.testing.assert_array_equal(rows_of(made, tensor), rows_of(source, tensor))


def test_the_lowest_code_of_eight_bits_is_kept(llama: Path, tmp_path: Path) -> None:
    signed = RNG.integers(-128, 128, (128, 128))
    signed[:, 0] = -128
    scales = np.full((128, 1), 2**-9, np.float32)
    stored = {f"{OUT}.weight": whole(signed, "I8"), f"{OUT}.weight_scale": floats(scales)}
    said = groups_config("int-quantized", {"type": "int", "num_bits": 8})
    made, _ = opened(with_layers(llama, tmp_path / "m", stored, said), tmp_path / "x.gguf")
    np.testing.assert_array_equal(rows_of(made, "blk.0.attn_output.weight"), signed * np.float32(2**-9))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_slabs_make_no_difference(llama: Path, tmp_path: Path, threads: int) -> None:
    model = saved(llama, tmp_path / "m", "auto_awq", "W4A16G32-asym")
    convert(model, tmp_path / "a.gguf", run=Run(threads=1))
    convert(model, tmp_path / "b.gguf", run=Run(threads=threads))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_formats_are_changed_without_a_second_rounding(llama: Path, tmp_path: Path) -> None:
    model = saved(llama, tmp_path / "a", "auto_awq", "W4A16G32-asym")
    for format_ in ("auto_round", "llm_compressor", "auto_gptq"):
        options = CheckpointOptions(scheme("W4A16G32-asym"), (format_,))
        report = convert(model, tmp_path / format_, options=options)
        assert notes(report, "codes of 14 matrices are carried over")
        before, after = open_checkpoint(model), open_checkpoint(tmp_path / format_)
        for tensor in (f"{Q}.weight", f"{DOWN}.weight"):
            np.testing.assert_array_equal(rows_of(after, tensor), rows_of(before, tensor))
    report = convert(model, tmp_path / "eight", options=CheckpointOptions(scheme("W8A16G32"), ("auto_round",)))
    assert notes(report, "14 matrices are rounded a second time")


def test_a_layer_that_is_no_longer_quantised_becomes_bf16(llama: Path, tmp_path: Path) -> None:
    model = saved(llama, tmp_path / "a", "mlx", "W4A16G32")
    options = CheckpointOptions(scheme("W4A16G32"), ("auto_round",), layers=(("down_proj", None),))
    convert(model, tmp_path / "b", options=options)
    after = open_checkpoint(tmp_path / "b")
    assert after.tensors[f"{DOWN}.weight"].dtype == "BF16"
    assert "quantization" not in after.config
    np.testing.assert_allclose(
        rows_of(after, f"{DOWN}.weight"), rows_of(open_checkpoint(model), f"{DOWN}.weight"), rtol=2**-8
    )


@pytest.mark.peer
@pytest.mark.parametrize(("format_", "name"), [("auto_round", "W4A16G32"), ("auto_gptq", "W8A16G32")])
def test_llama_cpp_computes_the_same_with_carried_codes(llama: Path, tmp_path: Path, format_: str, name: str) -> None:
    pytest.importorskip("xllamacpp")
    model = saved(llama, tmp_path / "m", format_, name)
    convert(model, tmp_path / "x.gguf")
    convert(model, tmp_path / "f.gguf", type="f32")
    kept, plain = log_probs([tmp_path / "x.gguf", tmp_path / "f.gguf"], PROMPTS, 320)
    assert np.sqrt(np.mean((kept - plain) ** 2)) < 0.05 * plain.std()  # activations are rounded to 8 bits
