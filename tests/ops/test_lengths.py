"""Lengths that an application feeds, as masks: whole numbers compared as they are, equal in every code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import contract
import keras
import numpy as np
import pytest
from keras import layers, ops
from test_padding import signal_to_noise

import kquant
from kquant.ops.expansion import expand
from kquant.ops.lengths import Above
from kquant.tflite.reader import read_model

WIDTH = 6
REFERENCES = (("litert", "litert-reference"), ("tflm", "tflm"))


def attention(seen: Callable[[Any, np.ndarray], Any], steps: int = 8, hides: bool = False) -> keras.Model:
    """Attention by hand over as many steps as the second input says."""
    x, n = keras.Input((steps, WIDTH), name="steps"), keras.Input((1,), dtype="int32", name="length")
    mask = seen(n, np.arange(steps))[:, None, :]
    logits = ops.matmul(x, ops.swapaxes(x, 1, 2)) * 0.3
    hidden = ops.where(mask, -1e9, logits) if hides else ops.where(mask, logits, -1e9)
    return keras.Model([x, n], ops.matmul(ops.softmax(hidden), x))


def fed(steps: int = 8, count: int = 64, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = np.int32(rng.permutation(np.arange(count) * max(1, steps // count) % steps) + 1)
    return [np.float32(rng.normal(size=(count, steps, WIDTH))), lengths[:, None]]


def both(n: Any, t: np.ndarray) -> Any:
    """Told in two ways."""
    return ops.logical_and(n > t, ops.greater_equal(n, t + 1))


MASKS: dict[str, tuple[Callable[[Any, np.ndarray], Any], bool]] = {
    "greater": (lambda n, t: n > t, False),
    "greater or equal": (lambda n, t: ops.greater_equal(n, t + 1), False),
    "from the other side": (lambda n, t: ops.less(t, n), False),
    "a row": (lambda n, t: n > t[None], False),
    "fractions": (lambda n, t: ops.greater(n, t + 0.5), False),
    "less or equal": (lambda n, t: n <= t, True),
    "less": (lambda n, t: n < t + 1, True),
    "both": (both, False),
    "a new shape": (lambda n, t: ops.reshape(n, (-1, 1)) > t, False),
}


@pytest.mark.parametrize("name", MASKS)
def test_steps_behind_the_end_are_hidden(name: str) -> None:
    target, runtime = REFERENCES[list(MASKS).index(name) % 2]
    model, x = attention(MASKS[name][0], hides=MASKS[name][1]), fed(count=16, seed=1)
    np.testing.assert_allclose(expand(model)(x), model(x), atol=1e-5)
    q = kquant.calibrate(kquant.quantize(model, target=target), fed(), verbose=False)
    content = contract.file_of(q)
    assert contract.compare(q, content, runtime, x) == contract.Parity(1.0, 0)
    assert not contract.floats(content)
    assert [t.type for t in read_model(content).inputs] == ["INT8", "INT32"]
    assert signal_to_noise(model(x), q(x, training=False)) > 25
    x[0][:, 5:] += np.where(x[1] <= 5, np.float32(3.0), np.float32(0.0))[:, :, None]  # what nobody sees
    short = x[1][:, 0] <= 5
    assert np.any(short) and signal_to_noise(model(x)[short][:, :1], q(x, training=False)[short][:, :1]) > 25


@pytest.mark.parametrize(("target", "runtime"), REFERENCES)
def test_no_step_of_many_is_off_by_one(target: str, runtime: str) -> None:
    """8 bits cannot tell 300 lengths apart."""
    steps, n = keras.Input((300, 1), name="steps"), keras.Input((1,), dtype="int32", name="length")
    kept = ops.where((n > np.arange(300))[:, :, None], steps, 0.0)
    model = keras.Model([steps, n], ops.sum(kept, axis=1))
    lengths = np.random.default_rng(0).permutation(300) + 1
    x = [np.ones((300, 300, 1), np.float32), np.int32(lengths[:, None])]
    x[0][::2] = 0.5
    q = kquant.calibrate(kquant.quantize(model, target=target), x, verbose=False)
    above = next(layer for layer in q.layers if isinstance(layer, Above))
    inside = keras.Model(q.inputs, above.output)
    np.testing.assert_array_equal(inside.predict(x, verbose=0), np.float32(x[1] > np.arange(300)))
    assert contract.compare(q, contract.file_of(q), runtime, [a[::20] for a in x]) == contract.Parity(1.0, 0)


def test_it_trains_and_comes_back(tmp_path: Path) -> None:
    base = attention(MASKS["greater"][0])
    model = keras.Model(base.inputs, layers.Dense(2, name="head")(base.output[:, 0]))
    q, x = kquant.calibrate(kquant.quantize(model), fed(), verbose=False), fed()
    q.compile(keras.optimizers.Adam(0.01), "mse")
    losses = q.fit(x, x[0][:, 0, :2], epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    q.save(tmp_path / "q.keras")
    loaded: Any = keras.saving.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), q.predict(x, verbose=0))
    kquant.export(q, path := tmp_path / "m.tflite", data=x)
    np.testing.assert_array_equal(kquant.predict(path, x, "litert-reference"), q.predict(x, verbose=0))


def test_a_length_of_another_type_is_refused_with_what_runs() -> None:
    x, n = keras.Input((8, WIDTH)), keras.Input((1,))
    model = keras.Model([x, n], ops.where((n > np.arange(8, dtype="float32"))[:, :, None], x, 0.0))
    with pytest.raises(ValueError, match=r"A sample's length is an input of shape .1,. and dtype=.int32."):
        kquant.quantize(model)
