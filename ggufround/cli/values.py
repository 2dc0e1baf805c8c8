"""What the flags hold: one annotated type a flag, shared by the commands, and the parsing of their texts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ggufround.cli.calibration_flags import Calib, Chat, Samples, Seed, Seqlen, calibration_options
from ggufround.errors import UsageError
from ggufround.layer_planning import CheckpointOptions
from ggufround.planning import Options
from ggufround.preflight import Run
from ggufround.quants.mixes import Overrides, tensor_types, type_name
from ggufround.quants.schemes import Scheme, changed, scheme
from ggufround.recipes import Recipe, recipe

if TYPE_CHECKING:
    from ggufround.tune.calibration import CalibrationOptions

SIZES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Directory, hub id (org/name) or .gguf file.")]
Type = Annotated[
    str | None,
    typer.Option(
        "--type",
        "-t",
        help="Quantisation(s), e.g. q4_k_m or q4_k_m,q8_0; see `ggufround list mixes`. Default: q4_k_m; for a model "
        "that is quantised, the types that hold its codes as they are.",
    ),
]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        help="rtn: llama.cpp's bytes. opt-rtn: our better search. light, base, best: rounding tuned on a text.",
    ),
]
TensorType = Annotated[
    list[str] | None,
    typer.Option("--tensor-type", "--layer", metavar="PATTERN=TYPE", help="Type of matching tensors; repeatable."),
]
TensorTypeFile = Annotated[Path | None, typer.Option(help="File with PATTERN=TYPE entries, separated by whitespace.")]
OutputType = Annotated[str | None, typer.Option("--output-tensor-type", metavar="TYPE", help="Type of output.weight.")]
EmbeddingType = Annotated[
    str | None, typer.Option("--token-embedding-type", metavar="TYPE", help="Type of token_embd.weight.")
]
LeaveOutput = Annotated[bool, typer.Option("--leave-output-tensor", help="Do not quantise output.weight.")]
Format = Annotated[
    str,
    typer.Option("--format", help="gguf, or checkpoint format(s) as in `ggufround list formats`, e.g. auto_round,mlx."),
]
SchemeName = Annotated[
    str | None, typer.Option("--scheme", help="Of a checkpoint format: W4A16 (default), W2A16G64, MXFP4, NVFP4, ...")
]
Bits = Annotated[int | None, typer.Option("--bits", help="Of a checkpoint format: bits of a weight.")]
GroupSize = Annotated[int | None, typer.Option("--group-size", help="Weights that share a scale; -1: a whole row.")]
Symmetric = Annotated[bool | None, typer.Option("--sym/--asym", help="Without or with zero points.")]
QuantHead = Annotated[bool, typer.Option("--quant-lm-head", help="Quantise lm_head too.")]
Ignore = Annotated[
    list[str] | None, typer.Option("--ignore", metavar="PATTERN", help="Keep matching layers in 16 bits; repeatable.")
]
Pure = Annotated[bool, typer.Option("--pure", help="One type for all matrices, no mix.")]
Imatrix = Annotated[Path | None, typer.Option("--imatrix", help="Importance matrix, .gguf or .dat, from llama.cpp.")]
Pre = Annotated[str | None, typer.Option("--pre", metavar="NAME", help="Pre-tokenizer, where it is not recognised.")]
Arch = Annotated[str | None, typer.Option("--arch", metavar="NAME", help="Treat MODEL as this architecture.")]
Threads = Annotated[int | None, typer.Option("--threads", help="Worker threads; default: one a core.")]
MaxRam = Annotated[str | None, typer.Option("--max-ram", metavar="SIZE", help="Memory budget, e.g. 2GB.")]
SplitMaxSize = Annotated[str | None, typer.Option("--split-max-size", metavar="SIZE", help="Shard size, e.g. 5GB.")]
Iters = Annotated[int | None, typer.Option("--iters", metavar="N", help="Tuning steps of a block.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", metavar="N", help="Sequences of a tuning step.")]
Rate = Annotated[float | None, typer.Option("--lr", metavar="X", help="First tuning step, in codes; default 1/iters.")]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="Where to tune: auto, cpu, cuda or xpu.")]
Mmproj = Annotated[
    Path | None,
    typer.Option("--mmproj", metavar="FILE", help="Write the vision part too, as llama.cpp's projector file."),
]
MmprojType = Annotated[
    str | None, typer.Option("--mmproj-type", metavar="TYPE", help="Of the projector: f16 (default), bf16, f32, q8_0.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@dataclass(frozen=True)
class Flags:
    """The flags that say what is to be made of a model; `convert` and `plan` share them."""

    type_: Type = None
    recipe: RecipeName = "opt-rtn"
    tensor_type: TensorType = None
    tensor_type_file: TensorTypeFile = None
    output_tensor_type: OutputType = None
    token_embedding_type: EmbeddingType = None
    leave_output_tensor: LeaveOutput = False
    pure: Pure = False
    imatrix: Imatrix = None
    pre: Pre = None
    arch: Arch = None
    calib: Calib = None
    samples: Samples = None
    seqlen: Seqlen = None
    seed: Seed = None
    chat: Chat = None
    iters: Iters = None
    batch_size: BatchSize = None
    lr: Rate = None
    device: Device = "auto"
    threads: Threads = None
    max_ram: MaxRam = None
    split_max_size: SplitMaxSize = None
    format_: Format = "gguf"
    scheme: SchemeName = None
    bits: Bits = None
    group_size: GroupSize = None
    sym: Symmetric = None
    quant_lm_head: QuantHead = False
    ignore: Ignore = None
    mmproj: Mmproj = None
    mmproj_type: MmprojType = None

    def options(self) -> Options | CheckpointOptions:
        """Those of a GGUF file or of a checkpoint. Raises UsageError for what can be seen without the model."""
        if self.mmproj is None and self.mmproj_type is not None:
            raise UsageError("--mmproj-type is for --mmproj: say with it which file to write")
        if self.formats != ("gguf",):
            return self._checkpoint_options()
        self._refuse(
            "is for checkpoint formats (--format), not for GGUF",
            {
                "--scheme": self.scheme, "--bits": self.bits, "--group-size": self.group_size, "--sym/--asym": self.sym,
                "--quant-lm-head": self.quant_lm_head or None, "--ignore": self.ignore or None,
            },
        )  # fmt: skip
        entries = list(self.tensor_type or ())
        if self.tensor_type_file is not None:
            entries += _read_entries(self.tensor_type_file)
        overrides = Overrides(
            tensor_types=tensor_types(entries),
            output_tensor_type=_kind(self.output_tensor_type),
            token_embedding_type=_kind(self.token_embedding_type),
            leave_output_tensor=self.leave_output_tensor,
            pure=self.pure,
        )
        types = None if self.type_ is None else tuple(t.strip() for t in self.type_.split(",") if t.strip())
        chosen = self.chosen_recipe()
        return Options(types, chosen, overrides, self.imatrix, self.pre, self.arch, calibrated=self.calib is not None)

    def _checkpoint_options(self) -> CheckpointOptions:
        self._refuse(
            f"is for GGUF, not for --format {self.format_}",
            {
                "--tensor-type-file": self.tensor_type_file, "--output-tensor-type": self.output_tensor_type,
                "--token-embedding-type": self.token_embedding_type, "--imatrix": self.imatrix, "--pre": self.pre,
                "--leave-output-tensor": self.leave_output_tensor or None, "--pure": self.pure or None,
                "--type": self.type_, "--arch": self.arch, "--mmproj": self.mmproj,
            },
        )  # fmt: skip
        chosen = changed(scheme(self.scheme or "W4A16"), self.bits, self.group_size, self.sym)
        layers = tuple(_layer(entry, chosen) for entry in self.tensor_type or ())
        layers += tuple((pattern, None) for pattern in self.ignore or ())
        formats = tuple(name for name in self.formats if name != "gguf")
        return CheckpointOptions(
            chosen, formats, self.chosen_recipe(), layers, self.quant_lm_head, calibrated=self.calib is not None
        )

    @property
    def formats(self) -> tuple[str, ...]:
        """The names, in small letters."""
        return tuple(name.strip().lower() for name in self.format_.split(",") if name.strip())

    @property
    def beside_gguf(self) -> bool:
        """Whether a GGUF file is to hold the codes of a checkpoint as well."""
        return "gguf" in self.formats and len(self.formats) > 1

    def _refuse(self, why: str, given: dict[str, object]) -> None:
        """Raises UsageError for the first flag that was given."""
        for flag, value in given.items():
            if value is not None:
                raise UsageError(f"{flag} {why}")

    def chosen_recipe(self) -> Recipe:
        """The recipe with what was given in place of its numbers. Raises UsageError."""
        named = recipe(self.recipe)
        if not named.iterations and (given := [f for f, v in self._steps().items() if v is not None]):
            raise UsageError(f"{given[0]} is for the tuned recipes light, base and best; {named.name} does not tune")
        for flag, value in self._steps().items():
            if value is not None and not 0 < value < inf:
                raise UsageError(f"{flag} must be {'finite and ' if value == inf else ''}more than 0, got {value}")
        return replace(
            named,
            iterations=self.iters or named.iterations,
            batch=self.batch_size or named.batch,
            rate=self.lr or named.rate,
        )

    def _steps(self) -> dict[str, float | None]:
        return {"--iters": self.iters, "--batch-size": self.batch_size, "--lr": self.lr}

    def calibration(self) -> CalibrationOptions | None:
        """What the model is run on; None where it is not run."""
        named = recipe(self.recipe)
        if self.calib is None and not named.iterations:
            given: dict[str, object] = {"--samples": self.samples, "--seqlen": self.seqlen, "--seed": self.seed}
            given["--chat" if self.chat else "--plain"] = self.chat
            given["--device"] = None if self.device in ("auto", "cpu") else self.device
            for flag, value in given.items():
                if value is not None:
                    raise UsageError(f"{flag} is for calibration: give --calib or a recipe that tunes")
            return None
        from ggufround.tune.calibration import CalibrationOptions

        default = CalibrationOptions(samples=named.samples, seqlen=named.seqlen)
        return calibration_options(default, self.calib, self.samples, self.seqlen, self.seed, self.chat)

    def run(self, fresh: bool = False) -> Run:
        """As Run. Raises UsageError for a size that is none."""
        split = size(self.split_max_size, "--split-max-size")
        return Run(self.threads, size(self.max_ram, "--max-ram"), split, fresh)


def takes_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Gives `command`, which has a parameter `flags: Flags`, every field of Flags as a flag of its own."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]
    hints = get_type_hints(Flags, include_extras=True)
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(Flags)
    ]

    def call(**given: Any) -> None:
        flags = Flags(**{f.name: given.pop(f.name) for f in fields(Flags)})
        command(**given, flags=flags)

    call.__doc__ = command.__doc__
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call


def size(text: str | None, flag: str) -> int | None:
    """Bytes of a size such as 500M, 4.2GB or 2GiB (decimal unless an i says otherwise). Raises UsageError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?", text.strip().upper())
    if not found or found[2] not in SIZES or float(found[1]) == 0:
        raise UsageError(f"{flag} wants a size such as 500M, 4.2GB or 2GiB, got {text!r}")
    return int(float(found[1]) * SIZES[found[2]])


def _read_entries(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--tensor-type-file {path} cannot be read: {error}") from error


def _kind(text: str | None) -> str | None:
    return None if text is None else type_name(text)


def _layer(entry: str, default: Scheme) -> tuple[str, Scheme | None]:
    """PATTERN=SCHEME, PATTERN=BITS, or PATTERN=16 for what stays as it is."""
    pattern, _, value = entry.rpartition("=")
    if not pattern:
        raise UsageError(f"--layer {entry!r}: must be PATTERN=SCHEME, such as 'down_proj=W8A16', or PATTERN=16")
    if value.lower() in ("16", "bf16", "f16"):
        return pattern, None
    return pattern, changed(default, bits=int(value)) if value.isdigit() else scheme(value)
