"""A quantized model never becomes a float file in silence, and Keras' words without `import kquant` are in the docs."""

import re
from pathlib import Path

import keras
import new_process
import numpy as np
import pytest
import tensorflow as tf

import kquant

pytestmark = pytest.mark.filterwarnings(
    "ignore:this converter would write a quantized model as a float file",
)

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(0).random((40, 4), np.float32)


@pytest.fixture(scope="module")
def qmodel():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
    return kquant.calibrate(kquant.quantize(model), X, verbose=False)


def test_keras_own_lite_export_is_refused(qmodel, tmp_path):
    with pytest.raises(ValueError, match=r'kquant.export\(qmodel, "model.tflite"\) writes the integer file'):
        qmodel.export(tmp_path / "m.tflite", format="litert", verbose=False)
    assert not (tmp_path / "m.tflite").exists()


@pytest.mark.parametrize("recipe", ["int8", "weight-only-int8", "float16"])
def test_the_converter_never_goes_on_in_silence(recipe, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")])
    q = kquant.quantize(model, recipe)
    if recipe == "int8":
        kquant.calibrate(q, X, verbose=False)
    lite = tf.lite.TFLiteConverter.from_keras_model(q)
    with pytest.warns(UserWarning, match="without one integer kernel; kquant.export"), pytest.raises(Exception):  # noqa: B017
        lite.convert()  # it catches the refusal, and says something of its own
    kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)


def test_a_saved_model_comes_with_a_warning(qmodel, tmp_path):
    with pytest.warns(UserWarning, match="no integers. kquant.export"):
        qmodel.export(tmp_path / "saved", verbose=False)


@pytest.mark.filterwarnings("error:model.export")
def test_everything_else_is_as_before(qmodel, tmp_path):
    qmodel.predict(X, verbose=0)
    kquant.export(qmodel, tmp_path / "m.tflite", check_runtimes=False)
    assert kquant.inspect(tmp_path / "m.tflite").is_integer


def test_the_error_without_the_import_is_found_in_the_docs(qmodel, tmp_path):
    qmodel.save(tmp_path / "q.keras")
    code = "import keras, sys; keras.models.load_model(sys.argv[1])"
    said = new_process.run(code, tmp_path / "q.keras")
    words = re.search(r"Could not locate class '\w+'", said.stderr)
    assert said.returncode != 0 and words is not None
    for name in ("README.md", "docs/migrate.md"):
        text = (ROOT / name).read_text()
        assert words.group() in text and "import kquant" in text
