"""What is written as an imatrix is what is read from it, by us and by others."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggufround.errors import InputError, OutputError
from ggufround.gguf_file import Kind, array, string, u32
from ggufround.gguf_read import read_gguf
from ggufround.quants.imatrix_file import write_imatrix
from ggufround.quants.importance import read_imatrix
from ggufround.quants.squares import LENT, Squares, importance_from, largest_inputs, lending, unreached

RNG = np.random.default_rng(5)
Q, UP = "blk.0.attn_q.weight", "blk.10.ffn_up_exps.weight"


def some(matrices: int, columns: int, *counts: int) -> Squares:
    return Squares(RNG.gamma(0.3, 40, (matrices, columns)) * np.array(counts)[:, None], np.array(counts, np.int64))


SEEN = {UP: some(3, 64, 700, 0, 41), "blk.2.attn_q.weight": some(1, 32, 1536), Q: some(1, 32, 1536)}


@pytest.mark.parametrize("suffix", [".gguf", ".imatrix"])
def test_what_is_read_is_to_the_bit_what_would_be_used_at_once(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"i{suffix}"
    write_imatrix(path, SEEN, ["calib.txt", "more.txt"], 3, 512)
    found = read_imatrix(path)
    used = importance_from(SEEN)
    assert list(found.entries) == list(used.entries) == sorted(SEEN)
    for name, means in used.entries.items():
        assert means.dtype == np.float32
        np.testing.assert_array_equal(found.entries[name], means)
        reached = SEEN[name].counts > 0
        truth = SEEN[name].sums[reached] / SEEN[name].counts[reached, None]
        np.testing.assert_allclose(means[reached], truth, rtol=2e-7)
        assert (means[~reached] == 1).all()
    assert (found.datasets, found.chunks, found.legacy) == (("calib.txt", "more.txt"), 3, False)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_keys_and_tensors_lie_as_llama_imatrix_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    write_imatrix(path, SEEN, ["calib.txt"], 3, 512, {"ggufround.version": string("1")})
    header = read_gguf(path)
    assert header.metadata == {
        "general.type": string("imatrix"),
        "imatrix.datasets": array(Kind.STRING, ["calib.txt"]),
        "imatrix.chunk_count": u32(3),
        "imatrix.chunk_size": u32(512),
        "ggufround.version": string("1"),
    }
    assert [(t.name, t.shape, t.type) for t in header.tensors.values()] == [
        (name + suffix, shape, "F32")
        for name in sorted(SEEN)
        for suffix, shape in ((".in_sum2", SEEN[name].sums.shape), (".counts", (len(SEEN[name].counts), 1)))
    ]


def test_the_older_kind_gives_the_same_means(tmp_path: Path) -> None:
    path = tmp_path / "i.dat"
    seen = SEEN | {"blk.3.ffn_up_exps.weight": some(2, 32, 0, 0)}
    write_imatrix(path, seen, ["calib.txt", "more.txt"], 3, 512)
    found = read_imatrix(path)
    assert (found.datasets, found.chunks, found.legacy) == (("calib.txt",), 3, True)
    assert list(found.entries) == sorted(SEEN)  # as llama.cpp: nothing for a tensor that nothing reached
    fitted = found.fitted({name: s.sums.shape for name, s in SEEN.items()})
    for name, means in importance_from(SEEN).entries.items():
        np.testing.assert_allclose(fitted.entries[name], means, rtol=2.5e-7)
        assert (fitted.entries[name][SEEN[name].counts == 0] == 1).all()


@pytest.mark.peer
@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
def test_libgguf_reads_the_same(tmp_path: Path, suffix: str) -> None:
    libgguf = pytest.importorskip("libgguf")
    path = tmp_path / f"i{suffix}"
    write_imatrix(path, SEEN, ["calib.txt"], 3, 512)
    theirs, ours = libgguf.load_imatrix(path), read_imatrix(path).entries
    assert ours.keys() == theirs.keys()
    for name, means in ours.items():
        np.testing.assert_array_equal(means.ravel(), np.ravel(theirs[name]))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.dictionaries(
        st.text("abc.0é", min_size=1, max_size=20), st.tuples(st.integers(1, 5), st.integers(1, 40)), min_size=1
    ),
    seed=st.integers(0, 1 << 30),
    dataset=st.text(max_size=20).filter(lambda text: "\0" not in text),
)
def test_any_entries_come_back(
    tmp_path: Path, shapes: dict[str, tuple[int, int]], seed: int, dataset: str
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    seen = {
        name: Squares(rng.gamma(1, 10, shape), rng.integers(1, 1 << 25, shape[0])) for name, shape in shapes.items()
    }
    for suffix in (".gguf", ".dat"):
        path = tmp_path / f"i{suffix}"
        write_imatrix(path, seen, [dataset], 7, 512)
        found = read_imatrix(path)
        assert list(found.entries) == sorted(seen)
        assert found.datasets == ((dataset,) if dataset or suffix == ".gguf" else ())
        for name, means in importance_from(seen).entries.items():
            np.testing.assert_allclose(found.entries[name].ravel(), means.ravel(), rtol=2.5e-7)


@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
def test_a_file_name_that_is_no_text_is_written_as_far_as_it_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"i{suffix}"
    write_imatrix(path, SEEN, [os.fsdecode(b"calib\xff.txt")], 3, 512)
    assert read_imatrix(path).datasets == ("calib\ufffd.txt",)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_sums_that_are_no_number_are_refused_and_nothing_is_written(tmp_path: Path, value: float) -> None:
    sums = np.ones((1, 4))
    sums[0, 2] = value
    with pytest.raises(InputError, match=r"blk\.0\.attn_q\.weight is NaN or infinite"):
        write_imatrix(tmp_path / "i.gguf", {Q: Squares(sums, np.array([3]))}, [], 1, 512)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "i.gguf"
    write_imatrix(path, SEEN, ["calib.txt"], 3, 512)
    before = path.read_bytes()

    def full(_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="the disk is full"):
        write_imatrix(path, {Q: some(1, 8, 5)}, [], 1, 512)
    assert [p.name for p in tmp_path.iterdir()] == ["i.gguf"]
    assert path.read_bytes() == before


def test_a_note_names_the_experts_that_no_token_reached() -> None:
    assert unreached({Q: SEEN[Q]}) is None
    one = unreached(SEEN)
    assert one is not None
    assert one.startswith("no token reached 1 expert, of which nothing was measured (block 10: 1);")
    counts = np.array([0, 0, 0, 5, 0, 7, 0, 0])
    stack = Squares(np.zeros((8, 4)), counts)
    many = {f"blk.{i}.ffn_{kind}_exps.weight": stack for i in range(12) for kind in ("up", "down")}
    line = unreached(many)
    assert line is not None
    assert "no token reached 72 experts, of which" in line
    assert "(block 0: 0-2, 4, 6-7; block 1: 0-2, 4, 6-7;" in line
    assert "block 7: 0-2, 4, 6-7; ...)" in line
    assert "\n" not in line


def test_experts_that_are_tensors_of_their_own_are_named_as_well() -> None:
    peaks = {0: 2.0, 1: 0.0, 2: 5.0}
    seen = {
        f"model.layers.4.mlp.experts.{e}.{kind}_proj.weight": Squares(
            np.zeros((1, 4)), np.array([int(peak > 0)]), np.array([peak])
        )
        for e, peak in peaks.items()
        for kind in ("up", "down")
    }
    line = unreached(seen)
    assert line is not None
    assert "no token reached 1 expert, of which nothing was measured (block 4: 1);" in line
    largest = largest_inputs(seen)
    assert [largest[f"model.layers.4.mlp.experts.{e}.up_proj.weight"] for e in peaks] == [2, 5, 5]
    assert largest_inputs({Q: Squares(np.zeros((1, 4)), np.array([3]), np.zeros(1))}) == {Q: 1}


def test_an_expert_that_saw_few_tokens_borrows_from_the_others_what_reads_the_blocks_input() -> None:
    sums, counts = np.array([[0.0, 0.0], [30.0, 10.0], [300.0, 100.0]]), np.array([0, 10, 90])
    stack, apart = "blk.1.ffn_up_exps.weight", "model.layers.1.mlp.experts.{}.up_proj.weight"
    down = "blk.1.ffn_down_exps.weight"
    seen = {stack: Squares(sums, counts), down: Squares(sums, counts)}
    seen |= {apart.format(e): Squares(sums[e : e + 1], counts[e : e + 1]) for e in range(3)}
    found = importance_from(lending(seen)).entries
    pooled = sums.sum(0) / 100
    expected = (sums + LENT * pooled) / (counts + LENT)[:, None]
    np.testing.assert_allclose(found[stack], expected, rtol=1e-6)
    np.testing.assert_allclose(np.concatenate([found[apart.format(e)] for e in range(3)]), expected, rtol=1e-6)
    np.testing.assert_array_equal(found[down], importance_from(seen).entries[down])
    nothing = {stack: Squares(0 * sums, 0 * counts)}
    np.testing.assert_array_equal(importance_from(lending(nothing)).entries[stack], np.ones((3, 2)))
