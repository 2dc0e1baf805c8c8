"""Tiny composite models: a text model of a few layers and a vision tower with its projector.

Towers have 64 columns and read images of 4 x 4 patches (or what pooling needs), so that a picture of exactly that size
is what both llama.cpp and transformers see, and the text model's reply to it can be compared.
"""

from __future__ import annotations

import json
from typing import Any

from tiny_parts import EMBD, Shapes, Tiny, config, llama_like

WIDTH, WIDE, TOWER_HEADS, DEPTH = 64, 96, 4, 3
IMAGE, PATCH = 28, 7
IMAGE_TOKEN = 3
MEAN, STD = [0.48, 0.45, 0.41], [0.27, 0.26, 0.28]


def linear(name: str, rows: int, columns: int, bias: bool = True) -> Shapes:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def layer_norm(name: str, size: int = WIDTH) -> Shapes:
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)


def clip_tower(prefix: str, siglip: bool = False, image: int = IMAGE, patch: int = PATCH, depth: int = DEPTH) -> Shapes:
    """The tensors of a CLIP tower, or of a SigLIP one, which lacks the class token and the first norm."""
    yield f"{prefix}embeddings.patch_embedding.weight", (WIDTH, 3, patch, patch)
    yield f"{prefix}embeddings.position_embedding.weight", ((image // patch) ** 2 + (not siglip), WIDTH)
    if siglip:
        yield f"{prefix}embeddings.patch_embedding.bias", (WIDTH,)
    else:
        yield f"{prefix}embeddings.class_embedding", (WIDTH,)
        yield from layer_norm(f"{prefix}pre_layrnorm")
    for i in range(depth):
        block = f"{prefix}encoder.layers.{i}."
        yield from layer_norm(f"{block}layer_norm1")
        yield from layer_norm(f"{block}layer_norm2")
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{block}self_attn.{name}", WIDTH, WIDTH)
        yield from linear(f"{block}mlp.fc1", WIDE, WIDTH)
        yield from linear(f"{block}mlp.fc2", WIDTH, WIDE)
    yield from layer_norm(f"{prefix}post_layernorm")


def tower_config(model_type: str, **further: Any) -> dict[str, Any]:
    common: dict[str, Any] = {
        "model_type": model_type,
        "hidden_size": WIDTH,
        "intermediate_size": WIDE,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": TOWER_HEADS,
        "image_size": IMAGE,
        "patch_size": PATCH,
    }
    return {key: value for key, value in (common | further).items() if value is not None}


def preprocessor(**further: Any) -> dict[str, str]:
    return {"preprocessor_config.json": json.dumps({"image_mean": MEAN, "image_std": STD} | further)}


def composite(class_name: str, model_type: str, text: dict[str, Any], vision: dict[str, Any], **further: Any) -> Any:
    inner = {key: value for key, value in text.items() if key != "architectures"}
    return {
        "architectures": [class_name], "model_type": model_type, "text_config": inner, "vision_config": vision,
        "torch_dtype": "bfloat16", **further,
    }  # fmt: skip


def llava_text(**further: Any) -> dict[str, tuple[int, ...]]:
    """The text model's tensors, all below `language_model.`."""
    return {f"language_model.{name}": shape for name, shape in llama_like(**further).items()}


LLAVA_MLP = dict(linear("multi_modal_projector.linear_1", EMBD, WIDTH)) | dict(
    linear("multi_modal_projector.linear_2", EMBD, EMBD)
)
SIZES = {"size": {"shortest_edge": IMAGE}, "crop_size": {"height": IMAGE, "width": IMAGE}}

CASES = (
    Tiny(
        "llava",
        composite(
            "LlavaForConditionalGeneration", "llava",
            config("", "llama", rope_theta=10000.0), tower_config("clip_vision_model", projection_dim=32),
            image_token_index=IMAGE_TOKEN, projector_hidden_act="gelu", vision_feature_layer=-2,
            vision_feature_select_strategy="default", tie_word_embeddings=False,
        ),
        llava_text()
        | dict(clip_tower("vision_tower.vision_model."))
        | LLAVA_MLP,
        files=preprocessor(**SIZES), proof="vision", loads=False,
    ),
)  # fmt: skip
