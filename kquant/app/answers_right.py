"""Share of right answers of a file and of its model, for commands that run them on samples with labels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import typer

from kquant.analysis.metrics import right_answers
from kquant.exporting.model_card import margin


def accuracies(labels: np.ndarray, outputs: dict[str, Any]) -> dict[str, float]:
    """Share of right answers, 0 to 1.

    Args:
        labels: int[samples], the classes of those very samples.
        outputs: of the samples, by who gave them.

    Raises:
        ValueError: outputs that are no classes, or another number of labels than of samples.

    Example:
        >>> accuracies(np.array([1, 0]), {"file": np.array([[0.1, 0.9], [0.2, 0.8]])})
        {'file': 0.5}
    """
    right = right_answers(labels)
    alone = {who: y[0] if isinstance(y, list) and len(y) == 1 else y for who, y in outputs.items()}
    for who, y in alone.items():
        if not isinstance(y, list) and len(y) != len(labels):
            raise ValueError(
                f"accuracy: expected a label for each of {len(y):,} samples of the {who}. Received: {len(labels):,} "
                "labels. Give the class of each of those very samples."
            )
    return {who: float(np.mean(right(y))) for who, y in alone.items()}


def say_accuracies(shares: dict[str, float], samples: int, runtime: str) -> None:
    """Print them in percent, with what other samples of that number would make of them.

    Args:
        shares: see `accuracies`.
        samples: how many were answered.
        runtime: that ran the file.
    """
    told = ", ".join(f"{who} {100 * s:.1f} % (+- {100 * margin(s, samples):.1f})" for who, s in shares.items())
    typer.echo(f"accuracy  {told} ({runtime}, {samples:,} samples)")


def with_accuracies(plain: str, shares: dict[str, float]) -> str:
    """JSON of a result with them in it, under "accuracy".

    Args:
        plain: the result.
        shares: see `accuracies`; empty: the result as it is.

    Raises:
        ValueError: the result has something of that name.
    """
    if not shares:
        return plain
    result = json.loads(plain)
    if "accuracy" in result:
        raise ValueError("predict: an output is called 'accuracy'; leave --json out, and write outputs with --path.")
    return json.dumps({"accuracy": shares, **result})
