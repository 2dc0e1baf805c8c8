#!/usr/bin/env python3
"""Compares tuned files with llama-quantize's and auto-round's: divergence from the model, CPU time, peak memory.

    python tools/bench/tuning.py MODEL --calib calib.txt --text eval.txt --work DIR [--types q4_k_m,q2_k_s,nvfp4]
        [--seeds 42,7] [--autoround-python PYTHON] [--peer-python PYTHON]

All get the same tokens, the first SAMPLES x SEQLEN of the calibration text, and the same number of threads:
* llama-quantize, with an importance matrix of those tokens (`ggufround imatrix` writes it), in the environment of
  --peer-python (llama-cpp-python). Without one, and for the types that llama.cpp does not write, `ggufround --recipe
  rtn` stands in, which gives the same bytes (parity.py) but says nothing of llama-quantize's cost;
* `ggufround --recipe opt-rtn --calib`: importance, no tuning;
* `ggufround --recipe light`, once a seed;
* auto-round's search without tuning, and auto-round with --alg-ext at the same iterations and batch, once a seed, for
  the types that it has, in the environment of --autoround-python (peer_autoround.py says what that needs).

Everything counts, the start of Python too; CPU time is that of the process and its children, peak memory that of the
largest of them. OMP_WAIT_POLICY is passive unless the environment says otherwise: waiting is not counted as work.

A comparison of hours can be stopped and gone on with. Each run leaves DIR/NAME.gguf, NAME.log, and NAME.json with its
command, versions and cost; what is there is not made again, and eval-*.json keep what was evaluated. A file that was
put there by hand is evaluated like the others, its cost unknown. Other settings need another DIR.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from perplexity import paired

HERE = Path(__file__).resolve().parent
OURS = (sys.executable, "-m", "ggufround")
TYPES = "q4_k_m,q3_k_m,q2_k_s,q2_k,q4_0,mxfp4,nvfp4"
OF_AUTOROUND = ("q2_k_s", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "q4_0")
NOT_OF_LLAMA = ("mxfp4", "nvfp4")  # as a mix they are ours
LLAMA, STAND_IN, SEARCH = "llama-quantize", "rtn", "opt-rtn"
PEER_SEARCH, PEER = "auto-round opt-rtn", "auto-round"
PACKAGES = {
    "ggufround": ("ggufround", "torch", "transformers", "numba"),
    PEER: ("auto-round", "torch", "transformers"),
    LLAMA: ("llama-cpp-python",),
}
NORMAL_95 = 1.96  # standard errors


@dataclass(frozen=True)
class Job:
    """One file to be made. `command` writes into the folder {folder}; `settings`: what must not change in DIR."""

    method: str
    type: str
    tool: str
    command: tuple[str, ...]
    settings: dict[str, Any]
    seed: int | None = None

    @property
    def name(self) -> str:
        words = [self.type, self.method, *([] if self.seed is None else [f"s{self.seed}"])]
        return "-".join(words).replace(" ", "-")


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def importance(options: argparse.Namespace) -> Path:
    """Where the importance matrix of the calibration tokens lies."""
    work: Path = options.work
    return work / f"imatrix-{digest(options.calib)}-{options.samples}x{options.seqlen}.dat"


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """All files, type by type."""
    threads = ("--threads", str(options.threads))
    few = ("--samples", str(options.samples), "--seqlen", str(options.seqlen))
    steps = ("--iters", str(options.iters), "--batch-size", str(options.batch_size))
    common = {"model": options.model.resolve().name, "calibration": digest(options.calib)}
    common |= {"samples": options.samples, "seqlen": options.seqlen, "threads": options.threads}
    tuned = common | {"iters": options.iters, "batch": options.batch_size}
    peer_tuned = tuned | {"batch": options.peer_batch_size}
    imatrix = ("--imatrix", str(importance(options)))
    for kind in options.types.split(","):

        def ours(recipe: str, *flags: str, kind: str = kind) -> tuple[str, ...]:
            command = (*OURS, "convert", str(options.model), "{folder}/out.gguf", "--type", kind, "--recipe", recipe)
            return (*command, *flags, *threads, "--json")

        def peer(iters: int, seed: int, *flags: str, kind: str = kind) -> tuple[str, ...]:
            script = (options.autoround_python or "", str(HERE / "peer_autoround.py"), str(options.model), "{folder}")
            flags = (*flags, *few, "--iters", str(iters), "--batch-size", str(options.peer_batch_size), *threads)
            return (*script, str(options.calib), "--format", f"gguf:{kind}", "--seed", str(seed), *flags)

        if kind in NOT_OF_LLAMA or not options.peer_python:
            flags = () if kind in NOT_OF_LLAMA else imatrix
            yield Job(STAND_IN, kind, "ggufround", ours("rtn", *flags), common)
        else:
            script = (options.peer_python, str(HERE / "peer_quantize.py"), str(options.work / "bf16.gguf"))
            command = (*script, "{folder}/out.gguf", kind, str(options.threads), *imatrix)
            yield Job(LLAMA, kind, LLAMA, command, common)
        calib = ("--calib", str(options.calib), *few)
        yield Job(SEARCH, kind, "ggufround", ours(SEARCH, *calib), common)
        if kind in OF_AUTOROUND:
            yield Job(PEER_SEARCH, kind, PEER, peer(0, options.seeds[0]), common)
        for seed in options.seeds:
            flags = (*calib, *steps, "--seed", str(seed), *options.flags.split())
            more = tuned | {"flags": options.flags}
            yield Job(options.recipe, kind, "ggufround", ours(options.recipe, *flags), more, seed)
            if kind in OF_AUTOROUND:
                yield Job(PEER, kind, PEER, peer(options.iters, seed, "--alg-ext"), peer_tuned, seed)


@cache
def versions(python: str, tool: str) -> dict[str, str]:
    """Of the packages that decide what comes out, in that environment; of ours also the commit."""
    script = "import json, sys\nfrom importlib.metadata import version\n"
    script += "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    done = subprocess.run([python, "-c", script, *PACKAGES[tool]], stdout=subprocess.PIPE, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    if tool == "ggufround":
        command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
        found["commit"] = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return found


def timed(command: list[str], log: Path) -> tuple[dict[str, float], bytes]:
    """Cost and stdout of a command; CalledProcessError if it fails. This process stays small: a child's peak starts
    with its parent's."""
    environment = {"OMP_WAIT_POLICY": "passive"} | dict(os.environ)
    out = log.with_suffix(".out")
    start = time.perf_counter()
    with log.open("wb") as errors, out.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        try:
            _, status, use = os.wait4(child.pid, 0)
        except KeyboardInterrupt:  # the child got it too
            child.wait()
            raise
    child.returncode = os.waitstatus_to_exitcode(status)
    wall, said = time.perf_counter() - start, out.read_bytes()
    out.unlink()
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command, said)
    scale = 1 if sys.platform == "darwin" else 1024
    return {"wall": wall, "cpu": use.ru_utime + use.ru_stime, "peak": use.ru_maxrss * scale}, said


def report_of(said: bytes) -> Any:
    """The JSON that a tool printed: all of its output, or the last line."""
    for text in (said, said.strip().rpartition(b"\n")[2]):
        try:
            return json.loads(text)
        except ValueError:
            continue
    return None


def make(job: Job, work: Path) -> bool:
    """Makes the job's file unless it is there. False if it was not made. Exits where other settings made it."""
    out, about, log = (work / f"{job.name}.{end}" for end in ("gguf", "json", "log"))
    if out.exists():
        known = json.loads(about.read_text()) if about.exists() else {}
        there = known.get("settings", job.settings)
        if different := [key for key in job.settings | there if job.settings.get(key) != there.get(key)]:
            key = different[0]
            sys.exit(
                f"{out} was made with {key} {there.get(key)!r}, now it is {job.settings.get(key)!r}: "
                f"choose another --work, or remove it to have it made again"
            )
        print(f"{job.name}: there already{'' if 'cost' in known else ', at a cost not known here'}", file=sys.stderr)
        return True
    if not job.command[0]:
        print(f"{job.name}: left out, there is no --autoround-python", file=sys.stderr)
        return False
    folder = work / f"{job.name}.running"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command = [word.format(folder=folder) if word.startswith("{folder}") else word for word in job.command]
    print(f"{job.name}: {' '.join(command)}", file=sys.stderr)
    try:
        used = versions(command[0], job.tool)
        cost, said = timed(command, log)
        (made,) = folder.rglob("*.gguf")
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        print(f"{job.name}: failed, {log} tells more: {error}", file=sys.stderr)
        return False
    known = {"command": command, "settings": job.settings, "versions": used, "cost": cost}
    about.write_text(json.dumps(known | {"report": report_of(said)}, indent=1) + "\n")
    for path in folder.glob("*.tuning.jsonl"):
        path.replace(work / f"{job.name}.tuning.jsonl")
    made.replace(out)
    shutil.rmtree(folder)
    print(f"{job.name}: {cost['cpu']:.0f} s of CPU, {cost['peak'] / 1e6:.0f} MB", file=sys.stderr)
    return True


def prepare(options: argparse.Namespace) -> None:
    """What llama-quantize is given: the model in BF16, and the importance of the calibration tokens."""
    few = ("--samples", str(options.samples), "--seqlen", str(options.seqlen))
    needed: dict[str, tuple[str, ...]] = {}
    needed[importance(options).name] = ("imatrix", str(options.model), "{out}", "--calib", str(options.calib), *few)
    if options.peer_python:
        needed["bf16.gguf"] = ("convert", str(options.model), "{out}", "--type", "bf16")
    for name, words in needed.items():
        out = options.work / name
        if not out.exists():
            command = [*OURS, *(str(out) if word == "{out}" else word for word in words), "--json"]
            cost, _ = timed(command, options.work / f"{name}.log")
            print(f"{name}: {cost['cpu']:.0f} s of CPU, {cost['peak'] / 1e6:.0f} MB", file=sys.stderr)


def evaluate(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """`ggufround eval` of the files by name, in one go; what was evaluated before, the same bytes, is not again."""
    part = "all" if options.all_positions else "half"
    name = f"eval-{digest(options.text)}-{options.chunks or 'all'}x{options.context}-{part}.json"
    kept = options.work / name
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    digests = {name: digest(options.work / f"{name}.gguf") for name in names}
    missing = [name for name in names if found.get(name, {}).get("sha256") != digests[name]]
    if missing:
        command = [*OURS, "eval", *(str(options.work / f"{name}.gguf") for name in missing)]
        command += ["--reference", str(options.model), "--text", str(options.text), "--ctx", str(options.context)]
        command += ["--chunks", str(options.chunks)] if options.chunks else []
        command += ["--all-positions"] if options.all_positions else []
        command += ["--threads", str(options.threads), "--json"]
        print(f"evaluating {len(missing)} files", file=sys.stderr)
        try:
            cost, said = timed(command, options.work / "eval.log")
        except subprocess.CalledProcessError as error:
            sys.exit(f"{error}\n{(options.work / 'eval.log').read_text()}")
        print(f"evaluated: {cost['cpu']:.0f} s of CPU, {cost['peak'] / 1e6:.0f} MB", file=sys.stderr)
        for name, figures in zip(missing, json.loads(said)["files"], strict=True):
            found[name] = figures | {"sha256": digests[name]}
        kept.write_text(json.dumps(found, indent=1) + "\n")
    return found


def in_errors(figures: dict[str, Any], other: dict[str, Any]) -> str:
    """The difference of two files' divergences, paired by chunk, in its standard errors; below zero is better."""
    ours, theirs = ([chunk["divergence"] for chunk in f["per_chunk"]] for f in (figures, other))
    if len(ours) < 2:
        return "-"
    difference, error = paired(theirs, ours)
    return f"{difference / error:+.1f}" if error else "same"


def table(made: list[Job], results: dict[str, Any], options: argparse.Namespace) -> str:
    """Markdown; ratios are to the baseline of the type, and to auto-round's file of the same kind and seed."""
    about = {job.name: options.work / f"{job.name}.json" for job in made}
    known = {name: json.loads(path.read_text()) if path.exists() else {} for name, path in about.items()}
    by_kind = {(job.type, job.method, job.seed): job.name for job in made}
    lines = [
        "| type | | seed | bytes | KL divergence, mean | of baseline | less auto-round's, s.e. | perplexity "
        "| same top, % | CPU, s | of auto-round's | peak, MB | of auto-round's |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for job in made:
        figures, cost = results[job.name], known[job.name].get("cost", {})
        baseline = by_kind.get((job.type, LLAMA, None)) or by_kind.get((job.type, STAND_IN, None))
        against = {SEARCH: PEER_SEARCH, options.recipe: PEER}.get(job.method)
        peer = by_kind.get((job.type, against, job.seed)) if against else None
        peer_cost = known[peer].get("cost", {}) if peer else {}
        mean, error = figures["divergence"]["mean"], figures["divergence"]["error"]

        def part(key: str, cost: dict[str, float] = cost, other: dict[str, float] = peer_cost) -> str:
            return f"{cost[key] / other[key]:.2f}" if key in cost and key in other else "-"

        cells = [
            job.type.upper(),
            job.method,
            "" if job.seed is None else str(job.seed),
            f"{figures['size']:,}",
            f"{mean:.4f}" + (f" ± {NORMAL_95 * error:.4f}" if error is not None else ""),
            f"{mean / results[baseline]['divergence']['mean']:.3f}" if baseline else "-",
            in_errors(figures, results[peer]) if peer else "-",
            f"{figures['perplexity']:.3f}",
            f"{100 * figures['same_top']['mean']:.2f}",
            f"{cost['cpu']:.0f}" if cost else "-",
            part("cpu"),
            f"{cost['peak'] / 1e6:.0f}" if cost else "-",
            part("peak"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(made: list[Job], results: dict[str, Any], options: argparse.Namespace) -> str:
    """What the table was measured on."""
    first = results[made[0].name]
    used: dict[str, set[str]] = {}
    for job in made:
        path = options.work / f"{job.name}.json"
        stated = json.loads(path.read_text()).get("versions", {}) if path.exists() else {}
        used.setdefault(job.tool, set()).update(" ".join(pair) for pair in stated.items())
    tools = "; ".join(", ".join(sorted(names)) for names in used.values() if names)
    model, texts = options.model.resolve().name, (options.text.name, options.calib.name)
    return (
        f"{model} on {first['chunks']} chunks of {first['context']} tokens of {texts[0]}, {first['tokens']:,} scored "
        f"({first['scored']}); reference perplexity {first['reference_perplexity']:.3f}; ± is the 95 % interval over "
        f"chunks. Calibrated on {options.samples} x {options.seqlen} tokens of {texts[1]}, {options.iters} iterations "
        f"of {options.batch_size} sequences (auto-round: {options.peer_batch_size}), {options.threads} threads, "
        f"{platform.machine()} with {os.cpu_count()} cores. {tools}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a checkpoint's directory, such as models.py writes")
    parser.add_argument("--calib", type=Path, required=True, metavar="TEXT", help="such as texts.py writes")
    parser.add_argument("--text", type=Path, required=True, help="to evaluate on; nothing of it may be in --calib")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where everything goes and stays")
    parser.add_argument("--types", type=str.lower, default=TYPES, help="default: %(default)s")
    parser.add_argument("--seeds", default="42", help="such as 42,7")
    parser.add_argument("--recipe", default="light", help="of the tuned files; default: %(default)s")
    parser.add_argument("--iters", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--peer-batch-size", type=int, help="auto-round's; default: as --batch-size")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--flags", default="", help="further flags for our tuned files, such as '--lr 0.03'")
    parser.add_argument("--autoround-python", metavar="PYTHON")
    parser.add_argument("--peer-python", metavar="PYTHON")
    parser.add_argument("--context", type=int, default=512, help="tokens of an evaluated chunk")
    parser.add_argument("--chunks", type=int, help="of the evaluated text; default: all")
    parser.add_argument("--all-positions", action="store_true", help="score all of a chunk, not its second half")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="make nothing: evaluate and show what is in --work")
    options = parser.parse_args()
    options.peer_batch_size = options.peer_batch_size or options.batch_size
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    options.work.mkdir(parents=True, exist_ok=True)
    wanted = list(jobs(options))
    if options.show:
        wanted = [job for job in wanted if (options.work / f"{job.name}.gguf").exists()]
    else:
        prepare(options)
    made = [job for job in wanted if make(job, options.work)]
    if not made:
        sys.exit("no file could be made")
    results = evaluate([job.name for job in made], options)
    print(f"{table(made, results, options)}\n\n{summary(made, results, options)}")
    sys.exit(any(job.command[0] and job not in made for job in wanted))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on, with the run that was cut off from its start")
