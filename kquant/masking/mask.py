"""`Mask`: the transform of a kernel that `kquant.prune` adds. The weights under it keep their values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from kquant.layers.transform import Transform
from kquant.masking.code_length import Price, grid_bits
from kquant.masking.patterns import Pooling, choose, structure_of
from kquant.masking.schedules import SparsitySchedule

# How much above a weight that is kept a masked one's magnitude has to lie to take its place, where masks never come to
# rest: each exchange changes the function, and one that is worth nothing is one that the last steps cannot make up for.
# (Two thresholds: Guo, Yao and Chen, arXiv:1608.04493, eq. 3.)
MARGIN = 0.1
Criterion = Literal["magnitude", "movement"]
Gradient = Literal["straight-through", "masked"]


@keras.saving.register_keras_serializable(package="kquant")
class Mask(Transform):
    """Zeros in a kernel: `mask * kernel`, the mask chosen anew as a schedule says.

    Args:
        schedule: config of a `SparsitySchedule`; None: the mask stays as it is.
        structure: see `kquant.masking.patterns`.
        axes: of the kernel: input channels, output channels.
        pooling: of the scores of a block: "mean" or "max".
        criterion: "magnitude": the score of a weight is |w|. "movement": it is trained, by the gradient that a weight
            would have had (Sanh et al., arXiv:2005.07683, section 3), from |w| on.
        gradient: of masked weights: "straight-through", that of the zero they are replaced by, so that they can come
            back, or "masked", none.
        entropy: loss for a KiB of codes, see `kquant.masking.code_length`.
        least_bits: of a weight, from which on they cost nothing.
    """

    rank = 0

    def __init__(
        self,
        schedule: Mapping[str, Any] | None,
        structure: str = "unstructured",
        axes: Sequence[int] = (-2, -1),
        pooling: Pooling = "mean",
        criterion: Criterion = "magnitude",
        gradient: Gradient = "straight-through",
        entropy: float = 0.0,
        least_bits: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.price = Price(float(entropy), float(least_bits))
        self.schedule = None if schedule is None else SparsitySchedule(**schedule)
        self.structure, self.pattern = structure, structure_of(structure)
        self.axes = (int(axes[0]), int(axes[1]))
        self.pooling: Pooling = pooling
        self.criterion, self.gradient = criterion, gradient
        self.scores = None

    def build(self, kernel_shape: Any) -> None:
        """Make the mask, the number of steps, and the scores where they train."""
        # All replicas choose from the same weights at the same step, and so alike.
        own = {"trainable": False, "autocast": False, "aggregation": "only_first_replica"}
        self.mask = self.add_weight(name="mask", shape=kernel_shape, dtype="bool", initializer="ones", **own)
        self.steps = self.add_weight(name="steps", shape=(), dtype="int64", initializer="zeros", **own)
        if self.criterion == "movement" and self.schedule is not None:
            self.scores = self.add_weight(
                name="scores", shape=kernel_shape, dtype="float32", initializer="zeros", autocast=False
            )
        self.built = True

    def start(self, weights: tf.Tensor) -> None:
        """The mask of step 0."""
        if self.scores is not None:
            # From the magnitudes on, so that the first masks are those of "magnitude" until gradients have said
            # otherwise.
            self.scores.assign(tf.abs(weights))
        if self.schedule is not None and self.schedule.begin == 0:
            self.mask.assign(self.chosen(weights, 0))

    def advance(self, weights: tf.Tensor) -> None:
        """Count the step, and choose the mask anew where its turn has come."""
        if self.schedule is None:
            return
        step = tf.convert_to_tensor(self.steps) + 1
        self.steps.assign(step)
        old = tf.convert_to_tensor(self.mask)
        # Chosen where its turn has come only: to choose is to sort the kernel.
        self.mask.assign(tf.cond(self.schedule.due(step), lambda: self.chosen(weights, step), lambda: old))

    def chosen(self, weights: tf.Tensor, step: Any) -> tf.Tensor:
        """bool, like the kernel: the mask that the schedule wants at a step."""
        if self.schedule is None:
            return tf.convert_to_tensor(self.mask)
        scores = tf.abs(weights)
        if self.scores is not None:
            scores = tf.convert_to_tensor(self.scores)
        elif self.schedule.end == -1:
            scores = tf.where(tf.convert_to_tensor(self.mask), (1.0 + MARGIN) * scores, scores)
        return choose(scores, self.schedule.sparsity(step), self.pattern, self.axes, self.pooling)

    def call(self, weights: tf.Tensor) -> tf.Tensor:
        """The kernel with its zeros."""
        kept = tf.convert_to_tensor(self.mask)
        if self.scores is not None:
            return _scored(weights, tf.convert_to_tensor(self.scores), kept, masked=self.gradient == "masked")
        if self.gradient == "masked":
            return tf.where(kept, weights, tf.zeros_like(weights))
        return _straight_through(weights, kept)

    def charge(self, weights: tf.Tensor) -> tf.Tensor | None:
        """The price of the codes of what is not masked."""
        if not self.price.entropy:
            return None
        used = tf.where(tf.convert_to_tensor(self.mask), weights, tf.zeros_like(weights))
        return self.price.of(grid_bits(used, self.axes[1]), math.prod(self.mask.shape))

    def carried(self) -> Transform | None:
        """The mask as it goes on in a quantized model: one that has come to its end keeps its zeros for good."""
        if self.schedule is not None and not self.schedule.is_done(int(self.steps.numpy())):
            return None
        return fixed(self.mask.numpy(), self)

    def derived(self, kernel: np.ndarray) -> Transform | None:
        """The mask of a kernel that was made of this one's values, by its zeros."""
        return fixed(kernel != 0.0, self)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {
            **super().get_config(),
            "schedule": None if self.schedule is None else self.schedule.get_config(),
            "structure": self.structure,
            "axes": list(self.axes),
            "pooling": self.pooling,
            "criterion": self.criterion,
            "gradient": self.gradient,
            "entropy": self.price.entropy,
            "least_bits": self.price.least_bits,
        }


def fixed(mask: np.ndarray, like: Mask | None = None) -> Mask:
    """A mask that does not change.

    Args:
        mask: bool, like the kernel.
        like: whose pattern it has.
    """
    # "masked": without a schedule no mask is chosen again, so that a weight which moved under it would move for
    # nothing.
    new = Mask(None, gradient="masked")
    if like is not None:
        price = asdict(like.price)
        new = Mask(None, like.structure, like.axes, gradient="masked", **price)
    new.build(tuple(mask.shape))
    new.mask.assign(mask)
    return new


@tf.custom_gradient
def _straight_through(weights: tf.Tensor, kept: tf.Tensor) -> Any:
    return tf.where(kept, weights, tf.zeros_like(weights)), lambda upstream: (upstream, None)


def _scored(weights: tf.Tensor, scores: tf.Tensor, kept: tf.Tensor, *, masked: bool) -> tf.Tensor:
    """`dL/dS = dL/d(masked w) * w`, of all weights."""

    @tf.custom_gradient
    def applied(weights: tf.Tensor, scores: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            own = tf.where(kept, upstream, tf.zeros_like(upstream)) if masked else upstream
            return own, upstream * weights

        return tf.where(kept, weights, tf.zeros_like(weights)), gradient

    return applied(weights, scores)
