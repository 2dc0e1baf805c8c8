"""Which checkpoint tensors become which parameters of a transformers model, and which rows go where.

Newer transformers rename tensors and fuse matrices while they load (Mixtral's experts become one stack of gate over
up). What happens is not written down twice: tensors whose values are row numbers are pushed through transformers' own
conversion, and where they land is read off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ggufround.checkpoint.spec import Checkpoint, TensorRef
from ggufround.errors import InputError
from ggufround.tune.weights import ReadTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A composite model's text part and a bare model differ from the plain causal model in these only (as in `arch`).
PREFIXES = re.compile(r"^(?:(?:model|language_model|text_model)\.)+")
SCRAMBLE, MODULUS = 2654435761, 1 << 31  # row numbers made unlike their neighbours: arithmetic does not map them so


@dataclass(frozen=True, eq=False)
class Place:
    """Rows [first, first + len(index)) of a parameter, seen as a matrix [-1, columns], equal rows `index` (int64) of
    the checkpoint tensor `source`, seen the same way."""

    parameter: str  # within its block: "mlp.experts.gate_up_proj"
    first: int
    source: str
    index: NDArray[np.int64]

    @property
    def rows(self) -> int:
        return len(self.index)

    @property
    def start(self) -> int | None:
        """The first of the source's rows if they are consecutive, else None."""
        consecutive = bool((np.diff(self.index) == 1).all())
        return int(self.index[0]) if consecutive else None


@dataclass(frozen=True, eq=False)
class Filling:
    """Checkpoint tensors `sources`, in transformers' order, that together become the parameters `targets`."""

    targets: tuple[str, ...]  # as `model.state_dict()` names them
    sources: tuple[str, ...]
    patterns: tuple[str, ...] = ()  # the converter's pattern that each source matched
    converter: Any = None  # transformers' WeightConverter; None: one tensor becomes one parameter as it is


def find_fillings(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, Filling]:
    """The filling of every parameter or buffer of `model` that the checkpoint holds, by the parameter's name.

    Checkpoint tensors that the model has no place for are left out. Raises InputError for two tensors that claim the
    same parameter and for a shape that the model does not have.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    owner = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state = model.state_dict()

    def target(name: str) -> tuple[str, str | None] | None:
        for candidate in (name, PREFIXES.sub("", name)):
            for rename, convert in ((renamings, converters), ([], [])):
                renamed, pattern = rename_source_key(candidate, rename, convert, model.base_model_prefix, state)
                if renamed in state:
                    return renamed, pattern
        return None

    found: dict[str, list[tuple[str, str | None]]] = {}
    for name in sorted(checkpoint.tensors, key=dot_natural_key):
        if (match := target(name)) is not None:
            found.setdefault(match[0], []).append((name, match[1]))
    fillings: dict[str, Filling] = {}
    for first, members in found.items():
        sources, patterns = zip(*members, strict=True)
        if patterns[0] is None:
            if len(sources) > 1:
                raise InputError(f"the checkpoint holds both {sources[0]} and {sources[1]}, which are the same tensor")
            _check_shape(checkpoint.tensors[sources[0]], tuple(state[first].shape))
            fillings[first] = Filling((first,), sources)
            continue
        converter = owner[patterns[0]]
        heads = converter.target_patterns
        expanded = (first.replace(heads[0], pattern) for pattern in heads)
        targets = tuple(name for name in expanded if name in state)
        fillings |= dict.fromkeys(targets, Filling(targets, sources, patterns, converter))
    return fillings


def _check_shape(ref: TensorRef, expected: tuple[int, ...]) -> None:
    if ref.shape != expected:
        raise InputError(
            f"{ref.path.name}: tensor {ref.name} has shape {list(ref.shape)}, config.json makes it {list(expected)}"
        )


def convert(filling: Filling, tensors: list[torch.Tensor], model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What transformers makes of the filling's sources: a tensor for each target."""
    if filling.converter is None:
        return {filling.targets[0]: tensors[0]}
    converter = deepcopy(filling.converter)  # it collects its sources
    for name, pattern, tensor in zip(filling.sources, filling.patterns, tensors, strict=True):
        converter.add_tensor(filling.targets[0], name, pattern, tensor)
    made = converter.convert(filling.targets[0], model=model, config=model.config)
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def places_of(
    filling: Filling, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], model: PreTrainedModel
) -> dict[str, tuple[Place, ...]] | None:
    """Where the rows of each target come from, or None if one of them is more than rows put together.

    `shapes` of all parameters by name; the places bear these names too.
    """
    refs = [checkpoint.tensors[name] for name in filling.sources]
    starts = np.cumsum([0, *(ref.rows for ref in refs)])
    if filling.converter is None:
        name = filling.targets[0]
        return {name: (Place(name, 0, filling.sources[0], np.arange(refs[0].rows)),)}
    columns = {ref.columns for ref in refs} | {shapes[name][-1] for name in filling.targets}
    if len(columns) > 1 or int(starts[-1]) >= MODULUS:
        return None
    keys = np.arange(starts[-1], dtype=np.int64) * SCRAMBLE % MODULUS
    values = torch.from_numpy(keys.astype(np.float64)[:, None] + [0.0, 0.5])  # two columns, to see them change order
    probes = [
        values[a:b].reshape(*ref.shape[:-1], 2).clone() for ref, a, b in zip(refs, starts[:-1], starts[1:], strict=True)
    ]
    try:
        made = convert(filling, probes, model)
    except Exception:  # the conversion needs the true columns, so it does more than move rows
        return None
    if not made.keys() >= set(filling.targets):
        return None
    order = np.argsort(keys)
    out: dict[str, tuple[Place, ...]] = {}
    for name in filling.targets:
        if tuple(made[name].shape) != (*shapes[name][:-1], 2):
            return None
        landed = made[name].reshape(-1, 2).numpy()
        numbers = order[np.searchsorted(keys, landed[:, 0], sorter=order).clip(max=len(keys) - 1)]
        if not (landed == keys[numbers][:, None] + [0.0, 0.5]).all():
            return None
        out[name] = tuple(_split(name, numbers, starts, filling.sources))
    return out


def _split(
    name: str, numbers: NDArray[np.int64], starts: NDArray[np.int64], sources: tuple[str, ...]
) -> Iterator[Place]:
    """Global row numbers, cut where the source changes."""
    which = np.searchsorted(starts, numbers, side="right") - 1
    cuts = [0, *(np.flatnonzero(np.diff(which)) + 1), len(numbers)]
    for a, b in zip(cuts[:-1], cuts[1:], strict=True):
        yield Place(name, int(a), sources[which[a]], numbers[a:b] - starts[which[a]])


def fill(
    filling: Filling,
    places: Mapping[str, tuple[Place, ...]] | None,
    shapes: Mapping[str, tuple[int, ...]],
    read: ReadTensor,
    model: PreTrainedModel,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """The filling's targets in memory of their own. Only where `places` is None are all sources held at once.

    Raises InputError if the sources do not make what the model has.
    """
    if places is None:
        return _converted(filling, shapes, read, model, device, dtype)
    out = {name: torch.empty(shapes[name], dtype=dtype, device=device) for name in filling.targets}
    for source in filling.sources:
        tensor = read(source)
        rows = tensor.reshape(-1, tensor.shape[-1] if tensor.dim() else 1)
        for place in (p for several in places.values() for p in several if p.source == source):
            into = out[place.parameter].view(-1, rows.shape[1])[place.first : place.first + place.rows]
            start = place.start
            into.copy_(rows[torch.from_numpy(place.index)] if start is None else rows[start : start + place.rows])
    return out


def _converted(
    filling: Filling,
    shapes: Mapping[str, tuple[int, ...]],
    read: ReadTensor,
    model: PreTrainedModel,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    tensors = [read(name) for name in filling.sources]
    try:
        made, why = convert(filling, tensors, model), ""
    except (RuntimeError, ValueError) as error:  # of torch.stack and the like: one of several is absent or odd
        made, why = {}, f" ({error})"
    if not all(name in made and tuple(made[name].shape) == shapes[name] for name in filling.targets):
        raise InputError(
            f"{', '.join(filling.sources[:3])}{', ...' if len(filling.sources) > 3 else ''} do not make up "
            f"{' and '.join(filling.targets)} of {list(shapes[filling.targets[0]])}; is a tensor missing?{why}"
        )
    return {name: made[name].to(device, dtype, copy=True).contiguous() for name in filling.targets}
