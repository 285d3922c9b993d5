"""No verb changes the model that it is given: variables, seeds, settings, recorded calls, what it was compiled with."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import kquant

X = np.float32(np.random.default_rng(0).normal(size=(32, 6)))
Y = np.arange(32) % 3


@keras.saving.register_keras_serializable(package="test_untouched")
class Busy(layers.Layer):
    """It counts its calls, in a variable and in Python, keeps what it saw, and draws in training."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(5)
        self.seen, self.times, self.last = [], 0, None

    def build(self, shape: Any) -> None:
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, x: Any, training: bool | None = None) -> Any:
        self.calls.assign_add(1.0)
        self.times += 1
        self.seen.append(self.times)
        self.last = x
        if training:
            x = x + keras.random.normal((x.shape[-1],), seed=self.seed)
        return ops.tanh(x)


def made() -> keras.Model:
    """Compiled and trained a little, so that optimizer and metrics have a state too."""
    keras.utils.set_random_seed(0)
    x = keras.Input((6,), name="x")
    y = layers.Dense(8, activation="relu", name="wide")(layers.Rescaling(0.5, name="scale")(x))
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.Dropout(0.2, name="drop")(ops.clip(y, -2.0, 2.0))
    y = Busy(name="busy")(layers.Dense(8, name="middle")(y))
    model = keras.Model(x, layers.Dense(3, activation="softmax", name="kind")(y), name="net")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(X, Y, batch_size=16, epochs=1, verbose=0)
    busy = model.get_layer("busy")
    busy.seen, busy.times, busy.last = [1, 2], 2, None
    return model


def state(model: keras.Model) -> dict[str, Any]:
    """All of a model that could have changed."""
    inside = list(model._flatten_layers())
    operations = [*inside, *model.operations]
    busy = model.get_layer("busy")
    values = [*model.variables, *model.optimizer.variables, *model.metrics_variables, busy.seed.state]
    return {
        "values": [(v.path, v.numpy().tolist()) for v in values],
        "trainable": [(layer.name, layer.trainable, layer.built) for layer in inside],
        "config": json.dumps(model.get_config(), sort_keys=True, default=str),
        "nodes": [(op.name, len(op._inbound_nodes), len(op._outbound_nodes)) for op in operations],
        "compiled": json.dumps(model.get_compile_config(), sort_keys=True, default=str),
        "objects": [id(x) for x in (model.optimizer, model.loss, *model.metrics, *inside)],
        "python": (list(busy.seen), busy.times, busy.last, sorted(vars(busy))),
        "names": (model.name, list(model.output_names), [t.name for t in model.inputs]),
        "numbers": model(X, training=False).numpy().tolist() if not busy.times else None,
    }


def fit_student(teacher: keras.Model, _: Path) -> None:
    student = keras.Sequential([keras.Input((6,)), layers.Dense(3, activation="softmax", name="only")])
    distiller = kquant.distill(student, teacher)
    distiller.compile("sgd", "sparse_categorical_crossentropy")
    distiller.fit(X, Y, batch_size=32, epochs=1, verbose=0)


def score(model: keras.Model) -> float:
    return -float(np.mean((np.asarray(model(X[:8], training=False)) - 0.5) ** 2))


QUIET: dict[str, Any] = {"verbose": False}
# Verb of a float model -> how it is called here; every such verb of the package has to be in.
VERBS: dict[str, Callable[[keras.Model, Path], Any]] = {
    "autotune": lambda m, _: kquant.autotune(m, X, score, max_drop=1.0, **QUIET),
    "channel_groups": lambda m, _: kquant.channel_groups(m),
    "check": lambda m, _: kquant.check(m),
    "cluster": lambda m, _: kquant.cluster(m, 4),
    "compress": lambda m, folder: kquant.compress(m, X, path=folder / "m.tflite", **QUIET),
    "cost": lambda m, _: kquant.cost(m),
    "distill": fit_student,
    "factorize": lambda m, _: kquant.factorize(m, ranks={"middle": 3}, data=X, **QUIET),
    "fold": lambda m, _: kquant.fold(m),
    "mixed_precision": lambda m, _: kquant.mixed_precision(m, X[:8], flash_bytes=10**6, points=2, **QUIET),
    "prune": lambda m, _: kquant.prune(m, 0.5),
    "prune_channels": lambda m, _: kquant.prune_channels(m, macs=0.9, data=X, labels=Y, importance="taylor", **QUIET),
    "quantize": lambda m, _: kquant.quantize(m),
    "scan_sparsity": lambda m, _: kquant.scan_sparsity(m, X, sparsities=(0.5,), **QUIET),
    "split_preprocessing": lambda m, _: kquant.split_preprocessing(m),
    "sparsity": lambda m, _: kquant.sparsity(m),
    "strip": lambda m, _: kquant.strip(m),
}
# They are asked to set the state of the model that they are given, or take one of recurrent layers.
OTHERS = {"reestimate", "cell"}


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return made()


@pytest.mark.parametrize("name", VERBS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_verb_leaves_the_model_as_it_was(name: str, model: keras.Model, tmp_path: Path) -> None:
    before = state(model)
    VERBS[name](model, tmp_path)
    after = state(model)
    assert {key for key in before if before[key] != after[key]} == set()


def test_every_verb_of_a_float_model_is_tried() -> None:
    functions = {name: getattr(kquant, name) for name in kquant.__all__ if inspect.isfunction(getattr(kquant, name))}
    takes = {name for name, f in functions.items() if next(iter(inspect.signature(f).parameters)) == "model"}
    assert takes - OTHERS <= set(VERBS)


def test_a_refusal_leaves_the_model_as_it_was(model: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def draws(self: Any, x: Any, training: bool | None = None) -> Any:
        self.calls.assign_add(1.0)
        return x + keras.random.normal((8,), seed=self.seed)

    monkeypatch.setattr(Busy, "call", draws)
    before = state(model)
    with pytest.raises(ValueError, match=r"busy \(Busy\): it draws random numbers"):
        kquant.fold(model)
    assert state(model) == before


def test_the_state_sees_what_a_run_changes(model: keras.Model) -> None:
    before = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(X, training=True)
    after = state(model)
    assert {"values", "python"} <= {key for key in before if before[key] != after[key]}
