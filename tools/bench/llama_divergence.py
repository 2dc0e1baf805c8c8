#!/usr/bin/env python3
"""llama.cpp's own perplexity and KL divergence of GGUF files, as its perplexity tool computes them, as JSON.

    python tools/bench/llama_divergence.py REFERENCE.gguf FILE.gguf... --text eval.txt --chunks 10 > llama.json

Through the library in xllamacpp's wheel, which has no llama-perplexity: the text is tokenized by llama.cpp, cut into
chunks, and positions context/2 to context-2 of each are scored. Two models at a time are in memory. --defaults takes
the float16 cache and the fused attention that llama.cpp has if nothing else is said. Beside `ggufround eval FILE...`
on the same text it tells what llama.cpp's rounding of activations does; ggufround itself is not needed here.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
import llama_imatrix
from llama_imatrix import Callback, context_parameters


def library() -> Any:
    lib = llama_imatrix.library()
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", number, [pointer]),
        ("llama_vocab_bos", number, [pointer]),
        ("llama_vocab_get_add_bos", ctypes.c_bool, [pointer]),
        (
            "llama_tokenize", number,
            [pointer, ctypes.c_char_p, number, ctypes.POINTER(number), number, ctypes.c_bool, ctypes.c_bool],
        ),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [pointer]),
    ):  # fmt: skip
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class Model:
    """A file that is loaded, and a context for one chunk."""

    def __init__(self, lib: Any, path: str, context: int, threads: int, defaults: bool) -> None:
        self.lib = lib
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        assert self.model, f"llama.cpp cannot load {path}"
        self.vocab = lib.llama_model_get_vocab(self.model)
        parameters = context_parameters(lib, context, threads, Callback(0), defaults)
        self.context = lib.llama_init_from_model(self.model, parameters)
        assert self.context, "llama.cpp makes no context"
        self.batch = lib.llama_batch_init(context, 0, 1)

    def chunks(self, text: bytes, context: int, most: int) -> NDArray[np.int64]:
        """Token ids [chunks, context]; a bos stands before the text and in place of each chunk's first token."""
        room = len(text) + 8
        ids = (ctypes.c_int32 * room)()
        count = self.lib.llama_tokenize(self.vocab, text, len(text), ids, room, True, False)
        number = min(most, count // context)
        chunks = np.array(ids[: number * context], np.int64).reshape(number, context)
        if self.lib.llama_vocab_get_add_bos(self.vocab):
            chunks[:, 0] = self.lib.llama_vocab_bos(self.vocab)
        return chunks

    def log_probs(self, tokens: NDArray[np.int64], first: int) -> NDArray[np.float64]:
        """Of all next tokens after the positions from `first` on, but for the last one: [positions, vocabulary]."""
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        self.batch.n_tokens = len(tokens)
        for k, token in enumerate(tokens):
            self.batch.token[k], self.batch.pos[k], self.batch.n_seq_id[k] = int(token), k, 1
            self.batch.seq_id[k][0], self.batch.logits[k] = 0, int(k >= first)
        assert self.lib.llama_decode(self.context, self.batch) == 0
        size = self.lib.llama_vocab_n_tokens(self.vocab)
        logits = np.ctypeslib.as_array(self.lib.llama_get_logits(self.context), (len(tokens) - first, size))[:-1]
        shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

    def close(self) -> None:
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--defaults", action="store_true")
    options = parser.parse_args()
    lib = library()
    reference = Model(lib, options.reference, options.context, options.threads, options.defaults)
    chunks = reference.chunks(options.text.read_bytes(), options.context, options.chunks)
    first = options.context // 2
    results = {}
    for path in options.files:
        model = Model(lib, path, options.context, options.threads, options.defaults)
        rows = []
        for tokens in chunks:
            ours, theirs = model.log_probs(tokens, first), reference.log_probs(tokens, first)
            at = (range(len(ours)), tokens[first + 1 :])
            divergence = (np.exp(theirs) * (theirs - ours)).sum(1)
            same = ours.argmax(1) == theirs.argmax(1)
            rows.append([-ours[at].mean(), -theirs[at].mean(), divergence.mean(), same.mean()])
        model.close()
        loss, other, divergence, same = np.mean(rows, 0)
        results[path] = {
            "perplexity": float(np.exp(loss)),
            "reference_perplexity": float(np.exp(other)),
            "divergence": float(divergence),
            "same_top": float(same),
            "per_chunk": np.array(rows, float).tolist(),
        }
    reference.close()
    print(json.dumps({"tokens": chunks.tolist(), "files": results}))


if __name__ == "__main__":
    main()
