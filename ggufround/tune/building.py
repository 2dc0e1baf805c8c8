"""An empty causal language model of transformers on the meta device, from a checkpoint's config alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch

from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import InputError, UnsupportedError
from ggufround.tune.attention import register
from ggufround.tune.extra import require_extra

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Keys that name code of the model's own, describe how its tensors were packed, or ask for outputs besides the logits.
LEFT_OUT = (
    "auto_map", "quantization_config", "quantization", "compression_config", "use_cache", "return_dict",
    "output_attentions", "output_hidden_states", "output_router_logits", "_attn_implementation", "attn_implementation",
    "_experts_implementation", "experts_implementation",
)  # fmt: skip


def build(checkpoint: Checkpoint) -> PreTrainedModel:
    """The causal language model (of a composite model: its text part) in evaluation mode, all on the meta device.

    Where transformers has the text part within the composite model only (Qwen2-VL), that one is built, and what sees or
    hears is taken out of it.

    Raises MissingExtraError without transformers, UnsupportedError for a .gguf and for what transformers has no code
    of its own for, InputError for a config that it refuses. Downloads nothing and runs nothing of the model's.
    """
    if checkpoint.is_gguf:
        raise UnsupportedError(
            f"{checkpoint.source}: a .gguf can be converted but not tuned: it lacks what transformers needs to run "
            f"the model; give the checkpoint that it was made from, or choose --recipe opt-rtn"
        )
    require_extra()
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.initialization import meta_device_safe_creation_ops, no_init_weights
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    stated = _cleaned(checkpoint.config)
    kind = stated.pop("model_type", None)
    if kind == "mistral" and "layer_types" in stated:
        kind = "ministral"  # as AutoConfig.from_pretrained has it: full and sliding attention alternate
    try:
        whole = AutoConfig.for_model(str(kind), **stated)
        config = whole.get_text_config()
    except Exception as error:
        if not _knows(kind):
            raise UnsupportedError(
                f"{checkpoint.source}: transformers knows no model type {kind!r:.80}, so it cannot be tuned (code that "
                f"comes with a model is never run); choose --recipe opt-rtn, or a newer transformers"
            ) from error
        raise InputError(f"{checkpoint.source}: transformers refuses config.json: {error}") from error
    composite = type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    if composite and type(whole) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise UnsupportedError(
            f"{checkpoint.source}: transformers has no causal language model for {config.model_type}"
        )
    _check_size(config, checkpoint)
    network: Any = (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(whole)] if composite else MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    )
    classes: Any = AutoModelForImageTextToText if composite else AutoModelForCausalLM
    # Gemma 2 caps its scores, which sdpa cannot; Falcon has a table of the kinds that it knows
    kinds = (register(), "sdpa") if network._supports_sdpa else ("eager",)
    if hasattr(config, "index_topk"):
        kinds = ("sdpa",)  # tokens that an indexer leaves out are left out under transformers' own names only
    model, failure = None, None
    for attention in kinds:
        try:
            with torch.device("meta"), meta_device_safe_creation_ops(), no_init_weights():
                model = classes.from_config(
                    whole if composite else config,
                    dtype=torch.float32, attn_implementation=attention, trust_remote_code=False,
                )  # fmt: skip
            break
        except Exception as error:
            failure = error
    if model is None:
        raise InputError(
            f"{checkpoint.source}: transformers cannot build the model of config.json: {failure}"
        ) from failure
    if composite:
        _without_towers(model)
    built: PreTrainedModel = model.eval().requires_grad_(False)
    return built


def _without_towers(model: Any) -> None:
    """Leaves the language model alone of what a composite model consists of: no text reaches the rest."""
    text = model.get_decoder()
    for parent in (model, model.base_model):
        for name, part in list(parent.named_children()):
            if part is not model.get_output_embeddings() and not any(m is text for m in part.modules()):
                setattr(parent, name, torch.nn.Identity())


def _cleaned(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without LEFT_OUT, at any depth: `read` hands over plain float32 whatever the weights were stored as."""
    return {
        key: _cleaned(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in LEFT_OUT
    }


def _knows(kind: object) -> bool:
    from transformers import CONFIG_MAPPING

    return kind in CONFIG_MAPPING


def _check_size(config: PreTrainedConfig, checkpoint: Checkpoint) -> None:
    """A layer without a tensor of its own is a lie that would cost memory before it is found out."""
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int) or not 0 < layers <= len(checkpoint.tensors):
        raise InputError(
            f"{checkpoint.source}: config.json states {layers!r:.80} layers, which its tensors cannot fill"
        )


def fill_buffers(model: PreTrainedModel, modules: Iterable[torch.nn.Module], device: torch.device) -> None:
    """Give the modules' own buffers that no checkpoint holds (rotary frequencies, embedding scales) their values.

    They are those of transformers' own initialisation, which `from_pretrained` uses too. Call it before parameters
    are filled: a module with such buffers is initialised as a whole.
    """
    with torch.inference_mode(False), torch.no_grad():
        for module in modules:
            absent = {
                key: buffer
                for key, buffer in module._buffers.items()
                if key in module._non_persistent_buffers_set and buffer is not None
            }
            for key, buffer in absent.items():
                nothing = float("nan") if buffer.is_floating_point() else 0
                module._buffers[key] = torch.full_like(buffer, nothing, device=device)
            if absent:
                cast(Any, model)._init_weights(module)
            for key in absent:
                buffer = module.get_buffer(key)
                if buffer.is_floating_point() and bool(buffer.isnan().any()):
                    raise UnsupportedError(
                        f"{type(module).__name__}.{key} is in no checkpoint, and transformers does not compute it"
                    )


def find_layers(model: PreTrainedModel) -> tuple[str, list[torch.nn.Module]]:
    """The decoder blocks and the name of their list. Raises UnsupportedError unless there is exactly one such list."""
    count = model.config.get_text_config().num_hidden_layers
    found = {
        name: list(module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count and not re.search(r"\.\d+\.", name)
    }
    if len(found) != 1:
        raise UnsupportedError(
            f"{type(model).__name__} has {len(found)} lists of {count} blocks, not one, so it cannot be tuned block by "
            f"block; choose --recipe opt-rtn"
        )
    return next(iter(found.items()))


def find_ends(model: PreTrainedModel) -> tuple[torch.nn.Embedding, torch.nn.Linear]:
    """The token embedding and the output matrix. Raises UnsupportedError where they are something else."""
    hidden = model.config.get_text_config().hidden_size
    embedding, head = model.get_input_embeddings(), cast(Any, model).get_output_embeddings()
    if (
        not isinstance(embedding, torch.nn.Embedding)
        or not isinstance(head, torch.nn.Linear)
        or not hidden == embedding.embedding_dim == head.in_features
    ):
        raise UnsupportedError(
            f"{type(model).__name__} has no plain embedding and output matrix of {hidden} columns, "
            f"so it cannot be tuned; choose --recipe opt-rtn"
        )
    return embedding, head
