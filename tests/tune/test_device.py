"""The device that computes is the one that was asked for, whatever kind it is, and only one module knows of kinds."""

from __future__ import annotations

import re
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import pytest

from ggufround.errors import UsageError

torch = pytest.importorskip("torch")
from ggufround.tune import device as devices  # noqa: E402
from ggufround.tune.device import choose  # noqa: E402

pytestmark = pytest.mark.torch
ROOT = Path(__file__).resolve().parents[2]
KIND = re.compile(
    r"torch\.(cuda|xpu|mps|hip)\b|from torch import .*\b(cuda|xpu)\b|backends\.(cuda|cudnn)|\.cuda\(|is_cuda"
)


def pretend(monkeypatch: pytest.MonkeyPatch, kind: str | None, count: int = 2) -> None:
    """torch finds `count` accelerators of that kind; they cannot compute."""
    found = None if kind is None else torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: found)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count if kind else 0)


def test_without_an_accelerator_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None)
    assert choose("auto") == choose("cpu") == choose("cpu:0") == torch.device("cpu")


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_auto_takes_whatever_accelerator_torch_finds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, kind)
    assert choose("auto").type == kind
    assert choose(kind).type == kind
    assert choose(f"{kind}:1") == torch.device(kind, 1)
    assert choose("cpu") == torch.device("cpu")


def test_auto_leaves_kinds_alone_that_are_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "mps")
    assert choose("auto") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "xpu", "cuda:0"])
def test_an_absent_device_is_refused_with_what_there_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, None)
    with pytest.raises(UsageError, match=rf"--device {name}: torch .* finds no such device; use --device cpu"):
        choose(name)
    other = "xpu" if name.startswith("cuda") else "cuda"
    pretend(monkeypatch, other)
    with pytest.raises(UsageError, match=f"finds no such device; it has {other}"):
        choose(name)


def test_a_number_beyond_the_last_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "cuda", 2)
    with pytest.raises(UsageError, match="--device cuda:2: there are 2"):
        choose("cuda:2")
    pretend(monkeypatch, "cuda", 1)
    with pytest.raises(UsageError, match="--device cuda:7: there is one"):
        choose("cuda:7")
    assert choose("cuda:0") == torch.device("cuda", 0)


@pytest.mark.parametrize(
    "name", ["", "gpu", "mps", "meta", "cuda:", "cuda:x", "cuda:-1", "auto:0", "cpu:1:2", "CUDA", "cpu "]
)
def test_an_unknown_name_is_refused_with_all_that_there_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "cuda")
    with pytest.raises(UsageError, match="unknown device .* there are: auto, cpu, cuda, xpu"):
        choose(name)


@pytest.mark.parametrize(
    ("has", "fast"),
    [
        ({}, False),
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"amx_tile": True}, True),
        ({"architecture": "aarch64", "neon": True}, False),
    ],
)
def test_bfloat16_is_used_where_the_processor_has_instructions_for_it(
    has: dict[str, object], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(has), raising=False)
    assert devices.fast_bfloat16(torch.device("cpu")) is fast


def test_an_accelerator_has_them_and_an_old_torch_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.fast_bfloat16(torch.device("cuda"))
    assert devices.fast_bfloat16(torch.device("xpu", 1))
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not devices.fast_bfloat16(torch.device("cpu"))


def test_mixed_products_are_bfloat16_only_where_enabled() -> None:
    cpu, matrix = torch.device("cpu"), torch.ones(4, 4)
    with devices.mixed(cpu, True):
        assert (matrix @ matrix).dtype == torch.bfloat16
    with devices.mixed(cpu, False):
        assert (matrix @ matrix).dtype == torch.float32


def test_the_provenance_names_what_decides_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    text = devices.describe(cpu, amp=True)
    assert text.startswith(f"cpu, {torch.get_num_threads()} threads, ")
    assert text.endswith(f"torch {torch.__version__}, bfloat16")
    assert devices.describe(cpu, amp=False).endswith("float32")
    assert devices.peak_memory(cpu) == 0
    fake = SimpleNamespace(get_device_name=lambda d: f"Card {d.index}", max_memory_allocated=lambda d: 5)
    monkeypatch.setattr(torch, "get_device_module", lambda d: fake)
    for kind in ("cuda", "xpu"):
        card = torch.device(kind, 1)
        assert devices.describe(card, True) == f"{kind}, Card 1, torch {torch.__version__}, bfloat16"
        assert devices.peak_memory(card) == 5


def test_no_other_module_knows_a_kind_of_device() -> None:
    files = [p for folder in ("ggufround", "kernels") for p in (ROOT / folder).rglob("*.py")]
    assert len(files) > 80
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        if path != Path(devices.__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if KIND.search(line)
    ]
    assert found == []
    assert KIND.search("x = torch.cuda.memory_allocated()")
    assert KIND.search("from torch import nn, xpu")
