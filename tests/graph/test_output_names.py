"""Losses, metrics and monitors go by the names of outputs: a model made of another has the same names."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import new_process
import numpy as np
import pytest
from keras import layers

import kquant
from kquant.graph.output_names import as_keras, functional

pytestmark = pytest.mark.filterwarnings(
    r"ignore:calibrate. \d+ samples are few",
)

X = np.float32(np.random.default_rng(0).normal(size=(8, 6)))
Y = {"kind": np.arange(8) % 3, "size": X[:, :1]}


def _body() -> tuple[Any, Any]:
    x = keras.Input((6,), name="x")
    return x, layers.Dense(4, activation="relu", name="body")(x)


def listed() -> keras.Model:
    x, h = _body()
    heads = [layers.Dense(3, activation="softmax", name="kind"), layers.Dense(1, name="size")]
    return keras.Model(x, [head(h) for head in heads])


def in_dict() -> keras.Model:
    model = listed()
    return keras.Model(model.input, dict(zip(("kind", "size"), model.outputs, strict=True)))


def nested() -> keras.Model:
    def tower(name: str, units: int, activation: str | None) -> keras.Model:
        x = keras.Input((4,))
        y = layers.Dense(units, activation=activation, name=f"{name}_last")(layers.Dense(4, name=f"{name}_mid")(x))
        return keras.Model(x, y, name=name)

    x, h = _body()
    return keras.Model(x, [tower("kind", 3, "softmax")(h), tower("size", 1, None)(h)])


def passive() -> keras.Model:
    """Layers that leave have the names."""
    x, h = _body()
    kind = layers.Identity(name="kind")(layers.Dense(3, activation="softmax", name="first")(h))
    return keras.Model(x, [kind, layers.Dropout(0.1, name="size")(layers.Dense(1, name="second")(h))])


def folded() -> keras.Model:
    x, h = _body()
    kind = layers.Softmax(name="kind")(layers.BatchNormalization(name="norm")(layers.Dense(3, name="first")(h)))
    return keras.Model(x, [kind, layers.BatchNormalization(name="size")(layers.Dense(1, name="second")(h))])


@keras.saving.register_keras_serializable(package="test_output_names")
class Owns(layers.Layer):
    """A layer that is unfolded, and nothing in it has its name."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = layers.Dense(3, name="inner")

    def build(self, shape: Any) -> None:
        self.inner.build(shape)

    def call(self, x: Any) -> Any:
        return keras.ops.softmax(self.inner(x))


def unfolded() -> keras.Model:
    x, h = _body()
    return keras.Model(x, [Owns(name="kind")(h), layers.Dense(1, name="size")(h)])


class Heads(keras.Model):
    """A subclassed model, whose dict has the names."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.first = layers.Dense(3, activation="softmax", name="first")
        self.second = layers.Dense(1, name="second")

    def call(self, x: Any) -> Any:
        return {"kind": self.first(x), "size": self.second(x)}


def subclassed() -> keras.Model:
    model = Heads(name="heads")
    model(X)
    return model


MODELS = (listed, in_dict, nested, passive, folded, unfolded, subclassed)
QUANTIZED: dict[str, Callable[[keras.Model], keras.Model]] = {
    "quantize": kquant.quantize,
    "strip of quantize": lambda model: kquant.strip(kquant.quantize(model)),
}
VERBS = {
    "prune": lambda model: kquant.prune(model, 0.5),
    "cluster": lambda model: kquant.cluster(model, 4),
    "fold": kquant.fold,
    "strip": kquant.strip,
    "quantize of prune": lambda model: kquant.quantize(kquant.prune(model, 0.5)),
    "factorize": lambda model: kquant.factorize(model, ranks={}, verbose=False),
    "prune_channels": lambda model: kquant.prune_channels(model, macs=1.0, verbose=False),
}
PLAIN = ("fold", "strip", "strip of quantize", "factorize", "prune_channels")


def made(factory: Callable[[], keras.Model]) -> keras.Model:
    keras.utils.set_random_seed(0)
    return factory()


@pytest.mark.parametrize("factory", MODELS)
def test_every_verb_keeps_the_names(factory: Callable[[], keras.Model]) -> None:
    model = made(factory)
    for name, verb in (QUANTIZED if factory in (in_dict, passive, folded) else {**QUANTIZED, **VERBS}).items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            new = verb(model)
        assert list(new.output_names) == ["kind", "size"], name
        assert keras.Model.from_config(new.get_config()).output_names == new.output_names or name not in PLAIN
        assert name not in PLAIN or type(new).__module__.startswith("keras."), name


@pytest.mark.parametrize("factory", [listed, in_dict, subclassed])
def test_losses_metrics_and_monitors_by_name(factory: Callable[[], keras.Model]) -> None:
    seen = []
    model = made(factory)
    for trained in (model, kquant.calibrate(kquant.quantize(model), X, verbose=False)):
        trained.compile(
            keras.optimizers.SGD(0.0),
            {"kind": "sparse_categorical_crossentropy", "size": "mse"},
            loss_weights={"kind": 0.5, "size": 2.0},
            metrics={"kind": ["accuracy"], "size": ["mae"]},
            run_eagerly=True,
        )
        history = trained.fit(X, Y, validation_data=(X, Y), epochs=1, batch_size=8, verbose=0).history
        seen.append({name: values[-1] for name, values in history.items()})
    assert set(seen[0]) == set(seen[1]) and "val_kind_loss" in seen[0]
    for name, value in seen[0].items():  # each loss belongs to its output still
        assert seen[1][name] == pytest.approx(value, rel=0.2, abs=0.05) or "accuracy" in name, name


def test_names_survive_files_in_a_new_process(tmp_path: Path) -> None:
    q = kquant.quantize(made(nested))
    q.save(tmp_path / "quantized.keras")
    kquant.strip(q).save(tmp_path / "plain.keras")
    code = "import keras, sys\nnames = lambda f: print(list(keras.models.load_model(f).output_names))\n"
    code += "names(sys.argv[1])\nassert 'kquant' not in sys.modules\nimport kquant\nnames(sys.argv[2])"
    files = [str(tmp_path / f"{name}.keras") for name in ("plain", "quantized")]
    done = new_process.run(code, *files)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-2:] == ["['kind', 'size']"] * 2, done.stdout


def test_one_tensor_twice_a_sequence_and_states() -> None:
    x, h = _body()
    kind = layers.Dense(3, activation="softmax", name="kind")(h)
    twice = keras.Model(x, [kind, kind])
    assert list(kquant.quantize(twice).output_names) == twice.output_names == ["kind", "kind"]
    assert list(kquant.strip(kquant.quantize(twice)).output_names) == ["kind", "kind"]
    chain = keras.Sequential([keras.Input((6,)), layers.Dense(2, activation="tanh", name="only")])
    assert list(kquant.quantize(chain).output_names) == ["only"]
    steps = keras.Input((4, 2))
    states = keras.Model(steps, list(layers.LSTM(3, return_state=True, name="lstm")(steps)))
    assert list(kquant.fold(states).output_names) == states.output_names == ["lstm"] * 3


def test_the_rest_behind_the_preprocessing_keeps_the_names() -> None:
    model, x = made(nested), keras.Input((6,), name="raw")
    scaled = keras.Model(x, keras.tree.flatten(model(layers.Rescaling(0.5)(x))))
    whole = keras.Model(x, [layers.Identity(name=n)(t) for n, t in zip(("kind", "size"), scaled.outputs, strict=True)])
    split = kquant.split_preprocessing(whole)
    assert list(split.model.output_names) == ["kind", "size"] and type(split.model).__module__.startswith("keras.")


def test_a_name_that_no_layer_can_take_is_remembered() -> None:
    x = keras.Input((4,), name="x")
    first, second = layers.Dense(2, name="first")(x), layers.Dense(2, name="second")(x)
    model = functional(x, [first, second], "model", ["x", "both"])  # a layer called "x" is there
    assert as_keras(model) is model
    again = type(model).from_config(model.get_config())
    assert list(again.output_names) == ["x", "both"] and again.name == "model"
