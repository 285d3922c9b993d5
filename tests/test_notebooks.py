"""Every notebook runs from top to bottom, in a folder of its own, and was saved without outputs."""

from pathlib import Path

import new_process
import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("IPython")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib_inline")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WRITES = {
    "quickstart": ["digits_ptq.tflite", "digits_qat.tflite"],
    "pruning_and_clustering": ["digits_int8.tflite", "digits_small.tflite"],
}


def test_all_notebooks_are_run():
    assert {path.stem for path in NOTEBOOKS} == set(WRITES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_run(path, tmp_path):
    assert not any(cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells)
    done = new_process.run("import sys, notebook_cells; notebook_cells.run(sys.argv[1])", path, folder=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in WRITES[path.stem]:
        assert (tmp_path / name).stat().st_size > 0, name
