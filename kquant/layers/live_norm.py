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
        # Over all axes but the channels, divided by the number of values: what Keras' BatchNormalization computes, and
        # averages.
        mean, variance = tf.nn.moments(real, list(range(real.shape.rank - 1)))
        if self.counter is not None:
            self.counter(tf.size(real) // self.channels, mean, variance)
        else:
            mean, variance = self._followed(mean, variance)
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        # With gradients through mean and variance, as any batch norm trains.
        made = tf.nn.batch_normalization(real, mean, variance, beta, gamma, self.epsilon)
        return tf.cast(made, y.dtype)

    def _followed(self, mean: tf.Tensor, variance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The batch's own, which the moving ones follow; once frozen the moving ones."""
        moving = tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)
        frozen = tf.constant(False)
        if self.freeze_after is not None:
            # Before the count moves on: exactly so many steps follow the batch.
            frozen = tf.convert_to_tensor(self.steps) >= float(self.freeze_after)
        self.steps.assign(self.steps + 1.0)
        rate = tf.where(frozen, 0.0, 1.0 - self.momentum)
        variables = (self.moving_mean, self.moving_variance)
        for variable, now, of_batch in zip(variables, moving, (mean, variance), strict=True):
            variable.assign(now + rate * (tf.stop_gradient(of_batch) - now))
        return tf.where(frozen, moving[0], mean), tf.where(frozen, moving[1], variance)

    def settings(self) -> dict[str, Any]:
        """Its own arguments."""
        names = ("channels", "epsilon", "momentum", "scale", "center", "freeze_after")
        return {name: getattr(self, name) for name in names}

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), **self.settings()}
