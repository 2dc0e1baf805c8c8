#!/usr/bin/env python3
"""The README's tables of architectures and projectors, from the tables of the code and of the tests.

    python tools/gen_coverage.py [--check]

Writes them between their marks in README.md; with --check only says whether they stand there already (exit code 1 if
not). What was compared is what the tests compare: see `Tiny.proof` in tests/tiny_parts.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- architectures: tools/gen_coverage.py -->\n", "<!-- end of architectures -->\n"
PROOFS = {
    "causal": "next-token probabilities", "embedding": "embeddings", "scores": "scores", "vision": "loads",
    "loads": "loads",
}  # fmt: skip
GOLDENS = ROOT / "tests" / "arch" / "goldens"


def text_models() -> Iterator[tuple[str, str, str, str]]:
    """GGUF architecture, classes, what was compared in llama.cpp, whether it is tuned."""
    import tiny_models
    from ggufround.arch import ARCHITECTURES, Architecture, find_architecture

    named: dict[str, list[Architecture]] = {}
    for architecture in ARCHITECTURES.values():
        several = named.setdefault(architecture.name, [])
        if architecture not in several:
            several.append(architecture)
    proofs: dict[str, set[str]] = {}
    for case in tiny_models.CASES.values():
        proofs.setdefault(find_architecture(case.config).name, set()).add(case.proof)
    for name, several in sorted(named.items()):
        classes = sorted({c for a in several for c in a.classes})
        proof = next((PROOFS[p] for p in PROOFS if p in proofs.get(name, ())), "with another class")
        reasons = sorted({a.untunable for a in several} - {""})
        tuned = "yes" if not reasons else "no" if all(a.untunable for a in several) else "some classes"
        yield name, ", ".join(f"`{c}`" for c in classes), proof, tuned


def projectors() -> Iterator[tuple[str, str, str]]:
    """Class, whether the projector equals the converter's, what was compared in llama.cpp."""
    import tiny_models
    from ggufround.arch import ARCHITECTURES, composite
    from ggufround.arch.vision import PROJECTORS

    seen = _sights()
    cases: dict[str, list[Any]] = {}
    for case in (*tiny_models.CASES.values(), *tiny_models.PROJECTORS.values()):
        cases.setdefault(case.config["architectures"][0], []).append(case)
    for name in sorted({key.partition("/")[0] for key in PROJECTORS}):
        mine = cases.get(name, [])
        alone = any("llm_config" in case.config for case in mine)
        if not mine or not (name in ARCHITECTURES or name in composite.CLASSES or alone):
            continue
        golden = any((GOLDENS / f"{case.name}.mmproj.json").exists() for case in mine)
        compared = any(case.name in seen for case in mine)
        yield (
            f"`{name}`", "equal" if golden else "the converter has none",
            "probabilities after an image" if compared else "answers to images",
        )  # fmt: skip


def _sights() -> frozenset[str]:
    """The cases that tests/vision compares with transformers."""
    from test_llama_cpp import SIGHTS

    return frozenset(SIGHTS)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def written() -> str:
    found = list(text_models())
    classes = sum(row[1].count("`") // 2 for row in found)
    return (
        f"{classes} classes, {len(found)} architectures of llama.cpp:\n\n"
        + table(("GGUF", "classes", "compared in llama.cpp", "tuned"), list(found))
        + "\nVision parts (`--mmproj`):\n\n"
        + table(("class", "beside llama.cpp's converter", "compared in llama.cpp"), list(projectors()))
    )


def main() -> int:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "vision"), str(ROOT / "tests")]
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    made = before + BEGIN + written() + END + rest.split(END)[1]
    if "--check" in sys.argv:
        return int(made != text)
    readme.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
