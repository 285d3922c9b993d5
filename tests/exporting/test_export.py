"""Exports of models as users have them: integer images, more inputs than TFLM concatenates, inputs by name."""

import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import kquant
from kquant.runtime import interpreters

pytestmark = pytest.mark.filterwarnings(
    "ignore:calibrate. these tensors hold a single value",
    "ignore:calibrate. .* is a softmax over",
    "ignore:When providing `inputs` as a dict",
)

layers = keras.layers
RNG = np.random.default_rng(5)


def compressed(model, data, path, **options):
    return kquant.compress(model, data, path=path, verbose=False, **options)


@pytest.mark.parametrize("tail", ["conv", "mean", "signed"])
def test_uint8_images(tail, tmp_path):
    x = inputs = keras.Input((8, 8, 3), dtype="uint8", name="image")
    if tail == "conv":
        x = layers.Dense(3)(layers.Flatten()(layers.Dropout(0.3)(layers.Conv2D(4, 3)(layers.Rescaling(1 / 255)(x)))))
    elif tail == "mean":
        x = layers.GlobalAveragePooling2D()(layers.Rescaling(1 / 255)(x))
    else:
        x = layers.ReLU()(layers.Rescaling(1 / 127.5, -1.0)(x))
    images = RNG.integers(0, 200, (64, 8, 8, 3)).astype("uint8")  # below 255, so that the input's scale is not 1
    with pytest.warns(UserWarning, match="images whose range is not 0 to 255"):
        result = compressed(keras.Model(inputs, x), images, tmp_path / "m.tflite", io="uint8")
    reference = next(v for v in result.report.verification if v.runtime == "litert-reference")
    assert all(a.equal == 1.0 for a in reference.agreements)


def test_arena_is_unknown_beyond_the_limits_of_tflm(tmp_path):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Concatenate()([layers.Dense(2, activation="relu")(x) for _ in range(14)]))
    result = compressed(model, RNG.normal(size=(64, 4)).astype("float32"), tmp_path / "m.tflite")
    assert result.report.arena_bytes is None


@pytest.mark.parametrize("kind", ["convolutions", "mean", "transposed"])
def test_small_files_with_large_tensors_run_on_tflm(kind, tmp_path):
    """Ten times the file, the interpreter's own choice, is no arena for them."""
    pytest.importorskip("tflite_micro", reason="the micro extra is not installed")
    parts = {
        "convolutions": [layers.Conv2D(8, 3, strides=2, activation="relu"), layers.DepthwiseConv2D(3, strides=2)],
        "mean": [layers.GlobalAveragePooling2D()],
        "transposed": [layers.Conv2DTranspose(4, 3, strides=2)],
    }
    model = keras.Sequential([keras.Input((64, 64, 3)), *parts[kind]])
    data = RNG.normal(size=(40, 64, 64, 3)).astype("float32")
    report = compressed(model, data, tmp_path / "m.tflite", target="tflm").report
    assert report.arena_bytes is not None and report.arena_bytes > 10 * report.file_bytes
    found = [kquant.predict(tmp_path / "m.tflite", data[:2], runtime) for runtime in ("tflm", "litert-reference")]
    np.testing.assert_array_equal(*found)


IN_AN_ARENA = """
import sys, tflite_micro
interpreter = tflite_micro.runtime.Interpreter.from_file(sys.argv[1], arena_size=int(sys.argv[2]))
interpreter.invoke()
interpreter.print_allocations()
"""


@pytest.mark.parametrize(("width", "passing"), [(7, False), (900, True)])
def test_arena_is_the_smallest_that_tflm_takes(width, passing, tmp_path):
    """Not what it says to have used: with many scales it needs more while it prepares the file."""
    pytest.importorskip("tflite_micro", reason="the micro extra is not installed")
    model = keras.Sequential(
        [keras.Input((16, 16, 2)), layers.Conv2D(5, 3), layers.Flatten(), layers.Dense(width, bias_initializer="ones")]
    )
    data = RNG.normal(size=(40, 16, 16, 2)).astype("float32")
    arena = compressed(model, data, tmp_path / "m.tflite", target="tflm").report.arena_bytes
    assert arena is not None
    runs = [
        subprocess.run([sys.executable, "-c", IN_AN_ARENA, tmp_path / "m.tflite", str(size)], capture_output=True)
        for size in (arena, arena - 16)
    ]
    assert [run.returncode == 0 for run in runs] == [True, False]
    used = re.search(rb"Arena allocation total (\d+) bytes", runs[0].stderr)
    assert used is not None and (int(used[1]) < arena - 1000 if passing else int(used[1]) == arena)


def test_what_was_not_run_is_not_in_the_report(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    q = kquant.calibrate(kquant.quantize(model), RNG.normal(size=(40, 4)), verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    assert report.arena_bytes is None and report.verification == ()
    said = " ".join((type(report).__doc__ or "").split())
    assert "with check_runtimes=False, and for files that TFLM does not run" in said


def test_an_arena_grows_until_tflm_is_content(tmp_path, monkeypatch):
    tflm = pytest.importorskip("tflite_micro", reason="the micro extra is not installed").runtime
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    data = RNG.normal(size=(40, 4)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    content, sizes = (tmp_path / "m.tflite").read_bytes(), []

    def picky(data, arena_size):
        sizes.append(arena_size)
        if len(sizes) < 3:
            raise RuntimeError("TFLM failed to allocate tensors")
        return "ready"

    monkeypatch.setattr(tflm.Interpreter, "from_bytes", picky)
    assert interpreters.tflm_interpreter(content) == "ready"
    first = interpreters.arena_for(content)
    assert sizes == [first, 8 * first, 64 * first]
    sizes[:] = []
    monkeypatch.setattr(interpreters, "LARGEST_ARENA", 2 * first)
    with pytest.raises(RuntimeError, match=f"TFLM failed.*in an arena of {2 * first:,} bytes too"):
        interpreters.open_runtime(content, "tflm")


def test_what_tflm_refuses_is_told_in_its_words(tmp_path):
    pytest.importorskip("tflite_micro", reason="the micro extra is not installed")
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Concatenate()([layers.Dense(2, activation="relu")(x) for _ in range(14)]))
    data = RNG.normal(size=(64, 4)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    with pytest.raises(ValueError, match="kMaxInputNum.*Node CONCATENATION .*in an arena of 1,073,741,824 bytes too"):
        kquant.predict(tmp_path / "m.tflite", data, "tflm")


def test_crash_of_an_interpreter_is_an_error_that_names_the_cause(tmp_path):
    x = keras.Input((4,), name="x")
    wide = keras.initializers.RandomNormal(stddev=1.0, seed=1)  # narrow logits alone would get 16 bits
    y = layers.Softmax(name="chances")(layers.Dense(600, kernel_initializer=wide)(x))
    model = keras.Model(x, layers.Reshape((20, 30))(y))
    place = "operator 2 of 3, SOFTMAX, which makes 'chances'"
    with pytest.raises(ValueError, match=f"SIGABRT in {place}: .*SOFTMAX over more than 512"):
        data = RNG.normal(size=(64, 4)).astype("float32")
        data[::2] = 0.0  # 600 equal values
        compressed(model, data, tmp_path / "m.tflite")
    assert not (tmp_path / "m.tflite").exists()


def test_inputs_keep_the_names_of_a_dict(tmp_path):
    a, b = keras.Input((4,)), keras.Input((4,))
    model = keras.Model({"left": a, "right": b}, layers.Subtract()([a, b]))
    data = {"right": np.zeros((40, 4), "float32"), "left": RNG.normal(size=(40, 4)).astype("float32")}
    compressed(model, data, tmp_path / "m.tflite")
    found = kquant.predict(tmp_path / "m.tflite", data)
    assert np.corrcoef(found.ravel(), data["left"].ravel())[0, 1] > 0.99


def test_layers_that_do_not_train_keep_their_ranges():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    data = RNG.normal(size=(64, 4)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    q.trainable = False
    before = [v.numpy().copy() for v in q.variables]
    q(data * 5, training=True)
    assert all(np.array_equal(b, v) for b, v in zip(before, q.variables, strict=True))


def test_dropout_stays_for_training(tmp_path):
    model = keras.Sequential([keras.Input((64,)), layers.Dense(64), layers.Dropout(0.5), layers.Dense(2)])
    data = RNG.normal(size=(64, 64)).astype("float32")
    result = compressed(model, data, tmp_path / "m.tflite")
    assert result.report.operators == {"FULLY_CONNECTED": 2}
    q = result.model
    assert not np.allclose(q(data, training=True), q(data, training=True))
    assert np.array_equal(q(data), q(data))


def test_outputs_in_a_dict_go_by_its_keys(tmp_path):
    """As inputs do; those of a float layer too."""
    x = keras.Input((6,), name="x")
    h = layers.Dense(4, name="out")(x)
    outputs = {"probabilities": layers.Softmax(name="unit")(h), "logits": h, "raw": layers.ReLU()(x)}
    model = keras.Model(x, outputs)
    data = np.float32(np.random.default_rng(0).normal(size=(64, 6)))
    for recipe in ("int8", {"name": "r", "rules": [{"layer": "unit", "float": True}]}):
        q = kquant.calibrate(kquant.quantize(model, recipe), data, verbose=False)
        for io in ("model", "float32"):
            report = kquant.export(q, tmp_path / "m.tflite", data=data, io=io)
            assert [port.name for port in report.outputs] == ["logits", "probabilities", "raw"]
            assert all(check.ok for check in report.verification)
    expected, found = q(data, training=False), kquant.predict(tmp_path / "m.tflite", data, "litert-reference")
    for key, array in zip(sorted(expected), found, strict=True):
        np.testing.assert_allclose(array, expected[key], atol=1e-6)
