"""Architectures as data: a Rule says where a tensor goes, a KV says where a number of the config goes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ggufround.checkpoint.spec import TensorRef
from ggufround.gguf_file import Field

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one source tensor, and what is done to them on the way.

    `via` is pure and maps float32 [k * granule, columns] to the same shape (e.g. un-permuting the rows of whole
    heads, or adding one); rows are always handed over in whole granules, so that a slab can be cut anywhere between.

    A piece that is no sequence of source rows (a transposed matrix, a vector that becomes a column) is "solid": `via`
    maps `read` rows of the source at once, float32 [read, source columns], to [rows, columns], in one slab.

    `back` undoes a `via` that does more than move rows and add a constant, for the whole piece at once; elements of the
    source that the piece does not hold are zeros.

    `columns` tells of a `via` that only puts columns in another order: the source's column that becomes each column.
    """

    source: TensorRef
    first: int
    rows: int
    granule: int = 1
    via: Callable[[F32], F32] | None = None
    read: int = 0  # 0: as many as `rows`, one for one
    back: Callable[[F32], F32] | None = None
    columns: tuple[int, ...] = ()

    @property
    def source_rows(self) -> int:
        """Rows of the source that the piece is made of."""
        return self.read or self.rows

    @property
    def moves_rows_only(self) -> bool:
        """Whether each row of the piece has the columns of a source row, so that it can be tuned and weighted there."""
        return not self.read and (self.back is None or bool(self.columns))


@dataclass(frozen=True)
class Output:
    """One tensor of the GGUF file before it has a type: its pieces in order (an expert stack has one an expert), or
    `values` that the architecture computes. `shape` is row-major; the file states it reversed."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...] = ()
    values: F32 | None = None
    float32: bool = False  # llama.cpp's converter always stores it in F32


@dataclass(frozen=True)
class Layout:
    """Every tensor of the file, in llama-quantize's order (tensors of no block first, then block by block, by name),
    and every checkpoint tensor that is left out, with the reason."""

    outputs: tuple[Output, ...]
    dropped: tuple[tuple[str, str], ...] = ()


# config.json with `text_config` merged in, nulls removed and the architecture's defaults laid under it.
Config = Mapping[str, Any]


class Transform(NamedTuple):
    """A pure function on float32 rows and the number of rows that it must be given at a time; `back` and `columns` as
    in `Piece`."""

    function: Callable[[F32], F32]
    granule: int = 1
    back: Callable[[F32], F32] | None = None
    columns: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rule:
    """Where a checkpoint tensor goes. Names are full, with their `.weight`; `{i}` is a block, `{e}` an expert.

    `{m}` is the block counted from the first one beyond the config's layers (heads that predict further tokens).

    Source names are written without the prefixes that `Architecture.prefixes` strips. A source with `{e}` names one
    matrix an expert and gives one stack [experts, rows, columns]. Several rules with the same destination are
    alternatives: the first whose source exists counts. Several sources of one shape are put one below the other.

    `runs` takes rows (elements of a vector) in another order, or some of them, as consecutive pieces: so a fused matrix
    is regrouped. `makes` names the output's shape where it is not the source's: with `via`, which then maps each run
    (or the whole source, or each matrix of a stack) at once; without, the same elements in another shape.
    """

    source: str | tuple[str, ...]
    to: str
    shape: str  # the source's shape as names from `SIZES`, row-major: "q embd"; `{e}` sources: of one expert
    via: Callable[[Config], Transform | None] | None = None
    bias: bool = False  # llama.cpp reads an optional `.bias` beside it, of the shape's first size
    optional: bool = False
    part: tuple[int, int] = (0, 1)  # the k-th of n equal runs of rows of each matrix
    trim: bool = False  # rows beyond the shape's first size are left out instead of refused
    pad: bool = False  # rows that are lacking to the shape's first size are zeros
    where: Callable[[Config, int], bool] | None = None  # the blocks that have it; None: all
    runs: Callable[[Config], Iterable[tuple[int, int]]] | None = None  # (first row, rows) in the output's order
    makes: str = ""
    renumber: Callable[[Config, int], int] | None = None  # the source's `{i}`, where it is not the output's block
    float32: bool = False  # llama.cpp's converter stores it in F32, whatever its name
    borrows: bool = False  # the source is of another part of the model; not all of it need be used
    stack: Callable[[Config], int] | None = None  # `{e}` counts to it; None: the config's number of experts


def with_biases(*rules: Rule) -> tuple[Rule, ...]:
    """Each rule and that of its bias, where llama.cpp cannot do without (`Rule.bias` is for those that may be there).

    The bias is taken apart as the rows of its matrix are; transforms that turn matrices do not concern it."""

    def bias(rule: Rule) -> Rule:
        sources = (rule.source,) if isinstance(rule.source, str) else rule.source
        return replace(
            rule,
            source=tuple(name.removesuffix(".weight") + ".bias" for name in sources),
            to=rule.to.removesuffix(".weight") + ".bias",
            shape=rule.shape.split()[0] if not rule.makes else rule.makes.split()[0],
            via=None if rule.makes else rule.via,
            makes="",
        )

    return tuple(each for rule in rules for each in (rule, bias(rule)))


Reader = Callable[[Config], Field | None]


class KV(NamedTuple):
    """A metadata key ("block_count" below the architecture's name, or a whole "tokenizer...." one) and how its value is
    read; None is not written."""

    key: str
    read: Reader


@dataclass(frozen=True)
class Drop:
    """Checkpoint tensors that llama.cpp does without: a glob over full checkpoint names, and the reason."""

    pattern: str
    reason: str
    beside: str = ""  # only where the checkpoint has this tensor too


@dataclass(frozen=True)
class Architecture:
    """All that is particular to a family of models. A variant is `dataclasses.replace(OTHER, ...)`."""

    name: str  # general.architecture
    classes: tuple[str, ...]  # `architectures` in config.json
    rules: tuple[Rule, ...]
    kvs: tuple[KV, ...]
    tokenizers: tuple[str, ...]  # kinds to try in order: see tokenizer.load.KINDS
    # What transformers assumes where config.json is silent; a function is called with the config so far.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    computed: tuple[Callable[[Config], tuple[Output, ...]], ...] = ()
    checks: tuple[Callable[[Config], None], ...] = ()  # raise UnsupportedError for what llama.cpp would get wrong
    rope_types: tuple[str, ...] = ("default", "linear", "dynamic", "yarn")  # the others would be ignored silently
    drops: tuple[Drop, ...] = ()  # besides those of every model
    prefixes: tuple[str, ...] = ("model.", "language_model.", "text_model.")
    sizes: Mapping[str, Callable[[Config], int]] = field(default_factory=dict)  # words of shapes besides `SIZES`
    further: tuple[KV, ...] = ()  # keys in full, below no architecture's name
    # Keys (in full) with a number a block, which the checkpoint holds as tensors of one value: their name with `{i}`.
    numbers: tuple[tuple[str, str], ...] = ()
    # `{i}` counts to it; None: the config's number of layers. Blocks beyond that may be absent as a whole.
    blocks: Callable[[Config], int] | None = None
    beyond: str = ""  # why `layers` numbered from there on are left out of the file, if a checkpoint may have them
    seen: Callable[[Config, Collection[str]], Config] | None = None  # further keys, which tensor names alone tell
    # The architecture that a config of these classes means, where they stand for several.
    variant: Callable[[Config], Architecture] | None = None
    untunable: str = ""  # why the tuner cannot run it, if it cannot
    part: Literal["text", "vision"] = "text"  # which part of a composite model it is of; tensors of others are dropped
