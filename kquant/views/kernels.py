"""Which variables of a layer are kernels, whatever its rule makes of it: what pruning and clustering act on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from kquant.graph.keras_private import own_weights
from kquant.layers.loop import Loop
from kquant.layers.transform import kernel_at
from kquant.ops import candidates
from kquant.ops.affine import Affine
from kquant.ops.rule import CONV, MATRIX, Geometry

layers = keras.layers


IMAGE_CELL = {"cell.kernel": CONV, "cell.recurrent_kernel": CONV}  # Keras exports no class of the cell itself
GATES = {"kernel": MATRIX, "recurrent_kernel": MATRIX}
# Classes without a rule: cells, whose layer has one, and layers that no file can hold, masked and shared all the same.
RULELESS: dict[type, dict[str, Geometry]] = {
    layers.ConvLSTM1D: IMAGE_CELL,
    layers.ConvLSTM2D: IMAGE_CELL,
    layers.ConvLSTM3D: IMAGE_CELL,
    layers.LSTMCell: GATES,
    layers.GRUCell: GATES,
    layers.SimpleRNNCell: GATES,
}
NOT_KERNELS = (Affine, layers.PReLU, Loop)  # a loop: those of the layers in it are theirs


def kernels_of(op: Any) -> dict[str, Geometry]:
    """The kernels of a layer and of the layers inside it, by path.

    Args:
        op: a built Keras layer, or an operation (which has none).

    Returns:
        Path ("kernel", "cell.cells.0.kernel", "_query_dense.kernel") -> geometry.

    Example:
        >>> layer = keras.layers.LSTM(3)
        >>> layer.build((None, 4, 2))
        >>> list(kernels_of(layer))
        ['cell.kernel', 'cell.recurrent_kernel']
    """
    if not isinstance(op, keras.layers.Layer):
        return {}
    kernels: dict[str, Geometry] = {}
    _collect(op, "", kernels, set())
    return kernels


def _collect(layer: Any, before: str, kernels: dict[str, Geometry], seen: set[int]) -> None:
    """Kernels of a layer itself, then of those that its attributes hold; each layer once."""
    if id(layer) in seen or isinstance(layer, NOT_KERNELS):
        return
    seen.add(id(layer))
    kernels.update({before + name: kernel for name, kernel in _own(layer).items()})
    # it assigns the kernel of its layer anew whenever it trains, divided by its norm; see `unknown_kernels`
    if not isinstance(layer, layers.SpectralNormalization):
        for name, inner in _inside(layer):
            _collect(inner, f"{before}{name}.", kernels, seen)


def _inside(layer: Any) -> list[tuple[str, Any]]:
    """Path and layer: the cells of a stack, the layers of a model, else what attributes hold."""
    if isinstance(layer, layers.StackedRNNCells):
        return [(f"cells.{i}", cell) for i, cell in enumerate(layer.cells)]
    if isinstance(layer, keras.Model):
        return [(f"layers.{i}", inner) for i, inner in enumerate(layer.layers)]
    return [(name, inner) for name, inner in vars(layer).items() if isinstance(inner, keras.layers.Layer)]


def unknown_kernels(op: Any) -> list[str]:
    """Layers with weights that may be kernels, but whose geometry nothing tells: pruning and clustering leave them.

    Args:
        op: a built Keras layer, or an operation (which has none).

    Returns:
        "name (class)" of the layer itself or of layers inside it.

    Example:
        >>> layer = keras.layers.SpectralNormalization(keras.layers.Dense(3), name="bounded")
        >>> layer.build((None, 2))
        >>> unknown_kernels(layer)
        ['bounded (SpectralNormalization)']
    """
    if not isinstance(op, keras.layers.Layer):
        return []
    unknown: dict[int, str] = {}
    known = {id(kernel_at(op, path)) for path in kernels_of(op)}

    def visit(layer: Any, seen: set[int]) -> None:
        if id(layer) in seen:
            return
        seen.add(id(layer))
        closed = isinstance(layer, layers.SpectralNormalization)
        if closed or _is_unknown(layer, known):
            unknown[id(layer)] = f"{layer.name} ({type(layer).__name__})"
        for _, inner in [] if closed else _inside(layer):
            visit(inner, seen)

    visit(op, set())
    return list(unknown.values())


def _is_unknown(layer: Any, known: set[int]) -> bool:
    """Matrices that train, of a layer without a rule."""
    if isinstance(layer, NOT_KERNELS) or _own(layer) or candidates(type(layer)):
        return False
    return any(v.trainable and len(v.shape) > 1 and id(v) not in known for v in own_weights(layer))


def _own(layer: Any) -> Mapping[str, Geometry]:
    """Of the layer itself: what its rule says, or tells by where the weights are."""
    for kind, kernels in RULELESS.items():
        if isinstance(layer, kind):
            return kernels
    for rule in candidates(type(layer)):
        if kernels := rule.kernels(layer):
            return kernels
        if rule.weights is not None and rule.weights.sums:
            # a depthwise kernel is [..., input channel, multiplier]: both number its outputs, it sums over no channel
            axes = rule.weights.channel_axes
            depthwise = len(axes) > 1
            return {rule.weights.kernel: Geometry(None if depthwise else rule.weights.input_axis, axes[-1], depthwise)}
    return {}
