"""Metrics for `kquant.analyze`: functions of the outputs, higher is better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def top1(labels: np.ndarray) -> Callable[[Any], float]:
    """Share of samples whose largest output, or the position of it that an argmax gave, is that of their class.

    Args:
        labels: int[samples], as a column too, or one-hot [samples, classes], in the order of the samples; those beyond
            the analyzed ones are left out.

    Returns:
        A metric; it refuses outputs that are neither float[samples, classes] nor classes [samples], or [samples, 1],
        and labels that are none of these classes.

    Raises:
        ValueError: labels that are no numbers.

    Example:
        >>> top1(np.array([1, 0]))(np.array([[0.1, 0.9], [0.2, 0.8]]))
        0.5
    """
    given = np.asarray(labels)
    if given.dtype.kind not in "iufb":
        raise ValueError(
            f"accuracy: labels are the numbers of the classes, from 0. Received: dtype {given.dtype}. Of names, "
            "np.unique(names, return_inverse=True)[1] makes numbers, in alphabetical order."
        )
    labels = given.argmax(axis=1) if given.ndim == 2 and given.shape[1] > 1 else given.reshape(-1)

    def accuracy(outputs: Any) -> float:
        if isinstance(outputs, list) or np.ndim(outputs) not in (1, 2) or len(outputs) > len(labels):
            shape = [np.shape(o) for o in outputs] if isinstance(outputs, list) else np.shape(outputs)
            raise ValueError(
                "accuracy: expected one output, [samples, classes] or an argmax's [samples], and a label for each "
                f"sample. Received: outputs {shape}, {len(labels)} labels."
            )
        used, told = labels[: len(outputs)], _told(outputs)
        if told is not None:
            return float(np.mean(told == used))
        count = max(outputs.shape[1], 2)
        if len(used) and not 0 <= used.min() <= used.max() < count:
            raise ValueError(
                f"accuracy: the model has {count} classes, 0 to {count - 1}. Received: labels from {used.min()} to "
                f"{used.max()}. Count them from 0, and give those of these very samples."
            )
        # a single output is the probability of class 1
        classes = outputs.argmax(axis=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0.5).astype(int)
        return float(np.mean(classes == used))

    return accuracy


def _told(outputs: np.ndarray) -> np.ndarray | None:
    """Classes, where the outputs are these and not scores."""
    if outputs.ndim == 1:
        return outputs
    # a column of probabilities that are all 0 or 1 says the same either way
    return outputs[:, 0] if outputs.shape[1] == 1 and np.array_equal(outputs, np.rint(outputs)) else None


def check_metric(verb: str, metric: Any) -> None:
    """Refuse what cannot be asked, before anything is computed for it.

    Args:
        verb: what the message starts with.
        metric: of outputs, or None.

    Raises:
        ValueError: it is no function.
    """
    if metric is not None and not callable(metric):
        raise ValueError(
            f"{verb}: metric is a function of the model's outputs that returns a number, like "
            f"kquant.analysis.metrics.top1(labels). Received: {type(metric).__name__}."
        )


def judged(metric: Callable[[Any], float], outputs: Any) -> float:
    """What a metric says of outputs.

    Args:
        metric: a user's.
        outputs: of the model, for all samples: an array, or a list of them.

    Raises:
        ValueError: whatever it raises, with the shapes that it was given; or it returns no number.
    """
    shapes = " and ".join(str(np.shape(y)) for y in (outputs if isinstance(outputs, list) else [outputs]))
    name = getattr(metric, "__name__", type(metric).__name__)
    try:
        value = metric(outputs)
    except Exception as error:  # whatever a user's function raises
        raise ValueError(
            f"metric '{name}' failed on outputs of shape {shapes}: {type(error).__name__}: {error} It is given the "
            "outputs for all samples, in their order; compare them with labels of these very samples."
        ) from error
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"metric '{name}': expected a number for outputs of shape {shapes}. Received: {value!r}."
        ) from error
