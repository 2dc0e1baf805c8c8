"""The text models of composite classes in which any language model may stand.

Their configs leave out what equals the defaults of transformers' class for the text model, sizes too, so that these
are laid under it here; a plain model's config states its sizes, and one that does not is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ggufround.arch.llama import GRANITE, LLAMA, MISTRAL
from ggufround.arch.qwen import QWEN2, QWEN3
from ggufround.arch.spec import Architecture, Config
from ggufround.errors import UnsupportedError

CLASSES = (
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
    "InternVLForConditionalGeneration",
)


def _sized(row: Architecture, vocab: int, ff: int, **further: Any) -> Architecture:
    sizes = {"vocab_size": vocab, "hidden_size": 4096, "intermediate_size": ff, "num_hidden_layers": 32}
    return replace(row, defaults={**sizes, "num_attention_heads": 32, **row.defaults, **further})


# By the model_type of text_config.
TEXT_MODELS: Mapping[str, Architecture] = {
    "llama": _sized(LLAMA, 32000, 11008),
    "mistral": _sized(MISTRAL, 32000, 14336),
    "granite": _sized(GRANITE, 32000, 11008),
    "qwen2": _sized(QWEN2, 151936, 22016),
    "qwen3": _sized(QWEN3, 151936, 22016),
}


def text_model(config: Config, name: str) -> Architecture:
    """The text model of a config whose class is one of `CLASSES`. Raises UnsupportedError for one that is not known."""
    text = config.get("text_config")
    kind = text.get("model_type", "llama") if isinstance(text, Mapping) else "llama"
    if (found := TEXT_MODELS.get(str(kind))) is None:
        raise UnsupportedError(
            f"{name} with a text model of type {str(kind)[:80]!r} is not known; known are {', '.join(TEXT_MODELS)}"
        )
    return found
