"""Tiny composite models with Pixtral's and InternVL's towers, and LLaVA's with other text models."""

from __future__ import annotations

from tiny_cases.vision import (
    DEPTH,
    IMAGE_TOKEN,
    LLAVA_MLP,
    SEEING,
    TOWER_HEADS,
    WIDE,
    WIDTH,
    below,
    clip_tower,
    composite,
    layer_norm,
    linear,
    llava_text,
    preprocessor,
    tower,
    tower_config,
)
from tiny_parts import EMBD, Shapes, Tiny, config, llama_like


def pixtral_tower(prefix: str) -> Shapes:
    yield f"{prefix}patch_conv.weight", (WIDTH, 3, 14, 14)
    yield f"{prefix}ln_pre.weight", (WIDTH,)
    for i in range(DEPTH):
        block = f"{prefix}transformer.layers.{i}."
        yield f"{block}attention_norm.weight", (WIDTH,)
        yield f"{block}ffn_norm.weight", (WIDTH,)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{block}attention.{name}.weight", (WIDTH, WIDTH)
        yield f"{block}feed_forward.gate_proj.weight", (WIDE, WIDTH)
        yield f"{block}feed_forward.up_proj.weight", (WIDE, WIDTH)
        yield f"{block}feed_forward.down_proj.weight", (WIDTH, WIDE)


def internvl_tower(prefix: str) -> Shapes:
    """As OpenGVLab saves it."""
    yield f"{prefix}embeddings.class_embedding", (1, 1, WIDTH)
    yield f"{prefix}embeddings.position_embedding", (1, 17, WIDTH)
    yield f"{prefix}embeddings.patch_embedding.weight", (WIDTH, 3, 14, 14)
    yield f"{prefix}embeddings.patch_embedding.bias", (WIDTH,)
    for i in range(4):
        block = f"{prefix}encoder.layers.{i}."
        yield from layer_norm(f"{block}norm1")
        yield from layer_norm(f"{block}norm2")
        yield f"{block}ls1", (WIDTH,)
        yield f"{block}ls2", (WIDTH,)
        yield from linear(f"{block}attn.qkv", 3 * WIDTH, WIDTH)
        yield from linear(f"{block}attn.proj", WIDTH, WIDTH)
        yield from linear(f"{block}mlp.fc1", WIDE, WIDTH)
        yield from linear(f"{block}mlp.fc2", WIDTH, WIDE)


def internvl_hf_tower(prefix: str) -> Shapes:
    """As transformers saves it."""
    yield f"{prefix}embeddings.cls_token", (1, 1, WIDTH)
    yield f"{prefix}embeddings.position_embeddings", (1, 17, WIDTH)
    yield f"{prefix}embeddings.patch_embeddings.projection.weight", (WIDTH, 3, 14, 14)
    yield f"{prefix}embeddings.patch_embeddings.projection.bias", (WIDTH,)
    for i in range(4):
        block = f"{prefix}encoder.layer.{i}."
        yield from layer_norm(f"{block}layernorm_before")
        yield from layer_norm(f"{block}layernorm_after")
        yield f"{block}lambda_1", (WIDTH,)
        yield f"{block}lambda_2", (WIDTH,)
        for name in ("q_proj", "k_proj", "v_proj", "projection_layer"):
            yield from linear(f"{block}attention.{name}", WIDTH, WIDTH)
        yield from linear(f"{block}mlp.fc1", WIDE, WIDTH)
        yield from linear(f"{block}mlp.fc2", WIDTH, WIDE)


PIXTRAL_TOKENS = ("[IMG_BREAK]", "[IMG_END]")
PIXTRAL = tower_config("pixtral", image_size=112, patch_size=14, hidden_act="silu", head_dim=WIDTH // TOWER_HEADS)
MISTRAL3 = Tiny(
    "mistral3-vision",
    composite(
        "Mistral3ForConditionalGeneration", "mistral3",
        config("MistralForCausalLM", "mistral", rope_theta=1e6, sliding_window=None), PIXTRAL,
        image_token_index=IMAGE_TOKEN, projector_hidden_act="gelu", spatial_merge_size=2, vision_feature_layer=-1,
        multimodal_projector_bias=False, tie_word_embeddings=False,
    ),
    llava_text() | dict(pixtral_tower("vision_tower."))
    | {"multi_modal_projector.norm.weight": (WIDTH,),
       "multi_modal_projector.patch_merger.merging_layer.weight": (WIDTH, 4 * WIDTH),
       "multi_modal_projector.linear_1.weight": (EMBD, WIDTH), "multi_modal_projector.linear_2.weight": (EMBD, EMBD)},
    files=preprocessor(patch_size=14), tokens=PIXTRAL_TOKENS, arch="MistralForCausalLM",
    **SEEING,
)  # fmt: skip

PROJECTORS = (MISTRAL3,)

CASES: tuple[Tiny, ...] = (
    Tiny(
        "pixtral",
        composite(
            "LlavaForConditionalGeneration", "llava",
            config("", "mistral", rope_theta=1e6, sliding_window=None), PIXTRAL,
            image_token_index=IMAGE_TOKEN, projector_hidden_act="gelu", vision_feature_layer=-1,
            vision_feature_select_strategy="full", tie_word_embeddings=False,
        ),
        llava_text() | dict(pixtral_tower("vision_tower."))
        | dict(linear("multi_modal_projector.linear_1", EMBD, WIDTH))
        | dict(linear("multi_modal_projector.linear_2", EMBD, EMBD)),
        files=preprocessor(patch_size={"height": 14, "width": 14}), tokens=PIXTRAL_TOKENS, **SEEING,
    ),
    Tiny(
        "internvl-chat",
        {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "downsample_ratio": 0.5,
         "min_dynamic_patch": 1, "max_dynamic_patch": 6, "select_layer": -1, "torch_dtype": "bfloat16",
         "llm_config": config("Qwen2ForCausalLM", "qwen2", rope_theta=1e6),
         "vision_config": tower_config("intern_vit_6b", architectures=["InternVisionModel"], image_size=56,
                                       patch_size=14, hidden_act="gelu", layer_norm_eps=1e-6, norm_type="layer_norm",
                                       qkv_bias=True, num_hidden_layers=4)},
        {f"language_model.{n}": s for n, s in llama_like(bias=("q_proj", "k_proj", "v_proj")).items()}
        | dict(internvl_tower("vision_model."))
        | dict(layer_norm("mlp1.0", 4 * WIDTH)) | dict(linear("mlp1.1", EMBD, 4 * WIDTH))
        | dict(linear("mlp1.3", EMBD, EMBD)),
        files=preprocessor(crop_size=56, size=56), **SEEING,
    ),
    Tiny(
        "internvl",
        composite(
            "InternVLForConditionalGeneration", "internvl",
            config("Qwen2ForCausalLM", "qwen2", rope_theta=1e6),
            tower_config("internvl_vision", architectures=["InternVisionModel"], image_size=[56, 56],
                         patch_size=[14, 14], hidden_act="gelu", layer_norm_eps=1e-6, norm_type="layer_norm",
                         attention_bias=True, use_qk_norm=False, use_mean_pooling=True, num_hidden_layers=4),
            image_token_id=IMAGE_TOKEN, downsample_ratio=0.5, projector_hidden_act="gelu", vision_feature_layer=-1,
            vision_feature_select_strategy="default", tie_word_embeddings=False,
        ),
        below("model.language_model.", llama_like(bias=("q_proj", "k_proj", "v_proj")))
        | dict(internvl_hf_tower("model.vision_tower."))
        | dict(layer_norm("model.multi_modal_projector.layer_norm", 4 * WIDTH))
        | dict(linear("model.multi_modal_projector.linear_1", EMBD, 4 * WIDTH))
        | dict(linear("model.multi_modal_projector.linear_2", EMBD, EMBD)),
        files=preprocessor(size={"height": 56, "width": 56}), **SEEING,
    ),
    Tiny(
        "llava-next",
        composite(
            "LlavaNextForConditionalGeneration", "llava_next",
            config("MistralForCausalLM", "mistral", rope_theta=1e6, sliding_window=None),
            tower_config("clip_vision_model", projection_dim=32),
            image_token_index=IMAGE_TOKEN, image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
            vision_feature_layer=-2, vision_feature_select_strategy="default", tie_word_embeddings=False,
        ),
        llava_text() | dict(clip_tower("vision_tower.vision_model.")) | LLAVA_MLP | {"image_newline": (EMBD,)},
        files=preprocessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        proof="vision", loads=False, special=tower,
    ),
    Tiny(
        "granite-vision",
        composite(
            "LlavaNextForConditionalGeneration", "llava_next",
            config("GraniteForCausalLM", "granite", attention_multiplier=0.25, embedding_multiplier=3.0,
                   residual_multiplier=0.5, logits_scaling=4.0, tie_word_embeddings=True),
            tower_config("siglip_vision_model"),
            image_token_index=IMAGE_TOKEN, image_grid_pinpoints=[[28, 56], [56, 28]],
            vision_feature_layer=[-3, -1], vision_feature_select_strategy="full", tie_word_embeddings=True,
        ),
        llava_text(head=False) | dict(clip_tower("vision_tower.vision_model.", siglip=True))
        | dict(linear("multi_modal_projector.linear_1", EMBD, 2 * WIDTH))
        | dict(linear("multi_modal_projector.linear_2", EMBD, EMBD)) | {"image_newline": (EMBD,)},
        files=preprocessor(size={"height": 28, "width": 28}),
        proof="vision", loads=False, special=tower,
    ),
)  # fmt: skip
