"""Distillation: its losses against float64, which variables move, every kind of model, saving, resuming, refusals."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from contract import packed
from enrolled import samples
from keras import layers
from model_cases import made

import kquant
from kquant.layers.nodes import Compressed, FakeQuant
from kquant.train.soft_targets import SoftTargets

pytestmark = pytest.mark.filterwarnings(
    "ignore:The structure of `inputs` doesn't match",
)

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(48, 6, 6, 2)))
ROWS = X[:, 0, :, 0]
LABELS = RNG.integers(0, 3, 48)


def net(width: int, activation: str | None = "softmax", seed: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    x = keras.Input((6, 6, 2), name="image")
    y = layers.Conv2D(width, 3, activation="relu", name="first")(x)
    y = layers.BatchNormalization(name="norm")(layers.Conv2D(width, 3, use_bias=False, name="second")(y))
    y = layers.GlobalAveragePooling2D(name="pool")(layers.ReLU(name="relu")(y))
    return keras.Model(x, layers.Dense(3, activation=activation, name="head")(y))


def flat(width: int, seed: int = 1) -> keras.Model:
    """A smaller one, where only training matters."""
    keras.utils.set_random_seed(seed)
    inner = layers.Dense(width, activation="relu", name="hidden")
    return keras.Sequential([keras.Input((6,), name="row"), inner, layers.Dense(3, activation="softmax", name="head")])


def flat_quantized(width: int = 4) -> keras.Model:
    return kquant.calibrate(kquant.quantize(flat(width, seed=2)), ROWS, verbose=False)


def quantized(width: int = 4, activation: str | None = "softmax") -> keras.Model:
    return kquant.calibrate(kquant.quantize(net(width, activation, seed=2)), X, verbose=False)


def fitted(
    trainer: keras.Model, epochs: int = 1, *, eagerly: bool = True, batch_size: int = 16, **options: Any
) -> dict[str, list[float]]:
    """Steps are few and small, and tracing takes longer; other tests have a dict, float16 and XLA in graphs."""
    if not trainer.compiled:
        settings = {"metrics": ["accuracy"], "run_eagerly": eagerly}
        trainer.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", **settings)
    x = X if trainer.student.inputs[0].name == "image" else ROWS
    return trainer.fit(x, LABELS, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0, **options).history


def values(model: keras.Model) -> list[np.ndarray]:
    return [v.numpy().copy() for v in model.variables]


# Losses


def softmax(z: np.ndarray, temperature: float) -> np.ndarray:
    e = np.exp((z - z.max(-1, keepdims=True)) / temperature)
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("student", ["logits", "probabilities"])
@pytest.mark.parametrize("teacher", ["logits", "probabilities"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_against_float64(student: str, teacher: str, temperature: float) -> None:
    zt, zs = RNG.normal(size=(2, 5, 7)) * 3
    p, q = softmax(zt, temperature), softmax(zs, temperature)
    expected = np.mean(temperature**2 * np.sum(p * np.log(p / q), axis=-1))
    given = [np.float32(z if kind == "logits" else softmax(z, 1.0)) for z, kind in ((zt, teacher), (zs, student))]
    assert float(SoftTargets(student, teacher, temperature)(*given)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("form", ["binary-logits", "binary-probabilities"])
def test_binary_soft_targets_against_float64(form: str) -> None:
    zt, zs = RNG.normal(size=(2, 5, 7)) * 2
    p, q = 1 / (1 + np.exp(-zt / 2.0)), 1 / (1 + np.exp(-zs / 2.0))
    expected = np.mean(4.0 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))))
    given = [np.float32(z if form == "binary-logits" else 1 / (1 + np.exp(-z))) for z in (zt, zs)]
    assert float(SoftTargets(form, form, 2.0)(*given)) == pytest.approx(expected, rel=1e-4)


def test_loss_is_the_weighted_sum_of_its_parts() -> None:
    """Against the formula, on outputs and features computed outside the trainer."""
    student, teacher = net(4, seed=2), net(6)
    trainer = kquant.distill(student, teacher, temperature=3.0, alpha=0.3, features=["relu"], feature_weight=2.0)
    trainer.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    (adapter,) = trainer.adapters
    inside = [keras.Model(m.inputs, m.get_layer("relu").output)(X).numpy() for m in (student, teacher)]
    features = np.mean((inside[0] @ adapter.kernel.numpy() + adapter.bias.numpy() - inside[1]) ** 2, dtype=np.float64)
    p, q = (np.float64(m(X).numpy()) for m in (teacher, student))
    hard = -np.mean(np.log(q[np.arange(48), LABELS]))
    p, q = (softmax(np.log(a), 3.0) for a in (p, q))
    soft = np.mean(9.0 * np.sum(p * np.log(p / q), axis=-1))
    found = trainer.evaluate(X, LABELS, batch_size=48, verbose=0, return_dict=True)
    assert found["hard_loss"] == pytest.approx(hard, rel=1e-4)
    assert found["soft_loss"] == pytest.approx(soft, rel=1e-4)
    assert found["feature_loss"] == pytest.approx(features, rel=1e-4)
    assert found["loss"] == pytest.approx(0.7 * hard + 0.3 * soft + 2.0 * features, rel=1e-4)


def test_sample_weights_count_in_both_losses() -> None:
    student, teacher = flat(4, seed=2), flat(6)
    trainer = kquant.distill(student, teacher)
    trainer.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    only = np.zeros(48)
    only[7] = 48.0
    whole = trainer.evaluate(ROWS, LABELS, sample_weight=only, batch_size=48, verbose=0, return_dict=True)
    one = trainer.evaluate(ROWS[7:8], LABELS[7:8], verbose=0, return_dict=True)
    assert whole["soft_loss"] == pytest.approx(one["soft_loss"], rel=1e-2)  # small, of large numbers
    assert whole["hard_loss"] == pytest.approx(one["hard_loss"], rel=1e-4)


def test_regularizers_of_the_student_count_and_those_of_the_teacher_do_not() -> None:
    def regularized(factor: float) -> keras.Model:
        dense = layers.Dense(3, activation="softmax", kernel_regularizer=keras.regularizers.L2(factor))
        return keras.Sequential([keras.Input((4,)), dense])

    student, teacher = regularized(0.5), regularized(100.0)
    trainer = kquant.distill(student, teacher)
    trainer.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    found = trainer.evaluate(np.ones((4, 4)), np.zeros(4), verbose=0, return_dict=True)
    parts = 0.5 * (found["hard_loss"] + found["soft_loss"])
    assert found["loss"] - parts == pytest.approx(0.5 * float(np.sum(student.layers[0].kernel.numpy() ** 2)), rel=1e-4)


# What moves


@pytest.mark.parametrize(("jit", "features"), [(False, ["first", "relu"]), (True, ["hidden"])])
def test_quantized_student_trains_and_the_teacher_stays(jit: bool, features: list[str]) -> None:
    x, student, teacher = (ROWS, flat_quantized(), flat(6)) if jit else (X, quantized(), net(6))
    before, fixed = values(student), values(teacher)
    trainable = [v.trainable for v in teacher.variables]
    trainer = kquant.distill(student, teacher, features=features, alpha=0.7)
    how = {"jit_compile": jit, "run_eagerly": not jit}
    trainer.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", **how)
    losses = fitted(trainer, epochs=6, batch_size=16 if jit else 48)
    assert losses["loss"][-1] < losses["loss"][0] and losses["feature_loss"][-1] < losses["feature_loss"][0]
    assert any(not np.array_equal(a, b) for a, b in zip(before, values(student), strict=True))
    for a, b in zip(fixed, values(teacher), strict=True):
        np.testing.assert_array_equal(a, b)
    assert trainable == [v.trainable for v in teacher.variables]
    np.testing.assert_array_equal(trainer(x).numpy(), student(x).numpy())


def test_a_student_comes_to_agree_with_its_teacher() -> None:
    """Without labels: the outputs of the teacher alone."""
    student, teacher = flat_quantized(8), flat(6)
    trainer = kquant.distill(student, teacher, alpha=1.0, outputs="probabilities")
    trainer.compile(keras.optimizers.Adam(0.02))
    before = np.abs(student(ROWS).numpy() - teacher(ROWS).numpy()).mean()
    history = trainer.fit(ROWS, epochs=15, verbose=0).history
    assert set(history) == {"loss", "soft_loss"}
    assert np.abs(student(ROWS).numpy() - teacher(ROWS).numpy()).mean() < before / 2


def test_features_meet_at_the_quantized_place() -> None:
    trainer = kquant.distill(quantized(), net(4), features=["first", "relu", "pool"])
    assert [(type(a), a.name, b.name) for a, b in trainer.pairs] == [
        (FakeQuant, "first_relu_quant", "first"),
        (FakeQuant, "relu_quant", "relu"),
        (FakeQuant, "pool_quant", "pool"),
    ]
    pair = kquant.distill(quantized(), net(4), features={"second": "norm"}).pairs[0]
    assert isinstance(pair[0], Compressed) and pair[1].name == "norm"


@pytest.mark.parametrize("form", [None, "softmax"])
def test_teacher_and_student_may_differ_in_their_last_activation(form: str | None) -> None:
    student = quantized(activation=form)
    student_of_other = keras.models.clone_model(net(4, None if form else "softmax", seed=3))
    trainer = kquant.distill(student, student_of_other)
    trainer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=form is None), run_eagerly=True)
    z, y = (m(X, training=False).numpy() for m in (student_of_other, student))
    p, q = (softmax(a if is_logits else np.log(a), 4.0) for a, is_logits in ((z, bool(form)), (y, form is None)))
    found = trainer.evaluate(X, LABELS, batch_size=48, verbose=0, return_dict=True)["soft_loss"]
    assert found == pytest.approx(np.mean(16.0 * np.sum(p * np.log(p / q), axis=-1)), rel=1e-3)


# Every kind of model

STRUCTURES = (
    ("sequential_in_functional", True),
    ("dict_of_inputs_and_outputs", True),
    ("list_of_outputs", False),
    ("subclassed", False),
    ("subclassed_dict", False),
)


@pytest.mark.parametrize(("name", "compress"), STRUCTURES)
def test_every_kind_of_model(name: str, compress: bool) -> None:
    """Float students keep their kind; quantized ones are Functional. Outputs are numbers here."""
    student, teacher = made(name), made(name)
    for variable in student.trainable_variables:
        variable.assign(variable * 0.8)
    q = kquant.quantize(student)
    x = packed(q, samples(q, 32))
    y = keras.tree.map_structure(np.asarray, teacher(x, training=False))
    trainer = kquant.distill(q if compress else student, teacher)
    loss = keras.tree.map_structure(lambda t: "mse", y)
    trainer.compile(keras.optimizers.Adam(0.003), loss, run_eagerly=name != "dict_of_inputs_and_outputs")
    losses = trainer.fit(x, y, epochs=4, batch_size=32, verbose=0).history["loss"]
    assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]


def test_outputs_of_different_kinds() -> None:
    x = keras.Input((5,))

    def two(width: int) -> keras.Model:
        y = layers.Dense(width, activation="relu")(x)
        heads = {
            "label": layers.Dense(3, activation="softmax", name="label")(y),
            "tags": layers.Dense(4, activation="sigmoid", name="tags")(y),
            "place": layers.Dense(2, name="place")(y),
        }
        return keras.Model(x, heads)

    student, teacher = two(4), two(8)
    data = np.float32(RNG.normal(size=(16, 5)))
    y = {"label": np.zeros(16), "tags": np.ones((16, 4)), "place": np.zeros((16, 2))}
    loss = {"tags": "binary_crossentropy", "label": "sparse_categorical_crossentropy", "place": keras.losses.Huber()}
    trainer = kquant.distill(student, teacher)
    trainer.compile("adam", loss, run_eagerly=True)
    trainer.fit(data, y, verbose=0)
    assert trainer.get_config()["outputs"] is None
    given = {"label": "probabilities", "tags": "binary-probabilities", "place": "regression"}
    again = kquant.distill(student, teacher, outputs=given)
    again.compile("adam", loss, run_eagerly=True)
    found = [t.evaluate(data, y, verbose=0, return_dict=True)["soft_loss"] for t in (trainer, again)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy: str) -> None:
    teacher = flat(6)
    keras.config.set_dtype_policy(policy)
    try:
        student = kquant.quantize(flat(4))
        kquant.calibrate(student, ROWS, verbose=False)
        trainer = kquant.distill(student, teacher, features=["hidden"])
        history = fitted(trainer, epochs=4, eagerly=policy != "mixed_float16")
    finally:
        keras.config.set_dtype_policy("float32")
    assert isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    assert all(v.dtype == "float32" for v in trainer.trainable_variables)
    assert np.all(np.isfinite(history["loss"])) and history["loss"][-1] < history["loss"][0]


# Saving and resuming


def test_saved_trainer_goes_on_to_the_same_numbers(tmp_path: Path) -> None:
    trainer = kquant.distill(flat_quantized(), flat(6), features={"hidden_relu_quant": "hidden"}, alpha=0.4)
    fitted(trainer, batch_size=48)
    trainer.save(tmp_path / "t.keras")
    again = keras.saving.load_model(tmp_path / "t.keras")
    assert (again.alpha, again.temperature, dict(again.features)) == (0.4, 4.0, {"hidden_relu_quant": "hidden"})
    losses = [fitted(t, epochs=2, batch_size=48)["loss"] for t in (trainer, again)]
    assert losses[0] == losses[1]
    for a, b in zip(values(trainer.student), values(again.student), strict=True):
        np.testing.assert_array_equal(a, b)
    trainer.student.save(tmp_path / "s.keras")
    student = keras.saving.load_model(tmp_path / "s.keras")
    np.testing.assert_array_equal(student(ROWS).numpy(), trainer.student(ROWS).numpy())


class Stop(keras.callbacks.Callback):
    """Interrupts training at the start of an epoch."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            raise KeyboardInterrupt


def test_interrupted_training_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    def trainer() -> keras.Model:
        return kquant.distill(flat_quantized(), flat(6), features=["hidden"])

    whole, first, second = trainer(), trainer(), trainer()
    fitted(whole, epochs=2, batch_size=48)
    backup = [keras.callbacks.BackupAndRestore(tmp_path / "backup")]
    with pytest.raises(KeyboardInterrupt):
        fitted(first, epochs=2, batch_size=48, callbacks=[*backup, Stop()])
    history = fitted(second, epochs=2, batch_size=48, callbacks=backup)
    assert len(history["loss"]) == 1
    for a, b in zip(values(whole.student), values(second.student), strict=True):
        np.testing.assert_array_equal(a, b)


def test_custom_loop_and_watching_leave_no_trace() -> None:
    student, teacher = flat_quantized(), flat(6)
    trainer = kquant.distill(student, teacher, features=["hidden"])
    trainer.compile("sgd", "sparse_categorical_crossentropy")
    with tf.GradientTape() as tape:
        loss = trainer.compute_loss(ROWS, LABELS, trainer(ROWS, training=True))
    gradients = tape.gradient(loss, [v.value for v in trainer.trainable_variables])
    assert all(g is not None and np.all(np.isfinite(g)) for g in gradients)
    assert not [layer.name for m in (student, teacher) for layer in m.layers if "call" in vars(layer)]


# Refusals


@cache
def refused_pair() -> tuple[keras.Model, keras.Model]:
    return kquant.quantize(net(4)), net(6)


def check_refused(match: str, student: keras.Model | None = None, **options: Any) -> None:
    with pytest.raises(ValueError, match=match):
        kquant.distill(student or refused_pair()[0], refused_pair()[1], **options)


def test_refusals() -> None:
    check_refused("temperature must be above 0", temperature=0.0)
    check_refused("alpha must lie in 0 to 1. Received: 1.5", alpha=1.5)
    check_refused("feature_weight must be 0 or more", feature_weight=-1.0)
    check_refused("outputs must be of logits, .*'softmax'", outputs="softmax")
    check_refused("outputs says 2 kinds, the student has 1", outputs=["logits", "logits"])
    check_refused("the teacher has no layer 'relo'. Did you mean 'relu'", features=["relo"])
    check_refused("the student has no layer 'norm': it may be folded", features=["norm"])
    check_refused("the student's 'second' has a batch norm folded into it", features=["second"])
    check_refused("features must be a list of layer names", features="relu")
    check_refused("'first_relu_quant' gives .* the teacher's 'relu'", features={"first_relu_quant": "relu"})
    other = keras.Sequential([keras.Input((4,)), layers.Dense(5)])
    check_refused("the student's outputs are .*5.*they must be alike", other)
    check_refused("the student must be a built Keras model", keras.Sequential([layers.Dense(5)]))
    check_refused("share 9 variables, so the teacher would change", refused_pair()[1])


def test_strip_asks_for_the_student() -> None:
    student, teacher = (keras.Sequential([keras.Input((4,)), layers.Dense(3)]) for _ in range(2))
    with pytest.raises(ValueError, match=r"^strip: .*Distiller trains.*\.student"):
        kquant.strip(kquant.distill(student, teacher))
    with pytest.raises(ValueError, match="^strip: expected a keras.Model. Received: .*Dense"):
        kquant.strip(student.layers[0])


def test_missing_labels_and_losses_that_tell_nothing() -> None:
    trainer = kquant.distill(*refused_pair())
    trainer.compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
    with pytest.raises(ValueError, match="alpha = 0.5 counts the hard loss, but there are no labels"):
        trainer.fit(X, verbose=0)
    own = kquant.distill(*refused_pair())
    own.compile("sgd", lambda y, p: tf.reduce_mean(p), run_eagerly=True)
    with pytest.raises(ValueError, match="does not tell what the student's output is"):
        own.fit(X, LABELS, verbose=0)
