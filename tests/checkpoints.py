"""Quantised checkpoints in tests: made, read with the safetensors library, and understood as their readers do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import deserialize

from ggufround import Report, Run, convert
from ggufround.layer_planning import CheckpointOptions
from ggufround.quants.schemes import Scheme, scheme
from ggufround.recipes import Recipe
from reference_stores import Tensors, values

F32 = NDArray[np.float32]
Config = dict[str, Any]  # quantization_config
Names = Collection[str]  # of all tensors
NUMPY = {
    "I32": np.int32, "U32": np.uint32, "F16": np.float16, "F32": np.float32, "I64": np.int64, "U8": np.uint8,
    "F8_E4M3": np.uint8, "BF16": np.uint16,
}  # fmt: skip


class Read(NamedTuple):
    """How a reader understands a layer."""

    bits: int
    group: int
    symmetric: bool


def options(
    formats: str = "auto_round",
    of: str = "W4A16G32",
    recipe: str | Recipe = "rtn",
    layers: Mapping[str, str | None] | None = None,
    head: bool = False,
) -> CheckpointOptions:
    """`layers`: patterns, each with the name of a scheme or None."""
    given = tuple((pattern, None if s is None else scheme(s)) for pattern, s in (layers or {}).items())
    return CheckpointOptions(scheme(of), tuple(formats.split(",")), recipe, given, head)


def make(model: Path, out: Path, chosen: CheckpointOptions, run: Run | None = None, **more: Any) -> Report:
    out.parent.mkdir(exist_ok=True)
    return convert(model, out, options=chosen, run=run or Run(threads=1), **more)


def contents(folder: Path) -> dict[str, bytes]:
    """All files by their names."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tensors(folder: Path) -> Tensors:
    """All tensors; BF16 and FP8 as their bits. The library refuses files that are not as they should be."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in deserialize(path.read_bytes()):
            assert name not in found, name
            found[name] = np.frombuffer(entry["data"], NUMPY[entry["dtype"]]).reshape(entry["shape"])
    return found


def dtypes(path: Path) -> dict[str, str]:
    """safetensors' name of each tensor's dtype in one file."""
    return {name: entry["dtype"] for name, entry in deserialize(path.read_bytes())}


def widened(bits: NDArray[np.uint16]) -> F32:
    """BF16 as float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


# --- who reads a layer how -------------------------------------------------------------------------------------------


def _auto_round(config: Config, module: str, _: Names) -> Read | None:
    """auto-round's get_layer_config: layers of blocks, and those that are named; tiles of FP8 are transformers'."""
    if config["quant_method"] == "fp8":
        kept = any(module == name or module.startswith(f"{name}.") for name in config["modules_to_not_convert"])
        return None if kept else Read(8, config["weight_block_size"][1], True)
    named = config.get("extra_config", {}).get(module)
    if named is None and not module.startswith(config["block_name_to_quantize"] + "."):
        return None
    merged = {**config, **(named or {})}
    return None if merged["bits"] == 16 else Read(merged["bits"], merged["group_size"], merged["sym"])


def _auto_gptq(config: Config, module: str, _: Names) -> Read | None:
    """GPTQModel's dynamic_get: patterns that must not, or must, match from the beginning."""
    merged = config
    for pattern, override in config.get("dynamic", {}).items():
        kind, _, expression = pattern.partition(":")
        if re.match(expression, module):
            if kind == "-":
                return None
            merged = {**config, **override}
    if module == "lm_head" and not config["lm_head"]:
        return None
    return Read(merged["bits"], merged["group_size"], merged["sym"])


def _auto_awq(config: Config, module: str, _: Names) -> Read | None:
    """AutoAWQ and vLLM: what is in the list is found anywhere in a name."""
    if any(kept in module for kept in config["modules_to_not_convert"]):
        return None
    return Read(config["bits"], config["group_size"], not config["zero_point"])


def _llm_compressor(config: Config, module: str, _: Names) -> Read | None:
    """compressed-tensors: a group that names the layer before one that names its class."""
    if module in config["ignore"]:
        return None
    groups = config["config_groups"].values()
    named = [g for g in groups if module in g["targets"]] or [g for g in groups if "Linear" in g["targets"]]
    weights = named[0]["weights"]
    group = weights.get("block_structure", [1, weights["group_size"]])[1]
    return Read(weights["num_bits"], group or -1, weights["symmetric"])


def _mlx(config: Config, module: str, names: Names) -> Read | None:
    """mlx-lm's class_predicate: what is named, else what has scales; it has no symmetric ones."""
    given = config.get(module, config if f"{module}.scales" in names else False)
    return None if given is False else Read(given["bits"], given["group_size"], False)


READERS: dict[str, Callable[[Config, str, Names], Read | None]] = {
    "auto_round": _auto_round,
    "auto_gptq": _auto_gptq,
    "auto_awq": _auto_awq,
    "llm_compressor": _llm_compressor,
    "mlx": _mlx,
}


def read_layer(name: str, folder: Path, module: str) -> Read | None:
    """What the reader of format `name` takes a layer for; None: not quantised."""
    return READERS[name](config_of(folder)["quantization_config"], module, tensors(folder))


def weights_of(name: str, folder: Path, module: str) -> F32 | None:
    """The weights of a layer as its reader computes them; None where the reader does not look for quantised ones."""
    found, config = tensors(folder), config_of(folder)["quantization_config"]
    how = READERS[name](config, module, found)
    if how is None:
        return None
    parts = {key.removeprefix(module): value for key, value in found.items() if key.startswith(module + ".")}
    kind = config.get("packing_format", config.get("checkpoint_format"))
    return values(name, parts, how.bits, lowered=kind in ("auto_round:auto_gptq", "gptq"))


# --- what they should be ---------------------------------------------------------------------------------------------

FUSED = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj", "w3": "w1"}


def expected(source: Mapping[str, F32], module: str, chosen: Scheme, recipe: str = "rtn") -> F32:
    """The weights of a layer after the search of its type; NVFP4's share a global scale with those fused to them."""
    x = source[f"{module}.weight"]
    kind = chosen.type_for(x.shape[1])
    assert kind.codec is not None
    if kind.name != "NVFP4":
        return kind.codec.dequantise(kind.codec.search(x, None, recipe))  # type: ignore[arg-type]
    prefix, _, last = module.rpartition(".")
    first = FUSED.get(last, last)
    group = [first, *(k for k, v in FUSED.items() if v == first)]
    largest = max(np.abs(source[n]).max() for n in (f"{prefix}.{k}.weight" for k in group) if n in source)
    scale = np.float32(largest) / np.float32(6 * 448)
    return kind.codec.dequantise(kind.codec.search(x / scale, None, recipe)) * scale  # type: ignore[arg-type]
