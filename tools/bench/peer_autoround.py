#!/usr/bin/env python3
"""Runs Intel's auto-round on a checkpoint with the first tokens of a text: the peer's side of tuning.py.

    peer_autoround.py MODEL FOLDER TEXT [--format gguf:q4_k_m] [--scheme W4A16] [--iters 50] [--samples 32]
                      [--seqlen 512] [--batch-size 8] [--seed 42] [--threads 2] [--alg-ext]

The sequences are those that ggufround and llama-imatrix cut from a text: one after the other, and where the tokenizer
puts a bos before a text, it takes the place of each sequence's first token. --iters 0 is auto-round's search without
tuning ("opt-rtn"). The last line on stdout says, as JSON, what was done; whoever starts this measures what it costs.

Runs in an environment of its own, without ggufround:
pip install torch==2.13.0 auto-round==0.16.1 transformers accelerate gguf sentencepiece
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from auto_round import AutoRound
from transformers import AutoTokenizer


def sequences(tokenizer: Any, text: str, samples: int, seqlen: int) -> torch.Tensor:
    """Token ids, int64 [sequences, seqlen], as many as the text gives."""
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
    begins = [tokenizer.bos_token_id] if tokenizer("a").input_ids[0] == tokenizer.bos_token_id else []
    ids = torch.cat([torch.tensor(begins, dtype=ids.dtype), ids])
    count = min(samples, len(ids) // seqlen)
    cut = ids[: count * seqlen].reshape(count, seqlen).clone()
    if begins:
        cut[:, 0] = begins[0]
    return cut


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", help="where auto-round writes what it makes")
    parser.add_argument("text", type=Path)
    parser.add_argument("--format", default="gguf:q4_k_m")
    parser.add_argument("--scheme")
    parser.add_argument("--iters", type=int, default=50)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--alg-ext", action="store_true", help="what auto-round calls enable_alg_ext")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    ids = sequences(tokenizer, options.text.read_text(), options.samples, options.seqlen)
    further: dict[str, Any] = {"scheme": options.scheme} if options.scheme else {}
    if options.alg_ext:
        further["enable_alg_ext"] = True
    tuner = AutoRound(
        options.model, tokenizer, iters=options.iters, dataset=[row[None] for row in ids], nsamples=len(ids),
        seqlen=options.seqlen, batch_size=options.batch_size, seed=options.seed, **further,
    )  # fmt: skip
    tuner.quantize_and_save(output_dir=options.folder, format=options.format)
    digest = hashlib.sha256(ids.to(torch.int32).numpy().tobytes()).hexdigest()
    print("\n" + json.dumps({"sequences": list(ids.shape), "tokens_sha256": digest}))


if __name__ == "__main__":
    main()
