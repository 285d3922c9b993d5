"""`Kernel`: one weight of a layer that can be masked, shared, quantized, rounded, counted and written.

    for holder in holders(model):            # `Transformed`, `Compressed`, `QuantizedLSTM`, and what comes after them
        for kernel in holder.kernels():
            kernel.raw  ->  transforms  ->  kernel.used  ->  spec, scale  ->  kernel.on_grid

A stage that works on weights iterates these and names no class of layer: a layer with two matrices of four gates, a
table of an Embedding and the halves of a separable convolution look the same to it. A new layer with weights subclasses
`Holder` and answers its questions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.core.spec import QuantSpec
from kquant.graph.keras_private import every_layer, growing
from kquant.layers import transform as kernels
from kquant.layers.provenance import NOWHERE, Provenance
from kquant.layers.transform import Transform


class Holder(ABC):
    """What a layer that holds another one's kernels answers of each, by its path in that layer (`kernel_at`).

    Attributes:
        layer: the Keras layer inside.
        spec: grid of the weights; None where they stay float.
        storage: how a file keeps the weights: "integer", "float16", "float32", "dequantized".
        channel_axes: of a kernel, those that number the output channels; None where its scales are not those of
            channels.
        input_bits: of the codes that the weights are multiplied with.
        origin: how the model was made: recipe, target.
    """

    layer: Any
    name: str
    trainable: bool
    spec: QuantSpec | None = None
    storage: str = "integer"
    channel_axes: tuple[int, ...] | None = None
    input_bits: int = 8
    origin: Provenance = NOWHERE

    def kernels(self) -> tuple[Kernel, ...]:
        """Its kernels, in order."""
        return tuple(Kernel(self, path) for path in self.kernel_paths())

    @abstractmethod
    def kernel_paths(self) -> tuple[str, ...]:
        """Where they are."""

    @abstractmethod
    def transforms_of(self, path: str) -> list[Transform]:
        """Masks and codebooks of a kernel, in the order in which they act."""

    @abstractmethod
    def set_transforms(self, path: str, transforms: Sequence[Transform]) -> None:
        """Put others in their place, built already."""

    @abstractmethod
    def transform_by(self, transform: Transform, path: str | None = None) -> None:
        """Add a transform, built and started here if it is not yet; of every kernel (copies of it), or of one."""

    @abstractmethod
    def weights_as_used(self, path: str) -> tf.Tensor:
        """float32, after transforms and gains."""

    def weights_on_grid(self, path: str) -> tf.Tensor:
        """float32, on the grid, where there is one."""
        return self.weights_as_used(path)

    def scales(self, path: str) -> tf.Tensor | None:
        """float32, shaped to broadcast against `rows` of the kernel: [rows, 1] or [1, 1]; None without codes."""
        return None

    def rows(self, path: str, values: tf.Tensor) -> np.ndarray:
        """float64[rows, n]: what shares a scale (or would, per axis), a row for each: channels, or gates; else one."""
        return np.asarray(values, np.float64).reshape(1, -1)

    def bias_as_used(self) -> tf.Tensor | None:
        """float32[channels], the bias with what a correction added; None where the layer inside has the last word."""
        return None

    def biases(self) -> int:
        """Numbers of 32 bits that the file adds to its sums."""
        return 0

    def takes(self, name: str) -> bool:
        """True where a correction ("reach", "shift", "rounding") has something to set."""
        return False

    def learn(self, learning: dict[str, Any]) -> None:
        """Train the weights so (`Training.for_weights`); before the layer is built.

        Raises:
            ValueError: this layer knows one way only, straight through on the range of the weights.
        """
        if learning:
            asked = ", ".join(sorted(learning))
            raise ValueError(f"{self.name}: its weights cannot train as [training] asks ({asked}); leave that out.")

    def tensors_inside(self) -> dict[str, tuple[Any, np.ndarray]]:
        """What -> the `FakeQuant` of a tensor that never leaves the layer, and its scale as the device has it."""
        return {}


@dataclass(frozen=True, eq=False)
class Kernel:
    """One of a holder's kernels. Values are computed when they are asked for.

    Attributes:
        holder: the layer around the Keras layer.
        path: of the kernel in that layer: "kernel", "cell.recurrent_kernel".
    """

    holder: Any
    path: str

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.holder.name} ({self.path})"

    @property
    def variable(self) -> keras.Variable:
        """What trains."""
        return kernels.kernel_at(self.holder.layer, self.path)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the variable."""
        return tuple(int(n) for n in self.variable.shape)

    @property
    def trains(self) -> bool:
        """False in a frozen layer; a quantized model's wrapper around one trains all the same, so its kernel tells."""
        return bool(self.holder.trainable and self.variable.trainable)

    @property
    def transforms(self) -> list[Transform]:
        """Masks and codebooks, in the order in which they act."""
        return self.holder.transforms_of(self.path)

    @property
    def raw(self) -> tf.Tensor:
        """float32, before the transforms."""
        return kernels.real(self.holder.layer, self.path)

    @property
    def transformed(self) -> tf.Tensor:
        """float32, after the transforms, before the gain of a folded batch norm."""
        return kernels.apply(self.transforms, self.raw)

    @property
    def used(self) -> tf.Tensor:
        """float32, what is quantized."""
        return self.holder.weights_as_used(self.path)

    @property
    def on_grid(self) -> tf.Tensor:
        """float32, as the codes hold it; `used` where it stays float."""
        return self.holder.weights_on_grid(self.path)

    @property
    def rows(self) -> np.ndarray:
        """float64[rows, n] of `used`: see `Holder.rows`."""
        return self.holder.rows(self.path, self.used)

    @property
    def rows_on_grid(self) -> np.ndarray:
        """float64[rows, n] of `on_grid`."""
        return self.holder.rows(self.path, self.on_grid)

    @property
    def scale(self) -> tf.Tensor | None:
        """float32[rows, 1] or [1, 1], along `rows`; None where the weights have no codes."""
        return self.holder.scales(self.path)

    def transform_by(self, transform: Transform) -> None:
        """Put one more transform on the kernel."""
        self.holder.transform_by(transform, self.path)

    def replace_by(self, transform: Transform) -> None:
        """Put a transform, started from the kernel itself, in the place of those of its class."""
        rest = [t for t in self.transforms if not isinstance(t, type(transform))]
        transform.build(self.shape)
        # Of the kernel itself: what it takes the place of must not show in the new one.
        transform.start(self.raw)
        with growing(self.holder):
            self.holder.set_transforms(self.path, rest)
            self.transform_by(transform)


def holders(model: keras.Model) -> list[Any]:
    """The layers of a model that hold kernels, in its order."""
    return [layer for layer in every_layer(model) if isinstance(layer, Holder)]


def has_codes(op: Any) -> bool:
    """True for a layer that holds kernels which are integers in the file."""
    return isinstance(op, Holder) and op.spec is not None and op.spec.has_codes
