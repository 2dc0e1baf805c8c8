"""Flags that say which text a model is run on, shared by the commands that run it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ggufround.tune.calibration import CalibrationOptions

Calib = Annotated[
    list[str] | None,
    typer.Option(
        "--calib",
        metavar="TEXT|DATASET",
        help="Calibration text: .txt, .jsonl or a hub data set, each with :weight=N if wanted; repeatable. Default: a "
        "small built-in text.",
    ),
]
Samples = Annotated[int | None, typer.Option("--samples", metavar="N", help="Calibration sequences.")]
Seqlen = Annotated[int | None, typer.Option("--seqlen", metavar="N", help="Tokens of a calibration sequence.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Which sequences are drawn; default: 42.")]
Chat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--plain",
        help="Calibration texts in the model's chat markers or without any; default: conversations with them.",
    ),
]


def calibration_options(
    default: CalibrationOptions,
    calib: list[str] | None,
    samples: int | None,
    seqlen: int | None,
    seed: int | None,
    chat: bool | None,
) -> CalibrationOptions:
    """`default` with what was given."""
    return replace(
        default,
        sources=default.sources if calib is None else tuple(calib),
        samples=default.samples if samples is None else samples,
        seqlen=default.seqlen if seqlen is None else seqlen,
        seed=default.seed if seed is None else seed,
        chat=default.chat if chat is None else chat,
    )
