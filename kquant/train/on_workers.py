"""`fit` on several workers: Keras 3's own stops before its first step there (keras issue 20585)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from kquant.graph.given_model import check_keras


def fit_on_workers(
    model: keras.Model,
    data: tf.data.Dataset,
    *,
    epochs: int = 1,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    verbose: bool = True,
) -> keras.callbacks.History:
    """Train a compiled model under its `tf.distribute` strategy, several workers among them.

    In place: changes `model`.

    What `fit` does, and no more: the model's own `train_step` on every replica, metrics, callbacks by epoch and by
    batch. Every worker calls it with the same data; each computes its part of every batch.

    Args:
        model: made, compiled and with its optimizer built inside `strategy.scope()`.
        data: global batches of (inputs, targets) or (inputs, targets, weights), finite.
        epochs: how often all of them.
        callbacks: of Keras' kind.
        verbose: show a progress bar.

    Returns:
        The history: each metric of each epoch, as `fit` returns it.

    Raises:
        ValueError: not compiled, not a `tf.data.Dataset`, one without an end, or fewer than one epoch.

    Example:
        >>> strategy = tf.distribute.MirroredStrategy(["CPU:0"])  # or MultiWorkerMirroredStrategy, with TF_CONFIG
        >>> with strategy.scope():
        ...     model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        ...     model.compile("sgd", "mse")
        >>> data = tf.data.Dataset.from_tensor_slices((np.ones((8, 4)), np.ones((8, 2)))).batch(4)
        >>> sorted(kquant.fit_on_workers(model, data, epochs=3, verbose=False).history)
        ['loss']
    """
    _check(model, data, epochs)
    strategy = model.distribute_strategy
    with strategy.scope():
        # variables that a step would make are made by each worker at its own time, and waited for by the others
        model.optimizer.build(model.trainable_variables)

    @tf.function
    def step(batch: Any) -> None:
        strategy.run(model.train_step, args=(batch,))

    batches = strategy.experimental_distribute_dataset(_in_parts(data))
    history = keras.callbacks.History()
    told = keras.callbacks.CallbackList([*callbacks, history], model=model)
    model.stop_training = False
    told.on_train_begin()
    count = int(data.cardinality())
    with tqdm(total=epochs * count if count >= 0 else None, desc="fit", disable=not verbose, unit="step") as bar:
        for epoch in range(epochs):
            model.reset_metrics()
            told.on_epoch_begin(epoch)
            for number, batch in enumerate(batches):
                told.on_train_batch_begin(number)
                step(batch)
                told.on_train_batch_end(number)
                bar.update()
            told.on_epoch_end(epoch, {name: float(np.mean(v)) for name, v in model.get_metrics_result().items()})
            if model.stop_training:
                break
    told.on_train_end()
    return history


def _check(model: keras.Model, data: Any, epochs: int) -> None:
    check_keras(model, "fit_on_workers")
    if not model.compiled:
        raise ValueError(f"{model.name}: fit_on_workers: compile the model first, inside strategy.scope().")
    if not isinstance(data, tf.data.Dataset):
        raise ValueError(
            f"{model.name}: fit_on_workers: data must be a tf.data.Dataset of batches, which workers can share: "
            f"tf.data.Dataset.from_tensor_slices((x, y)).batch(n). Received: {type(data).__name__}."
        )
    if data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{model.name}: fit_on_workers: these data have no end; give data.take(steps).")
    if epochs < 1:
        raise ValueError(f"{model.name}: fit_on_workers: epochs must be 1 or more. Received: {epochs!r}.")


def _in_parts(data: tf.data.Dataset) -> tf.data.Dataset:
    """Workers take parts of each batch, where nothing else was asked for: files would give each its own batches."""
    policies = tf.data.experimental.AutoShardPolicy
    if data.options().experimental_distribute.auto_shard_policy != policies.AUTO:
        return data
    options = tf.data.Options()  # merged with those that the data have
    options.experimental_distribute.auto_shard_policy = policies.DATA
    return data.with_options(options)
