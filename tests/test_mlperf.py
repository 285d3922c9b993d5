"""The five pretrained MLPerf Tiny models, from `.keras` to files that all runtimes execute; needs the asset folder."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import kquant
from benchmarks import assets
from kquant.runtime.running import available, probe, quantize_input

pytestmark = [
    pytest.mark.skipif(
        not (assets.FOLDER / "load.py").is_file(), reason="the models are not part of the repository; set KQUANT_ASSETS"
    ),
    pytest.mark.filterwarnings(r"ignore:calibrate. \d+ samples are few"),
]


@cache
def compressed(name, folder):
    """A task, what `compress` makes of its model, and the file."""
    task, path = assets.task(name), folder / f"{name}.tflite"
    return task, kquant.compress(task.model, task.calibration, path=path, verbose=False), path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mlperf")


@pytest.mark.parametrize("name", assets.TASKS)
def test_file_computes_what_the_model_computes(name, folder):
    task, result, path = compressed(name, folder)
    content = path.read_bytes()
    assert kquant.inspect(content).is_integer
    if "tflm" in available():
        code = (
            "import sys, tflite_micro as t; t.runtime.Interpreter.from_file(sys.argv[1], arena_size=int(sys.argv[2]))"
        )
        sizes = (result.report.arena_bytes, result.report.arena_bytes - 16)
        runs = [subprocess.run([sys.executable, "-c", code, path, str(n)], capture_output=True) for n in sizes]
        assert [run.returncode == 0 for run in runs] == [True, False]
    x = task.x[:24]
    simulated = result.model(x, training=False).numpy()
    step = kquant.inspect(content).outputs[0].scale[0]
    for runtime in available():
        y = kquant.predict(content, x, runtime)
        if runtime == "litert-reference":
            np.testing.assert_array_equal(np.rint(y / step), np.rint(simulated / step))
        if task.y is not None:
            assert np.mean(y.argmax(-1) == simulated.argmax(-1)) >= 0.95  # 24 samples: one may differ


def test_accuracy_of_keyword_spotting(folder):
    task, _, path = compressed("keyword_spotting", folder)
    reference = np.mean(task.model.predict(task.x, verbose=0).argmax(-1) == task.y)
    found = np.mean(kquant.predict(path, task.x).argmax(-1) == task.y)
    assert found >= reference - 0.005


@pytest.mark.parametrize("name", assets.TASKS)
def test_channels_that_no_output_depends_on_change_no_code(name, folder):
    """200 samples and random codes; three quarters of the visual wake words model are never read."""
    task = assets.task(name)
    q = kquant.calibrate(kquant.quantize(task.model, target="tflm"), task.calibration, verbose=False)
    made = [
        kquant.export(q, folder / f"{name}_{shrink}.tflite", check_runtimes=False, shrink=shrink)
        for shrink in (False, True)
    ]
    whole, narrow = (Path(report.path).read_bytes() for report in made)
    if name == "visual_wake_words":
        assert len(narrow) < 0.23 * len(whole)
    port = kquant.inspect(whole).inputs[0]
    anything = np.random.default_rng(0).integers(-128, 128, (50, *port.shape[1:])).astype("int8")
    codes = np.concatenate([quantize_input(task.x[:200], port), anything])
    for runtime in {"litert-reference", "tflm"} & set(available()):
        for a, b in zip(probe(whole, runtime, [codes]), probe(narrow, runtime, [codes]), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=runtime)
