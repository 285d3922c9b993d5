"""`fit_on_workers` is `fit`, on one worker too; two workers are in test_distribution."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant

RNG = np.random.default_rng(0)
X, Y = np.float32(RNG.normal(size=(32, 4))), np.float32(RNG.normal(size=(32, 2)))


def data() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)


def made(where: tf.distribute.Strategy | None = None) -> keras.Model:
    keras.utils.set_random_seed(0)
    with (where or tf.distribute.get_strategy()).scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)])
        q = kquant.calibrate(kquant.quantize(model), X, verbose=False)
        q.compile(keras.optimizers.Adam(1e-2), "mse", metrics=["mae"])
    return q


def test_it_is_what_fit_does() -> None:
    ours, keras_own = made(tf.distribute.MirroredStrategy(["CPU:0"])), made()
    seen: list[tuple[int, dict[str, float]]] = []
    tell = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append((epoch, dict(logs))))
    history = kquant.fit_on_workers(ours, data(), epochs=3, callbacks=[tell], verbose=False)
    expected = keras_own.fit(data(), epochs=3, shuffle=False, verbose=0)
    assert history.history.keys() == expected.history.keys()
    for name, values in expected.history.items():
        np.testing.assert_allclose(history.history[name], values, rtol=1e-5)
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    assert seen[-1][1] == {name: values[-1] for name, values in history.history.items()}
    for a, b in zip(ours.get_weights(), keras_own.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_callback_ends_it() -> None:
    q = made()
    stop = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: setattr(q, "stop_training", epoch == 1))
    assert len(kquant.fit_on_workers(q, data(), epochs=9, callbacks=[stop], verbose=False).epoch) == 2
    # and the next call begins anew
    assert len(kquant.fit_on_workers(q, data(), epochs=2, verbose=False).epoch) == 2


def test_what_it_cannot_do_is_refused() -> None:
    q = made()
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="plain")
    with pytest.raises(ValueError, match=r"^plain: fit_on_workers: compile the model first, inside strategy.scope"):
        kquant.fit_on_workers(plain, data())
    with pytest.raises(ValueError, match=r"data must be a tf.data.Dataset of batches.*Received: tuple"):
        kquant.fit_on_workers(q, (X, Y))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"have no end; give data.take\(steps\)"):
        kquant.fit_on_workers(q, data().repeat())
    assert kquant.fit_on_workers(q, data().repeat().take(3), verbose=False).history["loss"]  # the remedy
    with pytest.raises(ValueError, match="epochs must be 1 or more. Received: 0"):
        kquant.fit_on_workers(q, data(), epochs=0)
