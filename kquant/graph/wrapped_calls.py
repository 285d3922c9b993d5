"""What layers compute, wrapped for a while: an attribute `call` of the layer goes before the method of its class.

It is called wherever in a model the layer is. Afterwards the layer has what it had, an attribute of its user's
included; runs in several threads may begin and end in any order.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

Wrap = Callable[[keras.layers.Layer, Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True, eq=False)
class _Before:
    """A layer as it was, and what is around it.

    Attributes:
        own: its attribute `call`, in a dict; empty where it has none.
        call: what it computes.
        wraps: one for each run, in any thread, in the order in which they began.
    """

    own: dict[str, Any]
    call: Callable[..., Any]
    wraps: tuple[Wrap, ...] = ()


_LOCK = threading.Lock()
_BEFORE: dict[int, _Before] = {}  # by id of a layer that is wrapped


@contextlib.contextmanager
def wrapped_calls(layers: Sequence[keras.layers.Layer], wrap: Wrap) -> Iterator[None]:
    """Inside, `wrap(layer, call)` is called instead of what a layer computes; once, however many threads ask for it.

    Args:
        layers: of any model.
        wrap: a function of a module, by which runs that ask for the same know each other.

    Example:
        >>> layer = keras.layers.Rescaling(2.0)
        >>> with wrapped_calls([layer], lambda layer, call: lambda x: call(x) + 1.0):
        ...     float(layer(3.0))
        7.0
        >>> float(layer(3.0)), "call" in vars(layer)
        (6.0, False)
    """
    with _LOCK:
        for layer in layers:
            own = {name: call for name, call in layer.__dict__.items() if name == "call"}
            before = _BEFORE.get(id(layer)) or _Before(own, layer.call)
            _put(layer, replace(before, wraps=(*before.wraps, wrap)))
    try:
        yield
    finally:
        with _LOCK:
            for layer in layers:
                left = list(_BEFORE[id(layer)].wraps)
                left.remove(wrap)
                _put(layer, replace(_BEFORE[id(layer)], wraps=tuple(left)))


def _put(layer: keras.layers.Layer, before: _Before) -> None:
    attributes: dict[str, Any] = layer.__dict__  # past Keras, which would track what is set
    if not before.wraps:
        del _BEFORE[id(layer)], attributes["call"]
        attributes.update(before.own)
        return
    _BEFORE[id(layer)], call = before, before.call
    for wrap in dict.fromkeys(before.wraps):
        call = wrap(layer, call)
    attributes["call"] = call
