"""Gemma 3n (text): four alternatives of the hidden state, a low-rank path beside attention, and an embedding a layer.

Much of it llama.cpp has built in as numbers. Norms are stored as they are.

Sources: `Gemma3NModel` in conversion/gemma.py for names, values and metadata; src/models/gemma3n.cpp for what is read.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from statistics import NormalDist

import numpy as np

from ggufround.arch.checks import activation, fixed, sliding_pattern
from ggufround.arch.config import N_FF, integer, n_layer, optional_integer, wrong
from ggufround.arch.gemma import GEMMA3, PLUS_ONE, VISION, window_if_any
from ggufround.arch.llama import ATTENTION, ENDS, FEED_FORWARD
from ggufround.arch.metadata import COMMON, count, real, replaced
from ggufround.arch.qwen import HEAD_NORMS
from ggufround.arch.spec import KV, Config, Drop, Rule
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, Kind, array, u32

SPARSE, OWN = 10, 20  # layers with sparse activations, and layers with keys and values of their own
SPARSITY = 0.95


def sparsity(config: Config) -> list[float]:
    """Of each layer: the share of gate activations that become zero."""
    sparse = SPARSE if n_layer(config) > SPARSE else 0
    stated = config.get("activation_sparsity_pattern")
    return stated if isinstance(stated, list) else [SPARSITY] * sparse + [0.0] * (n_layer(config) - sparse)


def built_in(config: Config) -> None:
    """What the file cannot change."""
    layers = n_layer(config)
    width(config)
    expected = {
        "activation_sparsity_pattern": ([SPARSITY if i < SPARSE else 0.0 for i in range(layers)], sparsity(config)),
        "num_kv_shared_layers": (max(0, layers - OWN), optional_integer(config, "num_kv_shared_layers")),
    }
    for key, (known, stated) in expected.items():
        if stated != known:
            raise UnsupportedError(
                f"config.json: {key} is {stated!r:.60} with {layers} layers; llama.cpp runs Gemma 3n with sparse "
                f"activations in the first {SPARSE} layers, and with keys and values of their own in the first {OWN}"
            )


def width(config: Config) -> int:
    """Of the feed-forward part: stated once, or alike for each layer."""
    stated = config.get(N_FF[0])
    if not isinstance(stated, list):
        return integer(config, *N_FF)
    if len(stated) != n_layer(config) or len({str(value) for value in stated}) != 1:
        raise wrong(N_FF[0], stated, "the same number for each layer")
    return integer({N_FF[0]: stated[0]}, N_FF[0])


def of_layers(config: Config) -> int:
    return n_layer(config) * integer(config, "hidden_size_per_layer_input")


def deviations(config: Config) -> Field:
    """How many standard deviations above the mean an activation must lie."""
    return array(Kind.F32, [float(np.float32(NormalDist().inv_cdf(s))) if s > 0 else -inf for s in sparsity(config)])


def windows(config: Config) -> Field:
    return array(Kind.BOOL, [(i + 1) % 5 != 0 for i in range(n_layer(config))])


def matrix(source: str, to: str, shape: str) -> Rule:
    return Rule(f"layers.{{i}}.{source}.weight", f"blk.{{i}}.{to}.weight", shape)


GEMMA3N = replace(
    GEMMA3,
    name="gemma3n",
    classes=("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
    rules=(
        replace(ENDS[0], pad=True),  # the last tokens stand for pictures and sound, and have no row of their own
        Rule("embed_tokens_per_layer.weight", "per_layer_token_embd.weight", "vocab per_layers", pad=True),
        Rule("per_layer_model_projection.weight", "per_layer_model_proj.weight", "per_layers embd"),
        Rule("per_layer_projection_norm.weight", "per_layer_proj_norm.weight", "per_layer"),
        *(
            Rule(tuple(f"{name}ections.{k}.weight" for k in range(3)), f"{to}.weight", "embd embd", makes="1 embd embd")
            for name, to in (("altup_proj", "altup_proj"), ("altup_unembed_proj", "altup_unembd_proj"))
        ),
        *(replace(rule, via=None) for rule in PLUS_ONE),
        *ATTENTION,
        *HEAD_NORMS,
        *FEED_FORWARD,
        matrix("per_layer_input_gate", "inp_gate", "per_layer embd"),
        matrix("per_layer_projection", "proj", "embd per_layer"),
        matrix("post_per_layer_input_norm", "post_norm", "embd"),
        matrix("laurel.linear_left", "laurel_l", "rank embd"),
        matrix("laurel.linear_right", "laurel_r", "embd rank"),
        matrix("laurel.post_laurel_norm", "laurel_post_norm", "embd"),
        Rule("layers.{i}.altup.correct_output_scale", "blk.{i}.altup_correct_scale.weight", "embd"),
        matrix("altup.correction_coefs", "altup_correct_coef", "4 4"),
        matrix("altup.prediction_coefs", "altup_predict_coef", "16 4"),
        matrix("altup.modality_router", "altup_router", "4 embd"),
        matrix("altup.router_norm", "altup_router_norm", "embd"),
    ),
    kvs=(
        *replaced(COMMON, KV("feed_forward_length", lambda config: array(Kind.I32, [width(config)] * n_layer(config)))),
        KV("final_logit_softcapping", real("final_logit_softcapping")),
        KV("attention.sliding_window", window_if_any),
        KV("altup.active_idx", lambda config: u32(0)),
        KV("altup.num_inputs", count("altup_num_inputs")),
        KV("embedding_length_per_layer_input", count("hidden_size_per_layer_input")),
        KV("attention.shared_kv_layers", lambda config: u32(optional_integer(config, "num_kv_shared_layers") or 0)),
        KV("activation_sparsity_scale", deviations),
        KV("attention.sliding_window_pattern", windows),
    ),
    defaults={
        "vocab_size": 262400,
        "hidden_size": 2048,
        "hidden_size_per_layer_input": 256,
        "intermediate_size": 16384,
        "num_hidden_layers": 35,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 512,
        "final_logit_softcapping": 30.0,
        "altup_active_idx": 0,
        "altup_num_inputs": 4,
        "altup_correct_scale": True,
        "num_kv_shared_layers": 15,
        "laurel_rank": 64,
    },
    checks=(
        activation("gelu_pytorch_tanh"),
        sliding_pattern(5),
        fixed("hidden_size_per_layer_input", 256),
        fixed("altup_num_inputs", 4),
        fixed("altup_active_idx", 0),
        fixed("altup_correct_scale", True),
        fixed("laurel_rank", 64),
        built_in,
    ),
    rope_types=("default",),
    drops=(*VISION, *(Drop(f"*{n}.*", "vision or sound: not part of the text model") for n in
                      ("audio_tower", "embed_vision", "embed_audio"))),
    sizes={
        "ff": width,
        "per_layer": lambda config: integer(config, "hidden_size_per_layer_input"),
        "per_layers": of_layers,
        "rank": lambda config: integer(config, "laurel_rank"),
    },
    untunable="its blocks share more than a hidden state",
)  # fmt: skip

FAMILY = (GEMMA3N,)
