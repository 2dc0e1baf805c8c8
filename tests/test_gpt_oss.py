"""GPT-OSS as it is published: experts in MXFP4, whose codes go into a GGUF file as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_models
from ggufround import convert
from ggufround.checkpoint import open_checkpoint
from ggufround.errors import InputError
from ggufround.evaluate.file_check import verify
from ggufround.gguf_read import read_gguf
from llama_cpp import log_probs
from packed_layouts import Stored, config, mxfp4_blocks, rows_of
from tiny import write_safetensors

pytestmark = pytest.mark.usefixtures("small_slabs")
EXPERTS, EMBD, FF = 4, tiny_models.EMBD, tiny_models.FF
PROMPTS = [[5, 40, 77, 130, 9], [60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71]]
Codes = dict[str, tuple[NDArray[np.int64], NDArray[np.uint8]]]


def packed_experts(layers: int = 3) -> Codes:
    """Random codes [experts, rows, columns] and exponents [experts, rows, groups] for all experts."""
    draw, out = np.random.default_rng(5), {}
    for i in range(layers):
        for name, shape in (("gate_up_proj", (EXPERTS, 2 * FF, EMBD)), ("down_proj", (EXPERTS, EMBD, FF))):
            exponents = draw.integers(121, 124, (*shape[:2], shape[2] // 32)).astype(np.uint8)
            out[f"model.layers.{i}.mlp.experts.{name}"] = draw.integers(0, 16, shape), exponents
    return out


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, Codes]:
    """The tiny model with its experts in MXFP4."""
    plain = open_checkpoint(tiny_models.write(tiny_models.CASES["gpt-oss"], tmp_path / "plain"))
    codes = packed_experts()
    stored: Stored = {
        n: (t.dtype, t.shape, t.path.read_bytes()[t.offset : t.offset + t.nbytes])
        for n, t in plain.tensors.items()
        if n not in codes
    }
    for name, (four, exponents) in codes.items():
        stored |= mxfp4_blocks(name, four, exponents)
    folder = tmp_path / "m"
    folder.mkdir()
    for path in plain.files.values():
        (folder / path.name).write_bytes(path.read_bytes())
    said = config("mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "lm_head"])
    (folder / "config.json").write_text(json.dumps(dict(plain.config) | said))
    write_safetensors(folder / "model.safetensors", stored)
    return folder, codes


def block_bytes(codes: NDArray[np.int64], exponents: NDArray[np.uint8]) -> bytes:
    """ggml's MXFP4: the exponent, then code j beside code j + 16 of each 32."""
    groups = codes.reshape(*exponents.shape, 2, 16)
    nibbles = groups[..., 0, :] | groups[..., 1, :] << 4
    return np.concatenate([exponents[..., None], nibbles], -1).astype(np.uint8).tobytes()


def test_codes_and_exponents_are_carried_over_bit_for_bit(published: tuple[Path, Codes], tmp_path: Path) -> None:
    model, codes = published
    report = convert(model, tmp_path / "x.gguf")
    assert any("codes of 9 matrices are carried over as they are (9 MXFP4 in MXFP4)" in line for line in report.notes)
    header, raw = read_gguf(tmp_path / "x.gguf"), (tmp_path / "x.gguf").read_bytes()

    def stored(name: str) -> tuple[str, tuple[int, ...], bytes]:
        tensor = header.tensors[name]
        return tensor.type, tuple(tensor.shape), raw[tensor.offset : tensor.offset + tensor.nbytes]

    for i in range(3):
        both, exponents = codes[f"model.layers.{i}.mlp.experts.gate_up_proj"]
        down = codes[f"model.layers.{i}.mlp.experts.down_proj"]
        for k, half in enumerate(("gate", "up")):
            wanted = block_bytes(both[:, k::2], exponents[:, k::2])
            assert stored(f"blk.{i}.ffn_{half}_exps.weight") == ("MXFP4", (EXPERTS, FF, EMBD), wanted)
        assert stored(f"blk.{i}.ffn_down_exps.weight") == ("MXFP4", (EXPERTS, EMBD, FF), block_bytes(*down))
    assert header.tensors["blk.0.attn_q.weight"].type == "BF16"
    assert verify(tmp_path / "x.gguf", str(model)).source == "ok"


def test_other_types_get_the_values_that_the_codes_stand_for(published: tuple[Path, Codes], tmp_path: Path) -> None:
    model, _ = published
    convert(model, tmp_path / "own.gguf")
    convert(model, tmp_path / "f32.gguf", type="f32")
    own, plain = open_checkpoint(tmp_path / "own.gguf"), open_checkpoint(tmp_path / "f32.gguf")
    assert plain.tensors["blk.2.ffn_up_exps.weight"].dtype == "F32"
    for name in plain.tensors:
        np.testing.assert_array_equal(rows_of(own, name), rows_of(plain, name), name)
    report = convert(model, tmp_path / "again.gguf", type="q8_0")
    assert any("9 matrices are rounded a second time" in line for line in report.notes)


@pytest.mark.parametrize("damage", [lambda n: n.endswith("1.mlp.experts.down_proj_scales"), lambda n: "_blocks" in n])
def test_a_missing_part_is_refused_by_name(
    published: tuple[Path, Codes], tmp_path: Path, damage: Callable[[str], bool]
) -> None:
    model, codes = published
    stored: Stored = {}
    for name, (four, exponents) in codes.items():
        stored |= mxfp4_blocks(name, four, exponents)
    write_safetensors(model / "model.safetensors", {n: raw for n, raw in stored.items() if not damage(n)})
    with pytest.raises(InputError, match=r"_scales is missing|lacks \d+ tensors"):
        convert(model, tmp_path / "x.gguf")


@pytest.mark.peer
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_llama_cpp_computes_what_transformers_makes_of_the_same_codes(
    published: tuple[Path, Codes], tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    torch: Any = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    model, _ = published
    convert(model, tmp_path / "f32.gguf", type="f32")
    found = log_probs([tmp_path / "f32.gguf"], PROMPTS, tiny_models.VOCAB)[0]
    network = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager",
        quantization_config=transformers.Mxfp4Config(dequantize=True),
    ).float().eval()  # fmt: skip
    with torch.inference_mode():
        rows = [network(torch.tensor([p])).logits[0, -1].log_softmax(-1) for p in PROMPTS]
    truth = torch.stack(rows).double().numpy()
    assert np.sqrt(np.mean((found - truth) ** 2)) < 0.02 * truth.std()
