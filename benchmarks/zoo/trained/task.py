"""What is trained and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kquant

Subject = keras.Model | Path  # what answers: a Keras model, or a file run by LiteRT's reference kernels


@dataclass(frozen=True, eq=False)
class Data:
    """What trains (and calibrates), what judges, and the truth about it in the form that the task's metric wants."""

    x: np.ndarray
    y: Any
    judged: np.ndarray
    truth: Any


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """What is judged.

    Attributes:
        name: of the rows.
        title: of the table.
        lower_is_better: an error, not a score.
        missing: why it can't be measured here, or None.
    """

    name: str
    title: str
    lower_is_better: bool = False
    missing: Callable[[], str | None] = lambda: None


@dataclass(frozen=True, eq=False, kw_only=True)
class Trained(Task):
    """A model that is trained here.

    Attributes:
        build: the float model with seeded weights.
        data: what it learns from and is judged by.
        loss: as `compile` takes it.
        judge: figures by name.
        epochs, batch, rate: of the float training.
        epochs_quantized, rate_quantized: of the training with quantization.
    """

    build: Callable[[], keras.Model]
    data: Callable[[], Data]
    loss: Any
    judge: Callable[[Subject, Data], dict[str, float]]
    epochs: int
    batch: int = 32
    rate: float = 2e-3
    epochs_quantized: int = 2
    rate_quantized: float = 1e-4


def answers(subject: Subject, x: np.ndarray) -> np.ndarray:
    """Of a model with one output."""
    if isinstance(subject, keras.Model):
        return subject.predict(x, verbose=0)
    return kquant.predict(subject, x, runtime="litert-reference")


def trained(task: Trained, data: Data, cache: Path) -> keras.Model:
    """The float model, trained once for each cache folder."""
    path = cache / f"{task.name}.keras"
    if path.is_file():
        return keras.saving.load_model(path, compile=False)
    keras.utils.set_random_seed(0)
    model = task.build()
    steps = task.epochs * -(-len(data.x) // task.batch)
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=task.rate, warmup_steps=steps // 10)
    model.compile(keras.optimizers.Adam(rate, clipnorm=1.0), task.loss)
    model.fit(data.x, data.y, batch_size=task.batch, epochs=task.epochs, verbose=2)
    model.save(path)
    return model
