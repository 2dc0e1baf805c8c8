"""Sums of squares of what a block's matrices are multiplied with, collected while the block runs.

As llama-imatrix does it: every matrix of a block is looked at, routers included, and every expert for itself with the
tokens that were sent to it. What is collected of a parameter goes to the GGUF tensors that its rows go to.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ggufround.arch.spec import Output
from ggufround.quants.squares import Squares as Squares
from ggufround.quants.squares import importance_from as importance_from
from ggufround.quants.squares import largest_inputs as largest_inputs
from ggufround.quants.squares import unreached as unreached
from ggufround.tune.skeleton import Place

SLICE = 1 << 21  # numbers whose squares are in memory at once


class Destination(NamedTuple):
    """Rows [first, first + rows) of a checkpoint tensor lie in matrix `matrix` of `matrices` of a GGUF tensor."""

    output: str
    matrices: int
    matrix: int
    first: int
    rows: int


def destinations(outputs: Iterable[Output]) -> dict[str, tuple[Destination, ...]]:
    """Where the rows of each checkpoint tensor go, by its name, in the order of the rows. Vectors are left out, and so
    are norms of each head, which are not multiplied as matrices."""
    found: dict[str, list[Destination]] = {}
    for output in outputs:
        if len(output.shape) < 2 or output.name.endswith("_norm.weight"):
            continue
        matrices, height = prod(output.shape[:-2]), output.shape[-2]
        done = 0  # rows of the output
        for piece in output.pieces:
            first = piece.first
            if not piece.moves_rows_only:  # its columns are others
                done += piece.rows
                continue
            while first < piece.first + piece.rows:
                rows = min(piece.first + piece.rows - first, height - done % height)
                found.setdefault(piece.source.name, []).append(
                    Destination(output.name, matrices, done // height, first, rows)
                )
                first += rows
                done += rows
    return {name: tuple(sorted(several, key=lambda d: d.first)) for name, several in found.items()}


class _Sums:
    """Growing sums of squares for a parameter: float32 within a slice, float64 over slices where the device has it."""

    def __init__(self, matrices: int, columns: int) -> None:
        self._totals: Tensor | None = None  # on the device of what comes
        self._shape = matrices, columns
        self._peaks: list[Tensor | float] = [0.0] * matrices
        self.counts = np.zeros(matrices, np.int64)

    def add(self, matrix: int, seen: _Seen, count: int) -> None:
        total, peak = seen
        if self._totals is None:
            self._totals = torch.zeros(self._shape, dtype=total.dtype, device=total.device)
        self._totals[matrix] += total
        self._peaks[matrix] = torch.maximum(torch.as_tensor(self._peaks[matrix]).to(peak), peak)
        self.counts[matrix] += count

    def found(self) -> Squares:
        if self._totals is None:
            return Squares(np.zeros(self._shape), self.counts)
        return Squares(self._totals.cpu().double().numpy(), self.counts, np.array([float(p) for p in self._peaks]))


class _Seen(NamedTuple):
    """Of rows [n, columns]: each column's sum of squares, float64 (float32 where the device has no more), and the
    largest magnitude of all."""

    total: Tensor
    peak: Tensor


def _look(rows: Tensor) -> _Seen:
    wide = torch.float64 if rows.device.type in ("cpu", "cuda") else torch.float32
    total = torch.zeros(rows.shape[1], dtype=wide, device=rows.device)
    peak = rows.abs().max().float() if len(rows) else torch.zeros((), device=rows.device)
    for part in torch.split(rows, max(1, SLICE // rows.shape[1])):
        total += part.float().square().sum(0)
    return _Seen(total, peak)


@contextmanager
def collecting(
    module: nn.Module, places: Mapping[str, tuple[Place, ...]], outputs: Mapping[str, tuple[Destination, ...]]
) -> Iterator[dict[str, Squares]]:
    """Looks on while `module` runs, any number of times; what it returns is not changed by that.

    `places`: `Skeleton.places` of the block; `outputs`: `destinations`. The dictionary is filled when the context
    ends, by GGUF tensor name: all matrices of the block but those that are neither in a module of their own nor in
    transformers' usual stacks of experts. Memory: the sums, and for experts a slice of activations.
    """
    found: dict[str, Squares] = {}
    seen: dict[str, _Sums] = {}
    handles = []
    remembered = _Remembered()
    try:
        for name, part in module.named_modules():
            prefix = f"{name}." if name else ""
            hook = _experts_hook(part, prefix, seen) or _matrix_hook(part, prefix, places, seen, remembered)
            if hook is not None:
                handles.append(part.register_forward_pre_hook(hook, with_kwargs=True))
        yield found
    finally:
        for handle in handles:
            handle.remove()
    found |= _by_output(module, seen, places, outputs)


@contextmanager
def looking_at(matrix: nn.Module) -> Iterator[Callable[[], Squares]]:
    """The same for a single linear module, wherever it is: what is given back tells what was seen."""
    seen: dict[str, _Sums] = {}
    hook = _matrix_hook(matrix, "", {"weight": ()}, seen, _Remembered())
    assert hook is not None, matrix
    handle = matrix.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen["weight"].found
    finally:
        handle.remove()


class _Remembered:
    """The sums for the last input: queries, keys and values are made from the same tensor."""

    def __init__(self) -> None:
        self.key: tuple[weakref.ref[Tensor], int] | None = None
        self.seen = _Seen(torch.empty(0), torch.empty(0))

    def look(self, inputs: Tensor) -> _Seen:
        known = not inputs.is_inference()  # those do not count what is done to them
        if not known or self.key is None or self.key[0]() is not inputs or self.key[1] != inputs._version:
            self.seen = _look(inputs.detach().reshape(-1, inputs.shape[-1]))
            self.key = (weakref.ref(inputs), inputs._version) if known else None
        return self.seen


Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


def _argument(number: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    value: Tensor = args[number] if len(args) > number else kwargs[name]
    return value


def _matrix_hook(
    part: nn.Module, prefix: str, places: Mapping[str, tuple[Place, ...]], seen: dict[str, _Sums], last: _Remembered
) -> Hook | None:
    """For a module whose weight is a matrix: a linear one or a router."""
    weight = part._parameters.get("weight")
    if weight is None or weight.dim() != 2 or f"{prefix}weight" not in places or isinstance(part, nn.Embedding):
        return None
    sums = seen[f"{prefix}weight"] = _Sums(1, weight.shape[1])

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs: Tensor = args[0] if args else next(iter(kwargs.values()))
        with torch.inference_mode(False), torch.no_grad():
            sums.add(0, last.look(inputs), inputs.numel() // inputs.shape[-1])

    return hook


def _experts_hook(part: nn.Module, prefix: str, seen: dict[str, _Sums]) -> Hook | None:
    """For experts whose matrices lie in stacks [experts, rows, columns], which are multiplied in one go.

    What goes into the second stack is computed again, expert by expert.
    """
    gated = "gate_up_proj" in part._parameters
    first, second = (part._parameters.get(name) for name in ("gate_up_proj" if gated else "up_proj", "down_proj"))
    if first is None or second is None or first.dim() != 3 or getattr(part, "is_transposed", False):
        return None
    if second.shape[2] * (1 + gated) != first.shape[1] or not getattr(part, "is_concatenated", True):
        return None
    experts, wide = len(first), first.shape[1]
    into = seen[prefix + ("gate_up_proj" if gated else "up_proj")] = _Sums(experts, first.shape[2])
    between = seen[f"{prefix}down_proj"] = _Sums(experts, second.shape[2])

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = _argument(0, "hidden_states", args, kwargs).detach()
        hidden = hidden.reshape(-1, hidden.shape[-1])
        chosen = _argument(1, "top_k_index", args, kwargs)
        tokens = chosen.reshape(-1).argsort(stable=True) // chosen.shape[-1]
        counts = torch.bincount(chosen.reshape(-1), minlength=experts)[:experts].tolist()
        stack = module._parameters["gate_up_proj" if gated else "up_proj"]
        bias = module._parameters.get("gate_up_proj_bias" if gated else "up_proj_bias")
        with torch.inference_mode(False), torch.no_grad():
            for expert, sent in enumerate(torch.split(tokens[: sum(counts)], counts)):
                for part_of_them in torch.split(sent, max(1, SLICE // wide)):
                    rows = hidden[part_of_them]
                    into.add(expert, _look(rows), len(rows))
                    made = nn.functional.linear(
                        rows.to(stack.dtype), stack[expert], None if bias is None else bias[expert]
                    )
                    made = _activate(module, made, gated)
                    between.add(expert, _look(made), len(rows))

    return hook


def _activate(module: Any, made: Tensor, gated: bool) -> Tensor:
    """What the experts' module does between its stacks."""
    if gated and hasattr(module, "_apply_gate"):
        return module._apply_gate(made)  # type: ignore[no-any-return]
    if not gated:
        return module.act_fn(made)  # type: ignore[no-any-return]
    gate, up = made.chunk(2, -1)
    return module.act_fn(gate) * up  # type: ignore[no-any-return]


def _by_output(
    module: nn.Module,
    seen: Mapping[str, _Sums],
    places: Mapping[str, tuple[Place, ...]],
    outputs: Mapping[str, tuple[Destination, ...]],
) -> dict[str, Squares]:
    """What was seen of parameters as what was seen of GGUF tensors."""
    found: dict[str, Squares] = {}
    for name, sums in seen.items():
        (totals, counts, peaks), height = sums.found(), module.get_parameter(name).shape[-2]
        for place in places.get(name, ()):
            for number, to in _pairs(place, height, outputs.get(place.source, ())):
                into = found.get(to.output)
                if into is None:
                    into = found[to.output] = Squares(
                        np.zeros((to.matrices, totals.shape[1])), np.zeros(to.matrices, np.int64),
                        np.zeros(to.matrices),
                    )  # fmt: skip
                into.sums[to.matrix] = totals[number]
                into.counts[to.matrix] = counts[number]
                if into.peaks is not None and peaks is not None:
                    into.peaks[to.matrix] = peaks[number]
    return found


def _pairs(place: Place, height: int, several: tuple[Destination, ...]) -> set[tuple[int, Destination]]:
    """Which matrix of a parameter with `height` rows each goes to which destination; rows that go nowhere are left."""
    if not several or not place.rows:
        return set()
    ends = np.array([to.first + to.rows for to in several])
    which = np.searchsorted(ends, place.index, side="right")
    numbers = (place.first + np.arange(place.rows)) // height
    changes = np.flatnonzero((np.diff(which) != 0) | (np.diff(numbers) != 0)) + 1
    return {
        (int(numbers[at]), several[which[at]])
        for at in (0, *changes)
        if which[at] < len(several) and several[which[at]].first <= place.index[at]
    }
