"""OLMo 2 and 3: norms after attention and feed-forward instead of before, and over all of q and k.

Sources: `Olmo2Model` in conversion/olmo.py for names, values and metadata; src/models/olmo2.cpp for what is read.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.checks import activation
from ggufround.arch.config import n_head, n_layer, wrong
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD
from ggufround.arch.metadata import COMMON, count_if_stated
from ggufround.arch.spec import KV, Architecture, Config, Rule
from ggufround.gguf_file import Field, Kind, array


def windows(config: Config) -> Field | None:
    """Which layers have a window; OLMo 3's default is all but every fourth, OLMo 2 has none."""
    if "sliding_window" not in config:
        return None
    stated = config.get("layer_types")
    if stated is None:
        return array(Kind.BOOL, [(i + 1) % 4 != 0 for i in range(n_layer(config))])
    if not isinstance(stated, list) or len(stated) != n_layer(config):
        raise wrong("layer_types", stated, f"a list of {n_layer(config)} names")
    return array(Kind.BOOL, [kind == "sliding_attention" for kind in stated])


OLMO2 = Architecture(
    name="olmo2",
    classes=("Olmo2ForCausalLM", "Olmo3ForCausalLM"),
    rules=(
        *ENDS[:2],
        replace(ENDS[2], optional=False),  # llama.cpp reads no tied OLMo
        *ATTENTION,
        Rule("layers.{i}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight", "q"),
        Rule("layers.{i}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight", "kv"),
        Rule("layers.{i}.post_attention_layernorm.weight", "blk.{i}.post_attention_norm.weight", "embd"),
        Rule("layers.{i}.post_feedforward_layernorm.weight", "blk.{i}.post_ffw_norm.weight", "embd"),
        *FEED_FORWARD,
    ),
    kvs=(
        *COMMON,
        KV("attention.sliding_window", count_if_stated("sliding_window")),
        KV("attention.sliding_window_pattern", windows),
    ),
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_key_value_heads": n_head,
    },
    checks=(activation("silu", "swish"),),
)

FAMILY = (OLMO2,)
