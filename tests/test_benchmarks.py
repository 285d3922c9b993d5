"""Benchmarks are run by hand; that they can start is checked here."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks.__main__ import ALL

FOLDER = Path(__file__).parent.parent / "benchmarks"
ELSEWHERE = {"tfmot_steps", "litert_quantizer"}  # run in environments of their own
NAMES = sorted({path.stem for path in FOLDER.glob("*.py")} - ELSEWHERE)
PEERS = [f"peers.{path.stem}" for path in sorted((FOLDER / "peers").glob("*.py"))]  # their scripts run elsewhere


@pytest.mark.parametrize("name", [*NAMES, *PEERS])
def test_it_imports_what_there_is(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


def test_every_benchmark_is_in_the_list() -> None:
    runnable = {n for n in NAMES if 'if __name__ == "__main__":' in (FOLDER / f"{n}.py").read_text()} - {"__main__"}
    runnable |= {path.parent.name for path in FOLDER.glob("*/__main__.py")}
    assert set(ALL) | {"latency", "same_files"} == runnable  # one wants files, the other a second tree
