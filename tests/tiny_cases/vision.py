"""Tiny composite models: a text model of a few layers and a vision tower with its projector.

Towers have 64 columns and read images of 4 x 4 patches (or what pooling needs), so that a picture of exactly that size
is what both llama.cpp and transformers see, and the text model's reply to it can be compared.
"""

from __future__ import annotations

import json
from typing import Any
from zlib import crc32

import numpy as np

from tiny_cases.first import gemma_like
from tiny_parts import EMBD, FF, Shapes, Tiny, config, llama_like

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
    inner = {key: value for key, value in text.items() if value != [""]}  # no class of its own
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


GEMMA_TEXT = {
    "hidden_act": None, "hidden_activation": "gelu_pytorch_tanh", "head_dim": 64, "query_pre_attn_scalar": 64,
    "sliding_window": 512, "num_hidden_layers": 7, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
    "sliding_window_pattern": 6,
}  # fmt: skip


def tower(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Values with which every part of a tower shows: norms near one, attention that is not even, patches that do not
    drown it."""
    values = np.random.default_rng(crc32(name.encode())).standard_normal(shape, np.float32)
    if len(shape) > 3:
        return values / np.float32(np.prod(shape[1:]) ** 0.5)
    if not any(part in name for part in ("vision", "visual")):
        return None
    if len(shape) == 1 and name.endswith("weight"):
        return 1 + values / 3
    if name.endswith(("q_proj.weight", "k_proj.weight", "qkv.weight")):
        return values * np.float32(2.5 / shape[-1] ** 0.5)
    return None


SEEING: dict[str, Any] = {"proof": "vision", "loads": False, "mmproj": True, "special": tower}
MROPE = {"type": "mrope", "mrope_section": [8, 4, 4]}


def below(prefix: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The text model's tensors with `prefix` in place of their `model.`."""
    return {prefix + n.removeprefix("model.") if n.startswith("model.") else n: s for n, s in shapes.items()}


def qwen_tower(prefix: str) -> Shapes:
    yield f"{prefix}patch_embed.proj.weight", (WIDTH, 3, 2, 14, 14)
    for i in range(DEPTH):
        block = f"{prefix}blocks.{i}."
        yield from layer_norm(f"{block}norm1")
        yield from layer_norm(f"{block}norm2")
        yield from linear(f"{block}attn.qkv", 3 * WIDTH, WIDTH)
        yield from linear(f"{block}attn.proj", WIDTH, WIDTH)
        yield from linear(f"{block}mlp.fc1", 2 * WIDTH, WIDTH)
        yield from linear(f"{block}mlp.fc2", WIDTH, 2 * WIDTH)
    yield from layer_norm(f"{prefix}merger.ln_q")
    yield from linear(f"{prefix}merger.mlp.0", 4 * WIDTH, 4 * WIDTH)
    yield from linear(f"{prefix}merger.mlp.2", EMBD, 4 * WIDTH)


def qwen25_tower(prefix: str) -> Shapes:
    yield f"{prefix}patch_embed.proj.weight", (WIDTH, 3, 2, 14, 14)
    for i in range(4):
        block = f"{prefix}blocks.{i}."
        yield f"{block}norm1.weight", (WIDTH,)
        yield f"{block}norm2.weight", (WIDTH,)
        yield from linear(f"{block}attn.qkv", 3 * WIDTH, WIDTH)
        yield from linear(f"{block}attn.proj", WIDTH, WIDTH)
        yield from linear(f"{block}mlp.gate_proj", WIDE, WIDTH)
        yield from linear(f"{block}mlp.up_proj", WIDE, WIDTH)
        yield from linear(f"{block}mlp.down_proj", WIDTH, WIDE)
    yield f"{prefix}merger.ln_q.weight", (WIDTH,)
    yield from linear(f"{prefix}merger.mlp.0", 4 * WIDTH, 4 * WIDTH)
    yield from linear(f"{prefix}merger.mlp.2", EMBD, 4 * WIDTH)


def qwen3_tower(prefix: str) -> Shapes:
    yield from linear(f"{prefix}patch_embed.proj", WIDTH, 3)
    yield f"{prefix}patch_embed.proj.weight", (WIDTH, 3, 2, 14, 14)
    yield f"{prefix}pos_embed.weight", (25, WIDTH)
    for i in range(4):
        block = f"{prefix}blocks.{i}."
        yield from layer_norm(f"{block}norm1")
        yield from layer_norm(f"{block}norm2")
        yield from linear(f"{block}attn.qkv", 3 * WIDTH, WIDTH)
        yield from linear(f"{block}attn.proj", WIDTH, WIDTH)
        yield from linear(f"{block}mlp.linear_fc1", WIDE, WIDTH)
        yield from linear(f"{block}mlp.linear_fc2", WIDTH, WIDE)
    for merger, size in (
        ("merger", WIDTH),
        ("deepstack_merger_list.0", 4 * WIDTH),
        ("deepstack_merger_list.1", 4 * WIDTH),
    ):
        yield from layer_norm(f"{prefix}{merger}.norm", size)
        yield from linear(f"{prefix}{merger}.linear_fc1", 4 * WIDTH, 4 * WIDTH)
        yield from linear(f"{prefix}{merger}.linear_fc2", EMBD, 4 * WIDTH)


def qwen3_experts(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Four experts a block in place of its feed-forward part, in stacks with rows and columns exchanged."""
    kept = {name: shape for name, shape in shapes.items() if ".mlp." not in name}
    for name in [name for name in shapes if name.endswith("mlp.up_proj.weight")]:
        block = name.removesuffix("up_proj.weight")
        kept[f"{block}gate.weight"] = (4, EMBD)
        kept[f"{block}experts.gate_up_proj"] = (4, EMBD, 2 * FF)
        kept[f"{block}experts.down_proj"] = (4, FF, EMBD)
    return kept


# llama.cpp looks them up.
IDEFICS_TOKENS = ("<fake_token_around_image>", "<global-img>", "\n\n")
CASES: tuple[Tiny, ...] = (
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
        files=preprocessor(**SIZES), proof="vision", loads=False, special=tower,
    ),
    Tiny(
        "gemma3-vision",
        composite(
            "Gemma3ForConditionalGeneration", "gemma3",
            config("", "gemma3_text", **GEMMA_TEXT),
            tower_config("siglip_vision_model", image_size=56, vision_use_head=False),
            image_token_index=IMAGE_TOKEN, mm_tokens_per_image=4, boi_token_index=4, eoi_token_index=5,
        ),
        gemma_like(64, 7, True, "language_model.model.")
        | dict(clip_tower("vision_tower.vision_model.", siglip=True, image=56))
        | {"multi_modal_projector.mm_input_projection_weight": (WIDTH, EMBD),
           "multi_modal_projector.mm_soft_emb_norm.weight": (WIDTH,)},
        files=preprocessor(size={"height": 56, "width": 56}, image_seq_length=4),
        zero_norms=True, **SEEING,
    ),
    Tiny(
        "smolvlm",
        composite(
            "SmolVLMForConditionalGeneration", "smolvlm",
            config("VLlama3ForCausalLM", "llama", rope_theta=10000.0),
            tower_config("smolvlm_vision", image_size=56, patch_size=14,
                                                                   max_image_size={"longest_edge": 56}),
            image_token_id=IMAGE_TOKEN, scale_factor=2, pad_token_id=0, tie_word_embeddings=False,
        ),
        llama_like(prefix="model.text_model.")
        | dict(clip_tower("model.vision_model.", siglip=True, image=56, patch=14))
        | {"model.connector.modality_projection.proj.weight": (EMBD, 4 * WIDTH)},
        files=preprocessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56}), tokens=IDEFICS_TOKENS,
        **SEEING,
    ),
    Tiny(
        "idefics3",
        composite(
            "Idefics3ForConditionalGeneration", "idefics3",
            config("LlamaForCausalLM", "llama", rope_theta=10000.0),
            tower_config("idefics3_vision", image_size=56, patch_size=14),
            image_token_id=IMAGE_TOKEN, scale_factor=2, pad_token_id=0, tie_word_embeddings=False,
        ),
        llama_like(prefix="model.text_model.")
        | dict(clip_tower("model.vision_model.", siglip=True, image=56, patch=14))
        | {"model.connector.modality_projection.proj.weight": (EMBD, 4 * WIDTH)},
        files=preprocessor(size={"longest_edge": 56}), tokens=IDEFICS_TOKENS, **SEEING,
    ),
    Tiny(
        "qwen2-vl",
        config("Qwen2VLForConditionalGeneration", "qwen2_vl", rope_theta=1e6, rope_scaling=MROPE, rms_norm_eps=1e-6,
               image_token_id=IMAGE_TOKEN, video_token_id=0, vision_start_token_id=1, vision_end_token_id=2,
               vision_config={"depth": DEPTH, "embed_dim": WIDTH, "hidden_size": EMBD, "mlp_ratio": 2,
                              "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
                              "in_chans": 3, "model_type": "qwen2_vl"}),
        llama_like(bias=("q_proj", "k_proj", "v_proj")) | dict(qwen_tower("visual.")),
        files=preprocessor(patch_size=14, merge_size=2, temporal_patch_size=2), **SEEING,
    ),
    Tiny(
        "qwen2.5-vl",
        config("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", rope_theta=1e6, rope_scaling=MROPE,
               rms_norm_eps=1e-6,
               image_token_id=IMAGE_TOKEN, video_token_id=0, vision_start_token_id=1, vision_end_token_id=2,
               vision_config={"depth": 4, "hidden_size": WIDTH, "intermediate_size": WIDE, "num_heads": 2,
                              "out_hidden_size": EMBD, "patch_size": 14, "spatial_merge_size": 2,
                              "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [1, 3],
                              "hidden_act": "silu", "model_type": "qwen2_5_vl", "in_chans": 3}),
        llama_like(bias=("q_proj", "k_proj", "v_proj")) | dict(qwen25_tower("visual.")),
        files=preprocessor(patch_size=14, merge_size=2, temporal_patch_size=2), **SEEING,
    ),
    Tiny(
        "qwen3-vl",
        composite(
            "Qwen3VLForConditionalGeneration", "qwen3_vl",
            config("", "qwen3_vl_text", rope_theta=1e6, head_dim=64, rms_norm_eps=1e-6, num_hidden_layers=3,
                   rope_scaling={"mrope_interleaved": True, "mrope_section": [16, 8, 8], "rope_type": "default"}),
            {"depth": 4, "hidden_size": WIDTH, "intermediate_size": WIDE, "num_heads": 2, "out_hidden_size": EMBD,
             "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 25,
             "deepstack_visual_indexes": [1, 2], "hidden_act": "gelu_pytorch_tanh", "model_type": "qwen3_vl"},
            image_token_id=IMAGE_TOKEN, video_token_id=0, vision_start_token_id=1, vision_end_token_id=2,
            tie_word_embeddings=False,
        ),
        below("model.language_model.", llama_like(64, 3, qk_norms=True)) | dict(qwen3_tower("model.visual.")),
        files=preprocessor(patch_size=14, merge_size=2, temporal_patch_size=2), **SEEING,
    ),
    Tiny(
        "qwen3-vl-moe",
        composite(
            "Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe",
            config("", "qwen3_vl_moe_text", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=FF,
                   rope_theta=1e6, head_dim=64, rms_norm_eps=1e-6, num_hidden_layers=3,
                   rope_scaling={"mrope_interleaved": True, "mrope_section": [16, 8, 8], "rope_type": "default"}),
            {"depth": 4, "hidden_size": WIDTH, "intermediate_size": WIDE, "num_heads": 2, "out_hidden_size": EMBD,
             "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 25,
             "deepstack_visual_indexes": [1, 2], "hidden_act": "gelu_pytorch_tanh", "model_type": "qwen3_vl_moe"},
            image_token_id=IMAGE_TOKEN, video_token_id=0, vision_start_token_id=1, vision_end_token_id=2,
            tie_word_embeddings=False,
        ),
        below("model.language_model.", qwen3_experts(llama_like(64, 3, qk_norms=True)))
        | dict(qwen3_tower("model.visual.")),
        files=preprocessor(patch_size=14, merge_size=2, temporal_patch_size=2), **SEEING,
    ),
)  # fmt: skip
