"""What people get wrong on the first day: messages have the place, what was expected, what came, and a way that works.

Kinds of mistakes, found by somebody who had not used kquant before; the rest are beside what they are about.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant
from kquant import targets
from kquant.analysis.metrics import top1
from kquant.core.checks import shape_hint
from kquant.correct.steps import check_steps
from kquant.recipe.recipe import Step

QUIET: dict[str, Any] = {"verbose": False}
SAMPLES = np.random.default_rng(0).random((32, 6, 6, 3), np.float32)
LABELS = np.arange(32) % 4


@pytest.fixture(scope="module")
def qmodel() -> keras.Model:
    keras.utils.set_random_seed(0)
    stack = [keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Flatten(), keras.layers.Dense(4, name="head")]
    model = keras.Sequential([keras.Input((6, 6, 3), name="image"), *stack], name="net")
    return kquant.calibrate(kquant.quantize(model), SAMPLES, **QUIET)


# what is given -> what the model takes, and how the message puts it right
SHAPES = {
    "one sample": ((6, 6, 3), (6, 6, 3), lambda x: x[None]),
    "no channel": ((4, 6, 6), (6, 6, 1), lambda x: x[..., None]),
    "a channel too many": ((4, 6, 6, 1), (6, 6), lambda x: x[..., 0]),
    "channels first": ((4, 3, 6, 5), (6, 5, 3), lambda x: np.moveaxis(x, 1, -1)),
    "grey": ((4, 6, 6, 1), (6, 6, 3), lambda x: np.repeat(x, 3, axis=-1)),
    "not flat": ((4, 6, 6), (36,), lambda x: x.reshape(len(x), -1)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_remedy_for_a_shape_makes_it_fit(name: str) -> None:
    given, expected, remedy = SHAPES[name]
    said = shape_hint(given, expected)
    code = said.split(": ", 1)[1].split(", or")[0].rstrip(".")
    assert eval(code, {"np": np, "x": np.zeros(given)}).shape[1:] == expected == remedy(np.zeros(given)).shape[1:]


def test_a_shape_that_nothing_explains_gets_no_remedy() -> None:
    assert shape_hint((4, 5, 6), (7, 8)) == shape_hint((4,), (7,)) == ""


def test_verbs_that_take_samples_give_the_remedy(qmodel: keras.Model, tmp_path: Path) -> None:
    path = kquant.export(qmodel, tmp_path / "m.tflite", check_runtimes=False).path
    turned = np.moveaxis(SAMPLES, -1, 1)
    for call in (lambda: kquant.observe(qmodel, turned, **QUIET), lambda: kquant.predict(path, turned)):
        with pytest.raises(ValueError, match=r"Received: samples of shape \(3, 6, 6\).*np.moveaxis\(x, 1, -1\)"):
            call()


def _short(outputs: np.ndarray) -> float:
    return float(np.mean(outputs.argmax(-1) == np.arange(10)))


METRICS = {
    "a name": ("accuracy", "metric is a function.*top1.*Received: str"),
    "labels": (LABELS, "metric is a function.*Received: ndarray"),
    "labels of other samples": (_short, r"metric '_short' failed on outputs of shape \(32, 4\): ValueError"),
    "no number": (lambda y: y, r"metric '<lambda>': expected a number for outputs of shape \(32, 4\)"),
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("verb", [kquant.analyze, kquant.why])
def test_metrics(name: str, verb: Any, qmodel: keras.Model) -> None:
    metric, said = METRICS[name]
    with pytest.raises(ValueError, match=said):
        verb(qmodel, SAMPLES, metric, **QUIET)


def test_labels_in_any_usual_form_are_the_same_labels() -> None:
    """`keras.datasets.cifar10` gives a column; compared with a row it would make a table, and a mean of that."""
    outputs = np.eye(4)[np.where(LABELS == 3, 0, LABELS)]
    forms = (LABELS, LABELS[:, None], np.eye(4)[LABELS], list(LABELS))
    assert [top1(form)(outputs) for form in forms] == [0.75] * 4


def test_labels_that_are_no_classes_are_refused_not_counted_as_wrong(qmodel: keras.Model) -> None:
    with pytest.raises(ValueError, match=r"numbers of the classes, from 0. Received: dtype <U\d.*return_inverse"):
        top1(np.array(["cat", "dog"]))
    with pytest.raises(ValueError, match=r"4 classes, 0 to 3. Received: labels from 1 to 4. Count them from 0"):
        kquant.analyze(qmodel, SAMPLES, top1(LABELS + 1), **QUIET)
    assert top1(np.array([0, 1]))(np.array([[0.2], [0.9]])) == 1.0


def test_a_position_that_a_table_does_not_have_is_told_with_its_batch() -> None:
    inputs = keras.Input((5,), dtype="int32", name="ids")
    table = keras.layers.Embedding(10, 4, name="table")
    model = keras.Model(inputs, keras.layers.Flatten()(table(inputs)))
    ids = np.arange(500).reshape(100, 5) % 10
    ids[-1, 0] = 99
    for size, batch in ((32, 3), (4, 24)):  # the last one is run by a traced function
        with pytest.raises(ValueError, match=rf"data, batch {batch}: position 99 in a table of 10 rows; .* 0 to 9"):
            kquant.observe(kquant.quantize(model), ids, batch_size=size, **QUIET)


def test_a_folder_in_the_place_of_a_file_is_told_though_it_is_not_there(qmodel: keras.Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder; give the name of the file, like .*\.tflite"):
        kquant.export(qmodel, f"{tmp_path}/build/", check_runtimes=False)
    assert list(tmp_path.iterdir()) == []


def test_a_device_leads_to_its_target() -> None:
    for name in ("arduino", "ESP32", "android", "cortex-m4"):
        with pytest.raises(ValueError, match=f"Unknown target '{name}'.* For {name.lower()}, take '") as error:
            targets.load(name)
        assert str(error.value).split("take '")[1].split("'")[0] in targets.names()
    with pytest.raises(ValueError, match="Did you mean 'tflm'"):
        targets.load("TFLM")
    own = [name for target in targets.names() for name in targets.load(target).known_as]
    assert len(own) == len(set(own)) and not set(own) & set(targets.names())


def test_arrays_in_the_place_of_a_tflite_file_are_no_keras_model(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=SAMPLES)
    with pytest.raises(ValueError, match=r"x.npz is not a TFLite file") as error:
        kquant.inspect(tmp_path / "x.npz")
    assert "Keras" not in str(error.value)


def test_a_keras_file_in_the_place_of_a_tflite_file(qmodel: keras.Model, tmp_path: Path) -> None:
    qmodel.save(tmp_path / "q.keras")
    with pytest.raises(ValueError, match=r"q.keras is not a TFLite file.*a Keras model; kquant.export"):
        kquant.predict(tmp_path / "q.keras", SAMPLES)


def test_what_keras_said_ends_with_its_sentence() -> None:
    class Sums(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return tf.math.cumsum(x)

        def compute_output_spec(self, x: Any) -> Any:
            return keras.KerasTensor(x.shape, x.dtype)

    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match=r"sums .*keras.ops.cumsum.* as input to a TensorFlow function\.$"):
        kquant.quantize(keras.Model(inputs, Sums(name="sums")(inputs)))


NET = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(2)], name="net")
ROWS = SAMPLES.reshape(32, -1)[:, :4]
JUDGING: dict[str, Any] = {
    "autotune": lambda score: kquant.autotune(NET, ROWS, score, **QUIET),
    "mixed_precision": lambda score: kquant.mixed_precision(NET, ROWS, flash_bytes=10**5, evaluate=score, **QUIET),
    "scan_sparsity": lambda score: kquant.scan_sparsity(NET, evaluate=score, **QUIET),
    "prune_channels": lambda score: kquant.prune_channels(NET, macs=0.5, evaluate=score, **QUIET),
    "factorize": lambda score: kquant.factorize(NET, macs=0.9, evaluate=score, **QUIET),
    "compress": lambda score: kquant.compress(NET, ROWS, path="m.tflite", flash_bytes=10**5, evaluate=score, **QUIET),
    "on_ray.try_recipes": lambda score: kquant.on_ray.try_recipes(NET, ROWS, score, ["int8"], **QUIET),
}


@pytest.mark.parametrize("verb", JUDGING)
def test_a_score_is_a_function(verb: str) -> None:
    with pytest.raises(ValueError, match=rf"{verb}: evaluate is a function of a Keras model .*Received: 'accuracy'\."):
        JUDGING[verb]("accuracy")


@pytest.mark.parametrize("verb", ["autotune", "scan_sparsity"])
def test_outputs_in_the_place_of_a_score_are_told_by_their_shape(verb: str) -> None:
    with pytest.raises(ValueError, match=r"an array of float32 \(32, 2\)"):
        JUDGING[verb](lambda model: model.predict(ROWS, verbose=0))


def shortened(bytes_: Any) -> Any:
    return kquant.shorten_codes(kquant.quantize(NET, target="tflm"), ROWS, flash_bytes=bytes_, **QUIET)


BUDGETS: dict[str, Callable[[Any], Any]] = {
    "estimate: flash_bytes": lambda n: kquant.estimate(NET, flash_bytes=n),
    "estimate: arena_bytes": lambda n: kquant.estimate(NET, arena_bytes=n),
    "mixed_precision: flash_bytes": lambda n: kquant.mixed_precision(NET, ROWS, flash_bytes=n, **QUIET),
    "compress: flash_bytes": lambda n: kquant.compress(NET, ROWS, path="m.tflite", flash_bytes=n, **QUIET),
    "shorten_codes: flash_bytes": shortened,
    "FlashBudget: flash_bytes": lambda n: kquant.callbacks.FlashBudget(n, steps=1),
    "steps: 'shorten-codes': flash_bytes": lambda n: check_steps([Step(name="shorten-codes", flash_bytes=n)]),
}


@pytest.mark.parametrize("verb", BUDGETS)
@pytest.mark.parametrize("given", ["many", "2.5", "0KB", 0, 2.5, 4200.7, True, float("nan"), float("inf"), [64]])
def test_a_budget_is_a_whole_number_of_bytes(verb: str, given: Any) -> None:
    said = f'{verb} must be a whole number of bytes, 1 or more, like "64KB". Received: {given!r}.'
    with pytest.raises(ValueError, match=re.escape(said)):
        BUDGETS[verb](given)


@pytest.mark.parametrize("given", [64e3, np.int64(64000), np.float32(64000), "62.5KB"])
def test_whole_floats_and_numbers_of_numpy_are_budgets(given: Any, tmp_path: Path) -> None:
    limit = kquant.estimate(NET, flash_bytes=given).flash_limit
    assert limit == 64000 and type(limit) is int
    assert kquant.mixed_precision(NET, ROWS, flash_bytes=given, points=2, **QUIET).ok
    made = kquant.compress(NET, ROWS, path=tmp_path / "m.tflite", flash_bytes=given, folder=tmp_path / "kept", **QUIET)
    assert made.ladder is not None and type(made.ladder.flash_bytes) is int
    assert kquant.callbacks.FlashBudget(given, steps=1).flash_bytes == 64000
    BUDGETS["steps: 'shorten-codes': flash_bytes"](given)


@pytest.mark.parametrize("verb", sorted(set(JUDGING) - {"on_ray.try_recipes", "prune_channels"}))
@pytest.mark.parametrize("given", [float("nan"), float("inf"), "0.9", None, [0.5, 0.6]])
def test_a_score_is_a_finite_number(verb: str, given: Any) -> None:
    said = f"{verb}: evaluate must return a finite number, higher is better. For the "
    with pytest.raises(ValueError, match=f"{re.escape(said)}.*it returned {re.escape(repr(given))}"):
        JUDGING[verb](lambda _: given)


@pytest.mark.parametrize("name", ["net.keras", "net.h5"])
def test_a_file_does_not_replace_the_model(name: str, qmodel: keras.Model, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"export: .*{name} is a name of a Keras model.*give a name like .*net.tflite"
    ):
        kquant.export(qmodel, tmp_path / name)
    with pytest.raises(ValueError, match=rf"compress: .*{name} is a name of a Keras model"):
        kquant.compress(NET, ROWS, path=tmp_path / name)


OF_FLOATS = {
    **{name: getattr(kquant, name) for name in ("fold", "cell", "estimate", "check", "split_preprocessing")},
    "autotune": lambda q: kquant.autotune(q, SAMPLES, lambda _: 1.0, **QUIET),
    "compress": lambda q: kquant.compress(q, SAMPLES, path="m.tflite", **QUIET),
}


@pytest.mark.parametrize("verb", OF_FLOATS)
def test_a_quantized_model_in_the_place_of_a_float_one(verb: str, qmodel: keras.Model) -> None:
    with pytest.raises(ValueError, match="net: this model is quantized already; pass the float model"):
        OF_FLOATS[verb](qmodel)


def test_a_model_in_the_place_of_its_file(qmodel: keras.Model) -> None:
    with pytest.raises(ValueError, match=r"or its bytes.*That is a Keras model, which runs itself: model.predict\(x\)"):
        kquant.predict(qmodel, SAMPLES)


def test_a_drop_and_a_share_are_numbers() -> None:
    with pytest.raises(ValueError, match="max_drop must be 0 or more. Received: '1%'"):
        kquant.autotune(NET, ROWS, lambda _: 1.0, max_drop="1%")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"macs: expected a share in \(0, 1\], or how many. Received: 1.5"):
        kquant.factorize(NET, macs=1.5, **QUIET)
