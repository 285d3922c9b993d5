"""Metrics for `kquant.analyze`: functions of the outputs, higher is better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def top1(labels: np.ndarray) -> Callable[[Any], float]:
    """Share of samples whose largest output is that of their class.

    Args:
        labels: int[samples], in the order of the samples; those beyond the analyzed ones are left out.

    Returns:
        A metric; it refuses outputs that are not float[samples, classes].

    Example:
        >>> top1(np.array([1, 0]))(np.array([[0.1, 0.9], [0.2, 0.8]]))
        0.5
    """

    def accuracy(outputs: Any) -> float:
        if isinstance(outputs, list) or np.ndim(outputs) != 2 or len(outputs) > len(labels):
            shape = [np.shape(o) for o in outputs] if isinstance(outputs, list) else np.shape(outputs)
            raise ValueError(
                f"accuracy: expected one output [samples, classes] and a label for each sample. Received: outputs "
                f"{shape}, {len(labels)} labels."
            )
        # a single output is the probability of class 1
        classes = outputs.argmax(axis=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0.5).astype(int)
        return float(np.mean(classes == labels[: len(outputs)]))

    return accuracy
