"""What can fail before the first long step of a tuned or calibrated run, and what its provenance will say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ggufround import measure
from ggufround.errors import UsageError
from ggufround.gguf_file import Field, Kind, string, u32
from ggufround.planning import Plan
from ggufround.recipes import Recipe
from ggufround.tune import device as devices
from ggufround.tune.attention import kept_bytes
from ggufround.tune.blocks import micro_batch
from ggufround.tune.calibration import Calibration, CalibrationOptions, load_calibration
from ggufround.tune.extra import require_extra
from ggufround.tune.skeleton import Skeleton

WEIGHT_BYTES_TUNED = 20  # of a weight: itself, gradient, latent, bfloat16 copy, the search's result
KEPT_BYTES = 8  # of each number that goes into or out of a matrix
RUN_BYTES = 300 << 20  # what torch and the kernels allocate once the first block runs


@dataclass(frozen=True)
class Settings:
    """Where and how to compute. `amp`: bfloat16 products; None: where they are faster. `max_ram` in bytes; `folder`:
    where activations go that it does not hold."""

    device: str = "auto"
    amp: bool | None = None
    threads: int | None = None
    max_ram: int | None = None
    folder: Path | None = None


@dataclass(frozen=True, eq=False)
class Tuning:
    """A run that needs the model to be run: what on, and how; `memory`: about how many bytes the process will take."""

    calibration: Calibration
    settings: Settings
    skeleton: Skeleton
    amp: bool
    seed: int
    memory: int


def prepare(plan: Plan, texts: CalibrationOptions, settings: Settings) -> tuple[Plan, Tuning]:
    """The plan with calibration's provenance and notes, and what the driver needs.

    Raises UnsupportedError for a model that cannot be run block by block, UsageError or InputError for the
    calibration text, UsageError for several types at once, an absent device, or too little memory for one block.
    """
    require_extra()
    if any(target.types != plan.targets[0].types for target in plan.targets):
        names = ", ".join(t.mix.name for t in plan.targets)
        raise UsageError(f"calibration and tuning take one type at a time, not {names}; run them one after the other")
    device = devices.choose(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    skeleton = Skeleton(plan.checkpoint, device)
    calibration = load_calibration(texts, plan.checkpoint, skeleton.vocab)
    amp = devices.fast_bfloat16(device) if settings.amp is None else settings.amp
    needed = measure.resident_memory() + block_memory(skeleton, calibration.ids.shape[1], plan.recipe)
    if settings.max_ram is not None and needed > settings.max_ram:
        raise UsageError(
            f"--max-ram {settings.max_ram / 1e6:,.0f} MB is too little: one block and a micro-batch take about "
            f"{needed / 1e6:,.0f} MB{'; a smaller --seqlen takes less' if calibration.ids.shape[1] > 512 else ''}"
        )
    metadata = _provenance(plan.recipe, texts, calibration, devices.describe(device, amp))
    targets = tuple(replace(t, metadata={**t.metadata, **metadata}) for t in plan.targets)
    return replace(plan, targets=targets, notes=(*plan.notes, *calibration.notes)), Tuning(
        calibration, settings, skeleton, amp, texts.seed, needed
    )


def block_memory(skeleton: Skeleton, tokens: int, recipe: Recipe) -> int:
    """Bytes that the largest block takes while it is tuned, or only run: weights, gradients, latents, and what a
    backward pass keeps of a micro-batch."""
    tuned = recipe.iterations > 0
    scores = kept_bytes(micro_batch(tokens), skeleton.heads, tokens) if tuned else 0
    most = 0
    for i in range(skeleton.blocks):
        tensors = [skeleton.checkpoint.tensors[name] for name in skeleton.block_names(i)]
        weights = sum(t.rows * t.columns for t in tensors)
        kept = sum(t.rows + t.columns for t in tensors if len(t.shape) > 1) * micro_batch(tokens) * tokens
        most = max(most, (WEIGHT_BYTES_TUNED if tuned else 4) * weights + (KEPT_BYTES if tuned else 8) * kept)
    return most + scores + RUN_BYTES


def _provenance(recipe: Recipe, texts: CalibrationOptions, calibration: Calibration, device: str) -> dict[str, Field]:
    """What decides the result besides the model and the mix."""
    fields = {
        "ggufround.calibration.name": string(calibration.name),
        "ggufround.calibration.sha256": string(calibration.digest),
        "ggufround.calibration.sequences": u32(len(calibration.ids)),
        "ggufround.calibration.tokens": u32(calibration.ids.shape[1]),
        "ggufround.device": string(device),
    }
    if recipe.iterations:
        fields |= {
            "ggufround.tuning.iterations": u32(recipe.iterations),
            "ggufround.tuning.batch": u32(recipe.batch),
            "ggufround.tuning.seed": Field(Kind.I64, texts.seed),
            "ggufround.tuning.rates": string(
                f"codes {recipe.rate or 1 / recipe.iterations:g}, scales {recipe.scale_rate:g}, d {recipe.d_rate:g}"
            ),
            "ggufround.tuning.curvature": u32(recipe.curvature),
        }
    return fields
