"""How transformers calls the modules of a composite model, where that is not how its checkpoint calls their tensors.

Readers match names of modules, not of tensors, against what config.json says of single layers. Since transformers 4.52
the language model of a vision-language model is `model.language_model`, and checkpoints have kept their older names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NESTED = (  # LLaVA, Gemma 3, InternVL, Mistral 3, ...: the text model as a whole was called language_model
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^language_model\.lm_head$"), "lm_head"),
)
# Qwen2-VL's blocks lay beside `visual`.
BESIDE = (
    (re.compile(r"^model\.(?!language_model\.|visual\.)"), "model.language_model."),
)  # its blocks beside `visual`
RENAMINGS = {"qwen2_vl": BESIDE, "qwen2_5_vl": BESIDE}


def loaded_name(config: Mapping[str, Any], module: str) -> str:
    """The name of the module in transformers that the checkpoint's `module` becomes. A model with code of its own
    (`auto_map`) has the names that this code gives it."""
    if "auto_map" in config or "text_config" not in config and config.get("model_type") not in RENAMINGS:
        return module
    for pattern, name in RENAMINGS.get(str(config.get("model_type")), NESTED):
        module = pattern.sub(name, module)
    return module
