#!/usr/bin/env python3
"""The README's table of architectures, from the tables of the code and of the tests.

    python tools/coverage.py [--check]

Writes it between its marks in README.md; with --check only says whether it stands there already (exit code 1 if not).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- architectures: tools/coverage.py -->\n", "<!-- end of architectures -->\n"
PROOFS = {"causal": "next-token probabilities", "embedding": "embeddings", "loads": "loads"}
GOLDENS = ROOT / "tests" / "arch" / "goldens"


def rows() -> Iterator[tuple[str, str, str, str]]:
    """GGUF architecture, classes, what was compared in llama.cpp, whether it is tuned."""
    import tiny_models
    from ggufround.arch import ARCHITECTURES, find_architecture

    named: dict[str, list[object]] = {}
    for architecture in ARCHITECTURES.values():
        several = named.setdefault(architecture.name, [])
        if architecture not in several:
            several.append(architecture)
    proofs: dict[str, set[str]] = {}
    for case in tiny_models.CASES.values():
        name = find_architecture(case.config).name
        if (GOLDENS / f"{case.name}.json").exists():
            proofs.setdefault(name, set()).add(case.proof)
    for name, several in sorted(named.items()):
        classes = sorted({c for a in several for c in getattr(a, "classes")})  # noqa: B009 - kept as plain objects
        proof = next((PROOFS[p] for p in PROOFS if p in proofs.get(name, ())), "not tried")
        reasons = sorted({getattr(a, "untunable") for a in several} - {""})  # noqa: B009
        all_of_them = all(getattr(a, "untunable") for a in several)  # noqa: B009
        tuned = "yes" if not reasons else "no: " + reasons[0] if all_of_them else "yes; some not: " + reasons[0]
        yield name, ", ".join(f"`{c}`" for c in classes), proof, tuned


def table() -> str:
    lines = ["| GGUF | classes | compared in llama.cpp | tuned |", "|---|---|---|---|"]
    found = list(rows())
    lines += [f"| {' | '.join(row)} |" for row in found]
    classes = sum(row[1].count("`") // 2 for row in found)
    return f"{classes} classes, {len(found)} architectures of llama.cpp:\n\n" + "\n".join(lines) + "\n"


def main() -> int:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    made = before + BEGIN + table() + END + after
    if "--check" in sys.argv:
        return int(made != text)
    readme.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
