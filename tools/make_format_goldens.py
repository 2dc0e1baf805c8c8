"""Remake tests/formats/goldens/auto_round.json: what auto-round makes of a layer in each format and scheme.

    python tools/make_format_goldens.py

Run it in an environment with auto-round (0.16.1 made the file) and compressed-tensors; no GPU is needed. The model is
from tests/tiny_models.py, the rounding auto-round's plain one: no iterations, no search. Asymmetric integers come from
its model-free mode where that can make the format: otherwise it computes their scales in bfloat16.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = ROOT / "tests" / "formats" / "goldens" / "auto_round.json"
MODEL, LAYER = "wide", "model.layers.1.mlp.down_proj"
CASES = (
    ("auto_round", "W4A16"), ("auto_round", "W2A16G64"), ("auto_round", "W3A16"), ("auto_round", "W8A16"),
    ("auto_round", "W4A16-asym"), ("auto_round", "W2A16G64-asym"), ("auto_round", "MXFP4"), ("auto_round", "MXFP8"),
    ("auto_round", "NVFP4"), ("auto_round", "FP8_STATIC"), ("auto_round", "FP8_BLOCK"),
    ("auto_gptq", "W2A16G64"), ("auto_gptq", "W3A16"), ("auto_gptq", "W4A16"), ("auto_gptq", "W8A16"),
    ("auto_gptq", "W4A16-asym"), ("auto_awq", "W4A16"), ("auto_awq", "W4A16-asym"),
    ("llm_compressor", "W2A16G64"), ("llm_compressor", "W3A16"), ("llm_compressor", "W4A16"),
    ("llm_compressor", "W8A16"), ("llm_compressor", "W4A16-asym"), ("llm_compressor", "MXFP4"),
    ("llm_compressor", "MXFP8"), ("llm_compressor", "NVFP4"), ("llm_compressor", "FP8_STATIC"),
    ("llm_compressor", "FP8_BLOCK"), ("mlx", "W3A16"), ("mlx", "W4A16"), ("mlx", "W8A16"), ("mlx", "W4A16-asym"),
)  # fmt: skip


def export(model: Path, out: Path, name: str, of: str) -> None:
    import torch
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    seeded = torch.Generator().manual_seed(0)
    rounder = AutoRound(
        str(model),
        tokenizer=AutoTokenizer.from_pretrained(model),
        scheme=of.removesuffix("-asym"),
        dataset=[torch.randint(4, 320, (1, 32), generator=seeded) for _ in range(8)],
        iters=0, disable_opt_rtn=True, nsamples=8, seqlen=32, batch_size=4,
        enable_torch_compile=False, device_map="cpu",
        **({"sym": False} if of.endswith("-asym") else {}),
        **({} if (name, of[-5:]) == ("auto_round", "-asym") else {"disable_model_free": True}),
    )  # fmt: skip
    rounder.quantize_and_save(str(out), format=name)


def digests(folder: Path) -> dict[str, list[Any]]:
    """dtype, shape and SHA-256 of each tensor of the layer, by the end of its name; of FP4 also how often each code
    occurs."""
    from safetensors import deserialize

    found: dict[str, list[Any]] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        for name, entry in deserialize(path.read_bytes()):
            if name.startswith(LAYER + "."):
                data, suffix = bytes(entry["data"]), name.removeprefix(LAYER)
                found[suffix] = [entry["dtype"], entry["shape"], hashlib.sha256(data).hexdigest()]
                if (entry["dtype"], suffix) == ("U8", ".weight_packed"):
                    found[suffix].append(counts(data))
    return dict(sorted(found.items()))


def counts(data: bytes) -> list[int]:
    """How often each half byte occurs."""
    halves = [half for byte in data for half in (byte & 15, byte >> 4)]
    return [halves.count(code) for code in range(16)]


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    import auto_round

    import tiny_models

    found: dict[str, Any] = {"auto-round": auto_round.__version__, "model": MODEL, "layer": LAYER, "tensors": {}}
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)  # auto-round leaves files where it runs
        model = tiny_models.written(Path(scratch), MODEL)
        for name, of in CASES:
            export(model, Path(scratch) / f"{name}-{of}", name, of)
            found["tensors"][f"{name} {of}"] = digests(Path(scratch) / f"{name}-{of}")
    GOLDENS.parent.mkdir(exist_ok=True)
    GOLDENS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
