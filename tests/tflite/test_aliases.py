"""LiteRT lays tensors over each other: files whose RESHAPEs share memory with what is still read compute every code."""

from __future__ import annotations

import random

import keras
import numpy as np
import pytest

import kquant
from kquant.graph.keras_private import made_of
from kquant.runtime.running import predict

pytestmark = pytest.mark.filterwarnings(
    "ignore:calibrate. the range differs more than 2 times",
)

layers = keras.layers
X = np.random.default_rng(0).normal(size=(40, 6, 4)).astype("float32")
SHAPES = ((6, 4), (4, 6), (24,), (2, 12), (3, 8))


def overlaid(inputs: keras.KerasTensor) -> keras.KerasTensor:
    """A sum, which LiteRT computes over its first input."""
    return layers.Add()([layers.Dense(4)(inputs), layers.Dense(4)(inputs)])


def factor(inputs: keras.KerasTensor, shape: tuple[int, ...]) -> keras.KerasTensor:
    return layers.Reshape(shape)(layers.Dense(4)(inputs))


def two_views() -> keras.Model:
    inputs = keras.Input((6, 4))
    total = overlaid(inputs)
    views = [layers.Reshape(shape)(total) for shape in ((4, 6), (24,))]
    return keras.Model(inputs, [layers.Multiply()([v, factor(inputs, tuple(v.shape[1:]))]) for v in views])


def read_later() -> keras.Model:
    inputs = keras.Input((6, 4))
    total = overlaid(inputs)
    product = layers.Multiply()([layers.Reshape((4, 6))(total), factor(inputs, (4, 6))])
    return keras.Model(inputs, [layers.Dense(3)(product), layers.Dense(3)(total)])


def softmaxes() -> keras.Model:
    inputs = keras.Input((6, 4))
    total = overlaid(inputs)
    outputs = [layers.Dense(3)(layers.Softmax()(layers.Reshape(shape)(total))) for shape in ((4, 6), (2, 12))]
    return keras.Model(inputs, [*outputs, layers.Dense(5)(layers.Flatten()(total)), layers.Dense(2)(total)])


def random_views(seed: int) -> keras.Model:
    """Sums, products and RESHAPEs of 24 numbers in any order."""
    rng = random.Random(seed)
    inputs = keras.Input((6, 4))
    made = [overlaid(inputs), layers.Dense(4)(inputs)]
    for _ in range(12):
        x = rng.choice(made)
        kind = rng.choice(("reshape", "reshape", "sum", "product", "softmax"))
        if kind == "reshape":
            made.append(layers.Reshape(rng.choice(SHAPES))(x))
        elif kind == "softmax":
            made.append(layers.Softmax()(x))
        else:
            alike = [y for y in made if y.shape == x.shape]
            layer = layers.Add() if kind == "sum" else layers.Multiply()
            made.append(layer([x, rng.choice(alike)]))
    read = {id(t) for y in made for t in made_of(y)[1]}
    return keras.Model(inputs, [layers.Flatten()(t) for t in made if id(t) not in read] or made[-1])


def differing(model: keras.Model, recipe: str, runtime: str, path) -> float:
    """The largest error of any output of the file, in its own units."""
    q = kquant.calibrate(kquant.quantize(model, recipe), X, verbose=False)
    kquant.export(q, path, check_runtimes=False)
    expected, found = q(X), predict(path, X, runtime)
    pairs = zip(expected, found, strict=True) if isinstance(found, list) else [(expected, found)]
    return max(float(np.abs(np.asarray(a) - b).max()) for a, b in pairs)


@pytest.mark.parametrize("build", [two_views, read_later, softmaxes])
@pytest.mark.parametrize(("recipe", "runtime"), [("int8", "litert-reference"), ("int16x8", "litert")])
def test_what_is_still_read_is_not_overwritten(build, recipe, runtime, tmp_path) -> None:
    keras.utils.set_random_seed(1)
    assert differing(build(), recipe, runtime, tmp_path / "m.tflite") == 0


@pytest.mark.one_in(2)
@pytest.mark.parametrize("seed", range(8))
def test_random_views(seed: int, tmp_path) -> None:
    keras.utils.set_random_seed(seed)
    assert differing(random_views(seed), "int16x8", "litert", tmp_path / "m.tflite") == 0


def test_litert_still_needs_it(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """The tests above can fail; where they no longer do, `in_place` of targets/litert.toml can go."""
    monkeypatch.setattr("kquant.tflite.file_content.keep_apart", lambda *_: None)
    keras.utils.set_random_seed(1)
    assert differing(read_later(), "int8", "litert-reference", tmp_path / "m.tflite") > 1


def test_other_files_stay_as_they_are(tmp_path) -> None:
    """No RESHAPE more than the model has, where nothing can be overwritten."""
    inputs = keras.Input((6, 4))
    dense = layers.Dense(4)(inputs)
    views = [layers.Softmax()(layers.Reshape(shape)(dense)) for shape in ((4, 6), (2, 12))]
    q = kquant.calibrate(kquant.quantize(keras.Model(inputs, views)), X, verbose=False)
    file = kquant.inspect(kquant.export(q, tmp_path / "m.tflite", check_runtimes=False).path)
    sources = [op.inputs[0] for op in file.operators if op.code == "RESHAPE"]
    assert len(sources) == 2 and sources[0] == sources[1]
