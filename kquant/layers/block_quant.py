"""`BlockQuant`: quantize and dequantize a tensor in blocks whose scales are made of the values at each call.

    x [samples, ..., channels]  ->  blocks of 32 channels  ->  scale = 2^(floor(log2 max|x|) - largest exponent)

The activations of OCP MX. Nothing is calibrated, and no encoding travels beside the tensor: what reads it computes with
the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from kquant.layers.fake_quant import Ahead, FakeQuant
from kquant.layers.modes import is_float
from kquant.layers.range_steps import Ends
from kquant.layers.straight_through import rounded_in_blocks


@keras.saving.register_keras_serializable(package="kquant")
class BlockQuant(FakeQuant):
    """Quantize and dequantize a tensor whose `spec` has a block and a floating-point kind.

    Tensors whose encoding a kernel prescribes, and those that follow another, are rounded anew like any other: blocks
    have no numbers that could be prescribed. In training what a kernel prescribes passes as it is, as in `FakeQuant`.

    Args: those of `FakeQuant`, of which `sites`, `momentum`, `observer` and others about ranges say nothing here.
    """

    @property
    def has_range(self) -> bool:
        """False: the scales are those of the values."""
        return False

    def is_seen(self, encodings: Sequence[tf.Tensor] = ()) -> bool:
        """True: there is nothing to see."""
        return True

    def ahead(self, encodings: Sequence[tf.Tensor] = (), training: bool = False, size: int = 1) -> Ahead:
        """What a call does to a tensor: see `FakeQuant.ahead`."""
        if is_float(self) or (training and self.fixed is not None):
            return Ahead(tf.zeros(2), lambda y: y)
        return Ahead(tf.zeros(2), lambda y: rounded_in_blocks(y, self.spec))

    def grid(self, encodings: Sequence[tf.Tensor] = ()) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """No scale that could be told of the whole tensor: 1 and 0, from no data."""
        return tf.constant(1.0), tf.constant(0.0), tf.constant(False)

    def _in_training(
        self, y: tf.Tensor, encodings: Sequence[tf.Tensor], site: int, from_zero: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return (y, tf.zeros(2)) if self.fixed is not None else self._rounded(y, encodings)

    def _rounded(
        self, y: tf.Tensor, encodings: Sequence[tf.Tensor], moved: Ends | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        return rounded_in_blocks(y, self.spec), tf.zeros(2)


def quantizer_of(spec: Any) -> type[FakeQuant]:
    """The class that quantizes tensors of a grid.

    Args:
        spec: `QuantSpec` of them.
    """
    return BlockQuant if spec.block else FakeQuant
