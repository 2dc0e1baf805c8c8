"""The tuned run: files of the same size with a lower loss, and clear refusals."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray

import tiny_models
from ggufround import Options, Run, convert
from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.gguf_source import open_gguf
from ggufround.checkpoint.reading import Reader
from ggufround.errors import InputError, UnsupportedError, UsageError, WeightError
from ggufround.gguf_read import read_gguf
from ggufround.planning import build
from ggufround.quants.imatrix_file import write_imatrix
from ggufround.quants.squares import lending
from ggufround.recipes import RECIPES
from tiny import write_checkpoint

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from ggufround.tune import driver  # noqa: E402
from ggufround.tune.activations import Activations  # noqa: E402
from ggufround.tune.blocks import Pair, fixed_columns, mean_loss  # noqa: E402
from ggufround.tune.calibration import load_calibration  # noqa: E402
from ggufround.tune.imatrix import collect_importance, matrices_of  # noqa: E402
from ggufround.tune.outputs import output_weights  # noqa: E402
from ggufround.tune.skeleton import Skeleton  # noqa: E402
from ggufround.tune.weights import source_weights  # noqa: E402
from tune.tuned_runs import CASES, LAYERS, SHORT, TEXTS, log_of, tensors_of, tune, written  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("in_float32")]
PAIRS = [
    ("llama", "q4_0"), ("wide", "q2_k"), ("mixtral", "iq4_nl"), ("gemma2", "mxfp4"), ("qwen3moe", "nvfp4"),
    ("phi3", "q4_1"), ("qwen3moe-stacked", "nvfp4"),
    ("qwen35", "q4_0"),  # its first block has a matrix whose columns are in another order
]  # fmt: skip
each_pair = pytest.mark.parametrize(("name", "kind"), PAIRS)


def measured_again(scene: Any, model: Path, file: Path, numbers: list[int]) -> float:
    """The loss of block 0 for the weights that the file holds, from the file alone."""
    plan, stored_file = build(model, Options(types=("f32",))), open_gguf(str(file), file)
    skeleton = Skeleton(plan.checkpoint)

    def rows(name: str, first: int, count: int) -> NDArray[np.float32]:
        out = np.empty((count, stored_file.tensors[name].columns), np.float32)
        packed.read_rows(stored_file.tensors[name], first, count, out, np.empty(0, np.uint8))
        return out

    with Reader(plan.checkpoint) as reader, Reader(stored_file) as packed, torch.no_grad():
        read, read_rows = source_weights(plan.checkpoint, reader)
        stored, stored_rows = output_weights(plan.outputs, rows)
        texts = load_calibration(TEXTS, plan.checkpoint, skeleton.vocab)
        ids = torch.from_numpy(np.concatenate([texts.ids, texts.held_out]).astype(np.int64))
        inputs, targets = (Activations((*ids.shape, skeleton.hidden)) for _ in range(2))
        inputs.put(range(len(ids)), skeleton.embed(ids, stored_rows))
        true = skeleton.load(0, read)
        targets.put(range(len(ids)), skeleton.run(0, true, skeleton.embed(ids, read_rows)))
        module = skeleton.load(0, stored)
        again = replace(scene, forward=lambda x: skeleton.run(0, module, x), sequences=Pair(inputs, targets))
        return mean_loss(again, numbers)


def weights_of(file: Path, name: str) -> NDArray[np.float32]:
    (tensor,) = (t for t in GGUFReader(file).tensors if t.name == name)
    found: NDArray[np.float32] = dequantize(tensor.data, tensor.tensor_type)
    return found


def test_a_column_that_is_most_of_the_input_keeps_the_codes_of_the_search(folder: Path, tmp_path: Path) -> None:
    model = damaged(folder, tmp_path / "model", "model.layers.0.post_attention_layernorm.weight", put(12.0), "wide")
    tune(model, tmp_path / "tuned.gguf")
    tune(model, tmp_path / "searched.gguf", recipe="opt-rtn")
    tuned, searched = (weights_of(tmp_path / f"{n}.gguf", "blk.0.ffn_up.weight") for n in ("tuned", "searched"))
    np.testing.assert_array_equal(tuned[:, 7], searched[:, 7])
    assert (tuned != searched).any()


def test_a_column_is_fixed_for_more_than_its_share_of_the_importance() -> None:
    importance = np.ones(1024, np.float32)
    importance[[3, 9]] = 40, 20
    assert fixed_columns(importance).tolist() == [3]
    assert fixed_columns(np.ones(8, np.float32)).tolist() == []
    assert fixed_columns(np.zeros(8, np.float32)).tolist() == []
    assert fixed_columns(None).tolist() == []


# --- what comes out --------------------------------------------------------------------------------------------------


@each_pair
def test_a_tuned_file_is_as_large_as_an_untuned_one_and_nearer_to_the_model(
    name: str, kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, scenes = written(folder, name), []
    inner = driver.tune_block
    monkeypatch.setattr(driver, "tune_block", lambda scene, *rest: scenes.append(scene) or inner(scene, *rest))
    tune(model, tmp_path / "plain.gguf", kind, "opt-rtn")
    report = tune(model, tmp_path / "tuned.gguf", kind)
    assert report.files == (tmp_path / "tuned.gguf",)
    plain, tuned = read_gguf(tmp_path / "plain.gguf"), read_gguf(tmp_path / "tuned.gguf")
    assert [(t.name, t.type, t.shape) for t in plain.tensors.values()] == [
        (t.name, t.type, t.shape) for t in tuned.tensors.values()
    ]
    before, after = tensors_of(tmp_path / "plain.gguf"), tensors_of(tmp_path / "tuned.gguf")
    lines = log_of(tmp_path / "tuned.gguf")
    assert [line["block"] for line in lines] == [f"blk.{i}" for i in range(3 if name == "qwen35" else LAYERS)]
    assert all(line["after"] < line["before"] for line in lines)
    kept = {line["block"]: line["kept"] for line in lines}
    for key, data in before.items():
        block = ".".join(key.split(".")[:2])
        if not kept.get(block, False):
            assert after[key] == data, key
        elif plain.tensors[key].type not in ("F32", "F16", "BF16"):
            assert after[key] != data, key
    numbers = list(range(len(scenes[0].training) + len(scenes[0].held_out)))
    training, held = numbers[: len(scenes[0].training)], numbers[len(scenes[0].training) :]
    losses = [measured_again(scenes[0], model, tmp_path / f, training) for f in ("plain.gguf", "tuned.gguf")]
    assert losses[1] < 0.9 * losses[0] or not kept["blk.0"]
    stored = measured_again(scenes[0], model, tmp_path / "plain.gguf", held)
    np.testing.assert_allclose(lines[0]["held_out_before"], stored, rtol=1e-4)
    if kept["blk.0"]:  # what is stored is what was measured
        stored = measured_again(scenes[0], model, tmp_path / "tuned.gguf", held)
        np.testing.assert_allclose(lines[0]["held_out_after"], stored, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind", "threads"),
    [*((*pair, 1) for pair in PAIRS[:3]), pytest.param("llama", "q4_0", 2, marks=pytest.mark.slow)],
)
def test_two_runs_give_the_same_bytes(name: str, kind: str, threads: int, folder: Path, tmp_path: Path) -> None:
    model = written(folder, name)
    for out in ("a.gguf", "b.gguf"):
        tune(model, tmp_path / out, kind, SHORT, run=Run(threads=threads))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"a.gguf", "b.gguf", "a.gguf.tuning.jsonl", "b.gguf.tuning.jsonl"}


def test_activations_in_a_file_give_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = written(folder, "mixtral")
    tune(model, tmp_path / "memory.gguf", "iq4_nl", SHORT)
    monkeypatch.setattr(driver, "IN_MEMORY", 0)
    tune(model, tmp_path / "file.gguf", "iq4_nl", SHORT)
    assert (tmp_path / "memory.gguf").read_bytes() == (tmp_path / "file.gguf").read_bytes()


def test_a_block_whose_held_out_loss_rose_keeps_its_untuned_rounding(folder: Path, tmp_path: Path) -> None:
    model = written(folder, "llama")
    tune(model, tmp_path / "plain.gguf", "q4_0", "opt-rtn")
    tune(model, tmp_path / "wild.gguf", "q4_0", replace(SHORT, rate=100.0))  # all codes to and fro
    assert [line["kept"] for line in log_of(tmp_path / "wild.gguf")] == [False] * LAYERS
    assert tensors_of(tmp_path / "plain.gguf") == tensors_of(tmp_path / "wild.gguf")


def test_the_provenance_says_what_decided_the_bytes(folder: Path, tmp_path: Path) -> None:
    model = written(folder, "llama")
    tune(model, tmp_path / "x.gguf")
    found = {k.removeprefix("ggufround."): f.value for k, f in read_gguf(tmp_path / "x.gguf").metadata.items()}
    calibration = load_calibration(TEXTS, open_checkpoint(model), tiny_models.VOCAB)
    assert found["recipe"] == "light"
    assert found["calibration.name"] == "built-in text"
    assert found["calibration.sha256"] == calibration.digest
    assert (found["calibration.sequences"], found["calibration.tokens"]) == (5, 64)
    assert (found["tuning.iterations"], found["tuning.batch"], found["tuning.seed"]) == (24, 8, 42)
    assert found["tuning.curvature"] == 2
    assert found["tuning.rates"].startswith("codes 0.0416667")
    assert found["device"].startswith("cpu, 1 threads, ")
    assert torch.__version__ in found["device"]
    tune(model, tmp_path / "y.gguf", recipe="opt-rtn")
    keys = read_gguf(tmp_path / "y.gguf").metadata
    assert "ggufround.calibration.sha256" in keys
    assert not any(key.startswith("ggufround.tuning") for key in keys)


@pytest.mark.parametrize(("name", "kind"), [("llama", "q4_0"), ("mixtral", "iq4_nl"), ("wide", "q2_k")])
def test_calibrated_rounding_is_that_of_an_imatrix_of_the_same_tokens(
    name: str, kind: str, folder: Path, tmp_path: Path
) -> None:
    model, texts = written(folder, name), replace(TEXTS, holdout=0.0)
    checkpoint = open_checkpoint(model)
    ids = load_calibration(texts, checkpoint, tiny_models.VOCAB).ids
    found = collect_importance(Skeleton(checkpoint), matrices_of(checkpoint), ids)
    write_imatrix(tmp_path / "imatrix.gguf", lending(found.squares), ["x"], *ids.shape, {})  # experts lend each other
    convert(model, tmp_path / "a.gguf", options=Options(types=(kind,), imatrix=tmp_path / "imatrix.gguf"))
    tune(model, tmp_path / "b.gguf", kind, "opt-rtn", texts)
    convert(model, tmp_path / "plain.gguf", type=kind)
    assert tensors_of(tmp_path / "a.gguf") == tensors_of(tmp_path / "b.gguf")
    assert tensors_of(tmp_path / "plain.gguf") != tensors_of(tmp_path / "b.gguf")


# --- what is refused -------------------------------------------------------------------------------------------------


def damaged(folder: Path, place: Path, name: str, values: Callable[[Any], None], case: str = "llama") -> Path:
    """A copy of the model in float32 with one tensor changed."""
    written(folder, case)
    tensors = {n: tiny_models.weight(CASES[case], n, s) for n, s in CASES[case].shapes.items()}
    values(tensors[name])
    shutil.copytree(folder / case, place)
    for old in place.glob("*.safetensors*"):
        old.unlink()
    return write_checkpoint(place, tensors, CASES[case].config, "F32")


def put(value: float) -> Callable[[Any], None]:
    def change(tensor: Any) -> None:
        tensor.flat[7] = value

    return change


@pytest.mark.parametrize("curvature", [0, 2])
@pytest.mark.parametrize(
    ("tensor", "value"), [("mlp.up_proj", np.nan), ("self_attn.v_proj", np.inf), ("input_layernorm", np.nan)]
)
def test_nan_in_a_block_names_the_block_and_keeps_the_work(
    tensor: str, value: float, curvature: int, folder: Path, tmp_path: Path
) -> None:
    model = damaged(folder, tmp_path / "model", f"model.layers.1.{tensor}.weight", put(value))
    with pytest.raises((InputError, WeightError), match=r"(?i)\b(block 1|blk\.1|layers\.1)\b.*(nan|inf)"):
        tune(model, tmp_path / "x.gguf", recipe=replace(SHORT, curvature=curvature))
    assert {p.name for p in tmp_path.iterdir()} >= {"x.gguf.partial", "x.gguf.journal"}
    assert not (tmp_path / "x.gguf").exists()


def test_activations_beyond_float32_name_the_block_and_keep_the_blocks_before(folder: Path, tmp_path: Path) -> None:
    def enlarge(tensor: Any) -> None:
        tensor *= 1e30

    model = damaged(folder, tmp_path / "model", "model.layers.1.mlp.up_proj.weight", enlarge)
    with pytest.raises(InputError, match=r"(block 1 of the model gives|blk\.1\.ffn_down\.weight is) NaN or infinit"):
        tune(model, tmp_path / "x.gguf", recipe=replace(SHORT, curvature=0))
    assert [line["block"] for line in log_of(tmp_path / "x.gguf")] == ["blk.0"]


def test_a_loss_that_is_not_a_number_names_the_block(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = driver.Metric.loss
    monkeypatch.setattr(driver.Metric, "loss", lambda self, *rest: (float("nan"), loss(self, *rest)[1]))
    with pytest.raises(InputError, match=r"blk\.0: the loss became nan; .* Finished blocks are kept"):
        tune(written(folder, "llama"), tmp_path / "x.gguf", recipe=SHORT)
    assert (tmp_path / "x.gguf.partial").exists()


def test_weights_that_a_type_cannot_hold_are_refused_though_tuned(folder: Path, tmp_path: Path) -> None:
    model = damaged(folder, tmp_path / "model", "model.layers.1.mlp.up_proj.weight", put(3e8))
    with pytest.raises(WeightError, match=r"blk\.1\.ffn_up\.weight has weights too large for Q8_0"):
        tune(model, tmp_path / "x.gguf", "q8_0", replace(SHORT, curvature=0))


def test_several_types_at_once_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one type at a time, not Q4_0, Q8_0"):
        tune(written(folder, "llama"), tmp_path / "x-{type}.gguf", "q4_0,q8_0")
    assert list(tmp_path.iterdir()) == []


def test_a_gguf_is_converted_but_not_tuned(folder: Path, tmp_path: Path) -> None:
    convert(written(folder, "llama"), tmp_path / "f16.gguf", type="f16")
    for recipe in (SHORT, RECIPES["opt-rtn"]):
        with pytest.raises(UnsupportedError, match="a .gguf can be converted but not tuned: it lacks what"):
            tune(tmp_path / "f16.gguf", tmp_path / "x.gguf", recipe=recipe)
    assert [p.name for p in tmp_path.iterdir()] == ["f16.gguf"]
    convert(tmp_path / "f16.gguf", tmp_path / "x.gguf", type="q4_0")


def test_too_little_memory_for_a_block_is_told_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--max-ram 50 MB is too little: one block .* take about [0-9,]+ MB"):
        tune(written(folder, "llama"), tmp_path / "x.gguf", run=Run(threads=1, max_ram=50_000_000))
    assert list(tmp_path.iterdir()) == []


def test_an_imatrix_and_tuning_are_refused_together(folder: Path, tmp_path: Path) -> None:
    options = Options(types=("q4_0",), recipe="light", imatrix=tmp_path / "imatrix.gguf")
    with pytest.raises(UsageError, match="both give importance"):
        convert(written(folder, "llama"), tmp_path / "x.gguf", options=options)


def test_no_link_makes_the_log_write_over_the_model(folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(written(folder, "llama"), tmp_path / "model")
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    (tmp_path / "x.gguf.tuning.jsonl").symlink_to(model / "config.json")
    with pytest.raises(UsageError, match="the model itself"):
        tune(model, tmp_path / "x.gguf", recipe=SHORT)
    assert {p.name: p.read_bytes() for p in model.iterdir()} == before


def test_a_run_that_tunes_nothing_leaves_no_log(folder: Path, tmp_path: Path) -> None:
    tune(written(folder, "llama"), tmp_path / "x.gguf", recipe="opt-rtn")
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
