#!/usr/bin/env python3
"""Lets a reader that is not ours load a quantised checkpoint and run it, in a process of its own (some of them patch
transformers when they are imported).

    python tests/formats_loader.py READER IDS.npy FOLDER...

IDS: int64 [sequences, tokens]. Each FOLDER.npy gets float32 log-probabilities of the next tokens, [sequences, tokens,
vocabulary], or with --losses only those of the tokens that came, [sequences, tokens - 1], negative. All on the CPU, in
float32 as far as the reader lets one; activations are not rounded, for it is the weights that are looked at.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


def with_torch(open_model: Callable[[str], Any]) -> Callable[[str, I64], Any]:
    def run(folder: str, ids: I64) -> Any:
        import torch

        model = open_model(folder).eval()
        with torch.no_grad():
            for row in ids:
                yield model(torch.from_numpy(row[None])).logits[0].float().numpy()

    return run


def pretrained(folder: str, **more: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    sees = "vision_config" in json.loads((Path(folder) / "config.json").read_text())
    classes: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    return classes.from_pretrained(folder, dtype=torch.float32, **more)


def transformers(folder: str) -> Any:
    """Without any other package: what it can read by itself."""
    return pretrained(folder).float()


def compressed_tensors(folder: str) -> Any:
    import torch
    from compressed_tensors.quantization import disable_quantization

    model = pretrained(folder, device_map="cpu")
    model.hf_quantizer.compressor.decompress_model(model)
    model.apply(disable_quantization)
    return torch.nn.Module.float(model)


def compressed_tensors_at_once(folder: str) -> Any:
    """Decompressed while it is loaded: the way that takes zero points."""
    from transformers import CompressedTensorsConfig

    return pretrained(folder, quantization_config=CompressedTensorsConfig(dequantize=True)).float()


def auto_round(folder: str, **more: Any) -> Any:
    import auto_round as package  # noqa: F401 - it registers its reader with transformers
    import torch

    model = torch.nn.Module.float(pretrained(folder, device_map="cpu", **more))
    for module in model.modules():
        if hasattr(module, "qdq_input"):
            module.qdq_input = lambda values: values
    return model


def auto_round_gptq(folder: str) -> Any:
    """A GPTQ checkpoint through auto-round."""
    from transformers import AutoRoundConfig

    return auto_round(folder, quantization_config=AutoRoundConfig())


def gptqmodel(folder: str) -> Any:
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    import torch
    from gptqmodel import BACKEND, GPTQModel

    backend = BACKEND.TORCH_AWQ if "awq" in Path(folder).name else BACKEND.GPTQ_TORCH
    return GPTQModel.load(folder, backend=backend, device="cpu", dtype=torch.float16).model.float()


def mlx(folder: str, ids: I64) -> Any:
    import mlx.core as mx
    from mlx_lm import load

    mx.set_default_device(mx.cpu)
    model, _ = load(folder)
    model.set_dtype(mx.float32)
    for row in ids:
        yield np.array(model(mx.array(row[None].tolist())))[0]


READERS: dict[str, Callable[[str, I64], Any]] = {
    "transformers": with_torch(transformers),
    "compressed-tensors": with_torch(compressed_tensors),
    "compressed-tensors, dequantize": with_torch(compressed_tensors_at_once),
    "auto-round": with_torch(auto_round),
    "auto-round, GPTQ": with_torch(auto_round_gptq),
    "gptqmodel": with_torch(gptqmodel),
    "mlx-lm": mlx,
}


def log_probs(logits: F32) -> F32:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    found: F32 = (shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))).astype(np.float32)
    return found


def main() -> None:
    reader, given, *folders = (word for word in sys.argv[1:] if word != "--losses")
    ids = np.load(given)
    for folder in folders:
        found = []
        for row, logits in zip(ids, READERS[reader](folder, ids), strict=True):
            each = log_probs(np.asarray(logits, np.float32))
            found.append(-each[np.arange(len(row) - 1), row[1:]] if "--losses" in sys.argv else each)
        np.save(folder.rstrip("/") + ".npy", np.array(found))


if __name__ == "__main__":
    main()
