"""Channels through a quantized model: which one a weight makes, which one it reads, and what keeps them apart.

What an operation does to channels is asked of the operation itself, on a few random numbers, so that no list of layers
has to be kept: factors of powers of two come out of an operation that keeps channels exactly as they went in.
"""

from __future__ import annotations

import keras
import numpy as np

from kquant.graph.graph import Graph, Node
from kquant.graph.unfold import substitute
from kquant.layers.nodes import Compressed, FakeQuant
from kquant.views.quantized_model import Place

SEED = 0
SAMPLES = 2  # of a probe


def readers_of(graph: Graph) -> dict[int, list[Node]]:
    """id(tensor) -> the nodes that compute with it; a `FakeQuant` that only needs its encoding or codes is none."""
    readers: dict[int, list[Node]] = {}
    for node in graph.nodes:
        own = isinstance(node.op, FakeQuant | Compressed)
        # The others are encodings, and sources for the kernel's own rounding: they hand no values on.
        for t in node.inputs[:1] if own else node.inputs:
            readers.setdefault(id(t), []).append(node)
    return readers


def numbering(place: Place) -> tuple[np.ndarray, np.ndarray]:
    """For every weight of a kernel the number of its output channel and of its input channel.

    Args:
        place: of a layer whose rule says both.

    Returns:
        Two int arrays that broadcast against the kernel.
    """
    layer, weights = place.layer.layer, place.rule.weights
    shape = tuple(int(n) for n in getattr(layer, place.layer.kernel_name).shape)
    kept = {axis % len(shape) for axis in place.layer.channel_axes}
    count = int(np.prod([shape[axis] for axis in kept]))
    # Numbers along the axes of the channels, 1 elsewhere: they broadcast against the kernel, and no index is spelled
    # out.
    makes = np.arange(count).reshape([n if axis in kept else 1 for axis, n in enumerate(shape)])
    if weights is None or weights.input_axis is None:
        raise ValueError(f"{place.name}: its rule does not say which axis of its kernel runs over input channels.")
    axis = weights.input_axis % len(shape)
    reads = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    groups = getattr(layer, "groups", 1)
    if groups > 1 and axis not in kept:
        # The kernel's axis has the inputs of one group; those of group g begin g times as many channels further on.
        reads = reads + makes // (count // groups) * shape[axis]
    return makes, reads


def largest(magnitudes: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    """The largest value for each number: float64[count], 0 where a number does not occur.

    Example:
        >>> largest(np.array([[1.0, 5.0], [2.0, 3.0]]), np.array([[0, 1]]), 3).tolist()
        [2.0, 5.0, 0.0]
    """
    if numbers.size == count and np.array_equal(numbers.ravel(), np.arange(count)):  # each along its own axis: faster
        return magnitudes.max(axis=tuple(a for a, n in enumerate(numbers.shape) if n == 1), initial=0.0).ravel()
    highest = np.zeros(count)
    # Unbuffered: a plain `found[numbers] = ...` keeps one of the values for a number that comes several times.
    np.maximum.at(highest, np.broadcast_to(numbers, magnitudes.shape).ravel(), magnitudes.ravel())
    return highest


def total(values: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    """The sum for each number: float64[count].

    Example:
        >>> total(np.array([[1.0, 5.0], [2.0, 3.0]]), np.array([[0, 1]]), 2).tolist()
        [3.0, 8.0]
    """
    return np.bincount(np.broadcast_to(numbers, values.shape).ravel(), values.ravel(), count)


def reads_one_tensor(node: Node) -> bool:
    """True for an operation on one tensor with a last axis of known length."""
    return len(node.inputs) == 1 == len(node.outputs) and len(node.inputs[0].shape) > 1


def compute(node: Node, x: np.ndarray) -> np.ndarray:
    """What a node with one input makes of these numbers."""
    args, kwargs = substitute((node.args, node.kwargs), {id(node.inputs[0]): keras.ops.convert_to_tensor(x)})
    return np.asarray(keras.tree.flatten(node.op(*args, **kwargs))[0])


def channels_after(node: Node, channels: np.ndarray) -> np.ndarray | None:
    """The channel behind each index of a node's last axis, or None where the node mixes or bends channels.

    It holds where `f(s x) = s f(x)` for any positive factor of each channel: ReLU, pools, paddings, reshapes that leave
    channels last.

    Args:
        node: operation on one tensor.
        channels: int[n], the channel behind each index of its input's last axis.

    Returns:
        int[m] for the output.
    """
    if not reads_one_tensor(node):
        return None
    x = _noise(node)
    after = _moved(node, channels, x.shape)
    if after is None:
        return None
    # Powers of two move exponents only: where the operation scales, both ways agree to the bit, and `array_equal` may
    # ask.
    factors = np.exp2(np.random.default_rng(SEED + 1).integers(-8, 9, int(channels.max()) + 1)).astype(np.float32)
    scaled = compute(node, x * factors[channels])
    return after if np.array_equal(scaled, compute(node, x) * factors[after]) else None


def is_linear(node: Node) -> bool:
    """True where `f(x + y) = f(x) + f(y)`: means and variances of its output are those of its input."""
    x, y = _noise(node), _noise(node, SEED + 2)
    return np.allclose(compute(node, x + y), compute(node, x) + compute(node, y), rtol=1e-4, atol=1e-4)


def _noise(node: Node, seed: int = SEED) -> np.ndarray:
    """Numbers of both signs and of many sizes, in the shape of the node's input."""
    rng, shape = np.random.default_rng(seed), (SAMPLES, *node.inputs[0].shape[1:])
    # Of many sizes, so that what has a threshold or a clip somewhere is found out.
    return (rng.normal(size=shape) * np.exp2(rng.integers(-6, 7, shape))).astype(np.float32)


def _moved(node: Node, channels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Where the channels went: nowhere where their number is the same, else as the operation moves their numbers."""
    size = node.outputs[0].shape[-1]
    if size == channels.size:
        # Where the number is the same they may still have moved; the factors, each channel's own, would not agree then.
        return channels
    # The numbers of the channels sent through as values: what comes out says where each came from (a Flatten, a crop).
    moved = compute(node, np.broadcast_to(channels.astype(np.float32), shape))
    rows = moved.reshape(-1, moved.shape[-1])
    if not np.array_equal(rows, np.broadcast_to(rows[:1], rows.shape)):
        return None
    numbers = np.rint(rows[0]).astype(int)
    return numbers if np.array_equal(numbers, rows[0]) and np.all(np.isin(numbers, channels)) else None
