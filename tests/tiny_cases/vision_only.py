"""Tiny towers of Llama 4, GLM-4V and Kimi-VL. Beside each stands a plain Llama in place of its own text model, which is
another case's business."""

from __future__ import annotations

from typing import Any

from tiny_cases.vision import (
    DEPTH,
    IMAGE_TOKEN,
    SEEING,
    WIDE,
    WIDTH,
    below,
    composite,
    layer_norm,
    linear,
    preprocessor,
    tower_config,
)
from tiny_parts import EMBD, FF, Shapes, Tiny, config, llama_like


def llama4_tower() -> Shapes:
    yield "vision_model.patch_embedding.linear.weight", (WIDTH, 3 * 14 * 14)
    yield "vision_model.class_embedding", (WIDTH,)
    yield "vision_model.positional_embedding_vlm", (17, WIDTH)
    yield from layer_norm("vision_model.layernorm_pre")
    yield from layer_norm("vision_model.layernorm_post")
    for i in range(DEPTH):
        block = f"vision_model.model.layers.{i}."
        yield from layer_norm(f"{block}input_layernorm")
        yield from layer_norm(f"{block}post_attention_layernorm")
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield from linear(f"{block}self_attn.{name}", WIDTH, WIDTH)
        yield from linear(f"{block}mlp.fc1", 4 * WIDTH, WIDTH)
        yield from linear(f"{block}mlp.fc2", WIDTH, 4 * WIDTH)
    yield "vision_model.vision_adapter.mlp.fc1.weight", (WIDE, 4 * WIDTH)
    yield "vision_model.vision_adapter.mlp.fc2.weight", (WIDE, WIDE)
    yield "multi_modal_projector.linear_1.weight", (EMBD, WIDE)


def glm4v_tower(prefix: str) -> Shapes:
    yield f"{prefix}patch_embed.proj.weight", (WIDTH, 3, 2, 14, 14)
    yield f"{prefix}patch_embed.proj.bias", (WIDTH,)
    yield f"{prefix}post_conv_layernorm.weight", (WIDTH,)
    yield f"{prefix}embeddings.position_embedding.weight", (64, WIDTH)
    for i in range(DEPTH):
        block = f"{prefix}blocks.{i}."
        yield f"{block}norm1.weight", (WIDTH,)
        yield f"{block}norm2.weight", (WIDTH,)
        yield from linear(f"{block}attn.qkv", 3 * WIDTH, WIDTH, bias=False)
        yield from linear(f"{block}attn.proj", WIDTH, WIDTH, bias=False)
        yield from linear(f"{block}mlp.gate_proj", EMBD, WIDTH, bias=False)
        yield from linear(f"{block}mlp.up_proj", EMBD, WIDTH, bias=False)
        yield from linear(f"{block}mlp.down_proj", WIDTH, EMBD, bias=False)
    yield f"{prefix}post_layernorm.weight", (WIDTH,)
    yield f"{prefix}downsample.weight", (EMBD, WIDTH, 2, 2)
    yield f"{prefix}downsample.bias", (EMBD,)
    yield from linear(f"{prefix}merger.proj", EMBD, EMBD, bias=False)
    yield from layer_norm(f"{prefix}merger.post_projection_norm", EMBD)
    yield from linear(f"{prefix}merger.gate_proj", FF, EMBD, bias=False)
    yield from linear(f"{prefix}merger.up_proj", FF, EMBD, bias=False)
    yield from linear(f"{prefix}merger.down_proj", EMBD, FF, bias=False)


def kimi_tower(prefix: str) -> Shapes:
    yield f"{prefix}patch_embed.proj.weight", (WIDTH, 3, 14, 14)
    yield f"{prefix}patch_embed.proj.bias", (WIDTH,)
    yield f"{prefix}patch_embed.pos_emb.weight", (64, 64, WIDTH)
    for i in range(DEPTH):
        block = f"{prefix}encoder.blocks.{i}."
        yield from layer_norm(f"{block}norm0")
        yield from layer_norm(f"{block}norm1")
        yield from linear(f"{block}wqkv", 3 * WIDTH, WIDTH)
        yield from linear(f"{block}wo", WIDTH, WIDTH)
        yield from linear(f"{block}mlp.fc0", WIDE, WIDTH)
        yield from linear(f"{block}mlp.fc1", WIDTH, WIDE)
    yield from layer_norm(f"{prefix}encoder.final_layernorm")
    yield from layer_norm("multi_modal_projector.pre_norm")
    yield from linear("multi_modal_projector.linear_1", 4 * WIDTH, 4 * WIDTH)
    yield from linear("multi_modal_projector.linear_2", EMBD, 4 * WIDTH)


def of_llama(prefix: str) -> dict[str, tuple[int, ...]]:
    return below(prefix, llama_like(head=False))


CASES: tuple[Tiny, ...] = ()
TEXT = config("LlamaForCausalLM", "llama", rope_theta=10000.0)
ALONE: dict[str, Any] = {**SEEING, "arch": "LlamaForCausalLM"}
PROJECTORS = (
    Tiny(
        "llama4-vision",
        composite(
            "Llama4ForConditionalGeneration", "tiny_llama4", TEXT,
            tower_config("llama4_vision_model", image_size=56, patch_size=14, intermediate_size=4 * WIDTH,
                         hidden_act="gelu", norm_eps=1e-5, pixel_shuffle_ratio=0.5, projector_input_dim=WIDE,
                         projector_output_dim=WIDE, vision_output_dim=WIDE, rope_theta=10000),
            image_token_index=IMAGE_TOKEN,
        ),
        of_llama("language_model.model.") | dict(llama4_tower()),
        files=preprocessor(size={"height": 56, "width": 56}), **ALONE,
    ),
    Tiny(
        "glm4v-vision",
        composite(
            "Glm4vForConditionalGeneration", "tiny_glm4v", TEXT,
            {"depth": DEPTH, "hidden_size": WIDTH, "intermediate_size": FF, "num_heads": 2, "image_size": 112,
             "patch_size": 14, "out_hidden_size": EMBD, "spatial_merge_size": 2, "temporal_patch_size": 2,
             "hidden_act": "silu", "rms_norm_eps": 1e-5, "model_type": "glm4v"},
            image_token_id=IMAGE_TOKEN,
        ),
        of_llama("model.language_model.") | dict(glm4v_tower("model.visual.")),
        files=preprocessor(patch_size=14, merge_size=2, temporal_patch_size=2), **ALONE,
    ),
    Tiny(
        "kimi-vl-vision",
        composite(
            "KimiVLForConditionalGeneration", "tiny_kimi_vl", TEXT,
            {"model_type": "moonvit", "patch_size": 14, "num_attention_heads": 4, "num_hidden_layers": DEPTH,
             "hidden_size": WIDTH, "intermediate_size": WIDE, "init_pos_emb_height": 64, "init_pos_emb_width": 64,
             "merge_kernel_size": [2, 2]},
            media_placeholder_token_id=IMAGE_TOKEN,
        ),
        of_llama("language_model.model.") | dict(kimi_tower("vision_tower.")),
        files=preprocessor(patch_size=14), **ALONE,
    ),
)  # fmt: skip
