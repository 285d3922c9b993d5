"""What happens to a kernel before it is used: masks (pruning), codebooks (clustering).

    float model        y = layer(x, kernel = t2(t1(kernel)))               `Transformed`
    quantized model    y = layer(x, kernel = q(gain * t2(t1(kernel))))     `Compressed`, `QuantizedLSTM`

A transform is a small Keras layer with variables of its own, so that it saves, loads and trains with the model. It
sees the kernel that trains, before the gain of a folded batch norm, and keeps what it promised (zeros, shared values)
through folding and quantization: each channel is then multiplied by one number and rounded by one rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.graph.keras_private import variable_of
from kquant.graph.precision import full_precision

NEAR = 1e-6  # a kernel that batch norms scaled and that is scaled back differs by some roundings


class Transform(keras.layers.Layer):
    """One thing that is done to a kernel.

    Subclasses are registered with Keras, keep all arguments in their config, make variables in `build(kernel_shape)`,
    and say where they stand: transforms of one kernel run in the order of `rank` (masks 0, codebooks 1).

    Attributes:
        rank: see above.
        shares: True where weights have values in common, which a correction of single weights would pull apart.
    """

    rank = 0
    shares = False

    def __init__(self, **kwargs: Any) -> None:
        kwargs["dtype"] = "float32"
        super().__init__(autocast=False, **{k: v for k, v in kwargs.items() if k != "autocast"})

    def start(self, weights: tf.Tensor) -> None:
        """Set the first state from a kernel, float32 like it; called once, before training."""

    def advance(self, weights: tf.Tensor) -> None:
        """Move the state on by one training step; called in graphs, with the kernel before this transform."""

    def charge(self, weights: tf.Tensor) -> tf.Tensor | None:
        """float32[], what the kernel before this transform adds to the loss of a training step; None: nothing."""
        return None

    def call(self, weights: tf.Tensor) -> tf.Tensor:
        """float32 like the kernel; differentiable."""
        return weights

    def carried(self) -> Transform | None:
        """What goes on in a quantized model in its place, where that is not a clone of it."""
        return None

    def derived(self, kernel: np.ndarray) -> Transform | None:
        """What keeps its promise for a kernel that was made of this one's values (a reshape, a slice), if anything."""
        return None


@dataclass(frozen=True, eq=False)
class Held:
    """What a kernel of a float model had, while the model is taken apart.

    Attributes:
        values: float32, the kernel as it was used.
        transforms: masks and codebooks, in order.
    """

    values: np.ndarray
    transforms: list[Transform]

    def share_of(self, kernel: np.ndarray) -> float:
        """Share of another kernel's weights that are weights of this one: 1 for a slice of it. Zeros tell nothing."""
        # `np.unique` sorts: the value nearest to one that is asked for stands on either side of its place.
        known, asked = np.unique(self.values), kernel[kernel != 0.0]
        places = np.searchsorted(known, asked)
        nearest = (known[np.clip(places + side, 0, known.size - 1)] for side in (-1, 0))
        is_known = np.logical_or(*(np.abs(value - asked) <= NEAR * np.abs(asked) for value in nearest))
        return float(np.mean(is_known)) if asked.size else 1.0


# layer name -> path of a kernel -> what it had
Carried = dict[str, dict[str, Held]]


def in_order(transforms: Sequence[Any]) -> list[Transform]:
    """Transforms, or their configs, as layers in the order in which they act."""
    made = [t if isinstance(t, Transform) else keras.saving.deserialize_keras_object(t) for t in transforms]
    # Stable: transforms of one rank stay in the order in which they came.
    return sorted(made, key=lambda t: t.rank)


def configs(transforms: Sequence[Transform]) -> list[Any]:
    """For a layer's config."""
    return [keras.saving.serialize_keras_object(t) for t in transforms]


def apply(transforms: Sequence[Transform], weights: tf.Tensor) -> tf.Tensor:
    """The kernel as it is used: float32 of float32."""
    for transform in transforms:
        weights = transform.call(weights)
    return weights


def advance(transforms: Sequence[Transform], weights: tf.Tensor) -> None:
    """One training step of every state, in order."""
    for transform in transforms:
        transform.advance(tf.stop_gradient(weights))
        charged = transform.charge(weights)
        if charged is not None:
            transform.add_loss(charged)
        weights = transform.call(weights)


def freeze(layer: keras.layers.Layer) -> None:
    """Train nothing in it, whatever was built after it was frozen: Keras passes on a change alone."""
    # `KerasAutoTrackable.__setattr__` of the TensorFlow backend returns early where an attribute has the value already:
    # False alone would not get to the setter, which goes down to the variables.
    layer.trainable = True
    layer.trainable = False


def clone(transform: Transform) -> Transform:
    """The same transform with variables of its own."""
    new = type(transform).from_config(transform.get_config())
    if transform.built:
        config: Any = transform.get_build_config()  # of a built layer it is a dict
        new.build(config["input_shape"])
        for old, fresh in zip(transform.variables, new.variables, strict=True):
            fresh.assign(old)
    return new


def kernel_at(layer: keras.layers.Layer, path: str) -> Any:
    """A layer's variable by name; "cell.kernel" is the kernel of its cell, "cells.0.kernel" of the first of several.

    Raises:
        AttributeError: there is none.
    """
    *owners, name = path.split(".")
    for owner in owners:
        layer = layer[int(owner)] if owner.isdigit() else getattr(layer, owner)
    return variable_of(layer, name)


def real(layer: keras.layers.Layer, path: str) -> tf.Tensor:
    """A variable's value as float32."""
    with full_precision():
        return tf.cast(tf.convert_to_tensor(kernel_at(layer, path)), tf.float32)


def run_with(
    layer: keras.layers.Layer,
    values: Mapping[str, tf.Tensor],
    call: Callable,
    *args: Any,
    add_loss: Callable[[tf.Tensor], None] | None = None,
    **kwargs: Any,
) -> Any:
    """Call a layer with other values for some of its variables, given by path; gradients reach those values.

    What the call assigns to others (seeds, states of a stateful layer) is kept; `add_loss` gets the losses that it
    adds (activity regularizers), which Keras drops otherwise.
    """
    with full_precision():
        # All of them, not only those with other values: Keras asks the innermost scope alone, so that one around would
        # be passed over. And under full precision, since a scope hands out, and later assigns, what it was given.
        mapping = {id(v): (v, v.value) for v in layer.variables}
    replaced = {id(kernel_at(layer, path)): (kernel_at(layer, path), value) for path, value in values.items()}
    state = list((mapping | replaced).values())
    with keras.StatelessScope(state_mapping=state, collect_losses=add_loss is not None) as scope:
        result = call(*args, **kwargs)
    if add_loss is not None:
        for loss in scope.losses:
            add_loss(loss)
    for key, (variable, old) in mapping.items():
        new = scope.get_current_value(variable)
        # By identity: an assignment puts another tensor there, even of the same value.
        if key not in replaced and new is not old:
            variable.assign(new)
    return result
