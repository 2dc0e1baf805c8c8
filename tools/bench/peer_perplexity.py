#!/usr/bin/env python3
"""Prints, as JSON, the mean negative log-likelihood of each chunk of a text under a GGUF file, run by llama.cpp.

    peer_perplexity.py FILE.gguf TEXT --context 512 --chunks 40 --threads 2

As llama-perplexity does it: chunks follow one another, each starts with the BOS token where the model wants one, and
only the second half of a chunk counts. Runs in the peer's environment (llama-cpp-python), without ggufround.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

import llama_cpp


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean over rows. logits: float [n, vocabulary]; targets: int [n]."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(targets)), targets]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("text", type=Path)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    size = options.context
    llama = llama_cpp.Llama(
        options.file, n_ctx=size, n_batch=size, n_ubatch=size, logits_all=True, verbose=False,
        n_threads=options.threads, n_threads_batch=options.threads,
    )  # fmt: skip
    tokens = np.array(llama.tokenize(options.text.read_bytes(), add_bos=False))
    count = min(options.chunks, len(tokens) // size)
    begins = llama_cpp.llama_vocab_get_add_bos(llama_cpp.llama_model_get_vocab(llama.model))
    results = []
    for chunk in tokens[: count * size].reshape(count, size):
        given = np.r_[llama.token_bos(), chunk[1:]] if begins else chunk
        llama.reset()
        llama.eval(given.tolist())
        half = size // 2
        results.append(negative_log_likelihood(llama.scores[half : size - 1], chunk[half + 1 :]))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
