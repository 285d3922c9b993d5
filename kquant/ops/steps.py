"""TimeDistributed: the same layer for every step. Where it works on the last axis only, on all steps at once."""

from __future__ import annotations

from typing import Any

import keras

from kquant.graph.copies import again, copy_state
from kquant.ops.index import reshaped, stacked, unstacked
from kquant.ops.rule import Make, Rule, example

layers = keras.layers
MOST_STEPS = 64  # each step is a layer call of its own in the file
LAST_AXIS = (
    layers.Dense,
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Dropout,
    layers.Identity,
    layers.Rescaling,
    layers.GaussianNoise,
    layers.GaussianDropout,
)


def _copied(layer: Any, shape: Any) -> Any:
    """The wrapped layer with weights of its own, built for this shape."""
    new = again(layer)
    if not new.built:
        new.build(shape)
    copy_state(layer, new)
    return new


def _distributed(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    inner, steps, shape = op.layer, x.shape[1], x.shape[1:]
    # The very class: what a user derived from it may look at more than the last axis.
    if any(type(inner) is cls for cls in LAST_AXIS):
        return make("all", lambda: _copied(inner, x.shape))(x)
    if type(inner) is layers.Flatten or type(inner) is layers.Reshape:
        # Moving values within each step is moving them within the whole tensor.
        wanted: Any = inner.compute_output_shape((x.shape[0], *shape[1:]))[1:]
        return reshaped(make, x, (steps, *wanted), op.name)
    if steps > MOST_STEPS:
        raise ValueError(
            f"{op.name} (TimeDistributed): {type(inner).__name__} on {steps} steps would be written {steps} times; "
            f"{MOST_STEPS} are the limit. Run the inner model alone for each step in the application, or write it with "
            "one dimension more (Conv2D over [1, width] windows instead of TimeDistributed(Conv1D))."
        )
    rows = unstacked(make, x, 1, op.name)
    # One key, one layer: all steps share its weights, and the file stores them once.
    results = [make("step", lambda: _copied(inner, (None, *shape[1:])))(row) for row in rows]
    return stacked(make, results, 1, op.name)


def _inner_model() -> Any:
    inner = [keras.Input((6, 3)), layers.Conv1D(4, 3, activation="relu"), layers.BatchNormalization()]
    return keras.Sequential([*inner, layers.GlobalAveragePooling1D()], name="inner")


RULES = (
    Rule(
        layers=(layers.TimeDistributed,),
        expand=_distributed,
        examples=(
            example(lambda: layers.TimeDistributed(layers.Dense(4, activation="relu")), shape=(3, 5)),
            example(lambda: layers.TimeDistributed(layers.Conv2D(2, 2)), shape=(3, 4, 4, 2)),
            example(
                lambda: layers.TimeDistributed(layers.Flatten()),
                lambda: layers.TimeDistributed(layers.Dense(3)),
                shape=(3, 2, 4),
            ),
            example(lambda: layers.TimeDistributed(_inner_model()), shape=(3, 6, 3)),
        ),
    ),
)
