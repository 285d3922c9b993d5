"""`predict` and `evaluate` with graphs that hold what variables hold, for as long as they hold it."""

from __future__ import annotations

import contextlib
import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.core.beforehand import constants, in_constants
from kquant.core.joined import MOST, joining, so_far
from kquant.core.tables import for_xla
from kquant.graph import in_batches
from kquant.graph.by_xla import (
    MANY,
    Compiled,
    Counting,
    Way,
    Work,
    after,
    batch_for,
    compiled_call,
    counted,
    is_of_keras,
    judging_ahead,
    largest,
    may_judge_ahead,
    try_on_zeros,
    way_of,
    work_of,
)
from kquant.graph.in_batches import data_of, may_slice, rows_of, size_of

CHANGES = 2  # of variables between two calls of a verb, after which its graph reads them
JIT_COMPILE = 7  # number of that argument of `compile`
MOST_NUMBERS = 2**22  # of all variables: their digest takes some 30 ms
REFUSALS = (
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
    tf.errors.InternalError,
    tf.errors.ResourceExhaustedError,
)
_MAKING = threading.Lock()


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
    xla: dict[str, Compiled]  # likewise
    made: dict[str, Any]  # likewise: Keras' functions, to tell them from somebody's own
    without_xla: bool  # as `compile` was told

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Keras'; what it is told of `jit_compile` holds, where it is told something."""
        super().compile(*args, **kwargs)
        said = args[JIT_COMPILE] if len(args) > JIT_COMPILE else kwargs.get("jit_compile", "auto")
        object.__setattr__(self, "without_xla", said is False)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """What Keras' does, which leaves a class with a `compile` of its own uncompiled.

        A file has `jit_compile=False` where nobody said anything, so it says nothing.
        """
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)
        object.__setattr__(self, "without_xla", False)

    def predict(
        self, x: Any, batch_size: Any = None, verbose: Any = "auto", steps: Any = None, callbacks: Any = None
    ) -> Any:
        """Keras', with a graph that holds what variables hold, and by XLA where that pays (`graph/by_xla.py`)."""
        # of arrays that can be sliced: a step, or a function, of somebody's own gets the batches that Keras makes
        sliced = steps is None and is_of_keras(self, "predict_step") and not self._is_own("predict_function")
        rows = rows_of(x) if sliced else 0
        if rows_of(x):
            size_of("predict", batch_size)

        def run(model: Any, size: Any, callbacks: Any = None, rest: Any = None) -> Any:
            if rows and callbacks is None and may_slice(model):
                return in_batches.predict(model, x, size, verbose, rest)
            return keras.Model.predict(model, x, size, verbose, steps, callbacks)

        def by_graph(callbacks: Any) -> Any:
            return run(self, batch_size, callbacks)

        with self._holding("predict_function", callbacks is None) as digest:
            if digest is None:
                return by_graph(callbacks)
            work = work_of(self, x, batch_size, steps, grows=bool(rows))

            def by_xla(twin: Any) -> Any:
                if not rows:
                    return run(twin, batch_size)
                if work.size:
                    return run(twin, work.size, rest=self)
                return run(twin, batch_for(rows, batch_size, largest(self, x)))

            return self._run("predict_function", digest, x, work, by_xla, by_graph)

    def _run(
        self,
        name: str,
        digest: bytes,
        data: Any,
        work: Work,
        by_xla: Callable[[Any], Any],
        by_graph: Callable[[Any], Any],
    ) -> Any:
        """A verb, by XLA where it has run so many batches that this pays (`graph/by_xla.py`), else by its graph.

        Args:
            name: of its function.
            digest: of the variables.
            data: that it reads, arrays or a dataset.
            work: of this call.
            by_xla: the verb, of the model that it is given.
            by_graph: the verb of this one, with callbacks.
        """
        if not self._count(name, digest, work):
            counting = Counting() if work.batches is None else None
            made = by_graph(counting and [counting])
            if counting is not None:
                self._count(name, digest, replace(work, batches=counting.batches))
            return made
        # before it runs, since whoever lets go of Keras' function while it does means this one, too
        known = replace(self.xla[name], beside=getattr(self, name))
        twin, way = _twin(self), way_of(self)
        setattr(twin, name, known.function)
        if known.function is None:
            twin.__dict__["call"] = compiled_call(self, judged=name == "test_function", whole=way is Way.WHOLE)
            if may_judge_ahead(self):
                twin.__dict__["test_step"] = judging_ahead(twin)
        dataset, begun, before = isinstance(data, tf.data.Dataset), False, so_far()
        try:
            with for_xla(way is Way.WHOLE), joining(way is Way.BETWEEN):
                if dataset and known.function is None:
                    try_on_zeros(twin, data, whole=way is Way.WHOLE)
                begun = dataset
                made = by_xla(twin)
        except REFUSALS as error:
            if not begun:
                made = by_graph(None)  # tells what is wrong with arrays
            if not begun or isinstance(error, tf.errors.ResourceExhaustedError):
                self._know(name, replace(self.xla[name], refused=True))
            if begun:  # a dataset that is read again need not begin where it began
                raise
            return made
        self._know(name, after(known, work, getattr(twin, name), so_far() - before))
        return made

    def _count(self, name: str, digest: bytes, work: Work) -> bool:
        """True where a call is one for XLA; it counts."""
        known = counted(getattr(self, "xla", {}).get(name, Compiled()), digest, work, getattr(self, name))
        self._know(name, known)
        pays = work.batches != 0 and work.each > 0 and known.batches[work.size] >= MANY and not known.refused
        return pays and (work.size in known.sizes or so_far() < MOST) and self._may_compile()

    def _know(self, name: str, known: Compiled) -> None:
        # Not tracked: it is no part of the model.
        object.__setattr__(self, "xla", {**getattr(self, "xla", {}), name: known})

    def _may_compile(self) -> bool:
        return not getattr(self, "without_xla", False) and way_of(self) is not Way.NOTHING

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
        """Keras', as `predict` is; between the epochs of `fit` its graph reads the variables."""
        if rows_of(x):
            size_of("evaluate", batch_size)
        sliced = steps is None and not kwargs and not self._is_own("test_function")
        arrays = data_of(x, y, sample_weight) if sliced else None

        def run(model: Any, callbacks: Any, ahead: int = 1) -> Any:
            if arrays is not None and model.compiled and may_slice(model):
                return in_batches.evaluate(model, arrays, batch_size, verbose, callbacks, return_dict, ahead)
            return keras.Model.evaluate(
                model, x, y, batch_size, verbose, sample_weight, steps, callbacks, return_dict, **kwargs
            )

        name = "test_function"
        with self._holding(name, callbacks is None and not kwargs) as digest:
            if digest is None:
                return run(self, callbacks)
            work = work_of(self, x, batch_size, steps, grows=False)

            def by_xla(twin: Any) -> Any:
                ahead = 1
                if arrays is not None and not work.size and may_judge_ahead(self):
                    ahead = batch_for(rows_of(x), batch_size, largest(self, x)) // size_of("evaluate", batch_size)
                return run(twin, None, ahead)

            return self._run(name, digest, x, work, by_xla, lambda callbacks: run(self, callbacks))

    def make_predict_function(self, force: bool = False) -> Any:
        """Keras', which whoever asks for it may keep: not the one that holds variables, but for `predict` itself."""
        before = self.predict_function
        super().make_predict_function(force=force or self._is_held("predict_function"))
        return self._made("predict_function", before)

    def make_train_function(self, force: bool = False) -> Any:
        """Keras', with the optimizer's variables made beforehand: a trace that makes some is traced a second time."""
        if self.optimizer is not None and not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force=force)

    def make_test_function(self, force: bool = False) -> Any:
        """Likewise, for `evaluate`."""
        before = self.test_function
        super().make_test_function(force=force or self._is_held("test_function"))
        return self._made("test_function", before)

    def _made(self, name: str, before: Any) -> Any:
        """The function that there is now, which is known to be Keras' where it is another one than before."""
        function = getattr(self, name)
        if function is not before:
            # Not tracked: they are no part of the model.
            object.__setattr__(self, "made", {**getattr(self, "made", {}), name: function})
        return function

    def _is_own(self, name: str) -> bool:
        """True where somebody has set a function, or what makes it: such a one need not take a batch alone."""
        making = f"make_{name}"
        if making in vars(self) or getattr(type(self), making) is not getattr(HeldConstants, making):
            return True
        with _MAKING:  # another thread, which has set Keras' and not said so yet, says it first
            function = getattr(self, name)
            return function is not None and function is not getattr(self, "made", {}).get(name)

    def _is_held(self, name: str) -> bool:
        """True where the function holds constants and whoever asks for it is not the verb itself."""
        function = getattr(self, name)
        return function is not None and function is self._state(name)[0] and not in_constants()

    def _state(self, name: str) -> tuple[Any, bytes, int]:
        return *getattr(self, "held", {}).get(name, (None, b"")), getattr(self, "changes", {}).get(name, 0)

    @contextlib.contextmanager
    def _holding(self, name: str, may: bool) -> Iterator[bytes | None]:
        """A block in which Keras makes, or uses, a function that holds what variables hold now, where that may be.

        It is given a digest of them; None where the function reads the variables.
        """
        if not may or not self._may_hold(name):
            yield None
            return
        now = _digest(self.variables)
        if not self._make(name, now):
            yield None
            return
        with constants(), for_xla(bool(self.jit_compile)):  # as somebody asked for
            yield now

    def _make(self, name: str, now: bytes) -> bool:
        """Have Keras' function there, a new one where variables differ; True where it is to hold them.

        Known before it is traced to be one that holds variables: what an interrupted call has traced does. One thread
        at a time: where two make one at once, each takes the other's for one that somebody else made.
        """
        with _MAKING:
            held, digest, changes = self._state(name)
            function = getattr(self, name)
            if function is not None and (changes >= CHANGES or (function is held and now == digest)):
                return changes < CHANGES
            changes = 0 if function is None else changes + 1
            if function is None and name in getattr(self, "xla", {}):  # `compile` or a correction let go of it
                self._know(name, replace(self.xla[name], refused=False))
            getattr(self, f"make_{name}")(force=True)  # never None meanwhile: another thread may be about to call it
            # Not tracked: they are no part of the model.
            object.__setattr__(self, "changes", {**getattr(self, "changes", {}), name: changes})
            if changes < CHANGES:
                object.__setattr__(self, "held", {**getattr(self, "held", {}), name: (getattr(self, name), now)})
            return changes < CHANGES

    def _may_hold(self, name: str) -> bool:
        gave_up = self._state(name)[2] >= CHANGES and getattr(self, name) is not None
        if self.run_eagerly or tf.config.functions_run_eagerly() or gave_up or self._is_own(name):
            return False
        alone = not tf.distribute.has_strategy() and self.distribute_strategy is tf.distribute.get_strategy()
        return alone and sum(math.prod(v.shape) for v in self.variables) <= MOST_NUMBERS


def _twin(model: HeldConstants) -> HeldConstants:
    """The same layers and variables in a model of its own, whose functions are not those of calls in other threads."""
    twin = object.__new__(type(model))
    # Lists and dicts of the model's own: of functions that are set Keras keeps account there.
    twin.__dict__.update({k: v.copy() if type(v) in (list, dict) else v for k, v in vars(model).items()})
    return twin


def _digest(variables: Sequence[keras.Variable]) -> bytes:
    """Of all values: what differs in a bit has another one."""
    digest = hashlib.blake2b(digest_size=16)
    for variable in variables:
        held = variable.value  # whose own `numpy` takes three operations: of 227 variables 6.2 ms against 2.4
        now = tf.raw_ops.ReadVariableOp(resource=held.handle, dtype=held.dtype).numpy()
        digest.update(np.ascontiguousarray(now).tobytes())
    return digest.digest()
