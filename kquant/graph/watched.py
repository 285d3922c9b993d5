"""Run a `call` without a trace of it in the model, and see what it does beside computing.

Variables read and change inside a `keras.StatelessScope`, so the model's own keep their values. A draw, a counter, or
Python's own randomness would become one frozen number: a second run, which starts where the first one ended, shows it.

    first  = call from the model's state
    second = call from the state that the first one left        another graph, or other numbers: refused
    taught = call from the model's state with training=True     another graph: named in a warning
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import KerasTensor as Tensor
from keras import tree

from kquant.graph.keras_private import BOOKKEEPING, every_layer
from kquant.graph.recording import Recording

SEED = "seed_generator_state"  # name of the variable in every keras.random.SeedGenerator
NOT_COMPARED = ("name", *BOOKKEEPING)
# What `compute_output_spec` and gradients are asked for, not what a layer computes.
FLAGS = ("training", "mask")
PLAIN = (int, float, complex, str, bytes, type(None), tuple, list, dict, set, np.ndarray, Tensor)


class Watched(keras.StatelessScope):
    """A scope that remembers which variables a `call` assigns, and what losses it adds.

    Attributes:
        updates: id -> (variable, its value before, what was assigned last); a value that depends on the inputs is a
            `KerasTensor`.
    """

    def __init__(self, state: Iterable[tuple[Any, Any]] = ()) -> None:
        super().__init__(list(state), collect_losses=True)
        self.updates: dict[int, tuple[Any, Any]] = {}

    def add_update(self, update: tuple[Any, Any]) -> None:
        """What Keras reports of `variable.assign(value)`."""
        self.updates[id(update[0])] = update
        super().add_update(update)

    @property
    def draws(self) -> bool:
        """True where random numbers were drawn, from a seed that moved on."""
        return any(_is_seed(variable) for variable, _ in self.updates.values())

    @property
    def assigned(self) -> list[Any]:
        """Variables that get other values, seeds left out."""
        return [v for v, new in self.updates.values() if not _is_seed(v) and _moves(v, new)]

    def after(self) -> list[tuple[Any, Any]]:
        """The state that the next call starts from; what depends on the inputs is any other number."""
        # What the inputs decide has no value yet; if the output reads it, any other value shows that.
        return [(v, _another(v) if isinstance(new, Tensor) else new) for v, new in self.updates.values()]

    @contextlib.contextmanager
    def over(self, layer: keras.layers.Layer) -> Iterator[Watched]:
        """Inside, the scope is open, and the layer's variables take symbolic values."""
        variables = {id(v): v for v in layer.variables}.values()
        kinds = [(v, type(v)) for v in variables]
        followed = {kind: _followed(kind, self) for _, kind in kinds}
        metrics = [m for inner in every_layer(layer) for m in vars(inner).values() if _is_metric(m)]
        try:
            for v, kind in kinds:
                v.__class__ = followed[kind]
            for metric in metrics:
                # Past `__setattr__`, so that Keras tracks nothing of it.
                vars(metric)["update_state"] = self._update_of(metric)
            with self:
                yield self
        finally:
            for v, kind in kinds:
                v.__class__ = kind
            for metric in metrics:
                vars(metric).pop("update_state", None)

    def _update_of(self, metric: Any) -> Callable[..., Any]:
        """A metric computes on values only; of symbolic ones it is noted that they change its variables."""

        def update_state(*args: Any, **kwargs: Any) -> Any:
            if not any(isinstance(x, Tensor) for x in tree.flatten((args, kwargs))):
                return type(metric).update_state(metric, *args, **kwargs)
            self.updates.update({id(v): (v, Tensor(v.shape, v.dtype)) for v in metric.variables})
            return None

        return update_state


def _followed(kind: type, scope: Watched) -> type:
    """A class of variables to which symbolic values can be assigned: it is noted, and they stay what they were."""

    def assign(self: Any, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return kind.assign(self, value)
        scope.updates[id(self)] = (self, value)
        return value

    return type(kind.__name__, (kind,), {"assign": assign})


def _is_metric(x: Any) -> bool:
    return isinstance(x, keras.metrics.Metric) and "update_state" not in vars(x)


def _is_seed(variable: Any) -> bool:
    return variable.name == SEED


def _moves(variable: Any, new: Any) -> bool:
    return isinstance(new, Tensor) or not np.array_equal(variable.numpy(), np.asarray(new))


def _another(variable: Any) -> Any:
    value = variable.numpy()
    return ~value if value.dtype == bool else value + np.ones((), value.dtype)


def reads(recording: Recording) -> set[int]:
    """Ids of the variables that the recorded calls are given."""
    given = tree.flatten([(n.arguments.args, n.arguments.kwargs) for n in recording.nodes])
    return {id(x) for x in given if isinstance(x, keras.Variable)}


def same(one: Recording, two: Recording) -> bool:
    """True where both runs recorded the same calls with the same numbers; flags are not looked at."""
    first, second = _Places(one.kept), _Places(two.kept)
    if len(one.nodes) != len(two.nodes):
        return False
    for a, b in zip(one.nodes, two.nodes, strict=True):
        if not (_same_operation(a.operation, b.operation) and _alike(first.arguments(a), second.arguments(b))):
            return False
        first.add(a.outputs)
        second.add(b.outputs)
    return _alike(first.of(one.outputs), second.of(two.outputs))


@dataclass(frozen=True)
class _Place:
    number: int | None


class _Places:
    """Tensors by the order in which they come, so that two recordings compare."""

    def __init__(self, starts: Iterable[Tensor]) -> None:
        self.known: dict[int, int] = {}
        self.add(starts)

    def add(self, tensors: Iterable[Tensor]) -> None:
        for t in tensors:
            # The first place counts: a call may hand on a tensor that it read.
            self.known.setdefault(id(t), len(self.known))

    def of(self, structure: Any) -> Any:
        """The structure, its tensors replaced by their places."""
        return tree.map_structure(lambda x: _Place(self.known.get(id(x))) if isinstance(x, Tensor) else x, structure)

    def arguments(self, node: Any) -> Any:
        kwargs = {k: v for k, v in node.arguments.kwargs.items() if k not in FLAGS}
        return self.of((list(node.arguments.args), kwargs))


def _same_operation(a: Any, b: Any) -> bool:
    """One and the same, or two made anew in each run with the same settings and weights."""
    if a is b or type(a) is not type(b):
        return a is b
    if not isinstance(a, keras.layers.Layer):
        return _alike(*({k: v for k, v in vars(op).items() if k not in NOT_COMPARED} for op in (a, b)))
    return _alike([v.numpy() for v in a.weights], [v.numpy() for v in b.weights])


def _alike(a: Any, b: Any) -> bool:
    """Equal in all that is a number, a text or a structure of such; of other things the class is looked at only."""
    if a is b:
        return True
    # Another variable, though of the same values, is another state.
    if isinstance(a, keras.Variable) or isinstance(b, keras.Variable):
        return False
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(_alike(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, _Place | str | bytes) or isinstance(b, _Place | str | bytes):
        return a == b
    if isinstance(a, slice) and isinstance(b, slice):
        return _alike((a.start, a.stop, a.step), (b.start, b.stop, b.step))
    if _is_number(a) and _is_number(b):
        x, y = np.asarray(a), np.asarray(b)
        floats = x.dtype.kind in "fc" and y.dtype.kind in "fc"
        return x.shape == y.shape and bool(np.array_equal(x, y, equal_nan=floats))
    return type(a) is type(b)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float | complex | np.ndarray | np.generic) or keras.ops.is_tensor(x)


@contextlib.contextmanager
def attributes_kept(layers: Iterable[keras.layers.Layer]) -> Iterator[None]:
    """Put back what a `call` writes into attributes of its layers: numbers, texts, tensors, items of lists and dicts.

    What it does elsewhere (prints, files, globals) cannot be taken back. Layers and variables are left where they are.
    """
    before = [(layer, layer.built, dict(vars(layer)), _items(layer)) for layer in layers]
    try:
        yield
    finally:
        for layer, built, attributes, items in before:
            if layer.built == built:  # one that was built meanwhile has its variables to keep
                _put_back(vars(layer), attributes)
                for held, old in items:
                    _refill(held, old)


@contextlib.contextmanager
def state_kept(model: keras.Model) -> Iterator[None]:
    """Inside, a given model runs; afterwards counters, seeds, metrics and attributes are what they were.

    Args:
        model: of the user; its weights that train are left alone.
    """
    held = {id(v): v for v in (*model.non_trainable_variables, *model.metrics_variables)}
    values = [(v, v.numpy()) for v in held.values()]
    try:
        with attributes_kept(every_layer(model)):
            yield
    finally:
        for v, value in values:
            v.assign(value)


@contextlib.contextmanager
def state_unmoved(model: keras.Model) -> Iterator[None]:
    """Inside, also in a graph that is being traced, a given model runs without a change of its state.

    Args:
        model: of the user; what it assigns ends with the call.
    """
    with attributes_kept(every_layer(model)), keras.StatelessScope():
        yield


def _items(layer: Any) -> list[tuple[Any, Any]]:
    """The lists, dicts and sets that a layer holds, each with a copy."""
    held = [x for k, x in vars(layer).items() if k not in NOT_COMPARED and isinstance(x, list | dict | set)]
    return [(x, x.copy()) for x in held]


def _put_back(now: Any, before: dict[str, Any]) -> None:
    for name in [name for name, value in now.items() if name not in before and _is_plain(value)]:
        del now[name]
    for name, value in before.items():
        if name in now and now[name] is not value and (_is_plain(value) or _is_plain(now[name])):
            now[name] = value


def _is_plain(value: Any) -> bool:
    return isinstance(value, PLAIN) or keras.ops.is_tensor(value)


def _refill(held: Any, old: Any) -> None:
    """The items that a list, dict or set had, unless Keras tracks what came."""
    items, kept = _listed(held), _listed(old)
    # By identity: to compare arrays or tensors gives no single truth.
    unchanged = len(items) == len(kept) and all(map(operator.is_, items, kept))
    if unchanged or any(isinstance(x, keras.layers.Layer | keras.Variable) for x in items):
        return
    if isinstance(held, list):  # not its own methods: Keras tracks through those
        list.clear(held)
        list.extend(held, old)
    else:
        kind: Any = dict if isinstance(held, dict) else set
        kind.clear(held)
        kind.update(held, old)


def _listed(held: Any) -> list[Any]:
    return list(held.values()) if isinstance(held, dict) else list(held)
