"""From what the user names (a directory, a hub id, a .gguf file) to a Checkpoint: headers and small files only."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from ggufround.checkpoint.gguf_source import open_gguf
from ggufround.checkpoint.hub import HUB_ID, download
from ggufround.checkpoint.json_file import read_json
from ggufround.checkpoint.members import CONFIG_LIMIT, PICKLES, member, pickled, shard_names, side_files
from ggufround.checkpoint.methods import method_of
from ggufround.checkpoint.modules import module_files, module_path
from ggufround.checkpoint.packings import pack_up
from ggufround.checkpoint.scales import attach_scales
from ggufround.checkpoint.shards import read_shard
from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.errors import InputError, UnsupportedError, UsageError


def open_checkpoint(model: str | Path, revision: str | None = None) -> Checkpoint:
    """What the headers of `model` say: a directory, a hub id ("org/name", at `revision`), or a .gguf file.

    Raises InputError for a model that is damaged, incomplete or hostile, UnsupportedError for one that is pickled
    or quantised by a method that cannot be read, UsageError for a revision of something that is not on the hub.
    """
    source, path = str(model), Path(os.path.abspath(model))
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"cannot look at {source}: {error}") from error
    if not exists and HUB_ID.fullmatch(source):
        return _open_directory(source, download(source, revision))
    if revision is not None:
        raise UsageError(f"a revision ({revision}) can only be chosen for a model on the hub, not for {source}")
    if not exists:
        raise InputError(f"{source}: no such directory or file, and not a hub id of the kind org/name")
    if path.is_dir():
        return _open_directory(source, path)
    if path.suffix == ".safetensors":
        raise InputError(f"{source} is one file of a checkpoint; give its directory, {path.parent}")
    if path.suffix in PICKLES:
        raise UnsupportedError(pickled(source))
    return open_gguf(source, path)


def _open_directory(source: str, root: Path) -> Checkpoint:
    try:
        names = set(os.listdir(root))
    except OSError as error:
        raise InputError(f"cannot list {root}: {error.strerror}") from error
    tensors = _tensors(root, names)
    files = side_files(root, names)
    for name in module_files(root, files):
        if (found := module_path(root, name)) is None:
            if module_path(root, name.replace("model.safetensors", "pytorch_model.bin")) is not None:
                continue  # a pickle, which an architecture that needs the layer refuses as missing
            raise InputError(f"{source}: modules.json needs {name}, which is not there; download it")
        if name.endswith(".json"):
            files[name] = found
        else:  # the weights of a dense layer, by their folder
            folder = name.rpartition("/")[0]
            tensors |= {f"{folder}.{n}": replace(ref, name=f"{folder}.{n}") for n, ref in read_shard(found).items()}
    if "config.json" not in files:
        raise InputError(f"{source} has weights but no config.json; download the model's small files too")
    config = read_json(files["config.json"], CONFIG_LIMIT, infinity=True)  # limits that are none
    method = method_of(config, source)
    packed = pack_up(tensors, method, source, _stored_bytes)
    return Checkpoint(source, root, attach_scales(packed, method.block, source), config, files)


def _stored_bytes(ref: TensorRef) -> bytes:
    try:
        with open(ref.path, "rb") as file:
            file.seek(ref.offset)
            return file.read(ref.nbytes)
    except OSError as error:
        raise InputError(f"cannot read tensor {ref.name} from {ref.path}: {error.strerror}") from error


def _tensors(root: Path, names: set[str]) -> dict[str, TensorRef]:
    """All tensors of all shards, by name."""
    shards, weight_map = shard_names(root, names)
    missing = [name for name in shards if not member(root, name).exists()]
    if missing:
        raise InputError(
            f"{root} needs {len(shards)} shards, but {len(missing)} are missing: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}; download them"
        )
    tensors: dict[str, TensorRef] = {}
    for shard in shards:
        found = read_shard(member(root, shard))
        for name in found:
            if name in tensors:
                raise InputError(f"tensor {name!r} is in {tensors[name].path.name} and in {shard}; which one is meant?")
            if weight_map and weight_map.get(name) != shard:
                told = f"places it in {weight_map[name]}" if name in weight_map else "does not mention it"
                raise InputError(f"{root / shard} holds tensor {name!r}, but the index {told}; download both again")
        tensors |= found
    for name, shard in weight_map.items():
        if name not in tensors:
            raise InputError(f"the index of {root} promises {name!r} in {shard}, which lacks it; download both again")
    if not tensors:
        raise InputError(f"{root} holds no tensor")
    return tensors
