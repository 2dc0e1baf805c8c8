"""The disk cache of kernels follows the files that kernels share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from ggufround_kernels import _jit


def run(folder: Path) -> str:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", "from package import user; print(user.two(), user.two.stats.cache_hits)"]
    shown = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    return shown.stdout.rsplit("Counter", 1)[0].split()[0] + " " + ("hit" if "(): 1" in shown.stdout else "miss")


def test_an_edit_of_a_shared_file_invalidates_the_cached_kernels_that_call_it(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    shutil.copy(str(_jit.__file__), package / "_jit.py")
    shared = "from package._jit import kernel\n\n\n@kernel\ndef one():\n    return {}\n"
    (package / "_shared.py").write_text(shared.format(1))
    (package / "user.py").write_text(
        "from package._jit import kernel\nfrom package._shared import one\n\n\n"
        "@kernel\ndef two():\n    return 2 * one()\n"
    )
    assert [run(tmp_path), run(tmp_path)] == ["2 miss", "2 hit"]
    (package / "_shared.py").write_text(shared.format(3))
    assert run(tmp_path) == "6 miss"
