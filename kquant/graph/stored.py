"""Constants and variables of a model as tensors of its graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np


@keras.saving.register_keras_serializable(package="kquant")
class Stored(keras.layers.Layer):
    """A constant or variable of the model as a tensor of the graph; the values it is called with do not matter.

    Args:
        shape: without batch axis; the value is the same for every sample.
        trains: False for what is a constant in the model.
        repeated: the value once for every sample, as a concatenation needs it; else once, with a leading 1.

    Example:
        >>> layer = stored_layer(np.float32([[1.0], [2.0]]), "rows")
        >>> layer(np.zeros((5, 2, 3), "float32")).numpy().tolist()
        [[[1.0], [2.0]]]
    """

    def __init__(self, shape: Sequence[int], trains: bool = False, repeated: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape, self.trains, self.repeated = tuple(int(n) for n in shape), trains, repeated
        self.value = self.add_weight(name="value", shape=self.shape, initializer="zeros", trainable=trains)
        self.built = True

    def call(self, x: Any) -> Any:
        """The value with a leading 1, which broadcasts over the batch, or with the batch of `x`."""
        value = keras.ops.expand_dims(keras.ops.convert_to_tensor(self.value), 0)
        shape: Any = keras.ops.shape(x)
        return keras.ops.broadcast_to(value, (shape[0], *self.shape)) if self.repeated else value

    def compute_output_spec(self, x: Any) -> Any:
        """As if there were one value for each sample."""
        return keras.KerasTensor((None, *self.shape), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        config = {"shape": list(self.shape), "trains": self.trains, "repeated": self.repeated}
        return {**super().get_config(), **config}


def stored_layer(value: Any, name: str, trains: bool = False, repeated: bool = False) -> Stored:
    """A `Stored` that holds `value` (float[...], without batch axis).

    Raises:
        ValueError: NaN or Inf among the values.
    """
    array = np.asarray(value, np.float32)
    refuse_infinite(name, array)
    layer = Stored(array.shape, trains, repeated, name=name)
    layer.value.assign(array)
    return layer


def refuse_infinite(name: str, *values: Any) -> None:
    """A constant without a code.

    Raises:
        ValueError: NaN or Inf among the values.
    """
    if not all(np.all(np.isfinite(np.asarray(value, np.float64))) for value in values):
        raise ValueError(
            f"{name}: a constant of the model holds NaN or Inf (a division by 0 makes one, too), which no integer "
            "stands for. Compute it so that it is finite."
        )
