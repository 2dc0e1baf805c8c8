"""Projector files of tiny random models load in llama.cpp, and what it says after a picture agrees with transformers.

The picture is a PNG of just the size that the tower reads, so that nothing is resized, and its pixels are handed to
transformers' model normalised as its processor would. Projectors are broken on purpose to see that it would show.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

import tiny_models
from ggufround import convert
from ggufround.gguf_read import GGUFHeader, read_gguf
from ggufround.planning import Options
from llama_cpp import seen
from pictures import normalised, picture, png
from tiny_cases.vision import IMAGE_TOKEN

pytestmark = [pytest.mark.peer, pytest.mark.torch]
TOLERANCE = 0.004  # of the log-probabilities' standard deviation
VOCAB = tiny_models.VOCAB
ALL = tiny_models.CASES | tiny_models.PROJECTORS
BEFORE, AFTER = "the rate", " of it"
SEEDS = (1, 2)


class Sight(NamedTuple):
    """How a family looks at a picture: its size, what llama.cpp makes of it (texts, and numbers of embeddings), and
    what transformers' model wants of it."""

    size: tuple[int, int]  # width, height
    layout: tuple[str | int, ...]
    tower: Callable[..., Any] | None = None  # of a case of a projector alone: makes embeddings of a picture
    inputs: Callable[[Any, NDArray[np.float32], list[int]], dict[str, Any]] = lambda torch, pixels, ids: {
        "pixel_values": torch.from_numpy(pixels)[None]
    }
    change: Callable[[Any, Any], None] | None = None  # what llama.cpp does otherwise, done to transformers' model too
    tolerance: float = TOLERANCE


def class_token_last(torch: Any, network: Any) -> None:
    """llama.cpp (tools/mtmd/models/llava.cpp) puts the class token behind the patches, not before them, though position
    embeddings and the rows that it takes out afterwards are numbered as if it stood first."""
    embeddings = network.model.vision_tower.embeddings

    def forward(pixel_values: Any, **_: Any) -> Any:
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        rows = torch.cat([patches, embeddings.class_embedding.expand(len(patches), 1, -1)], 1)
        return rows + embeddings.position_embedding.weight

    embeddings.forward = forward


def positions_shifted(torch: Any, network: Any) -> None:
    """llama.cpp (tools/mtmd/models/internvl.cpp) puts the class token last here too, but numbers positions from the
    first patch on, so that each has the embedding of the one before it and the class token that of the last."""
    embeddings = network.model.vision_tower.embeddings
    embeddings.position_embeddings.data = embeddings.position_embeddings.data.roll(1, 1)


def with_types(torch: Any, pixels: NDArray[np.float32], ids: list[int]) -> dict[str, Any]:
    """Gemma 3 lets the tokens of a picture attend to one another, as llama.cpp's batch of them does."""
    kinds = torch.tensor([[int(i == IMAGE_TOKEN) for i in ids]])
    return {"pixel_values": torch.from_numpy(pixels)[None], "token_type_ids": kinds}


def tiles(torch: Any, pixels: NDArray[np.float32], ids: list[int]) -> dict[str, Any]:
    """Idefics 3: an overview and the only tile, both the picture itself. [batch, tiles, 3, height, width]"""
    return {"pixel_values": torch.from_numpy(np.stack([pixels, pixels])[None])}


def in_patches(side: int, merge: int = 2) -> Callable[..., dict[str, Any]]:
    """Qwen-VL: rows of two equal frames' patches, four neighbours together."""

    def inputs(torch: Any, pixels: NDArray[np.float32], ids: list[int]) -> dict[str, Any]:
        rows, columns = pixels.shape[1] // side, pixels.shape[2] // side
        parts = np.stack([pixels, pixels]).reshape(2, 3, rows // merge, merge, side, columns // merge, merge, side)
        flat = parts.transpose(2, 5, 3, 6, 1, 0, 4, 7).reshape(rows * columns, -1)
        return {
            "pixel_values": torch.from_numpy(np.ascontiguousarray(flat)),
            "image_grid_thw": torch.tensor([[1, rows, columns]]),
            "mm_token_type_ids": torch.tensor([[int(i == IMAGE_TOKEN) for i in ids]]),
        }

    return inputs


def with_size(torch: Any, pixels: NDArray[np.float32], ids: list[int]) -> dict[str, Any]:
    return {"pixel_values": torch.from_numpy(pixels)[None], "image_sizes": torch.tensor([pixels.shape[1:]])}


BREAK = "[IMG_BREAK]"
FAKE = "<fake_token_around_image>"


def expected(model: Path, case: tiny_models.Tiny, sight: Sight) -> tuple[NDArray[np.float64], list[int]]:
    """transformers' log-probabilities [picture, token], in float32, and the tokens they are of."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    if sight.tower is not None:
        return beside_llama(model, case, sight)
    network, info = transformers.AutoModelForImageTextToText.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    if sight.change is not None:
        sight.change(torch, network)
    ids = tokens_of(model, sight)
    processor = json.loads(case.files["preprocessor_config.json"])
    rows = []
    with torch.inference_mode():
        for seed in SEEDS:
            inputs = sight.inputs(torch, normalised(picture(seed, *sight.size), processor), ids)
            found = network.eval()(input_ids=torch.tensor([ids]), **inputs)
            rows.append(found.logits[0, -1, :VOCAB].log_softmax(-1))
    return torch.stack(rows).double().numpy(), ids


def tokens_of(model: Path, sight: Sight) -> list[int]:
    """The prompt's tokens, `IMAGE_TOKEN` for every embedding of the picture."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return [
        i
        for part in (BEFORE, *sight.layout, AFTER)
        for i in ([IMAGE_TOKEN] * part if isinstance(part, int) else tokenizer.encode(part).ids)
    ]


def beside_llama(model: Path, case: tiny_models.Tiny, sight: Sight) -> tuple[NDArray[np.float64], list[int]]:
    """As `expected`, where a plain Llama stands in for the text model: transformers' tower and Llama by themselves."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    loader = pytest.importorskip("safetensors.torch")
    state = {n: t.float() for n, t in loader.load_file(model / "model.safetensors").items()}
    text = transformers.LlamaConfig(**case.config["text_config"] | {"tie_word_embeddings": True})
    network = transformers.LlamaForCausalLM._from_config(text, dtype=torch.float32, attn_implementation="eager").eval()
    plain = {tiny_models.text_name(n): t for n, t in state.items()}
    assert not network.model.load_state_dict(plain, strict=False).missing_keys
    network.tie_weights()
    ids = tokens_of(model, sight)
    processor = json.loads(case.files["preprocessor_config.json"])
    rows = []
    assert sight.tower is not None
    with torch.inference_mode():
        for seed in SEEDS:
            embeddings = network.get_input_embeddings()(torch.tensor(ids))
            pixels = normalised(picture(seed, *sight.size), processor)
            embeddings[torch.tensor(ids) == IMAGE_TOKEN] = sight.tower(torch, transformers, case, state, pixels)
            rows.append(network(inputs_embeds=embeddings[None]).logits[0, -1, :VOCAB].log_softmax(-1))
    return torch.stack(rows).double().numpy(), ids


def parts(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}


def llama4_tower(torch: Any, transformers: Any, case: tiny_models.Tiny, state: Any, pixels: Any) -> Any:
    config = transformers.Llama4VisionConfig(**case.config["vision_config"])
    tower = transformers.Llama4VisionModel._from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    assert not tower.load_state_dict(parts(state, "vision_model."), strict=False).missing_keys
    found = tower(torch.from_numpy(pixels)[None]).last_hidden_state[0]
    # llama.cpp (tools/mtmd/models/llama4.cpp) leaves the last exchange of axes out: its tokens go column by column.
    found = found.reshape(2, 2, -1).swapaxes(0, 1).reshape(4, -1)
    return found @ state["multi_modal_projector.linear_1.weight"].T


def glm4v_tower(torch: Any, transformers: Any, case: tiny_models.Tiny, state: Any, pixels: Any) -> Any:
    module = transformers.models.glm4v.modeling_glm4v
    config = transformers.models.glm4v.configuration_glm4v.Glm4vVisionConfig(**case.config["vision_config"])
    tower = module.Glm4vVisionModel._from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    assert not tower.load_state_dict(parts(state, "model.visual."), strict=False).missing_keys
    inputs = in_patches(14)(torch, pixels, [])
    return tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output


SIGHTS: dict[str, Sight] = {
    "llava": Sight((28, 28), (16,), change=class_token_last),
    "gemma3-vision": Sight((56, 56), ("<start_of_image>", 4, "<end_of_image>"), inputs=with_types),
    "idefics3": Sight((56, 56), (f"{FAKE}<row_1_col_1>", 4, "\n\n", FAKE, "<global-img>", 4, FAKE), inputs=tiles),
    "pixtral": Sight((56, 42), (4, BREAK, 4, BREAK, 4, "[IMG_END]"), inputs=with_size),
    "mistral3-vision": Sight((112, 56), (4, BREAK, 4, "[IMG_END]"), inputs=with_size),
    "internvl": Sight((56, 56), ("<img>", 4, "</img>"), change=positions_shifted),
    "llama4-vision": Sight((56, 56), ("<|image_start|>", 4, "<|image_end|>"), tower=llama4_tower),
    "glm4v-vision": Sight(
        (112, 112),
        ("<|begin_of_image|>", 16, "<|end_of_image|>"),
        tower=glm4v_tower,
        tolerance=0.02,  # llama.cpp's convolution that merges patches takes its inputs in F16
    ),
    "glm4v": Sight((112, 112), ("<|begin_of_image|>", 16, "<|end_of_image|>"), inputs=in_patches(14), tolerance=0.02),
    "qwen2-vl": Sight((140, 56), ("<|vision_start|>", 10, "<|vision_end|>"), inputs=in_patches(14)),
    "qwen2.5-vl": Sight((140, 112), ("<|vision_start|>", 20, "<|vision_end|>"), inputs=in_patches(14)),
    "qwen3-vl": Sight((140, 56), ("<|vision_start|>", 10, "<|vision_end|>"), inputs=in_patches(14)),
    "qwen3-vl-moe": Sight((140, 56), ("<|vision_start|>", 10, "<|vision_end|>"), inputs=in_patches(14)),
}


def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Root mean square difference over the standard deviation of `b`, the worst of the pictures."""
    return max(float(np.sqrt(np.mean((x - y) ** 2)) / y.std()) for x, y in zip(a, b, strict=True))


def edited(source: Path, header: GGUFHeader, name: str, change: Callable[[Any], Any]) -> Path:
    """A copy of an F32 file with one tensor changed."""
    tensor, raw = header.tensors[name], bytearray(source.read_bytes())
    assert tensor.type == "F32", name
    values = np.frombuffer(raw, np.float32, int(np.prod(tensor.shape)), tensor.offset).reshape(tensor.shape)
    raw[tensor.offset : tensor.offset + tensor.nbytes] = np.ascontiguousarray(change(values), np.float32).tobytes()
    target = source.with_name(f"{len(list(source.parent.glob('*.gguf')))}.gguf")
    target.write_bytes(raw)
    return target


def broken(good: Path) -> dict[str, Path]:
    """One copy an error that a converter could make."""
    header = read_gguf(good)
    query = next(n for n in header.tensors if n.startswith("v.blk.0.attn_q") and n.endswith("weight"))
    return {
        "patches mirrored": edited(good, header, "v.patch_embd.weight", lambda v: v[..., ::-1]),
        "norm less one": edited(good, header, "v.blk.0.ln1.weight", lambda v: v - 1),
        "queries in another order": edited(good, header, query, lambda v: v[::-1]),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(SIGHTS))
def test_llama_cpp_sees_what_transformers_sees(name: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    case, sight = ALL[name], SIGHTS[name]
    model = tiny_models.write(case, tmp_path / name)
    good, text = tmp_path / "mmproj.gguf", tmp_path / "text.gguf"
    kinds = Options(("f32",), "rtn", arch=case.arch)
    convert(model, text, options=kinds, mmproj=good, mmproj_type="f32")
    mistakes = broken(good)
    pictures = [png(picture(seed, *sight.size)) for seed in SEEDS]
    found, count = seen(text, [good, *mistakes.values()], (BEFORE, AFTER), pictures, VOCAB)
    truth, ids = expected(model, case, sight)
    assert count == len(ids)
    moved = {mistake: distance(row, truth) for mistake, row in zip(mistakes, found[1:], strict=True)}
    good_by = distance(found[0], truth)
    assert good_by < sight.tolerance, moved
    assert min(moved.values()) > 3 * sight.tolerance, (good_by, moved)
    assert distance(truth[::-1], truth) > 5 * sight.tolerance  # the two pictures differ


# Those whose towers are compared above under another class, or whose pictures llama.cpp resizes otherwise.
ANSWERED = (
    *("granite-vision", "internvl-chat", "llava-next", "smolvlm"),
    *("glm4v-vision", "kimi-vl-vision", "llama4-vision"),
)


@pytest.mark.parametrize("name", ANSWERED)
def test_llama_cpp_answers_differently_to_different_pictures(name: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    model = tiny_models.write(ALL[name], tmp_path / name)
    kinds = Options(("f32",), "rtn", arch=ALL[name].arch)
    convert(model, tmp_path / "text.gguf", options=kinds, mmproj=tmp_path / "mmproj.gguf")
    pictures = [png(picture(seed, 120, 90)) for seed in SEEDS]
    found, _ = seen(tmp_path / "text.gguf", [tmp_path / "mmproj.gguf"], (BEFORE, AFTER), pictures, VOCAB)
    assert np.isfinite(found).all()
    assert distance(found[0][:1], found[0][1:]) > 3 * TOLERANCE
