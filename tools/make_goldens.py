"""Remake tests/arch/goldens: what llama.cpp's converter makes of the tiny checkpoints.

    python tools/make_goldens.py LLAMA_CPP_CHECKOUT [CASE...]

A composite model has a second golden, CASE.mmproj.json, for its projector, where the converter knows one.

Run it in an environment with what llama.cpp's converter needs (its requirements-convert_hf_to_gguf.txt). Tokenizers
are tested elsewhere: the converter's vocabulary step is left out here, since tiny ones have no known fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = ROOT / "tests" / "arch" / "goldens"


def convert(directory: Path, outtype: str, file: Path, mmproj: bool) -> None:
    """What convert_hf_to_gguf.py does, less the vocabulary; with `mmproj`, of the projector."""
    import conversion
    import torch
    from conversion.base import ModelBase, ModelType, get_model_architecture, gguf

    model_class = conversion.get_model_class(
        get_model_architecture(
            ModelBase.load_hparams(directory, False), ModelType.MMPROJ if mmproj else ModelType.TEXT
        ),
        mmproj=mmproj,
    )
    ftype = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16}[outtype]
    if hasattr(model_class, "lerp_weights"):
        model_class.lerp_weights = {}  # RWKV's outlives a conversion
    getattr(model_class, "module_paths", []).clear()  # EmbeddingGemma's list lives as long as its class
    with torch.inference_mode():
        model = model_class(directory, ftype, file, sentence_transformers_dense_modules=True)
        model.set_vocab = lambda: None
        model.write()


def read(file: Path) -> Any:
    from gguf import GGUFReader

    return GGUFReader(file)


def metadata(file: Path) -> dict[str, Any]:
    """Key: [kind, value], with the kind's name ("FLOAT32", "ARRAY:STRING"); float32 as the shortest double text."""
    fields = {}
    for key, field in read(file).fields.items():
        if not key.startswith("GGUF."):
            kinds = [kind.name for kind in field.types]
            value = field.contents()
            fields[key] = [":".join(kinds[:2]), float(str(np.float32(value))) if kinds == ["FLOAT32"] else value]
    return fields


def golden(case: Any, directory: Path, mmproj: bool = False) -> dict[str, Any]:
    import conversion

    import tiny_parts

    model = directory / case.name
    if isinstance(case.twin, tiny_parts.Tiny) and case.config["architectures"][0] not in conversion.TEXT_MODEL_MAP:
        case = case.twin  # a class that the converter does not know: the same weights as one that it knows
    tiny_parts.write(case, model)
    exact, half = directory / "f32.gguf", directory / "f16.gguf"
    convert(model, "f32", exact, mmproj)
    convert(model, "f16", half, mmproj)
    types = {tensor.name: tensor.tensor_type.name for tensor in read(half).tensors}
    tensors = {
        tensor.name: [
            types[tensor.name],
            tensor.shape.tolist()[::-1],
            hashlib.sha256(np.asarray(tensor.data, np.float32).tobytes()).hexdigest(),
        ]
        for tensor in read(exact).tensors
    }
    fields = metadata(exact)
    for key in ("general.file_type", "general.quantization_version"):
        fields.pop(key, None)  # GPT-NeoX and MPT have no file type
    return {"metadata": fields, "tensors": tensors}


def main() -> None:
    checkout, *names = sys.argv[1:]
    sys.path[:0] = [str(Path(checkout).resolve()), str(ROOT / "tests")]
    import torch
    import transformers

    from tiny_cases import MODULES  # not tiny_models: it needs what ggufround does

    cases = {
        case.name: case
        for module in MODULES
        for case in (*module.CASES, *getattr(module, "PROJECTORS", ()))
        if case.converts
    }
    made_with = {
        "command": "python tools/make_goldens.py LLAMA_CPP_CHECKOUT",
        "converter": hashlib.sha256((Path(checkout) / "conversion" / "base.py").read_bytes()).hexdigest()[:16],
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "tensors": "name: [type in an F16 file, shape (row-major), sha256 of the F32 data]",
    }
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for name in names or cases:
        case = cases[name]
        if case.arch is None:
            write(f"{name}.json", made_with, case, False)
        if case.mmproj:
            write(f"{name}.mmproj.json", made_with, case, True)


def write(file: str, made_with: dict[str, str], case: Any, mmproj: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        values = {"made_with": made_with} | golden(case, Path(directory), mmproj)
    lines = json.dumps(values, indent=1, ensure_ascii=False)
    for tensor in values["tensors"].values():
        lines = lines.replace(json.dumps(tensor, indent=1).replace("\n", "\n  "), json.dumps(tensor))
    (GOLDENS / file).write_text(lines + "\n")
    print(file, len(values["tensors"]), "tensors")


if __name__ == "__main__":
    main()
