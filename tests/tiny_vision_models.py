"""Tiny vision-language models, as transformers saves them, with a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_parts

NAMES = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3")
TEXT = {
    "vocab_size": tiny_parts.VOCAB, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.1,
}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
TOKENS = {"image_token_id": 319, "video_token_id": 318, "vision_start_token_id": 317, "vision_end_token_id": 316}
SEEN = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}


def model(name: str) -> Any:
    """A random model in bfloat16, the same each time."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    if name == "llava":
        seen: Any = t.CLIPVisionConfig(**SEEN, image_size=32, patch_size=8, projection_dim=64)
        config: Any = t.LlavaConfig(vision_config=seen, text_config=t.LlamaConfig(**TEXT), image_token_index=319)
        made: Any = t.LlavaForConditionalGeneration(config)
    elif name == "gemma3":
        seen = t.SiglipVisionConfig(**SEEN, image_size=32, patch_size=8)
        text: Any = t.Gemma3TextConfig(**TEXT, head_dim=32, query_pre_attn_scalar=32, sliding_window=32)
        config = t.Gemma3Config(
            vision_config=seen, text_config=text, mm_tokens_per_image=4, image_token_id=319,
            boi_token_index=318, eoi_token_index=317,
        )  # fmt: skip
        made = t.Gemma3ForConditionalGeneration(config)
    elif name == "qwen2_5_vl":
        seen = {
            "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 128,
            "patch_size": 8, "fullatt_block_indexes": [1], "window_size": 32,
        }  # fmt: skip
        config = t.Qwen2_5_VLConfig(text_config=TEXT | {"rope_parameters": MROPE}, vision_config=seen, **TOKENS)
        made = t.Qwen2_5_VLForConditionalGeneration(config)
    else:
        seen = {
            "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 128,
            "patch_size": 8, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16,
        }  # fmt: skip
        text = TEXT | {"head_dim": 32, "rope_parameters": MROPE | {"mrope_interleaved": True}}
        config = t.Qwen3VLConfig(text_config=text, vision_config=seen, **TOKENS)
        made = t.Qwen3VLForConditionalGeneration(config)
    return made.to(torch.bfloat16).eval()


def write(name: str, folder: Path) -> Path:
    """Its checkpoint in `folder`, which is returned."""
    model(name).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tiny_parts.bpe_tokenizer()))
    configured = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(configured | {"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    return folder
