"""llama.cpp as an oracle: next-token log-probabilities of GGUF files, from a process of its own (it may abort)."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufround.gguf_read import read_gguf

SCRIPT = """
import json, sys
import xllamacpp
asked = json.loads(sys.stdin.read())
answers = []
for path in asked["paths"]:
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 128, 1, False, -1
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    rows = []
    for prompt in asked["prompts"]:
        reply = server.handle_completions({
            "prompt": prompt, "n_predict": 1, "n_probs": asked["vocab"], "temperature": 0, "cache_prompt": False,
            "logit_bias": [[asked["letter"], 1000.0]],
        })
        row = [None] * asked["vocab"]
        for entry in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            row[entry["id"]] = entry["logprob"]
        rows.append(row)
    answers.append(rows)
    del server
print("ANSWER" + json.dumps(answers))
"""


def log_probs(paths: Sequence[Path], prompts: Sequence[Sequence[int]], vocab: int) -> NDArray[np.float64]:
    """[file, prompt, token] log-probabilities of the token after each prompt (token ids, taken as they are).

    What is reported are the model's own probabilities. The token that is drawn is forced to be a letter, since the
    server holds back half a character together with its probabilities.
    """
    tokens = read_gguf(paths[0]).metadata["tokenizer.ggml.tokens"].value
    letter = next(i for i, token in enumerate(tokens) if token.isascii() and token.isalpha())
    asked = {"paths": [str(p) for p in paths], "prompts": [list(p) for p in prompts], "vocab": vocab, "letter": letter}
    return np.array(_answer(SCRIPT, asked), np.float64)


VECTORS = """
import json, sys
import xllamacpp
asked = json.loads(sys.stdin.read())
answers = []
for path in asked["paths"]:
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 96, 1, False, -1
    params.n_batch = params.n_ubatch = 96
    params.cpuparams.n_threads = 1
    params.embedding, params.embd_normalize = True, -1
    if asked["scores"]:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    reply = server.handle_embeddings({"input": asked["prompts"], "embd_normalize": -1})
    rows = sorted(reply["data"], key=lambda row: row["index"])
    answers.append([row["embedding"][:asked["scores"] or None] for row in rows])
    del server
print("ANSWER" + json.dumps(answers))
"""


def embeddings(paths: Sequence[Path], prompts: Sequence[Sequence[int]], scores: int = 0) -> NDArray[np.float64]:
    """[file, prompt, embedding]: the vectors that each prompt (token ids, taken as they are) is pooled to, of whatever
    length they come out; or, where a number of `scores` is given, so many outputs of the classifier."""
    asked = {"paths": [str(p) for p in paths], "prompts": [list(p) for p in prompts], "scores": scores}
    return np.array(_answer(VECTORS, asked), np.float64)


def _answer(script: str, asked: object) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    answer = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert answer, f"llama.cpp failed with {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(answer[0][6:])


SEE = """
import json, sys
import xllamacpp
asked = json.loads(sys.stdin.read())
answers = []
for mmproj in asked["mmprojs"]:
    params = xllamacpp.CommonParams()
    params.model.path, params.mmproj.path = asked["model"], mmproj
    params.n_ctx = params.n_batch = params.n_ubatch = asked["context"]
    params.n_parallel, params.warmup, params.verbosity, params.mmproj_use_gpu = 1, False, -1, False
    params.cpuparams.n_threads = 1
    params.use_jinja, params.chat_template = True, asked["template"]
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    rows = []
    for picture in asked["pictures"]:
        parts = [{"type": "text", "text": text} for text in asked["texts"]]
        parts.insert(1, {"type": "image_url", "image_url": {"url": "data:image/png;base64," + picture}})
        reply = server.handle_chat_completions({
            "messages": [{"role": "user", "content": parts}], "max_tokens": 1, "logprobs": True,
            "top_logprobs": asked["vocab"], "temperature": 0, "cache_prompt": False,
            "logit_bias": [[asked["letter"], 1000.0]],
        })
        assert "choices" in reply, reply
        row = [None] * asked["vocab"]
        for entry in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            row[entry["id"]] = entry["logprob"]
        rows.append([reply["usage"]["prompt_tokens"], *row])
    answers.append(rows)
    del server
print("ANSWER" + json.dumps(answers))
"""
# Every part of every message as it is, one after the other; a picture is the marker that llama.cpp puts for it.
TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{{ p.text }}{% endfor %}{% endif %}{% endfor %}"
)


def seen(
    model: Path,
    mmprojs: Sequence[Path],
    texts: tuple[str, str],
    pictures: Sequence[bytes],
    vocab: int,
    context: int = 512,
) -> tuple[NDArray[np.float64], int]:
    """[projector file, picture, token] log-probabilities of the token after a text, a picture (the bytes of a PNG file)
    and another text, and how many tokens they are."""
    tokens = read_gguf(model).metadata["tokenizer.ggml.tokens"].value
    letter = next(i for i, token in enumerate(tokens) if token.isascii() and token.isalpha())
    asked = {
        "model": str(model), "mmprojs": [str(path) for path in mmprojs], "texts": texts, "vocab": vocab,
        "pictures": [base64.b64encode(picture).decode() for picture in pictures], "letter": letter, "context": context,
        "template": TEMPLATE,
    }  # fmt: skip
    found = np.array(_answer(SEE, asked), np.float64)
    assert np.ptp(found[:, :, 0]) == 0
    return found[:, :, 1:], int(found[0, 0, 0])


LOAD = """
import os, sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 128, 1, False, -1
server = xllamacpp.Server(params)
print("LOADED", flush=True)
os._exit(0)  # a server that was never asked anything may wait forever for its own end
"""


def loads(path: Path) -> bool:
    """Whether llama.cpp makes a context of the file. The server then tries to predict a token, which stops it where
    there is a decoder that looks at an encoder: that is far enough."""
    command = [sys.executable, "-c", LOAD, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    reached = "LOADED" in done.stdout or "llama_encode must be called first" in done.stderr
    assert reached, f"llama.cpp failed with {done.returncode}: {done.stderr[-2000:]}"
    return True


WRITE = """
import sys
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 128, 1, False, -1
server = xllamacpp.Server(params)
reply = server.handle_completions({"prompt": sys.argv[2], "n_predict": int(sys.argv[3]), "temperature": 0})
print("TEXT" + reply["choices"][0]["text"])
"""


def complete(path: Path, prompt: str, tokens: int) -> str:
    """The most probable continuation of `prompt`."""
    command = [sys.executable, "-c", WRITE, str(path), prompt, str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "TEXT" in done.stdout, f"llama.cpp failed with {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout.split("TEXT", 1)[1]
