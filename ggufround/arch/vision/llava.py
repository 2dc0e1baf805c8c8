"""LLaVA 1.5 and LLaVA-NeXT: a CLIP or SigLIP tower, read at one of its last layers, and two matrices with GELU between.

llama.cpp's converter knows Pixtral's tower under this class name but not these; the file is what its older
tools/mtmd/legacy-models wrote and tools/mtmd/clip.cpp (projector "mlp", models/llava.cpp) reads. All blocks are kept
and `feature_layer` says at which of them the tower is read; the norm behind the last is never applied, and
clip.cpp would apply it if it were in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ggufround.arch.config import n_embd, optional_integer, shown, wrong
from ggufround.arch.spec import KV, Architecture, Config, Drop, Rule
from ggufround.arch.vision.parts import (
    COMMON,
    COMPUTED,
    FIXED_IMAGE,
    PATCH,
    SIZES,
    activation,
    blocks,
    both,
    epsilon,
    feed_forward_is_not_square,
    projector,
    transformer,
    whole,
)
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, Kind, array, string


def feature_layers(config: Config) -> list[int]:
    """The hidden states that are read: 0 is the tower's input, a negative one counts from the last."""
    stated = whole(config).get("vision_feature_layer", -2)
    layers = stated if isinstance(stated, list) else [stated]
    depth = blocks(config)
    if not layers or not all(isinstance(v, int) and not isinstance(v, bool) and -depth <= v <= depth for v in layers):
        raise wrong("vision_feature_layer", stated, f"numbers of layers from -{depth} to {depth}")
    return [v if v >= 0 else depth + 1 + v for v in layers]


def projector_activation(config: Config) -> None:
    if (value := whole(config).get("projector_hidden_act", "gelu")) != "gelu":
        raise UnsupportedError(f"config.json: projector_hidden_act is {shown(value)}; llama.cpp runs it with gelu")


def selects(strategy: str) -> Callable[[Config], None]:
    """Whether the class token's row is left out; clip.cpp leaves it out where there is one."""

    def check(config: Config) -> None:
        if (value := whole(config).get("vision_feature_select_strategy", "default")) != strategy:
            raise UnsupportedError(
                f"config.json: vision_feature_select_strategy is {shown(value)}; llama.cpp runs this tower with "
                f"{strategy!r}"
            )

    return check


def pinpoints(config: Config) -> Field | None:
    """LLaVA-NeXT: the sizes that an image may be cut from, [height, width] each, one after the other."""
    stated = whole(config).get("image_grid_pinpoints")
    if stated is None:
        return None
    sizes = stated if isinstance(stated, list) else []
    if not sizes or not all(
        isinstance(pair, list) and len(pair) == 2 and all(optional_integer({"side": side}, "side") for side in pair)
        for pair in sizes
    ):
        raise wrong("image_grid_pinpoints", stated, "a list of [height, width]")
    return array(Kind.I32, [int(side) for pair in sizes for side in pair])


BLOCK = {
    "ln1": "layer_norm1", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj", "ln2": "layer_norm2", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2",
}  # fmt: skip
PREFIXES = ("model.", "vision_tower.", "vision_model.")
MLP = (
    *both("multi_modal_projector.linear_1", "mm.0", "text features"),
    *both("multi_modal_projector.linear_2", "mm.2", "text text"),
)

LLAVA = Architecture(
    name="clip",
    part="vision",
    classes=("LlavaForConditionalGeneration",),
    prefixes=PREFIXES,
    rules=(
        Rule("embeddings.class_embedding", "v.class_embd", "embd"),
        Rule("embeddings.patch_embedding.weight", "v.patch_embd.weight", "embd 3 patch patch"),
        Rule("embeddings.position_embedding.weight", "v.position_embd.weight", "positions embd"),
        *both("pre_layrnorm", "v.pre_ln", "embd"),
        *transformer("encoder.layers.{i}.", BLOCK),
        *MLP,
    ),
    kvs=(
        *COMMON,
        projector("mlp"),
        epsilon("layer_norm_eps"),
        *activation(quick_gelu=None, gelu="use_gelu"),
        KV("vision.feature_layer", lambda config: array(Kind.I32, feature_layers(config))),
    ),
    tokenizers=(),
    defaults={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    sizes={
        **SIZES,
        "positions": lambda config: SIZES["grid"](config) + 1,
        "features": lambda config: len(feature_layers(config)) * n_embd(config),
    },
    blocks=blocks,
    checks=(feed_forward_is_not_square, projector_activation, selects("default"), *FIXED_IMAGE, PATCH),
    drops=(*COMPUTED, Drop("*.post_layernorm.*", "the norm behind the last layer: the tower is read before it")),
)

# A SigLIP tower has no class token and no norm in front, and its patches have a bias.
LLAVA_SIGLIP = replace(
    LLAVA,
    rules=(
        *both("embeddings.patch_embedding", "v.patch_embd", "embd 3 patch patch"),
        Rule("embeddings.position_embedding.weight", "v.position_embd.weight", "grid embd"),
        *transformer("encoder.layers.{i}.", BLOCK),
        *MLP,
    ),
    kvs=(*LLAVA.kvs[:-2], *activation(gelu_pytorch_tanh="use_gelu", gelu="use_gelu"), LLAVA.kvs[-1]),
    defaults={**LLAVA.defaults, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    checks=(feed_forward_is_not_square, projector_activation, selects("full"), *FIXED_IMAGE, PATCH),
    drops=(*LLAVA.drops, Drop("*vision_model.head.*", "the tower's pooling head: not used")),
)

# Larger images are cut into tiles. clip.cpp puts no learned row between the rows of tiles, as transformers does.
NEXT_KVS = (
    KV("vision.mm_patch_merge_type", lambda config: string("spatial_unpad")),
    KV("vision.image_grid_pinpoints", pinpoints),
)
NEWLINE = Rule("image_newline", "v.image_newline", "text")
LLAVA_NEXT = replace(
    LLAVA,
    classes=("LlavaNextForConditionalGeneration",),
    rules=(*LLAVA.rules, NEWLINE),
    kvs=(*LLAVA.kvs, *NEXT_KVS),
)
LLAVA_NEXT_SIGLIP = replace(
    LLAVA_SIGLIP,
    classes=LLAVA_NEXT.classes,
    rules=(*LLAVA_SIGLIP.rules, NEWLINE),
    kvs=(*LLAVA_SIGLIP.kvs, *NEXT_KVS),
)

# By the model_type of vision_config.
FAMILY = {
    "clip_vision_model": (LLAVA, LLAVA_NEXT),
    "siglip_vision_model": (LLAVA_SIGLIP, LLAVA_NEXT_SIGLIP),
}
