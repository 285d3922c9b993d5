"""What a channel is worth: one number for each, by one of three criteria.

    l1         sum of |w| over the filters that make it            Li et al., arXiv:1608.08710, section 3.1
    bn-scale   |gamma| of its batch norms                          Liu et al., arXiv:1708.06519, section 3
    taylor     (dL/dz)^2 for a gate z = 1 on the channel           Molchanov et al., arXiv:1906.10771, equations 8 and 9

The first two compare channels of one layer; between layers they are compared by their share of the layer's mean. The
third estimates by how much the loss would move, which means the same in every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np
import tensorflow as tf

from kquant.core.progress import tqdm
from kquant.graph.graph import Graph, Node
from kquant.shrink.channels import Channels, Site

Importance = Literal["l1", "bn-scale", "taylor"]
NAMES = get_args(Importance)


def by_l1(channels: Channels) -> np.ndarray:
    """The mean over a channel's filters of `sum |w|`, in units of each layer's mean: float64[channels], NaN for none.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", arXiv:1608.08710, section 3.1; sections 3.2 and 3.3 for
    residual blocks.
    """
    filters = ((site.makes, _filters(site)) for site in channels.sites if site.maker)
    # Sums of |w| grow with what a filter reads; in units of the layer's mean they compare. A layer of zeros has mean 0.
    return _averaged(channels, [(makes, norms / (norms.mean() or 1.0)) for makes, norms in filters])


def by_bn_scale(channels: Channels) -> np.ndarray:
    """The mean over a channel's batch norms of `|gamma|`, in units of each one's mean: float64[channels], NaN for none.

    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", arXiv:1708.06519,
    section 3.
    """
    scales = []
    for site in channels.sites:
        if isinstance(site.op, keras.layers.BatchNormalization) and site.op.scale:
            gamma: Any = site.op.gamma
            sizes = np.abs(gamma.numpy().astype(np.float64))
            # Not where the norm runs along another axis than the last.
            if len(sizes) == len(site.makes):
                scales.append((site.makes, sizes / (sizes.mean() or 1.0)))
    return _averaged(channels, scales)


def by_taylor(
    channels: Channels,
    model: keras.Model,
    batches: Callable[[], Iterator[Any]],
    loss: Any,
    verbose: bool,
    total: int | None = None,
) -> np.ndarray:
    """The mean over batches of `(dL/dz)^2`, z a factor of the channel behind its batch norm: float64[channels].

    The derivative to z is `gamma * dL/dgamma + beta * dL/dbeta`, and without a batch norm `sum(w * dL/dw) + b * dL/db`;
    those of all kernels that make the channel add up.

    Args:
        channels: of the model.
        model: what they were read from.
        batches: gives (inputs, labels) afresh.
        loss: `(labels, outputs) -> scalar`.
        verbose: show a bar.
        total: how many batches there are, where it is known.

    Raises:
        ValueError: no data.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", arXiv:1906.10771, equations 8 and 9,
    section 3.2 for gates.
    """
    gates = list(_gates(channels))
    variables = list({id(v): v for _, parts in gates for v, _ in parts}.values())

    @tf.function(reduce_retracing=True)
    def gradients(x: Any, y: Any) -> list[tf.Tensor]:
        # Of the gates alone; all other variables would be watched for nothing.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([v.value for v in variables])
            value = loss(y, model(x, training=False))
        slopes = tape.gradient(value, [v.value for v in variables], unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [v.value * g for v, g in zip(variables, slopes, strict=True)]

    summed, count = np.zeros(channels.count), 0
    for x, y in tqdm(batches(), desc="taylor importance", unit="batch", disable=not verbose, total=total):
        products = {id(v): np.asarray(p, np.float64) for v, p in zip(variables, gradients(x, y), strict=True)}
        moved = np.zeros(channels.count)
        for makes, parts in gates:
            for v, axes in parts:
                # Before the square: one gate scales all kernels that make the channel, and the parts of its derivative
                # may cancel.
                np.add.at(moved, makes, products[id(v)].sum(axis=axes))
        summed += moved**2
        count += 1
    if count == 0:
        raise ValueError("data: importance='taylor' needs samples and labels; received none.")
    made = np.zeros(channels.count, bool)
    for makes, _ in gates:
        made[makes] = True
    return np.where(made, summed / count, np.nan)


def norm_behind(graph: Graph, calls: Sequence[Node]) -> keras.layers.BatchNormalization | None:
    """The batch norm over channels that alone reads a layer's output, in every call of both."""
    consumers, given = graph.consumers, {id(t) for t in graph.output_tensors}
    readers = [reader for call in calls for reader in consumers.get(id(call.outputs[0]), [])]
    op = readers[0].op if readers else None
    if not isinstance(op, keras.layers.BatchNormalization) or any(reader.op is not op for reader in readers):
        return None
    # One norm behind every call, and behind nothing else.
    alone = len(readers) == len(calls) == len(graph.calls[id(op)])
    # Behind an activation the norm does not see the layer's sums.
    bare = getattr(calls[0].op, "activation", None) in (None, keras.activations.linear)
    last = op.axis in (-1, len(calls[0].outputs[0].shape) - 1)
    return op if alone and bare and last and not any(id(c.outputs[0]) in given for c in calls) else None


def _gates(channels: Channels) -> Iterator[tuple[np.ndarray, list[tuple[Any, tuple[int, ...]]]]]:
    """For each kernel the channels that it makes, and the (variable, axes to sum over) that a gate would scale."""
    for site in channels.sites:
        if not site.maker or site.weights is None:
            continue
        norm = norm_behind(channels.graph, site.calls)
        if norm is not None and norm.scale:
            yield site.makes, [(v, ()) for v in ([norm.gamma, norm.beta] if norm.center else [norm.gamma])]
            continue
        kernel = getattr(site.op, site.held.kernel)
        bias = getattr(site.op, site.weights.bias or "", None)
        yield site.makes, [(kernel, _summed(site)), *([] if bias is None else [(bias, ())])]


def _summed(site: Site) -> tuple[int, ...]:
    """Axes of a kernel other than that of its output channels."""
    rank = len(getattr(site.op, site.held.kernel).shape)
    kept = {axis % rank for axis in site.held.channel_axes}
    return tuple(axis for axis in range(rank) if axis not in kept)


def _filters(site: Site) -> np.ndarray:
    """`sum |w|` of each filter, its bias left out."""
    kernel = getattr(site.op, site.held.kernel).numpy().astype(np.float64)
    return np.abs(kernel).sum(axis=_summed(site))


def _averaged(channels: Channels, values_of: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The mean of all values of a channel."""
    total, count = np.zeros(channels.count), np.zeros(channels.count)
    for makes, values in values_of:
        np.add.at(total, makes, values)
        np.add.at(count, makes, 1.0)
    return np.where(count > 0, total / np.maximum(count, 1.0), np.nan)
