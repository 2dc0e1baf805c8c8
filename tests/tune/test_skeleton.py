"""The streamed model computes what transformers' whole model computes, for every tiny checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from ggufround import convert
from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.reading import Reader
from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import InputError, MissingExtraError, UnsupportedError
from ggufround.tune.extra import require_extra
from tiny import write_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from ggufround.tune.building import find_layers  # noqa: E402
from ggufround.tune.skeleton import Skeleton  # noqa: E402
from ggufround.tune.weights import source_weights  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
NAMES = tiny_models.TUNABLE
# Text models that transformers has within the whole model only.
WITHIN = (
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "glm4v",
)
BATCH, LONG, SHORT = 3, 280, 20  # longer than every sliding window of the tiny models
SLABS = ((0, 100), (100, 219), (219, tiny_models.VOCAB))


@dataclass
class Streamed:
    """A skeleton and how its weights are read; `reads` holds the names of whole tensors that were read."""

    skeleton: Skeleton
    read: Any
    read_rows: Any
    reads: list[str]


def streamed(checkpoint: Checkpoint) -> Streamed:
    read, rows = source_weights(checkpoint, Reader(checkpoint))
    reads: list[str] = []

    def noted(name: str) -> Any:
        reads.append(name)
        return read(name)

    return Streamed(Skeleton(checkpoint), noted, rows, reads)


def whole_model(case: tiny_models.Tiny, path: Path) -> Any:
    classes = transformers.AutoModelForCausalLM
    if case.config["model_type"] in WITHIN:
        return transformers.AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    if case.loads:
        return classes.from_pretrained(path, dtype=torch.float32).eval()
    config = transformers.AutoConfig.from_pretrained(path).get_text_config()
    loader = pytest.importorskip("safetensors.torch")
    state = {n: t.float() for f in path.glob("*.safetensors") for n, t in loader.load_file(f).items()}
    state = {tiny_models.text_name(n): t for n, t in state.items()}
    config.tie_word_embeddings = "lm_head.weight" not in state  # llama.cpp's rule where there is no head
    network = classes.from_config(config, dtype=torch.float32)
    assert not network.base_model.load_state_dict(state, strict=False).missing_keys
    network.tie_weights()
    if not config.tie_word_embeddings:
        network.lm_head.weight = torch.nn.Parameter(state["lm_head.weight"])
    return network.eval()


def tokens(length: int) -> Any:
    return torch.from_numpy(np.random.default_rng(3).integers(0, tiny_models.VOCAB, (BATCH, length)))


def slab_logits(stream: Streamed, hidden: Any) -> Any:
    skeleton = stream.skeleton
    head = skeleton.head_name()
    slabs = [skeleton.logits(hidden, stream.read_rows(head, np.arange(a, b)), a) for a, b in SLABS]
    return torch.cat(slabs, -1)


def expected(network: Any, ids: Any, pull: Any) -> tuple[Any, Any, Any]:
    """The whole model's logits, what its first block receives, and the gradient of (logits * pull) to that."""
    received = []

    def leaf(module: Any, args: Any) -> Any:
        received.append(args[0].detach().requires_grad_())
        return (received[0], *args[1:])

    handle = find_layers(network)[1][0].register_forward_pre_hook(leaf)
    logits = network(ids, use_cache=False).logits
    handle.remove()
    gradient = torch.autograd.grad((logits * pull).sum(), received[0])[0]
    return logits.detach(), received[0].detach(), gradient


def assert_near(found: Any, truth: Any, tolerance: float = 2e-6) -> None:
    scale = float(truth.abs().max())
    assert float((found - truth).abs().max()) <= tolerance * scale, (float((found - truth).abs().max()), scale)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_one_at_a_time_compute_what_the_whole_model_does(name: str, folder: Path) -> None:
    path = tiny_models.written(folder, name)
    network = whole_model(tiny_models.CASES[name], path)
    stream = streamed(open_checkpoint(path))
    skeleton = stream.skeleton
    assert skeleton.vocab == tiny_models.VOCAB
    assert skeleton.hidden == tiny_models.EMBD
    for length in (LONG, SHORT):
        ids = tokens(length)
        pull = torch.from_numpy(np.random.default_rng(4).standard_normal((BATCH, length, skeleton.vocab), np.float32))
        truth, received, gradient = expected(network, ids, pull)
        start = skeleton.embed(ids, stream.read_rows)
        assert torch.equal(start, received)

        hidden = start
        stream.reads.clear()
        for i in range(skeleton.blocks):
            module = skeleton.load(i, stream.read)
            assert not any(p.requires_grad or p.is_meta for p in module.parameters())
            assert not any(b.is_meta for b in module.buffers())
            with torch.no_grad():
                hidden = skeleton.run(i, module, hidden)
            skeleton.unload(i)
            assert all(t.is_meta for t in (*module.parameters(), *module.buffers()))
            assert sorted(stream.reads) == sorted(skeleton.block_names(i))  # each tensor once, and no other
            stream.reads.clear()
        skeleton.load_head(stream.read)
        assert stream.reads == list(skeleton.rest_names())
        with torch.no_grad():
            assert_near(slab_logits(stream, hidden), truth)

        hidden = leaf = start.clone().requires_grad_()
        for i in range(skeleton.blocks):
            hidden = skeleton.run(i, skeleton.load(i, stream.read), hidden)
        assert_near(torch.autograd.grad((slab_logits(stream, hidden) * pull).sum(), leaf)[0], gradient, 2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_matrix_is_the_rows_that_its_places_say(name: str, folder: Path) -> None:
    stream = streamed(open_checkpoint(tiny_models.written(folder, name)))
    skeleton = stream.skeleton
    used = {skeleton.embedding_name(), skeleton.head_name(), *skeleton.rest_names()}
    for i in range(skeleton.blocks):
        used |= set(skeleton.block_names(i))
        places = skeleton.places(i)
        module = skeleton.load(i, stream.read)
        matrices = {key: p for key, p in module.named_parameters() if p.dim() > 1}
        assert places.keys() == matrices.keys()
        for key, parameter in matrices.items():
            rows = parameter.reshape(-1, parameter.shape[-1])
            done = 0
            for place in places[key]:
                assert place.parameter == key
                assert place.first == done
                source = stream.read(place.source)
                source = source.reshape(-1, source.shape[-1])
                assert torch.equal(rows[done : done + place.rows], source[torch.from_numpy(place.index)])
                assert place.start is not None
                done += place.rows
            assert done == len(rows)
        skeleton.unload(i)
    left = set(skeleton.checkpoint.tensors) - used
    assert not [other for other in left if tiny_models.of_text(other, tiny_models.CASES[name])]


def test_fused_experts_come_from_their_own_matrices(folder: Path) -> None:
    skeleton = Skeleton(open_checkpoint(tiny_models.written(folder, "mixtral")))
    rows = [(p.first, p.rows, p.source, p.start) for p in skeleton.places(1)["mlp.experts.gate_up_proj"]]
    ff, at = tiny_models.FF, "model.layers.1.block_sparse_moe.experts."
    assert rows == [
        row
        for e in range(4)
        for row in ((2 * e * ff, ff, f"{at}{e}.w1.weight", 0), ((2 * e + 1) * ff, ff, f"{at}{e}.w3.weight", 0))
    ]


def test_a_conversion_that_does_more_than_move_rows_has_no_places_but_loads(folder: Path) -> None:
    from transformers.core_model_loading import Transpose, WeightConverter

    from ggufround.tune import sources

    stream = streamed(open_checkpoint(tiny_models.written(folder, "llama")))
    skeleton = stream.skeleton
    pattern = "self_attn.o_proj.weight"
    converter = WeightConverter(pattern, pattern, [Transpose(0, 1)])
    k = next(k for k, f in enumerate(skeleton._fillings[0]) if f.targets[0].endswith(pattern))
    plain = skeleton._fillings[0][k]
    skeleton._fillings[0][k] = sources.Filling(plain.targets, plain.sources, (pattern,), converter)
    assert pattern not in skeleton.places(0)
    found = skeleton.load(0, stream.read).get_parameter(pattern)
    assert torch.equal(found, stream.read(plain.sources[0]).T)


def test_a_loaded_block_is_the_callers_own(folder: Path) -> None:
    stream = streamed(open_checkpoint(tiny_models.written(folder, "llama")))
    skeleton = stream.skeleton
    kept = {name: stream.read(name) for name in skeleton.block_names(0)}
    first, second = (skeleton.load(0, kept.__getitem__) for _ in range(2))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert all(t.any() for t in kept.values())
    assert all(p.any() for p in second.parameters())
    skeleton.unload(0)
    assert all(p.is_meta for module in (first, second) for p in module.parameters())


def test_gradients_reach_a_blocks_parameters_and_the_output_rows(folder: Path) -> None:
    stream = streamed(open_checkpoint(tiny_models.written(folder, "qwen3moe")))
    skeleton = stream.skeleton
    with torch.inference_mode():  # what is made in here must serve outside
        hidden = skeleton.embed(tokens(SHORT), stream.read_rows)
        module = skeleton.load(0, stream.read)
        skeleton.run(0, module, hidden)
        skeleton.load_head(stream.read)
    module.requires_grad_(True)
    rows = stream.read(skeleton.head_name()).requires_grad_()
    skeleton.logits(skeleton.run(0, module, hidden), rows).square().sum().backward()
    assert rows.grad is not None
    assert rows.grad.any()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())


def test_a_block_in_bfloat16_takes_bfloat16(folder: Path) -> None:
    stream = streamed(open_checkpoint(tiny_models.written(folder, "gemma3")))
    skeleton = stream.skeleton
    hidden = skeleton.embed(tokens(48), stream.read_rows)
    exact = skeleton.run(0, skeleton.load(0, stream.read), hidden)
    module = skeleton.load(0, stream.read, torch.bfloat16)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    found = skeleton.run(0, module, hidden.bfloat16())
    assert found.dtype == torch.bfloat16
    assert_near(found.float(), exact, 0.05)


def test_reading_rows_gives_the_rows_of_the_tensor(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggufround.tune.weights.SLAB", 700)
    checkpoint = open_checkpoint(llama)
    with Reader(checkpoint) as reader:
        read, read_rows = source_weights(checkpoint, reader)
        whole = read("lm_head.weight")
        assert whole.shape == checkpoint.tensors["lm_head.weight"].shape
        rows = np.array([0, 1, 2, 3, 4, 5, 6, 9, 11, 12, 319])
        assert torch.equal(read_rows("lm_head.weight", rows), whole[torch.from_numpy(rows)])
        assert read_rows("lm_head.weight", rows[:0]).shape == (0, tiny_models.EMBD)
        assert read("model.norm.weight").shape == (tiny_models.EMBD,)


def changed(folder: Path, name: str, drop: tuple[str, ...] = (), **config: Any) -> Checkpoint:
    """The checkpoint as opened, with other entries in its config and without some tensors."""
    checkpoint = open_checkpoint(tiny_models.written(folder, name))
    tensors = {key: ref for key, ref in checkpoint.tensors.items() if key not in drop}
    return replace(checkpoint, config={**checkpoint.config, **config}, tensors=tensors)


def test_a_quantization_config_and_code_of_the_models_own_are_passed_over(folder: Path) -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    checkpoint = changed(
        folder,
        "llama",
        quantization_config=fp8,
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.M"},
    )
    assert Skeleton(checkpoint).blocks == 2


def test_a_gguf_is_refused(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "m.gguf", type="f16")
    with pytest.raises(UnsupportedError, match="can be converted but not tuned"):
        Skeleton(open_checkpoint(tmp_path / "m.gguf"))


def test_an_unknown_model_type_is_refused(folder: Path) -> None:
    for kind in ("nobodys_model", None, 5):
        with pytest.raises(UnsupportedError, match="knows no model type"):
            Skeleton(changed(folder, "llama", model_type=kind))
    with pytest.raises(UnsupportedError, match="no causal language model"):
        Skeleton(changed(folder, "llama", model_type="vit"))


def test_a_config_that_does_not_fit_the_tensors_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="1000000000 layers"):
        Skeleton(changed(folder, "llama", num_hidden_layers=10**9))
    with pytest.raises(InputError, match="lacks 9 tensors"):
        Skeleton(changed(folder, "llama", num_hidden_layers=3))
    with pytest.raises(InputError, match="config.json makes it"):
        Skeleton(changed(folder, "llama", intermediate_size=64))
    with pytest.raises(InputError, match="refuses config.json"):
        Skeleton(changed(folder, "llama", hidden_size="wide"))
    with pytest.raises(InputError, match="lacks 1 tensors"):
        Skeleton(changed(folder, "llama", drop=("model.norm.weight",)))


def test_a_bias_that_transformers_passes_over_is_refused(folder: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"no place for transformer\.blocks\.0\.norm_1\.bias"):
        Skeleton(open_checkpoint(tiny_models.written(folder, "mpt-biases")))


def test_a_missing_expert_is_refused(folder: Path) -> None:
    stream = streamed(changed(folder, "mixtral", drop=("model.layers.0.block_sparse_moe.experts.3.w1.weight",)))
    with pytest.raises(InputError, match="do not make up"):
        stream.skeleton.load(0, stream.read)


def test_a_token_beyond_the_embedding_is_refused(folder: Path) -> None:
    stream = streamed(open_checkpoint(tiny_models.written(folder, "llama")))
    with pytest.raises(InputError, match="token 320, but the embedding has 320 rows"):
        stream.skeleton.embed(torch.tensor([[1, 320]]), stream.read_rows)


@pytest.mark.parametrize("absent", ["torch", "transformers", "transformers.core_model_loading"])
def test_an_absent_extra_says_what_to_install(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingExtraError, match=r'pip install "ggufround\[tune\]"'):
        require_extra()


def test_the_door_is_free_of_torch() -> None:
    code = "import sys, ggufround, ggufround.tune, ggufround.tune.extra; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, env={"PYTHONPATH": ":".join(sys.path)}).returncode
        == 0
    )


def test_fp8_weights_arrive_multiplied_by_their_scales(tmp_path: Path) -> None:
    case = tiny_models.CASES["llama"]
    tensors: dict[str, Any] = {n: tiny_models.weight(case, n, s) for n, s in case.shapes.items()}
    name = "model.layers.0.mlp.down_proj.weight"
    scaled = torch.from_numpy(tensors[name]).to(torch.float8_e4m3fn)
    config = case.config | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    tensors[name] = scaled.view(torch.uint8).numpy()
    tensors[name + "_scale_inv"] = np.array([[0.5, 2.0]], np.float32)
    path = write_checkpoint(tmp_path / "fp8", tensors, config, "F32")
    raw = (path / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header[name]["dtype"] = "F8_E4M3"
    text = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    stream = streamed(open_checkpoint(path))
    found = stream.skeleton.load(0, stream.read).get_parameter("mlp.down_proj.weight")
    scales = torch.cat([torch.full((128,), 0.5), torch.full((64,), 2.0)])
    assert torch.equal(found, scaled.float() * scales)
