"""MiMo 7B: Qwen 2 with further blocks that predict the tokens after the next.

llama.cpp's converter does not know it; the file is the one that it makes of the same weights as a Qwen 2.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.checks import fixed, heads_fill_embedding
from ggufround.arch.qwen import QWEN2
from ggufround.arch.spec import Drop

MIMO = replace(
    QWEN2,
    classes=("MiMoForCausalLM",),
    defaults={**QWEN2.defaults, "rope_theta": 640000.0, "num_key_value_heads": 8},
    checks=(*QWEN2.checks, fixed("use_sliding_window", None, False), heads_fill_embedding),
    drops=(Drop("model.mtp_layers.*", "predicts the tokens after the next, which llama.cpp does not do for Qwen 2"),),
    untunable="transformers has no class for it",
)

FAMILY = (MIMO,)
