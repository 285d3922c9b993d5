"""`StepMask`: which steps of a sequence are real, as Keras' masks say it, in a tensor that layers are given.

Keras hands masks on beside the tensors; a graph has them as tensors (`unfold`), so that what reads one is an ordinary
call: `LSTM(x, mask=StepMask(x))`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kquant.graph.keras_private import mask_of

K = keras.ops


@keras.saving.register_keras_serializable(package="kquant")
class StepMask(keras.layers.Layer):
    """1 at the steps that a Masking or Embedding(mask_zero=True) layer keeps, 0 at those that it leaves out.

    Args:
        value: what a step that is left out holds.
        features: it holds that in every feature (the last axis); else each number is a step of its own (indices).

    Example:
        >>> StepMask()(np.float32([[[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]])).numpy().tolist()
        [[1.0, 1.0, 0.0]]
        >>> StepMask(features=False)(np.array([[4, 7, 0]])).numpy().tolist()
        [[1.0, 1.0, 0.0]]
    """

    def __init__(self, value: float = 0.0, features: bool = True, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.value, self.features = float(value), bool(features)
        self.trainable = False

    def call(self, x: Any, encoding: Any = None, codes: Sequence[int] = ()) -> Any:
        """Compare; by codes where `x` has some."""
        real = is_other(x, self.value, encoding, codes)
        return K.cast(K.any(real, axis=-1) if self.features else real, "float32")

    def compute_output_spec(self, x: keras.KerasTensor, **_: Any) -> keras.KerasTensor:
        """Without the features."""
        return keras.KerasTensor(x.shape[:-1] if self.features else x.shape, "float32")

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "value": self.value, "features": self.features}


def is_other(x: Any, value: float, encoding: Any = None, codes: Sequence[int] = ()) -> Any:
    """Where `x` is not `value`; of a tensor on a grid, where its code is not the one that `value` gets.

    A value beyond the grid gets the code at its end.

    Args:
        x: float[...], on the grid, if there is one.
        value: the number.
        encoding: float32[2], scale and zero point of the grid; zeros where `x` is not on it.
        codes: the lowest and the highest of the grid.

    Example:
        >>> x, encoding = np.float32([-2.0, -1.5, 0.5]), np.float32([0.5, 124.0])
        >>> is_other(x, -999.0).numpy().tolist(), is_other(x, -999.0, encoding, (-128, 127)).numpy().tolist()
        ([True, True, True], [True, True, True])
        >>> is_other(x, -2.1, encoding, (-128, 127)).numpy().tolist()
        [False, True, True]
    """
    plain = K.not_equal(x, K.cast(value, x.dtype))
    if encoding is None:
        return plain
    scale: Any = K.where(encoding[0] > 0.0, encoding[0], 1.0)
    zero_point = encoding[1]
    # As the file does it: the value is a constant with a code, and codes are compared.
    code = K.clip(K.round(np.float32(value) / scale) + zero_point, *map(float, codes))
    # On the grid, values of other codes are a whole step away; half of one leaves room for what float rounds.
    apart = K.abs(K.cast(x, "float32") - (code - zero_point) * scale) > 0.5 * scale
    return K.where(encoding[0] > 0.0, apart, plain)


def makes_mask(op: Any) -> bool:
    """True for the layers of Keras that say which steps are real.

    Example:
        >>> makes_mask(keras.layers.Masking()), makes_mask(keras.layers.Embedding(9, 2))
        (True, False)
    """
    return isinstance(op, keras.layers.Masking) or bool(getattr(op, "mask_zero", False))


def mask_made_by(op: Any) -> StepMask:
    """The mask of such a layer, to be called with what the layer reads."""
    if isinstance(op, keras.layers.Masking):
        return StepMask(op.mask_value, name=f"{op.name}_mask")
    return StepMask(features=False, name=f"{op.name}_mask")


def compared_with(op: Any, args: tuple) -> tuple[keras.KerasTensor, float] | None:
    """`(x, value)` of the operation `x != value`, where that is one number."""
    if type(op).__name__ != "NotEqual" or isinstance(op, keras.layers.Layer) or len(args) != 2:
        return None
    x, value = args
    if not isinstance(x, keras.KerasTensor) or isinstance(value, keras.KerasTensor) or np.size(value) != 1:
        return None
    return x, float(np.asarray(K.convert_to_numpy(value)).reshape(()))


def step_mask_of(
    op: Any, args: tuple, compared: dict[int, tuple[keras.KerasTensor, float]]
) -> tuple[StepMask, keras.KerasTensor] | None:
    """The mask that an operation computes and what it reads, where that is one; `compared` holds what went before."""
    comparison = compared_with(op, args)
    if comparison is not None and "int" in comparison[0].dtype and len(comparison[0].shape) == 2:
        return StepMask(comparison[1], features=False, name=op.name), comparison[0]
    whole = type(op).__name__ == "Any" and not getattr(op, "keepdims", False)
    comparison = compared.get(id(args[0])) if whole and args else None
    if comparison is None or op.axis not in (-1, [-1], (-1,)):
        return None
    return StepMask(comparison[1], name=op.name), comparison[0]


def reads_mask(op: Any) -> bool:
    """Layers that compute something else where their input is masked; batch norms do in training only.

    Example:
        >>> reads_mask(keras.layers.LSTM(2)), reads_mask(keras.layers.Dense(2))
        (True, False)
    """
    if isinstance(op, keras.layers.TimeDistributed):  # hands each step's on to the layer inside
        return reads_mask(op.layer)
    names = inspect.signature(op.call).parameters
    reads = any(name == "mask" or name.endswith("_mask") for name in names)
    return reads and not isinstance(op, keras.layers.BatchNormalization)


def is_handed_on(node: Any, name: str) -> bool:
    """True for the mask of a recorded call, under this name, that Keras took from the call's inputs itself."""
    if name != "mask" and not name.endswith("_mask"):
        return False
    # `Layer.__call__` puts such a mask into the recorded arguments, where it looks like one that the user gave.
    own = {id(mask_of(t)) for t in node.input_tensors}
    given = [t for t in keras.tree.flatten(node.arguments.kwargs[name]) if t is not None]
    return all(id(t) in own for t in given)


def combined(op: Any, inputs: Any, masks: Any) -> Any:
    """`op.compute_mask`, in fewer operations where masks meet along the features."""
    if isinstance(op, keras.layers.Concatenate) and op.axis in (-1, len(inputs[0].shape) - 1):
        # Keras fills a missing mask with ones as wide as the features, joins all along them and takes `any`.
        if any(m is None for m in masks):
            return None  # a step counts that one of the inputs has, and this one has all
        return functools.reduce(_either, masks)
    of_merge = type(op).compute_mask is keras.layers.Add.compute_mask  # of a class that Keras does not export
    if of_merge and all(m is not None for m in masks):
        return functools.reduce(_either, masks)
    if type(op).compute_mask is keras.layers.Attention.compute_mask and masks is not None:
        return masks[0]  # of the query, of which Keras makes a tensor once more
    return op.compute_mask(inputs, masks)


def _either(a: keras.KerasTensor, b: keras.KerasTensor) -> Any:
    return a if a is b else K.logical_or(a, b)
