"""How vectors of tokens become one of a text: what sentence-transformers says beside the model.

The pooling's mode and the sizes of dense layers are laid over config.json, so that the readers of keys see them
(`_try_set_pooling_type` of llama.cpp's conversion/base.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ggufround.arch.config import integer, shown, wrong
from ggufround.arch.spec import Config, Drop
from ggufround.checkpoint.json_file import read_json
from ggufround.checkpoint.members import CONFIG_LIMIT
from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import UnsupportedError
from ggufround.gguf_file import Field, u32

POOLING, DENSE = "sentence pooling", "sentence dense"
TYPES = {"mean": 1, "cls": 2, "lasttoken": 3}  # enum llama_pooling_type
OLD_KEYS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken"}
DROP = Drop("*_Dense.linear.*", "a dense layer behind the pooling, which llama.cpp does not run for this architecture")


def modules(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the files of the modules say, by the keys above; empty for a model without any."""
    found: dict[str, Any] = {}
    for name, path in checkpoint.files.items():
        folder = name.rpartition("/")[0]
        if not folder:
            continue
        config = read_json(path, CONFIG_LIMIT)
        if "in_features" in config:
            found.setdefault(DENSE, {})[folder] = config
        elif POOLING not in found:
            found[POOLING] = next(
                (mode for key, mode in OLD_KEYS.items() if config.get(key)), config.get("pooling_mode")
            )
    return found


def pooling_type(config: Config) -> Field | None:
    """Raises UnsupportedError for a pooling that llama.cpp has not."""
    if POOLING not in config:
        return None
    mode = config[POOLING]
    if mode not in TYPES:
        raise UnsupportedError(
            f"the pooling beside the model is {shown(mode)}; llama.cpp knows {', '.join(TYPES)}. Without modules.json "
            "the model is converted without a pooling"
        )
    return u32(TYPES[mode])


def classifier_pooling(config: Config) -> Field | None:
    """How vectors are pooled before a classifier."""
    mode = config.get("classifier_pooling")
    if mode is None:
        return None
    if mode not in ("cls", "mean"):
        raise wrong("classifier_pooling", mode, "cls or mean")
    return u32(TYPES[mode])


def dense_size(folder: str, key: str) -> Any:
    """Reads how many numbers a dense layer takes ("in_features") or makes ("out_features")."""

    def read(config: Config) -> Field | None:
        layer = config.get(DENSE, {}).get(folder)
        return None if layer is None else u32(integer(layer, key))

    return read


def dense_features(config: Config, number: int, key: str) -> int:
    return integer(config.get(DENSE, {}).get(f"{number}_Dense", {}), key)


def has_dense(config: Config, layer: int, number: int) -> bool:
    return f"{number}_Dense" in config.get(DENSE, {})


def linear(config: Config) -> None:
    """llama.cpp runs a dense layer as a matrix alone."""
    layers: Mapping[str, Mapping[str, Any]] = config.get(DENSE, {})
    for folder, layer in layers.items():
        act = layer.get("activation_function", "torch.nn.modules.linear.Identity")
        if layer.get("bias") or not str(act).endswith(".Identity"):
            raise UnsupportedError(
                f"{folder}: a dense layer with bias {layer.get('bias')} and the activation {shown(act)}; "
                "llama.cpp runs it as a matrix alone"
            )
