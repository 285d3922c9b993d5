"""Ways to run a quantized model, beside training and inference: `observing` (calibration) and `only` (analysis)."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Collection, Iterator
from typing import Any

import keras
import tensorflow as tf

from kquant.graph.keras_private import is_autocasting, mask_of

Collector = Callable[[Any, int, tf.Tensor], None]  # (`FakeQuant`, number of its call, tensor)
# Not attributes of layers: a block reaches all of a model, also what its layers hold, and ends whatever is raised in
# it. A graph keeps what held while it was traced, so that inside a block models are called eagerly, or by functions
# that are traced there; never by `predict`.
_COLLECTOR: contextvars.ContextVar[Collector | None] = contextvars.ContextVar("collector", default=None)
_ONLY: contextvars.ContextVar[frozenset[str] | None] = contextvars.ContextVar("only", default=None)


@contextlib.contextmanager
def observing(collector: Collector) -> Iterator[None]:
    """Inside, models run in float and hand each tensor that has a range to `collector(layer, site, tensor)`."""
    token = _COLLECTOR.set(collector)
    try:
        yield
    finally:
        _COLLECTOR.reset(token)


def is_observing() -> bool:
    """True inside `observing`."""
    return _COLLECTOR.get() is not None


def show(layer: keras.layers.Layer, site: int, y: tf.Tensor) -> None:
    """Hand a tensor to the collector of `observing`, where there is one."""
    collector = _COLLECTOR.get()
    if collector is not None:
        collector(layer, site, y)


@contextlib.contextmanager
def only(names: Collection[str]) -> Iterator[None]:
    """Inside, models compute in float, and only the layers of these names quantize: their weights, or their tensors.

    What quantizes rounds floats to the grid (no integer sums), so that a layer costs what it costs in float.
    """
    token = _ONLY.set(frozenset(names))
    try:
        yield
    finally:
        _ONLY.reset(token)


def is_simulating() -> bool:
    """True inside `only`."""
    return _ONLY.get() is not None


def mode() -> tuple[bool, frozenset[str] | None]:
    """What a trace that is made now depends on: whether somebody observes, and who alone quantizes."""
    return is_observing(), _ONLY.get()


def is_float(layer: keras.layers.Layer) -> bool:
    """True where a layer is to compute in float: inside `observing`, and inside `only` where it is not named."""
    names = _ONLY.get()
    return is_observing() or (names is not None and layer.name not in names)


def is_bare(args: tuple[Any, ...]) -> bool:
    """True where what Keras does around a layer's `call` has nothing to do, and would take longer than a small layer.

    That is inside `observing` and `only`, outside of graphs, for a float32 tensor without a mask and a layer that casts
    nothing: no gradients, no losses, no types to bring in line.

    Args:
        args: what the layer is called with, by position.
    """
    if len(args) != 1 or not (is_observing() or is_simulating()) or is_autocasting():
        return False
    x: Any = args[0]
    if not isinstance(x, tf.Tensor) or tf.is_symbolic_tensor(x) or x.dtype != tf.float32:
        return False
    held: Any = x
    return mask_of(held) is None
