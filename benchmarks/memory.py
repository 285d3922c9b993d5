"""Peak memory of this process."""

from __future__ import annotations

from pathlib import Path


def peak_kb() -> int:
    """Largest resident set so far, from /proc; `getrusage` would count the parent's memory at the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
