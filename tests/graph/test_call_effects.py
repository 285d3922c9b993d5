"""What a layer's `call` does beside computing: draws, state, losses, another way in training. Named or refused."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import kquant
from kquant.graph.keras_private import calls_of, every_layer
from kquant.graph.watched import Watched

X = np.float32(np.random.default_rng(0).normal(size=(8, 6)))


class Own(layers.Layer):
    """Its `call` is the function that it is given."""

    def __init__(self, body: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.body = body
        self.seed = keras.random.SeedGenerator(7)
        self.seen = keras.metrics.Mean(name="seen")
        self.drop = layers.Dropout(0.5, name="drop")
        self.late = layers.Dense(6, name="late")  # nobody calls it at inference
        self.times, self.log, self.last = 0, [], None

    def build(self, shape: Any) -> None:
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")
        self.mean = self.add_weight(shape=(6,), initializer="ones", trainable=False, name="mean")

    def call(self, x: Any) -> Any:
        return self.body(self, x)


class Told(Own):
    """It takes `training`."""

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.body(self, x, training)


def counts(own: Any, x: Any) -> Any:
    own.calls.assign_add(1.0)
    return x


def warms_up(own: Any, x: Any) -> Any:
    own.calls.assign_add(1.0)
    return x * ops.minimum(own.calls / 5.0, 1.0)


def multiplies_the_count(own: Any, x: Any) -> Any:
    own.calls.assign_add(1.0)
    return own.calls * x


def centres(own: Any, x: Any) -> Any:
    own.mean.assign(own.mean * 0.9 + 0.1 * ops.mean(x, axis=0))
    return x - own.mean


def measures(own: Any, x: Any) -> Any:
    own.seen.update_state(x)
    return x


def measures_and_uses(own: Any, x: Any) -> Any:
    own.seen.update_state(x)
    return x - own.seen.result()


def counts_in_python(own: Any, x: Any) -> Any:
    own.times += 1
    return x * (1.0 / own.times)


def keeps(own: Any, x: Any) -> Any:
    own.log.append(x)
    own.last, own.found = x, 3
    return own.mean * x


def draws_unused(own: Any, x: Any) -> Any:
    keras.random.normal((6,), seed=own.seed)
    return ops.tanh(x)


def penalizes(own: Any, x: Any) -> Any:
    own.add_loss(ops.sum(own.mean**2))
    return ops.tanh(x)


def branches(own: Any, x: Any) -> Any:
    return ops.tanh(x) if random.random() < 0.5 else ops.sigmoid(x)


REFUSED = {
    "a seed generator": (lambda own, x: x + keras.random.normal((6,), seed=own.seed), "draws random numbers"),
    "no seed": (lambda own, x: x + keras.random.normal((6,)), "draws random numbers"),
    "for each sample": (lambda own, x: x + keras.random.normal(ops.shape(x), seed=own.seed), "draws random numbers"),
    "a gate": (
        lambda own, x: ops.where(keras.random.uniform((6,), seed=own.seed) > 0.5, x, 0.0),
        "draws random numbers",
    ),
    "dropout": (lambda own, x: own.drop(x, training=True), r"drop \(Dropout\): it runs inside own \(Own\)"),
    "numpy": (lambda own, x: x + np.float32(np.random.normal(size=6)), "each time it runs"),
    "Python": (lambda own, x: x * random.random(), "each time it runs"),
    "an operation's setting": (lambda own, x: ops.clip(x, -random.random(), 1.0), "each time it runs"),
    "another branch each time": (branches, "each time it runs"),
    "an attribute": (counts_in_python, "each time it runs"),
    "a counter": (warms_up, "assigns calls at inference and computes with it"),
    "a counter as it is": (multiplies_the_count, "assigns calls at inference and computes with it"),
    "a running mean": (centres, "assigns mean at inference and computes with it"),
    "a metric": (measures_and_uses, "assigns total, count at inference and computes with it"),
}
NAMED = {
    "a counter": (counts, "assigns calls, which its output does not depend on"),
    "a metric": (measures, "assigns total, count, which its output does not depend on"),
    "a loss": (penalizes, "add_loss"),
    "attributes": (keeps, None),
    "a draw for nothing": (draws_unused, None),
    "an int as seed": (lambda own, x: x + keras.random.normal((6,), seed=3), None),
}
TRAINING = {
    "noise": (
        lambda own, x, training: x + keras.random.normal((6,), seed=own.seed) if training else x,
        "draws random",
    ),
    "a running mean": (lambda own, x, training: centres(own, x) if training else x - own.mean, "assigns mean"),
    "a loss": (lambda own, x, training: penalizes(own, x) if training else ops.tanh(x), "adds a loss"),
    "a layer": (lambda own, x, training: own.late(x) if training else ops.tanh(x), "computes something else"),
    "a dropout": (lambda own, x, training: own.drop(x) if training else ops.tanh(x), "computes something else"),
    "dropout in any case": (lambda own, x, training: own.drop(x, training=training), None),
}


def made(body: Callable[..., Any], cls: type = Own) -> keras.Model:
    keras.utils.set_random_seed(0)
    x = keras.Input((6,))
    return keras.Model(x, layers.Dense(2, name="head")(cls(body, name="own")(x)))


def state(model: keras.Model) -> list[Any]:
    """Everything of the model that a `call` could have changed."""
    own = model.get_layer("own")
    plain = [own.times, len(own.log), own.last, hasattr(own, "found"), own.late.built, len(own.losses)]
    nodes = [tuple(map(len, calls_of(x))) for x in every_layer(model)]
    return [*(v.numpy().tolist() for v in model.variables), own.seed.state.numpy().tolist(), *plain, nodes]


@pytest.mark.parametrize("name", REFUSED)
def test_a_call_that_gives_another_result_each_time_is_refused(name: str) -> None:
    body, said = REFUSED[name]
    model = made(body)
    before = state(model)
    with pytest.raises(ValueError, match=said) as refused:
        kquant.quantize(model)
    assert "own" in str(refused.value)
    assert state(model) == before


@pytest.mark.parametrize("name", NAMED)
def test_what_the_output_does_not_depend_on_is_named_and_left_out(name: str) -> None:
    body, said = NAMED[name]
    model = made(body)
    before = state(model)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        flat = kquant.fold(model)
    told = [str(w.message) for w in seen if str(w.message).startswith("own (Own)")]
    assert len(told) == (said is not None) and (said or "") in "".join(told)
    assert state(model) == before
    np.testing.assert_allclose(flat.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-5)


@pytest.mark.parametrize("name", TRAINING)
def test_what_acts_in_training_only_is_named_or_stays(name: str) -> None:
    body, said = TRAINING[name]
    model = made(body, Told)
    before = state(model)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        kquant.quantize(model)
    told = [str(w.message) for w in seen if str(w.message).startswith("own (Told): with training=True")]
    assert len(told) == (said is not None) and (said or "") in "".join(told)
    assert state(model) == before


@keras.saving.register_keras_serializable(package="test_call_effects")
class Jitter(layers.Layer):
    """Noise in training, beside a kernel where `units` says so."""

    def __init__(self, units: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.seed = units, keras.random.SeedGenerator(3)
        self.dense = layers.Dense(units, name="inner") if units else None

    def build(self, shape: Any) -> None:
        if self.dense is not None:
            self.dense.build(shape)

    def call(self, x: Any, training: bool | None = None) -> Any:
        if training:
            x = x + keras.random.normal((x.shape[-1],), seed=self.seed)
        return ops.tanh(x if self.dense is None else self.dense(x))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


@pytest.mark.parametrize("units", [0, 4])
def test_a_float_model_goes_on_doing_what_it_does_in_training(units: int, tmp_path: Any) -> None:
    keras.utils.set_random_seed(0)
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(2, name="head")(Jitter(units, name="jitter")(x)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruned = kquant.prune(model, 0.5)
        plain = kquant.strip(pruned)
    pruned.save(tmp_path / "pruned.keras")
    for new in (pruned, plain, keras.models.load_model(tmp_path / "pruned.keras")):
        assert np.abs(new(X, training=True) - new(X, training=True)).max() > 0.1, new.layers
        np.testing.assert_allclose(new(X, training=False), new(X, training=False))
    if units:  # the mask inside the layer holds on, through a grid too
        assert np.mean(plain.get_layer("jitter").dense.kernel == 0) >= 0.5
        with pytest.warns(UserWarning, match=r"jitter \(Jitter\): with training=True its `call` draws random"):
            q = kquant.quantize(pruned)
        assert np.mean(np.asarray(q.get_layer("inner").weights_as_used()) == 0) >= 0.5


def test_what_a_message_proposes_is_taken() -> None:
    x, noise = keras.Input((6,)), keras.Input((6,), name="noise")
    outside = keras.Model([x, noise], layers.Dense(2)(Own(lambda own, xs: xs[0] + xs[1])([x, noise])))
    kquant.quantize(outside)
    with pytest.warns(UserWarning, match="with training=True"):
        kquant.quantize(made(TRAINING["noise"][0], Told))
    kquant.quantize(keras.Sequential([keras.Input((6,)), layers.GaussianNoise(0.1), layers.Dense(2)]))


def test_an_augmentation_that_leaves_is_named() -> None:
    images = keras.Input((4, 4, 3))
    y = layers.Dense(2)(layers.Flatten()(layers.RandomFlip(name="flip")(images)))
    model = keras.Model(images, y)
    with pytest.warns(UserWarning, match=r"flip \(RandomFlip\)"):
        kquant.quantize(model)
    steps = keras.Input((3, 2))
    with pytest.warns(UserWarning, match=r"gru \(GRU\)"):
        kquant.quantize(keras.Model(steps, layers.GRU(2, dropout=0.5, name="gru")(steps)))


def test_variables_read_what_was_assigned_inside_and_stay_outside() -> None:
    layer = Own(counts)
    layer.build((None, 6))
    watched = Watched()
    with watched.over(layer):
        layer.calls.assign_add(2.0)
        assert float(layer.calls.value) == 2.0
        layer.mean.assign(keras.KerasTensor((6,)))
    assert float(layer.calls.numpy()) == 0.0 and type(layer.calls) is type(keras.Variable(0.0))
    assert [v.name for v in watched.assigned] == ["calls", "mean"]
    assert [np.asarray(value).tolist() for _, value in watched.after()] == [2.0, [2.0] * 6]
