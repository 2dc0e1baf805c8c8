"""Tiny random checkpoints of every architecture, as transformers saves them.

A case is a config, the shapes of its tensors and a kind of tokenizer. Weights depend on the tensor's name and shape
only. They are large enough that a wrong rotation, norm or gate changes the logits a lot: matrices keep the variance of
what they multiply, queries and keys make scores of about two, norms vary by a third.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from tiny import write_checkpoint

VOCAB = 320
# llama.cpp looks the last one up in every model whose name contains "phi3".
SPECIAL = ("<unk>", "<s>", "</s>", "<|endoftext|>")
EMBD, FF, HEADS, KV_HEADS, LAYERS = 128, 192, 4, 2, 2
Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Tiny:
    """One checkpoint: `config` is its config.json, `shapes` its tensors, `zero_norms` norms that are stored less 1."""

    name: str
    config: dict[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    tokenizer: str = "bpe"  # or "spm"
    zero_norms: bool = False
    shards: int = 1
    loads: bool = True  # transformers loads it; else a way of saving that only converters meet
    files: Mapping[str, str] = field(default_factory=dict)  # further small files: README.md, ...


def weight(case: Tiny, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor's values, float32, before they are rounded to bfloat16."""
    values = np.random.default_rng(crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if name.endswith("norm.weight"):
        return values / 3 + (0 if case.zero_norms else 1)
    if len(shape) == 1:
        return values / 3
    if "embed_tokens" in name:
        return values / 4  # a tied one makes logits of about three
    gain = 1.5 if "q_proj" in name or "k_proj" in name or "qkv_proj" in name else 1.0
    return values * np.float32(gain / shape[-1] ** 0.5)


def written(folder: Path, name: str) -> Path:
    """The checkpoint of that name in `folder`, written if it is not there."""
    path = folder / name
    return path if path.exists() else write(ALL[name], path)


def weights(case: Tiny) -> dict[str, np.ndarray]:
    """All tensors by name, as `weight` has them."""
    return {name: weight(case, name, shape) for name, shape in case.shapes.items()}


def write(case: Tiny, directory: Path, tensors: Mapping[str, np.ndarray] | None = None) -> Path:
    """Write the checkpoint in bfloat16 into `directory`, made if it is not there; returns it. `tensors`: other ones."""
    write_checkpoint(directory, weights(case) if tensors is None else tensors, case.config, shards=case.shards)
    for name, text in case.files.items():
        (directory / name).write_text(text)
    configured = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if case.tokenizer == "spm":
        (directory / "tokenizer.model").write_bytes(spm_model())
        configured["tokenizer_class"] = "LlamaTokenizer"
    else:
        (directory / "tokenizer.json").write_text(json.dumps(bpe_tokenizer()))
        configured["tokenizer_class"] = "PreTrainedTokenizerFast"
    (directory / "tokenizer_config.json").write_text(json.dumps(configured))
    return directory


def byte_characters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b if b in plain else 256 + sum(c not in plain for c in range(b))) for b in range(256)]


def merged_pairs() -> list[tuple[str, str]]:
    """Merges of two letters, enough to fill the vocabulary beside the bytes and the special tokens."""
    first, second = "etaoinsr", "hnrsdeat"
    return [(a, b) for a in first for b in second][: VOCAB - 256 - len(SPECIAL)]


def bpe_tokenizer() -> dict[str, Any]:
    """A byte-level BPE tokenizer.json in GPT-2's form: special tokens, 256 bytes, merged pairs."""
    tokens = [*SPECIAL, *byte_characters(), *("".join(pair) for pair in merged_pairs())]
    assert len(set(tokens)) == VOCAB
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id_, "content": content, **flags} for id_, content in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: id_ for id_, token in enumerate(tokens)},
            "merges": [" ".join(pair) for pair in merged_pairs()],
        },
    }


def spm_model() -> bytes:
    """A SentencePiece BPE model with byte fallback, encoded by hand (sentencepiece_model.proto, ModelProto)."""

    def varint(value: int) -> bytes:
        out = b""
        while value > 127:
            out += bytes([value & 127 | 128])
            value >>= 7
        return out + bytes([value])

    def scalar(number: int, value: int) -> bytes:
        return varint(number << 3) + varint(value)

    def chunk(number: int, data: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(data)) + data

    normal, unknown, control, byte = 1, 2, 3, 6
    letters = [*"▁etaoinsrhldcumwfgypbvk"]
    words = ["".join(pair) for pair in merged_pairs()][: VOCAB - 256 - len(SPECIAL) - len(letters)]
    pieces = [("<unk>", unknown), ("<s>", control), ("</s>", control)]
    pieces += [(f"<0x{b:02X}>", byte) for b in range(256)]
    pieces += [(word, normal) for word in (*words, *letters)]
    pieces += [(SPECIAL[3], control)]
    assert len({piece for piece, _ in pieces}) == VOCAB
    model = b""
    for rank, (piece, kind) in enumerate(pieces):
        score = struct.pack("<f", -float(rank - 258) if kind == normal else 0.0)
        model += chunk(1, chunk(1, piece.encode()) + b"\x15" + score + scalar(3, kind))
    trainer = scalar(3, 2) + scalar(4, VOCAB) + scalar(35, 1) + scalar(40, 0) + scalar(41, 1) + scalar(42, 2)
    normalizer = chunk(1, b"identity") + scalar(3, 1) + scalar(4, 0) + scalar(5, 1)
    return model + chunk(2, trainer) + chunk(3, normalizer)


def ends(prefix: str = "model.", head: bool = True, vocab: int = VOCAB) -> Shapes:
    yield f"{prefix}embed_tokens.weight", (vocab, EMBD)
    yield f"{prefix}norm.weight", (EMBD,)
    if head:
        yield "lm_head.weight", (vocab, EMBD)


def attention(prefix: str, head: int, bias: tuple[str, ...] = (), norms: bool = False) -> Shapes:
    for name, shape in (
        ("q_proj", (HEADS * head, EMBD)),
        ("k_proj", (KV_HEADS * head, EMBD)),
        ("v_proj", (KV_HEADS * head, EMBD)),
        ("o_proj", (EMBD, HEADS * head)),
    ):
        yield f"{prefix}self_attn.{name}.weight", shape
        if name in bias:
            yield f"{prefix}self_attn.{name}.bias", shape[:1]
    if norms:
        yield f"{prefix}self_attn.q_norm.weight", (head,)
        yield f"{prefix}self_attn.k_norm.weight", (head,)


def feed_forward(prefix: str, bias: bool = False) -> Shapes:
    for name, shape in (("gate_proj", (FF, EMBD)), ("up_proj", (FF, EMBD)), ("down_proj", (EMBD, FF))):
        yield f"{prefix}mlp.{name}.weight", shape
        if bias:
            yield f"{prefix}mlp.{name}.bias", shape[:1]


def norms(prefix: str, *names: str) -> Shapes:
    for name in names:
        yield f"{prefix}{name}.weight", (EMBD,)


def llama_like(
    head_dim: int = EMBD // HEADS,
    layers: int = LAYERS,
    head: bool = True,
    bias: tuple[str, ...] = (),
    qk_norms: bool = False,
    prefix: str = "model.",
) -> dict[str, tuple[int, ...]]:
    """Llama's tensors; `head_dim` columns a head, `head`: an output matrix of its own."""
    shapes = dict(ends(prefix, head))
    for i in range(layers):
        block = f"{prefix}layers.{i}."
        shapes |= dict(norms(block, "input_layernorm", "post_attention_layernorm"))
        shapes |= dict(attention(block, head_dim, bias, qk_norms))
        shapes |= dict(feed_forward(block, "down_proj" in bias))
    return shapes


def config(class_name: str, model_type: str, **further: Any) -> dict[str, Any]:
    """What every config says; `further` overrides it, and None leaves a key out."""
    common: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": VOCAB,
        "hidden_size": EMBD,
        "intermediate_size": FF,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    return {key: value for key, value in (common | further).items() if value is not None}


LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
CARD = """---
license: apache-2.0
language:
- en
- no
base_model: someone/Tiny-Base-1B
tags: [tiny, random]
---
# A tiny model
"""

LLAMA_CASES = (
    Tiny("llama", config("LlamaForCausalLM", "llama", rope_theta=10000.0), llama_like(), "spm", shards=2),
    Tiny("llama-sparse-config", config("LlamaForCausalLM", "llama", num_key_value_heads=HEADS, rms_norm_eps=None),
         llama_like() | {f"model.layers.{i}.self_attn.{name}.weight": (EMBD, EMBD)
                         for i in range(LAYERS) for name in ("k_proj", "v_proj")}),
    Tiny(
        "llama3",
        config("LlamaForCausalLM", "llama", rope_theta=5e5, rope_scaling=LLAMA3_SCALING, head_dim=64,
               tie_word_embeddings=True),
        llama_like(64, head=False),
        files={"README.md": CARD, "generation_config.json": '{"temperature": 0.6, "top_p": 0.9, "do_sample": true}'},
    ),
    Tiny(
        "llama-linear",
        config("LlamaForCausalLM", "llama", rope_scaling={"type": "linear", "factor": 2.0}, attention_bias=True,
               mlp_bias=True),
        llama_like(bias=("q_proj", "k_proj", "v_proj", "o_proj", "down_proj")),
    ),
    Tiny(
        "llama-yarn",
        config("LlamaForCausalLM", "llama", rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128,
            "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": 1.1}),
        llama_like(),
    ),
)  # fmt: skip


def experts(prefix: str, *names: str, count: int = 4) -> Shapes:
    """A router and `count` experts whose matrices for gate, up and down are called `names`."""
    yield f"{prefix}gate.weight", (count, EMBD)
    for e in range(count):
        for name, shape in zip(names, ((FF, EMBD), (FF, EMBD), (EMBD, FF)), strict=True):
            yield f"{prefix}experts.{e}.{name}.weight", shape


def mixture(shapes: dict[str, tuple[int, ...]], block: str, *names: str) -> dict[str, tuple[int, ...]]:
    """Llama's tensors with experts in `block` in place of the feed-forward part."""
    kept = {name: shape for name, shape in shapes.items() if ".mlp." not in name}
    for i in range(LAYERS):
        kept |= dict(experts(f"model.layers.{i}.{block}.", *names))
    return kept


def stacked(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Qwen's experts as transformers 5 holds them: one stack of gate over up, one of down."""
    kept = {name: shape for name, shape in shapes.items() if ".experts." not in name}
    for i in range(LAYERS):
        kept[f"model.layers.{i}.mlp.experts.gate_up_proj"] = (4, 2 * FF, EMBD)
        kept[f"model.layers.{i}.mlp.experts.down_proj"] = (4, EMBD, FF)
    return kept


def gemma_like(
    head_dim: int, layers: int, qk_norms: bool = False, prefix: str = "model."
) -> dict[str, tuple[int, ...]]:
    shapes = llama_like(head_dim, layers, head=False, qk_norms=qk_norms, prefix=prefix)
    for i in range(layers):
        shapes |= dict(norms(f"{prefix}layers.{i}.", "pre_feedforward_layernorm", "post_feedforward_layernorm"))
    return shapes


def phi3_like() -> dict[str, tuple[int, ...]]:
    shapes = dict(ends())
    for i in range(LAYERS):
        block = f"model.layers.{i}."
        shapes |= dict(norms(block, "input_layernorm", "post_attention_layernorm"))
        shapes[f"{block}self_attn.qkv_proj.weight"] = (EMBD + 2 * KV_HEADS * (EMBD // HEADS), EMBD)
        shapes[f"{block}self_attn.o_proj.weight"] = (EMBD, EMBD)
        shapes[f"{block}mlp.gate_up_proj.weight"] = (2 * FF, EMBD)
        shapes[f"{block}mlp.down_proj.weight"] = (EMBD, FF)
    return shapes


def olmo2_like(layers: int) -> dict[str, tuple[int, ...]]:
    shapes = {name: shape for name, shape in llama_like(layers=layers).items() if "input_layernorm" not in name}
    for i in range(layers):
        shapes |= dict(norms(f"model.layers.{i}.", "post_feedforward_layernorm"))
        shapes[f"model.layers.{i}.self_attn.q_norm.weight"] = (EMBD,)
        shapes[f"model.layers.{i}.self_attn.k_norm.weight"] = (KV_HEADS * (EMBD // HEADS),)
    return shapes


GEMMA = {
    "hidden_act": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "sliding_window": 32,
    "tie_word_embeddings": True,
}
GEMMA3 = {**GEMMA, "num_hidden_layers": 7, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1 + k / 8 for k in range(12)],
    "long_factor": [2 + k / 2 for k in range(12)],
}
QWEN3MOE = config(
    "Qwen3MoeForCausalLM", "qwen3_moe", head_dim=64, num_experts=4, num_experts_per_tok=2,
    moe_intermediate_size=FF, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], rope_theta=1e6,
)  # fmt: skip
QWEN_EXPERTS = mixture(llama_like(64, qk_norms=True), "mlp", "gate_proj", "up_proj", "down_proj")

FURTHER_CASES = (
    Tiny("mistral", config("MistralForCausalLM", "mistral", sliding_window=256, rope_theta=1e6), llama_like(), "spm"),
    Tiny("mistral-head-dim", config("MistralForCausalLM", "mistral", sliding_window=None, head_dim=64), llama_like(64)),
    Tiny(
        "mixtral",
        config("MixtralForCausalLM", "mixtral", num_local_experts=4, num_experts_per_tok=2, rope_theta=1e6),
        mixture(llama_like(), "block_sparse_moe", "w1", "w3", "w2"),
        "spm",
    ),
    Tiny(
        "smollm3",
        config("SmolLM3ForCausalLM", "smollm3", num_hidden_layers=5, tie_word_embeddings=True, rope_theta=2e6,
               no_rope_layer_interval=4, use_sliding_window=False, pad_token_id=0),
        llama_like(layers=5, head=False),
    ),
    Tiny(
        "granite",
        config("GraniteForCausalLM", "granite", attention_multiplier=0.25, embedding_multiplier=3.0,
               residual_multiplier=0.5, logits_scaling=4.0, tie_word_embeddings=True),
        llama_like(head=False),
    ),
    Tiny("qwen2", config("Qwen2ForCausalLM", "qwen2", rope_theta=1e6), llama_like(bias=("q_proj", "k_proj", "v_proj"))),
    Tiny(
        "qwen2-bare",
        config("Qwen2Model", "qwen2", rope_scaling={"rope_type": "yarn", "factor": 4.0,
                                                    "original_max_position_embeddings": 128}),
        llama_like(bias=("q_proj", "k_proj", "v_proj"), head=False, prefix=""),
        loads=False,
    ),
    Tiny(
        "qwen3",
        config("Qwen3ForCausalLM", "qwen3", head_dim=64, tie_word_embeddings=True, rope_theta=1e6),
        llama_like(64, head=False, qk_norms=True),
    ),
    Tiny("qwen3moe", QWEN3MOE, QWEN_EXPERTS),
    Tiny("qwen3moe-stacked", QWEN3MOE, stacked(QWEN_EXPERTS)),
    Tiny(
        "gemma2",
        config("Gemma2ForCausalLM", "gemma2", attn_logit_softcapping=50.0, final_logit_softcapping=30.0, **GEMMA),
        gemma_like(64, LAYERS), "spm", zero_norms=True,
    ),
    Tiny("gemma3", config("Gemma3ForCausalLM", "gemma3_text", **GEMMA3), gemma_like(64, 7, True), "spm",
         zero_norms=True),
    Tiny(
        "gemma3-composite",
        {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
         "text_config": config("", "gemma3_text", architectures=None, rms_norm_eps=None, max_position_embeddings=None,
                               **GEMMA3 | {"rope_theta": None, "rope_local_base_freq": None, "sliding_window": None,
                                           "sliding_window_pattern": None,
                                           "rope_scaling": {"rope_type": "linear", "factor": 8.0}})},
        gemma_like(64, 7, True, "language_model.model.")
        | {"vision_tower.vision_model.post_layernorm.weight": (64,),
           "multi_modal_projector.mm_soft_emb_norm.weight": (64,)},
        "spm", zero_norms=True, loads=False,
    ),
    Tiny("phi3", config("Phi3ForCausalLM", "phi3", sliding_window=256, pad_token_id=0), phi3_like(), "spm"),
    Tiny(
        "phi3-longrope",
        config("Phi3ForCausalLM", "phi3", rope_scaling=LONGROPE, partial_rotary_factor=0.75,
               original_max_position_embeddings=256, pad_token_id=0),
        phi3_like(),
    ),
    Tiny("olmo2", config("Olmo2ForCausalLM", "olmo2", rope_theta=5e5, pad_token_id=0), olmo2_like(LAYERS)),
    Tiny(
        "olmo3",
        config("Olmo3ForCausalLM", "olmo3", num_hidden_layers=4, rope_theta=5e5, sliding_window=32, pad_token_id=0),
        olmo2_like(4),
    ),
)  # fmt: skip

CASES = {case.name: case for case in (*LLAMA_CASES, *FURTHER_CASES)}


def wide() -> Tiny:
    """A Llama whose rows are as long as a block of the K-quants, and whose matrices are tiles of 128."""
    sizes = {EMBD: 256, FF: 256, 64: 128}
    shapes = {n: tuple(sizes.get(k, k) for k in s) for n, s in llama_like().items()}
    return Tiny("wide", config("LlamaForCausalLM", "llama", hidden_size=256, intermediate_size=256), shapes)


ALL = CASES | {"wide": wide()}
