"""A Python for each tool: this one, or a virtual environment that is made from the registry once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from benchmarks.peers.tools import Tool


class Missing(Exception):
    """A tool that cannot be installed here; what pip said."""


def python_of(tool: Tool, folder: Path) -> Path:
    """The interpreter that has a tool, installed where it is not.

    Args:
        tool: whose.
        folder: of the environments.

    Raises:
        Missing: pip cannot install it here.
    """
    if not tool.requires:
        return Path(sys.executable)
    wanted = hashlib.sha256("\n".join(tool.requires).encode()).hexdigest()
    home = folder / tool.name
    stamp, python = home / "installed", home / "bin" / "python"
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", *tool.requires], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Missing(f"pip install {' '.join(tool.requires)}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    stamp.write_text(wanted)
    return python


def version_of(tool: Tool, python: Path) -> str:
    """The version of a tool's package in its environment."""
    if not tool.requires:
        return metadata.version(tool.module)
    code = f"from importlib import metadata; print(metadata.version('{tool.module}'))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
