"""Training on a grid that is drawn anew at every step, so that the weights hold on all of them.

    step t, seed  ->  width of the kernels, one scale a channel or a kernel, shift of each tensor's rounding

The draw depends on the seed and the number of the step alone, so that a training that goes on draws what it would have
drawn. Each layer counts its own steps, since its range was set and while it is trainable: layers that train together
have the same grid; one that was frozen for a while, or corrected by itself, has another number, and so another grid.

Source: the widths by turns are those of Jin et al., "AdaBits", arXiv:1912.09666, section 3.3, drawn one a step as
slimmable networks draw theirs (Yu and Huang, arXiv:1903.05134, section 3.1); that one set of weights has to hold under
quantizers which it was not trained for is Shkolnik et al., "Robust Quantization", arXiv:2002.07686, section 1.
"""

from __future__ import annotations

import tensorflow as tf

from kquant.recipe.training_section import Robust


def kernel_grid(robust: Robust, steps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """What the kernels of a training step have: bits, int32[], and whether one scale, bool[].

    Args:
        robust: of the recipe.
        steps: number of the training step, float32[].
    """
    width, scales, _ = _uniform(robust, steps)
    index = tf.cast(tf.floor(width * len(robust.bits)), tf.int32)
    return tf.gather(tf.constant(robust.bits), index), tf.logical_and(scales < 0.5, robust.per_tensor)


def shift(robust: Robust, steps: tf.Tensor) -> tf.Tensor:
    """What values are moved by before they are rounded, in steps of their tensor's grid: float32[].

    Args:
        robust: of the recipe.
        steps: number of the training step, float32[].
    """
    return robust.shift * (2.0 * _uniform(robust, steps)[2] - 1.0)


def _uniform(robust: Robust, steps: tf.Tensor) -> list[tf.Tensor]:
    """Three numbers in [0, 1), float32[] each: of the width, of the scales, of the shift."""
    drawn = tf.random.stateless_uniform((3,), tf.stack([tf.constant(robust.seed), tf.cast(steps, tf.int32)]))
    return tf.unstack(drawn)
