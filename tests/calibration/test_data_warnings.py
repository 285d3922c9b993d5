"""Warnings of what data show: another scale than the model's, and ranges that do not go together."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import kquant
from kquant.calibration.data import batches_of

layers = keras.layers
Model = keras.Model
rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (48, 6, 6, 3)).astype(np.float32)


def said(call: Callable[[], Any], *words: str) -> list[str]:
    """What a call warns of, where these words are in it; each warning names this file as its place."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call()
    found = [w for w in seen if all(word in str(w.message) for word in words)]
    assert all(w.filename in (__file__,) for w in found)
    return [str(w.message) for w in found]


def network(*first: keras.layers.Layer) -> Model:
    body = [layers.Conv2D(4, 3, activation="relu"), layers.Flatten(), layers.Dense(3)]
    return keras.Sequential([keras.Input((6, 6, 3), name="image"), *first, *body])


@cache
def calibrated(low: float, high: float) -> tuple[Model, bytes]:
    """A model calibrated on pixels between these values, and its file."""
    q = kquant.calibrate(kquant.quantize(network()), PIXELS / 255 * (high - low) + low, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        kquant.export(q, Path(folder, "m.tflite"), check_runtimes=False)
        return q, Path(folder, "m.tflite").read_bytes()


# what the model knows, what comes, words of the warning
WRONG: dict[str, tuple[tuple[float, float], np.ndarray, str]] = {
    "pixels for 0..1": ((0, 1), PIXELS, "Did you forget / 255?"),
    "uint8 for 0..1": ((0, 1), PIXELS.astype(np.uint8), "Did you forget / 255?"),
    "one image of pixels": ((0, 1), PIXELS[:1], "Did you forget / 255?"),
    "divided twice": ((0, 1), PIXELS / 255 / 255, "divided by 255 once too often?"),
    "one image divided twice": ((0, 1), PIXELS[:1] / 255 / 255, "divided by 255 once too often?"),
    "0..1 for pixels": ((0, 255), PIXELS / 255, "divided by 255 once too often?"),
    "centred for pixels": ((0, 255), PIXELS / 127.5 - 1, "lie"),
    "centred for 0..1": ((0, 1), PIXELS / 127.5 - 1, "lie outside"),
    "normalised for 0..1": ((0, 1), (PIXELS - 120) / 60, "lie outside"),
    "0..1 for centred": ((-1, 1), PIXELS / 255, "forget to centre"),
    "pixels for centred": ((-1, 1), PIXELS, "Did you forget / 255?"),
    "mostly black pixels for 0..1": ((0, 1), np.where(PIXELS > 230, PIXELS, 0), "Did you forget / 255?"),
    "codes for 0..1": ((0, 1), (PIXELS - 128).astype(np.int8), "codes of a grid"),
}
# what the model knows, what comes; nothing is wrong
RIGHT: dict[str, tuple[tuple[float, float], np.ndarray]] = {
    "the same": ((0, 1), PIXELS / 255),
    "one sample": ((0, 1), PIXELS[:1] / 255),
    "one dark image": ((0, 1), PIXELS[:1] / 255 * 0.01),
    "dark pixels": ((0, 1), np.float32(PIXELS > 128) / 255),
    "zeros": ((0, 1), np.zeros_like(PIXELS)),
    "white": ((0, 1), np.ones_like(PIXELS)),
    "masks": ((-1, 1), np.float32(PIXELS > 128)),
    "one-hot": ((0, 1), np.float32(PIXELS == PIXELS.max(-1, keepdims=True))),
    "normal inside": ((-3, 3), rng.normal(size=(64, 6, 6, 3)).astype(np.float32)),
    "a little wider": ((-2, 2), rng.normal(size=(64, 6, 6, 3)).astype(np.float32) * 1.2),
    "centred, one dark image": ((-1, 1), PIXELS[:1] / 255 * 0.1 - 1),
}


@pytest.mark.parametrize("name", WRONG)
def test_data_of_another_scale_are_told(name: str) -> None:
    ends, data, words = WRONG[name]
    q, content = calibrated(*ends)
    assert len(said(lambda: kquant.predict(content, data[:4]), "predict: input 'image", words)) == 1
    assert len(said(lambda: list(batches_of(q, data)), "data, input 'image'")) == 1


VERBS: dict[str, Callable[[Model, np.ndarray, Path], Any]] = {
    "calibrate": lambda q, x, path: kquant.calibrate(q, x, verbose=False),
    "observe": lambda q, x, path: kquant.observe(q, x, verbose=False),
    "calibrate, batches": lambda q, x, path: kquant.calibrate(q, lambda: iter([x[:16], x[16:]]), verbose=False),
    "analyze": lambda q, x, path: kquant.analyze(q, x, limit=8, sensitivity=False, verbose=False),
    "correct_bias": lambda q, x, path: kquant.correct_bias(q, x, verbose=False),
    "verify": lambda q, x, path: kquant.verify(q, calibrated(0, 1)[1], x, limit=4),
    "export": lambda q, x, path: kquant.export(q, path / "m.tflite", data=x[:4]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_reads_data_looks_at_their_scale(verb: str, tmp_path: Path) -> None:
    q = keras.models.clone_model(calibrated(0, 1)[0])
    q.set_weights(calibrated(0, 1)[0].get_weights())
    assert set(said(lambda: VERBS[verb](q, PIXELS, tmp_path), "data, input 'image'", "Did you forget / 255?"))


def test_a_second_calibration_with_the_same_data_is_silent() -> None:
    q = kquant.calibrate(kquant.quantize(network()), PIXELS, verbose=False)
    assert not said(lambda: kquant.calibrate(q, PIXELS, verbose=False))


FIRST: dict[str, Callable[[], keras.layers.Layer]] = {
    "Rescaling": lambda: layers.Rescaling(1 / 255),
    "Rescaling, centred": lambda: layers.Rescaling(1 / 127.5, offset=-1.0),
    "Normalization": lambda: layers.Normalization(mean=[120.0, 118, 110], variance=[3600.0, 3500, 3400]),
    "division": lambda: layers.Lambda(lambda x: x / 255.0),
}


@pytest.mark.parametrize("first", FIRST)
def test_the_first_layer_tells_what_data_a_model_takes(first: str, tmp_path: Path) -> None:
    q = kquant.quantize(network(FIRST[first]()))
    q.save(tmp_path / "q.keras")
    for model in (q, keras.models.load_model(tmp_path / "q.keras")):
        assert said(lambda m=model: kquant.observe(m, PIXELS / 255, verbose=False), "takes", "divided by 255")
        assert said(lambda m=model: kquant.observe(m, PIXELS / 127.5 - 1, verbose=False), "takes", "lie")
        assert not said(lambda m=model: kquant.observe(m, PIXELS, verbose=False))
        assert not said(lambda m=model: kquant.observe(m, PIXELS[:1] * 0.05, verbose=False))


@pytest.mark.parametrize("name", RIGHT)
def test_usual_data_raise_no_doubt_of_their_scale(name: str) -> None:
    ends, data = RIGHT[name]
    q, content = calibrated(*ends)
    assert not said(lambda: kquant.predict(content, data[:4]), "input 'image'")
    assert not said(lambda: list(batches_of(q, data)), "input 'image'")


SENSORS = np.float32(rng.normal(size=(64, 5)) * [1, 10, 100, 1000, 10000])


def losing(*body: Callable[[Any], Any], width: int = 8) -> Model:
    x = inputs = keras.Input((width,), name="sensors")
    for function in body:
        x = function(x)
    return Model(inputs, layers.Dense(3, name="last")(x))


def unlike_inside() -> Model:
    """A channel a thousand times as wide as the others, which the next layer takes back."""
    model = losing(layers.Dense(8, activation="relu", name="wide"))
    factors = np.float32([1, 1, 1, 1000, 1, 1, 1, 1000])
    kernel, bias = model.get_layer("wide").get_weights()
    model.get_layer("wide").set_weights([kernel * factors, bias])
    kernel, bias = model.get_layer("last").get_weights()
    model.get_layer("last").set_weights([kernel / factors[:, None], bias])
    return model


ROWS = rng.normal(size=(64, 8)).astype(np.float32)
STEPS = rng.normal(size=(3, 512, 4)).astype(np.float32)


def attention() -> Model:
    """A softmax over 512 steps, where an even share is half a code."""
    x = keras.Input((512, 4), name="sensors")
    y = layers.MultiHeadAttention(1, 4, name="attend")(x, x)
    return Model(x, layers.Dense(3)(layers.GlobalAveragePooling1D()(y)))


def test_a_softmax_over_many_steps_is_told_and_16_bits_mend_it() -> None:
    model = attention()
    rule = {"layer": "attend", "activations": {"bits": 16}}
    for recipe, told in (("int8", 1), ({"name": "wide", "rules": [rule]}, 0)):
        q = kquant.quantize(model, recipe)
        assert len(said(lambda q=q: kquant.calibrate(q, STEPS, verbose=False), "softmax over 512", "16 bits")) == told


def unlike_images() -> Model:
    """Channels inside that go ten thousandfold apart, so that the outputs lose their signal."""
    model = keras.Sequential([keras.Input((6, 6, 3), name="image"), layers.Conv2D(8, 3, name="wide")])
    model.add(layers.ReLU(name="wide_relu"))
    for layer in (layers.Flatten(), layers.Dense(3, name="last")):
        model.add(layer)
    factors = np.geomspace(1e-4, 1.0, 8).astype(np.float32)
    kernel, bias = model.get_layer("wide").get_weights()
    model.get_layer("wide").set_weights([kernel * factors, bias])
    kernel, bias = model.get_layer("last").get_weights()
    model.get_layer("last").set_weights([kernel / np.tile(factors, 16)[:, None], bias])
    return model


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_pixels_are_asked_about_before_what_follows_of_them(kind: type) -> None:
    model = unlike_images()
    with_pixels = said(lambda: kquant.calibrate(kquant.quantize(model), PIXELS.astype(kind), verbose=False))
    assert "the pixels of image go from 0 to 255" in with_pixels[0] and "`--scale 1/255`" in with_pixels[0]
    assert "very unlike scale" in with_pixels[1]
    scaled = said(lambda: kquant.calibrate(kquant.quantize(model), PIXELS / 255, verbose=False))
    assert len(scaled) == 1 and "very unlike scale" in scaled[0]
    # of a model that keeps its signal nobody is asked
    healthy = network()
    assert said(lambda: kquant.calibrate(kquant.quantize(healthy), PIXELS, verbose=False), "pixels") == []


LOST: dict[str, tuple[Callable[[], Model], np.ndarray, str]] = {
    "columns of an input": (
        lambda: losing(layers.Normalization(mean=[0.0] * 5, variance=list(SENSORS.var(0))), width=5),
        SENSORS,
        "input 'sensors' are of very unlike scale",
    ),
    "channels inside": (unlike_inside, ROWS, "'wide_relu' (of 'wide') are of very unlike scale"),
    "silu far below 0": (
        lambda: losing(layers.Dense(8), layers.Rescaling(2.0, offset=-20.0), keras.ops.silu),
        ROWS,
        "_gate' (of 'silu",
    ),
    "a wide exponential": (
        lambda: losing(layers.Rescaling(9.0), layers.Activation("exponential", name="grows")),
        ROWS,
        "'grows'",
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_ranges_that_cost_the_outputs_are_told(name: str) -> None:
    make, x, words = LOST[name]
    q = kquant.quantize(make())
    assert len(said(lambda: kquant.calibrate(q, x, verbose=False), words, "of signal over noise")) == 1


HEALTHY: dict[str, Callable[[], Model]] = {
    "dense": lambda: losing(layers.Dense(8, activation="relu"), layers.Dense(8, activation="tanh")),
    "a narrow column that does not matter": lambda: losing(layers.Rescaling([1.0] * 7 + [1e-4]), layers.Dense(6)),
    "an output that hardly varies": lambda: Model(
        (x := keras.Input((8,), name="sensors")), layers.Dense(5, activation="softmax")(layers.Dense(8)(x) * 0.01)
    ),
    "silu and softmax": lambda: losing(layers.Dense(8, activation="silu"), layers.Softmax()),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_ranges_that_cost_nothing_are_silent(name: str) -> None:
    q = kquant.quantize(HEALTHY[name]())
    assert not said(lambda: kquant.calibrate(q, ROWS, verbose=False), "of signal over noise")


@pytest.mark.parametrize(
    ("order", "bound"),
    [(("conv", "norm", "relu"), None), (("conv", "relu", "norm"), None), (("conv", "norm", "relu"), 6)],
)
def test_data_of_another_scale_than_the_batch_norm_saw_are_told(order: tuple[str, ...], bound: float | None) -> None:
    keras.utils.set_random_seed(0)
    kinds = {"conv": lambda: keras.layers.Conv2D(8, 3, name="conv"), "relu": lambda: keras.layers.ReLU(bound)}
    kinds["norm"] = lambda: keras.layers.BatchNormalization(momentum=0.5, name="norm")
    stack = [kinds[name]() for name in order]
    model = keras.Sequential([keras.Input((8, 8, 1)), *stack, keras.layers.Flatten(), keras.layers.Dense(2)])
    x = np.random.default_rng(0).random((64, 8, 8, 1), np.float32)
    q = kquant.quantize(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kquant.calibrate(q, x * 255.0, verbose=False)  # never trained: it knows nothing
    model.compile("sgd", "mse")
    model.fit(x, np.zeros((64, 2), np.float32), epochs=3, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kquant.calibrate(kquant.quantize(model), x, verbose=False)
        kquant.calibrate(kquant.quantize(model), 3.0 * x, verbose=False)  # another light
    with pytest.warns(UserWarning, match=r"times what the mean and variance of its batch norm allow for.*x / 255"):
        kquant.calibrate(kquant.quantize(model), x * 255.0, verbose=False)


@pytest.mark.parametrize("observer", ["percentile", "minmax"])
def test_a_batch_norm_behind_another_input_speaks_too(observer: str) -> None:
    keras.utils.set_random_seed(0)
    inputs, ends = [], []
    for name in ("left", "right"):
        inputs.append(keras.Input((8, 8, 1), name=name))
        x = layers.BatchNormalization(momentum=0.5)(layers.Conv2D(8, 3, name=f"{name}_conv")(inputs[-1]))
        ends.append(layers.Flatten()(layers.ReLU(6.0)(x)))
    model = Model(inputs, layers.Dense(2)(layers.Concatenate()(ends)))
    x = np.random.default_rng(0).random((64, 8, 8, 1), np.float32)
    model.compile("sgd", "mse")
    model.fit([x, x], np.zeros((64, 2), np.float32), epochs=3, verbose=0)
    q = kquant.quantize(model, recipe={"name": "mine", "activations": {"observer": observer}})
    assert not said(lambda: kquant.calibrate(q, [x, 3.0 * x], verbose=False), "of its batch norm allow for")
    assert said(
        lambda: kquant.calibrate(q, [x, 255.0 * x], verbose=False), "'right_conv'", "of its batch norm allow for"
    )


def trained(x: np.ndarray, epochs: int, momentum: float, *body: keras.layers.Layer) -> Model:
    """A layer, a batch norm and a ReLU that were fitted to these data."""
    keras.utils.set_random_seed(0)
    first, *rest = body
    norm = layers.BatchNormalization(momentum=momentum)
    model = keras.Sequential([keras.Input(x.shape[1:]), first, norm, layers.ReLU(), *rest, layers.Dense(1)])
    model.compile("adam", "mse")
    model.fit(x, np.zeros((len(x), 1), np.float32), batch_size=32, epochs=epochs, verbose=0)
    return model


def heavy_tailed() -> tuple[Model, np.ndarray]:
    """Amounts: the largest of them lies 40 deviations and more from the mean."""
    drawn = np.random.default_rng(1)
    x = np.concatenate([drawn.normal(size=(8192, 3)), np.exp(drawn.normal(3.0, 2.5, (8192, 1)))], axis=1)
    assert np.max(x[:, 3] / np.std(x[:, 3])) > 40.0
    return trained(np.float32(x), 1, 0.9, layers.Dense(8)), np.float32(x)


def after_one_step() -> tuple[Model, np.ndarray]:
    """Averages that have moved by a hundredth: the variance is a tenth of that of the data, or less."""
    x = np.random.default_rng(2).uniform(0, 255, (256, 8, 8, 3)).astype(np.float32)
    return trained(x[:32], 1, 0.99, layers.Conv2D(8, 3), layers.GlobalAveragePooling2D()), x


@pytest.mark.parametrize("observer", ["percentile", "minmax"])
@pytest.mark.parametrize("make", [heavy_tailed, after_one_step])
def test_data_of_training_are_none_of_another_scale(
    make: Callable[[], tuple[Model, np.ndarray]], observer: str
) -> None:
    model, x = make()
    recipe = {"name": "mine", "activations": {"observer": observer}}
    q = kquant.quantize(model, recipe)
    assert not said(lambda: kquant.calibrate(q, x, verbose=False), "its batch norm")
    q = kquant.quantize(model, recipe)
    one_batch = {"batch_size": len(x), "verbose": False}
    assert not said(lambda: kquant.calibrate(q, x, **one_batch), "its batch norm")


@pytest.mark.parametrize("observer", ["percentile", "minmax"])
def test_pixels_for_a_model_of_unit_values_are_told(observer: str) -> None:
    x = np.random.default_rng(2).random((128, 8, 8, 3), np.float32)
    model = trained(x, 12, 0.9, layers.Conv2D(8, 3), layers.GlobalAveragePooling2D())
    recipe = {"name": "mine", "activations": {"observer": observer}}
    told = said(lambda: kquant.calibrate(kquant.quantize(model, recipe), 255.0 * x, verbose=False), "its batch norm")
    assert len(told) == 1 and 100 < int(told[0].split(", ")[1].split()[0]) < 2000, told
    assert not said(lambda: kquant.calibrate(kquant.quantize(model, recipe), 3.0 * x, verbose=False), "its batch norm")
