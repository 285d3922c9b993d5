"""Process-wide settings of Keras are none of a model's: whatever they are, it becomes the same file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops

import kquant
from kquant.graph.keras_private import every_layer

X = np.random.default_rng(0).normal(size=(40, 16, 3)).astype("float32")
LAST = {"data_format": "channels_last"}
SETTINGS = {
    "mixed_bfloat16": lambda: keras.config.set_dtype_policy("mixed_bfloat16"),
    "mixed_float16": lambda: keras.config.set_dtype_policy("mixed_float16"),
    "float64": lambda: keras.config.set_floatx("float64"),
    "float64 policy": lambda: keras.config.set_dtype_policy("float64"),
    "channels_first": lambda: keras.config.set_image_data_format("channels_first"),
}


def each_but(*others: str) -> pytest.MarkDecorator:
    """Every setting; of two that are nearly alike the one in the one test, the other in the other."""
    marked = [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in others)) for name in SETTINGS]
    return pytest.mark.parametrize("setting", marked)


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")


@cache
def model(policy: str | None = None) -> keras.Model:
    """Layers that are taken apart, so that others are made in their place."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy or "float32")
    x = keras.Input((16, 3), name="x")
    y = layers.Conv1D(4, 3, padding="causal", activation="silu", **LAST)(x)
    y = layers.MaxPooling1D(2, **LAST)(layers.BatchNormalization()(y))
    y = layers.SeparableConv1D(4, 3, activation="gelu", **LAST)(y)
    y = layers.AveragePooling1D(6, **LAST)(y)  # over everything
    y = layers.Dense(3, activation="softmax")(layers.Flatten(**LAST)(y * 2.0))
    z = layers.UpSampling2D(2, interpolation="bilinear", **LAST)(layers.Reshape((4, 4, 3))(x))
    z = layers.GlobalMaxPooling2D(**LAST)(layers.Conv2D(3, 3, padding="same", **LAST)(z))
    z = layers.LayerNormalization()(z + ops.mean(z, axis=-1, keepdims=True))
    made = keras.Model(x, layers.Dense(2, dtype="float32", name="dense_last")(layers.Concatenate()([y, z])), name="net")
    keras.config.set_dtype_policy("float32")
    return made


def file_of(path: Path, policy: str | None = None) -> bytes:
    q = kquant.calibrate(kquant.quantize(model(policy)), X, verbose=False)
    kquant.export(q, path, check_runtimes=False)
    return path.read_bytes()


def dtypes(of: keras.Model) -> list[tuple[str, str]]:
    return [(layer.name, layer.compute_dtype) for layer in every_layer(of)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return file_of(tmp_path_factory.mktemp("plain") / "m.tflite")


@each_but("mixed_float16", "float64")
def test_the_file_is_the_same(setting: str, plain: bytes, tmp_path: Path) -> None:
    model()
    SETTINGS[setting]()
    before = keras.config.dtype_policy().name, keras.config.floatx(), keras.config.image_data_format()
    assert file_of(tmp_path / "m.tflite") == plain
    assert kquant.check(model()).ok
    assert (keras.config.dtype_policy().name, keras.config.floatx(), keras.config.image_data_format()) == before


@each_but("mixed_bfloat16", "float64 policy")
def test_float_models_are_the_same(setting: str) -> None:
    wanted = model()(X)
    SETTINGS[setting]()
    others = kquant.prune(model()), kquant.cluster(model(), 4), kquant.factorize(model(), ranks={"dense_last": 1})
    assert {dtype for made in others for _, dtype in dtypes(made)} == {"float32"}
    for made in (kquant.fold(model()), kquant.strip(kquant.quantize(model()))):
        assert {dtype for _, dtype in dtypes(made)} == {"float32"}
        keras.config.set_image_data_format("channels_last")  # which Keras' Rescaling looks at when it runs
        np.testing.assert_allclose(made(X), wanted, atol=1e-5)


def test_a_mixed_model_stays_mixed() -> None:
    wanted = None
    for policy in ("mixed_bfloat16", "float32"):
        mixed = model("mixed_bfloat16")
        keras.config.set_dtype_policy(policy)
        found = [dtypes(kquant.quantize(mixed)), dtypes(kquant.prune(mixed)), dtypes(kquant.fold(mixed))]
        assert "bfloat16" in dict(found[0]).values()
        wanted = wanted or found
        assert [[t for _, t in each] for each in found] == [[t for _, t in each] for each in wanted]
