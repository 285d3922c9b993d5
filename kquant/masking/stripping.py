"""Compressed model -> plain Keras model: masks, codebooks and grids become plain weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kquant.graph.copies import is_described
from kquant.graph.given_model import layers_of
from kquant.graph.graph import Node, rewrite, trace
from kquant.graph.output_names import as_keras
from kquant.graph.stored import Stored
from kquant.graph.unfold import substitute
from kquant.layers.kernel import Holder
from kquant.layers.loop import Loop
from kquant.layers.nodes import FakeQuant, observing
from kquant.ops.affine import Affine
from kquant.ops.real_steps import RealSteps
from kquant.ops.rule import rebuild
from kquant.views.released import copied, release, stays, with_kernels


def strip(model: keras.Model, *, grids: bool = False) -> keras.Model:
    """The plain Keras model: no layer of kquant's is left where Keras has one.

    Copies: `model` stays as it was.

    Args:
        model: what `kquant.prune`, `kquant.cluster` or `kquant.quantize` returned.
        grids: of a quantized model: weights as the codes hold them, `scale * code`, instead of the float ones.

    Returns:
        A Functional model with the masks and codebooks in its weights. Of a quantized model: the float model that it
        simulates, batch norms folded; layers that it took apart (GRU, attention, layer norms) stay so, in Keras' layers
        and `keras.ops`, and a batch norm with no layer to fold into is a `Rescaling`. A constant tensor of the model,
        and what picks the real steps around a recurrent layer that has a mask, stay layers of kquant's, because Keras
        has none for them.

    Raises:
        ValueError: not a Keras 3 model, or what `kquant.distill` returned: its `.student` is the model.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> [type(layer).__name__ for layer in kquant.strip(kquant.quantize(model)).layers]
        ['InputLayer', 'Dense']
    """
    layers = _layers_of(model)
    plain: dict[int, Any] = {}

    def replace(node: Node, args: tuple, kwargs: dict) -> Any:
        op, x = node.op, args[0] if args else None
        if isinstance(op, FakeQuant):
            # The encoding's place too: what would read it, a wrapper or another `FakeQuant`, is gone as well.
            return [x] * len(node.outputs)
        if isinstance(op, Loop):
            made = _written_out(op, list(args[0]), replace)
            return (made * 2)[: len(node.outputs)]  # the encodings' places again
        if isinstance(op, RealSteps):
            return copied(op, plain)(args[0])  # which Keras has no layer for; its encoding's place is taken, too
        if not isinstance(op, Holder):
            return _in_keras(op, plain)(*args, **kwargs)
        if id(op) not in plain:
            plain[id(op)] = _without_grid(op, grids)
        return [plain[id(op)](x)] * len(node.outputs)

    return as_keras(rewrite(trace(release(model, layers)[0], stays, masks=True, whole=is_described), replace))


def _layers_of(model: Any) -> list[keras.layers.Layer]:
    """All layers of a model that may be stripped."""
    layers = layers_of(model, "strip")
    if hasattr(model, "student") and hasattr(model, "teacher"):  # `train` is above this module: not imported here
        kind = f"{type(model).__module__}.{type(model).__name__}"
        raise ValueError(f"strip: {kind} trains a model and is none to strip. Give the one that it trained: .student.")
    return layers


def _in_keras(op: Any, made: dict[int, Any]) -> Any:
    """What computes the same without a class of kquant's, where Keras has it."""
    if isinstance(op, Affine):
        if id(op) not in made:
            made[id(op)] = _rescaling(op.name, op.scale, op.offset)
        return made[id(op)]
    ours = isinstance(op, keras.layers.Layer) and type(op).__module__.startswith("kquant.")
    return _recorded(op) if ours and not isinstance(op, Stored) else copied(op, made)


def _recorded(op: Any) -> Any:
    """The operations of `keras.ops` that a layer without trainable weights is written in."""

    def call(*args: Any, **kwargs: Any) -> Any:
        # Inside, layers of kquant's compute in float; what they would tell a calibration goes nowhere.
        with observing(lambda *_: None):
            return op.call(*args, **kwargs)

    return call


def _written_out(op: Loop, xs: list[Any], replace: Callable[[Node, tuple, dict], Any]) -> list[Any]:
    """The results of a loop with every step in Keras' layers, which all steps share."""
    ports, _, states = op.ports
    zero = keras.ops.zeros_like(xs[0][:, :1, :1])
    now = [keras.ops.tile(zero, (1, 1, t.shape[-1])) for t in states]
    made: list[list[Any]] = []  # the states after every step
    for step in range(xs[0].shape[1]):
        new = {id(t): x[:, step : step + 1] for t, x in zip(ports, xs, strict=True)}
        new |= {id(t): state for t, state in zip(states, now, strict=True)}
        for node in op.nodes:
            args, kwargs = substitute((node.args, node.kwargs), new)
            results = keras.tree.flatten(replace(node, args, kwargs))
            new |= {id(old): fresh for old, fresh in zip(node.outputs, results, strict=True)}
        now = [new[id(t)] for t in op.ends[0]]
        made.append(now)
    every = [[after[n] for after in made] for n in range(op.states)]
    return [keras.ops.concatenate(every[r.state], 1) if r.every else now[r.state] for r in op.results]


def _rescaling(name: str, scale: Any, offset: Any) -> keras.layers.Layer:
    """A constant `scale * x + offset` along the last axis."""
    return keras.layers.Rescaling(*(np.asarray(v, np.float64).tolist() for v in (scale, offset)), name=name)


def _without_grid(op: Any, grids: bool) -> Any:
    """The layer in a wrapper of a quantized model, with the weights that the wrapper gives it."""
    values = {k.path: k.on_grid if grids and op.spec is not None else k.used for k in op.kernels()}
    layer, bias, bias_name = op.layer, op.bias_as_used(), getattr(op, "bias_name", None)
    # A correction, or a folded batch norm, gave a bias to a layer that had none.
    if bias is not None and getattr(layer, "use_bias", True) is False:
        layer = rebuild(layer, use_bias=True)
    if isinstance(layer, Affine):
        (scale,) = values.values()
        return _rescaling(op.name, scale, bias)
    values |= {} if bias is None else {str(bias_name): bias}
    return with_kernels(layer, {path: np.asarray(value) for path, value in values.items()})
