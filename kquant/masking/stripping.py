"""Compressed model -> plain Keras model: masks, codebooks and grids become plain weights.

release    what `kquant.prune` and `kquant.cluster` put into a float model, taken out and kept beside it
strip      the same for good, also out of a quantized model
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kquant.graph.copies import is_described, own, stays_whole
from kquant.graph.given_model import check_keras
from kquant.graph.graph import Node, rewrite, trace
from kquant.graph.keras_private import every_layer
from kquant.graph.output_names import as_keras
from kquant.graph.stored import Stored
from kquant.layers import transform as kernels
from kquant.layers.kernel import Holder
from kquant.layers.nodes import FakeQuant, Transformed, observing
from kquant.layers.transform import Carried, Held
from kquant.ops import find
from kquant.ops.affine import Affine
from kquant.ops.rule import rebuild


def release(model: keras.Model) -> tuple[keras.Model, Carried]:
    """A float model without transforms, its kernels as they were used; and the transforms, to be put back.

    Args:
        model: float; one without transforms comes back as it is.

    Returns:
        The plain model, with weights of its own, and its transforms.
    """
    if not any(isinstance(layer, Transformed) for layer in every_layer(model)):
        return model, {}
    carried: Carried = {}
    plain: dict[int, Any] = {}

    def replace(node: Node, args: tuple, kwargs: dict) -> Any:
        op = node.op
        if not isinstance(op, Transformed):
            return _copy(op, plain)(*args, **kwargs)
        if id(op) not in plain:
            used = {kernel.path: (np.asarray(kernel.used), kernel.transforms) for kernel in op.kernels()}
            plain[id(op)] = _with_kernels(op.layer, {path: values for path, (values, _) in used.items()})
            # By name and path, since what is done to the plain model next (folding, quantizing) makes new layers of it.
            carried[op.name] = {path: Held(*held) for path, held in used.items() if held[1]}
        return plain[id(op)](*args, **op.passed(kwargs))

    graph = trace(model, _is_known, masks=True, whole=is_described)
    return rewrite(graph, replace), carried


def strip(model: keras.Model, *, grids: bool = False) -> keras.Model:
    """The plain Keras model: no layer of kquant's is left where Keras has one.

    Copies: `model` stays as it was.

    Args:
        model: what `kquant.prune`, `kquant.cluster` or `kquant.quantize` returned.
        grids: of a quantized model: weights as the codes hold them, `scale * code`, instead of the float ones.

    Returns:
        A Functional model with the masks and codebooks in its weights. Of a quantized model: the float model that it
        simulates, batch norms folded; layers that it took apart (GRU, attention, layer norms) stay so, in Keras' layers
        and `keras.ops`, and a batch norm with no layer to fold into is a `Rescaling`. Only a constant tensor of the
        model stays a layer of kquant's, because Keras has none for it.

    Raises:
        ValueError: not a Keras 3 model, or what `kquant.distill` returned: its `.student` is the model.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> [type(layer).__name__ for layer in kquant.strip(kquant.quantize(model)).layers]
        ['InputLayer', 'Dense']
    """
    _check_model(model)
    plain: dict[int, Any] = {}

    def replace(node: Node, args: tuple, kwargs: dict) -> Any:
        op, x = node.op, args[0] if args else None
        if isinstance(op, FakeQuant):
            # The encoding's place too: what would read it, a wrapper or another `FakeQuant`, is gone as well.
            return [x] * len(node.outputs)
        if not isinstance(op, Holder):
            return _in_keras(op, plain)(*args, **kwargs)
        if id(op) not in plain:
            plain[id(op)] = _without_grid(op, grids)
        return [plain[id(op)](x)] * len(node.outputs)

    return as_keras(rewrite(trace(release(model)[0], _is_known, masks=True, whole=is_described), replace))


def _check_model(model: Any) -> None:
    check_keras(model, "strip")
    if hasattr(model, "student") and hasattr(model, "teacher"):  # `train` is above this module: not imported here
        kind = f"{type(model).__module__}.{type(model).__name__}"
        raise ValueError(f"strip: {kind} trains a model and is none to strip. Give the one that it trained: .student.")


def _is_known(op: Any) -> bool:
    """Layers that stay whole; one with a rule is never opened, so that the file may have its operator."""
    return find(op) is not None or stays_whole(op)


def _copy(op: Any, made: dict[int, Any]) -> Any:
    """A layer with weights of its own, made once; operations have none."""
    if id(op) not in made:
        made[id(op)] = own(op)
    return made[id(op)]


def _in_keras(op: Any, made: dict[int, Any]) -> Any:
    """What computes the same without a class of kquant's, where Keras has it."""
    if isinstance(op, Affine):
        if id(op) not in made:
            made[id(op)] = _rescaling(op.name, op.scale, op.offset)
        return made[id(op)]
    ours = isinstance(op, keras.layers.Layer) and type(op).__module__.startswith("kquant.")
    return _recorded(op) if ours and not isinstance(op, Stored) else _copy(op, made)


def _recorded(op: Any) -> Any:
    """The operations of `keras.ops` that a layer without trainable weights is written in."""

    def call(*args: Any, **kwargs: Any) -> Any:
        # Inside, layers of kquant's compute in float; what they would tell a calibration goes nowhere.
        with observing(lambda *_: None):
            return op.call(*args, **kwargs)

    return call


def _rescaling(name: str, scale: Any, offset: Any) -> keras.layers.Layer:
    """A constant `scale * x + offset` along the last axis."""
    return keras.layers.Rescaling(*(np.asarray(v, np.float64).tolist() for v in (scale, offset)), name=name)


def _with_kernels(layer: Any, values: Mapping[str, Any]) -> Any:
    """A copy with other values for some of its variables."""
    new = own(layer)
    for path, value in values.items():
        kernels.kernel_at(new, path).assign(value)
    return new


def _without_grid(op: Any, grids: bool) -> Any:
    """The layer in a wrapper of a quantized model, with the weights that the wrapper gives it."""
    values = {k.path: k.on_grid if grids and op.spec is not None else k.used for k in op.kernels()}
    layer, bias, bias_name = op.layer, op.bias_as_used(), getattr(op, "bias_name", None)
    # A correction, or a folded batch norm, gave a bias to a layer that had none.
    if bias is not None and getattr(layer, "use_bias", True) is False:
        layer = rebuild(layer, use_bias=True)
    if isinstance(layer, Affine):
        return _rescaling(op.name, *values.values(), bias)
    values |= {} if bias is None else {str(bias_name): bias}
    return _with_kernels(layer, {path: np.asarray(value) for path, value in values.items()})
