"""RWKV-7, in the names of flash-linear-attention, which its checkpoints on the hub have.

Sources: `Rwkv7Model` in conversion/rwkv.py for names, values and metadata; src/models/rwkv7*.cpp for what llama.cpp
reads. The low-rank projections (decay w, in-context learning rate a, value residual v, gate g) have a number each:
1 down, 2 up, 0 what is added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ggufround.arch.checks import fixed
from ggufround.arch.config import integer, n_embd, n_layer, number, optional_integer, shown
from ggufround.arch.mamba import CONTEXT, sized
from ggufround.arch.metadata import constant, real
from ggufround.arch.nemotron import layer_norm
from ggufround.arch.spec import F32, KV, Architecture, Config, Drop, Rule, Transform
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import u32

EPSILON = ("layer_norm_epsilon", "norm_eps")
GROUP_EPSILON = 64e-5


def rank(exponent: float, factor: float, *keys: str) -> Callable[[Config], int]:
    """A stated rank, or what the authors take for the embedding's size."""

    def read(config: Config) -> int:
        stated = optional_integer(config, *keys)
        return stated or max(1, round(n_embd(config) ** exponent * factor / 32)) * 32

    return read


DECAY = rank(0.5, 1.8, "lora_rank_decay", "decay_low_rank_dim")
RATE = rank(0.5, 1.8, "lora_rank_iclr", "a_low_rank_dim")
RESIDUAL = rank(0.5, 1.3, "lora_rank_value_residual_mix", "v_low_rank_dim")
GATE = rank(0.8, 0.6, "lora_rank_gate", "gate_low_rank_dim")


def head_size(config: Config) -> int:
    return integer(config, "head_size", "head_dim")


def feed_forward(config: Config) -> int:
    return optional_integer(config, "intermediate_size") or 4 * n_embd(config)


def heads(config: Config) -> int:
    return n_embd(config) // head_size(config)


def group_norm(config: Config) -> None:
    """The norm of each head's output has the layers' epsilon times the size of a head."""
    found = head_size(config) * number(config, *EPSILON)
    if abs(found - GROUP_EPSILON) > 1e-6 * GROUP_EPSILON:
        raise UnsupportedError(
            f"config.json: heads of {head_size(config)} and an epsilon of {number(config, *EPSILON):g}, which make "
            f"{found:g} for the norm of a head; llama.cpp has {GROUP_EPSILON:g} built in"
        )


def alone(config: Config) -> None:
    if config.get("attn") is not None:
        raise UnsupportedError(f"config.json: attn is {shown(config['attn'])}; llama.cpp runs RWKV-7 without attention")


def same(rows: F32) -> F32:
    return rows


def unused(config: Config) -> Transform:
    """Rows that another tensor of the file holds too; nothing of it goes back."""
    return Transform(same, back=lambda rows: rows * 0)


def first(config: Config, block: int) -> bool:
    return block == 0


def later(config: Config, block: int) -> bool:
    return block > 0


def low_rank(letter: str, size: str, bias: bool = True) -> tuple[Rule, ...]:
    source, to = f"layers.{{i}}.attn.{letter}_lora.lora.", f"blk.{{i}}.time_mix_{letter}"
    down = Rule(f"{source}0.weight", f"{to}1.weight", f"{size} embd")
    up = Rule(f"{source}2.weight", f"{to}2.weight", f"embd {size}")
    return (down, up, *([Rule(f"{source}2.bias", f"{to}0.weight", "embd")] if bias else []))


LEARNING = low_rank("a", "rank_a")
MIXED = "rwkvag"

RWKV7 = Architecture(
    name="rwkv7",
    classes=("RWKV7ForCausalLM", "Rwkv7ForCausalLM"),
    rules=(
        Rule("embeddings.weight", "token_embd.weight", "vocab embd"),
        Rule("lm_head.weight", "output.weight", "vocab embd"),
        *layer_norm("norm", "output_norm", one_less=False),
        *layer_norm("layers.0.pre_norm", "token_embd_norm", one_less=False),
        *layer_norm("layers.{i}.attn_norm", "blk.{i}.attn_norm", one_less=False),
        *layer_norm("layers.{i}.ffn_norm", "blk.{i}.attn_norm_2", one_less=False),
        *layer_norm("layers.{i}.attn.g_norm", "blk.{i}.time_mix_ln", one_less=False),
        Rule(
            tuple(f"layers.{{i}}.attn.x_{letter}" for letter in MIXED),
            "blk.{i}.time_mix_lerp_fused.weight",
            "1 1 embd",
            makes="1 1 1 embd",
        ),
        Rule("layers.{i}.attn.x_x", "blk.{i}.time_mix_lerp_fused.weight", "6 embd", makes="6 1 1 embd"),
        *low_rank("w", "rank_w"),
        *LEARNING,
        *(replace(rule, where=later) for rule in low_rank("v", "rank_v")),
        # the first block has no value of an earlier one; llama.cpp wants the tensors all the same, of another shape
        *(
            replace(rule, to=rule.to.replace("_a", "_v"), via=unused, makes=rule.shape, where=first)
            for rule in LEARNING
        ),
        *low_rank("g", "rank_g", bias=False),
        Rule("layers.{i}.attn.k_k", "blk.{i}.time_mix_k_k.weight", "embd"),
        Rule("layers.{i}.attn.k_a", "blk.{i}.time_mix_k_a.weight", "embd"),
        Rule("layers.{i}.attn.r_k", "blk.{i}.time_mix_r_k.weight", "heads head", makes="embd"),
        Rule("layers.{i}.attn.r_proj.weight", "blk.{i}.time_mix_receptance.weight", "embd embd"),
        Rule("layers.{i}.attn.k_proj.weight", "blk.{i}.time_mix_key.weight", "embd embd"),
        Rule("layers.{i}.attn.v_proj.weight", "blk.{i}.time_mix_value.weight", "embd embd"),
        Rule("layers.{i}.attn.o_proj.weight", "blk.{i}.time_mix_output.weight", "embd embd"),
        Rule("layers.{i}.ffn.x_k", "blk.{i}.channel_mix_lerp_k.weight", "embd"),
        Rule("layers.{i}.ffn.key.weight", "blk.{i}.channel_mix_key.weight", "ff embd"),
        Rule("layers.{i}.ffn.value.weight", "blk.{i}.channel_mix_value.weight", "embd ff"),
    ),
    kvs=(
        KV("context_length", constant(u32(CONTEXT))),
        KV("embedding_length", sized(n_embd)),
        KV("block_count", sized(n_layer)),
        KV("attention.layer_norm_epsilon", real(*EPSILON)),
        KV("wkv.head_size", sized(head_size)),
        KV("attention.decay_lora_rank", sized(DECAY)),
        KV("attention.iclr_lora_rank", sized(RATE)),
        KV(
            "attention.value_residual_mix_lora_rank",
            sized(RESIDUAL),
        ),
        KV("attention.gate_lora_rank", sized(GATE)),
        KV("feed_forward_length", sized(feed_forward)),
        KV("attention.head_count", constant(u32(0))),
    ),
    tokenizers=("rwkv", "bpe"),
    checks=(group_norm, alone, fixed("hidden_act", None, "sqrelu", "relu2"), fixed("norm_bias", None, True)),
    drops=(Drop("*layers.0.attn.v_lora.*", "the first block has no value of an earlier one to mix in"),),
    sizes={
        "heads": heads,
        "head": head_size,
        "ff": feed_forward,
        "rank_w": DECAY,
        "rank_a": RATE,
        "rank_v": RESIDUAL,
        "rank_g": GATE,
    },
    untunable="transformers has no class for it, and code that comes with a model is never run",
)

FAMILY = (RWKV7,)
