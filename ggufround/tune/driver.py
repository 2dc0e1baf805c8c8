"""A whole model, block by block: run both chains, tune, hand over what is to be packed, go on with what was packed.

Two chains of hidden states go through the model side by side. The full-precision chain gives each block's target and
the importance of its inputs; the quantised chain, which each block is tuned on, has gone through the blocks as they are
stored. After a block is packed its weights are read back from the unfinished file, so that an interrupted run goes on
from that file with the very same numbers.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ggufround.checkpoint.reading import Reader
from ggufround.planning import Plan, Target
from ggufround.quants.squares import Squares, importance_from, largest_inputs, lending, unreached
from ggufround.tune import device as devices
from ggufround.tune.activations import Activations, runs
from ggufround.tune.blocks import Losses, Pair, Scene, Unit, fixed_columns, micro_batch, tune_block
from ggufround.tune.curvature import Curvature, check_finite, measure
from ggufround.tune.importance import collecting, destinations
from ggufround.tune.latents import Latents
from ggufround.tune.metric import Metric
from ggufround.tune.outputs import ReadOutput, output_weights
from ggufround.tune.preparing import Tuning
from ggufround.tune.segments import Segment, segments
from ggufround.tune.weights import ReadRows, source_weights
from ggufround_kernels import Rounded, stacked

F32 = NDArray[np.float32]
IN_MEMORY = 256 << 20  # bytes of activations that stay in memory where no budget was given
FIRST_TOKENS = 1024  # different tokens that the first position is trained on
Watch = Callable[[str, int, int], None]  # (phase, done, total)


@dataclass(frozen=True)
class Stage:
    """What is ready to be written: these outputs, with what was found out about them."""

    outputs: tuple[str, ...]
    rounded: Mapping[str, Rounded] = field(default_factory=dict)
    importance: Mapping[str, F32] = field(default_factory=dict)  # name -> [matrices, columns]
    losses: Losses | None = None
    name: str = ""
    largest: Mapping[str, float] = field(default_factory=dict)  # name -> largest magnitude of its inputs


@dataclass(frozen=True, eq=False)
class Chains:
    full: Activations
    quantised: Activations

    def pair(self) -> Pair:
        """Between the chains' steps: the quantised one before a block, the full-precision one after it."""
        return Pair(self.quantised, self.full)

    def close(self) -> None:
        self.full.close()
        self.quantised.close()


class Driver:
    """One run over one model for one target. `scales`: NVFP4's global scales by output, [matrices]."""

    def __init__(
        self,
        plan: Plan,
        target: Target,
        tuning: Tuning,
        reader: Reader,
        scales: Mapping[str, F32],
    ) -> None:
        self.plan, self.target, self.scales, self.recipe = plan, target, scales, plan.recipe
        self.settings, self.skeleton, self.amp = tuning.settings, tuning.skeleton, tuning.amp
        self.device, self.seed = tuning.skeleton.device, tuning.seed
        self.calibration = calibration = tuning.calibration
        self.read, self.read_rows = source_weights(plan.checkpoint, reader)
        self.outputs = {o.name: o for o in plan.outputs}
        self._destinations = destinations(plan.outputs)
        self.training = list(range(len(calibration.ids)))
        held = len(calibration.held_out)
        self.held_out = list(range(len(self.training), len(self.training) + held))
        self.ids = np.concatenate([calibration.ids, calibration.held_out]) if held else calibration.ids
        self.squares: dict[str, Squares] = {}

    def stages(self, finished: Callable[[Sequence[str]], bool], read_back: ReadOutput, watch: Watch) -> Iterator[Stage]:
        """Everything that is to be written, block by block. What a stage holds must be in the file before the next is
        asked for: `read_back` reads it from there. Outputs that are `finished` already are not tuned again.

        Raises InputError where activations or losses are not finite.
        """
        blocks = [self._outputs_of(i) for i in range(self.skeleton.blocks)]
        inside = {name for names in blocks for name in names}
        yield Stage(tuple(n for n in self.outputs if n not in inside), name="outside the blocks")
        stored, stored_rows = output_weights(self.plan.outputs, read_back)
        tuned = self.recipe.iterations > 0
        chains = self._begin(self.ids, stored_rows)
        firsts = self._first_tokens() if tuned else None
        anchors = None if firsts is None else self._begin(firsts, stored_rows)
        curvature = self._curvature(watch) if tuned and self.recipe.curvature else None
        try:
            for i, names in enumerate(blocks):
                watch("tune", i * max(1, self.recipe.iterations), self._ticks)
                module = self.skeleton.load(i, self.read)
                found = self._advance(i, module, chains.full)
                if anchors:
                    self._through(i, module, anchors.full)
                importance = importance_from(lending(found)).entries
                largest = largest_inputs(found)
                self.squares |= found
                if not finished(names):
                    if tuned:
                        stage = self._tuned(i, names, module, (chains, anchors), importance, curvature, watch)
                    else:
                        stage = Stage(names, importance=importance, name=f"blk.{i}")
                    yield replace(stage, largest=largest)
                self.skeleton.unload(i)
                if tuned and i + 1 < self.skeleton.blocks:
                    module = self.skeleton.load(i, stored)
                    self._through(i, module, chains.quantised)
                    if anchors:
                        self._through(i, module, anchors.quantised)
                    self.skeleton.unload(i)
        finally:
            for held in (chains, anchors, curvature):
                if held is not None:
                    held.close()

    @property
    def notes(self) -> tuple[str, ...]:
        line = unreached(self.squares)
        return (line,) if line else ()

    @property
    def _ticks(self) -> int:
        return self.skeleton.blocks * max(1, self.recipe.iterations)

    def _outputs_of(self, i: int) -> tuple[str, ...]:
        """The outputs that are made of block i's tensors."""
        sources = set(self.skeleton.block_names(i))
        return tuple(
            name
            for name, output in self.outputs.items()
            if any(p.source.name in sources for p in output.pieces) or re.match(rf"blk\.{i}\.", name)
        )

    def _begin(self, ids: NDArray[np.int32], stored_rows: ReadRows) -> Chains:
        """What block 0 receives in both chains; the quantised one looks its tokens up in the stored embedding."""
        count, tokens = ids.shape
        shape = (count, tokens, self.skeleton.hidden)
        folder = self._folder(2 * 4 * count * tokens * self.skeleton.hidden)
        chains = Chains(Activations(shape, folder), Activations(shape, folder))
        for run in runs(count, micro_batch(tokens)):
            part = torch.from_numpy(ids[run.start : run.stop].astype(np.int64))
            chains.full.put(run, self.skeleton.embed(part, self.read_rows))
            chains.quantised.put(run, self.skeleton.embed(part, stored_rows))
        return chains

    def _folder(self, need: int) -> Path | None:
        """Where so many bytes of activations go: None for memory, else beside the output."""
        room = IN_MEMORY if self.settings.max_ram is None else self.settings.max_ram // 8
        return None if need <= room else self.settings.folder or Path(".")

    def _first_tokens(self) -> NDArray[np.int32] | None:
        """int32 [k, 1]: tokens for the first position; None where all sequences begin with the same one."""
        if len(np.unique(self.ids[:, 0])) == 1:
            return None
        tokens = np.unique(self.calibration.ids)
        order = np.random.default_rng(self.seed).permutation(len(tokens))[:FIRST_TOKENS]
        return tokens[order].astype(np.int32)[:, None]

    def _curvature(self, watch: Watch) -> Curvature:
        ids = self.calibration.ids[: self.recipe.curvature]
        size = self.skeleton.hidden * max(self.skeleton.hidden, ids.size)
        steps = 2 * self.skeleton.blocks
        return measure(
            self.skeleton, self.read, self.read_rows, ids,
            amp=self.amp, seed=self.seed, folder=self._folder(4 * size * self.skeleton.blocks),
            tick=lambda done: watch("measure", done, steps),
        )  # fmt: skip

    def _advance(self, i: int, module: nn.Module, chain: Activations) -> dict[str, Squares]:
        """The full-precision chain through block i, in place; returns what its matrices were multiplied with."""
        with torch.inference_mode(), collecting(module, self.skeleton.places(i), self._destinations) as found:
            self._through(i, module, chain)
        return found

    @torch.inference_mode()
    def _through(self, i: int, module: nn.Module, chain: Activations) -> None:
        for run in runs(chain.shape[0], micro_batch(chain.shape[1])):
            hidden = chain.get(run).to(self.device)
            with devices.mixed(self.device, self.amp):
                out = self.skeleton.run(i, module, hidden).float()
            check_finite(out, i, self.amp)
            chain.put(run, out)

    def _tuned(
        self,
        i: int,
        names: tuple[str, ...],
        module: nn.Module,
        chains: tuple[Chains, Chains | None],
        importance: Mapping[str, F32],
        curvature: Curvature | None,
        watch: Watch,
    ) -> Stage:
        started = time.perf_counter()
        units = self._units(i, module, importance)
        if not units:  # nothing is left to choose
            return Stage(names, importance=importance, name=f"blk.{i}")
        scene = Scene(
            name=f"blk.{i}",
            forward=lambda hidden: self.skeleton.run(i, module, hidden),
            sequences=chains[0].pair(),
            anchors=None if chains[1] is None else chains[1].pair(),
            training=self.training,
            held_out=self.held_out,
            metric=curvature.metric(i, self.device)
            if curvature
            else Metric(torch.ones(self.ids.shape[1], device=self.device)),
            device=self.device,
            amp=self.amp,
            seed=self.seed * 100003 + i,
        )
        base = i * self.recipe.iterations
        losses = tune_block(scene, units, self.recipe, lambda done: watch("tune", base + done, self._ticks))
        losses = replace(losses, seconds=time.perf_counter() - started)
        rounded = assemble([(u.segment, u.latents.rounded() if losses.kept else u.start) for u in units])
        return Stage(names, rounded, importance, losses, f"blk.{i}")

    def _units(self, i: int, module: nn.Module, importance: Mapping[str, F32]) -> list[Unit]:
        """Every segment of the block that has a grid, at the search's rounding."""
        units = []
        for segment in segments(self.skeleton.places(i), self.plan.outputs):
            kind = self.target.types[segment.output]
            if kind.grid is None or kind.search is None or segment.output in self.target.carried:
                continue
            parameter = module.get_parameter(segment.parameter)
            rows = parameter.data.view(-1, parameter.shape[-1])[segment.first : segment.last]
            if segment.columns:
                rows = rows[:, list(segment.columns)].contiguous()
            factor = float(self.scales[segment.output][segment.matrix]) if segment.output in self.scales else 1.0
            entry = importance.get(segment.output)
            weighing = None if entry is None else entry[segment.matrix]
            true = np.ascontiguousarray(rows.cpu().numpy() / np.float32(factor), np.float32)
            start = kind.search(true, weighing, self.recipe.search)
            fixed = fixed_columns(weighing).to(self.device)
            units.append(Unit(segment, Latents(kind.grid, rows, start, factor), parameter, start, fixed))
            units[-1].store()
        return units


def assemble(parts: Sequence[tuple[Segment, Rounded]]) -> dict[str, Rounded]:
    """The rounded rows of each output in the file's order. Every row of an output must be in some segment."""
    by_output: dict[str, list[tuple[Segment, Rounded]]] = {}
    for segment, rounded in parts:
        by_output.setdefault(segment.output, []).append((segment, rounded))
    return {name: _joined(several) for name, several in by_output.items()}


def _joined(several: list[tuple[Segment, Rounded]]) -> Rounded:
    whole = stacked([rounded for _, rounded in several])
    order = np.concatenate([segment.matrix * segment.height + segment.rows for segment, _ in several])
    return whole.part(np.argsort(order, kind="stable"))
