"""The five pretrained MLPerf Tiny models, from `.keras` to files that all runtimes execute; needs the asset folder."""

import re
import subprocess
import sys

import numpy as np
import pytest

import kquant
from benchmarks import assets
from kquant.runtime.running import available

pytestmark = [
    pytest.mark.skipif(
        not (assets.FOLDER / "load.py").is_file(), reason="the models are not part of the repository; set KQUANT_ASSETS"
    ),
    pytest.mark.filterwarnings(r"ignore:calibrate. \d+ samples are few"),
]


@pytest.mark.parametrize("name", assets.TASKS)
def test_file_computes_what_the_model_computes(name, tmp_path):
    task = assets.task(name)
    result = kquant.compress(task.model, task.calibration, path=tmp_path / "m.tflite", verbose=False)
    content = (tmp_path / "m.tflite").read_bytes()
    assert kquant.inspect(content).is_integer
    if "tflm" in available():  # its own arena, ten times the file, is enough for these
        code = "import sys, tflite_micro as t; t.runtime.Interpreter.from_file(sys.argv[1]).print_allocations()"
        said = subprocess.run([sys.executable, "-c", code, tmp_path / "m.tflite"], capture_output=True, check=True)
        assert re.findall(rb"Arena allocation total (\d+) b", said.stderr) == [b"%d" % result.report.arena_bytes]
    x = task.x[:24]
    simulated = result.model.predict(x, verbose=0)
    step = kquant.inspect(content).outputs[0].scale[0]
    for runtime in available():
        y = kquant.predict(content, x, runtime)
        if runtime == "litert-reference":
            np.testing.assert_array_equal(np.rint(y / step), np.rint(simulated / step))
        if task.y is not None:
            assert np.mean(y.argmax(-1) == simulated.argmax(-1)) >= 0.95  # 24 samples: one may differ


def test_accuracy_of_keyword_spotting(tmp_path):
    task = assets.task("keyword_spotting")
    reference = np.mean(task.model.predict(task.x, verbose=0).argmax(-1) == task.y)
    kquant.compress(task.model, task.calibration, path=tmp_path / "m.tflite", verbose=False)
    found = np.mean(kquant.predict(tmp_path / "m.tflite", task.x).argmax(-1) == task.y)
    assert found >= reference - 0.005
