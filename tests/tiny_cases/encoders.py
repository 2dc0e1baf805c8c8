"""Tiny models that make vectors of texts: BERT and its kin."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from tiny_cases.first import GEMMA3, gemma_like
from tiny_parts import EMBD, FF, HEADS, LAYERS, VOCAB, Tiny, config, llama_like

CONTEXT = 96
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def encoder(class_name: str, model_type: str, **further: Any) -> dict[str, Any]:
    """What every encoder's config says; None leaves a key out."""
    common: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": VOCAB,
        "hidden_size": EMBD,
        "intermediate_size": FF,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "hidden_act": "gelu",
        "max_position_embeddings": CONTEXT,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }
    return {key: value for key, value in (common | further).items() if value is not None}


def pooled(mode: str, *dense: tuple[int, int]) -> dict[str, str]:
    """sentence-transformers' files for a pooling, the mode as old ones state it but for the last token's, and for
    dense layers of these numbers of inputs and outputs."""
    listed = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    old = {f"pooling_mode_{key}": key.startswith(mode) for key in ("cls_token", "mean_tokens", "max_tokens")}
    config = {"word_embedding_dimension": EMBD} | ({"pooling_mode": mode} if mode == "lasttoken" else old)
    files = {"1_Pooling/config.json": json.dumps(config)}
    for number, (inputs, outputs) in enumerate(dense, 2):
        listed.append({"path": f"{number}_Dense", "type": "sentence_transformers.models.Dense"})
        files[f"{number}_Dense/config.json"] = json.dumps(
            {"in_features": inputs, "out_features": outputs, "bias": False,
             "activation_function": "torch.nn.modules.linear.Identity"}
        )  # fmt: skip
    return {"modules.json": json.dumps(listed), **files}


def linear(name: str, rows: int, columns: int, bias: bool = True) -> Shapes:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def norm(name: str, kinds: tuple[str, str] = ("weight", "bias")) -> Shapes:
    for kind in kinds:
        yield f"{name}.{kind}", (EMBD,)


def bert_like(
    prefix: str = "", kinds: tuple[str, str] = ("weight", "bias"), types: int = 2, pooler: bool = True
) -> dict[str, tuple[int, ...]]:
    shapes = {
        f"{prefix}embeddings.word_embeddings.weight": (VOCAB, EMBD),
        f"{prefix}embeddings.position_embeddings.weight": (CONTEXT, EMBD),
        f"{prefix}embeddings.token_type_embeddings.weight": (types, EMBD),
    } | dict(norm(f"{prefix}embeddings.LayerNorm", kinds))
    for i in range(LAYERS):
        block = f"{prefix}encoder.layer.{i}."
        for name in ("query", "key", "value"):
            shapes |= dict(linear(f"{block}attention.self.{name}", EMBD, EMBD))
        shapes |= dict(linear(f"{block}attention.output.dense", EMBD, EMBD))
        shapes |= dict(norm(f"{block}attention.output.LayerNorm", kinds))
        shapes |= dict(linear(f"{block}intermediate.dense", FF, EMBD))
        shapes |= dict(linear(f"{block}output.dense", EMBD, FF))
        shapes |= dict(norm(f"{block}output.LayerNorm", kinds))
    return shapes | (dict(linear(f"{prefix}pooler.dense", EMBD, EMBD)) if pooler else {})


def distilbert_like() -> dict[str, tuple[int, ...]]:
    shapes = {
        "distilbert.embeddings.word_embeddings.weight": (VOCAB, EMBD),
        "distilbert.embeddings.position_embeddings.weight": (CONTEXT, EMBD),
    } | dict(norm("distilbert.embeddings.LayerNorm"))
    for i in range(LAYERS):
        block = f"distilbert.transformer.layer.{i}."
        for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
            shapes |= dict(linear(f"{block}attention.{name}", EMBD, EMBD))
        shapes |= dict(norm(f"{block}sa_layer_norm"))
        shapes |= dict(linear(f"{block}ffn.lin1", FF, EMBD)) | dict(linear(f"{block}ffn.lin2", EMBD, FF))
        shapes |= dict(norm(f"{block}output_layer_norm"))
    return shapes


def nomic_like() -> dict[str, tuple[int, ...]]:
    shapes = {
        "embeddings.word_embeddings.weight": (VOCAB, EMBD),
        "embeddings.token_type_embeddings.weight": (2, EMBD),
    } | dict(norm("emb_ln"))
    for i in range(LAYERS):
        block = f"encoder.layers.{i}."
        shapes |= dict(linear(f"{block}attn.Wqkv", 3 * EMBD, EMBD, False))
        shapes |= dict(linear(f"{block}attn.out_proj", EMBD, EMBD, False))
        shapes |= dict(linear(f"{block}mlp.fc11", FF, EMBD, False)) | dict(linear(f"{block}mlp.fc12", FF, EMBD, False))
        shapes |= dict(linear(f"{block}mlp.fc2", EMBD, FF, False))
        shapes |= dict(norm(f"{block}norm1")) | dict(norm(f"{block}norm2"))
    return shapes


def jina_like() -> dict[str, tuple[int, ...]]:
    """BERT's tensors, but positions, and a gated feed-forward part without a bias on its first matrix."""
    left_out = ("position_embeddings", "intermediate", "pooler")
    shapes = {name: shape for name, shape in bert_like().items() if not any(part in name for part in left_out)}
    for i in range(LAYERS):
        block = f"encoder.layer.{i}."
        for kind in ("output.dense.weight", "output.dense.bias", "output.LayerNorm.weight", "output.LayerNorm.bias"):
            del shapes[f"{block}{kind}"]
        shapes |= dict(linear(f"{block}mlp.gated_layers", 2 * FF, EMBD, False)) | dict(
            linear(f"{block}mlp.wo", EMBD, FF)
        )
        shapes |= dict(norm(f"{block}mlp.layernorm"))
    return shapes


def jina_values(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """A norm of another name than most, near 1."""
    drawn = np.random.default_rng(len(name)).standard_normal(shape)
    return 1 + drawn / 3 if name.endswith("mlp.layernorm.weight") else None


def nomic_experts() -> dict[str, tuple[int, ...]]:
    """Experts in every second layer."""
    shapes = {name: shape for name, shape in nomic_like().items() if ".mlp." not in name}
    for i in range(LAYERS):
        block = f"encoder.layers.{i}."
        shapes |= {f"{block}attn.Wqkv.bias": (3 * EMBD,), f"{block}attn.out_proj.bias": (EMBD,)}
        if i % 2 == 0:
            shapes |= dict(linear(f"{block}mlp.fc1", FF, EMBD)) | dict(linear(f"{block}mlp.fc2", EMBD, FF))
            continue
        shapes |= dict(linear(f"{block}mlp.router.layer", 4, EMBD, False))
        shapes |= {f"{block}mlp.experts.mlp.{w}": (4 * FF, EMBD) for w in ("w1", "w2")}
        shapes[f"{block}mlp.experts.bias"] = (EMBD,)
    return shapes


def modern_like(layers: int, prefix: str = "") -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}embeddings.tok_embeddings.weight": (VOCAB, EMBD),
        f"{prefix}embeddings.norm.weight": (EMBD,),
        f"{prefix}final_norm.weight": (EMBD,),
    }
    for i in range(layers):
        block = f"{prefix}layers.{i}."
        if i:
            shapes[f"{block}attn_norm.weight"] = (EMBD,)
        shapes |= dict(linear(f"{block}attn.Wqkv", 3 * EMBD, EMBD, False))
        shapes |= dict(linear(f"{block}attn.Wo", EMBD, EMBD, False))
        shapes[f"{block}mlp_norm.weight"] = (EMBD,)
        shapes |= dict(linear(f"{block}mlp.Wi", 2 * FF, EMBD, False)) | dict(linear(f"{block}mlp.Wo", EMBD, FF, False))
    return shapes


def nomic_values(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Norms of other names than most, near 1; queries and keys so large that a wrong rotation shows."""
    values = np.random.default_rng(len(name)).standard_normal(shape)
    if name.endswith(("norm1.weight", "norm2.weight", "emb_ln.weight")):
        return 1 + values / 3
    return values * 2 / shape[-1] ** 0.5 if "Wqkv" in name else None


BERT_HEAD = {
    "cls.predictions.bias": (VOCAB,),
    "cls.predictions.transform.dense.weight": (EMBD, EMBD),
    "cls.seq_relationship.weight": (2, EMBD),
}
ROBERTA = {"max_position_embeddings": CONTEXT, "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
           "bos_token_id": 0, "eos_token_id": 2}  # fmt: skip
NOMIC = {
    "hidden_size": None, "intermediate_size": None, "num_hidden_layers": None, "num_attention_heads": None,
    "hidden_act": None, "max_position_embeddings": None, "layer_norm_eps": None, "n_embd": EMBD, "n_inner": FF,
    "n_layer": LAYERS, "n_head": HEADS, "n_positions": 8192, "activation_function": "swiglu", "causal": False,
    "layer_norm_epsilon": 1e-12, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "prenorm": False,
    "qkv_proj_bias": False, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False,
    "max_trained_positions": 2048,
}  # fmt: skip

NOMIC_PEER = {
    "hidden_size": EMBD, "intermediate_size": FF, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "hidden_act": "silu", "max_position_embeddings": 2048, "layer_norm_eps": 1e-12,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000},
}  # fmt: skip

MODERN = {
    "hidden_act": None, "hidden_activation": "gelu", "num_hidden_layers": 5, "layer_norm_eps": 1e-5, "norm_eps": 1e-5,
    "global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "global_attn_every_n_layers": 3, "local_attention": 8,
    "norm_bias": False, "attention_bias": False, "mlp_bias": False, "type_vocab_size": None,
    "position_embedding_type": "absolute", "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODERN_HEAD = {"head.dense.weight": (EMBD, EMBD), "head.norm.weight": (EMBD,)}

CASES = (
    Tiny("bert", encoder("BertModel", "bert"), bert_like(), "wpm", files=pooled("mean"), proof="embedding",
         mistakes=("norm",)),
    Tiny("bert-masked", encoder("BertForMaskedLM", "bert", num_hidden_layers=LAYERS),
         bert_like("bert.", ("gamma", "beta"), pooler=False) | BERT_HEAD, "wpm", files=pooled("cls"),
         proof="embedding", mistakes=("norm",), loads=False),
    Tiny("bert-classifier", encoder("BertForSequenceClassification", "bert", id2label={"0": "LABEL_0"}),
         bert_like("bert.") | dict(linear("classifier", 1, EMBD)), "wpm", proof="scores",
         mistakes=("norm",)),
    Tiny("roberta", encoder("RobertaModel", "roberta", **ROBERTA), bert_like(types=1), "roberta", files=pooled("cls"),
         proof="embedding", mistakes=("norm",)),
    Tiny("roberta-classifier",
         encoder("RobertaForSequenceClassification", "roberta", id2label={"0": "no", "1": "maybe", "2": "yes"},
                 **ROBERTA),
         bert_like("roberta.", types=1, pooler=False) | dict(linear("classifier.dense", EMBD, EMBD))
         | dict(linear("classifier.out_proj", 3, EMBD)), "roberta", proof="scores", mistakes=("norm",)),
    Tiny("xlm-roberta", encoder("XLMRobertaModel", "xlm-roberta", **ROBERTA), bert_like("roberta.", types=1), "xlmr",
         files=pooled("mean"), proof="embedding", mistakes=("norm",)),
    Tiny("xlm-roberta-classifier",
         encoder("XLMRobertaForSequenceClassification", "xlm-roberta", id2label={"0": "LABEL_0"}, **ROBERTA),
         bert_like("roberta.", types=1, pooler=False) | dict(linear("classifier.dense", EMBD, EMBD))
         | dict(linear("classifier.out_proj", 1, EMBD)), "xlmr", proof="scores", mistakes=("norm",)),
    Tiny("camembert", encoder("CamembertModel", "camembert", **ROBERTA), bert_like(types=1), "unigram",
         files=pooled("mean"), proof="embedding", mistakes=("norm",)),
    Tiny("distilbert",
         encoder("DistilBertModel", "distilbert", hidden_size=None, intermediate_size=None, num_hidden_layers=None,
                 num_attention_heads=None, hidden_act=None, type_vocab_size=None, layer_norm_eps=None, dim=EMBD,
                 hidden_dim=FF, n_layers=LAYERS, n_heads=HEADS, activation="gelu"),
         distilbert_like(), "wpm", files=pooled("mean"), proof="embedding", mistakes=("norm",)),
    Tiny("nomic-bert", encoder("NomicBertModel", "nomic_bert", **NOMIC) | {"rotary_emb_scale_base": None},
         nomic_like(), "wpm", files=pooled("mean"),
         proof="embedding", special=nomic_values, peer=NOMIC_PEER),
    Tiny("jina-bert-v2",
         encoder("JinaBertForMaskedLM", "bert", position_embedding_type="alibi", feed_forward_type="geglu"),
         jina_like() | {"cls.predictions.bias": (VOCAB,)}, "wpm", files=pooled("mean"), special=jina_values,
         proof="embedding", mistakes=("gate", "norm"), loads=False),
    # transformers has no class for these experts
    Tiny("nomic-bert-moe",
         encoder("NomicBertModel", "nomic_bert", **NOMIC | {
             "activation_function": "gelu", "n_positions": 2048, "qkv_proj_bias": True, "mlp_fc1_bias": True,
             "mlp_fc2_bias": True, "moe_every_n_layers": 2, "moe_top_k": 2, "num_experts": 4, "rotary_emb_base": 10000,
             "layer_norm_epsilon": 1e-5}) | {"rotary_emb_scale_base": None},
         nomic_experts(), "unigram", files=pooled("mean"), special=nomic_values, proof="loads", loads=False),
    # transformers' class halves the window that the config states, and takes one more
    Tiny("gemma-embedding",
         config("Gemma3TextModel", "gemma3_text", use_bidirectional_attention=True, **GEMMA3 | {"sliding_window": 8}),
         gemma_like(64, 7, True, "") | {"2_Dense.linear.weight": (192, EMBD), "3_Dense.linear.weight": (EMBD, 192)},
         "spm", zero_norms=True, files=pooled("mean", (EMBD, 192), (192, EMBD)), proof="embedding"),
    Tiny("qwen3-embedding", config("Qwen3ForCausalLM", "qwen3", head_dim=64, tie_word_embeddings=True, rope_theta=1e6),
         llama_like(64, head=False, qk_norms=True), files=pooled("lasttoken"), proof="embedding"),
    Tiny("modern-bert", encoder("ModernBertModel", "modernbert", **MODERN), modern_like(5), files=pooled("mean"),
         proof="embedding", mistakes=("rope", "gate", "norm")),
    Tiny("modern-bert-masked", encoder("ModernBertForMaskedLM", "modernbert", **MODERN),
         modern_like(5, "model.") | MODERN_HEAD, files=pooled("cls"), proof="embedding",
         mistakes=("rope", "gate", "norm"), loads=False),
    Tiny("modern-bert-classifier",
         encoder("ModernBertForSequenceClassification", "modernbert", classifier_pooling="mean",
                 id2label={"0": "LABEL_0"}, **MODERN),
         modern_like(5, "model.") | MODERN_HEAD | dict(linear("classifier", 1, EMBD)), proof="scores",
         mistakes=("gate", "norm")),
)  # fmt: skip
