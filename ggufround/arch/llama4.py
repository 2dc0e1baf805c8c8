"""Llama 4 (text): experts beside one that is always used, in every layer or in every second one.

Heads rotate neighbouring columns already, so that no rows move. The stacks of experts are saved the other way round,
[experts, in, out].

Sources: `Llama4Model` in conversion/llama.py for names, values and metadata; src/models/llama4.cpp for what is read.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch.checks import fixed, no_rope_every_fourth_layer
from ggufround.arch.config import integer, n_expert, n_layer, shown
from ggufround.arch.gemma import VISION
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD, LLAMA, NORMS
from ggufround.arch.metadata import count, replaced
from ggufround.arch.spec import KV, Config, Drop, Rule
from ggufround.arch.transforms import every, share
from ggufround.errors import UnsupportedError

MLP, MOE = "intermediate_size_mlp", "intermediate_size"


def sparse(config: Config, i: int) -> bool:
    return (i + 1) % integer(config, "interleave_moe_layer_step") == 0


def dense(config: Config, i: int) -> bool:
    return not sparse(config, i)


def expert_ff(config: Config) -> int:
    return integer(config, MOE)


def layers_as_built_in(config: Config) -> None:
    """llama.cpp tells layers with experts by their distance, the attention of each by its number, and whether queries
    and keys are normalised by the number of experts."""
    layers = range(n_layer(config))
    expected = {
        "moe_layers": [i for i in layers if sparse(config, i)],
        "layer_types": ["full_attention" if i % 4 == 3 else "chunked_attention" for i in layers],
        "use_qk_norm": n_expert(config) != 128,
    }
    for key, known in expected.items():
        if config.get(key, known) != known:
            raise UnsupportedError(
                f"config.json: {key} is {shown(config[key])}; llama.cpp runs this model with {shown(known)}"
            )


LLAMA4 = replace(
    LLAMA,
    name="llama4",
    classes=("Llama4ForConditionalGeneration", "Llama4ForCausalLM"),
    rules=(
        *ENDS,
        *NORMS,
        *ATTENTION,
        *(
            replace(rule, source=str(rule.source).replace("mlp.", "feed_forward."), where=dense)
            for rule in FEED_FORWARD
        ),
        *(
            replace(
                rule,
                source=str(rule.source).replace("mlp.", "feed_forward.shared_expert."),
                to=rule.to.replace(".weight", "_shexp.weight"),
                shape=rule.shape.replace("ff", "expert_ff"),
                where=sparse,
            )
            for rule in FEED_FORWARD
        ),
        Rule("layers.{i}.feed_forward.router.weight", "blk.{i}.ffn_gate_inp.weight", "experts embd", where=sparse),
        *(
            Rule("layers.{i}.feed_forward.experts.gate_up_proj", f"blk.{{i}}.ffn_{half}_exps.weight",
                 "experts embd 2expert_ff", share(k, 2, "transposed", expert_ff), makes="experts expert_ff embd",
                 where=sparse)
            for k, half in enumerate(("gate", "up"))
        ),
        Rule("layers.{i}.feed_forward.experts.down_proj", "blk.{i}.ffn_down_exps.weight", "experts expert_ff embd",
             every(1, 0, "transposed"), makes="experts embd expert_ff", where=sparse),
    ),
    kvs=(
        *replaced(LLAMA.kvs, KV("feed_forward_length", count(MLP))),
        KV("interleave_moe_layer_step", count("interleave_moe_layer_step")),
        KV("expert_feed_forward_length", count(MOE)),
    ),
    tokenizers=("bpe",),
    defaults={
        "vocab_size": 202048,
        "hidden_size": 5120,
        MOE: 8192,
        MLP: 16384,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "num_experts_per_tok": 1,
        "num_local_experts": 16,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
    },
    checks=(
        *LLAMA.checks,
        no_rope_every_fourth_layer,
        layers_as_built_in,
        fixed("attention_chunk_size", None, 8192),
        fixed("floor_scale", None, 8192),
        fixed("attn_scale", None, 0.1),
        fixed("attn_temperature_tuning", None, True, 4),
    ),
    rope_types=("default", "llama3"),
    drops=(*VISION, Drop("*vision_model.*", "vision: not part of the text model")),
    sizes={
        "ff": lambda config: integer(config, MLP),
        "expert_ff": expert_ff,
        "2expert_ff": lambda config: 2 * expert_ff(config),
    },
    untunable="transformers holds its experts with rows and columns exchanged",
)  # fmt: skip

FAMILY = (LLAMA4,)
