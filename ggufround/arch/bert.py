"""Encoders that make vectors of texts: BERT, RoBERTa, XLM-RoBERTa, DistilBERT, Nomic, ModernBERT, Jina 2.

They attend in both directions and norm after each sum; what only predicts masked words is left out. Sources:
conversion/bert.py for names, values and metadata; src/models/*bert*.cpp for what llama.cpp reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ggufround.arch.checks import activation, fixed
from ggufround.arch.config import N_CONTEXT, integer, n_expert, optional_integer, shown, wrong
from ggufround.arch.metadata import COMMON, POOLED, constant, count, replaced, without
from ggufround.arch.spec import KV, Architecture, Config, Drop, Rule, Transform
from ggufround.arch.transforms import transpose
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, Kind, array, boolean, f32, string, u32

ENCODER = "it makes vectors of texts and predicts no next token"
MASKED = tuple(
    Drop(f"{prefix}{name}", "predicts masked words or the next sentence: not needed for vectors")
    for prefix in ("", "*.")
    for name in ("cls.predictions.*", "cls.seq_relationship.*", "lm_head.*", "vocab_*", "head.*", "decoder.*")
)
POOLER = Drop("*pooler.dense.*", "llama.cpp takes the vectors before the pooler")
POSITIONS = Drop("*embeddings.position_ids", "positions: counted by llama.cpp")


def normed(source: str, to: str, old: bool = True) -> tuple[Rule, ...]:
    """A norm with its bias; `old`: by the names that TensorFlow's checkpoints had."""
    rules = (Rule(f"{source}.weight", f"{to}.weight", "embd"), Rule(f"{source}.bias", f"{to}.bias", "embd"))
    if not old:
        return rules
    return (
        *rules,
        Rule(f"{source}.gamma", f"{to}.weight", "embd", optional=True),
        Rule(f"{source}.beta", f"{to}.bias", "embd", optional=True),
    )


def biased(*names: tuple[str, str, str]) -> tuple[Rule, ...]:
    """(source, destination, shape) of matrices in a block, each with an optional bias."""
    return tuple(Rule(f"{s}.weight", f"blk.{{i}}.{to}.weight", shape, bias=True) for s, to, shape in names)


def labels(config: Config) -> Field | None:
    """The names of a classifier's outputs, in the order of their numbers; two unnamed ones are what transformers makes
    up for a model without."""
    named = config.get("id2label")
    if named is None:
        return None
    if not isinstance(named, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in named.items()):
        raise wrong("id2label", named, "an object of names")
    if len(named) == 2 and named.get("0") == "LABEL_0":
        return None
    return array(Kind.STRING, [named[key] for key in sorted(named, key=lambda k: (len(k), k))])


def positions(config: Config) -> int:
    """Positions that texts use: RoBERTa's begin behind the padding token's number."""
    pad = optional_integer(config, "pad_token_id")
    return integer(config, "max_position_embeddings") - (0 if pad is None else pad + 1)


def used_positions(config: Config) -> Transform:
    skipped = integer(config, "max_position_embeddings") - positions(config)
    return Transform(lambda rows: rows[skipped:], back=lambda rows: np.pad(rows, ((skipped, 0), (0, 0))))


def all_labels(config: Config) -> Field:
    """As `labels`, made-up ones too: llama.cpp sizes a classifier by them."""
    return labels(config) or array(Kind.STRING, ["LABEL_0", "LABEL_1"])


def n_labels(config: Config) -> int:
    return len(all_labels(config).value)


def absolute(config: Config) -> None:
    kind = config.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise UnsupportedError(
            f"config.json: position_embedding_type is {shown(kind)}; llama.cpp runs this architecture with absolute"
        )


CAUSAL = KV("attention.causal", constant(boolean(False)))
LABELS = KV("classifier.output_labels", labels)
EMBEDDINGS = (
    Rule("embeddings.word_embeddings.weight", "token_embd.weight", "vocab embd"),
    Rule("embeddings.token_type_embeddings.weight", "token_types.weight", "types embd", optional=True),
)

BERT = Architecture(
    name="bert",
    classes=("BertModel", "BertForMaskedLM"),
    rules=(
        *EMBEDDINGS,
        Rule("embeddings.position_embeddings.weight", "position_embd.weight", "context embd"),
        *normed("embeddings.LayerNorm", "token_embd_norm"),
        *biased(
            ("encoder.layer.{i}.attention.self.query", "attn_q", "embd embd"),
            ("encoder.layer.{i}.attention.self.key", "attn_k", "embd embd"),
            ("encoder.layer.{i}.attention.self.value", "attn_v", "embd embd"),
            ("encoder.layer.{i}.attention.output.dense", "attn_output", "embd embd"),
            ("encoder.layer.{i}.intermediate.dense", "ffn_up", "ff embd"),
            ("encoder.layer.{i}.output.dense", "ffn_down", "embd ff"),
        ),
        *normed("encoder.layer.{i}.attention.output.LayerNorm", "blk.{i}.attn_output_norm"),
        *normed("encoder.layer.{i}.output.LayerNorm", "blk.{i}.layer_output_norm"),
    ),
    kvs=(*COMMON, CAUSAL, *POOLED, LABELS),
    tokenizers=("wpm",),
    defaults={
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    },
    checks=(activation("gelu"), absolute, fixed("is_decoder", None, False)),
    drops=(*MASKED, POOLER, POSITIONS),
    prefixes=("bert.", "model."),
    sizes={
        "context": lambda config: integer(config, *N_CONTEXT),
        "types": lambda config: integer(config, "type_vocab_size"),
        "positions": positions,
        "labels": n_labels,
    },
    untunable=ENCODER,
)

CONTEXT = KV("context_length", lambda config: u32(positions(config)))
LABELLED = replaced(BERT.kvs, KV("classifier.output_labels", all_labels))
# With a classifier behind the pooler, as llama.cpp runs one: a matrix and tanh, then a matrix. (The converter leaves
# the pooler out, so that llama.cpp would classify what comes before it.)
BERT_CLASSIFIER = replace(
    BERT,
    classes=("BertForSequenceClassification",),
    rules=(
        *BERT.rules,
        Rule("pooler.dense.weight", "cls.weight", "embd embd", bias=True),
        Rule("classifier.weight", "cls.output.weight", "labels embd", bias=True),
    ),
    kvs=LABELLED,
    drops=(*MASKED, POSITIONS),
)

# The same but for positions, which begin behind the padding token's, and a byte-level BPE.
ROBERTA = replace(
    BERT,
    classes=("RobertaModel",),
    rules=(
        *(r for r in BERT.rules if r.to != "position_embd.weight"),
        Rule(
            "embeddings.position_embeddings.weight",
            "position_embd.weight",
            "context embd",
            via=used_positions,
            makes="positions embd",
        ),
    ),
    kvs=replaced(BERT.kvs, CONTEXT),
    tokenizers=("roberta",),
    defaults={**BERT.defaults, "vocab_size": 50265, "pad_token_id": 1},
    prefixes=("roberta.", "model."),
)

# With a classifier of two layers, tanh between them.
HEAD = (
    Rule("classifier.dense.weight", "cls.weight", "embd embd", bias=True),
    Rule("classifier.out_proj.weight", "cls.output.weight", "labels embd", bias=True),
)
ROBERTA_CLASSIFIER = replace(
    ROBERTA,
    classes=("RobertaForSequenceClassification",),
    rules=(*ROBERTA.rules, *HEAD),
    kvs=replaced(LABELLED, CONTEXT),
)

# The same with a unigram vocabulary.
XLM_ROBERTA = replace(
    ROBERTA,
    classes=("XLMRobertaModel",),
    tokenizers=("xlmr",),
    defaults={**ROBERTA.defaults, "vocab_size": 30522},
    checks=(*ROBERTA.checks, fixed("lora_adaptations", None)),
)
XLM_ROBERTA_CLASSIFIER = replace(
    XLM_ROBERTA,
    classes=("XLMRobertaForSequenceClassification",),
    rules=ROBERTA_CLASSIFIER.rules,
    kvs=ROBERTA_CLASSIFIER.kvs,
)

# RoBERTa with a unigram vocabulary of its own. (The converter takes it for BERT, positions from 0 and WordPiece.)
CAMEMBERT = replace(XLM_ROBERTA, classes=("CamembertModel",), tokenizers=("unigram",))

# Other names, no token types, an epsilon that no config states.
DISTILBERT = replace(
    BERT,
    classes=("DistilBertModel", "DistilBertForMaskedLM", "DistilBertForSequenceClassification"),
    rules=(
        EMBEDDINGS[0],
        Rule("embeddings.position_embeddings.weight", "position_embd.weight", "context embd"),
        *normed("embeddings.LayerNorm", "token_embd_norm"),
        *biased(
            ("transformer.layer.{i}.attention.q_lin", "attn_q", "embd embd"),
            ("transformer.layer.{i}.attention.k_lin", "attn_k", "embd embd"),
            ("transformer.layer.{i}.attention.v_lin", "attn_v", "embd embd"),
            ("transformer.layer.{i}.attention.out_lin", "attn_output", "embd embd"),
            ("transformer.layer.{i}.ffn.lin1", "ffn_up", "ff embd"),
            ("transformer.layer.{i}.ffn.lin2", "ffn_down", "embd ff"),
        ),
        *normed("transformer.layer.{i}.sa_layer_norm", "blk.{i}.attn_output_norm", old=False),
        *normed("transformer.layer.{i}.output_layer_norm", "blk.{i}.layer_output_norm", old=False),
    ),
    kvs=(
        KV("attention.layer_norm_epsilon", constant(f32(1e-12))),
        *without(COMMON, "attention.layer_norm_epsilon"),
        CAUSAL,
        *POOLED,
        LABELS,
    ),
    defaults={
        "vocab_size": 30522,
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
        "max_position_embeddings": 512,
        "activation": "gelu",
    },
    checks=(fixed("activation", "gelu"), fixed("sinusoidal_pos_embds", None, False)),
    drops=(
        *MASKED,
        *(Drop(f"{n}.*", "its classifier has relu, llama.cpp's tanh") for n in ("pre_classifier", "classifier")),
    ),
    prefixes=("distilbert.",),
)


def trained_positions(config: Config) -> Field:
    """What Nomic's models were trained for, which their configs exceed by a rotation that llama.cpp does without."""
    stated = integer(config, "n_positions")
    trained = {8192: 2048, 2048: 512}.get(stated)
    if trained is None or config.get("max_trained_positions", 2048) != 2048:
        raise UnsupportedError(
            f"config.json: n_positions is {stated} with {config.get('max_trained_positions')} trained ones; known are "
            "8192 and 2048 with 2048, of Nomic's embedding models"
        )
    return u32(trained)


def has_experts(config: Config, layer: int) -> bool:
    return layer % (optional_integer(config, "moe_every_n_layers") or 1) == 1


def dense_layer(config: Config, layer: int) -> bool:
    return not has_experts(config, layer)


def expert_rows(config: Config) -> int:
    return n_expert(config) * integer(config, "n_inner")


def each_expert(config: Config) -> Iterable[tuple[int, int]]:
    rows = integer(config, "n_inner")
    return ((expert * rows, rows) for expert in range(n_expert(config)))


NOMIC_CHECKS = tuple(
    fixed(key, *allowed)
    for key, *allowed in (
        ("causal", None, False),
        ("prenorm", None, False),
        ("rotary_emb_fraction", 1, 1.0),
        ("rotary_emb_interleaved", None, False),
        ("rotary_emb_scale_base", None),
    )
)
# Rotation instead of positions, q, k and v in one matrix, a gated feed-forward part without biases.
NOMIC = replace(
    BERT,
    name="nomic-bert",
    classes=("NomicBertModel",),
    rules=(
        *EMBEDDINGS,
        *normed("emb_ln", "token_embd_norm", old=False),
        *biased(
            ("encoder.layers.{i}.attn.Wqkv", "attn_qkv", "qkv embd"),
            ("encoder.layers.{i}.attn.out_proj", "attn_output", "embd embd"),
            ("encoder.layers.{i}.mlp.fc11", "ffn_up", "ff embd"),
            ("encoder.layers.{i}.mlp.fc12", "ffn_gate", "ff embd"),
            ("encoder.layers.{i}.mlp.fc2", "ffn_down", "embd ff"),
        ),
        *normed("encoder.layers.{i}.norm1", "blk.{i}.attn_output_norm", old=False),
        *normed("encoder.layers.{i}.norm2", "blk.{i}.layer_output_norm", old=False),
    ),
    kvs=replaced(BERT.kvs, KV("context_length", trained_positions)),
    defaults={"rotary_emb_base": 10000.0},
    checks=(
        *NOMIC_CHECKS,
        fixed("activation_function", "swiglu"),
        *(fixed(key, None, False) for key in ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias")),
    ),
)
# Experts in every other layer, a plain feed-forward part in the others, biases, a unigram vocabulary.
NOMIC_EXPERTS = replace(
    NOMIC,
    name="nomic-bert-moe",
    classes=("NomicBertMoeModel",),  # the name to ask for it by; checkpoints say NomicBertModel
    rules=(
        *(rule for rule in NOMIC.rules if ".mlp." not in rule.source),
        *(
            replace(rule, where=dense_layer)
            for rule in biased(
                ("encoder.layers.{i}.mlp.fc1", "ffn_up", "ff embd"),
                ("encoder.layers.{i}.mlp.fc2", "ffn_down", "embd ff"),
            )
        ),
        Rule(
            "encoder.layers.{i}.mlp.router.layer.weight",
            "blk.{i}.ffn_gate_inp.weight",
            "experts embd",
            where=has_experts,
        ),
        Rule(
            "encoder.layers.{i}.mlp.experts.mlp.w1",
            "blk.{i}.ffn_up_exps.weight",
            "expert_rows embd",
            makes="experts ff embd",
            where=has_experts,
        ),
        Rule(
            "encoder.layers.{i}.mlp.experts.mlp.w2",
            "blk.{i}.ffn_down_exps.weight",
            "expert_rows embd",
            via=transpose,
            runs=each_expert,
            makes="experts embd ff",
            where=has_experts,
        ),
    ),
    kvs=(
        *without(NOMIC.kvs, "expert_used_count"),
        KV("moe_every_n_layers", count("moe_every_n_layers")),
        KV("expert_used_count", count("moe_top_k")),
    ),
    tokenizers=("xlmr", "wpm"),
    checks=(*NOMIC_CHECKS, fixed("activation_function", "gelu")),
    drops=(
        *NOMIC.drops,
        Drop("*.mlp.experts.bias", "a bias of the experts together, which llama.cpp has no place for"),
    ),
    sizes={**NOMIC.sizes, "expert_rows": expert_rows},
)


def nomic(config: Config) -> Architecture:
    """The one without experts, or the one with them, which goes by the same class name."""
    return NOMIC_EXPERTS if config.get("moe_every_n_layers") else NOMIC_DENSE


NOMIC_DENSE, NOMIC = NOMIC, replace(NOMIC, variant=nomic)

# ModernBERT norms before each part instead, without biases; attention has a window in two layers of three.
MODERN = Architecture(
    name="modern-bert",
    classes=("ModernBertModel", "ModernBertForMaskedLM"),
    rules=(
        Rule("embeddings.tok_embeddings.weight", "token_embd.weight", "vocab embd"),
        Rule("embeddings.norm.weight", "token_embd_norm.weight", "embd"),
        Rule("layers.{i}.attn_norm.weight", "blk.{i}.attn_norm.weight", "embd", where=lambda config, i: i > 0),
        Rule("layers.{i}.attn.Wqkv.weight", "blk.{i}.attn_qkv.weight", "qkv embd"),
        Rule("layers.{i}.attn.Wo.weight", "blk.{i}.attn_output.weight", "embd embd"),
        Rule("layers.{i}.mlp_norm.weight", "blk.{i}.ffn_norm.weight", "embd"),
        Rule("layers.{i}.mlp.Wi.weight", "blk.{i}.ffn_up.weight", "2ff embd"),
        Rule("layers.{i}.mlp.Wo.weight", "blk.{i}.ffn_down.weight", "embd ff"),
        Rule("final_norm.weight", "output_norm.weight", "embd"),
    ),
    kvs=(
        *without(BERT.kvs, "rope.scaling.type"),
        KV("attention.sliding_window", count("local_attention")),
        KV("attention.sliding_window_pattern", count("global_attn_every_n_layers")),
        KV("rope.scaling.type", constant(string("none"))),
        KV("vocab_size", count("vocab_size")),
        KV("hidden_activation", lambda config: string(config["hidden_activation"])),
    ),
    tokenizers=("bpe_cls",),
    defaults={
        "vocab_size": 50368,
        "hidden_size": 768,
        "intermediate_size": 1152,
        "num_hidden_layers": 22,
        "num_attention_heads": 12,
        "max_position_embeddings": 8192,
        "hidden_activation": "gelu",
        "norm_eps": 1e-5,
        "layer_norm_eps": lambda config: config.get("norm_eps"),
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "global_attn_every_n_layers": 3,
        "local_attention": 128,
        "classifier_pooling": "cls",
    },
    checks=(
        activation("gelu", "silu"),
        *(fixed(key, None, False) for key in ("norm_bias", "attention_bias", "mlp_bias")),
    ),
    rope_types=("default",),
    drops=MASKED,
    sizes={"labels": n_labels},
    untunable=ENCODER,
)
# With a classifier behind the pooling: a matrix, GELU and a norm, then a matrix.
MODERN_CLASSIFIER = replace(
    MODERN,
    classes=("ModernBertForSequenceClassification",),
    rules=(
        *MODERN.rules,
        Rule("head.dense.weight", "cls.weight", "embd embd"),
        Rule("head.norm.weight", "cls.norm.weight", "embd"),
        Rule("classifier.weight", "cls.output.weight", "labels embd", bias=True),
    ),
    kvs=replaced(MODERN.kvs, KV("classifier.output_labels", all_labels)),
    checks=(*MODERN.checks, fixed("classifier_activation", None, "gelu"), fixed("classifier_bias", None, False)),
    drops=(),
)

# Jina's second: a bias by distance in place of positions, a gated feed-forward part, gate and up in one matrix.
JINA2 = replace(
    BERT,
    name="jina-bert-v2",
    classes=("JinaBertModel", "JinaBertForMaskedLM"),
    rules=(
        *(
            rule
            for rule in BERT.rules
            if rule.to != "position_embd.weight" and not rule.to.startswith(("blk.{i}.ffn", "blk.{i}.layer"))
        ),
        Rule("encoder.layer.{i}.mlp.gated_layers.weight", "blk.{i}.ffn_up.weight", "2ff embd"),
        *biased(("encoder.layer.{i}.mlp.wo", "ffn_down", "embd ff")),
        *normed("encoder.layer.{i}.mlp.layernorm", "blk.{i}.layer_output_norm", old=False),
    ),
    checks=(
        activation("gelu"),
        fixed("position_embedding_type", "alibi"),
        fixed("feed_forward_type", "geglu"),
    ),
    tokenizers=("wpm", "roberta"),
)

FAMILY = (
    BERT,
    BERT_CLASSIFIER,
    ROBERTA,
    ROBERTA_CLASSIFIER,
    XLM_ROBERTA,
    XLM_ROBERTA_CLASSIFIER,
    CAMEMBERT,
    DISTILBERT,
    NOMIC,
    NOMIC_EXPERTS,
    JINA2,
    MODERN,
    MODERN_CLASSIFIER,
)
