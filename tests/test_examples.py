"""What stands in `examples/` runs, as a user runs it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="the examples need an extra: pip install 'kquant[demo]'")
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
