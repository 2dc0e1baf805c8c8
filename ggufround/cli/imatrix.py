"""ggufround imatrix"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ggufround.cli import show
from ggufround.cli.calibration_flags import Calib, Chat, Samples, Seed, Seqlen, calibration_options
from ggufround.cli.values import Arch, Json


def imatrix_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Directory or hub id (org/name) of a checkpoint.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write: .gguf, or .dat for the older kind.")],
    calib: Calib = None,
    samples: Samples = None,
    seqlen: Seqlen = None,
    seed: Seed = None,
    chat: Chat = None,
    process_output: Annotated[bool, typer.Option("--process-output", help="Look at output.weight too.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or xpu.")] = "auto",
    amp: Annotated[bool, typer.Option("--amp", help="Multiply in bfloat16: faster where the device can.")] = False,
    arch: Arch = None,
    json: Json = False,
) -> None:
    """Collect a model's importance matrix, as llama.cpp reads it, without llama.cpp."""
    from ggufround.tune.extra import require_extra

    require_extra()
    from ggufround.tune.imatrix import CALIBRATION, Computing, make_imatrix

    options = calibration_options(CALIBRATION, calib, samples, seqlen, seed, chat)
    computing = Computing(device=device, amp=amp, folder=out.parent)
    try:
        with show.progress(quiet=json) as update:
            report = make_imatrix(
                model,
                out,
                options,
                process_output=process_output,
                architecture=arch,
                computing=computing,
                progress=update,
            )
    except KeyboardInterrupt:
        show.complain("interrupted; nothing was written")
        raise typer.Exit(1) from None
    if json:
        show.dump(asdict(report) | {"seconds": round(report.seconds, 3)})
        return
    for line in report.notes:
        show.note(line)
    show.say(
        f"{report.file}: importance of {report.entries} tensors from {report.sequences} x {report.seqlen} tokens of "
        f"{report.calibration}"
    )
    show.say(f"{report.seconds:.1f} s, peak memory {show.human(report.peak_memory)}")
