"""llama.cpp's own importance: the callback that llama-imatrix collects with, through the library in xllamacpp's wheel.

The wheel has no llama-imatrix, but its library exports llama.cpp's C functions, among them those that take an
evaluation callback. What is done with it here is what tools/imatrix/imatrix.cpp does: for every MUL_MAT of a weight
whose name starts with "blk." (and of output.weight, if asked) and every MUL_MAT_ID, the sums of squares of src1 by
column, and how many rows there were. In a process of its own: it may abort. Needs no package of ours.

    python tests/llama_imatrix.py MODEL.gguf TOKENS.npy OUT.npz [--output] [--defaults] [--threads N]

TOKENS: int32 [sequences, tokens].
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Offsets into llama_context_params and ggml_tensor, which llama.h and ggml.h lay out; checked before they are used.
N_CTX, N_BATCH, N_UBATCH, MAX_OUTPUTS, THREADS, FLASH = 0, 4, 8, (20, 24), (28, 32), 52
CALLBACK, CACHE_TYPES = 88, (104, 108)
KIND, BUFFER, SIZES, STRIDES, OP, SOURCES, DATA, NAME = 0, 8, 16, 48, 80, 152, 248, 256
F32 = 0
FEWEST = 16  # rows of a multiplication that llama-imatrix looks at
Callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)


class Collected(NamedTuple):
    sums: dict[str, NDArray[np.float64]]  # [matrices, columns]
    counts: dict[str, NDArray[np.int64]]  # [matrices]


class Parameters(ctypes.Structure):
    """Either kind of parameters by value; larger than it is, which does no harm."""

    _fields_ = [("bytes", ctypes.c_ubyte * 512)]  # noqa: RUF012


class Batch(ctypes.Structure):
    _fields_ = [  # noqa: RUF012
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


def library() -> Any:
    """llama.cpp with the types of the functions that are called."""
    import xllamacpp

    lib = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("llama_model_default_params", Parameters, []),
        ("llama_context_default_params", Parameters, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, Parameters]),
        ("llama_init_from_model", pointer, [pointer, Parameters]),
        ("llama_get_memory", pointer, [pointer]),
        ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
        ("llama_batch_init", Batch, [number, number, number]),
        ("llama_decode", number, [pointer, Batch]),
        ("llama_batch_free", None, [Batch]),
        ("llama_free", None, [pointer]),
        ("llama_model_free", None, [pointer]),
        ("ggml_get_name", pointer, [pointer]),
        ("ggml_nbytes", ctypes.c_size_t, [pointer]),
        ("ggml_op_name", ctypes.c_char_p, [number]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def put(parameters: Parameters, offset: int, kind: Any, value: Any) -> None:
    kind.from_buffer(parameters, offset).value = value


def get(parameters: Parameters, offset: int, kind: Any) -> Any:
    return kind.from_buffer(parameters, offset).value


def context_parameters(lib: Any, tokens: int, threads: int, callback: Any, defaults: bool) -> Parameters:
    """One sequence at a time; a cache and attention in float32, so that what differs is not llama.cpp's rounding, or
    those that llama-imatrix has if nothing else is said."""
    made: Parameters = lib.llama_context_default_params()
    u32, i32, f32 = ctypes.c_uint32, ctypes.c_int32, ctypes.c_float
    stated = [get(made, at, u32) for at in (N_CTX, N_BATCH, N_UBATCH)]
    # what llama_context_default_params says, as far as it tells where things lie
    assert stated == [512, 2048, 512], stated
    assert [get(made, at, f32) for at in (68, 72, 76, 84)] == [-1.0] * 4, "llama_context_params has another layout"
    assert [get(made, at, i32) for at in (*THREADS, FLASH)] == [4, 4, -1], "llama_context_params has another layout"
    assert [get(made, at, i32) for at in CACHE_TYPES] == [1, 1], "llama_context_params has another layout"
    assert get(made, CALLBACK, ctypes.c_void_p) is None
    for at in (N_CTX, N_BATCH, N_UBATCH, *MAX_OUTPUTS):
        put(made, at, u32, tokens)
    for at in THREADS:
        put(made, at, i32, threads)
    if not defaults:
        put(made, FLASH, i32, 0)
        for at in CACHE_TYPES:
            put(made, at, i32, F32)
    put(made, CALLBACK, ctypes.c_void_p, ctypes.cast(callback, ctypes.c_void_p).value)
    return made


class Tensor(NamedTuple):
    """A ggml tensor of the graph; `shape` and `strides` as ggml has them, the fastest dimension first."""

    at: int
    kind: int
    op: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, at: int) -> Tensor:
        return cls(
            at,
            ctypes.c_int32.from_address(at + KIND).value,
            ctypes.c_int32.from_address(at + OP).value,
            tuple((ctypes.c_int64 * 4).from_address(at + SIZES)),
            tuple((ctypes.c_size_t * 4).from_address(at + STRIDES)),
        )

    def source(self, number: int) -> Tensor:
        return Tensor.of(ctypes.c_void_p.from_address(self.at + SOURCES + 8 * number).value or 0)

    def name(self) -> str:
        """CPU#blk.0.attn_q.weight#0 is what the scheduler makes of a copied weight's name."""
        text = ctypes.string_at(self.at + NAME).decode()
        return text.split("#")[1] if "#" in text else text

    def array(self, kind: Any) -> NDArray[Any]:
        """What it holds, in host memory, the slowest dimension first."""
        size = 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        size += np.dtype(kind).itemsize - 1
        data = ctypes.c_void_p.from_address(self.at + DATA).value
        raw = np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(data))
        return np.ndarray(self.shape[::-1], kind, raw, strides=self.strides[::-1])


def collect(
    model: Path, tokens: NDArray[np.int32], process_output: bool, threads: int = 1, defaults: bool = False
) -> Collected:
    """What llama-imatrix would collect for these sequences of tokens, taken as they are."""
    lib = library()
    found = Collected({}, {})
    failed: list[BaseException] = []

    def wanted(tensor: Tensor, op: str) -> bool:
        if op != "MUL_MAT":
            return op == "MUL_MAT_ID"
        inputs, name = tensor.source(1), tensor.source(0).name()
        if inputs.shape[1] < FEWEST or inputs.kind != F32:
            return False
        return name.startswith("blk.") or (process_output and name == "output.weight")

    def add(tensor: Tensor, op: str) -> None:
        weight, inputs = tensor.source(0), tensor.source(1)
        name, columns = weight.name(), inputs.shape[0]
        values = inputs.array(np.float32).astype(np.float64)
        matrices = weight.shape[2] if op == "MUL_MAT_ID" else 1
        sums = found.sums.setdefault(name, np.zeros((matrices, columns)))
        counts = found.counts.setdefault(name, np.zeros(matrices, np.int64))
        if op == "MUL_MAT":
            sums += np.square(values.reshape(-1, columns)).sum(0)
            counts += values.size // columns
            return
        chosen = tensor.source(2).array(np.int32)[0, 0]  # [tokens, experts of a token]
        for row, several in enumerate(chosen):
            for k, expert in enumerate(several):
                sums[expert] += np.square(values[0, row, k % values.shape[2]])
                counts[expert] += 1

    def call(at: int, ask: bool, _: Any) -> bool:
        try:
            assert lib.ggml_get_name(at) == at + NAME, "ggml_tensor has another layout"
            tensor = Tensor.of(at)
            op = lib.ggml_op_name(tensor.op).decode()
            if ask:
                return wanted(tensor, op)
            add(tensor, op)
        except BaseException as error:
            failed.append(error)
            return False
        return True

    callback = Callback(call)
    count, length = tokens.shape
    loaded = lib.llama_model_load_from_file(str(model).encode(), lib.llama_model_default_params())
    assert loaded, f"llama.cpp cannot load {model}"
    context = lib.llama_init_from_model(loaded, context_parameters(lib, length, threads, callback, defaults))
    assert context, "llama.cpp makes no context"
    batch = lib.llama_batch_init(length, 0, 1)
    for number in range(count):
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        batch.n_tokens = length
        for k in range(length):
            batch.token[k], batch.pos[k], batch.n_seq_id[k] = int(tokens[number, k]), k, 1
            batch.seq_id[k][0], batch.logits[k] = 0, 1
        result = lib.llama_decode(context, batch)
        if failed:
            raise failed[0]
        assert result == 0, f"llama_decode gives {result}"
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    lib.llama_model_free(loaded)
    return found


def run(
    model: Path, tokens: NDArray[np.int32], folder: Path, process_output: bool = False, threads: int = 1,
    defaults: bool = False, python: str = sys.executable,
) -> Collected:  # fmt: skip
    """`collect` in a process of its own; `folder` for its files."""
    np.save(folder / "tokens.npy", tokens.astype(np.int32))
    command = [python, __file__, str(model), str(folder / "tokens.npy"), str(folder / "collected.npz")]
    command += ["--threads", str(threads)] + ["--output"] * process_output + ["--defaults"] * defaults
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"llama.cpp failed with {done.returncode}: {done.stderr[-2000:]}"
    with np.load(folder / "collected.npz") as data:
        names = {key.removesuffix("|sums") for key in data if key.endswith("|sums")}
        return Collected({n: data[f"{n}|sums"] for n in names}, {n: data[f"{n}|counts"] for n in names})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--output", action="store_true", help="as llama-imatrix's --process-output")
    parser.add_argument("--defaults", action="store_true", help="a float16 cache and fused attention")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    found = collect(options.model, np.load(options.tokens), options.output, options.threads, options.defaults)
    arrays: dict[str, Any] = {f"{name}|sums": value for name, value in found.sums.items()}
    arrays |= {f"{name}|counts": value for name, value in found.counts.items()}
    np.savez(options.out, **arrays)


if __name__ == "__main__":
    main()
