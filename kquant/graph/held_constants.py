"""`predict` and `evaluate` with graphs that hold what variables hold, for as long as they hold it."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.core.beforehand import constants, in_constants

CHANGES = 2  # of variables between two calls of a verb, after which its graph reads them
MOST_NUMBERS = 2**22  # of all variables: their digest takes some 30 ms


class HeldConstants(keras.Model):
    """A model whose `predict` and `evaluate` compute what depends on variables alone once, not at every batch.

    Who calls them while training would have them traced each time: after `CHANGES` of them the graph reads the
    variables (`core/beforehand.py`). It reads them, too, where callbacks may change them between the look at them and
    the first batch, where their replicas are other machines', and where to look at all of them takes as long as a
    batch.
    """

    # Of "predict_function" and "test_function": Keras' function while it holds constants, and a digest of the variables
    # that it was traced with; and how often they had changed from one call to the next.
    held: dict[str, tuple[Any, bytes]]
    changes: dict[str, int]

    def predict(
        self, x: Any, batch_size: Any = None, verbose: Any = "auto", steps: Any = None, callbacks: Any = None
    ) -> Any:
        """Keras', with a graph that holds what variables hold."""
        with self._holding("predict_function", callbacks is None):
            return super().predict(x, batch_size, verbose, steps, callbacks)

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: Any = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        steps: Any = None,
        callbacks: Any = None,
        return_dict: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Keras', with a graph that holds what variables hold; between the epochs of `fit` it reads them."""
        with self._holding("test_function", callbacks is None and not kwargs):
            return super().evaluate(x, y, batch_size, verbose, sample_weight, steps, callbacks, return_dict, **kwargs)

    def make_predict_function(self, force: bool = False) -> Any:
        """Keras', which whoever asks for it may keep: not the one that holds variables, but for `predict` itself."""
        return super().make_predict_function(force=force or self._is_held("predict_function"))

    def make_train_function(self, force: bool = False) -> Any:
        """Keras', with the optimizer's variables made beforehand: a trace that makes some is traced a second time."""
        if self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force=force)

    def make_test_function(self, force: bool = False) -> Any:
        """Likewise, for `evaluate`."""
        return super().make_test_function(force=force or self._is_held("test_function"))

    def _is_held(self, name: str) -> bool:
        """True where the function holds constants and whoever asks for it is not the verb itself."""
        function = getattr(self, name)
        return function is not None and function is self._state(name)[0] and not in_constants()

    def _state(self, name: str) -> tuple[Any, bytes, int]:
        return *getattr(self, "held", {}).get(name, (None, b"")), getattr(self, "changes", {}).get(name, 0)

    @contextlib.contextmanager
    def _holding(self, name: str, may: bool) -> Iterator[None]:
        """A block in which Keras makes, or uses, a function that holds what variables hold now, where that may be."""
        held, digest, changes = self._state(name)
        function = getattr(self, name)
        if not may or not self._may_hold(changes >= CHANGES and function is not None):
            yield
            return
        now = _digest(self.variables)
        if function is None:  # `compile` or a correction let go of it: a trace that is needed anyway
            changes = 0
        elif function is not held or now != digest:
            changes += 1
            setattr(self, name, None)
        # Not tracked: it is no part of the model.
        object.__setattr__(self, "changes", {**getattr(self, "changes", {}), name: changes})
        if changes >= CHANGES:
            yield
            return
        try:
            with constants():
                yield
        finally:  # interrupted, too: what was traced by then holds variables
            object.__setattr__(self, "held", {**getattr(self, "held", {}), name: (getattr(self, name), now)})

    def _may_hold(self, gave_up: bool) -> bool:
        if self.run_eagerly or gave_up:
            return False
        alone = not tf.distribute.has_strategy() and self.distribute_strategy is tf.distribute.get_strategy()
        return alone and sum(math.prod(v.shape) for v in self.variables) <= MOST_NUMBERS


def _digest(variables: Sequence[keras.Variable]) -> bytes:
    """Of all values: what differs in a bit has another one."""
    digest = hashlib.blake2b(digest_size=16)
    for variable in variables:
        digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return digest.digest()
