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
    files: Mapping[str, str] = field(default_factory=dict)  # further small files: README.md, ...


def weight(case: Tiny, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor's values, float32, before they are rounded to bfloat16."""
    values = np.random.default_rng(crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if name.endswith("norm.weight"):
        return values / 3 + (0 if case.zero_norms else 1)
    if len(shape) == 1:
        return values / 3
    if "embed_tokens" in name:
        return values
    gain = 1.5 if "q_proj" in name or "k_proj" in name or "qkv_proj" in name else 1.0
    return values * np.float32(gain / shape[-1] ** 0.5)


def write(case: Tiny, directory: Path) -> Path:
    """Write the checkpoint in bfloat16 into `directory`, made if it is not there; returns it."""
    tensors = {name: weight(case, name, shape) for name, shape in case.shapes.items()}
    write_checkpoint(directory, tensors, case.config, shards=case.shards)
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
    return [(a, b) for a in first for b in second][: VOCAB - 256 - 3]


def bpe_tokenizer() -> dict[str, Any]:
    """A byte-level BPE tokenizer.json in GPT-2's form: three special tokens, 256 bytes, merged pairs."""
    special = ["<unk>", "<s>", "</s>"]
    tokens = [*special, *byte_characters(), *("".join(pair) for pair in merged_pairs())]
    assert len(set(tokens)) == VOCAB
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id_, "content": content, **flags} for id_, content in enumerate(special)],
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
    words = ["".join(pair) for pair in merged_pairs()][: VOCAB - 256 - 3 - len(letters)]
    pieces = [("<unk>", unknown), ("<s>", control), ("</s>", control)]
    pieces += [(f"<0x{b:02X}>", byte) for b in range(256)]
    pieces += [(word, normal) for word in (*words, *letters)]
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

CASES = {case.name: case for case in (*LLAMA_CASES,)}
