#!/usr/bin/env python3
"""All that CI checks besides the tests: ruff, mypy, the direction of imports, the flags of jitted functions.

python tools/check.py
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Imports point to the same or a lower layer only; a package may import within itself.
LAYERS = (
    ("version", "errors"),
    ("ggml_types", "gguf_file"),
    ("gguf_read",),
    ("recipes", "quants", "checkpoint", "arch", "tokenizer", "measure"),
    ("carrying",),
    ("planning", "projector"),
    ("formats", "tune"),
    ("layer_planning",),
    ("journal", "preflight", "resuming", "slab_work", "tuning_log"),
    ("conversion",),
    ("evaluate",),
    ("api", "cli", "__main__", "__init__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SLOW_TO_IMPORT = ("torch", "transformers", "datasets", "xllamacpp", "rich")  # allowed inside functions
WITH_TORCH = ("ggufround.tune.", "ggufround.evaluate.divergence")  # likewise: they import torch
KERNELS_MAY_IMPORT = ("numpy", "numba", "llvmlite", "ggufround_kernels", "__future__")
JIT_FLAGS = {"cache": True, "nogil": True, "fastmath": False, "error_model": "numpy"}
MAX_LINES = 500  # tables exempt: their names end in _table


def imports(tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
    """(line, module, inside a function) of every import that runs."""
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module, id(node) in inside
            if node.module == "ggufround":
                for alias in node.names:
                    yield node.lineno, f"ggufround.{alias.name}", id(node) in inside


def check_imports() -> Iterator[str]:
    for path in sorted((ROOT / "ggufround").rglob("*.py")):
        place = path.relative_to(ROOT / "ggufround").parts[0].removesuffix(".py")
        if place == "__init__":
            continue
        if place not in LEVEL:
            yield f"{path.relative_to(ROOT)}: {place} has no layer in tools/check.py"
            continue
        tree = ast.parse(path.read_text())
        for line, module, local in imports(tree):
            where = f"{path.relative_to(ROOT)}:{line}"
            parts = module.split(".")
            if parts[0] == "ggufround" and len(parts) > 1:
                target = parts[1]
                if target in LEVEL and LEVEL[target] > LEVEL[place]:
                    yield f"{where}: {place} must not import {target}: imports point one way"
            if local and parts[0] not in SLOW_TO_IMPORT and not module.startswith(WITH_TORCH):
                yield f"{where}: import of {module} inside a function"
            if parts[0] in ("torch", "transformers") and place not in ("tune", "evaluate", "api"):
                yield f"{where}: {parts[0]} belongs in tune, evaluate and api only"
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        for line, module, _ in imports(ast.parse(path.read_text())):
            if module.split(".")[0] not in (*KERNELS_MAY_IMPORT, *sys.stdlib_module_names):
                yield f"{path.relative_to(ROOT)}:{line}: kernels must not import {module}"


def check_jit() -> Iterator[str]:
    """Every jitted function goes through `_jit.py`, whose flags keep the bytes."""
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or getattr(node.func, "id", getattr(node.func, "attr", "")) not in (
                "njit", "jit", "vectorize", "guvectorize",
            ):  # fmt: skip
                continue
            flags = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            if path.name != "_jit.py":
                yield f"{where}: use the decorators of _jit.py"
            elif any(flags.get(name) is not value for name, value in JIT_FLAGS.items() if name != "error_model"):
                yield f"{where}: flags must be {JIT_FLAGS}, are {flags}"


def check_tree() -> Iterator[str]:
    if (ROOT / "kernels" / "__init__.py").exists():
        yield "kernels/__init__.py exists: it shadows the PyPI package `kernels`"
    for folder in ("ggufround", "kernels", "tests", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            lines = path.read_text().count("\n")
            if lines > MAX_LINES and not path.stem.endswith("_table"):
                yield f"{path.relative_to(ROOT)}: {lines} lines; {MAX_LINES} are the most"


def run(*command: str) -> bool:
    print("$", " ".join(command), flush=True)
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode == 0


def main() -> None:
    sound = run("ruff", "check", ".")
    sound &= run("ruff", "format", "--check", ".")
    sound &= run("mypy")
    for check in (check_imports, check_jit, check_tree):
        found = list(check())
        print(f"{check.__name__}: {'ok' if not found else ''}")
        for line in found:
            print(" ", line)
        sound &= not found
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
