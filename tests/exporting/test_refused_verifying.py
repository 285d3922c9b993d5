"""What `verify` refuses, and what it says of another model's file."""

from __future__ import annotations

from pathlib import Path

import keras
import pytest
from keras import layers
from one_layer import X, calibrated, content, dense

import kquant

pytestmark = pytest.mark.filterwarnings(
    "ignore:When providing `inputs` as a dict",
)


def test_verify_wants_samples() -> None:
    with pytest.raises(ValueError, match="verify: limit must be 1 or more. Received: 0"):
        kquant.verify(calibrated(), content(), X, limit=0)


def test_verify_refuses_another_models_file() -> None:
    other = kquant.calibrate(kquant.quantize(dense()), X * 3, verbose=False)
    report = kquant.verify(other, content(), X)
    assert not report.ok and set(report.wrong_encodings) >= {"x", "head"}


@pytest.mark.parametrize("kind", ["shape", "outputs", "inputs"])
def test_verify_names_the_inputs_and_outputs_that_differ(kind: str) -> None:
    x, other = keras.Input((6,), name="x"), keras.Input((6,), name="other")
    head = layers.Dense(3, name="head")
    outputs = {
        "shape": layers.Dense(4, name="head")(x),
        "outputs": [head(x), layers.ReLU()(x)],
        "inputs": head(x + other),
    }[kind]
    model = keras.Model([x, other] if kind == "inputs" else x, outputs)
    data = [X, X] if kind == "inputs" else X
    q = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    wanted = r"^verify: this file takes 'x' \[1, 6\] and gives 'head' \[1, 3\]; the model takes .x.*another model: g"
    with pytest.raises(ValueError, match=wanted):
        kquant.verify(q, content(), data)


def test_verify_compares_by_place_where_names_differ() -> None:
    model = keras.Sequential([keras.Input((6,), name="in"), layers.Dense(3, name="tail")])
    again = keras.Sequential([keras.Input((6,), name="in"), layers.Dense(3, name="tail")])
    again.set_weights(dense().get_weights())
    for given, wrong in ((model, {"tail"}), (again, set())):
        q = kquant.calibrate(kquant.quantize(given), X, verbose=False)
        assert set(kquant.verify(q, content(), X, "litert-reference").wrong_encodings) == wrong


def test_verify_knows_its_own_files(tmp_path: Path) -> None:
    """Whatever the application feeds, and where an input is an output."""
    x = keras.Input((6,), name="x")
    model = keras.Model({"a": x}, {"plain": x, "twice": [layers.ReLU()(x), layers.ReLU()(x)], "sum": x + 1.0})
    q = kquant.calibrate(kquant.quantize(model), {"a": X}, verbose=False)
    for io in ("model", "uint8", "int16", "float32"):
        kquant.export(q, tmp_path / "m.tflite", io=io, check_runtimes=False)
        assert kquant.verify(q, tmp_path / "m.tflite", {"a": X}, "litert-reference").samples == 64
