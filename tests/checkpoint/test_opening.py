"""From a directory, a hub id or a .gguf file to a Checkpoint; and what is refused, by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggufround.checkpoint import open_checkpoint
from ggufround.errors import InputError, UnsupportedError, UsageError
from ggufround.gguf_file import Field, Kind, TensorInfo, encode_header, string, u32
from tiny import write_checkpoint

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 8}
TENSORS = {
    "model.embed_tokens.weight": np.arange(32, dtype=np.float32).reshape(4, 8),
    "model.norm.weight": np.ones(8, np.float32),
    "lm_head.weight": np.zeros((4, 8), np.float32),
}
INDEX = "model.safetensors.index.json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", TENSORS, CONFIG)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "sharded", TENSORS, CONFIG, shards=3)


def change_index(folder: Path, **entries: Any) -> None:
    """Sets entries of the index's weight_map; None removes one."""
    path = folder / INDEX
    index = json.loads(path.read_text())
    weight_map = index["weight_map"] | {k.replace("__", "."): v for k, v in entries.items()}
    path.write_text(json.dumps({"weight_map": {k: v for k, v in weight_map.items() if v is not None}}))


def test_one_file_is_opened(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    (model / "chat_template.jinja").write_text("x")
    (model / "training_args.bin").write_bytes(b"\x80\x04")
    found = open_checkpoint(str(model))
    assert found.config == CONFIG
    assert found.tensors.keys() == TENSORS.keys()
    assert found.files.keys() == {"config.json", "tokenizer.json", "chat_template.jinja"}
    assert found.root == model
    assert not found.is_gguf
    ref = found.tensors["model.embed_tokens.weight"]
    assert (ref.dtype, ref.shape, ref.nbytes, ref.rows, ref.columns) == ("BF16", (4, 8), 64, 4, 8)
    assert ref.path.read_bytes()[ref.offset : ref.offset + 4] == b"\x00\x00\x80\x3f"


def test_shards_are_opened_through_their_index(sharded: Path) -> None:
    found = open_checkpoint(sharded)
    assert found.tensors.keys() == TENSORS.keys()
    assert len({t.path for t in found.tensors.values()}) == 3


def test_numbered_shards_without_an_index_are_one_set(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    assert open_checkpoint(sharded).tensors.keys() == TENSORS.keys()
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match="model-00002-of-00003"):
        open_checkpoint(sharded)


def test_a_single_file_of_any_name_is_the_model(model: Path) -> None:
    (model / "model.safetensors").rename(model / "weights.safetensors")
    assert open_checkpoint(model).tensors.keys() == TENSORS.keys()
    (model / "other.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="not clear which"):
        open_checkpoint(model)


def test_the_consolidated_copy_beside_the_model_is_ignored(model: Path, sharded: Path) -> None:
    for folder in (model, sharded):
        (folder / "consolidated.safetensors").write_bytes(b"")
        assert open_checkpoint(folder).tensors.keys() == TENSORS.keys()


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match="model-00003-of-00003"):
        open_checkpoint(sharded)


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    path = sharded / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="model-00002-of-00003.*truncated"):
        open_checkpoint(sharded)


OUTSIDE = ["../model/model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b.safetensors", "a\0", 7, None]


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_that_leads_out_of_the_directory_is_refused(model: Path, sharded: Path, name: Any) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = name
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match="refused as hostile|not a .safetensors file"):
        open_checkpoint(sharded)


def test_a_shard_that_is_a_link_to_elsewhere_is_refused(model: Path, sharded: Path) -> None:
    path = sharded / "model-00003-of-00003.safetensors"
    path.rename(model / "elsewhere.safetensors")
    path.symlink_to(model / "elsewhere.safetensors")
    with pytest.raises(InputError, match="symbolic link"):
        open_checkpoint(sharded)
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(InputError, match="symbolic link|missing"):
        open_checkpoint(sharded)


def test_links_to_the_blobs_of_the_hub_cache_are_allowed(model: Path, tmp_path: Path) -> None:
    snapshot = hub_snapshot(model, tmp_path)
    assert open_checkpoint(snapshot).tensors.keys() == TENSORS.keys()


def hub_snapshot(model: Path, cache: Path) -> Path:
    """The model as the hub's cache stores it: links to blobs."""
    blobs, snapshot = cache / "models--org--name" / "blobs", cache / "models--org--name" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(model.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    return snapshot


def test_an_index_must_agree_with_its_shards(sharded: Path) -> None:
    good = (sharded / INDEX).read_text()
    change_index(sharded, lm_head__weight="model-00001-of-00003.safetensors", extra="model-00003-of-00003.safetensors")
    with pytest.raises(InputError, match="lm_head.weight.*places it in model-00001"):
        open_checkpoint(sharded)
    (sharded / INDEX).write_text(good)
    change_index(sharded, extra="model-00001-of-00003.safetensors")
    with pytest.raises(InputError, match="'extra' in model-00001"):
        open_checkpoint(sharded)
    (sharded / INDEX).write_text(good)
    change_index(sharded, model__norm__weight=None, extra="model-00002-of-00003.safetensors")
    with pytest.raises(InputError, match="does not mention it"):
        open_checkpoint(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    first = (sharded / "model-00001-of-00003.safetensors").read_bytes()
    (sharded / "model-00002-of-00003.safetensors").write_bytes(first)
    with pytest.raises(InputError, match="which one is meant"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_without_a_weight_map_is_refused(sharded: Path, weight_map: Any) -> None:
    (sharded / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match="weight_map"):
        open_checkpoint(sharded)


def test_pickles_are_refused_with_the_reason(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(UnsupportedError, match="pickle, which can run any program"):
        open_checkpoint(model)
    with pytest.raises(UnsupportedError, match="pickle"):
        open_checkpoint(model / "pytorch_model.bin")


def test_other_directories_are_refused_with_a_hint(model: Path, tmp_path: Path) -> None:
    weights = model / "model.safetensors"
    weights.rename(model / "adapter_model.safetensors")
    with pytest.raises(UnsupportedError, match="adapter"):
        open_checkpoint(model)
    (model / "adapter_model.safetensors").rename(model / "x.gguf")
    with pytest.raises(InputError, match="give one of them"):
        open_checkpoint(model)
    (model / "x.gguf").unlink()
    with pytest.raises(InputError, match="is it a model"):
        open_checkpoint(model)
    with pytest.raises(InputError, match="no such directory"):
        open_checkpoint(tmp_path / "nothing")
    with pytest.raises(InputError, match="cannot look at|no such"):
        open_checkpoint("x" * 10_000)


def test_a_safetensors_file_is_refused_in_favour_of_its_directory(model: Path) -> None:
    with pytest.raises(InputError, match="give its directory"):
        open_checkpoint(model / "model.safetensors")


def test_weights_without_a_config_are_refused(model: Path) -> None:
    (model / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        open_checkpoint(model)


def test_a_config_or_side_file_that_is_not_a_file_or_too_large_is_refused(model: Path) -> None:
    os.mkfifo(model / "tokenizer.json")
    with pytest.raises(InputError, match=r"tokenizer\.json is not a regular file"):
        open_checkpoint(model)
    (model / "tokenizer.json").unlink()
    (model / "README.md").write_bytes(b"")
    os.truncate(model / "README.md", 1 << 30)
    assert "README.md" not in open_checkpoint(model).files
    os.truncate(model / "config.json", 1 << 30)
    with pytest.raises(InputError, match=r"config\.json has 1073741824 bytes"):
        open_checkpoint(model)


def test_a_revision_of_a_local_model_is_a_usage_error(model: Path) -> None:
    with pytest.raises(UsageError, match="revision"):
        open_checkpoint(model, revision="main")


# --- .gguf as a source ---------------------------------------------------------------------------------------------


def write_gguf(path: Path, metadata: dict[str, Field], names: tuple[str, ...]) -> Path:
    """Tensors [2, 32] in Q8_0, 68 bytes each."""
    infos = [TensorInfo(name, (2, 32), 8, 96 * k) for k, name in enumerate(names)]
    path.write_bytes(encode_header(metadata, infos).data + bytes(96 * len(names)))
    return path


def split(number: int, count: int = 2, total: int = 3) -> dict[str, Field]:
    return {
        "split.no": Field(Kind.U16, number),
        "split.count": Field(Kind.U16, count),
        "split.tensors.count": Field(Kind.I32, total),
    }


LLAMA = {"general.architecture": string("llama"), "llama.block_count": u32(1)}


def test_a_gguf_file_is_opened(tmp_path: Path) -> None:
    found = open_checkpoint(write_gguf(tmp_path / "m.gguf", LLAMA, ("a", "b")))
    assert found.is_gguf
    assert found.config == {}
    assert dict(found.metadata) == LLAMA
    assert [(t.name, t.dtype, t.shape, t.nbytes) for t in found.tensors.values()] == [
        ("a", "Q8_0", (2, 32), 68),
        ("b", "Q8_0", (2, 32), 68),
    ]


def test_a_split_gguf_is_opened_whole_from_any_of_its_files(tmp_path: Path) -> None:
    first = write_gguf(tmp_path / "m-00001-of-00002.gguf", LLAMA | split(0), ("a",))
    second = write_gguf(tmp_path / "m-00002-of-00002.gguf", split(1), ("b", "c"))
    for path in (first, second):
        found = open_checkpoint(path)
        assert [(n, t.path) for n, t in found.tensors.items()] == [("a", first), ("b", second), ("c", second)]
        assert found.metadata["general.architecture"] == string("llama")
    second.unlink()
    with pytest.raises(InputError, match=r"m-00002-of-00002\.gguf is missing"):
        open_checkpoint(first)


def test_a_split_that_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    first = write_gguf(tmp_path / "m-00001-of-00002.gguf", LLAMA | split(0), ("a",))
    for keys, names, word in (
        (split(0), ("b", "c"), "another split"),
        (split(1, count=3), ("b", "c"), "another split"),
        (split(1), ("a", "c"), "tensor 'a' is in"),
        (split(1), ("b",), "promises 3 tensors and holds 2"),
    ):
        write_gguf(tmp_path / "m-00002-of-00002.gguf", keys, names)
        with pytest.raises(InputError, match=word):
            open_checkpoint(first)
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(InputError, match="its name"):
        open_checkpoint(tmp_path / "renamed.gguf")


def test_a_gguf_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tensor"):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", LLAMA, ()))


def write_nvfp4(path: Path, scale: tuple[int, ...]) -> Path:
    """A stack of two NVFP4 matrices [4, 64] with its global scale, and an unrelated .scale."""
    infos = [
        TensorInfo("blk.0.up.weight", (2, 4, 64), 40, 0),
        TensorInfo("blk.0.up.scale", scale, 0, 288),
        TensorInfo("blk.0.up.input_scale", (1,), 0, 320),
        TensorInfo("blk.0.router.weight", (2, 64), 0, 352),
        TensorInfo("blk.0.router.scale", (64,), 0, 864),
    ]
    path.write_bytes(encode_header(LLAMA, infos).data + bytes(864 + 256))
    return path


@pytest.mark.parametrize(("scale", "block"), [((1,), (0, 0)), ((2,), (4, 0))])
def test_the_global_scale_of_an_nvfp4_gguf_is_part_of_its_weight(
    tmp_path: Path, scale: tuple[int, ...], block: tuple[int, int]
) -> None:
    found = open_checkpoint(write_nvfp4(tmp_path / "m.gguf", scale))
    assert found.tensors.keys() == {"blk.0.up.weight", "blk.0.router.weight", "blk.0.router.scale"}
    ref = found.tensors["blk.0.up.weight"]
    assert ref.scale is not None
    assert (ref.scale.name, ref.scale_block) == ("blk.0.up.scale", block)


def test_a_global_scale_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"blk.0.up.scale must hold 2"):
        open_checkpoint(write_nvfp4(tmp_path / "m.gguf", (3,)))


# --- damage ----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from([INDEX, "config.json", "model-00002-of-00003.safetensors"]),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_a_damaged_model_is_opened_or_refused_but_nothing_else(
    sharded: Path, name: str, flips: list[tuple[int, int]]
) -> None:
    path = sharded / name
    good = path.read_bytes()
    data = bytearray(good)
    for position, value in flips:
        data[position % len(data)] = value
    path.write_bytes(data)
    try:
        open_checkpoint(sharded)
    except InputError:
        pass
    finally:
        path.write_bytes(good)
    assert open_checkpoint(sharded).tensors.keys() == TENSORS.keys()


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ('{"a": 1}', "not a list"),
        ("[1]", "not a list"),
        ("[" + ",".join(["{}"] * 99) + "]", "at most 16 modules"),
        ('[{"type": "x.Pooling"}]', "no path"),
        ('[{"type": "x.Pooling", "path": "../1_Pooling"}]', "hostile"),
        ('[{"type": "x.Pooling", "path": ""}]', "hostile"),
        ('[{"type": "x.Pooling", "path": "1_Pooling"}]', "1_Pooling/config.json, which is not there"),
        ("[", "not sound JSON"),
    ],
)
def test_a_list_of_modules_that_is_damaged_or_leads_out_is_refused(listed: str, message: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", {"a": np.ones((2, 4), np.float32)}, {"x": 1})
    write_checkpoint(tmp_path / "1_Pooling", {}, {"pooling_mode": "mean"})
    (tmp_path / "m" / "modules.json").write_text(listed)
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path / "m")


def test_a_dense_module_that_is_a_pickle_is_passed_over(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"a": np.ones((2, 4), np.float32)}, {"x": 1})
    write_checkpoint(tmp_path / "2_Dense", {}, {"in_features": 4})
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    (tmp_path / "2_Dense" / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "modules.json").write_text('[{"type": "x.Dense", "path": "2_Dense"}]')
    assert open_checkpoint(tmp_path).tensors.keys() == {"a"}
