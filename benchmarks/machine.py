"""What a measurement ran on: figures are told with the processor, its load and the versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("keras", "tensorflow", "kquant")


def processor() -> str:
    """The name of the processor, as Linux tells it; elsewhere its architecture."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Processor, number of cores, load of the last minute, and versions of what is measured."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    return {"processor": processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0], "versions": versions}
