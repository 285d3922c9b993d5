"""What a batch is when `tf.distribute` has cut it into parts: the extremes of all replicas together."""

from __future__ import annotations

import tensorflow as tf


def is_alone() -> bool:
    """True where nobody else holds a part of the batch."""
    context = tf.distribute.get_replica_context()
    return context is None or context.num_replicas_in_sync == 1


def extremes(y: tf.Tensor, *, from_zero: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
    """Smallest and largest value of the whole batch, also where every replica holds a part of it.

    A mean over replicas would shrink the range: the extremes of a batch are those of one of its parts. TensorFlow's
    `all_reduce` only adds, so each replica writes its values into a row of zeros of its own, and the sum is all rows.

    Args:
        y: float32[...], the part of this replica.
        from_zero: no value is below 0; the smallest is not looked for, and counts as 0.

    Returns:
        float32[] and float32[], the same numbers on every replica; no gradient passes them.
    """
    y = tf.stop_gradient(y)  # ranges are statistics: through one of a batch a gradient would reach its largest value
    low, high = tf.zeros(()) if from_zero else tf.reduce_min(y), tf.reduce_max(y)
    if is_alone():
        return low, high
    context = tf.distribute.get_replica_context()
    place = tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync, on_value=True, off_value=False)
    row = tf.where(place[:, None], tf.stack([low, high])[None], 0.0)
    rows = context.all_reduce(tf.distribute.ReduceOp.SUM, row)
    return tf.reduce_min(rows[:, 0]), tf.reduce_max(rows[:, 1])
