"""auto_awq: AWQ's checkpoints (version "gemm"), for AutoAWQ, vLLM, SGLang, GPTQModel: 4 bits, all layers alike."""

from __future__ import annotations

import re
from typing import Any

from ggufround.formats.spec import Format
from ggufround.formats.stores import awq
from ggufround.quants.schemes import Layers, Scheme


def refusal(scheme: Scheme) -> str | None:
    return None if scheme.data == "int" and scheme.bits == 4 else "AWQ holds integers of 4 bits"


def config(layers: Layers) -> dict[str, Any]:
    scheme = layers.scheme
    head = [] if layers.head in layers.quantised else [layers.head]
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": scheme.bits,
        "group_size": scheme.group,
        "zero_point": not scheme.symmetric,
        "modules_to_not_convert": [*head, *layers.kept, *layers.towers],
        **({"dynamic": {f"-:^{re.escape(name)}$": {} for name in layers.kept}} if layers.kept else {}),  # GPTQModel's
        "provider": "ggufround",
    }


FORMAT = Format("auto_awq", "AutoAWQ, GPTQModel, vLLM, SGLang", refusal, awq, config, lambda most, other: most == other)
