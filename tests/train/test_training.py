"""Training by Keras, whatever way it is done: `fit`, own steps and loops, accumulation, precision, interruption.

Every entry of training.py goes through all of it.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from training import BATCH, LABELS, MODELS, X, made

pytestmark = pytest.mark.filterwarnings(
    "ignore:`shuffle=True` was passed, but will be ignored",
)

every_model = pytest.mark.parametrize("name", MODELS)
EPOCHS = 2  # of four steps: ramps end and ranges freeze in the second


def loss() -> keras.losses.Loss:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(model: keras.Model, optimizer: Any = None, **options: Any) -> keras.Model:
    """With the optimizer's variables: where the first step makes them, it is traced again."""
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss(), **options)
    model.optimizer.build(model.trainable_variables)
    return model


def data() -> tf.data.Dataset:
    """Batches, shuffled alike in every epoch, so that a resumed one sees what an uninterrupted one sees."""
    tf.random.set_seed(1)
    rows = tf.data.Dataset.from_tensor_slices((X, LABELS))
    return rows.shuffle(32, seed=5, reshuffle_each_iteration=False).batch(BATCH)


def state(model: keras.Model) -> list[np.ndarray]:
    """All variables, those of the optimizer and of metrics left out."""
    return [v.numpy().copy() for v in model.variables if "seed" not in v.path and "loss" not in v.path]


def assert_same(a: keras.Model, b: keras.Model, tolerance: float = 0.0) -> None:
    for one, other, variable in zip(state(a), state(b), a.variables, strict=False):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance, err_msg=variable.path)
    assert len(state(a)) == len(state(b))


@cache
def first(name: str) -> list[np.ndarray]:
    """What an entry begins with."""
    return state(made(name))


class GoesAway(keras.callbacks.Callback):
    """Keeps what is on the disk when the second epoch begins, as a machine leaves it that goes away then."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            shutil.copytree(self.folder / "backup", self.folder / "left")


RUNS: dict[str, tuple[keras.Model, Path, list[float]]] = {}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By name: the model after `fit`, its checkpoints and backup, and its losses; each made once."""

    def run(name: str) -> tuple[keras.Model, Path, list[float]]:
        if name not in RUNS:
            folder = tmp_path_factory.mktemp(name)
            model = made(name)
            model.compile(keras.optimizers.Adam(0.01), loss())
            weights = keras.callbacks.ModelCheckpoint(folder / "at-{epoch}.weights.h5", save_weights_only=True)
            keep = [keras.callbacks.ModelCheckpoint(folder / "at-{epoch}.keras"), weights]
            keep += [keras.callbacks.BackupAndRestore(folder / "backup"), GoesAway(folder)]
            losses = model.fit(data(), epochs=EPOCHS, verbose=0, callbacks=keep).history["loss"]
            RUNS[name] = model, folder, losses
        return RUNS[name]

    return run


@every_model
def test_fit_learns(name: str, whole: Any) -> None:
    model, _, losses = whole(name)
    assert losses[-1] < losses[0] and all(np.all(np.isfinite(v)) for v in state(model))
    moved = [not np.array_equal(a, b) for a, b in zip(first(name), state(model), strict=True)]
    assert np.mean(moved) > 0.5


def own_step(model: keras.Model) -> Any:
    """What `fit` does in one step, in plain TensorFlow."""

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            total = model.compute_loss(x, y, model(x, training=True))
        variables = model.trainable_variables
        model.optimizer.apply(tape.gradient(total, [v.value for v in variables]), variables)

    return step


@pytest.mark.one_in(3)
@every_model
def test_own_loop_gives_the_weights_of_fit(name: str, whole: Any) -> None:
    model = compiled(made(name))
    step = own_step(model)
    for _ in range(EPOCHS):
        for x, y in data():
            step(x, y)
    assert_same(model, whole(name)[0], 1e-4)


class Stepper(keras.Model):
    """A model whose `train_step` is its own."""

    def __init__(self, inner: keras.Model) -> None:
        super().__init__()
        self.inner = inner

    def call(self, x: Any, training: bool = False) -> Any:
        return self.inner(x, training=training)

    def train_step(self, batch: Any) -> dict[str, Any]:
        x, y = batch
        with tf.GradientTape() as tape:
            value = self.inner.compute_loss(x, y, self.inner(x, training=True))
        weights = self.inner.trainable_variables
        self.optimizer.apply(tape.gradient(value, [v.value for v in weights]), weights)
        return {"loss": value}


@pytest.mark.one_in(3)
@every_model
def test_a_loop_that_forgets_to_say_training_still_trains(name: str) -> None:
    """Without `training=True` ranges, masks and batch norms stay, and the gradients are those of the fixed grids."""
    model = made(name)
    model.compile(keras.optimizers.SGD(0.1), loss(), run_eagerly=True)
    model.train_on_batch(X[:BATCH], LABELS[:BATCH])  # ranges that nothing calibrated start here
    found = []
    for training in (False, True):
        with tf.GradientTape() as tape:
            value = loss()(LABELS[:BATCH], model(X[:BATCH], training=training))
        found.append(tape.gradient(value, model.trainable_variables))
    for variable, here, there in zip(model.trainable_variables, *found, strict=True):
        if "kernel" in variable.path and there is not None and np.any(there):
            assert here is not None and np.any(here), f"{variable.path} gets no gradient"
            cosine = np.sum(here * there) / (np.linalg.norm(here) * np.linalg.norm(there))
            least = 0.5 if "live_norm" in name else 0.8  # live batch norms have other statistics here
            assert cosine > least, f"{variable.path}: {cosine}"


@pytest.mark.one_in(3)
@every_model
def test_own_train_step_gives_the_weights_of_fit(name: str, whole: Any) -> None:
    stepper = Stepper(compiled(made(name)))
    stepper.compile(stepper.inner.optimizer)
    stepper.fit(data(), epochs=EPOCHS, verbose=0)
    assert_same(stepper.inner, whole(name)[0], 1e-4)


@pytest.mark.one_in(3)
@every_model
def test_compiled_by_xla_gives_the_weights_of_fit(name: str, whole: Any) -> None:
    model = compiled(made(name), jit_compile=True)
    model.fit(data(), epochs=EPOCHS, verbose=0)
    assert_same(model, whole(name)[0], 1e-3)


@pytest.mark.one_in(3)
@every_model
def test_accumulated_gradients_are_those_of_the_larger_batch(name: str) -> None:
    """The weights step every second batch, by the mean of two gradients; ranges move at every batch."""
    model = compiled(made(name), keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    before = [v.numpy().copy() for v in model.trainable_variables]
    step, gradients = own_step(model), []
    twin = compiled(made(name))
    for number, (x, y) in enumerate(data().take(2)):
        with tf.GradientTape() as tape:
            value = twin.compute_loss(x, y, twin(x, training=True))
        gradients.append(tape.gradient(value, [v.value for v in twin.trainable_variables]))
        step(x, y)
        if number == 0:
            assert all(np.array_equal(a, b) for a, b in zip(before, model.trainable_variables, strict=True))
    for old, variable, *each in zip(before, model.trainable_variables, *gradients, strict=True):
        np.testing.assert_allclose(variable.numpy(), old - 0.1 * np.mean(each, axis=0), atol=1e-5)


@pytest.mark.one_in(3)
@every_model
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(name: str, policy: str) -> None:
    keras.config.set_dtype_policy(policy)  # of the whole process: set back whatever happens
    try:
        model = compiled(made(name), keras.optimizers.SGD(0.1))
        losses = model.fit(data(), epochs=EPOCHS, verbose=0).history["loss"]
    finally:
        keras.config.set_dtype_policy("float32")
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    assert all(v.dtype == "float32" for v in model.trainable_variables)
    assert all(np.all(np.isfinite(v)) for v in state(model)) and losses[-1] < losses[0]
    for a, b in zip(first(name), state(model), strict=True):
        assert a.shape == b.shape


# Interruption


@pytest.mark.one_in(3)
@every_model
def test_checkpoint_goes_on_to_the_same_bits(name: str, whole: Any) -> None:
    model, folder, _ = whole(name)
    again = keras.saving.load_model(folder / "at-1.keras")
    again.fit(data(), epochs=EPOCHS, initial_epoch=1, verbose=0)
    assert_same(again, model)


@every_model
def test_weights_of_a_checkpoint_fit_a_model_made_anew(name: str, whole: Any) -> None:
    model, folder, _ = whole(name)
    again = compiled(made(name))
    again.load_weights(folder / f"at-{EPOCHS}.weights.h5")
    assert_same(again, model)
    np.testing.assert_array_equal(again(X, training=False).numpy(), model(X, training=False).numpy())


@pytest.mark.one_in(3)
@every_model
def test_interrupted_training_resumes_to_the_same_bits(name: str, whole: Any) -> None:
    model, folder, _ = whole(name)
    resumed = made(name)
    resumed.compile(keras.optimizers.Adam(0.01), loss())
    backup = keras.callbacks.BackupAndRestore(folder / "left")
    history = resumed.fit(data(), epochs=EPOCHS, verbose=0, callbacks=[backup]).history
    assert len(history["loss"]) == 1
    assert_same(resumed, model)


def test_an_entry_is_always_the_same_model() -> None:
    for name in MODELS:
        for one, other in zip(first(name), state(made(name)), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)
