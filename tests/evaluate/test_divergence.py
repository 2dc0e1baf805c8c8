"""Streamed perplexity and KL divergence against whole logits, in float64, of transformers' own model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tiny_models
from ggufround import convert
from ggufround.checkpoint import open_checkpoint
from ggufround.checkpoint.reading import Reader
from ggufround.conversion import carry_out, lay_out_all
from ggufround.errors import InputError, UnsupportedError, UsageError
from ggufround.evaluate.summary import Chunk, Evaluation, Tokens, paired, summarize
from ggufround.evaluate.texts import read_chunks
from ggufround.gguf_read import read_gguf
from ggufround.planning import Options, build
from ggufround.preflight import Run
from llama_cpp import log_probs

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from ggufround.evaluate import chains  # noqa: E402
from ggufround.evaluate.divergence import (  # noqa: E402
    Candidate,
    as_candidate,
    evaluate,
    evaluate_weights,
    open_model,
    open_reference,
)
from ggufround.evaluate.scores import Divergence, Softmax  # noqa: E402
from ggufround.tune.weights import source_weights  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
CHUNKS, CONTEXT = 3, 40
IDS = np.random.default_rng(7).integers(4, tiny_models.VOCAB, (CHUNKS, CONTEXT))


def converted(folder: Path, name: str, kind: str) -> Path:
    out = folder / f"{name}-{kind}.gguf"
    if not out.exists():
        convert(tiny_models.written(folder, name), out, type=kind)
    return out


def whole_log_probs(model: Path, weights: Candidate | None = None, dtype: Any = torch.float64) -> NDArray[np.float64]:
    """transformers' own, of every next token, computed in `dtype`: float64 [chunks, context - 1, vocabulary]."""
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    if weights is not None:
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(weights.read(name))
    with torch.inference_mode():
        logits = network.to(dtype)(torch.from_numpy(IDS), use_cache=False).logits
    result: NDArray[np.float64] = logits[:, :-1].double().log_softmax(-1).numpy()
    return result


def by_hand(reference: NDArray[np.float64], other: NDArray[np.float64], first: int) -> Tokens:
    """Of log-probabilities [chunks, positions, vocabulary], from position `first` on."""
    reference, other, targets = reference[:, first:], other[:, first:], IDS[:, first + 1 :, None]
    chosen, theirs = (np.take_along_axis(side, targets, 2)[:, :, 0] for side in (other, reference))
    divergence = (np.exp(reference) * (reference - other)).sum(-1)
    return Tokens(chosen, theirs, divergence, (reference.argmax(-1) == other.argmax(-1)).astype(np.float64))


def figures(result: Evaluation) -> NDArray[np.float64]:
    """All that is measured, in one row."""
    estimates = (result.loss, result.reference_loss, result.log_prob_change, result.divergence, result.same_top)
    values = [result.perplexity, result.reference_perplexity, *result.quantiles.values()]
    return np.array([*values, *np.ravel(estimates), *np.ravel(result.per_chunk)], np.float64)


OLDER = ["gpt2", "phi2", "bloom", "falcon-40b", "starcoder", "stablelm-12b"]  # turned, biased heads, regrouped, ...


@pytest.mark.parametrize(
    "name", ["llama", "llama3", "granite", "qwen3moe", "mixtral", "gemma2", "phi3", "olmo3", *OLDER]
)
def test_an_f32_file_is_the_model_and_has_transformers_perplexity(name: str, folder: Path) -> None:
    (found,) = evaluate([converted(folder, name, "f32")], tiny_models.written(folder, name), IDS)
    assert abs(found.divergence.mean) < 1e-6
    assert found.quantiles["max"] < 1e-5
    assert found.same_top.mean == 1
    truth = whole_log_probs(tiny_models.written(folder, name), dtype=torch.float32)  # experts know no float64
    want = by_hand(truth, truth, CONTEXT // 2)
    assert found.reference_perplexity == pytest.approx(float(np.exp(-want.log_probs.mean())), rel=1e-5)
    assert found.perplexity == pytest.approx(found.reference_perplexity, rel=1e-5)
    assert found.tokens == CHUNKS * (CONTEXT - 1 - CONTEXT // 2)
    assert found.size == converted(folder, name, "f32").stat().st_size
    assert found.bits_per_weight == 32


@pytest.mark.parametrize("scored", ["half", "all"])
@pytest.mark.parametrize("name", ["llama", "granite", "llama3"])
def test_a_quantised_file_gets_what_whole_logits_give(name: str, scored: Any, folder: Path) -> None:
    file, model = converted(folder, name, "q4_0"), tiny_models.written(folder, name)
    (found,) = evaluate([file], model, IDS, scored=scored)
    known = open_reference(str(model))
    tied = name != "llama"
    with as_candidate("q4_0", open_model(file, known), known) as candidate:
        assert tied == ("output.weight" not in read_gguf(file).tensors)
        tokens = by_hand(whole_log_probs(model), whole_log_probs(model, candidate), CONTEXT // 2 * (scored == "half"))
    want = summarize("q4_0", tokens, CONTEXT, scored)
    assert found.tokens == want.tokens
    np.testing.assert_allclose(figures(found), figures(want), rtol=2e-4, atol=2e-6)
    assert 0.003 < found.divergence.mean < 1  # it is a quantised file


def test_batches_and_slabs_do_not_change_the_result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, model = converted(folder, "llama", "q4_0"), tiny_models.written(folder, "llama")
    (whole,) = evaluate([file], model, IDS)
    monkeypatch.setattr(chains, "BATCH", CONTEXT * 2)
    monkeypatch.setattr(chains, "HEAD_SLAB", 33 * tiny_models.EMBD)
    monkeypatch.setattr(chains, "HEAD_TOKENS", 7)
    (cut,) = evaluate([file], model, IDS)
    np.testing.assert_allclose(figures(cut), figures(whole), rtol=1e-4, atol=1e-6)


def test_several_files_get_the_same_figures_together(folder: Path) -> None:
    files, model = [converted(folder, "llama", kind) for kind in ("q4_0", "q8_0")], tiny_models.written(folder, "llama")
    steps: list[tuple[int, int]] = []
    together = evaluate(files, model, IDS, progress=lambda phase, done, total: steps.append((done, total)))
    for file, result in zip(files, together, strict=True):
        (alone,) = evaluate([file], model, IDS)
        np.testing.assert_array_equal(figures(result), figures(alone))
        assert result.name == str(file)
    assert steps[-1][0] == steps[-1][1]
    assert steps == sorted(steps)
    difference = paired(together[0].per_chunk, together[1].per_chunk)
    assert difference.mean == pytest.approx(together[1].divergence.mean - together[0].divergence.mean)
    assert difference.error is not None
    assert difference.mean < -2 * difference.error


def test_any_weights_can_be_judged(folder: Path) -> None:
    checkpoint = open_checkpoint(tiny_models.written(folder, "qwen3"))
    with Reader(checkpoint) as reader:
        read, rows = source_weights(checkpoint, reader)
        coarse = Candidate("coarse", lambda n: read(n).bfloat16().float() * 1.01, lambda n, k: rows(n, k) * 1.01)
        same = Candidate("same", read, rows)
        found = evaluate_weights(checkpoint, [coarse, same], IDS)
    assert found[0].divergence.mean > 1e-4
    assert abs(found[1].divergence.mean) < 1e-7
    assert found[0].size is None


def test_only_tokens_that_all_have_a_row_for_count(folder: Path) -> None:
    checkpoint = open_checkpoint(tiny_models.written(folder, "llama"))
    small = np.random.default_rng(1).integers(4, 250, (2, 16))
    with Reader(checkpoint) as reader:
        read, rows = source_weights(checkpoint, reader)
        found = evaluate_weights(checkpoint, [Candidate("cut", read, rows, 250)], small)
        with pytest.raises(InputError, match="has the token 319, but the output matrix has 250 rows"):
            evaluate_weights(checkpoint, [Candidate("cut", read, rows, 250)], small + 319 - small.max())
    network = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.root, dtype=torch.float32).eval()
    with torch.inference_mode():
        all_of_them = network(torch.from_numpy(small)).logits[:, 8:-1, :250].log_softmax(-1)
    want = -all_of_them.gather(2, torch.from_numpy(small[:, 9:, None])).mean()
    assert found[0].loss.mean == pytest.approx(float(want), rel=1e-5)


def test_running_sums_survive_logits_of_any_size() -> None:
    generator = torch.Generator().manual_seed(1)
    p = torch.randn(9, 50, generator=generator) * torch.logspace(-2, 3, 9)[:, None] + 1e3
    q = p + torch.randn(9, 50, generator=generator) / 3
    p, q = p.float(), q.float()
    targets = torch.arange(9) * 6
    reference, other = Softmax(targets), Softmax(targets)
    result = Divergence(reference, other)
    order = (slice(0, 9),)
    for start, end in ((0, 1), (1, 20), (20, 50)):
        for at in order:
            weights, shrink = reference.add(at, p[at, start:end], start)
            other.add(at, q[at, start:end], start)
            result.add(at, weights, shrink, p[at, start:end] - q[at, start:end])
    lp, lq = (x.double().log_softmax(1) for x in (p, q))
    np.testing.assert_allclose(result.values(), (lp.exp() * (lp - lq)).sum(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(reference.log_probs(), lp[range(9), targets], rtol=1e-5, atol=1e-5)
    assert torch.equal(reference.first, p.argmax(1))


def test_an_nvfp4_file_is_read_with_its_global_scales(folder: Path) -> None:
    (found,) = evaluate([converted(folder, "llama", "nvfp4")], tiny_models.written(folder, "llama"), IDS)
    assert 1e-3 < found.divergence.mean < 1
    assert found.bits_per_weight is not None
    assert 4.5 < found.bits_per_weight < 9


def test_a_split_file_is_one_model(folder: Path, tmp_path: Path) -> None:
    plan = build(tiny_models.written(folder, "llama"), Options(types=("q4_0",)))
    report = carry_out(plan, lay_out_all(plan, tmp_path / "x.gguf", 80_000), Run())
    assert len(report.files) > 1
    (split,) = evaluate([report.files[0]], tiny_models.written(folder, "llama"), IDS)
    (whole,) = evaluate([converted(folder, "llama", "q4_0")], tiny_models.written(folder, "llama"), IDS)
    np.testing.assert_array_equal(figures(split), figures(whole))
    assert split.size == report.size


def test_a_head_that_the_converter_left_out_is_the_embedding(tmp_path: Path) -> None:
    case = tiny_models.CASES["gemma2"]
    with_head = {**case.shapes, "lm_head.weight": (tiny_models.VOCAB, tiny_models.EMBD)}
    model = tiny_models.write(replace(case, shapes=with_head), tmp_path / "model")
    convert(model, tmp_path / "f32.gguf", type="f32")
    (found,) = evaluate([tmp_path / "f32.gguf"], model, IDS)
    assert np.isfinite(found.perplexity)


def test_a_summary_of_known_numbers() -> None:
    divergence = np.array([[1.0, 3.0], [2.0, 6.0]])
    tokens = Tokens(np.full((2, 2), -2.0), np.full((2, 2), -1.0), divergence, np.array([[1.0, 0.0], [1.0, 1.0]]))
    found = summarize("x", tokens, 5, "half")
    assert found.divergence == pytest.approx((3, 1, np.std(divergence, ddof=1) / 2))
    assert found.perplexity == pytest.approx(np.e**2)
    assert found.log_prob_change.mean == -1
    assert found.quantiles["max"] == 6
    assert found.per_chunk == (Chunk(2, 1, 2, 0.5), Chunk(2, 1, 4, 1))
    one = summarize("x", Tokens(*(column[:1] for column in vars(tokens).values())), 5, "half")
    assert one.divergence.error is None
    assert one.divergence.token_error == pytest.approx(1)


# --- texts


def test_text_is_cut_as_llama_cpp_cuts_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the rain in spain stays mainly in the plain " * 20)
    for name, bos in (("llama", True), ("llama-linear", False)):
        checkpoint = open_checkpoint(tiny_models.written(folder, name))
        chunks = read_chunks(tmp_path / "t.txt", checkpoint, 16)
        flat = read_chunks(tmp_path / "t.txt", checkpoint, chunks.size // 16 * 16 - 8).reshape(-1)
        want = flat[: len(flat) // 16 * 16].reshape(-1, 16).copy()
        if bos:
            assert flat[0] == 1
            want[:, 0] = 1
        np.testing.assert_array_equal(chunks[: len(want)], want)
        assert len(read_chunks(tmp_path / "t.txt", checkpoint, 16, 2)) == 2


@pytest.mark.parametrize(
    ("content", "context", "most", "message"),
    [
        (b"too short", 512, None, "is too short: .* tokens, at least 512 are needed"),
        (b"", 512, None, "is too short"),
        (b"\xff\xfe", 512, None, "is not UTF-8"),
        (None, 512, None, "cannot read"),
        (b"x" * 99, 4, None, "at least 1 of 8"),
        (b"x" * 99, 16, 0, "0 chunks"),
    ],
    ids=["short", "empty", "binary", "absent", "context", "chunks"],
)
def test_a_text_that_cannot_serve_is_refused(
    llama: Path, tmp_path: Path, content: bytes | None, context: int, most: int | None, message: str
) -> None:
    path = tmp_path / "t.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError if context == 4 or most == 0 else InputError, match=message):
        read_chunks(path, open_checkpoint(llama), context, most)


# --- files that do not go with the reference


def test_a_file_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    known = open_reference(str(tiny_models.written(folder, "llama")))
    with pytest.raises(InputError, match="states the architecture gemma2, .* is llama"):
        open_model(converted(folder, "gemma2", "q8_0"), known)
    with pytest.raises(InputError, match="lacks output.weight, which .* another model"):
        open_model(converted(folder, "llama3", "q8_0"), known)
    case, file = tiny_models.CASES["llama"], converted(folder, "llama", "q8_0")
    without_head = {name: shape for name, shape in case.shapes.items() if name != "lm_head.weight"}
    tied = open_reference(str(tiny_models.write(replace(case, shapes=without_head), tmp_path / "tied")))
    with pytest.raises(UnsupportedError, match=r"holds 1 tensors that .* does not give .*output\.weight"):
        open_model(file, tied)
    shapes = {name: tuple(256 if n == tiny_models.FF else n for n in shape) for name, shape in case.shapes.items()}
    other = replace(case, shapes=shapes, config={**case.config, "intermediate_size": 256})
    wide = open_reference(str(tiny_models.write(other, tmp_path / "wide")))
    with pytest.raises(InputError, match=r"ffn_gate\.weight is \[192, 128\], .* makes it \[256, 128\]"):
        open_model(file, wide)
    (tmp_path / "x.gguf").write_text("no such thing")
    with pytest.raises(InputError, match="not a sound GGUF file"):
        open_model(tmp_path / "x.gguf", known)
    with pytest.raises(InputError, match="cannot open"):
        open_model(tmp_path / "absent.gguf", known)
    with pytest.raises(UsageError, match="wants the checkpoint"):
        open_reference(str(converted(folder, "llama", "q8_0")))


def test_another_vocabulary_is_refused_and_another_text_of_a_token_is_told(folder: Path, tmp_path: Path) -> None:
    known = open_reference(str(tiny_models.written(folder, "llama-linear")))
    good = converted(folder, "llama-linear", "q8_0")
    at = b"<|endoftext|>"
    raw = good.read_bytes()
    assert at in raw
    (tmp_path / "told.gguf").write_bytes(raw.replace(at, b"<|endofTEXT|>", 1))
    assert "1 tokens have another text" in " ".join(open_model(tmp_path / "told.gguf", known).notes)
    other = replace(tiny_models.CASES["llama-linear"], tokenizer="spm")
    convert(tiny_models.write(other, tmp_path / "spm"), tmp_path / "spm.gguf", type="q8_0")
    with pytest.raises(InputError, match="another vocabulary"):
        open_model(tmp_path / "spm.gguf", known)


def test_a_hyper_parameter_that_the_file_states_otherwise_is_told(folder: Path, tmp_path: Path) -> None:
    case = tiny_models.CASES["llama"]
    other = replace(case, config={**case.config, "rope_theta": 5e5})
    model = tiny_models.write(other, tmp_path / "other")
    known = open_reference(str(model))
    notes = open_model(converted(folder, "llama", "q8_0"), known).notes
    assert any("llama.rope.freq_base is 10000.0, the model's 500000.0" in note for note in notes)
    assert (
        open_model(converted(folder, "llama", "q8_0"), open_reference(str(tiny_models.written(folder, "llama")))).notes
        == ()
    )


def test_a_type_that_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    known = open_reference(str(tiny_models.written(folder, "llama")))
    found = open_model(converted(folder, "llama", "q8_0"), known)
    name = "blk.0.ffn_up.weight"
    tensors = {**found.checkpoint.tensors, name: replace(found.checkpoint.tensors[name], dtype="IQ2_XXS")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "ggufround.evaluate.divergence.open_gguf", lambda source, path: replace(found.checkpoint, tensors=tensors)
        )
        with pytest.raises(UnsupportedError, match="IQ2_XXS"):
            open_model(converted(folder, "llama", "q8_0"), known)


@pytest.mark.parametrize(
    ("tensor", "place"),
    [
        ("token_embd.weight", "the embedding"),
        ("blk.1.ffn_norm.weight", "block 1"),
        ("output.weight", "among the logits"),
        ("output_norm.weight", "among the logits"),
    ],
)
def test_nan_stops_with_the_name_of_the_place(tensor: str, place: str, folder: Path, tmp_path: Path) -> None:
    good = converted(folder, "llama", "f32")
    raw, info = bytearray(good.read_bytes()), read_gguf(good).tensors[tensor]
    raw[info.offset : info.offset + info.nbytes] = b"\xff" * info.nbytes
    (tmp_path / "bad.gguf").write_bytes(raw)
    with pytest.raises(InputError, match=rf"bad\.gguf: NaN or infinity .*{place}"):
        evaluate([tmp_path / "bad.gguf"], tiny_models.written(folder, "llama"), IDS)


# --- llama.cpp


@pytest.mark.peer
@pytest.mark.parametrize(("kind", "tolerance"), [("f32", 2e-5), ("q8_0", 0.02), ("q4_0", 0.02)])
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3moe"])
def test_llama_cpp_gives_the_same_figures(name: str, kind: str, tolerance: float, folder: Path) -> None:
    """Of F32 files up to rounding; of others llama.cpp rounds activations too."""
    pytest.importorskip("xllamacpp")
    ids = IDS[:1, :24]
    files = [converted(folder, name, "f32"), converted(folder, name, kind)]
    prompts = [ids[0, : k + 1].tolist() for k in range(12, 23)]
    reference, other = log_probs(files, prompts, tiny_models.VOCAB)
    targets = ids[0, 13:]
    loss = -other[range(len(targets)), targets].mean()
    divergence = (np.exp(reference) * (reference - other)).sum(-1).mean()
    (found,) = evaluate([files[1]], tiny_models.written(folder, name), ids)
    assert found.loss.mean == pytest.approx(float(loss), abs=tolerance)
    assert found.divergence.mean == pytest.approx(float(divergence), rel=0.03, abs=6e-4 if kind == "q8_0" else 1e-6)
