"""llama.cpp, with the vocabulary that we write, cuts text into the ids that the tokenizer itself gives."""

import json
import urllib.request
from collections.abc import Mapping
from math import prod
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer

from ggufround.gguf_file import Field, TensorInfo, encode_header, f32, padded, string, u32
from ggufround.tokenizer import Vocab, load_vocab
from ggufround.tokenizer.pretokenizers import CHECK_TEXT, FALLBACK, STRUCTURES, Structure
from tiny_tokenizers import CASES, TEXT, Case, byte_bpe, dump, token

pytestmark = pytest.mark.peer
xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp itself: pip install xllamacpp")

TEXTS = (
    CHECK_TEXT,
    TEXT,
    "  lead  and trail  \n\n\n",
    "WE'VE don't I'LL they'Re 's 'S 's's ''",
    "CamelCase HTTPServer snake_case 12 123 1234 12345 1,234,567.89 1st \u00bd \u2167 \u0663\u0664",
    "a\tb\r\nc\n  d",
    "\u00c0\u00c9 \u00f1and\u00fa stra\u00dfe \u0391\u03b2\u03b3 \u0436\u0416 e\u0301 o\u0308x",
    "\u65e5\u672c\u8a9e\u30c6\u30ad \u4e2d\u6587\u3002 \ud55c\uad6d\uc5b4 \u0e20\u0e32\u0e29\u0e32 \u0939\u093f",
    "x=1;y+=2;//!!??...---***###$$$%%%^^^&&&",
    "  \u3000 nbsp\u00a0thin\u2009",
)

# none with a normalizer: llama.cpp does not compose e and an accent as Qwen's NFC does
JSON_CASES = (
    "llama 3",
    "llama class over byte level",
    "llama from tokenizer.json alone",
    "gemma 3 from tokenizer.json alone",
)


def tokenize(vocab: Vocab, path: Path) -> list[list[int]]:
    """The ids that llama.cpp gives to TEXTS, through a model of one layer of zeros."""
    model: Mapping[str, Field] = {
        "general.architecture": string("llama"),
        **{f"llama.{key}": u32(32) for key in ("context_length", "embedding_length", "feed_forward_length")},
        **{f"llama.{key}": u32(1) for key in ("block_count", "attention.head_count")},
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
    }
    square = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {"token_embd.weight": (vocab.size, 32), "output_norm.weight": (32,)}
    shapes |= {f"blk.0.{name}.weight": (32, 32) for name in square}
    shapes |= {f"blk.0.{name}.weight": (32,) for name in ("attn_norm", "ffn_norm")}
    tensors, offset = [], 0
    for name, shape in shapes.items():
        tensors.append(TensorInfo(name, shape, 0, offset))
        offset += padded(4 * prod(shape))
    path.write_bytes(encode_header({**model, **vocab.metadata}, tensors).data + bytes(offset))
    params = xllamacpp.CommonParams()
    params.model.path, params.warmup, params.n_ctx, params.cpuparams.n_threads = str(path), False, 64, 1
    server = xllamacpp.Server(params)
    found = []
    for text in TEXTS:
        body = json.dumps({"content": text, "add_special": False}).encode()
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found.append(json.load(answer)["tokens"])
    return found


def check(vocab: Vocab, want: list[list[int]], folder: Path) -> None:
    for text, ours, theirs in zip(TEXTS, tokenize(vocab, folder / "tiny.gguf"), want, strict=True):
        assert ours == theirs, text


@pytest.mark.parametrize("row", [row for row in STRUCTURES if FALLBACK not in row.splits], ids=lambda row: row.name)
def test_a_structure_is_cut_as_its_name_is(row: Structure, tmp_path: Path) -> None:
    document = byte_bpe(row.splits, [token("<|x|>")], 400, model={"ignore_merges": bool(row.ignore_merges)})
    case = Case(dump(tokenizer_json=document), {}, ("bpe",))
    peer = Tokenizer.from_str(json.dumps(document))
    want = [peer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    check(load_vocab(case.checkpoint(tmp_path), case.order), want, tmp_path)


@pytest.mark.parametrize("name", JSON_CASES)
def test_a_tokenizer_json_is_cut_as_tokenizers_does(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    vocab = load_vocab(case.checkpoint(tmp_path), case.order)
    peer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    check(vocab, [peer.encode(text, add_special_tokens=False).ids for text in TEXTS], tmp_path)


@pytest.mark.parametrize("name", ["llama 2", "phi 3"])
def test_a_tokenizer_model_is_cut_as_sentencepiece_does(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    peer = sentencepiece.SentencePieceProcessor(model_proto=case.files["tokenizer.model"])
    check(load_vocab(case.checkpoint(tmp_path), case.order), [peer.encode(text) for text in TEXTS], tmp_path)


def test_gemma_4_is_joined_by_its_merges(tmp_path: Path) -> None:
    case = CASES["gemma 3 from tokenizer.json alone"]
    vocab = load_vocab(case.checkpoint(tmp_path), ("gemma4",))
    peer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    check(vocab, [peer.encode(text, add_special_tokens=False).ids for text in TEXTS], tmp_path)
