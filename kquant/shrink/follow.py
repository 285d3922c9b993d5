"""What an operation does to channels, found out by asking the operation itself: no list of layers has to be kept.

An operation keeps channels where leaving some out of its input leaves the same ones out of its output:

    f(x[..., some]) = f(x)[..., some']

Tried on random numbers with several choices of channels, on the operation as it would be in the smaller model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kquant.graph.copies import config_of, own_functions
from kquant.graph.graph import Node
from kquant.graph.unfold import substitute
from kquant.shrink.narrow import narrow_values, narrower, narrower_shape
from kquant.views.flat_copy import inference_only

SEED = 0
OPEN = 8  # stands for an axis of unknown length


@dataclass(frozen=True, eq=False)
class Pairing:
    """Which channels of an operation's inputs and output belong together: equal numbers stay or leave together.

    Attributes:
        reads: for each input, int[n] numbers of the indices of its last axis; None where it has one for all channels.
        makes: int[m], of the output's last axis.
    """

    reads: tuple[np.ndarray | None, ...]
    makes: np.ndarray

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return 1 + max(int(r.max()) for r in (*self.reads, self.makes) if r is not None)


def channels_of(tensor: Any) -> int | None:
    """Length of a tensor's last axis, None where it has none besides the batch or it is open."""
    return tensor.shape[-1] if len(tensor.shape) > 1 else None


def pairing(node: Node, known: dict[str, Pairing | None]) -> Pairing | None:
    """How a node's output has its inputs' channels, or None where it mixes them.

    Args:
        node: a call.
        known: answers so far, for layers of the same config on the same shapes.
    """
    widths = [channels_of(t) for t in (*node.inputs, *node.outputs)]
    if not node.inputs or len(node.outputs) != 1 or None in widths:
        return None
    key = _key(node)
    # Deep models have many layers that are alike: each kind is tried once.
    if key is None or key not in known:
        with _random_values(node.op):
            answer = _tried(node, widths)
        if key is None:
            return answer
        known[key] = answer
    return known[key]


def _tried(node: Node, widths: list[Any]) -> Pairing | None:
    values = [_noise(t, SEED + i) for i, t in enumerate(node.inputs)]
    try:
        wide = compute(node, node.op, values)
        return next((p for p in _candidates(node, widths) if _holds(node, p, values, wide)), None)
    except Exception:  # whatever an operation says of a shape that it cannot take: it does not keep channels
        return None


def _key(node: Node) -> str | None:
    """What tells a layer's answer; None for an operation, whose arguments may be arrays."""
    if not isinstance(node.op, keras.layers.Layer):
        return None
    config = {k: v for k, v in config_of(node.op).items() if k != "name"}
    functions = {name: id(function) for name, function in own_functions(node.op).items()}
    # Which inputs are one tensor: x * x and x * y need not have one answer.
    order = [next(i for i, other in enumerate(node.inputs) if other is t) for t in node.inputs]
    return f"{type(node.op)} {config} {functions} {[t.shape for t in node.inputs]} {order} {node.kwargs.keys()}"


@contextlib.contextmanager
def _random_values(op: Any) -> Iterator[None]:
    """Other weights for the trial: those at hand may hide what a layer does (a factor that starts at 0)."""
    variables = [v for v in getattr(op, "variables", ()) if "float" in str(v.dtype)]
    before, rng = [v.numpy() for v in variables], np.random.default_rng(SEED)
    for v in variables:
        v.assign(rng.uniform(0.5, 1.5, v.shape))
    try:
        yield
    finally:
        for v, value in zip(variables, before, strict=True):
            v.assign(value)


def elementwise(function: Any, channels: int) -> bool:
    """True for an activation that takes every channel for itself."""
    x = np.random.default_rng(SEED).normal(size=(4, channels)).astype(np.float32)
    some = np.arange(0, channels, 2)
    return np.allclose(np.asarray(function(x))[:, some], np.asarray(function(x[:, some])), rtol=1e-5, atol=1e-6)


def _candidates(node: Node, widths: list[Any]) -> Iterator[Pairing]:
    """Side by side in one axis, one after the other, or moved."""
    *given, made = widths
    # One channel beside many is a factor for all of them.
    if all(n in (made, 1) for n in given) and made in given:
        yield Pairing(tuple(np.arange(made) if n == made else None for n in given), np.arange(made))
    if len(given) > 1 and sum(given) == made:
        starts = np.cumsum([0, *given[:-1]])
        yield Pairing(tuple(np.arange(n) + s for n, s in zip(given, starts, strict=True)), np.arange(made))
    if len(given) == 1:
        moved = _moved(node, given[0])
        if moved is not None:
            yield Pairing((np.arange(given[0]),), moved)


def _moved(node: Node, channels: int) -> np.ndarray | None:
    """Where the channels' numbers come out, if the same at every position."""
    shape = (1, *(n or OPEN for n in node.inputs[0].shape[1:]))
    numbers = np.broadcast_to(np.arange(channels, dtype=np.float32), shape)
    rows = compute(node, node.op, [numbers]).reshape(-1, node.outputs[0].shape[-1])
    places = np.rint(rows[0])
    if not np.array_equal(rows, np.broadcast_to(places, rows.shape)) or places.min() < 0 or places.max() >= channels:
        return None
    return places.astype(int)


def _holds(node: Node, pair: Pairing, values: list[np.ndarray], wide: np.ndarray) -> bool:
    """The property, for several choices of channels."""
    for kept in _choices(pair.count):
        both = zip(pair.reads, values, strict=True)
        reads = [np.arange(x.shape[-1]) if r is None else kept[r].nonzero()[0] for r, x in both]
        makes = kept[pair.makes].nonzero()[0]
        # No channel is left somewhere, and nothing to compare.
        if not all(map(len, reads)) or not len(makes):
            continue
        before = (values[0].shape[-1], wide.shape[-1])
        # Without weights and shapes of its own the operation itself takes any width.
        stateless = not getattr(node.op, "variables", ()) and not narrower_shape(node.op, len(makes), before[1])
        op = node.op if stateless else narrower(node.op, reads[0], makes, before)
        some = [x[..., r] for x, r in zip(values, reads, strict=True)]
        if getattr(node.op, "variables", ()):
            compute(node, op, some)  # builds it
            narrow_values(node.op, op, reads[0], makes, before)
        # The property itself: fewer channels in, and the same ones out, with the same values.
        narrow, wanted = compute(node, op, some), wide[..., makes]
        if narrow.shape != wanted.shape or not np.allclose(narrow, wanted, rtol=1e-4, atol=1e-5, equal_nan=True):
            return False
    return True


def _choices(count: int) -> Iterator[np.ndarray]:
    """All but the first, all but the last, and a random half."""
    for left_out in (0, count - 1):
        yield np.arange(count) != left_out
    # Ends alone may leave together what an operation mixes further inside.
    yield np.random.default_rng(SEED + count).random(count) < 0.5


def compute(node: Node, op: Any, values: list[np.ndarray]) -> np.ndarray:
    """What `op` makes of these numbers, called as in the node."""
    new = {id(t): keras.ops.convert_to_tensor(x, t.dtype) for t, x in zip(node.inputs, values, strict=True)}
    args, kwargs = substitute((node.args, inference_only(node.kwargs)), new)
    return np.asarray(keras.tree.flatten(op(*args, **kwargs))[0], np.float32)


def _noise(tensor: Any, seed: int) -> np.ndarray:
    shape = (1, *(n or OPEN for n in tensor.shape[1:]))
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
