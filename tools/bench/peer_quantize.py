#!/usr/bin/env python3
"""The second of llama.cpp's two steps, through llama-cpp-python: llama_model_quantize, as llama-quantize calls it.

    peer_quantize.py IN.gguf OUT.gguf Q4_K_M THREADS [--imatrix FILE.dat]

Runs in the peer's environment (llama-cpp-python >= 0.3), where ggufround need not be installed.
"""

from __future__ import annotations

import argparse
import ctypes
import struct
import sys
from pathlib import Path

import llama_cpp


@llama_cpp.llama_log_callback
def quiet(level: int, text: bytes, data: object) -> None:
    """llama.cpp prints a line a tensor."""


class Entry(ctypes.Structure):
    """llama_model_imatrix_data."""

    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t)]


def read_imatrix(path: Path) -> ctypes.Array[Entry]:
    """The entries of an importance matrix in llama.cpp's older format (imatrix.py writes it), and the empty last."""
    data = path.read_bytes()
    (count,) = struct.unpack_from("<i", data)
    entries = (Entry * (count + 1))()
    position = 4
    for entry in entries[:-1]:
        (length,) = struct.unpack_from("<i", data, position)
        entry.name = data[position + 4 : position + 4 + length]
        calls, size = struct.unpack_from("<ii", data, position + 4 + length)
        position += 12 + length
        sums = struct.unpack_from(f"<{size}f", data, position)
        entry.data, entry.size = (ctypes.c_float * size)(*(value / max(1, calls) for value in sums)), size
        position += 4 * size
    return entries


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("out")
    parser.add_argument("type", type=str.upper)
    parser.add_argument("threads", type=int)
    parser.add_argument("--imatrix", type=Path)
    options = parser.parse_args()
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = (
        int(options.type) if options.type.isdigit() else getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{options.type}")
    )
    params.nthread = options.threads
    entries = read_imatrix(options.imatrix) if options.imatrix else None
    if entries:
        params.imatrix = ctypes.cast(entries, dict(params._fields_)["imatrix"])
    return llama_cpp.llama_model_quantize(options.source.encode(), options.out.encode(), ctypes.byref(params))


if __name__ == "__main__":
    sys.exit(main())
