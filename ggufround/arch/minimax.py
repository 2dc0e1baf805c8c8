"""MiniMax-M2: experts in every layer, chosen by a sigmoid with a bias that does not weigh.

Sources: `MiniMaxM2Model` in conversion/minimax.py for names, values and metadata; src/models/minimax-m2.cpp for what
llama.cpp reads.
"""

from __future__ import annotations

from dataclasses import replace

from ggufround.arch import rope
from ggufround.arch.checks import activation, fixed
from ggufround.arch.config import N_FF, head_dim, n_layer, optional_integer, optional_number, shown
from ggufround.arch.llama import ATTENTION, ENDS, EXPERTS, NORMS
from ggufround.arch.metadata import COMMON, constant, count, inserted
from ggufround.arch.spec import KV, Architecture, Config, Rule
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, u32

SIGMOID = 2  # llama.cpp's number for it


def rotated(config: Config) -> Field:
    """Columns of a head that are rotated: stated as such, or as a share."""
    share = optional_number(rope.parameters(config), "partial_rotary_factor")
    return u32(optional_integer(config, "rotary_dim") or int(head_dim(config) * (1.0 if share is None else share)))


def softmax_attention(config: Config) -> None:
    """The first MiniMax's other kind of attention (0) has other tensors and is another architecture."""
    stated = config.get("attn_type_list")
    if stated not in (None, [1] * n_layer(config)):
        raise UnsupportedError(f"config.json: attn_type_list is {shown(stated)}; llama.cpp runs this one with 1s")


MINIMAX_M2 = Architecture(
    name="minimax-m2",
    classes=("MiniMaxM2ForCausalLM",),
    rules=(
        *ENDS[:2],
        replace(ENDS[2], optional=False),
        *NORMS,
        *(replace(rule, bias=False) for rule in ATTENTION),
        Rule("layers.{i}.self_attn.q_norm.weight", "blk.{i}.attn_q_norm.weight", "q"),
        Rule("layers.{i}.self_attn.k_norm.weight", "blk.{i}.attn_k_norm.weight", "kv"),
        *EXPERTS,
        Rule("layers.{i}.block_sparse_moe.e_score_correction_bias", "blk.{i}.exp_probs_b.bias", "experts"),
    ),
    kvs=(
        # transformers has no other; the converter writes it where the config states it
        *inserted(COMMON, "attention.key_length", KV("expert_gating_func", constant(u32(SIGMOID)))),
        KV("expert_feed_forward_length", count(*N_FF)),
        KV("rope.dimension_count", rotated),
    ),
    tokenizers=("bpe",),
    defaults={
        "max_position_embeddings": 196608,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e6,
        "num_local_experts": 256,
        "num_experts_per_tok": 8,
    },
    checks=(
        activation("silu", "swish"),
        softmax_attention,
        fixed("scoring_func", None, "sigmoid"),
        fixed("use_qk_norm", None, True),
        fixed("use_routing_bias", None, True),
        fixed("qk_norm_type", None, "per_layer"),
        fixed("shared_intermediate_size", None, 0),
    ),
)

FAMILY = (MINIMAX_M2,)
