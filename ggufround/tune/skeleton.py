"""A causal language model of transformers on the meta device, whose parts are filled from a checkpoint one at a time.

The model's own forward decides what happens between the blocks. To find out what it gives a block (position
embeddings, masks), and to have it scale embeddings or cap logits, it runs with stand-ins for the forwards of its
blocks, which note their arguments and hand the hidden state on: that costs next to nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ggufround.checkpoint.spec import Checkpoint
from ggufround.errors import InputError, UnsupportedError
from ggufround.tune.building import build, fill_buffers, find_ends, find_layers
from ggufround.tune.sources import Filling, fill, find_fillings, places_of
from ggufround.tune.sources import Place as Place
from ggufround.tune.weights import ReadRows as ReadRows
from ggufround.tune.weights import ReadTensor as ReadTensor

CALLS_KEPT = 4  # sequence lengths whose masks and position embeddings are remembered
Forward = Callable[..., Tensor | tuple[Tensor]]
Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a block is given besides the hidden state
Places = Mapping[str, tuple[Place, ...]]


class _Reached(Exception):
    """Ends a forward pass of the model when what was wanted from it is there."""


class Skeleton:
    """One model, of which only what was loaded is in memory. Not thread-safe.

    blocks, hidden, heads, vocab: decoder blocks, columns of the hidden state, heads of queries, rows of the output
    matrix.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device | str = "cpu") -> None:
        """Reads no weight. Raises MissingExtraError without transformers, UnsupportedError for a .gguf and for a model
        that cannot be run block by block, InputError for a config and tensors that do not fit each other."""
        self.checkpoint = checkpoint
        self.device = torch.device(device)
        self._model = build(checkpoint)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in self._model.state_dict().items()}
        self._config = self._model.config.get_text_config()
        self.hidden = int(self._config.hidden_size)
        self.heads = int(getattr(self._config, "num_attention_heads", 0))
        self._layers_name, self._layers = find_layers(self._model)
        self.blocks = len(self._layers)
        self._embedding, self._head = find_ends(self._model)
        self.vocab = self._head.out_features
        fillings = find_fillings(self._model, checkpoint)
        self._sort(fillings)
        self._loaded: dict[int, list[nn.Module]] = {}
        self._calls: dict[tuple[int, torch.dtype], list[Call]] = {}
        self._places: dict[int, list[Places | None]] = {}
        self._rest_loaded = self._head_loaded = False
        self._tuples: bool | None = None
        outside = (module for name, module in self._model.named_modules() if not self._in_blocks(name))
        fill_buffers(self._model, outside, self.device)

    def _sort(self, fillings: Mapping[str, Filling]) -> None:
        """What fills each block, what fills the ends, and what the rest."""
        names = {module: name for name, module in self._model.named_modules()}
        embedding, head = (names[module] + ".weight" for module in (self._embedding, self._head))
        absent = [name for name in self._shapes if name not in fillings and name != head]
        if absent:
            raise InputError(
                f"{self.checkpoint.source} lacks {len(absent)} tensors that {type(self._model).__name__} needs: "
                f"{', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''} (as transformers names them)"
            )
        used = {source for filling in fillings.values() for source in filling.sources}
        biases = (name for name in self.checkpoint.tensors if name.endswith(".bias") and name not in used)
        if passed_over := [name for name in biases if name.removesuffix("bias") + "weight" in used]:
            raise UnsupportedError(
                f"{self.checkpoint.source}: {type(self._model).__name__} of transformers has no place for "
                f"{passed_over[0]}, so what would be tuned is another model; choose --recipe opt-rtn"
            )
        assert fillings[embedding].converter is None, embedding
        self._embedding_source = fillings[embedding].sources[0]
        self._head_source = fillings[head if head in fillings else embedding].sources[0]  # llama.cpp's rule too
        self._fillings: list[list[Filling]] = [[] for _ in self._layers]
        self._rest: list[Filling] = []
        for filling in dict.fromkeys(fillings.values()):
            first = filling.targets[0]
            if self._in_blocks(first):
                self._fillings[int(first.removeprefix(self._layers_name + ".").split(".")[0])].append(filling)
            elif first not in (embedding, head):
                self._rest.append(filling)

    def _in_blocks(self, name: str) -> bool:
        return name.startswith(self._layers_name + ".")

    def block_names(self, i: int) -> tuple[str, ...]:
        """The checkpoint tensors that block i needs."""
        return tuple(name for filling in self._fillings[i] for name in filling.sources)

    def rest_names(self) -> tuple[str, ...]:
        """The checkpoint tensors that `load_head` reads: all but blocks, embedding and output matrix."""
        return tuple(name for filling in self._rest for name in filling.sources)

    def embedding_name(self) -> str:
        """The checkpoint tensor that holds the embedding."""
        return self._embedding_source

    def head_name(self) -> str:
        """The checkpoint tensor that holds the output matrix: the embedding's where it has none of its own."""
        return self._head_source

    def load(self, i: int, read: ReadTensor, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A copy of block i with all parameters and buffers on the device, requires_grad off; its own memory.

        Reads one checkpoint tensor at a time, except where transformers' conversion needs several at once.
        """
        with torch.inference_mode(False), torch.no_grad():
            block = copy.deepcopy(self._layers[i], {id(self._config): self._config})
            fill_buffers(self._model, block.modules(), self.device)
            for filling, places in zip(self._fillings[i], self._block_places(i), strict=True):
                self._fill(block, f"{self._layers_name}.{i}.", filling, places, read, dtype)
        self._loaded.setdefault(i, []).append(block)
        return block

    def unload(self, i: int) -> None:
        """All copies of block i back to the meta device: their memory is free whoever still holds them."""
        for block in self._loaded.pop(i, ()):
            block.to("meta")

    def load_head(self, read: ReadTensor) -> None:
        """The final norm, and whatever else lies outside the blocks (not the embedding and the output matrix)."""
        self._load_rest(read)
        self._head_loaded = True

    def _load_rest(self, read: ReadTensor) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for filling in self._rest:
                places = places_of(filling, self.checkpoint, self._shapes, self._model)
                self._fill(self._model, "", filling, places, read, torch.float32)
        self._rest_loaded = True

    def _fill(
        self,
        part: nn.Module,
        prefix: str,
        filling: Filling,
        places: Places | None,
        read: ReadTensor,
        dtype: torch.dtype,
    ) -> None:
        for name, value in fill(filling, places, self._shapes, read, self._model, self.device, dtype).items():
            path, _, leaf = name.removeprefix(prefix).rpartition(".")
            module = part.get_submodule(path)
            if leaf in module._buffers:
                module._buffers[leaf] = value
            else:
                module._parameters[leaf] = nn.Parameter(value, requires_grad=False)

    def _block_places(self, i: int) -> list[Places | None]:
        """The places of each of the block's fillings, by full parameter name."""
        if i not in self._places:
            self._places[i] = [places_of(f, self.checkpoint, self._shapes, self._model) for f in self._fillings[i]]
        return self._places[i]

    def places(self, i: int) -> Places:
        """Where the rows of block i's matrices and stacks come from, by parameter name within the block.

        The places of a parameter are in order and cover it. A parameter that is more than checkpoint rows put
        together (a transposed matrix) is left out.
        """
        prefix = f"{self._layers_name}.{i}."
        return {
            name.removeprefix(prefix): tuple(replace(place, parameter=name.removeprefix(prefix)) for place in several)
            for places in self._block_places(i)
            for name, several in (places or {}).items()
            if len(self._shapes[name]) > 1
        }

    def embed(self, ids: Tensor, read_rows: ReadRows) -> Tensor:
        """What block 0 receives for `ids` (int64 [b, s]): float32 [b, s, hidden], scaled as the model does it.

        Reads each row that occurs once; at first also what lies outside the blocks, where some models have a norm or
        positions before them. Raises InputError for an id that the embedding has no row for.
        """
        rows, inverse = np.unique(ids.cpu().numpy().astype(np.int64), return_inverse=True)
        count = self._embedding.num_embeddings
        if len(rows) and not 0 <= rows[0] <= rows[-1] < count:
            raise InputError(
                f"{self.checkpoint.source}: the tokenizer gives token {rows[-1]}, but the embedding has {count} rows; "
                f"is the tokenizer another model's?"
            )
        if not self._rest_loaded:
            tensors = self.checkpoint.tensors
            self._load_rest(lambda name: read_rows(name, np.arange(tensors[name].rows)).reshape(tensors[name].shape))
        compact = read_rows(self._embedding_source, rows).to(self.device)
        local = torch.from_numpy(inverse.reshape(tuple(ids.shape))).to(self.device)
        received: list[Tensor] = []

        def stop(*args: Any, **kwargs: Any) -> Tensor:
            received.append(_hidden_and_call(args, kwargs)[0])
            raise _Reached

        with torch.inference_mode(False), torch.no_grad():
            with _stand_in(dict.fromkeys(self._layers, stop)), self._embedding_of(compact):
                for sequence in local:  # one at a time: masks of a batch would be large
                    with suppress(_Reached):
                        self._model(input_ids=sequence[None], use_cache=False)
            return torch.cat(received)

    def run(self, i: int, module: Callable[..., Any], hidden: Tensor) -> Tensor:
        """`module` on `hidden` [b, s, hidden] with what the model gives block i: positions from 0, no padding.

        `module`: block i, or a function that stands for it. Differentiable in its parameters and in `hidden`.
        """
        args, kwargs = self._calls_for(hidden.shape[1], hidden.dtype)[i]
        alone = any(map(_of_one_sequence, (*args, *kwargs.values())))
        outs = [module(part, *args, **kwargs) for part in (torch.split(hidden, 1) if alone else (hidden,))]
        results: list[Tensor] = [out[0] if isinstance(out, tuple) else out for out in outs]
        return results[0] if len(results) == 1 else torch.cat(results)

    def logits(self, hidden: Tensor, rows: Tensor, first: int = 0) -> Tensor:
        """Logits [b, s, k] of the last block's output [b, s, hidden] for k rows of the output matrix, float32 [k,
        hidden], from row number `first` on: final norm, matrix and bias, scaling or soft cap. Differentiable in
        both. Needs `load_head`."""
        assert self._head_loaded, "load_head comes first"
        flat = hidden.reshape(-1, 1, hidden.shape[-1])  # as sequences of one token: masks and positions are small
        bias = None if self._head.bias is None else self._head.bias[first : first + len(rows)].to(rows.dtype)

        tuples = self._takes_tuples()

        def given(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
            return (flat,) if tuples else flat

        def hand_on(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
            hidden = _hidden_and_call(args, kwargs)[0]
            return (hidden,) if tuples else hidden

        def slab(x: Tensor) -> Tensor:
            return nn.functional.linear(x.to(rows.dtype), rows, bias)

        forwards: dict[nn.Module, Forward] = {layer: hand_on for layer in self._layers} | {
            self._layers[-1]: given,
            self._head: slab,
        }
        one = torch.zeros(1, 1, self.hidden, dtype=hidden.dtype, device=self.device).expand_as(flat)
        with _stand_in(forwards):
            out: Tensor = self._model(inputs_embeds=one, use_cache=False).logits
        return out.reshape(*hidden.shape[:-1], len(rows))

    def _calls_for(self, length: int, dtype: torch.dtype) -> list[Call]:
        """What the model gives each block for sequences of `length`: made for one sequence, it serves any number."""
        if (length, dtype) in self._calls:
            return self._calls[length, dtype]
        calls: list[Call] = []
        tuples = self._takes_tuples()

        def note(*args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
            hidden, call = _hidden_and_call(args, kwargs)
            if hidden.shape != (1, length, self.hidden) or not all(map(_constant, (*call[0], *call[1].values()))):
                raise UnsupportedError(
                    f"{self.checkpoint.source}: the blocks of {type(self._model).__name__} share more than a hidden "
                    f"state, so they cannot be tuned one by one; choose --recipe opt-rtn"
                )
            calls.append(call)
            if len(calls) == self.blocks:
                raise _Reached
            return (hidden,) if tuples else hidden

        with torch.inference_mode(False), torch.no_grad(), _stand_in(dict.fromkeys(self._layers, note)):
            start = torch.zeros(1, length, self.hidden, dtype=dtype, device=self.device)
            with suppress(_Reached):
                self._model(inputs_embeds=start, use_cache=False)
        assert len(calls) == self.blocks, (len(calls), self.blocks)
        if len(self._calls) >= CALLS_KEPT:
            self._calls.pop(next(iter(self._calls)))
        self._calls[length, dtype] = calls
        return calls

    def _takes_tuples(self) -> bool:
        """Whether the model takes the first of what a block returns: of a mere tensor that would be its first row."""
        if self._tuples is None:
            seen: list[int] = []

            def note(*args: Any, **kwargs: Any) -> Tensor:
                hidden = _hidden_and_call(args, kwargs)[0]
                seen.append(hidden.dim())
                if len(seen) == min(2, self.blocks):
                    raise _Reached
                return hidden

            one = torch.zeros(1, 1, self.hidden, device=self.device)
            forwards = dict.fromkeys(self._layers, note)
            with torch.inference_mode(False), torch.no_grad(), _stand_in(forwards), suppress(_Reached):
                self._model(inputs_embeds=one, use_cache=False)
            self._tuples = seen[-1] == 2
        return self._tuples

    @contextmanager
    def _embedding_of(self, rows: Tensor) -> Iterator[None]:
        """The embedding with `rows` alone. Padding only matters to its gradient, and may lie beyond them."""
        module = self._embedding
        whole, padding = module.weight, module.padding_idx
        module.weight, module.padding_idx = nn.Parameter(rows, requires_grad=False), None
        try:
            yield
        finally:
            module.weight, module.padding_idx = whole, padding


@contextmanager
def _stand_in(modules: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Modules with other forwards, which an instance's own attribute makes of them."""
    for module, forward in modules.items():
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module in modules:
            del module.__dict__["forward"]


def _hidden_and_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Call]:
    """The hidden state that a block is given, and the rest."""
    if args:
        return args[0], (args[1:], kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), ((), rest)


def _of_one_sequence(value: object) -> bool:
    """Whether an argument does not broadcast to several sequences (BLOOM's biases have one row a head of each)."""
    return isinstance(value, Tensor) and value.dim() > 2 and len(value) != 1


def _constant(value: object) -> bool:
    """Whether an argument is the same for every batch: no cache, no dictionary through which blocks talk."""
    if isinstance(value, tuple | list):
        return all(map(_constant, value))
    return value is None or isinstance(value, Tensor | bool | int | float | str)
