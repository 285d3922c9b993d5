"""Random numbers of a search: its own, the same in every call, so that its caller's go on as if it had not been."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


@contextlib.contextmanager
def own_streams(seed: int = 0) -> Iterator[Callable[[Any], Any]]:
    """Inside, Python's `random` and NumPy's global generator start at `seed`; behind it they are where they were.

    Keras draws from the first wherever it makes a layer, and a caller's layers may from both. Keras' seed generator and
    TensorFlow's global seed stay the caller's: the second cannot be read, so nobody could put it back. A search takes
    what is random in its training (the order of samples) from a generator of its own. What cannot be undone: `predict`
    and `fit` take seeds for their pipelines out of TensorFlow's stream, which is further on then, as behind any other
    call of them.

    Args:
        seed: of both.

    Yields:
        What makes a function of the caller draw from the caller's streams, and move them; None stays None.

    Example:
        >>> import random
        >>> random.seed(1)
        >>> with own_streams() as callers:
        ...     ours, theirs = random.random(), callers(random.random)()
        >>> random.seed(1)
        >>> theirs == random.random() != ours
        True
    """
    held = _state()
    random.seed(seed)
    np.random.seed(seed)

    def callers(function: Any) -> Any:
        if function is None:
            return None

        def called(*args: Any) -> Any:
            nonlocal held
            ours = _state()
            _assign(held)
            try:
                return function(*args)
            finally:
                held = _state()
                _assign(ours)

        return called

    try:
        yield callers
    finally:
        _assign(held)


def _state() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()


def _assign(state: tuple[Any, Any]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
