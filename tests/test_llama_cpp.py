"""Files made of tiny random checkpoints load in llama.cpp, whose next-token log-probabilities agree with transformers.

The weights are large enough that a wrong RoPE order, norm or gate shows: each is broken on purpose, and must move the
log-probabilities ten times more than the tolerance.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_models
from ggufround import convert
from ggufround.gguf_read import GGUFHeader, read_gguf
from jina_reference import jina2
from llama_cpp import embeddings, loads, log_probs

pytestmark = [pytest.mark.peer, pytest.mark.torch]
TOLERANCE = 0.02  # of the log-probabilities' standard deviation
PROMPTS = [[5, 40, 77, 130, 9], [300, 12, 12, 250, 31, 8, 111], [60, 61, 62, 63, 64, 65, 66, 67, 68, 69], [200, 7, 99]]
VOCAB = tiny_models.VOCAB
QUERIES = ("attn_q", "attn_q_b", "attn_qkv")


def weights(torch: Any, model: Path) -> dict[str, Any]:
    loader = pytest.importorskip("safetensors.torch")
    return {n: t.to(torch.float32) for f in model.glob("*.safetensors") for n, t in loader.load_file(f).items()}


def expected(case: tiny_models.Tiny, model: Path) -> NDArray[np.float64]:
    """transformers' log-probabilities [prompt, token], in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    classes = transformers.AutoModelForCausalLM
    given = case.given
    if case.forward is not None:
        tensors = {name: tensor.numpy() for name, tensor in weights(torch, model).items()}
        logits = [torch.from_numpy(case.forward(case.config, tensors, prompt)) for prompt in PROMPTS]
        return torch.stack([row[:VOCAB].log_softmax(-1) for row in logits]).double().numpy()
    if isinstance(case.twin, tiny_models.Tiny):
        case, model = case.twin, tiny_models.write(case.twin, model.with_name(model.name + "-twin"))
    elif case.twin is not None:
        tensors = tiny_models.weights(case)
        named = case.as_twin(tensors) if case.as_twin else tensors
        case = replace(case, config=dict(case.twin), loads=True)
        model = tiny_models.write(case, model.with_name(model.name + "-twin"), named)
    if case.loads:
        network = classes.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    else:  # the text model of a checkpoint that has more, or less, than transformers' class for it
        config = transformers.AutoConfig.from_pretrained(model).get_text_config()
        state = {re.sub(r"^((model|language_model)\.)+", "", n): t for n, t in weights(torch, model).items()}
        config.tie_word_embeddings = "lm_head.weight" not in state  # llama.cpp's rule
        network = classes.from_config(config, dtype=torch.float32, attn_implementation="eager")
        found = network.model.load_state_dict(state, strict=False)
        assert not found.missing_keys
        network.tie_weights()
        if not config.tie_word_embeddings:
            network.lm_head.weight = torch.nn.Parameter(state["lm_head.weight"])
    network.eval()
    if case.altered is not None:
        case.altered(network)
    with torch.inference_mode():
        further = [{k: torch.from_numpy(v) for k, v in given(len(p)).items()} if given else {} for p in PROMPTS]
        logits = [network(torch.tensor([p]), **f).logits[0, -1] for p, f in zip(PROMPTS, further, strict=True)]
        rows = [row[:VOCAB].log_softmax(-1) for row in logits]
    return torch.stack(rows).double().numpy()


def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Root mean square difference over the standard deviation of `b`, the worst of the prompts."""
    return max(float(np.sqrt(np.mean((x - y) ** 2)) / y.std()) for x, y in zip(a, b, strict=True))


def edited(source: Path, target: Path, header: GGUFHeader, name: str, values: NDArray[np.float32]) -> Path:
    """A copy of an F32 file with other values in one tensor."""
    raw = bytearray(source.read_bytes())
    tensor = header.tensors[name]
    raw[tensor.offset : tensor.offset + tensor.nbytes] = np.ascontiguousarray(values, np.float32).tobytes()
    target.write_bytes(raw)
    return target


def values(source: Path, header: GGUFHeader, name: str) -> NDArray[np.float32]:
    tensor = header.tensors[name]
    assert tensor.type == "F32"
    return np.fromfile(source, np.float32, int(np.prod(tensor.shape)), offset=tensor.offset).reshape(tensor.shape)


def broken(case: tiny_models.Tiny, good: Path, header: GGUFHeader, folder: Path) -> dict[str, Path]:
    """One copy an error that a converter could make: the wrong order of rotated rows, of gate and up, a norm."""
    made = {}
    if "rope" in case.mistakes:
        several = ([n for n in header.tensors if n.endswith(f".{end}.weight")] for end in QUERIES)
        key = next(names[0] for names in several if names)  # of a hybrid model, the first block with full attention
        made["rope"] = edited(good, folder / "rope.gguf", header, key, swapped(header, values(good, header, key), key))
    if "gate" in case.mistakes:
        up = next(n for n in header.tensors if n.startswith("blk.0.ffn_up") and n.endswith("weight"))
        matrix = values(good, header, up)
        if (gate := up.replace("ffn_up", "ffn_gate")) in header.tensors:
            other = edited(good, folder / "half.gguf", header, up, values(good, header, gate))
            made["gate"] = edited(other, folder / "gate.gguf", header, gate, matrix)
        else:  # both in one tensor
            made["gate"] = edited(good, folder / "gate.gguf", header, up, np.concatenate(np.split(matrix, 2)[::-1]))
    if "norm" in case.mistakes:
        kinds = ("attn_norm", "post_attention_norm", "attn_output_norm")
        norm = next(
            n
            for side in ("", "enc.")
            for layer in (0, 1)
            for kind in kinds
            if (n := f"{side}blk.{layer}.{kind}.weight") in header.tensors
        )
        made["norm"] = edited(good, folder / "norm.gguf", header, norm, values(good, header, norm) - 1)
    if "state" in case.mistakes:  # the decays' logarithms instead of the decays
        key = next(n for n in header.tensors if n.endswith(".ssm_a"))
        made["state"] = edited(good, folder / "state.gguf", header, key, np.log(-values(good, header, key)))
    if "bias" in case.mistakes:
        name = "enc.blk.0.attn_rel_b.weight"
        zeros = np.zeros(header.tensors[name].nbytes // 4, np.float32)  # of whatever type it is
        made["bias"] = edited(good, folder / "bias.gguf", header, name, zeros)
    return made


def swapped(header: GGUFHeader, query: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """The rows of each head in the other order of rotation."""
    stated = {key.partition(".")[2]: field.value for key, field in header.metadata.items()}
    heads = stated["attention.head_count"]
    heads = max(heads) if isinstance(heads, list) else heads
    rows = query.shape[0] if "qkv" not in name else query.shape[1]
    if rows == 2 * heads * stated.get("attention.key_length", 0):
        heads *= 2  # a gate beside each query
    half = query[:rows].reshape(heads, 2, -1, query.shape[1])
    return np.concatenate([half.swapaxes(1, 2).reshape(rows, -1), query[rows:]])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(n for n, case in tiny_models.CASES.items() if case.proof == "causal"))
def test_llama_cpp_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    case = tiny_models.CASES[name]
    model = tiny_models.write(case, tmp_path / name)
    good = tmp_path / "good.gguf"
    convert(model, good, type="f32")
    header = read_gguf(good)
    mistakes = broken(case, good, header, tmp_path)
    found = log_probs([good, *mistakes.values()], PROMPTS, VOCAB)
    truth = expected(case, model)
    assert distance(found[0], truth) < TOLERANCE
    moved = {mistake: distance(row, truth) for mistake, row in zip(mistakes, found[1:], strict=True)}
    assert min(moved.values(), default=1) > 10 * TOLERANCE, moved


@pytest.mark.parametrize("name", sorted(n for n, case in tiny_models.CASES.items() if case.proof == "loads"))
def test_llama_cpp_loads_what_it_has_no_next_token_for(name: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    model = tiny_models.write(tiny_models.CASES[name], tmp_path / name)
    convert(model, tmp_path / "out.gguf", type="f32")
    assert loads(tmp_path / "out.gguf")


def pooled(case: tiny_models.Tiny, model: Path) -> NDArray[np.float64]:
    """transformers' vectors [prompt, embedding]: the last hidden states, pooled as the files beside the model say."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(**{**case.config, **case.peer}) if case.peer else None
    if case.config.get("position_embedding_type") == "alibi":  # which transformers has no class for
        return np.stack([jina2(case, prompt).mean(0) for prompt in PROMPTS])
    named = case.config["architectures"][0]
    loader = getattr(transformers, named) if named.endswith("Model") else transformers.AutoModel
    network = loader.from_pretrained(model, config=config, dtype=torch.float32, attn_implementation="eager").eval()
    pooling = json.loads(case.files["1_Pooling/config.json"])
    rows = []
    for prompt in PROMPTS:
        with torch.inference_mode():
            states = network(torch.tensor([prompt])).last_hidden_state[0]
        first, last = pooling.get("pooling_mode_cls_token"), pooling.get("pooling_mode") == "lasttoken"
        rows.append(states[0] if first else states[-1] if last else states.mean(0))
        for name in sorted(name for name in case.shapes if "_Dense." in name):
            rows[-1] = torch.from_numpy(tiny_models.weight(case, name, case.shapes[name])).bfloat16().float() @ rows[-1]
    return torch.stack(rows).double().numpy()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(n for n, case in tiny_models.CASES.items() if case.proof == "embedding"))
def test_llama_cpp_makes_the_vectors_that_transformers_makes(name: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    case = tiny_models.CASES[name]
    model = tiny_models.write(case, tmp_path / name)
    good = tmp_path / "good.gguf"
    convert(model, good, type="f32")
    mistakes = broken(case, good, read_gguf(good), tmp_path)
    found = embeddings([good, *mistakes.values()], PROMPTS)
    truth = pooled(case, model)
    assert distance(found[0], truth) < TOLERANCE
    moved = {mistake: distance(row, truth) for mistake, row in zip(mistakes, found[1:], strict=True)}
    assert min(moved.values(), default=1) > 10 * TOLERANCE, moved


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(n for n, case in tiny_models.CASES.items() if case.proof == "scores"))
def test_llama_cpp_classifies_as_transformers_does(name: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    case = tiny_models.CASES[name]
    model = tiny_models.write(case, tmp_path / name)
    good = tmp_path / "good.gguf"
    convert(model, good, type="f32")
    mistakes = broken(case, good, read_gguf(good), tmp_path)
    loader = getattr(transformers, case.config["architectures"][0])
    network = loader.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        truth = torch.stack([network(torch.tensor([p])).logits[0] for p in PROMPTS]).double().numpy()
    found = embeddings([good, *mistakes.values()], PROMPTS, scores=truth.shape[1])
    assert distance(found[0].T, truth.T) < TOLERANCE  # of each output's deviation over the prompts
    moved = {mistake: distance(row.T, truth.T) for mistake, row in zip(mistakes, found[1:], strict=True)}
    assert min(moved.values()) > 10 * TOLERANCE, moved
