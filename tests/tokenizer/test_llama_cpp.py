"""llama.cpp, with the vocabulary that we write, cuts text into the ids that the tokenizer itself gives."""

import ast
import base64
import json
import urllib.request
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer

from ggufround.gguf_file import Field, TensorInfo, encode_header, f32, padded, string, u32
from ggufround.tokenizer import Vocab, load_vocab
from ggufround.tokenizer.pretokenizers import CHECK_TEXT, FALLBACK, STRUCTURES, Structure
from tiny_tokenizers import CASES, TEXT, Case, byte_bpe, dump, token
from tiny_vocabularies import CASES as OTHERS

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


def tokenize(vocab: Vocab, path: Path, texts: tuple[str, ...] = TEXTS) -> list[list[int]]:
    """The ids that llama.cpp gives to each text, through a model of one layer of zeros."""
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
    for text in texts:
        body = json.dumps({"content": text, "add_special": False}).encode()
        request = urllib.request.Request(
            f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found.append(json.load(answer)["tokens"])
    return found


def check(vocab: Vocab, want: list[list[int]], folder: Path, texts: tuple[str, ...] = TEXTS) -> None:
    for text, ours, theirs in zip(texts, tokenize(vocab, folder / "tiny.gguf", texts), want, strict=True):
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


@pytest.mark.parametrize(
    "name",
    ["bert", "cased bert", "xlm-roberta from tokenizer.json", "t5 from tokenizer.json", "roberta", "modern bert"],
)
def test_the_vocabulary_of_an_encoder_is_cut_as_tokenizers_does(name: str, tmp_path: Path) -> None:
    case = OTHERS[name]
    vocab = load_vocab(case.checkpoint(tmp_path), case.order)
    peer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    check(vocab, [peer.encode(text, add_special_tokens=False).ids for text in TEXTS], tmp_path)


def test_a_vocab_txt_is_cut_as_the_same_tokenizer_json(tmp_path: Path) -> None:
    case, same = OTHERS["bert from vocab.txt"], OTHERS["bert"]
    peer = Tokenizer.from_str(same.files["tokenizer.json"].decode())
    want = [peer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    check(load_vocab(case.checkpoint(tmp_path), case.order), want, tmp_path)


@pytest.mark.parametrize("name", ["t5", "t5 without table and prefix", "xlm-roberta"])
def test_a_unigram_model_is_cut_as_sentencepiece_does(name: str, tmp_path: Path) -> None:
    case = OTHERS[name]
    model = next(data for file, data in case.files.items() if file.endswith(".model"))
    peer = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = {0: 3, 1: 0, 2: 2} if name == "xlm-roberta" else {}
    want = [[ids.get(i, i + (name == "xlm-roberta")) for i in peer.encode(text)] for text in TEXTS]
    check(load_vocab(case.checkpoint(tmp_path), case.order), want, tmp_path)


@pytest.mark.parametrize("name", ["tekken", "tekken with its own special tokens"])
def test_a_tekken_json_is_cut_as_its_ranks_say(name: str, tmp_path: Path) -> None:
    """Against the definition: of all neighbours whose bytes together are a token, those of the lowest rank join."""
    case = OTHERS[name]
    document = json.loads(case.files["tekken.json"])
    config = document["config"]
    first = config["default_num_special_tokens"]
    ranks = {base64.b64decode(row["token_bytes"]): row["rank"] for row in document["vocab"]}
    ranks = {token: rank for token, rank in ranks.items() if rank < config["default_vocab_size"] - first}
    words = ("thequick", "weather", "others", "\u6211\u60f3", "things")  # no boundary inside

    def joined(text: str) -> list[int]:
        parts = [bytes([byte]) for byte in text.encode()]
        while pairs := [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]:
            i = min(pairs)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return [first + ranks[part] for part in parts]

    check(load_vocab(case.checkpoint(tmp_path), case.order), [joined(word) for word in words], tmp_path, words)


def test_an_rwkv_vocabulary_is_cut_by_the_longest_token(tmp_path: Path) -> None:
    case = OTHERS["rwkv"]
    lines = case.files["rwkv_vocab_v20230424.txt"].decode().splitlines()
    tokens = [ast.literal_eval(" ".join(line.split(" ")[1:-1])) for line in lines]
    ids = {token.encode() if isinstance(token, str) else token: i for i, token in enumerate(tokens, 1)}

    def longest(data: bytes) -> list[int]:
        found = []
        while data:
            size = max(n for n in range(1, 20) if data[:n] in ids)
            found.append(ids[data[:size]])
            data = data[size:]
        return found

    check(load_vocab(case.checkpoint(tmp_path), case.order), [longest(text.encode()) for text in TEXTS], tmp_path)


def test_gemma_4_is_joined_by_its_merges(tmp_path: Path) -> None:
    case = CASES["gemma 3 from tokenizer.json alone"]
    vocab = load_vocab(case.checkpoint(tmp_path), ("gemma4",))
    peer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    check(vocab, [peer.encode(text, add_special_tokens=False).ids for text in TEXTS], tmp_path)
