"""Every notebook runs from top to bottom, in a folder of its own, and was saved as it came: short, without noise."""

import re
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
    "01_quickstart": ["digits.tflite", "digits.keras"],
    "02_quantization_aware_training": ["digits_2bit.tflite"],
    "03_when_accuracy_drops": [],
    "04_prune_cluster_quantize": ["digits_int8.tflite", "digits_small.tflite"],
    "05_microcontroller": ["firmware/self_test.cc", "firmware/golden.cc"],
    "06_keyword_spotting_streaming": ["step.tflite"],
    "07_from_tfmot": ["digits.tflite"],
    "08_segmenter_on_a_phone": ["segmenter.tflite", "android/build.gradle.kts"],
}
CELLS, BYTES = 12, 300_000  # at most
# A path of the machine that it ran on, and what Python or TensorFlow warns of
NOISE = re.compile(r"/(?:tmp|home|root|work|usr|opt|Users)/|\bC:\\|Warning\b|WARNING|\bTraceback\b")


def test_all_notebooks_are_run():
    assert {path.stem for path in NOTEBOOKS} == set(WRITES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_saved_as_they_ran(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    texts = [str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", "")) for output in outputs]
    assert len(notebook.cells) <= CELLS
    assert path.stat().st_size < BYTES
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not [found for text in texts for found in NOISE.findall(text)]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_run(path, tmp_path):
    done = new_process.run("import sys, notebook_cells; notebook_cells.run(sys.argv[1])", path, folder=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not re.findall(r".*\bUserWarning: .*", done.stderr), "it would be saved, with a path of the machine"
    for name in WRITES[path.stem]:
        assert (tmp_path / name).stat().st_size > 0, name
