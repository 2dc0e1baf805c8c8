#!/usr/bin/env python3
"""Compares `ggufround convert --recipe rtn` with llama-quantize, tensor by tensor, for every file type both can write.

    python tools/bench/parity.py MODEL BF16.gguf --peer-python PYTHON [--imatrix FILE.dat] [--types q4_k_m,q2_k]

BF16.gguf is what llama.cpp's converter makes of MODEL (--outtype bf16). PYTHON is an environment with
llama-cpp-python. Prints a line a type and exits with 1 if any tensor differs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from ggufround import Options, Run, convert
from ggufround.gguf_read import read_gguf
from ggufround.quants.mixes import mix

HERE = Path(__file__).resolve().parent
TYPES = (
    "f32,f16,bf16,q4_0,q4_1,q5_0,q5_1,q8_0,q2_k,q3_k_s,q3_k_m,q3_k_l,q4_k_s,q4_k_m,q5_k_s,q5_k_m,q6_k,"
    "iq4_nl,iq4_xs,tq1_0,tq2_0,q1_0,q2_0,mxfp4_moe"
)


def different(ours: Path, theirs: Path) -> tuple[int, list[str]]:
    """Tensors compared, and the names of those whose type, shape or bytes differ."""
    a, b = read_gguf(ours), read_gguf(theirs)
    names = sorted(set(a.tensors) | set(b.tensors))
    with ours.open("rb") as left, theirs.open("rb") as right:
        wrong = []
        for name in names:
            x, y = a.tensors.get(name), b.tensors.get(name)
            if x is None or y is None or (x.type, x.shape) != (y.type, y.shape):
                wrong.append(name)
                continue
            left.seek(x.offset)
            right.seek(y.offset)
            if left.read(x.nbytes) != right.read(y.nbytes):
                wrong.append(name)
    return len(names), wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("bf16", type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as work:
        ours, theirs = Path(work, "ours.gguf"), Path(work, "theirs.gguf")
        for kind in asked.types.split(","):
            options = Options(types=(kind,), recipe="rtn", imatrix=asked.imatrix)
            convert(asked.model, ours, options=options, run=Run(threads=asked.threads))
            command = [
                asked.peer_python,
                str(HERE / "peer_quantize.py"),
                str(asked.bf16),
                str(theirs),
                str(mix(kind).file_type),
            ]
            command += [str(asked.threads)] + (["--imatrix", str(asked.imatrix)] if asked.imatrix else [])
            if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
                print(f"{kind}: llama.cpp refuses this type for this model", flush=True)
                continue
            count, wrong = different(ours, theirs)
            print(
                f"{kind}: {count} tensors, {len(wrong)} differ{': ' + ', '.join(wrong[:5]) if wrong else ''}",
                flush=True,
            )
            failed |= bool(wrong)
    sys.exit(failed)


if __name__ == "__main__":
    main()
