"""ggufround eval"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ggufround.cli import show
from ggufround.cli.values import Json, Threads
from ggufround.evaluate.summary import Estimate, Evaluation, Scored, paired
from ggufround.evaluate.texts import read_chunks
from ggufround.tune.extra import require_extra


def evaluate_command(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help=".gguf files or quantised folders of one model.")
    ],
    reference: Annotated[str, typer.Option("--reference", metavar="MODEL", help="The checkpoint they were made from.")],
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="The text to judge by, UTF-8.")],
    context: Annotated[int, typer.Option("--ctx", metavar="N", help="Tokens of a chunk.")] = 512,
    chunks: Annotated[int | None, typer.Option("--chunks", metavar="N", help="Chunks, at most; default: all.")] = None,
    all_positions: Annotated[
        bool, typer.Option("--all-positions", help="Score all tokens, not the second half of each chunk alone.")
    ] = False,
    threads: Threads = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or xpu.")] = "auto",
    json: Json = False,
) -> None:
    """Perplexity of GGUF files or quantised checkpoints, and their KL divergence from the model they were made from.

    Text is cut and scored as llama.cpp's perplexity tool does it.
    """
    require_extra()
    from ggufround.evaluate.divergence import evaluate, open_reference

    known = open_reference(reference)
    ids = read_chunks(text, known.checkpoint, context, chunks)
    with show.progress(quiet=json) as update:
        scored: Scored = "all" if all_positions else "half"
        results = evaluate(files, known, ids, scored=scored, progress=update, threads=threads, device=device)
    if json:
        show.dump({"reference": reference, "text": text.name, "files": [as_json(result) for result in results]})
        return
    _show(results, text)


def as_json(result: Evaluation) -> dict[str, Any]:
    """All figures by name, estimates and chunks as objects."""
    out = asdict(result)
    for key, value in vars(result).items():
        if hasattr(value, "_asdict"):
            out[key] = value._asdict()
    out["per_chunk"] = [chunk._asdict() for chunk in result.per_chunk]
    return out


def _show(results: tuple[Evaluation, ...], text: Path) -> None:
    for result in results:
        for line in result.notes:
            show.note(line)
    first = results[0]
    rows = [
        ("size", *(show.human(r.size or 0) for r in results)),
        ("bits per weight", *(f"{r.bits_per_weight or 0:.2f}" for r in results)),
        ("perplexity", *(f"{r.perplexity:.4f}" for r in results)),
        ("change of ln(perplexity)", *(_pair(r.log_prob_change, -1) for r in results)),
        ("KL divergence, mean", *(_pair(r.divergence) for r in results)),
    ]
    rows += [(f"KL divergence, {key}", *(f"{r.quantiles[key]:.5f}" for r in results)) for key in first.quantiles]
    rows.append(("same top token, %", *(_pair(r.same_top, 100, 2) for r in results)))
    if len(results) > 1:
        differences = (paired(first.per_chunk, r.per_chunk) for r in results[1:])
        rows.append(("KL less the first file's", "", *map(_pair, differences)))
    names = _distinct([Path(r.name).name for r in results])
    show.table(f"against the reference on {text.name}, ± standard error over chunks", ("", *names), rows)
    show.say(
        f"{first.chunks} chunks of {first.context} tokens, {first.tokens:,} of them scored; reference perplexity "
        f"{first.reference_perplexity:.4f}; {first.seconds:.1f} s, peak memory {show.human(first.peak_memory)}"
    )


def _pair(value: Estimate, factor: float = 1.0, digits: int = 5) -> str:
    error = "" if value.error is None else f" ± {abs(factor) * value.error:.{digits}f}"
    return f"{factor * value.mean:.{digits}f}{error}"


def _distinct(names: list[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} ({number + 1})" for number, name in enumerate(names)]
