"""A cluster of Ray, and models on their way to it: a model is shipped once, and loaded once by each process."""

from __future__ import annotations

import importlib
import json
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


class Begun:
    """Calls of a task, begun before they are asked for; what nobody asks for any more is cancelled.

    Args:
        ray: see `started`.
        task: a function of a module, so that processes find it.
        shared: its first arguments, sent once.
    """

    def __init__(self, ray: Any, task: Callable[..., Any], *shared: Any) -> None:
        self.ray, self.remote = ray, ray.remote(max_retries=RETRIES)(task)
        self.shared = tuple(ray.put(each) for each in shared)
        self.begun: dict[str, Any] = {}

    def ahead(self, calls: Sequence[tuple[Any, ...]]) -> None:
        """Begin calls, and cancel all others.

        Args:
            calls: the arguments behind the shared ones, as JSON takes them.
        """
        wanted = {_key(call): call for call in calls}
        self._cancel([key for key in self.begun if key not in wanted])
        for key, call in wanted.items():
            if key not in self.begun:
                self.begun[key] = self.remote.remote(*self.shared, *call)

    def result(self, *call: Any) -> Any:
        """Of a call, begun or not."""
        reference = self.begun.pop(_key(call), None)
        return self.ray.get(self.remote.remote(*self.shared, *call) if reference is None else reference)

    def close(self) -> None:
        """Cancel all that is left."""
        self._cancel(list(self.begun))

    def _cancel(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.ray.cancel(self.begun.pop(key), force=True)


def _key(call: Sequence[Any]) -> str:
    return json.dumps(call, sort_keys=True)


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
