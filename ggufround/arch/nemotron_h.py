"""Nemotron-H and its mixtures of experts (Nemotron 3): each block is a Mamba-2 mixer, attention without rotation, a
feed-forward part or experts; what it is stands in a pattern.

Sources: `NemotronHModel` in conversion/nemotron.py; src/models/nemotron-h.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ggufround.arch.checks import fixed
from ggufround.arch.config import N_FF, head_dim, integer, n_embd, n_head, n_head_kv, number, shown, wrong
from ggufround.arch.llama import ATTENTION, FEED_FORWARD, INTERLEAVED
from ggufround.arch.mamba import CONTEXT, ENDS, MIXER2, NORM, sized, sizes2, steps_unlimited
from ggufround.arch.metadata import COMMON, constant, count, count_if_stated, replaced, without
from ggufround.arch.spec import KV, Architecture, Config, Drop, Rule
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, Kind, array, boolean, f32, u32

LETTERS = {
    "mamba": "M",
    "linear_attention": "M",
    "attention": "*",
    "full_attention": "*",
    "mlp": "-",
    "moe": "E",
}


def kinds(config: Config) -> str:
    """A letter a block, as the pattern has them: M(amba), *: attention, -: feed-forward, E(xperts)."""
    stated = config.get("hybrid_override_pattern") or config.get("layers_block_type")
    letters = "".join(LETTERS.get(str(name), "?") for name in stated) if isinstance(stated, list) else stated
    if not isinstance(letters, str) or not letters or letters.strip("M*-E"):
        raise wrong("hybrid_override_pattern or layers_block_type", stated, f"letters of M*-E or names of {[*LETTERS]}")
    return letters


def one_kind_of_feed_forward(config: Config) -> None:
    letters = kinds(config)
    if len(letters) != integer(config, "num_hidden_layers"):
        raise wrong("num_hidden_layers", config["num_hidden_layers"], f"{len(letters)}, the length of the pattern")
    if "E" in letters and "-" in letters:
        raise UnsupportedError(
            f"config.json: the pattern {shown(letters)} has blocks with experts and blocks without; llama.cpp runs one "
            "or the other"
        )


def blocks(letter: str) -> Callable[[Config, int], bool]:
    return lambda config, i: i < len(kinds(config)) and kinds(config)[i] == letter


def by_block(letter: str, size: Callable[[Config], int]) -> Callable[[Config], Field]:
    """The size in blocks of that kind, 0 in the others."""
    return lambda config: array(Kind.I32, [size(config) if kind == letter else 0 for kind in kinds(config)])


def groups(config: Config) -> int:
    return integer(config, "n_groups", "mamba_n_groups")


def heads(config: Config) -> int:
    return integer(config, "mamba_num_heads")


def d_inner(config: Config) -> int:
    return heads(config) * integer(config, "mamba_head_dim")


def conv(config: Config) -> int:
    return integer(config, "conv_kernel", "mamba_d_conv")


def state(config: Config) -> int:
    return integer(config, "ssm_state_size")


def mixers(*rules: Rule) -> tuple[Rule, ...]:
    """Rules of any model's attention or feed-forward part, as the mixer of a block."""

    def mixer(rule: Rule) -> Rule:
        assert isinstance(rule.source, str)
        return replace(rule, source=rule.source.replace(".self_attn.", ".mixer.").replace(".mlp.", ".mixer."))

    return tuple(mixer(rule) for rule in rules)


def only(letter: str, *rules: Rule) -> tuple[Rule, ...]:
    return tuple(replace(rule, where=blocks(letter)) for rule in rules)


def variant(config: Config) -> Architecture:
    return NEMOTRON_H_MOE if "E" in kinds(config) else NEMOTRON_H


SHARED = (
    *ENDS[:1],
    *ENDS[2:],
    NORM,
    *only("M", *MIXER2),
    *only("*", *mixers(*INTERLEAVED[:3], replace(ATTENTION[3], bias=True))),
)


def general(letter: str, feed_forward: Callable[[Config], int]) -> tuple[KV, ...]:
    """The common keys; the feed-forward part is in blocks of that kind."""
    return without(
        replaced(
            COMMON,
            KV("context_length", constant(u32(CONTEXT))),
            KV("feed_forward_length", by_block(letter, feed_forward)),
            KV("attention.head_count_kv", by_block("*", n_head_kv)),
        ),
        "attention.key_length",
        "attention.value_length",
        "expert_count",
        "expert_used_count",
        "expert_group_count",
        "expert_group_used_count",
    )


MIXERS = (
    KV("vocab_size", count("vocab_size")),
    KV("rope.dimension_count", lambda config: u32(n_embd(config) // n_head(config))),
    KV("ssm.conv_kernel", sized(conv)),
    KV("ssm.state_size", sized(state)),
    KV("ssm.group_count", sized(groups)),
    KV("ssm.inner_size", sized(d_inner)),
    KV("ssm.time_step_rank", sized(heads)),
    KV("rope.scaling.finetuned", constant(boolean(False))),  # no rotation
    KV("attention.key_length", sized(head_dim)),
    KV("attention.value_length", sized(head_dim)),
)

NEMOTRON_H = Architecture(
    name="nemotron_h",
    classes=("NemotronHForCausalLM",),
    rules=(*SHARED, *only("-", *mixers(*(replace(rule, bias=True) for rule in FEED_FORWARD[1:])))),
    kvs=(*general("-", lambda config: integer(config, *N_FF)), *MIXERS),
    tokenizers=("bpe",),
    defaults={
        "num_hidden_layers": lambda config: len(kinds(config)),
        "head_dim": lambda config: config.get("attention_head_dim", 128),
        "layer_norm_epsilon": 1e-5,
        "n_groups": 8,
        "conv_kernel": 4,
        "ssm_state_size": 128,
    },
    checks=(
        one_kind_of_feed_forward,
        steps_unlimited,
        fixed("mlp_hidden_act", None, "relu2"),
        fixed("mamba_hidden_act", None, "silu", "swish"),
        fixed("sliding_window", None),
    ),
    rope_types=("default",),
    drops=(Drop("mtp.*", "predicts further tokens: not part of the text model"),),
    prefixes=("model.", "backbone."),
    sizes={
        **sizes2(d_inner, heads, groups, state, conv),
        "latent": lambda config: integer(config, "moe_latent_size", "hidden_size"),
        "shared_ff": lambda config: integer(config, "moe_shared_expert_intermediate_size"),
    },
    variant=variant,
)


def latent(config: Config, block: int) -> bool:
    return blocks("E")(config, block) and "moe_latent_size" in config


# Experts, which may work on a projection of what comes in, and one that every token takes.
NEMOTRON_H_MOE = replace(
    NEMOTRON_H,
    name="nemotron_h_moe",
    rules=(
        *SHARED,
        *only(
            "E",
            Rule("layers.{i}.mixer.gate.weight", "blk.{i}.ffn_gate_inp.weight", "experts embd"),
            Rule("layers.{i}.mixer.gate.e_score_correction_bias", "blk.{i}.exp_probs_b.bias", "experts"),
            Rule("layers.{i}.mixer.gate.e_score_correction.bias", "blk.{i}.exp_probs_b.bias", "experts"),
            Rule("layers.{i}.mixer.experts.{e}.up_proj.weight", "blk.{i}.ffn_up_exps.weight", "expert_ff latent"),
            Rule("layers.{i}.mixer.experts.{e}.down_proj.weight", "blk.{i}.ffn_down_exps.weight", "latent expert_ff"),
            Rule("layers.{i}.mixer.shared_experts.up_proj.weight", "blk.{i}.ffn_up_shexp.weight", "shared_ff embd"),
            Rule("layers.{i}.mixer.shared_experts.down_proj.weight", "blk.{i}.ffn_down_shexp.weight", "embd shared_ff"),
        ),
        *(
            replace(rule, where=latent)
            for rule in (
                Rule("layers.{i}.mixer.fc1_latent_proj.weight", "blk.{i}.ffn_latent_down.weight", "latent embd"),
                Rule("layers.{i}.mixer.fc2_latent_proj.weight", "blk.{i}.ffn_latent_up.weight", "embd latent"),
            )
        ),
    ),
    kvs=(
        *general("E", lambda config: integer(config, "moe_intermediate_size")),
        KV("expert_count", count("n_routed_experts")),
        KV("expert_used_count", count("num_experts_per_tok")),
        KV("expert_group_count", count("n_group")),
        KV("expert_group_used_count", count_if_stated("topk_group")),
        *MIXERS,
        KV("expert_feed_forward_length", count("moe_intermediate_size")),
        KV("expert_shared_feed_forward_length", count("moe_shared_expert_intermediate_size")),
        KV("expert_shared_count", count("n_shared_experts")),
        KV("expert_weights_norm", lambda config: boolean(bool(config["norm_topk_prob"]))),
        KV("expert_weights_scale", lambda config: f32(number(config, "routed_scaling_factor"))),
        KV("moe_latent_size", count_if_stated("moe_latent_size")),
    ),
    defaults={
        **NEMOTRON_H.defaults,
        "n_group": 1,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
    },
)

FAMILY = (NEMOTRON_H,)
