"""Every notebook runs from top to bottom, in a folder of its own, and was saved without outputs."""

from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 60
WRITES = {
    "quickstart": ["digits_ptq.tflite", "digits_qat.tflite"],
    "pruning_and_clustering": ["digits_int8.tflite", "digits_small.tflite"],
}


# Before each of them, since one kernel runs all: to import TensorFlow takes longer than most of their cells.
FRESH = "import keras, os; keras.backend.clear_session(); os.chdir({folder!r})"


def test_notebooks_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    together = nbformat.v4.new_notebook()
    for path in NOTEBOOKS:
        notebook, folder = nbformat.read(path, as_version=4), tmp_path / path.stem
        folder.mkdir()
        assert not any(cell.get("outputs") for cell in notebook.cells), path.stem
        start = [nbformat.v4.new_code_cell(text) for text in ("%reset -f", FRESH.format(folder=str(folder)))]
        together.cells += [*start, *notebook.cells]
    nbclient.NotebookClient(together, timeout=SECONDS).execute()
    assert {path.stem for path in NOTEBOOKS} == set(WRITES)
    for stem, names in WRITES.items():
        for name in names:
            assert (tmp_path / stem / name).stat().st_size > 0, name
