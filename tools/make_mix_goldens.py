#!/usr/bin/env python3
"""Makes tests/quants/goldens/mixes.json from the type-selection figures in a llama.cpp checkout, and compares.

    make_mix_goldens.py LLAMA_CPP_CHECKOUT

llama.cpp (MIT) keeps, in tests/snapshots/*.schema, the types that its quantizer chooses for the tensors of twelve
models in each file type. Here these models are described by shape, their tensors are listed from that, and the figures
become counts and a digest for each model and file type. Every tensor that a figure names must be on our list. Prints
every disagreement with `assign`, and exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ggufround.quants.mixes import ModelFacts, TensorInfo, assign, mix, visiting_order

GOLDENS = Path(__file__).parents[1] / "tests/quants/goldens/mixes.json"
Row = tuple[str, Iterable[int] | None, int, int]  # stems, layers (None: outside), columns, matrices (1: not stacked)
ATTENTION, GLU, GLU_EXPERTS, GLU_SHARED = (
    "attn_q attn_k attn_v", "ffn_gate ffn_up", "ffn_gate_exps ffn_up_exps", "ffn_gate_shexp ffn_up_shexp",
)  # fmt: skip


def outside(width: int, tied: bool = False) -> list[Row]:
    return [("token_embd" if tied else "token_embd output", None, width, 1)]


def attention(layers: Iterable[int], width: int, inner: int) -> list[Row]:
    return [(ATTENTION, layers, width, 1), ("attn_output", layers, inner, 1)]


def dense(layers: Iterable[int], width: int, ff: int) -> list[Row]:
    return [(GLU, layers, width, 1), ("ffn_down", layers, ff, 1)]


def experts(layers: Iterable[int], width: int, ff: int, count: int, shared: int = 0) -> list[Row]:
    rows: list[Row] = [(GLU_EXPERTS, layers, width, count), ("ffn_down_exps", layers, ff, count)]
    return rows + ([(GLU_SHARED, layers, width, 1), ("ffn_down_shexp", layers, shared, 1)] if shared else [])


def hybrid(n: int, width: int, inner: int, linear: int, extra: str) -> list[Row]:
    """Qwen3-Next and later: attention in each fourth layer, a gated linear recurrence in the others."""
    full = range(3, n, 4)
    rest = [i for i in range(n) if i not in full]
    return [
        *attention(full, width, inner),
        (f"attn_qkv attn_gate {extra}", rest, width, 1), ("ssm_out", rest, linear, 1),
    ]  # fmt: skip


N_ATTENTION, N_FFN = (5, 12, 19, 26, 33, 42), (
    1, 3, 6, 8, 10, 13, 15, 17, 20, 22, 24, 27, 29, 31, 34, 36, 38, 40, 43, 45, 47, 49, 51,
)  # fmt: skip
N_SSM = [i for i in range(52) if i not in N_ATTENTION and i not in N_FFN]
MODELS: dict[str, tuple[ModelFacts, list[Row]]] = {
    "qwen3-0.6b": (
        ModelFacts("qwen3", 28, 16, 8),
        [*outside(1024), *attention(range(28), 1024, 2048), *dense(range(28), 1024, 3072)],
    ),
    "qwen3-14b": (
        ModelFacts("qwen3", 40, 40, 8),
        [*outside(5120), *attention(range(40), 5120, 5120), *dense(range(40), 5120, 17408)],
    ),
    "gemma-3-4b-it": (
        ModelFacts("gemma3", 34, 8, 4),
        [*outside(2560, tied=True), *attention(range(34), 2560, 2048), *dense(range(34), 2560, 10240)],
    ),
    "meta-llama-3.1-70b-instruct": (
        ModelFacts("llama", 80, 64, 8),
        [*outside(8192), *attention(range(80), 8192, 8192), *dense(range(80), 8192, 28672)],
    ),
    "gpt-oss-120b": (
        ModelFacts("gpt-oss", 36, 64, 8, 128),
        [*outside(2880), *attention(range(36), 2880, 4096), *experts(range(36), 2880, 2880, 128)],
    ),
    "glm-4.6v": (
        ModelFacts("glm4moe", 46, 96, 8, 128),
        [
            *outside(4096), *attention(range(46), 4096, 12288), *dense(range(1), 4096, 10944),
            *experts(range(1, 46), 4096, 1408, 128, 1408),
        ],
    ),
    "step-3.5-flash": (
        ModelFacts("step35", 45, 64, 8, 288),
        [
            *outside(4096), *attention(range(45), 4096, 8192), ("attn_gate", range(45), 4096, 1),
            *dense(range(3), 4096, 11264), *experts(range(3, 45), 4096, 1280, 288, 1280),
        ],
    ),
    "deepseek-v3.1": (
        ModelFacts("deepseek2", 61, 128, 1, 256),
        [
            *outside(7168), ("attn_q_a attn_kv_a_mqa", range(61), 7168, 1), ("attn_q_b", range(61), 1536, 1),
            ("attn_k_b", range(61), 128, 128), ("attn_v_b", range(61), 512, 128), ("attn_output", range(61), 16384, 1),
            *dense(range(3), 7168, 18432), *experts(range(3, 61), 7168, 2048, 256, 2048),
        ],
    ),
    "nvidia-nemotron-3-nano-30b-a3b": (
        ModelFacts("nemotron_h_moe", 52, 32, 0, 128),
        [
            *outside(2688), *attention(N_ATTENTION, 2688, 4096),
            ("ssm_in", N_SSM, 2688, 1), ("ssm_out", N_SSM, 4096, 1),
            ("ffn_up_exps", N_FFN, 2688, 128), ("ffn_down_exps", N_FFN, 1856, 128),
            ("ffn_up_shexp", N_FFN, 2688, 1), ("ffn_down_shexp", N_FFN, 3712, 1),
        ],
    ),
    "qwen3-coder-next": (
        ModelFacts("qwen3next", 48, 16, 2, 512),
        [
            *outside(2048), *hybrid(48, 2048, 4096, 4096, "ssm_ba"),
            *experts(range(48), 2048, 512, 512, 512),
        ],
    ),
    "qwen3.5-397b-a17b": (
        ModelFacts("qwen35moe", 60, 32, 2, 512),
        [
            *outside(4096), *hybrid(60, 4096, 8192, 8192, "ssm_alpha ssm_beta"),
            *experts(range(60), 4096, 1024, 512, 1024),
        ],
    ),
    "qwen3.6-27b": (
        ModelFacts("qwen35", 64, 24, 4),
        [*outside(5120), *hybrid(64, 5120, 6144, 6144, "ssm_alpha ssm_beta"), *dense(range(64), 5120, 17408)],
    ),
}  # fmt: skip


def tensors_of(rows: Iterable[Row]) -> dict[str, TensorInfo]:
    tensors = {}
    for stems, layers, columns, matrices in rows:
        for stem in stems.split():
            for prefix in [""] if layers is None else [f"blk.{i}." for i in layers]:
                name = f"{prefix}{stem}.weight"
                tensors[name] = TensorInfo(name, (256, columns) if matrices == 1 else (matrices, 256, columns), "BF16")
    return tensors


def spans(layers: Iterable[int] | None) -> str | None:
    """0, 1, 2, 5 as "0-2,5"."""
    if layers is None:
        return None
    runs: list[list[int]] = []
    for i in layers:
        if runs and runs[-1][1] == i - 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def figures(schema: Path, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The type of every tensor in each file type, from llama.cpp's file: its default, but where a line says else."""
    result: dict[str, dict[str, str]] = {}
    for line in schema.read_text().splitlines():
        if section := re.fullmatch(r"\[(\w+)\] (\w+)", line):
            types = result[section[1]] = dict.fromkeys(names, section[2].upper())
        elif line and not line.startswith("#"):
            name, kind = line.split()
            if name not in types:
                sys.exit(f"{schema.name}: {name} is not on the list in MODELS")
            types[name] = kind.upper()
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a llama.cpp source tree")
    folder = parser.parse_args().checkout / "tests/snapshots"
    unknown = {path.stem for path in folder.glob("*.schema")} ^ MODELS.keys()
    if unknown:
        sys.exit(f"described here or found in {folder}, but not both: {', '.join(sorted(unknown))}")
    goldens: dict[str, Any] = {}
    decisions = mismatches = 0
    for model, (facts, rows) in MODELS.items():
        tensors = tensors_of(rows)
        goldens[model] = {
            "facts": [facts.arch, facts.n_layer, facts.n_head, facts.n_head_kv, facts.n_expert],
            "tensors": [[stems, spans(layers), columns, matrices] for stems, layers, columns, matrices in rows],
            "mixes": {},
        }
        for name, theirs in figures(folder / f"{model}.schema", tensors).items():
            ours = assign(mix(name), list(tensors.values()), facts)
            for tensor, choice in zip(tensors, ours, strict=True):
                decisions += 1
                if choice.type != theirs[tensor]:
                    mismatches += 1
                    print(f"{model} {name} {tensor}: llama.cpp {theirs[tensor]}, ggufround {choice.type}")
            lines = "".join(f"{tensor} {theirs[tensor]}\n" for tensor in visiting_order(theirs))
            digest = hashlib.sha256(lines.encode()).hexdigest()[:16]
            goldens[model]["mixes"][name] = [digest, dict(Counter(theirs[t] for t in visiting_order(theirs)))]
    text = json.dumps(goldens, indent=1)
    GOLDENS.parent.mkdir(parents=True, exist_ok=True)
    GOLDENS.write_text(re.sub(r"\n {4,}|\n {3,}(?=[\]}])", " ", text) + "\n")  # one line a row
    print(f"{len(goldens)} models, {decisions} decisions, {mismatches} mismatches; {GOLDENS}")
    return mismatches > 0


if __name__ == "__main__":
    sys.exit(main())
