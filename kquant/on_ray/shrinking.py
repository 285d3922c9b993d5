"""`kquant.on_ray.prune_channels` and `factorize`: each width of a group, each rank of a layer, judged by a task."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any

import keras
import numpy as np

from kquant.on_ray.candidates import Evaluate
from kquant.on_ray.shipping import finished, packed, sent, started, unpacked
from kquant.shrink import channel_pruning, factorization
from kquant.shrink.channels import Channels, follow_channels
from kquant.shrink.importance import Importance
from kquant.views.flat_copy import plain, read


def prune_channels(
    model: keras.Model,
    *,
    evaluate: Evaluate,
    macs: float | None = None,
    weight_bytes: float | None = None,
    importance: Importance = "l1",
    data: Any = None,
    labels: Any = None,
    loss: Any = None,
    reconstruct: bool = True,
    protect: str | Collection[str] = (),
    minimum: int = 4,
    multiple: int = 1,
    verbose: bool = True,
) -> keras.Model:
    """`kquant.prune_channels`, with each width of each group judged by a task of Ray.

    Copies: `model` stays as it was.

    Args:
        model: see `kquant.prune_channels`.
        evaluate: likewise, and not to be left out: it is what the tasks do; sent along with what it refers to.
        macs: likewise.
        weight_bytes: likewise.
        importance: likewise.
        data: likewise; the samples that widths are refitted on are sent to each process once.
        labels: likewise.
        loss: likewise.
        reconstruct: likewise.
        protect: likewise.
        minimum: likewise.
        multiple: likewise.
        verbose: likewise.

    Returns:
        What `kquant.prune_channels` returns, to the bit.

    Raises:
        ValueError: see `kquant.prune_channels`; Ray is not installed; or an `evaluate` that does not pickle.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> kquant.on_ray.prune_channels(model, macs=0.5, evaluate=lambda m: 1.0, minimum=0)
        Traceback (most recent call last):
        ValueError: minimum: expected a whole number, 1 or more. Received: 0.
    """
    ranked = channel_pruning.Ranked(importance, data, labels, loss)
    wanted = channel_pruning.Wanted(
        macs, weight_bytes, ranked, reconstruct, evaluate, protect, minimum, multiple, verbose
    )
    wanted.check()
    return channel_pruning.cut(model, wanted, _elsewhere("prune_channels", _narrowed, model, evaluate, protect))


def factorize(
    model: keras.Model,
    *,
    evaluate: Evaluate,
    macs: float | None = None,
    weight_bytes: float | None = None,
    data: Any = None,
    protect: str | Collection[str] = (),
    multiple: int = 1,
    verbose: bool = True,
) -> keras.Model:
    """`kquant.factorize`, with each rank of each layer judged by a task of Ray.

    Copies: `model` stays as it was.

    Args:
        model: see `kquant.factorize`.
        evaluate: likewise, and not to be left out: it is what the tasks do; sent along with what it refers to.
        macs: likewise.
        weight_bytes: likewise.
        data: likewise; the samples that halves are refitted on are sent to each process once.
        protect: likewise.
        multiple: likewise.
        verbose: likewise.

    Returns:
        What `kquant.factorize` returns, to the bit.

    Raises:
        ValueError: see `kquant.factorize`; Ray is not installed; or an `evaluate` that does not pickle.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> kquant.on_ray.factorize(model, evaluate=lambda m: 1.0)
        Traceback (most recent call last):
        ValueError: one budget is to be given, like macs=0.6 or weight_bytes=50_000. Received: macs=None, \
weight_bytes=None.
    """
    wanted = factorization.Wanted(macs, weight_bytes, None, data, evaluate, protect, multiple, verbose)
    wanted.check()
    return factorization.split_up(model, wanted, _elsewhere("factorize", _split, model, evaluate))


def _elsewhere(
    verb: str, task: Callable[..., Any], model: keras.Model, evaluate: Evaluate, *more: Any
) -> Callable[[Any, Sequence[Any]], Iterable[tuple[int, Any]]]:
    """Who judges models: a task each.

    Args:
        verb: of `kquant.on_ray`.
        task: content of the whole model, plain, `evaluate`, further arguments, samples, what is left -> score.
        model: the whole one.
        evaluate: of the caller; sent at once, so that one that cannot be sent is refused before anything runs.
        more: the task's further arguments.
    """
    ray, who = started(), f"on_ray.{verb}"
    [judge] = sent(ray, who, evaluate=evaluate)

    def judged(few: Any, models: Sequence[Any]) -> Iterable[tuple[int, Any]]:
        # without the caller's classes, which a process need not know
        content, samples = sent(ray, who, model=packed(plain(model)), data=few)
        return finished(ray, task, [(content, judge, *more, samples, left) for left in models])

    return judged


@lru_cache(maxsize=1)  # a process does many tasks of one model
def _channels(content: bytes, protect: str | tuple[str, ...]) -> Channels:
    return follow_channels(read(unpacked(content)), protect)


def _narrowed(content: bytes, evaluate: Evaluate, protect: str | Collection[str], few: Any, kept: np.ndarray) -> Any:
    """A task: one model of fewer channels."""
    channels = _channels(content, protect if isinstance(protect, str) else tuple(protect))
    [(_, given)] = channel_pruning.trying(channels, few, evaluate).judged([kept])
    return given


def _split(content: bytes, evaluate: Evaluate, few: Any, ranks: dict[str, int]) -> Any:
    """A task: one model with layers in two halves."""
    graph = read(unpacked(content))
    [(_, given)] = factorization.trying(graph, few, evaluate).judged([ranks])
    return given
