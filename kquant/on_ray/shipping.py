"""A cluster of Ray, and models on their way to it: a model is shipped once, and loaded once by each process."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import keras

from kquant.files.leftovers import scratch

RETRIES = 3  # of a task whose process ends
INSTALL = "pip install 'kquant[ray]'"


def started() -> Any:
    """Ray, connected: to the cluster that `ray.init` was called for, else to one of this machine's processors.

    Raises:
        ValueError: it is not installed; the line that installs it.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(f"kquant.on_ray needs an extra: {INSTALL}.") from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    return ray


def packed(model: keras.Model) -> bytes:
    """A model as the content of a `.keras` file."""
    with scratch() as folder:
        path = folder / "model.keras"
        model.save(path)
        return path.read_bytes()


@lru_cache(maxsize=1)  # a process does many tasks of one model
def unpacked(content: bytes) -> keras.Model:
    """What `packed` packed."""
    with scratch() as folder:
        path = folder / "model.keras"
        path.write_bytes(content)
        model: Any = keras.models.load_model(path)
        return model


def finished(ray: Any, task: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
    """Results of a task for each of some arguments, as they are done, each with its number.

    Args:
        ray: see `started`.
        task: a function of a module, so that processes find it.
        calls: arguments of each task; references stand for what they refer to.
    """
    remote = ray.remote(max_retries=RETRIES)(task)
    left = {remote.remote(*arguments): number for number, arguments in enumerate(calls)}
    try:
        while left:
            [done], _ = ray.wait(list(left), num_returns=1)
            yield left.pop(done), ray.get(done)
    finally:
        for reference in left:  # an error, or Ctrl-C: what nobody asks for any more
            ray.cancel(reference, force=True)
