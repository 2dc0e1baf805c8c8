"""The Python interface that users of auto-round know, over the same pipeline as the command line.

    from ggufround import AutoRound
    AutoRound("Qwen/Qwen3-0.6B", scheme="W4A16").quantize_and_save("out", format="auto_round")

A model that was given by path or hub id is streamed from its shards and never held whole. A loaded one is written to a
temporary directory first, since that is where everything here reads from.
"""

from __future__ import annotations

import difflib
import json
import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ggufround.conversion import Progress, Report, carry_out, convert, gguf_beside, lay_out_all, plan_all, plan_of
from ggufround.errors import UnsupportedError, UsageError
from ggufround.formats.checkpoint import CheckpointLayout, global_factor, reading, records
from ggufround.formats.repack import repack
from ggufround.formats.table import checkpoint_format
from ggufround.layer_planning import CheckpointOptions
from ggufround.planning import Options, Plan
from ggufround.preflight import Run
from ggufround.quants.schemes import Scheme, changed, described
from ggufround.quants.schemes import scheme as scheme_named
from ggufround.recipes import RECIPES, Recipe

if TYPE_CHECKING:
    from ggufround.tune.calibration import CalibrationOptions

CARRIER = "llm_compressor"  # holds every scheme: what `quantize` finds is kept in it until it is saved
GGUF = "gguf"
ITERATIONS = 200  # auto-round's default
LayerConfig = Mapping[str, Mapping[str, Any] | str]


class AutoRound:
    """A model to be quantised. Arguments have auto-round's names and meanings:

    model            directory, hub id, or a loaded transformers model (with its `tokenizer`)
    scheme           "W4A16", "W2A16G64", "MXFP4", "NVFP4", "FP8_BLOCK", ..., or "GGUF:Q4_K_M"; bits, group_size (-1: a
                     row) and sym change it
    layer_config     patterns of layer names, each with a scheme's name or {"bits": 8, "group_size": .., "sym": ..};
                     {"bits": 16} keeps a layer
    dataset          calibration text: file, hub data set, or several; or a list of texts. None: a small built-in text
    iters            tuning steps a block; 0: no tuning, our search (`disable_opt_rtn=True`: plain rounding)
    device_map       "cpu", "cuda", "cuda:1", "xpu" or "auto"; a number is that of a CUDA device
    low_gpu_mem_usage   accepted; one block is on the device at a time anyway
    progress         called with (phase, done, in all) while it runs

    Raises TypeError for an argument that there is not, and what the pipeline raises (leaves of GgufroundError).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        scheme: str = "W4A16",
        *,
        bits: int | None = None,
        group_size: int | None = None,
        sym: bool | None = None,
        layer_config: LayerConfig | None = None,
        dataset: str | Sequence[str] | None = None,
        iters: int | None = None,
        nsamples: int | None = None,
        seqlen: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        device_map: str | int | None = None,
        low_gpu_mem_usage: bool = True,
        seed: int = 42,
        ignore_layers: str | Sequence[str] = (),
        quant_lm_head: bool = False,
        disable_opt_rtn: bool = False,
        max_ram: int | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
        **unknown: object,
    ) -> None:
        for name in unknown:
            raise TypeError(_no_argument(type(self).__name__, name, AutoRound.__init__.__annotations__))
        self._scratch: Path | None = None
        self._loaded = None if isinstance(model, str | Path) else model
        self._tokenizer, self._given = tokenizer, model
        self._gguf = scheme.lower().partition("gguf:")[2]
        self._scheme = None if self._gguf else changed(scheme_named(scheme), bits, group_size, sym)
        if self._gguf and not bits is group_size is sym is None:
            raise UsageError(f"{scheme} has its own bits and groups; leave bits, group_size and sym out")
        ignored = [ignore_layers] if isinstance(ignore_layers, str) else list(ignore_layers)
        self._layers = tuple(_layer(pattern, value, self._scheme) for pattern, value in (layer_config or {}).items())
        self._layers += tuple((pattern, None) for several in ignored for pattern in several.split(",") if pattern)
        self._recipe = _recipe(ITERATIONS if iters is None else iters, batch_size, lr, disable_opt_rtn)
        self._head, self._device = quant_lm_head, _device(device_map)
        self._dataset, self._seed = dataset, seed
        self._samples, self._seqlen = nsamples or self._recipe.samples, seqlen or self._recipe.seqlen
        self._progress = progress
        self._run = Run(threads=threads, max_ram=max_ram)
        self._found: tuple[CheckpointLayout, dict[str, str]] | None = None
        self.report: Report | None = None  # of the last run

    def quantize(self) -> tuple[Any, dict[str, dict[str, Any]]]:
        """(model, layer config). A loaded model gets the quantised weights, dequantised, in place; for a path it is
        None. What was found is kept in a temporary directory for `save_quantized`.

        Raises UsageError for a GGUF scheme, UnsupportedError where a loaded model has fused what files have apart.
        """
        if self._scheme is None:
            raise UsageError("GGUF files are written in one go; call quantize_and_save")
        folder = self._directory() / "rounded"
        layout, plan = self._write(folder, (CARRIER,))[0]
        assert isinstance(layout, CheckpointLayout)
        digests = json.loads((folder / "ggufround.json").read_text())
        self._found = layout, {k: v for k, v in digests.items() if k.endswith(("data_sha256", "weights_sha256"))}
        if self._loaded is not None:
            _fill(self._loaded, layout)
        return self._loaded, _layer_config(plan)

    def save_quantized(self, output_dir: str | Path, format: str = "auto_round") -> list[Path]:  # noqa: A002
        """Writes what `quantize` found, in one or several formats ("auto_round,mlx"); the folders. Nothing is rounded
        again. Raises UsageError before `quantize`, and for a format that cannot hold the scheme."""
        if self._found is None:
            raise UsageError("there is nothing to save yet; call quantize first, or quantize_and_save")
        layout, digests = self._found
        folders = []
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        for name, folder in self._folders(output_dir, _names(format)):
            plan = plan_of(self._path(), self._options((name,)))
            target = replace(plan.targets[0], metadata=layout.target.metadata)
            (made,) = lay_out_all(replace(plan, targets=(target,)), folder)
            assert isinstance(made, CheckpointLayout)
            repack(layout, made, digests)
            folders.append(folder)
        return folders

    def quantize_and_save(
        self,
        output_dir: str | Path = "tmp_autoround",
        format: str = "auto_round",  # noqa: A002
        max_shard_size: int | None = None,
    ) -> tuple[Any, list[Path]]:
        """(model, folders): quantises and writes in one pass; "gguf:q4_k_m" is a format too,
        and "gguf" beside another one: a file with the same codes. `max_shard_size` in bytes.
        The model is returned as it was given, None for a path."""
        run = replace(self._run, split_max_size=max_shard_size)
        names = _names(format)
        gguf = [name for name in names if name.startswith(f"{GGUF}:")] or ([f"gguf:{self._gguf}"] if self._gguf else [])
        beside = not self._gguf and GGUF in names
        names = [] if self._gguf else [name for name in names if not name.startswith(GGUF)]
        if beside and not names:
            raise UsageError("gguf needs a type, such as format='gguf:q4_k_m', or a checkpoint format beside it")
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        made = []
        for name in gguf:
            kind = name.partition(":")[2]
            out = Path(output_dir) / f"{self._name()}-{kind}.gguf"
            self._carry_out(Options((kind,), self._recipe), out, run)
            made.append(out)
        if names:
            named = self._folders(output_dir, names)
            several = [folder for _, folder in named]
            out = several[0] if len(named) == 1 else Path(output_dir) / f"{self._stem()}-{{format}}"
            plan, _ = self._carry_out(self._options(tuple(names)), out, run)
            made += several
            if beside:
                out = gguf_beside(plan, Path(output_dir) / f"{self._stem()}-{{format}}")
                convert(several[0], out, options=Options(), run=run)
                made.append(out)
        return self._loaded, made

    def _write(self, folder: Path, formats: tuple[str, ...]) -> list[tuple[Any, Plan]]:
        plan, layouts = self._carry_out(self._options(formats), folder, self._run)
        return [(layout, plan) for layout in layouts]

    def _carry_out(self, options: Options | CheckpointOptions, out: Path, run: Run) -> tuple[Plan, Any]:
        plan, tuning = plan_all(self._path(), options, self._calibration(), self._device, run, out.parent)
        layouts = lay_out_all(plan, out, run.split_max_size)
        self.report = carry_out(plan, layouts, run, self._progress, tuning=tuning)
        return plan, layouts

    def _options(self, formats: tuple[str, ...]) -> CheckpointOptions:
        assert self._scheme is not None
        return CheckpointOptions(self._scheme, formats, self._recipe, self._layers, self._head)

    def _calibration(self) -> CalibrationOptions | None:
        """Text to run the model on; None where it need not be run."""
        if self._dataset is None and not self._recipe.iterations:
            return None
        from ggufround.tune.calibration import CalibrationOptions

        given = [self._dataset] if isinstance(self._dataset, str) else list(self._dataset or ())
        if given and isinstance(self._dataset, str):
            given = self._dataset.split(",")
        elif given and not all(_is_source(text) for text in given):
            path = self._directory() / "dataset.jsonl"
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in given))
            given = [str(path)]
        return CalibrationOptions(tuple(given), self._samples, self._seqlen, self._seed)

    def _directory(self) -> Path:
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="ggufround-"))
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        return self._scratch

    def _path(self) -> str | Path:
        """Where the model's files are."""
        if self._loaded is None:
            return self._given  # type: ignore[no-any-return]
        path = self._directory() / "model"
        if not path.exists():
            if self._tokenizer is None:
                raise UsageError("a loaded model needs its tokenizer: AutoRound(model, tokenizer)")
            try:
                self._loaded.save_pretrained(path, safe_serialization=True)
                self._tokenizer.save_pretrained(path)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                raise
        return path

    def _name(self) -> str:
        given = self._given if self._loaded is None else getattr(self._loaded, "name_or_path", "") or "model"
        return Path(given).resolve().name if Path(given).exists() else str(given).rstrip("/").rpartition("/")[2]

    def _stem(self) -> str:
        assert self._scheme is not None
        return f"{self._name()}-{folder_suffix(self._scheme)}"

    def _folders(self, output_dir: str | Path, formats: Sequence[str]) -> list[tuple[str, Path]]:
        end = "-{}" if len(formats) > 1 else ""
        for name in formats:
            checkpoint_format(name)
        return [(name, Path(output_dir) / (self._stem() + end.format(name))) for name in formats]


class AutoRoundMLLM(AutoRound):
    """The same for vision-language models: their language tower is quantised and, for now, tuned on text; everything
    that sees or hears stays as it is. `processor` goes into the folders with a loaded model."""

    def __init__(self, model: Any, tokenizer: Any = None, processor: Any = None, **given: Any) -> None:
        super().__init__(model, tokenizer, **given)
        self._processor = processor

    def _path(self) -> str | Path:
        path = super()._path()
        if self._loaded is not None and self._processor is not None:
            self._processor.save_pretrained(path)
        return path


def folder_suffix(scheme: Scheme) -> str:
    """What auto-round appends to a model's name: w4g128."""
    if scheme.data == "int":
        return f"w{scheme.bits}g{scheme.group}" if scheme.group > 0 else f"w{scheme.bits}"
    return scheme.name.lower()


def _names(formats: str) -> list[str]:
    return [name.strip().lower() for name in formats.split(",") if name.strip()]


def _no_argument(owner: str, name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"{owner} has no argument {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _recipe(iterations: int, batch: int | None, rate: float | None, plain: bool) -> Recipe:
    """Ours with the most steps that are no more than those asked for, with that many."""
    if not iterations:
        return RECIPES["rtn" if plain else "opt-rtn"]
    if iterations < 0:
        raise UsageError(f"iters must be 0 or more, got {iterations}")
    tuned = sorted((r for r in RECIPES.values() if r.iterations), key=lambda r: r.iterations)
    near = [r for r in tuned if r.iterations <= iterations] or tuned[:1]
    return replace(
        near[-1], iterations=iterations, samples=128, batch=batch or near[-1].batch, rate=rate or near[-1].rate
    )


def _device(device_map: str | int | None) -> str:
    if device_map is None:
        return "auto"
    return f"cuda:{device_map}" if isinstance(device_map, int) or device_map.isdigit() else device_map


def _is_source(text: str) -> bool:
    """Whether one of a list of strings is a file or a data set, not a text to calibrate on."""
    return bool(re.fullmatch(r"\S+\.(txt|md|jsonl)(:\S+)?|[\w.-]+/[\w.-]+(:\S+)?", text))


def _layer(pattern: str, value: Mapping[str, Any] | str, default: Scheme | None) -> tuple[str, Scheme | None]:
    if default is None:
        raise UsageError("layer_config is for checkpoint schemes; for GGUF use convert(..., Options(overrides=...))")
    if isinstance(value, str):
        return pattern, scheme_named(value)
    if unknown := set(value) - {"bits", "group_size", "sym", "data_type", "scheme"}:
        raise UsageError(f"layer_config[{pattern!r}] has no key {min(unknown)!r}; there are bits, group_size, sym")
    if value.get("bits", 0) >= 16:
        return pattern, None
    base = scheme_named(value["scheme"]) if "scheme" in value else default
    return pattern, changed(base, value.get("bits"), value.get("group_size"), value.get("sym"))


def _layer_config(plan: Plan) -> dict[str, dict[str, Any]]:
    layers = plan.targets[0].layers
    assert layers is not None
    kept = {name: {"bits": 16, "data_type": "float"} for name in layers.kept}
    return {name: described(scheme) for name, scheme in layers.quantised.items()} | kept


def _fill(model: Any, layout: CheckpointLayout) -> None:
    """Puts the quantised weights, as they will be dequantised, into a loaded model."""
    import torch

    parameters = dict(model.named_parameters())
    places = {name: place for name, place in layout.places.items() if place.type.codec is not None}
    if absent := [name for name in places if name not in parameters]:
        raise UnsupportedError(f"the loaded model holds {absent[0]} fused with others; use quantize_and_save")
    with reading(layout) as read, torch.no_grad():
        for name, place in places.items():
            rows = np.frombuffer(records(place, read, 0, place.rows), np.uint8).reshape(place.rows, -1)
            weights = np.empty(place.shape, np.float32)
            place.type.unpack(rows, weights)
            parameters[name].copy_(torch.from_numpy(weights * global_factor(place, read)))
