"""Three verdicts on a file: equal in every code, the model's encodings on a runtime that rounds otherwise, wrong."""

import importlib
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import kquant
from kquant import report, targets
from kquant.exporting.verification import Agreement, VerifyReport, _codes, runtime_of
from kquant.runtime.running import available
from kquant.tflite.flatbuffer import with_outputs

layers = keras.layers
X = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[keras.Model, Path]:
    """Six convolutions behind each other, whose roundings add up, and the file of the model."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3), name="image")
    for i in range(6):
        x = layers.ReLU(name=f"relu_{i}")(layers.Conv2D(16, 3, padding="same", name=f"conv_{i}")(x))
    model = keras.Model(inputs, layers.Dense(8, name="head")(layers.Flatten(name="flat")(x)))
    q = kquant.calibrate(kquant.quantize(model), X, verbose=False)
    path = tmp_path_factory.mktemp("verify") / "deep.tflite"
    kquant.export(q, path, data=X, check_runtimes=False)
    return q, path


def test_equal_where_the_model_follows(deep):
    found = kquant.verify(*deep, X, "litert-reference")
    assert (found.verdict, found.ok, found.follows, found.first_difference) == ("equal", True, True, None)
    assert "equal in every code: the file is the model" in report.render(found)


def test_another_rounding_is_no_equality(deep):
    """XNNPACK: some codes differ, the verdict gives the figures, and the layer where it begins."""
    found = kquant.verify(*deep, X)
    assert found.runtime == "litert"  # the target's own
    (worst,) = found.agreements
    assert worst.equal < 1.0
    assert (found.verdict, found.ok, found.follows) == ("rounds otherwise", True, False)
    text = " ".join(report.render(found).split())
    assert "this runtime rounds otherwise" in text and "the file is the model" not in text
    assert f"at most {worst.max_err_lsb} LSB off" in text
    layer, figures = found.first_difference.split(": ")
    assert layer in {f"relu_{i}" for i in range(6)} | {"head"}
    assert figures.endswith("by at most 1 LSB")  # a single operator is one step apart
    assert found.to_dict()["verdict"] == "rounds otherwise"


def test_ok_follows_the_stated_agreement(deep):
    reached = min(a.sqnr_db for a in kquant.verify(*deep, X).agreements)
    found = kquant.verify(*deep, X, agreement=reached + 1)
    assert (found.verdict, found.ok) == ("rounds otherwise", False)
    assert f"below the {reached + 1:g} dB asked for" in " ".join(report.render(found).split())
    assert kquant.verify(*deep, X, agreement=reached - 1).ok
    with pytest.raises(ValueError, match="agreement must be a number"):
        kquant.verify(*deep, X, agreement="much")


def test_other_codes_where_they_have_to_be_equal_are_wrong(deep):
    """The same shapes and encodings, another kernel: only running the file tells."""
    q, path = deep
    other = keras.models.clone_model(q)
    other.set_weights(q.get_weights())
    head = other.get_layer("head").layer
    head.kernel.assign(np.asarray(head.kernel) * np.where(np.arange(8) < 4, -1, 1).astype("float32"))
    found = kquant.verify(other, path, X, "litert-reference")
    assert (found.verdict, found.ok, found.wrong_encodings) == ("wrong", False, ())
    assert found.first_difference.startswith("head: ")
    text = " ".join(report.render(found).split())
    assert "the file is NOT the model" in text and "whose roundings the model computes" in text
    assert not kquant.verify(other, path, X, "litert").ok


def test_verdicts_from_figures():
    a = Agreement("y", 1.0, 0, 1.0, float("inf"))
    report_ = VerifyReport("tflm", 64, (a,), (), (), None)
    assert report_.verdict == "equal"
    cases = (
        (replace(a, equal=0.9995, max_err_lsb=3, sqnr_db=50.0), True, "rounds otherwise"),
        (replace(a, equal=0.995, max_err_lsb=1, sqnr_db=50.0), True, "rounds otherwise"),
        (replace(a, equal=0.995, max_err_lsb=2, sqnr_db=50.0), True, "wrong"),
        (replace(a, equal=0.67, max_err_lsb=71, sqnr_db=30.0), False, "rounds otherwise"),
    )
    for agreement, follows, verdict in cases:
        assert replace(report_, agreements=(a, agreement), follows=follows).verdict == verdict
    assert replace(report_, float_operators=("RELU",)).verdict == "wrong"
    assert not replace(report_, agreements=(replace(a, equal=0.67, sqnr_db=12.0),), follows=False).ok


def test_the_default_runtime_is_the_targets(monkeypatch):
    expected = {"litert": "litert", "ethos-u": "litert-reference", "tflm": "tflm"}
    for name, runtime in expected.items():
        if runtime in available():
            assert runtime_of(targets.load(name)) == (runtime, "")
    module = importlib.import_module("kquant.exporting.verification")
    monkeypatch.setattr(module, "available", lambda: ["litert", "litert-reference"])
    runtime, note = runtime_of(targets.load("tflm"))
    assert runtime == "litert-reference" and "tflm is not installed here (pip install 'kquant[micro]'" in note


def test_a_file_with_other_outputs(deep):
    content = deep[1].read_bytes()
    file = kquant.inspect(content)
    shown = [file.operators[0].outputs[0], file.outputs[0].index]
    found = kquant.inspect(with_outputs(content, shown))
    assert [t.index for t in found.outputs] == shown
    y = kquant.predict(with_outputs(content, shown), X[:2], "litert-reference")
    np.testing.assert_array_equal(y[1], kquant.predict(content, X[:2], "litert-reference"))


@pytest.mark.parametrize("zero_point", [-9, -3, 2])
def test_ties_between_steps_of_float_outputs_are_no_differences(zero_point: int) -> None:
    """Values of an 8-bit grid lie half-way between steps of another, where both sides must round alike."""
    values = np.float32(np.arange(-128, 128) - zero_point) * np.float32(0.042943768)
    step = float(np.abs(values).max()) / 255
    assert np.any(np.rint(values / step) != np.rint(values.astype(np.float64) / step)), "there are such ties"
    wanted, got, _ = _codes(values, values, SimpleNamespace(scale=None))
    assert np.array_equal(wanted, got)


@pytest.mark.parametrize("io", ["int8", "uint8"])
@pytest.mark.parametrize("seed", range(8))
def test_an_edge_of_fewer_bits_is_simulated(io: str, seed: int, tmp_path: Path) -> None:
    """A QUANTIZE from 16 to 8 bits rounds codes by a multiplier, and not what they stand for; ties showed as 1 LSB."""
    keras.utils.set_random_seed(seed)
    x = keras.Input((8,))
    y = keras.layers.Dense(8, activation="relu")(x)
    heads = [keras.layers.Dense(units)(y) for units in (3, 2)]
    samples = np.random.default_rng(0).normal(size=(128, 8)).astype("float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what io="int8" of a join with 16 bits loses
        wide = {"name": "wide", "rules": [{"type": "Concatenate", "activations": {"bits": 16}}]}
        q = kquant.quantize(keras.Model(x, keras.layers.Concatenate()(heads)), wide, target="tflm")
        report = kquant.export(kquant.calibrate(q, samples, verbose=False), tmp_path / "m.tflite", data=samples, io=io)
    assert {run.verdict for run in report.verification} == {"equal"}
    again = kquant.verify(q, tmp_path / "m.tflite", samples, runtime="tflm")
    assert again.verdict == "equal"


@pytest.mark.parametrize("target", ["litert", "tflm"])
@pytest.mark.parametrize(
    ("recipe", "io"),
    [("int16x8", "int8"), ("int16x8", "uint8"), ("int16x8", "float32"), ("int8", "int16"), ("int8", "float32")],
)
def test_an_input_of_another_type_is_simulated(recipe: str, io: str, target: str, tmp_path: Path) -> None:
    """The model is asked about what the file's edge makes of its codes; what those were rounded from gave "wrong"."""
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 3))
    x = keras.layers.Conv2D(8, 3, activation="relu")(keras.layers.Conv2D(8, 3, activation="relu")(image))
    model = keras.Model(image, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))
    samples = np.random.default_rng(0).normal(size=(64, 12, 12, 3)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model, recipe, target=target), samples, verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite", data=samples, io=io)
    runtime = {"litert": "litert-reference", "tflm": "tflm"}[target]
    assert {run.runtime: run.verdict for run in report.verification}[runtime] == "equal"
    assert kquant.verify(q, tmp_path / "m.tflite", samples, runtime).verdict == "equal"
    # a model of other weights is found wrong behind the same edge
    other = keras.models.clone_model(q)
    other.set_weights([w + 0.01 if w.ndim == 4 else w for w in q.get_weights()])
    assert kquant.verify(other, tmp_path / "m.tflite", samples, runtime).verdict == "wrong"
