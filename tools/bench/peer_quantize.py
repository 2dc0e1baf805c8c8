#!/usr/bin/env python3
"""The second of llama.cpp's two steps, through llama-cpp-python: llama_model_quantize, as llama-quantize calls it.

    peer_quantize.py IN.gguf OUT.gguf Q4_K_M THREADS

Runs in the peer's environment (llama-cpp-python >= 0.3), where ggufround need not be installed.
"""

from __future__ import annotations

import argparse
import ctypes
import sys

import llama_cpp


@llama_cpp.llama_log_callback
def quiet(level: int, text: bytes, data: object) -> None:
    """llama.cpp prints a line a tensor."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("out")
    parser.add_argument("type", type=str.upper)
    parser.add_argument("threads", type=int)
    options = parser.parse_args()
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{options.type}")
    params.nthread = options.threads
    return llama_cpp.llama_model_quantize(options.source.encode(), options.out.encode(), ctypes.byref(params))


if __name__ == "__main__":
    sys.exit(main())
