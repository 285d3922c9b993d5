"""Metrics for `kquant.analyze`: functions of the outputs, higher is better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kquant.core.callers import number_of, of_caller
from kquant.core.checks import shown
from kquant.files.finished_work import fingerprint


def top1(labels: np.ndarray) -> Callable[[Any], float]:
    """Share of samples whose largest output, or the position of it that an argmax gave, is that of their class.

    Args:
        labels: int[samples], as a column too, or one-hot [samples, classes], in the order of the samples; those beyond
            the analyzed ones are left out.

    Returns:
        A metric; it refuses outputs that are neither float[samples, classes] nor [samples] or [samples, 1], which are
        classes where all are whole numbers, else probabilities of class 1; and labels that are none of these classes.

    Raises:
        ValueError: labels that are no numbers.

    Example:
        >>> top1(np.array([1, 0]))(np.array([[0.1, 0.9], [0.2, 0.8]]))
        0.5
    """
    labels, right = _numbers(labels), right_answers(labels)

    def accuracy(outputs: Any) -> float:
        return float(np.mean(right(outputs)))

    accuracy.__dict__["judged_by"] = fingerprint([labels])  # folders of searches by other labels are refused
    accuracy.__dict__["right"] = right  # two models are compared sample by sample (`by_chance`)
    return accuracy


def right_answers(labels: np.ndarray) -> Callable[[Any], np.ndarray]:
    """Which samples are right as `top1` counts them: a function of outputs that gives bool[samples].

    Args:
        labels: see `top1`.

    Raises:
        ValueError: as `top1`; what it returns refuses the same outputs.

    Example:
        >>> right_answers(np.array([1, 0]))(np.array([[0.1, 0.9], [0.2, 0.8]])).tolist()
        [True, False]
    """
    labels = _numbers(labels)

    def right(outputs: Any) -> np.ndarray:
        if isinstance(outputs, list) or np.ndim(outputs) not in (1, 2) or len(outputs) > len(labels):
            shape = [np.shape(o) for o in outputs] if isinstance(outputs, list) else np.shape(outputs)
            raise ValueError(
                "accuracy: expected one output, [samples, classes] or an argmax's [samples], and a label for each "
                f"sample. Received: outputs {shape}, {len(labels)} labels."
            )
        used, (classes, count) = labels[: len(outputs)], _classes(np.asarray(outputs))
        _refuse_labels(used, count)
        return np.asarray(classes == used)

    return right


def _numbers(labels: np.ndarray) -> np.ndarray:
    """The class of each sample, of any form that `top1` takes."""
    given = np.asarray(labels)
    if given.dtype.kind not in "iufb":
        raise ValueError(
            f"accuracy: labels are the numbers of the classes, from 0. Received: dtype {given.dtype}. Of names, "
            "np.unique(names, return_inverse=True)[1] makes numbers, in alphabetical order."
        )
    return given.argmax(axis=1) if given.ndim == 2 and given.shape[1] > 1 else given.reshape(-1)


def top1_of(data: Any, labels: np.ndarray) -> Callable[[Any], float]:
    """`top1` of a Keras model's outputs, for verbs that take `evaluate`.

    Args:
        data: samples: an array, or a list of them for several inputs.
        labels: see `top1`.
    """
    metric = top1(labels)

    def accuracy(model: Any) -> float:
        return metric(model.predict(data, verbose=0))

    arrays = data if isinstance(data, list) else [data]
    accuracy.__dict__["judged_by"] = fingerprint([*arrays, np.asarray(labels)])
    return accuracy


def _classes(outputs: np.ndarray) -> tuple[np.ndarray, int | None]:
    """The class of each sample, and how many there are; None where positions of an argmax do not tell."""
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        return outputs.argmax(axis=1), outputs.shape[1]
    column = outputs.reshape(-1)
    # probabilities of class 1 that are all 0 or 1 say the same either way
    return (column, None) if np.array_equal(column, np.rint(column)) else ((column > 0.5).astype(int), 2)


def _refuse_labels(labels: np.ndarray, count: int | None) -> None:
    """Refuse what is no number of a class.

    Args:
        labels: of the samples that are judged.
        count: of classes, where it is known.

    Raises:
        ValueError: fractions, or numbers out of the range.
    """
    if not np.array_equal(labels, np.rint(labels)):
        fraction = labels[labels != np.rint(labels)][0]
        raise ValueError(
            f"accuracy: labels are the numbers of the classes, from 0. Received: {fraction}. Give whole numbers, or "
            "one-hot rows [samples, classes]; for what is no class, a metric of your own."
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < (np.inf if count is None else count):
        told = "classes are counted from 0" if count is None else f"the model has {count} classes, 0 to {count - 1}"
        raise ValueError(
            f"accuracy: {told}. Received: labels from {labels.min()} to {labels.max()}. Count them from 0, and give "
            "those of these very samples."
        )


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


def name_of(metric: Callable[[Any], float] | None) -> str:
    """What reports call a metric.

    Args:
        metric: of outputs, or None.

    Example:
        >>> name_of(top1(np.array([1, 0]))), name_of(None)
        ('accuracy', 'SQNR in dB')
    """
    return "SQNR in dB" if metric is None else getattr(metric, "__name__", type(metric).__name__)


def judged(metric: Callable[[Any], float], outputs: Any) -> float:
    """What a metric says of outputs.

    Args:
        metric: a user's.
        outputs: of the model, for all samples: an array, or a list of them.

    Raises:
        ValueError: whatever it raises, with the shapes that it was given; or it returns no number.
    """
    shapes = " and ".join(str(np.shape(y)) for y in (outputs if isinstance(outputs, list) else [outputs]))
    name = name_of(metric)
    try:
        value = metric(outputs)
    except Exception as error:  # whatever a user's function raises
        failed = ValueError(
            f"metric '{name}' failed on outputs of shape {shapes}: {type(error).__name__}: {error} It is given the "
            "outputs for all samples, in their order; compare them with labels of these very samples."
        )
        raise of_caller(failed) from error
    number = number_of(value)
    if number is None:
        said = f"metric '{name}': expected a number for outputs of shape {shapes}. Received: {shown(value)}."
        raise of_caller(ValueError(said))
    return number
