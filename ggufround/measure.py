"""What a run costs: memory and CPU time of this process, as the operating system counts them."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_memory() -> int:
    """Highest resident set of this process so far, in bytes.

    Linux's VmHWM starts at exec; getrusage's figure, used elsewhere, may include the parent's.
    """
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def resident_memory() -> int:
    """Resident set now, in bytes (the peak where the system does not tell)."""
    return _status("VmRSS") or peak_memory()


def cpu_seconds() -> float:
    """User and system time of this process, all threads."""
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


def _status(key: str) -> int:
    if not STATUS.exists():
        return 0
    for line in STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0
