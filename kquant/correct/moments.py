"""Means and variances of channels through a quantized model's float function, in closed form where there is one.

A folded batch norm says how its layer's output is distributed: N(beta, gamma^2) for each channel. From there

    ReLU, clipped ReLU   moments of a rectified Gaussian
    Add                  means and variances add (independent terms)
    Concatenate          side by side
    pools that average, reshapes, ...   (linear, channels kept)   the same
    layers without batch norm           mean W E[x] + b, variance W^2 Var[x]  (independent inputs, no padding)

Source: Nagel et al., arXiv:1906.04721, section 4.2 and appendix C; gamma enters by its size, whatever its sign.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
import numpy as np

from kquant.correct.channels import channels_after, is_linear, numbering, reads_one_tensor, total
from kquant.graph.graph import Graph, Node
from kquant.layers.nodes import Compressed, FakeQuant
from kquant.ops import find
from kquant.views.quantized_model import Place

_ERFC = np.vectorize(math.erfc, otypes=[float])


class Moments(NamedTuple):
    """Of a tensor's channels (last axis): float64[channels] each."""

    mean: np.ndarray
    variance: np.ndarray


def rectified_moments(
    mean: Any, deviation: Any, low: float = 0.0, high: float = math.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of `min(max(x, low), high)` for Gaussian x.

    With a = (low - m) / s, b = (high - m) / s, phi and Phi the density and distribution of a standard Gaussian:

        E[y]      = low Phi(a) + high (1 - Phi(b)) + m (Phi(b) - Phi(a)) + s (phi(a) - phi(b))
        E[y^2]    = low^2 Phi(a) + high^2 (1 - Phi(b)) + (m^2 + s^2) (Phi(b) - Phi(a))
                    + s (m + low) phi(a) - s (m + high) phi(b)

    Args:
        mean: of x, float[channels].
        deviation: of x, float[channels]; it counts by its size, as a batch norm's gamma may be negative.
        low: lower bound, may be -inf.
        high: upper bound, may be inf.

    Returns:
        `(mean, variance)`, float64[channels].

    Example:
        >>> mean, variance = rectified_moments([0.0, 1.0], [1.0, -1.0])
        >>> mean.round(4).tolist(), variance.round(4).tolist()
        ([0.3989, 1.0833], [0.3408, 0.7511])

    Source: Nagel et al., arXiv:1906.04721, appendix C; Burkardt, "The Truncated Normal Distribution", 2014.
    """
    m, s = np.broadcast_arrays(np.asarray(mean, np.float64), np.abs(np.asarray(deviation, np.float64)))
    fixed = np.clip(m, low, high)
    # Of a channel that does not vary the formulas divide by 0; it is put in at the end.
    s = np.where(s > 0, s, 1.0)
    alive = np.abs(np.broadcast_to(np.asarray(deviation, np.float64), m.shape)) > 0
    below, above = _below((low - m) / s), _below((m - high) / s)
    inside = 1.0 - below - above
    # around the mean: y - m lies in [low - m, high - m], which keeps the digits of a variance small beside the mean
    a, b = _finite(low - m), _finite(high - m)
    at_low, at_high = _density((low - m) / s), _density((high - m) / s)
    first = a * below + b * above + s * (at_low - at_high)
    second = a**2 * below + b**2 * above + s**2 * inside + s * (a * at_low - b * at_high)
    variance = np.maximum(second - first**2, 0.0)
    return np.where(alive, m + first, fixed), np.where(alive, variance, 0.0)


def _below(x: np.ndarray) -> np.ndarray:
    """The distribution function of a standard Gaussian."""
    return 0.5 * _ERFC(-x / math.sqrt(2.0))


def _density(x: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * np.minimum(x * x, 1e4)) / math.sqrt(2.0 * math.pi)


def _finite(bound: np.ndarray) -> np.ndarray:
    """An infinite bound has no probability; any number may stand for it."""
    return np.where(np.isfinite(bound), bound, 0.0)


def known_moments(layer: Compressed) -> Moments | None:
    """What the folded batch norm says of a layer's output."""
    if layer.mean is None or layer.deviation is None:
        return None
    return Moments(layer.mean.numpy().astype(np.float64), layer.deviation.numpy().astype(np.float64) ** 2)


def bounds_of(node: Node) -> tuple[float, float] | None:
    """What a ReLU cuts its input to, or None for another operation."""
    if not isinstance(node.op, keras.layers.ReLU) or node.op.negative_slope or node.op.threshold:
        return None
    return 0.0, math.inf if node.op.max_value is None else float(node.op.max_value)


def closed_moments(graph: Graph, places: dict[int, Place], inputs: dict[int, Moments]) -> dict[int, Moments]:
    """Moments of every tensor that the closed forms reach.

    Args:
        graph: of a quantized model.
        places: id(layer) -> place.
        inputs: id(tensor) -> moments of the model's inputs, where known.

    Returns:
        id(tensor) -> moments.
    """
    so_far = dict(inputs)
    for node in graph.nodes:
        moments = _after(node, places, so_far)
        if moments is not None and moments.mean.size == node.outputs[0].shape[-1]:
            so_far[id(node.outputs[0])] = moments
    return so_far


def _after(node: Node, places: dict[int, Place], so_far: dict[int, Moments]) -> Moments | None:
    op = node.op
    given = [so_far.get(id(t)) for t in node.inputs]
    x = given[0] if given else None
    if isinstance(op, Compressed):
        known = known_moments(op)
        # What a batch norm counted in training, before what follows from the inputs as if these were independent.
        return known or (None if x is None or id(op) not in places else through_weights(places[id(op)], x))
    if x is None:
        return None
    if isinstance(op, FakeQuant):
        return x
    bounds = bounds_of(node)
    if bounds is not None:
        return Moments(*rectified_moments(x.mean, np.sqrt(x.variance), *bounds))
    if reads_one_tensor(node):
        # By trial: the mean of what is not linear is not that of its inputs.
        if find(op) is None or not is_linear(node):
            return None
        after = channels_after(node, np.arange(x.mean.size))
        return None if after is None else Moments(x.mean[after], x.variance[after])
    if any(m is None for m in given):
        return None
    return _joined(node, [m for m in given if m is not None])


def _joined(node: Node, given: list[Moments]) -> Moments | None:
    """Of several tensors: sums of independent ones, or channels side by side."""
    op = node.op
    means, variances = [m.mean for m in given], [m.variance for m in given]
    if isinstance(op, keras.layers.Add):
        return Moments(np.sum(np.broadcast_arrays(*means), axis=0), np.sum(np.broadcast_arrays(*variances), axis=0))
    if isinstance(op, keras.layers.Concatenate) and op.axis in (-1, len(node.outputs[0].shape) - 1):
        return Moments(np.concatenate(means), np.concatenate(variances))
    return None


def through_weights(place: Place, x: Moments) -> Moments | None:
    """Of a layer's output: `W E[x] + b` and `W^2 Var[x]`, as if the inputs were independent and nothing padded."""
    weights = place.rule.weights
    if not place.layer.sums or weights is None or weights.input_axis is None:
        return None
    makes, reads = numbering(place)
    kernel = place.layer.weights_as_used().numpy().astype(np.float64)
    count = int(makes.size)
    # The moments are those of the last axis; a kernel that sums over another one has no use for them.
    if int(reads.max()) + 1 != x.mean.size:
        return None
    bias = place.layer.float_bias()
    bias = None if bias is None else bias.numpy().astype(np.float64)
    mean = total(kernel * x.mean[reads], makes, count) + (0.0 if bias is None else bias)
    return Moments(mean, total(kernel**2 * x.variance[reads], makes, count))
