"""High-bias absorption: what a ReLU always lets through moves into the bias of the next layer.

    relu(y - c) = relu(y) - c   where y >= c,    c = max(0, mean - 3 deviation)
    b1' = b1 - c,   b2' = b2 + sum W2 c

Equalization can make the range of a channel wide by its mean alone; without the mean the activations need fewer codes.
For Gaussian outputs 0.135 % of the values lie below c; with data, c is at most what they showed, and nothing is lost.
Zeros that a convolution pads with are no relu(y), so the next layer must not pad.

Source: Nagel et al., arXiv:1906.04721, section 4.1.3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from kquant.correct.chains import Pair
from kquant.correct.channels import compute
from kquant.correct.clipped import Extremes
from kquant.layers.nodes import FakeQuant

DEVIATIONS = 3.0
NOTHING = 1e-4  # of a channel's deviation; less is not worth a change
SEED = 0


def absorb_biases(pairs: list[Pair], seen: dict[str, Extremes], *, verbose: bool = True) -> list[Pair]:
    """Move biases of pairs, in place.

    Args:
        pairs: of a quantized model, in order.
        seen: extremes of the first layers' outputs by name, where data showed them.
        verbose: print a line for each pair that has something to move.

    Returns:
        The pairs that changed.
    """
    changed = []
    for pair in pairs:
        amount = absorbable(pair, seen.get(pair.first.name))
        if amount is None:
            continue
        added, reason = _added(pair, amount)
        if added is not None:
            _store(pair, amount, added)
            changed.append(pair)
        if verbose:
            done = f"{int(np.sum(amount > 0))} channels, up to {amount.max():.3g}"
            print(f"absorb: {pair.name}: {done if added is not None else f'not done, {reason}'}")
    return changed


def absorbable(pair: Pair, seen: Extremes | None) -> np.ndarray | None:
    """`max(0, mean - 3 deviation)` of each channel of the first layer, or None where there is nothing to move."""
    layer = pair.first.layer
    if layer.mean is None or layer.deviation is None:
        return None
    mean, deviation = (v.numpy().astype(np.float64) for v in (layer.mean, layer.deviation))
    amount = np.maximum(0.0, mean - DEVIATIONS * deviation)
    if seen is not None:
        # What data showed is never below `seen.low`: with no more than that taken away, they lose nothing.
        amount = np.minimum(amount, np.maximum(0.0, seen.low))
    amount = np.where(amount > NOTHING * np.maximum(deviation, np.abs(mean)), amount, 0.0)
    return amount if np.any(amount) else None


def _added(pair: Pair, amount: np.ndarray) -> tuple[np.ndarray | None, str]:
    """What the second layer's bias takes on, or the reason why it cannot."""
    biases: list[Any] = [None if (held := _bias(p.layer)) is None else held.numpy() for p in (pair.first, pair.second)]
    if any(bias is None for bias in biases):
        return None, "a layer has no bias"
    if not _passes(pair, amount):
        return None, "what lies between does not pass a constant (a clip, or zero padding)"
    layer, node = pair.second.layer, pair.second.calls[0]
    # `sum W2 c` by the layer itself, on an input that is c everywhere: one number for each channel, but at edges with
    # padding.
    x = np.broadcast_to(amount[pair.channels].astype(np.float32), (1, *node.inputs[0].shape[1:]))
    rows = np.asarray(layer.apply(tf.constant(x), layer.weights_as_used(), tf.zeros(biases[1].shape)), np.float64)
    rows = rows.reshape(-1, rows.shape[-1])
    # Zeros beside the constant show as other sums at the edge.
    if np.ptp(rows, axis=0).max() > 1e-4 * np.abs(rows).max():
        return None, f"{pair.second.name} pads with zeros"
    return rows.mean(axis=0), ""


def _bias(layer: Any) -> Any:
    """The variable that shifts a layer's output, or None."""
    if layer.norm is not None:
        return layer.norm.beta
    return getattr(layer.layer, layer.bias_name, None) if layer.bias_name else None


def _passes(pair: Pair, amount: np.ndarray) -> bool:
    """True where `f(y) = f(y - c) + c` for every y >= c."""
    if pair.clip is not None:
        return False
    shape = (1, *pair.first.calls[0].outputs[0].shape[1:])
    # By trial, so that no list of layers is kept: y = rest + c with rest >= 0.
    rest = np.abs(np.random.default_rng(SEED).normal(size=shape)) * (1.0 + amount)
    with_it, without = (rest + amount).astype(np.float32), rest.astype(np.float32)
    for node in pair.between:
        if not isinstance(node.op, FakeQuant):
            with_it, without = compute(node, with_it), compute(node, without)
    expected = without + amount[pair.channels]
    return np.allclose(with_it, expected, rtol=1e-4, atol=1e-5)


def _store(pair: Pair, amount: np.ndarray, added: np.ndarray) -> None:
    first, second = pair.first.layer, pair.second.layer
    for layer, change in ((first, -amount), (second, added)):
        bias: Any = _bias(layer)
        bias.assign((bias.numpy().astype(np.float64) + change).astype(np.float32))
    # The statistics too: ranges without data and analytic bias correction read them next.
    if first.mean is not None:
        first.mean.assign((first.mean.numpy().astype(np.float64) - amount).astype(np.float32))
