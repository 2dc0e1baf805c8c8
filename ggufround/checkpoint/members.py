"""Which files of a model's directory are read, and that none of them lies elsewhere.

No name inside a model leads out of its directory: shard names are base names, and a symbolic link may point only to
the directory itself or to the blobs of the hub's cache, which is how the cache lays out its snapshots.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ggufround.checkpoint.json_file import read_json
from ggufround.errors import InputError, UnsupportedError

CONFIG_LIMIT = 16 << 20  # bytes
INDEX_LIMIT = 100 << 20
INDEX = ".safetensors.index.json"
NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
SIDE_FILES: dict[str, int] = {  # base name -> most bytes
    "config.json": CONFIG_LIMIT,
    "generation_config.json": CONFIG_LIMIT,
    "tokenizer.json": 256 << 20,
    "tokenizer.model": 64 << 20,
    "tokenizer.model.v3": 64 << 20,
    "tekken.json": 256 << 20,
    "tiktoken.model": 64 << 20,
    "spiece.model": 64 << 20,
    "sentencepiece.bpe.model": 64 << 20,
    "tokenizer_config.json": 64 << 20,
    "special_tokens_map.json": CONFIG_LIMIT,
    "added_tokens.json": 64 << 20,
    "vocab.json": 64 << 20,
    "vocab.txt": 64 << 20,
    "merges.txt": 64 << 20,
    "rwkv_vocab_v20230424.txt": 16 << 20,
    "chat_template.jinja": CONFIG_LIMIT,
    "chat_template.json": CONFIG_LIMIT,
    "preprocessor_config.json": CONFIG_LIMIT,
    "processor_config.json": CONFIG_LIMIT,
    "video_preprocessor_config.json": CONFIG_LIMIT,
    "modules.json": CONFIG_LIMIT,
    "README.md": CONFIG_LIMIT,
}


def member(root: Path, name: str) -> Path:
    """The path of a file of the model. Raises InputError if the name or a symbolic link leads out of `root`."""
    if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
        raise InputError(f"{root}: {name!r:.200} is not the plain name of a file in this directory; refused as hostile")
    path = root / name
    try:
        found = path.resolve()
        inside = found.parent == root.resolve() or _is_hub_blob(found)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} is a symbolic link that leads nowhere") from error
    if not inside:
        raise InputError(
            f"{path} is a symbolic link to {found}, outside the model's directory; refused. "
            f"If that is meant, copy the file or give the directory that holds all of them"
        )
    return path


def _is_hub_blob(path: Path) -> bool:
    return path.parent.name == "blobs" and path.parent.parent.name.startswith("models--")


def side_files(root: Path, names: Collection[str]) -> dict[str, Path]:
    """The small files that exist, by base name. Raises InputError for one that is too large or leads elsewhere."""
    files = {}
    for name, limit in SIDE_FILES.items():
        if name not in names:
            continue
        path = member(root, name)
        if not path.is_file():
            raise InputError(f"{path} is not a regular file")
        size = path.stat().st_size
        if size <= limit:
            files[name] = path
        elif name != "README.md":
            raise InputError(f"{path} has {size} bytes; at most {limit} are allowed for such a file")
    return files


def shard_names(root: Path, names: Collection[str]) -> tuple[list[str], Mapping[str, str]]:
    """Base names of the shards among `names` and, where there is an index, the shard that it gives each tensor.

    Only the index is read. Raises InputError where it is not clear which files make up the model.
    """
    if "model.safetensors" in names:
        return ["model.safetensors"], {}
    indexes = sorted(n for n in names if n.endswith(INDEX) and "/" not in n)
    if "model" + INDEX in indexes:
        indexes = ["model" + INDEX]
    if len(indexes) > 1:
        raise InputError(f"{root} has several indexes ({', '.join(indexes)}); leave only the one that is meant")
    if not indexes:
        return _unindexed(root, names), {}
    weight_map: Any = read_json(member(root, indexes[0]), INDEX_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{root / indexes[0]} has no weight_map; download it again")
    shards = sorted({str(shard) for shard in weight_map.values()})
    for shard in shards:
        member(root, shard)
        if not shard.endswith(".safetensors"):
            raise InputError(f"{root / indexes[0]} names {shard!r:.200}, which is not a .safetensors file")
    return shards, weight_map


def _unindexed(root: Path, names: Collection[str]) -> list[str]:
    found = sorted(n for n in names if n.endswith(".safetensors") and "/" not in n)
    if found == ["adapter_model.safetensors"]:
        raise UnsupportedError(f"{root} holds an adapter (LoRA), not a model; merge it into its base model first")
    if not found:
        raise _no_weights(root, names)
    sets = {NUMBERED.sub(r"\1-NUMBER-of-\3", name) for name in found}
    if len(sets) > 1:
        raise InputError(
            f"{root} has neither model.safetensors nor an index, and it is not clear which of its files "
            f"({', '.join(found[:4])}, ...) make up the model; add the model's .safetensors.index.json"
        )
    numbered = NUMBERED.fullmatch(found[0])
    if numbered is None:
        return found
    prefix, count = numbered[1], int(numbered[3])
    return [f"{prefix}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _no_weights(root: Path, names: Collection[str]) -> InputError:
    if any(n.endswith(".gguf") for n in names):
        return InputError(f"{root} holds GGUF files; give one of them instead of the directory")
    pickles = sorted(n for n in names if n.endswith(PICKLES))
    if pickles:
        return UnsupportedError(pickled(str(root / pickles[0])))
    return InputError(f"{root} holds no .safetensors file; is it a model?")


def pickled(what: str) -> str:
    """Why a pickle is refused."""
    return (
        f"{what} is a pickle, which can run any program when it is opened; refused. "
        f"Save the model as safetensors (save_pretrained of transformers does), or take the hub's safetensors version"
    )
