"""What every verb that makes another model asks of the one that it is given."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.core.messages import warn

STEPS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")


def check_finite(model: keras.Model) -> None:
    """Refuse weights that are no numbers; metrics may hold such.

    Args:
        model: any built Keras model.

    Raises:
        ValueError: names the variable.

    Example:
        >>> check_finite(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    """
    for variable in model.weights:
        if "float" in variable.dtype and not np.all(np.isfinite(variable.numpy())):
            raise ValueError(f"{model.name}: variable '{variable.path}' holds NaN or Inf; restore a good checkpoint.")


def warn_lost_steps(model: keras.Model, new: keras.Model, verb: str) -> None:
    """Name what a class of the user's does in `fit` and the new model, which is of Keras' class, does not.

    Args:
        model: the given one.
        new: made of it.
        verb: that made it, called by the user and calling this.
    """
    if type(model).__module__.startswith("kquant."):
        return
    lost = [name for name in STEPS if _method(model, name) is not _method(new, name)]
    if lost:
        kind, named = type(model).__name__, ", ".join(lost)
        warn(
            f"{verb}: {kind} has {named} of its own, and the new model, a {type(new).__name__}, does not: fit would "
            f"train it in Keras' way. Write {named} in a class around the result, class Own(keras.Model), and train "
            "own = Own(new.inputs, new.outputs): the two are one set of weights (docs/training.md)."
        )


def _method(model: Any, name: str) -> Any:
    """The function behind a method, also one that was put into the model itself."""
    found = getattr(model, name)
    return getattr(found, "__func__", found)
