"""Python's collector of garbage in the process of a command: it waits until Keras and the model are there.

TensorFlow and Keras make a million objects as they load, which all stay. Whenever enough new ones are there the
collector looks through those of before: six times until `kquant check` is done, half a second in all, for 25 objects.
"""

from __future__ import annotations

import gc

NEW_OBJECTS = 100_000  # until it looks at the youngest; Python's own number is 700, or 2,000
_OWN = gc.get_threshold()


def wait() -> None:
    """Let it look seldom, from the start of a command on."""
    gc.set_threshold(NEW_OBJECTS, *_OWN[1:])


def go_on() -> None:
    """Let it look as often as ever, at what is made from now on; nothing where it did not `wait`.

    Example:
        >>> wait()
        >>> gc.get_threshold()[0]
        100000
        >>> go_on(), gc.get_threshold() == _OWN
        (None, True)
        >>> gc.unfreeze()
    """
    if gc.get_threshold()[0] == NEW_OBJECTS:
        gc.freeze()  # no collection looks through what is there again
        gc.set_threshold(*_OWN)
