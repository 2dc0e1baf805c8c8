"""The table of mixes: llama.cpp's file types, each with its rules for single tensors, as rows.

A file type is a default type and a handful of exceptions: "the first eighth of ffn_down one step better", "attn_v
in Q6_K in every third layer". Here each exception is a `Rule`: a role, the type it gets, and the conditions under
which it does. For one tensor the first rule whose role and conditions hold wins; without any, it is the default.
Source: llama_tensor_get_type_impl and llama_ftype_get_default_type in llama.cpp's src/llama-quant.cpp; `mixes`
decides which tensors come here at all, and in which order (the conditions count tensors).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What a tensor does in the model, as far as the rules tell tensors apart; a pattern that its name contains."""

    OUTPUT = re.compile(r"^output\.weight$")
    EMBEDDING = re.compile(r"^(per_layer_)?token_embd\.weight$")
    # llama.cpp names QKV and KV_B apart, and has rules for QKV which are never reached: both follow those for V
    VALUE = re.compile(r"attn_(qkv|kv_b|v)\.weight")
    KEY = re.compile(r"attn_k\.weight")
    QUERY = re.compile(r"attn_q\.weight")
    ATTN_OUT = re.compile(r"attn_output\.weight")
    UP = re.compile(r"ffn_up")
    GATE = re.compile(r"ffn_gate")
    DOWN = re.compile(r"ffn_down")
    OTHER = re.compile("")


def role_of(name: str) -> Role:
    """The first role, in the order above, whose pattern is found in the GGUF name."""
    return next(role for role in Role if role.value.search(name))


@dataclass(frozen=True)
class ModelFacts:
    """What the rules ask about the model: GGUF metadata, of layer 0 where it differs by layer."""

    arch: str  # general.architecture
    n_layer: int  # {arch}.block_count, next-token-prediction blocks included
    n_head: int
    n_head_kv: int  # 0: no attention in layer 0
    n_expert: int = 0

    @property
    def gqa(self) -> int:
        """Query heads that share one key/value head (llama_hparams::n_gqa)."""
        return self.n_head // self.n_head_kv if self.n_head_kv else 0

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp's loader puts the model into its size class "70B"."""
        if self.arch == "llama":
            return self.n_layer == 80 and self.n_head != self.n_head_kv
        return (self.arch, self.n_layer) in {("qwen2", 80), ("deci", 80), ("olmo", 80), ("jais2", 68)}


@dataclass(frozen=True)
class Scene:
    """What a condition may look at. `i` of `n`: the tensor's place among those of its role, or its layer's number."""

    facts: ModelFacts
    role: Role
    stacked: bool  # three dimensions: one matrix an expert (or a head)
    has_imatrix: bool
    i: int
    n: int


When = Callable[[Scene], bool]


@dataclass(frozen=True)
class Rule:
    """`type` for tensors of `role` (None: any) for which all of `when` hold."""

    role: Role | None
    type: str
    when: tuple[When, ...] = ()

    def holds(self, scene: Scene) -> bool:
        return self.role in (None, scene.role) and all(condition(scene) for condition in self.when)


@dataclass(frozen=True)
class Mix:
    """A file type: the default type of its matrices, and the exceptions. Types are ggml's names in capitals."""

    name: str  # llama-quantize's name
    file_type: int  # general.file_type
    type: str
    aliases: tuple[str, ...] = ()
    output: str = "Q6_K"  # output.weight, or the embedding where that serves as output
    embedding: str | None = None  # token_embd.weight beside an output.weight; None: the default
    rules: tuple[Rule, ...] = ()
    by_count: bool = False  # ffn_down is counted as it comes, even in a mixture of experts
    lifts_70b: bool = True  # attn_v in Q3_K or Q4_K becomes Q5_K in a 70B model


# Conditions. Divisions are of integers, as in C.
def first(part: int) -> When:
    """Among the first n/part."""
    return lambda s: s.i < s.n // part


def below(count: int) -> When:
    """Among the first `count`."""
    return lambda s: s.i < count


def more_bits(s: Scene) -> bool:
    """The first and last eighth, and every third between (use_more_bits)."""
    return s.i < s.n // 8 or s.i >= 7 * s.n // 8 or (s.i - s.n // 8) % 3 == 2


def middle(s: Scene) -> bool:
    return s.n // 8 <= s.i < 7 * s.n // 8


def gqa4(s: Scene) -> bool:
    return s.facts.gqa >= 4


def gqa4_or_experts(s: Scene) -> bool:
    return s.facts.gqa >= 4 or s.facts.n_expert >= 4


def eight(s: Scene) -> bool:
    """Mixtral 8x7B and its like; the rules know no other mixture of experts."""
    return s.facts.n_expert == 8


def not_eight(s: Scene) -> bool:
    return s.facts.n_expert != 8


def falcon(s: Scene) -> bool:
    return s.facts.arch == "falcon"


def not_falcon(s: Scene) -> bool:
    return s.facts.arch != "falcon"


def imatrix(s: Scene) -> bool:
    return s.has_imatrix


def no_imatrix(s: Scene) -> bool:
    return not s.has_imatrix


def experts(s: Scene) -> bool:
    """Three dimensions mean experts, but for BailingMoE3, whose attention has them too."""
    return s.stacked and (s.facts.arch != "bailingmoe3" or s.role in (Role.UP, Role.GATE, Role.DOWN))


V, K, Q, OUT, UP, GATE, DOWN = (
    Role.VALUE, Role.KEY, Role.QUERY, Role.ATTN_OUT, Role.UP, Role.GATE, Role.DOWN,
)  # fmt: skip
_EIGHT = (Rule(V, "Q8_0", (eight,)), Rule(K, "Q8_0", (eight,)))
_EIGHT_OUT = (*_EIGHT, Rule(OUT, "Q5_K", (eight, not_falcon)))


def _low(v: str, out: tuple[Rule, ...] = ()) -> tuple[Rule, ...]:
    """The rules of IQ1 and IQ2: `v` for attn_v and for the first eighth of ffn_down."""
    return (
        Rule(V, "Q4_K", (gqa4_or_experts,)), Rule(V, v), Rule(K, "Q4_K", (eight,)), Rule(DOWN, v, (first(8),)),
        Rule(OUT, "Q5_K", (eight,)), *out,
    )  # fmt: skip


_IQ1 = _low("Q2_K", (Rule(OUT, "IQ2_XXS"),))
_IQ2_XS = _low("Q2_K")
_IQ2_M = _low("IQ3_S", (Rule(OUT, "IQ3_S"),))
_IQ3_XXS = (
    *_EIGHT_OUT,
    Rule(V, "Q4_K", (gqa4,)), Rule(V, "IQ3_S", (no_imatrix,)), Rule(K, "IQ2_S"), Rule(Q, "IQ2_S"),
    Rule(DOWN, "Q4_K", (no_imatrix, first(8))), Rule(DOWN, "Q3_K", (no_imatrix,)), Rule(OUT, "IQ3_S", (not_falcon,)),
)  # fmt: skip
_IQ3_XS = (
    *_EIGHT_OUT,
    Rule(V, "Q4_K", (gqa4,)), Rule(K, "IQ3_XXS"), Rule(Q, "IQ3_XXS"),
    Rule(GATE, "IQ3_XXS", (middle,)), Rule(UP, "IQ3_XXS", (middle,)),
)  # fmt: skip
_IQ3_S = (*_EIGHT_OUT, Rule(V, "Q4_K", (gqa4,)))
_IQ3_M = (
    *_EIGHT_OUT,
    Rule(V, "Q4_K"), Rule(DOWN, "Q4_K", (first(8),)), Rule(DOWN, "Q4_K", (eight, more_bits)),
    Rule(OUT, "Q4_K", (not_falcon,)),
)  # fmt: skip
_IQ4 = (*_EIGHT_OUT, Rule(V, "Q5_K", (gqa4,)), Rule(DOWN, "Q5_K", (no_imatrix, first(8))))
_Q2_K = (*_EIGHT_OUT, Rule(V, "Q4_K", (gqa4,)), Rule(V, "Q3_K"), Rule(DOWN, "Q3_K"), Rule(OUT, "Q3_K", (not_falcon,)))
_Q2_K_S = (*_EIGHT, Rule(V, "Q4_K", (gqa4,)), Rule(DOWN, "Q4_K", (first(8),)))
_Q3_K_M = (
    *_EIGHT_OUT,
    Rule(V, "Q5_K", (below(2),)), Rule(V, "Q4_K"),
    Rule(DOWN, "Q5_K", (first(16),)), Rule(DOWN, "Q4_K", (not_falcon,)), Rule(DOWN, "Q4_K", (more_bits,)),
    Rule(OUT, "Q4_K", (not_falcon,)),
)  # fmt: skip
_Q3_K_L = (
    *_EIGHT,
    Rule(V, "Q5_K"), Rule(DOWN, "Q4_K", (falcon,)), Rule(DOWN, "Q5_K"),
    Rule(OUT, "Q4_K", (falcon,)), Rule(OUT, "Q5_K", (not_eight,)),
)  # fmt: skip
_Q4_K_S = (
    *_EIGHT_OUT, Rule(V, "Q5_K", (below(4),)), Rule(DOWN, "Q5_K", (not_falcon, first(8))),
)  # fmt: skip
_Q4_K_M = (
    *_EIGHT_OUT,
    Rule(V, "Q6_K", (more_bits,)), Rule(DOWN, "Q6_K", (not_falcon, more_bits)),
    Rule(DOWN, "Q6_K", (falcon, first(16))), Rule(DOWN, "Q5_K", (falcon, more_bits)),
)  # fmt: skip
_Q5_K_M = (*_EIGHT, Rule(V, "Q6_K", (more_bits,)), Rule(DOWN, "Q6_K", (more_bits,)))


def _iq2(name: str, file_type: int, kind: str, embedding: str, rules: tuple[Rule, ...]) -> Mix:
    """A row of the family IQ1 and IQ2."""
    return Mix(name, file_type, kind, (), "Q5_K", embedding, rules, by_count=True, lifts_70b=False)


_ROWS = (
    Mix("F32", 0, "F32"),
    Mix("F16", 1, "F16"),
    Mix("BF16", 32, "BF16"),
    Mix("Q1_0", 40, "Q1_0", rules=_EIGHT),
    Mix("Q2_0", 41, "Q2_0", embedding="Q4_K", rules=_EIGHT),
    Mix("Q4_0", 2, "Q4_0", rules=(*_EIGHT, Rule(DOWN, "Q4_1", (imatrix, first(8))))),
    Mix("Q4_1", 3, "Q4_1", rules=_EIGHT),
    Mix("Q5_0", 8, "Q5_0", rules=(*_EIGHT, Rule(DOWN, "Q5_1", (imatrix, first(8))))),
    Mix("Q5_1", 9, "Q5_1", rules=_EIGHT),
    Mix("Q8_0", 7, "Q8_0", output="Q8_0", rules=_EIGHT),
    Mix("Q2_K", 10, "Q2_K", rules=_Q2_K),
    Mix("Q2_K_S", 21, "Q2_K", rules=_Q2_K_S),
    Mix("Q3_K_S", 11, "Q3_K", rules=_EIGHT_OUT),
    Mix("Q3_K_M", 12, "Q3_K", ("Q3_K",), rules=_Q3_K_M),
    Mix("Q3_K_L", 13, "Q3_K", rules=_Q3_K_L),
    Mix("Q4_K_S", 14, "Q4_K", rules=_Q4_K_S),
    Mix("Q4_K_M", 15, "Q4_K", ("Q4_K",), rules=_Q4_K_M),
    Mix("Q5_K_S", 16, "Q5_K", rules=_EIGHT),
    Mix("Q5_K_M", 17, "Q5_K", ("Q5_K",), rules=_Q5_K_M),
    Mix("Q6_K", 18, "Q6_K", rules=_EIGHT),
    _iq2("IQ1_S", 24, "IQ1_S", "Q2_K", _IQ1),
    _iq2("IQ1_M", 31, "IQ1_M", "Q2_K", _IQ1),
    _iq2("IQ2_XXS", 19, "IQ2_XXS", "Q2_K", _IQ2_XS),
    _iq2("IQ2_XS", 20, "IQ2_XS", "Q2_K", _IQ2_XS),
    _iq2("IQ2_S", 28, "IQ2_XS", "IQ3_S", _IQ2_M),
    _iq2("IQ2_M", 29, "IQ2_S", "IQ3_S", _IQ2_M),
    Mix("IQ3_XXS", 23, "IQ3_XXS", output="Q5_K", embedding="IQ3_S", rules=_IQ3_XXS),
    Mix("IQ3_XS", 22, "IQ3_S", rules=_IQ3_XS),
    Mix("IQ3_S", 26, "IQ3_S", rules=_IQ3_S),
    Mix("IQ3_M", 27, "IQ3_S", rules=_IQ3_M),
    Mix("IQ4_NL", 25, "IQ4_NL", rules=_IQ4),
    Mix("IQ4_XS", 30, "IQ4_XS", rules=_IQ4),
    Mix("TQ1_0", 36, "TQ1_0", embedding="Q4_K", rules=_EIGHT),
    Mix("TQ2_0", 37, "TQ2_0", embedding="Q4_K", rules=_EIGHT),
    Mix(
        "MXFP4_MOE", 38, "MXFP4", output="Q8_0", embedding="Q8_0",
        rules=(Rule(None, "MXFP4", (experts,)), Rule(None, "Q8_0")), lifts_70b=False,
    ),
    # Ours: llama-quantize has no file type for a dense model in MXFP4, and none at all for NVFP4.
    Mix("MXFP4", 38, "MXFP4", embedding="Q6_K", lifts_70b=False),
    Mix("NVFP4", 39, "NVFP4", embedding="Q6_K", lifts_70b=False),
)  # fmt: skip

MIXES: dict[str, Mix] = {row.name: row for row in _ROWS}

# What stands in for a type whose block does not divide the row (tensor_type_fallback); a type that is not here stays.
# llama.cpp stops at Q1_0 and NVFP4: for these two the choice is ours.
FALLBACKS: dict[str, str] = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q1_0", "Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0", "NVFP4"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
