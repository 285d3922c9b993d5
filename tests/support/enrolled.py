"""Models by name, enrolled by a decorator: what the files of models for tests have in common."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from contract import randomise


class Cases(dict[str, Callable[[], keras.Model]]):
    """Name of a function -> the function that builds a model."""

    def case(self, build: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
        """Enrol a model."""
        self[build.__name__] = build
        return build

    def made(self, name: str) -> keras.Model:
        """A model of that name with random weights, always the same."""
        keras.utils.set_random_seed(3)
        return randomise(self[name](), len(name))


def samples(model: keras.Model, count: int = 64) -> list[np.ndarray]:
    """Random inputs, one array for each input of a Functional model in order."""
    rng = np.random.default_rng(5)
    return [np.float32(rng.normal(size=(count, *t.shape[1:]))) for t in model.inputs]
