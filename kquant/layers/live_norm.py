"""`LiveNorm`: a batch norm inside a layer with quantized weights, which normalises by the batch while the model trains.

    weights   q(w f), f = gamma / sqrt(moving variance + epsilon)            what the file holds, in training as well
    training  y = layer(x, q(w f) / f)       gamma (y - mean(y)) / sqrt(variance(y) + epsilon) + beta
    frozen    the same with the moving statistics: layer(x, q(w f)) + beta - moving mean f
    else      as frozen, in integers

The grid follows the moving variance, so that it does not jump from batch to batch. Source: Krishnamoorthi,
arXiv:1806.08342, section 3.2.2; with one pass instead of two, as the layer is linear in its weights.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="kquant")
class LiveNorm(keras.layers.Layer):
    """Scale, offset and moving statistics of a batch norm over the last axis.

    Args:
        channels: of the layer's output.
        epsilon: added to the variance.
        momentum: of the moving statistics.
        scale: gamma trains.
        center: beta trains.
        freeze_after: training steps after which the moving statistics are used and stay; None: never.
    """

    def __init__(
        self,
        channels: int,
        epsilon: float,
        momentum: float,
        scale: bool = True,
        center: bool = True,
        freeze_after: int | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs["dtype"] = "float32"
        super().__init__(autocast=False, **{k: v for k, v in kwargs.items() if k != "autocast"})
        self.channels, self.epsilon, self.momentum = int(channels), float(epsilon), float(momentum)
        self.scale, self.center, self.freeze_after = scale, center, freeze_after
        self.counter: Any = None  # while `kquant.reestimate` counts: takes (values, mean, variance) of each batch
        shape = (self.channels,)
        self.gamma = self._vector("gamma", shape, "ones", scale)
        self.beta = self._vector("beta", shape, "zeros", center)
        self.moving_mean = self._vector("moving_mean", shape, "zeros", False)
        self.moving_variance = self._vector("moving_variance", shape, "ones", False)
        self.steps = self._vector("steps", (), "zeros", False)
        self.built = True

    def _vector(self, name: str, shape: tuple[int, ...], start: str, trains: bool) -> Any:
        return self.add_weight(
            name=name, shape=shape, initializer=start, trainable=trains, aggregation="mean", autocast=False
        )

    def factor(self) -> tf.Tensor:
        """`gamma / sqrt(moving variance + epsilon)`, float32[channels], the same number eager, in graphs and in XLA."""
        return tf.cast(self._factor(), tf.float32)

    def _factor(self) -> tf.Tensor:
        # In double, since compilers order a root and a division as they like: the cast to float32 takes all of them to
        # one number.
        variance = tf.cast(tf.convert_to_tensor(self.moving_variance), tf.float64)
        return tf.cast(tf.convert_to_tensor(self.gamma), tf.float64) / tf.sqrt(variance + self.epsilon)

    def offset(self, bias: tf.Tensor | None) -> tf.Tensor:
        """`beta + (bias - moving mean) f`: float32[channels]."""
        mean = tf.cast(tf.convert_to_tensor(self.moving_mean), tf.float64)
        before = -mean if bias is None else tf.cast(bias, tf.float64) - mean
        beta = tf.cast(tf.convert_to_tensor(self.beta), tf.float64)
        return tf.cast(beta + before * self._factor(), tf.float32)

    def call(self, y: tf.Tensor) -> tf.Tensor:
        """Normalise in training, and move the statistics.

        Args:
            y: float[..., channels], sums of the weights without their factor.
        """
        real = tf.cast(y, tf.float32)
        moving = tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)
        if self.counter is not None:
            made, mean, variance = self._by_batch(real)
            self.counter(tf.size(real) // self.channels, mean, variance)
        elif self.freeze_after is None:
            made, mean, variance = self._by_batch(real)
            self._follow(mean, variance, 1.0 - self.momentum)
        else:
            # Before the count moves on: exactly so many steps follow the batch.
            frozen = tf.convert_to_tensor(self.steps) >= float(self.freeze_after)
            made, mean, variance = tf.cond(frozen, lambda: self._by_moving(real, *moving), lambda: self._by_batch(real))
            self._follow(mean, variance, tf.where(frozen, 0.0, 1.0 - self.momentum))
        return tf.cast(made, y.dtype)

    def _by_batch(self, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Normalised by the batch's own mean and variance over all axes but the channels, and these two.

        With gradients through mean and variance, as any batch norm trains. By TensorFlow's fused kernel, which passes
        over the values a third as often as the arithmetic written out, forward and back.
        """
        gamma, beta, none = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta), tf.zeros((0,))
        rows = y if y.shape.rank == 4 else tf.reshape(y, (-1, 1, 1, self.channels))
        made, mean, unbiased, *_ = tf.raw_ops.FusedBatchNormV3(
            x=rows, scale=gamma, offset=beta, mean=none, variance=none, epsilon=self.epsilon, is_training=True
        )
        # The kernel tells the variance divided by n - 1; Keras' BatchNormalization averages that divided by n.
        count = tf.cast(tf.size(y) // self.channels, tf.float32)
        return tf.reshape(made, tf.shape(y)), mean, unbiased * (tf.maximum(count - 1.0, 1.0) / count)

    def _by_moving(self, y: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Normalised by these, once they are frozen."""
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        return tf.nn.batch_normalization(y, mean, variance, beta, gamma, self.epsilon), mean, variance

    def _follow(self, mean: tf.Tensor, variance: tf.Tensor, rate: tf.Tensor | float) -> None:
        """One step of the moving statistics towards the batch's."""
        self.steps.assign(self.steps + 1.0)
        for variable, of_batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            now = tf.convert_to_tensor(variable)
            variable.assign(now + rate * (tf.stop_gradient(of_batch) - now))

    def settings(self) -> dict[str, Any]:
        """Its own arguments."""
        names = ("channels", "epsilon", "momentum", "scale", "center", "freeze_after")
        return {name: getattr(self, name) for name in names}

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), **self.settings()}
