"""`kernels` stays a folder without an `__init__.py`: as a package it would shadow one that transformers imports."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_kernels_is_not_a_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_the_name_kernels_never_leads_into_this_project() -> None:
    found = importlib.util.find_spec("kernels")
    assert found is None or found.origin is None or not Path(found.origin).is_relative_to(ROOT)


def test_no_script_shadows_a_package_that_transformers_imports() -> None:
    assert not {p.stem for p in (ROOT / "tools").rglob("*.py")} & {
        "kernels",
        "torch",
        "numpy",
        "datasets",
        "tokenizers",
        "coverage",
    }


@pytest.mark.torch
def test_the_readme_has_the_tables_of_architectures_that_the_code_gives() -> None:
    pytest.importorskip("torch")
    script = ROOT / "tools" / "gen_coverage.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run python tools/gen_coverage.py {done.stderr}"
