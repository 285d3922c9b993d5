"""`ops.take(table, indices, axis=0)`: the look-up that many write instead of an Embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant.runtime.arenas import arena_bytes
from kquant.runtime.running import available

TABLE = np.random.default_rng(1).normal(size=(10, 3)).astype(np.float32)
X = np.random.default_rng(0).integers(0, 10, size=(64, 5)).astype(np.int32)


class Rows(layers.Layer):
    """Rows of a table that trains."""

    def build(self, *_: Any) -> None:
        self.table = self.add_weight(name="table", shape=(10, 3))

    def call(self, x: Any) -> Any:
        return keras.ops.take(self.table, x, axis=0)


def model_of(look_up: Any) -> keras.Model:
    tokens = keras.Input((5,), dtype="int32")
    return keras.Model(tokens, layers.Dense(4)(layers.Flatten()(look_up(tokens))))


def exported(model: keras.Model, path: Path) -> bytes:
    q = kquant.calibrate(kquant.quantize(model), X, verbose=False)
    kquant.export(q, path, check_runtimes=False)
    got = kquant.predict(path, X, "litert-reference")
    np.testing.assert_array_equal(q.predict(X, verbose=0), got)
    return path.read_bytes()


@pytest.mark.parametrize(
    "look_up",
    [
        lambda x: keras.ops.take(TABLE, x, axis=0),
        lambda x: keras.ops.take(keras.ops.convert_to_tensor(TABLE), x, axis=-2),
        lambda x: keras.ops.take(TABLE.reshape(-1), x),
        Rows(),
    ],
)
def test_a_table_of_numbers_is_looked_up(look_up: Any, tmp_path: Path) -> None:
    exported(model_of(look_up), tmp_path / "m.tflite")


@pytest.mark.parametrize(("look_up", "trains"), [(lambda x: keras.ops.take(TABLE, x, axis=0), False), (Rows(), True)])
def test_a_table_trains_where_it_did(look_up: Any, trains: bool) -> None:
    q = kquant.quantize(model_of(look_up))
    trained = [v.shape for v in q.trainable_variables]
    assert ((10, 3) in trained) == trains


def test_another_axis_is_refused_with_one_that_works() -> None:
    tokens = keras.Input((5,), dtype="int32")
    model = keras.Model(tokens, keras.ops.take(np.ascontiguousarray(TABLE.T), tokens, axis=1))
    with pytest.raises(ValueError, match=r"take.*axis 1 of a table of shape \(3, 10\).*moveaxis"):
        kquant.quantize(model)
    kquant.quantize(model_of(lambda x: keras.ops.take(np.moveaxis(np.ascontiguousarray(TABLE.T), 1, 0), x, axis=0)))


@pytest.mark.skipif("tflm" not in available(), reason="needs the micro extra")
def test_the_smallest_arena_does_not_hang_on_what_an_input_held_before(tmp_path: Path) -> None:
    """What a fresh arena holds is no index: TFLM failed in every arena that was not full of zeros."""
    arena = arena_bytes(exported(model_of(layers.Embedding(10, 3)), tmp_path / "m.tflite"))
    assert arena is not None and arena < 2500
