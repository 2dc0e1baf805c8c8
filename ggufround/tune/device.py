"""Devices: all that depends on which one computes. torch's device-neutral interface, so that CPU, CUDA and XPU are one
path; what is particular to the CPU's kernels is in `latents`."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext

import torch

from ggufround.errors import UsageError

KINDS = ("auto", "cpu", "cuda", "xpu")


def choose(name: str) -> torch.device:
    """The device of that name, "cuda:1" being the second of its kind; `auto`: an accelerator where there is one.

    Raises UsageError for an unknown one and for one that is absent.
    """
    kind, _, number = name.partition(":")
    if kind not in KINDS or not re.fullmatch("[a-z]+(:[0-9]{1,3})?", name) or (number and kind == "auto"):
        raise UsageError(
            f"unknown device {name!r}; there are: {', '.join(KINDS)}, and cuda:1 for the second of several"
        )
    if kind == "cpu":
        return torch.device(kind)
    found = torch.accelerator.current_accelerator(check_available=True)
    if kind == "auto":
        return found if found is not None and found.type in KINDS else torch.device("cpu")
    if found is None or found.type != kind:
        raise UsageError(
            f"--device {name}: torch {torch.__version__} finds no such device; "
            f"{f'it has {found.type}' if found is not None else 'use --device cpu'}"
        )
    if number and int(number) >= (count := torch.accelerator.device_count()):
        raise UsageError(f"--device {name}: there {f'are {count}, {kind}:0 the first' if count > 1 else 'is one'}")
    return torch.device(name)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are faster than float32's: an accelerator, or a CPU with instructions for them."""
    if device.type != "cpu":
        return True
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # absent from older ones
    return bool(has.get("avx512_bf16") or has.get("amx_bf16") or has.get("amx_tile"))


def mixed(device: torch.device, enabled: bool) -> AbstractContextManager[object]:
    """Products in bfloat16, sums and norms in float32, where enabled."""
    return torch.autocast(device.type, torch.bfloat16) if enabled else nullcontext()


def describe(device: torch.device, amp: bool) -> str:
    """For the provenance: results are the same bytes on the same kind of device, library and thread count."""
    if device.type == "cpu":
        kind = f"cpu, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    else:
        kind = f"{device.type}, {torch.get_device_module(device).get_device_name(device)}"
    return f"{kind}, torch {torch.__version__}, {'bfloat16' if amp else 'float32'}"


def peak_memory(device: torch.device) -> int:
    """Bytes allocated at most on an accelerator; 0 on the CPU."""
    return 0 if device.type == "cpu" else int(torch.get_device_module(device).max_memory_allocated(device))
