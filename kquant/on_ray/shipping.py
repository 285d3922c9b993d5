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
DATA = "Give arrays or a keras.utils.PyDataset."
CODE = "Let it make what does not pickle, like a tf.data.Dataset, when it is called."
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
    """What `packed` packed, not compiled: its loss may be a function that this process cannot find."""
    with scratch() as folder:
        path = folder / "model.keras"
        path.write_bytes(content)
        model: Any = keras.models.load_model(path, compile=False)
        return model


def sent(ray: Any, who: str, **arguments: Any) -> list[Any]:
    """References to arguments of many tasks, which a process fetches once.

    Args:
        ray: see `started`.
        who: the verb that errors name.
        arguments: by the names that its caller knows them by, in the order of the task's.

    Raises:
        ValueError: one that does not pickle, by its name.
    """
    references = []
    for name, value in arguments.items():
        try:
            references.append(ray.put(value))
        except Exception as error:  # whatever an object raises that is asked for its content
            remedy = DATA if name == "data" else CODE
            said = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])[:200].rstrip(".: ")
            raise ValueError(
                f"{who}: {name} ({type(value).__name__}) cannot be sent to other processes: {said}. {remedy}"
            ) from error
    return references


class Begun:
    """Calls of a task, begun before they are asked for; what nobody asks for any more is cancelled.

    Args:
        ray: see `started`.
        task: a function of a module, so that processes find it.
        shared: its first arguments, as `sent` gives them.
    """

    def __init__(self, ray: Any, task: Callable[..., Any], shared: Sequence[Any]) -> None:
        self.ray, self.remote = ray, ray.remote(max_retries=RETRIES)(task)
        self.shared = tuple(shared)
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
