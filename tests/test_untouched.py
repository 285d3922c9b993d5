"""Verbs change a given model only where they say so: variables, seeds, settings, calls, what it was compiled with."""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import kquant
from kquant.graph.keras_private import calls_of, every_layer

WIDE: dict[str, Any] = {}  # encodings of other ranges
FILES: dict[str, Path] = {}
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
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], run_eagerly=True)
    model.fit(X, Y, batch_size=16, epochs=1, verbose=0)
    busy = model.get_layer("busy")
    busy.seen, busy.times, busy.last = [1, 2], 2, None
    return model


def state(model: keras.Model) -> dict[str, Any]:
    """All of a model that could have changed."""
    inside = every_layer(model)
    operations = [*inside, *model.operations]
    busy = model.get_layer("busy")
    values = [*model.variables, *model.optimizer.variables, *model.metrics_variables, busy.seed.state]
    return {
        "values": [(v.path, v.numpy().tolist()) for v in values],
        "trainable": [(layer.name, layer.trainable, layer.built) for layer in inside],
        "config": json.dumps(model.get_config(), sort_keys=True, default=str),
        "nodes": [(op.name, *map(len, calls_of(op))) for op in operations],
        "compiled": json.dumps(model.get_compile_config(), sort_keys=True, default=str),
        "objects": [id(x) for x in (model.optimizer, model.loss, *model.metrics, *inside)],
        "python": (list(busy.seen), busy.times, busy.last, sorted(vars(busy))),
        "names": (model.name, list(model.output_names), [t.name for t in model.inputs]),
        "numbers": model(X, training=False).numpy().tolist() if not busy.times else None,
    }


def fit_student(teacher: keras.Model, _: Path) -> None:
    student = keras.Sequential([keras.Input((6,)), layers.Dense(3, activation="softmax", name="only")])
    distiller = kquant.distill(student, teacher)
    distiller.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
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
    "estimate": lambda m, _: kquant.estimate(m),
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
    "summary": lambda m, _: kquant.summary(m, print_fn=len),
}
# They say "In place", or take a model of recurrent layers: see below; a detector,
# or a network trained with CTC: tests/detecting, tests/transcribing.
OTHERS = {"reestimate", "cell", "fit_on_workers", "detect", "transcribe"}


def not_run(q: keras.Model) -> keras.Model:
    """As `quantize` leaves a model."""
    q.steps_left = ("calibrate",)
    return q


# Verbs of a quantized model likewise.
OF_QUANTIZED: dict[str, Callable[[keras.Model, Path], Any]] = {
    "adaround": lambda q, _: kquant.adaround(q, X, iterations=1, **QUIET),
    "analyze": lambda q, _: kquant.analyze(q, X, sensitivity=False, remedies=False, **QUIET),
    "bundle": lambda q, folder: kquant.bundle(q, folder / "firmware", data=X, golden=1),
    "calibrate": lambda q, _: kquant.calibrate(q, 2.0 * X, **QUIET),
    "correct_bias": lambda q, _: kquant.correct_bias(q, X, **QUIET),
    "data_free_ranges": lambda q, _: kquant.data_free_ranges(q, input_range=(-2.0, 2.0), **QUIET),
    "dry_run": lambda q, _: kquant.dry_run(q, ["equalize"], X, **QUIET),
    "encodings": lambda q, _: kquant.encodings(q),
    "equalize": lambda q, _: kquant.equalize(q, **QUIET),
    "export": lambda q, folder: kquant.export(q, folder / "m.tflite", check_runtimes=False),
    "gptq": lambda q, _: kquant.gptq(q, X, **QUIET),
    "in_float32": lambda q, _: kquant.in_float32(q),
    "observe": lambda q, _: kquant.observe(q, X, **QUIET),
    "run_steps": lambda q, _: kquant.run_steps(not_run(q), 2.0 * X, **QUIET),
    "sequential_mse": lambda q, _: kquant.sequential_mse(q, X, **QUIET),
    "silence": lambda q, _: kquant.silence(q, X, codes=1e6, **QUIET),
    "set_encodings": lambda q, _: kquant.set_encodings(q, WIDE),
    "shorten_codes": lambda q, _: kquant.shorten_codes(q, X, **QUIET),
    "verify": lambda q, _: kquant.verify(q, FILES[q.name], X[:2], "tflm"),
    "why": lambda q, _: kquant.why(q, X, **QUIET),
}
FUNCTIONS = {name: getattr(kquant, name) for name in kquant.__all__ if inspect.isfunction(getattr(kquant, name))}
FIRST = {name: next(iter(inspect.signature(f).parameters), "") for name, f in FUNCTIONS.items()}
TAKE_MODELS = [name for name, first in FIRST.items() if first in ("model", "qmodel", "step", "student")]
SENTENCES = {
    "Copies": "Copies: `{}` stays as it was.",
    "Reads": "Reads: `{}` stays as it was.",
    "In place": "In place: changes `{}` and returns it.",
}


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


@pytest.mark.parametrize("name", ["cluster", "fold", "prune", "prune_channels", "quantize", "strip"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_layers_of_a_copy_are_called_in_it_alone(name: str, model: keras.Model, tmp_path: Path) -> None:
    """So that `layer.output` is a tensor of the model, which a second model may have among its outputs."""
    copy = VERBS[name](model, tmp_path)
    for layer in copy.layers:
        assert len(calls_of(layer)[0]) == 1, layer.name
        keras.Model(copy.inputs, [layer.output, *copy.outputs])


def test_every_verb_of_a_float_model_is_tried() -> None:
    takes = {name for name, first in FIRST.items() if first == "model"}
    assert takes - OTHERS <= set(VERBS)
    assert {name for name, first in FIRST.items() if first == "qmodel"} == set(OF_QUANTIZED)


def kind(name: str) -> str:
    """What the docstring says of the given model."""
    if name in ("distill", "fit_on_workers"):  # which return something else than the model
        return "In place"
    lines = (inspect.getdoc(FUNCTIONS[name]) or "").split("\n")
    (said,) = [kind for kind, sentence in SENTENCES.items() if sentence.format(FIRST[name]) in lines]
    return said


def test_every_verb_says_whether_it_copies() -> None:
    kinds = {name: kind(name) for name in TAKE_MODELS}
    page = (Path(__file__).parents[1] / "docs/architecture.md").read_text()
    for said in SENTENCES:
        (row,) = re.findall(rf"^\| .*\({said}\) \| (.*) \|$", page, re.MULTILINE)
        assert sorted(re.findall(r"`(\w+)`", row)) == sorted(name for name, k in kinds.items() if k == said)
    assert {kind(name) for name in VERBS} == {"Copies", "Reads", "In place"}, (
        "distill alone trains a model, not this one"
    )


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> keras.Model:
    """Quantized and calibrated."""
    keras.utils.set_random_seed(0)
    stack = [layers.Dense(8, activation="relu"), layers.Dense(3)]
    float_model = keras.Sequential([keras.Input((6,)), *stack], name="ready")
    w4 = {"name": "w4", "weights": {"bits": 4}}
    q = kquant.calibrate(kquant.quantize(float_model, w4, target="tflm"), 2.0 * X, **QUIET)
    WIDE.update(kquant.encodings(q))
    q = kquant.calibrate(q, X, **QUIET)
    FILES[q.name] = tmp_path_factory.mktemp("ready") / "m.tflite"
    kquant.export(q, FILES[q.name], check_runtimes=False)
    return q


def variables(q: keras.Model) -> dict[str, Any]:
    """By path: also corrections, which layers get when one first asks for them."""
    return {v.path: v.numpy().tolist() for v in q.variables}


@pytest.mark.parametrize("name", OF_QUANTIZED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_verb_of_a_quantized_model_does_what_it_says(name: str, ready: keras.Model, tmp_path: Path) -> None:
    q = keras.models.clone_model(ready)
    q.set_weights(ready.get_weights())
    before, config = variables(q), json.dumps(q.get_config(), sort_keys=True)
    result = OF_QUANTIZED[name](q, tmp_path)
    if kind(name) == "In place":
        assert result is q and variables(q) != before
    else:
        assert result is not q or name == "in_float32", "nothing in it computes in 16 bits"
        assert variables(q) == before and json.dumps(q.get_config(), sort_keys=True) == config


def test_statistics_are_set_in_place() -> None:
    model = keras.Sequential([keras.Input((6,)), layers.BatchNormalization()])
    before = variables(model)
    assert kquant.reestimate(model, X + 1.0, **QUIET) is model
    assert variables(model) != before


def test_one_step_is_a_copy() -> None:
    model = keras.Sequential([keras.Input((5, 3)), layers.SimpleRNN(4, name="memory")])
    before, config = variables(model), model.get_config()
    step = kquant.cell(model)
    held = variables(step)
    kquant.cell_samples(step, np.ones((2, 5, 3), np.float32))
    step.layers[-1].trainable = False
    assert (variables(model), model.get_config(), variables(step)) == (before, config, held)
    assert not {id(v) for v in step.variables} & {id(v) for v in model.variables}


def test_changes_that_are_tried_leave_the_model_as_it_was() -> None:
    stack = [layers.Conv2D(4, 3, name="a"), layers.LeakyReLU(0.2), layers.Conv2D(4, 3, activation="gelu", name="b")]
    x = inputs = keras.Input((8, 8, 1))
    for layer in (*stack, layers.Conv2D(2, 1, name="c")):
        x = layer(x)
    model = keras.Model(inputs, x)
    before, config = variables(model), json.dumps(model.get_config(), sort_keys=True)
    placed = kquant.check(model, "edgetpu").placement
    assert placed is not None and [cut.change is not None for cut in placed.cut_by] == [True, True]
    assert variables(model) == before and json.dumps(model.get_config(), sort_keys=True) == config


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
