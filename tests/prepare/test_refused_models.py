"""What `quantize` and `check` refuse: every message says where, what was expected, what came and what to do."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops
from one_layer import RawTensorFlow, X, calibrated, dense

import kquant

pytestmark = pytest.mark.filterwarnings(
    "ignore:Layer InputLayer does not have a `quantize` method",
)


def test_layer_without_a_rule_is_named() -> None:
    x = keras.Input((6,), name="x")
    model = keras.Model(x, layers.Dense(2)(layers.Lambda(ops.argsort, name="unit")(layers.Dense(4)(x))))
    with pytest.raises(
        ValueError,
        match=r"cannot run in integers.*\n  unit \(Lambda\): it unfolds into .*, which kquant has no rule",
    ):
        kquant.quantize(model)


def test_all_unknown_operations_are_listed() -> None:
    x = keras.Input((6,), name="x")
    y = ops.argsort(layers.Dense(4)(x))
    with pytest.raises(ValueError, match=r"cannot run in integers on LiteRT") as caught:
        kquant.quantize(keras.Model(x, [ops.fft((layers.Dense(4)(x), x[:, :4]))[0], y]))
    assert "(FFT): kquant has no rule for it; replace it by layers that have one" in str(caught.value)
    assert "(Argsort): no int8 kernel sorts" in str(caught.value)


def test_builtin_layer_that_does_not_unfold_is_named() -> None:
    x = keras.Input((6, 4, 4, 2), name="x")
    model = keras.Model(x, layers.ConvLSTM2D(3, 1, name="memory")(x))
    with pytest.raises(ValueError, match=r"memory \(ConvLSTM2D\): its state is an image.*TimeDistributed"):
        kquant.quantize(model)


class Numpy(layers.Layer):
    def call(self, x: Any) -> Any:
        return np.sin(x)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


class Penalized(layers.Layer):
    def call(self, x: Any) -> Any:
        self.add_loss(0.1 * ops.mean(x))
        return ops.tanh(x)


def test_add_loss_inside_call_is_named_where_the_layer_is_opened() -> None:
    x = keras.Input((6,), name="x")
    model = keras.Model(x, layers.Dense(2)(Penalized(name="sparse")(x)))
    with pytest.raises(ValueError, match=r"^sparse \(Penalized\): its `call` uses add_loss.*activity_regularizer"):
        kquant.quantize(model)
    pruned = kquant.prune(model, 0.5)  # here it stays whole
    for each in (model, pruned):
        each(X)
    assert len(pruned.losses) == len(model.losses) == 1
    np.testing.assert_allclose(pruned.losses[0], model.losses[0], rtol=1e-5)


@pytest.mark.parametrize("layer", [RawTensorFlow, Numpy])
@pytest.mark.parametrize("verb", [kquant.quantize, kquant.check])
def test_untraceable_custom_layer_is_named(layer: type, verb: Callable) -> None:
    x = keras.Input((6,), name="x")
    model = keras.Model(x, layers.Dense(2)(layer(name="opaque")(x)))
    wanted = rf"opaque \({layer.__name__}\): its `call` cannot be followed.*keras.ops.* instead of raw.*It said: \w"
    with pytest.raises(ValueError, match=wanted):
        verb(model)


def test_untraceable_layer_deep_inside_is_named() -> None:
    class Outer(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="outer")
            self.inner = RawTensorFlow(name="inner")

        def call(self, x: Any) -> Any:
            return self.inner(x) + 1.0

    model = Outer()
    model(X)
    with pytest.raises(ValueError, match=r"^inner \(RawTensorFlow\): its `call` cannot be followed"):
        kquant.quantize(model)


def test_call_that_ignores_its_input_is_refused() -> None:
    class Constant(keras.Model):
        def call(self, x: Any) -> Any:
            return ops.ones((1, 3))

    model = Constant(name="constant")
    model(X)
    with pytest.raises(
        ValueError, match=r"constant \(Constant\): its `call` must return tensors that depend on its inputs"
    ):
        kquant.quantize(model)


def test_call_with_several_arguments_is_refused() -> None:
    class Two(keras.Model):
        def call(self, a: Any, b: Any) -> Any:
            return a + b

    model = Two(name="two")
    model(X, X)
    with pytest.raises(ValueError, match=r"two \(Two\): its `call` must take one argument.*call\(a, b\).*Take a dict"):
        kquant.quantize(model)


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_other_float_widths_are_refused(dtype: str) -> None:
    with pytest.raises(
        ValueError, match=rf"net: variable '.*head/kernel' is {dtype}; kquant reads float32.*Rebuild the model"
    ):
        kquant.quantize(dense(dtype=dtype))


@pytest.mark.parametrize("module", ["tf_keras.src.engine.functional", "tensorflow.python.keras.engine.training"])
def test_keras_2_model_is_refused_with_the_way_over(module: str) -> None:
    legacy = type("Functional", (), {"__module__": module})
    model = type("UsersModel", (legacy,), {"name": "old"})()  # a subclass in the user's own module
    with pytest.raises(
        ValueError, match=r"old: this is a Keras 2 model.*Keras 3.*new.set_weights\(old.get_weights\(\)\)"
    ):
        kquant.quantize(model)


@pytest.mark.parametrize(
    ("given", "said"), [("m.keras", r"the path m.keras; load it with keras.models.load_model"), (3, "builtins.int")]
)
def test_what_is_no_model_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"expected a keras.Model. Received: {said}"):
        kquant.quantize(given)


# what verbs take beside the model, by the name of the argument
BESIDE: dict[str, Any] = {"data": np.ones((4, 4), np.float32), "evaluate": len, "steps": [], "encodings": {}}
BESIDE |= {"clusters": 4, "recipe": 0.5}
OTHERWISE = {"detect", "transcribe"}  # they take a path too
SIGNATURES = {n: inspect.signature(f).parameters for n in kquant.__all__ if inspect.isfunction(f := getattr(kquant, n))}
VERBS = [
    n for n, wants in SIGNATURES.items() if {"model", "qmodel", "step"} & {*list(wants)[:1]} and n not in OTHERWISE
]


@pytest.mark.parametrize("given", [None, "m.keras"])
@pytest.mark.parametrize("name", VERBS)
def test_every_verb_refuses_what_is_no_model(name: str, given: Any, tmp_path: Path) -> None:
    said = "None" if given is None else "the path m.keras; load it with keras.models.load_model"
    with pytest.raises(ValueError, match=rf"^{name}: expected a keras.Model. Received: {said}\."):
        needs = [p.name for p in SIGNATURES[name].values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
        places = {"path": tmp_path / "m.tflite", "folder": tmp_path / "made"}
        getattr(kquant, name)(given, **{word: {**BESIDE, **places}[word] for word in needs[1:]})
    assert list(tmp_path.iterdir()) == []


class Unbuilt(keras.Model):
    def call(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize("verb", [kquant.quantize, kquant.check])
@pytest.mark.parametrize("make", [lambda: keras.Sequential([layers.Dense(2)], name="raw"), lambda: Unbuilt(name="raw")])
def test_unbuilt_model_is_refused(make: Callable, verb: Callable) -> None:
    with pytest.raises(ValueError, match="raw: the model is not built.*Call it once on data"):
        verb(make())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    model = dense()
    kernel = model.get_layer("head").kernel.numpy()
    kernel[2, 1] = value
    model.get_layer("head").kernel.assign(kernel)
    with pytest.raises(ValueError, match="net: variable '.*head/kernel' holds NaN or Inf; restore a good checkpoint"):
        kquant.quantize(model)


def test_empty_axis_is_refused() -> None:
    x = keras.Input((4, 0), name="nothing")
    with pytest.raises(ValueError, match=r"input 'nothing' of shape \(None, 4, 0\) holds no values"):
        kquant.quantize(keras.Model(x, layers.Flatten()(x)))


def test_quantized_model_is_refused() -> None:
    with pytest.raises(ValueError, match="net: this model is quantized already; pass the float model"):
        kquant.quantize(calibrated())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "int9"}, r"no recipe 'int9'. Did you mean 'int8'\? There are: .*int8"),
        ({"recipe": "missing.toml"}, "recipe: no file missing.toml"),
        ({"recipe": {"name": "r", "activation": {}}}, r"unknown key 'activation'. Did you mean 'activations'\?"),
        (
            {"recipe": {"name": "r", "rules": [{"layer": "heed", "skip": True}]}},
            "the rule layer='heed' matches no layer. Layers: head",
        ),
        (
            {"recipe": {"name": "r", "activations": {"observer": "average"}}},
            "observer 'average' does not exist.*There are: minmax",
        ),
        ({"target": "tfml"}, r"tfml.*tflm"),
    ],
)
def test_unknown_names_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kquant.quantize(dense(), **options)


@pytest.mark.parametrize("verb", [kquant.quantize, kquant.check])
def test_a_model_that_keras_quantized_is_refused(verb: Callable) -> None:
    model = dense()
    model.quantize("int8")
    with pytest.raises(ValueError, match=r"net: Keras quantized head \(`model.quantize`\).*Pass the float model"):
        verb(model)


CONSTANTS = {
    "sum": lambda x: x + np.inf,
    "product": lambda x: x * np.nan,
    "rows": lambda x: layers.Reshape((2, 3))(x) + np.float32([[1.0], [np.inf]]),
    "bound": lambda x: ops.maximum(x, np.nan),
    "no number is larger": lambda x: ops.minimum(x, -np.inf),
    "normalization": lambda x: layers.Rescaling(1.0, offset=np.inf)(x),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_infinite_constants_are_refused(name: str) -> None:
    x = keras.Input((6,), name="x")
    with pytest.raises(ValueError, match=r"\w+: a constant of the model holds NaN or Inf"):
        kquant.quantize(keras.Model(x, CONSTANTS[name](x), name="net"))


def test_an_infinite_bound_is_none() -> None:
    x = keras.Input((6,), name="x")
    model = keras.Model(x, ops.clip(x, -np.inf, 1.0) + ops.maximum(x, -np.inf), name="net")
    np.testing.assert_allclose(kquant.fold(model).predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-6)


@pytest.mark.parametrize("verb", [kquant.quantize, kquant.check])
def test_strings_and_doubles_are_refused(verb: Callable) -> None:
    text = keras.Input((6,), name="text", dtype="string")
    with pytest.raises(ValueError, match=r"net: input 'text' is of type string.*preprocessing"):
        verb(keras.Model(text, layers.Flatten()(text), name="net"))
    x = keras.Input((6,), name="x", dtype="float64")
    for y in (layers.ReLU(name="double", dtype="float64")(x), ops.relu(x)):
        with pytest.raises(ValueError, match=r"(double|relu\w*) \(\w+\): it computes in float64; kquant reads float32"):
            verb(keras.Model(x, y, name="net"))
    verb(keras.Model(x, layers.Dense(2)(x)))  # which casts


def test_every_refusal_of_a_rule_is_listed_at_once() -> None:
    x = keras.Input((70, 3), name="x")
    long = layers.GRU(3, name="long")(x)
    each = layers.TimeDistributed(layers.Conv1D(2, 1), name="each")(layers.Reshape((70, 3, 1))(x))
    model = keras.Model(x, [long, each, ops.argsort(layers.Dense(2)(x)), layers.Dense(2)(x)], name="net")
    with pytest.raises(ValueError, match=r"cannot run in integers on ") as caught:
        kquant.quantize(model, target="ethos-u")  # which has no loops
    refused = [row for row in kquant.check(model, "ethos-u").layers if row.status == "refused"]
    lines = str(caught.value).splitlines()[1:]
    assert len(refused) == 3 and sorted(line.split()[0] for line in lines) == sorted(row.layer for row in refused)
    with pytest.raises(ValueError, match=r"^long \(GRU\): no kernel computes it"):  # one alone says it itself
        kquant.quantize(keras.Model(x, long, name="net"), target="ethos-u")
