"""What tiny random checkpoints are made of.

A case is a config, the shapes of its tensors and a kind of tokenizer. Weights depend on the tensor's name and shape
only. They are large enough that a wrong rotation, norm or gate changes the logits a lot: matrices keep the variance of
what they multiply, queries and keys make scores of about two, norms vary by a third.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

import tiny_words
from tiny import encode, write_checkpoint, write_safetensors

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
    tokenizer: str = "bpe"  # or "spm", "wpm", "roberta", "xlmr", "unigram", "t5"
    tokens: tuple[str, ...] = ()  # special tokens at the end of the vocabulary of "bpe", in place of merged pairs
    zero_norms: bool = False
    shards: int = 1
    loads: bool = True  # transformers loads it; else a way of saving that only converters meet
    peer: Mapping[str, Any] = field(default_factory=dict)  # the config in transformers' words, where they are others
    converts: bool = True  # llama.cpp's converter makes a file of it; else there is no golden, for the reason stated
    files: Mapping[str, str] = field(default_factory=dict)  # further small files: README.md, ...
    # The same weights in a model that transformers has, where it has not this one; or the config of such a model.
    twin: Tiny | Mapping[str, Any] | None = None
    given: Callable[[int], dict[str, np.ndarray]] | None = None  # what transformers is told of so many tokens besides
    forward: Callable[[Any, Any, list[int]], np.ndarray] | None = None  # next-token logits, where no model has them
    special: Callable[[str, tuple[int, ...]], np.ndarray | None] | None = None  # a tensor's values; None: as others
    arch: str | None = None  # what its text model is converted as, where its class is not known
    proof: str = "causal"  # against llama.cpp: next-token probabilities; or "embedding", "scores", "loads", "vision"
    mmproj: bool = False  # it has a vision part whose projector llama.cpp's converter writes
    # Makes of transformers' network what llama.cpp runs, where the two differ for a reason that is not the file's.
    altered: Callable[[Any], None] | None = None
    as_twin: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None  # its tensors, of this one's
    unread: tuple[str, ...] = ()  # how names of tensors begin that transformers leaves aside
    mistakes: tuple[str, ...] = ("rope", "gate", "norm")  # errors of a converter that must show in llama.cpp


def weight(case: Tiny, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor's values, float32, before they are rounded to bfloat16."""
    if case.special is not None and (chosen := case.special(name, shape)) is not None:
        return np.asarray(chosen, np.float32)
    values = np.random.default_rng(crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if name.lower().endswith("norm.weight"):
        return values / 3 + (0 if case.zero_norms else 1)
    if len(shape) == 1:
        return values / 3
    if "embed_tokens" in name:
        return values / 4  # a tied one makes logits of about three
    gain = 1.5 if "q_proj" in name or "k_proj" in name or "qkv_proj" in name else 1.0
    return values * np.float32(gain / shape[-1] ** 0.5)


def weights(case: Tiny) -> dict[str, np.ndarray]:
    """All tensors by name, as `weight` has them."""
    return {name: weight(case, name, shape) for name, shape in case.shapes.items()}


def same_as(twin: Tiny, make: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> dict[str, Any]:
    """What a case is to be told that holds the weights of `twin` in its own names and arrangement, which `make` gives
    them."""
    tensors = make(weights(twin))

    def special(name: str, shape: tuple[int, ...]) -> np.ndarray:
        return tensors[name]

    return {
        "shapes": {name: tensor.shape for name, tensor in tensors.items()},
        "special": special,
        "twin": twin,
        "loads": False,
    }


def renamed(tensors: Mapping[str, np.ndarray], *pairs: tuple[str, str]) -> dict[str, np.ndarray]:
    """The same tensors under other names: every `old` in them is replaced, in the order of the pairs."""
    return {functools.reduce(lambda text, pair: text.replace(*pair), pairs, name): t for name, t in tensors.items()}


def write(case: Tiny, directory: Path, tensors: Mapping[str, np.ndarray] | None = None) -> Path:
    """Write the checkpoint in bfloat16 into `directory`, made if it is not there; returns it. `tensors`: other ones."""
    all_of_them = weights(case) if tensors is None else dict(tensors)
    modules = {name: all_of_them.pop(name) for name in [*all_of_them] if "_Dense." in name}
    write_checkpoint(directory, all_of_them, case.config, shards=case.shards)
    for name, text in case.files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    for name, values in modules.items():  # a layer of sentence-transformers, in a folder of its own
        folder, _, short = name.partition(".")
        dtype, raw = encode(values, "BF16")
        write_safetensors(directory / folder / "model.safetensors", {short: (dtype, values.shape, raw)})
    configured = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if case.tokenizer == "spm":
        (directory / "tokenizer.model").write_bytes(spm_model())
        configured["tokenizer_class"] = "LlamaTokenizer"
    elif case.tokenizer == "wpm":
        (directory / "tokenizer.json").write_text(json.dumps(tiny_words.wordpiece(VOCAB)))
        configured = {f"{n}_token": f"[{n.upper()}]" for n in ("unk", "sep", "pad", "cls", "mask")}
        configured["tokenizer_class"] = "BertTokenizer"
    elif case.tokenizer == "xlmr":
        special = (("<unk>", 2), ("<s>", 3), ("</s>", 3))
        (directory / "sentencepiece.bpe.model").write_bytes(tiny_words.unigram_model(VOCAB - 2, special))
        configured["tokenizer_class"] = "XLMRobertaTokenizer"
    elif case.tokenizer == "unigram":
        document = tiny_words.unigram_json(VOCAB, ("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
        (directory / "tokenizer.json").write_text(json.dumps(document))
        configured = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<s>"}
        configured |= {"sep_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
        configured["tokenizer_class"] = "CamembertTokenizer"
    elif case.tokenizer == "t5":
        special = (("<pad>", 3), ("</s>", 3), ("<unk>", 2))
        (directory / "spiece.model").write_bytes(tiny_words.unigram_model(VOCAB, special))
        configured = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "tokenizer_class": "T5Tokenizer"}
    else:
        (directory / "tokenizer.json").write_text(json.dumps(bpe_tokenizer(case.tokens)))
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


def bpe_tokenizer(more: tuple[str, ...] = ()) -> dict[str, Any]:
    """A byte-level BPE tokenizer.json in GPT-2's form: special tokens, bytes, merged pairs, further special ones."""
    merges = merged_pairs()[: len(merged_pairs()) - len(more)]
    tokens = [*SPECIAL, *byte_characters(), *("".join(pair) for pair in merges), *more]
    special = [*enumerate(SPECIAL), *enumerate(more, VOCAB - len(more))]
    assert len(set(tokens)) == VOCAB
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id_, "content": content, **flags} for id_, content in special],
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
            "merges": [" ".join(pair) for pair in merges],
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


def feed_forward(prefix: str, bias: bool = False, width: int = FF) -> Shapes:
    for name, shape in (("gate_proj", (width, EMBD)), ("up_proj", (width, EMBD)), ("down_proj", (EMBD, width))):
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
