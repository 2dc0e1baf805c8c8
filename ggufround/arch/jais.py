"""Jais 2: centred norms and biases everywhere, and no gate.

Sources: `Jais2Model` in conversion/jais.py for names, values and metadata; src/models/jais2.cpp for what is read.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.baichuan import NORM_BIASES
from ggufround.arch.checks import activation, fixed
from ggufround.arch.config import head_dim, n_head
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD, NORMS
from ggufround.arch.metadata import COMMON
from ggufround.arch.spec import KV, Architecture
from ggufround.gguf_file import u32

JAIS2 = Architecture(
    name="jais2",
    classes=("Jais2ForCausalLM",),
    rules=(
        *ENDS,
        *NORMS,
        *NORM_BIASES,
        *ATTENTION[:3],
        *(replace(rule, bias=True) for rule in (ATTENTION[3], *FEED_FORWARD[1:])),
    ),
    kvs=(*COMMON, KV("rope.dimension_count", lambda config: u32(head_dim(config)))),
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 8192,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_key_value_heads": n_head,
    },
    checks=(activation("relu2"), fixed("attention_bias", None, True), fixed("mlp_bias", None, True)),
)

FAMILY = (JAIS2,)
