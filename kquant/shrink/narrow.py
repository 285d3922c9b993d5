"""One layer with fewer channels: what its rule says of its kernel, and for the others what their shapes say."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.graph.copies import again, settle
from kquant.ops import find_weighted
from kquant.ops.rule import Weights

# Entries of the configs of keras.layers.Reshape and keras.ops.reshape.
SHAPES = ("target_shape", "newshape")


def kernel_of(op: Any) -> Weights | None:
    """Where a layer keeps the one kernel that makes sums over its input's channels, or None."""
    rule = find_weighted(op)
    weights = rule.weights if rule is not None else None
    if weights is None or not weights.sums or weights.input_axis is None:
        return None
    own = {weights.kernel, weights.bias} - {None}
    # Other variables than kernel and bias would be cut by a rule that does not know them.
    named = [getattr(op, name, None) for name in own]
    covered = {id(v) for v in named}
    return weights if all(id(v) in covered for v in op.variables) else None


def keeps_channels(weights: Weights, rank: int) -> bool:
    """True where each input channel makes output channels of its own (depthwise)."""
    axis = weights.input_axis
    return axis is not None and axis % rank in {a % rank for a in weights.channel_axes}


def narrower(op: Any, reads: np.ndarray, makes: np.ndarray, before: tuple[int, int]) -> Any:
    """A new layer or operation, not built yet, for some of the channels.

    Args:
        op: of the wide model.
        reads: int[n], indices of its input's last axis that stay.
        makes: int[m], of its output's.
        before: lengths of the two axes.
    """
    weights = kernel_of(op)
    changes: dict[str, Any] = {}
    if weights is not None and weights.width is not None:
        changes[weights.width] = len(makes)
    else:
        changes = narrower_shape(op, len(makes), before[1])
    return again(op, **changes)


def narrower_shape(op: Any, width: int, before: int) -> dict[str, Any]:
    """What changes in the config of a layer or operation that was told its output's shape."""
    if type(op).__name__ != "Reshape":
        return {}
    config = op.get_config()
    shapes = {key: config[key] for key in SHAPES if config.get(key)}
    # -1 stays: it follows by itself.
    return {key: (*shape[:-1], width) for key, shape in shapes.items() if shape[-1] == before}


def narrow_values(old: Any, new: Any, reads: np.ndarray, makes: np.ndarray, before: tuple[int, int]) -> None:
    """Weights of the wide layer to the narrow one, which is built.

    Raises:
        ValueError: the shapes do not come out.
    """
    if not isinstance(old, keras.layers.Layer):
        return
    weights = kernel_of(old)
    whole = (len(reads), len(makes)) == before
    for source, target in zip(old.variables, new.variables, strict=True):
        value = source.numpy()
        if whole:  # also of layers whose axes are not understood
            pass
        elif weights is not None:
            value = _taken(value, weights, source is getattr(old, weights.kernel), reads, makes)
        # Vectors along the channels (a batch norm's, a PReLU's slopes), whose input and output are the same ones.
        elif value.ndim and value.shape[-1] == before[0] == before[1]:
            value = np.take(value, reads, axis=-1)
        target.assign(value)
    settle(old, new)


def _taken(value: np.ndarray, weights: Weights, kernel: bool, reads: np.ndarray, makes: np.ndarray) -> np.ndarray:
    """The rows and columns of a kernel, or the entries of a bias, that stay."""
    if not kernel:
        return np.take(value, makes, axis=-1)
    value = np.take(value, reads, axis=weights.input_axis)
    if keeps_channels(weights, value.ndim):
        return value
    for axis in weights.channel_axes:
        value = np.take(value, makes, axis=axis)
    return value
