"""A recurrent network as the model of one step, for devices that hear or measure one frame after the other.

    (x_t, h)  ->  step  ->  (y_t, h')         the application copies h' to h: both have one encoding

An LSTM with its default activations has a shorter way: `stateful=True` keeps the states in the file, the cell state in
16 bits (docs/recurrent.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kquant.core.renamed import renamed
from kquant.graph.defaults import own_defaults
from kquant.graph.given_model import check_keras
from kquant.graph.graph import Graph, Node, substitute, trace
from kquant.graph.keras_private import deep_graphs, every_layer
from kquant.graph.step_mask import StepMask
from kquant.ops import find
from kquant.ops.expansion import expand_call
from kquant.ops.unrolled import CELLS, SameEncoding, Steps
from kquant.views.float_model import refuse_quantized

layers = keras.layers

# Layers that compute every step from this step alone.
PER_STEP = (
    layers.Dense,
    layers.EinsumDense,
    layers.TimeDistributed,
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Softmax,
    layers.BatchNormalization,
    layers.LayerNormalization,
    layers.Rescaling,
    layers.Normalization,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.GaussianNoise,
    layers.Identity,
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
)


def cell(model: keras.Model | keras.layers.Layer) -> keras.Model:
    """The model of one step of a recurrent network.

    Copies: `model` stays as it was.

    Args:
        model: a built recurrent layer, or a model of GRU, SimpleRNN and LSTM layers (or RNN of their cells) and layers
            that treat every step alike.

    Returns:
        A Functional model: inputs `[x, *states]`, x of shape [1, features], each state [1, units], named after its
        layer ("gru_h", "lstm_c"); outputs `[y, *new states]`. The file gives a state in and out the same encoding.

    Raises:
        ValueError: a layer that mixes steps (a convolution, pooling, Bidirectional), by name; a quantized model.

    Example:
        >>> model = keras.Sequential([keras.Input((20, 3)), layers.GRU(4, name="gru"), layers.Dense(2)])
        >>> step = cell(model)
        >>> [tuple(x.shape) for x in step.inputs], [tuple(y.shape) for y in step.outputs]
        ([(None, 1, 3), (None, 1, 4)], [(None, 2), (None, 1, 4)])
    """
    if isinstance(model, keras.layers.RNN):
        model = keras.Sequential([keras.Input((1, model.cell.kernel.shape[0]), name="x"), model])
    check_keras(model, "cell")
    refuse_quantized(model, every_layer(model))
    shapes = [(1, 1, *t.shape[2:]) for t in keras.tree.flatten(model.inputs)]
    _refuse_mixing(trace(model, _is_known))
    graph = trace(model, _is_known, shapes if len(shapes) > 1 else shapes[0])
    with own_defaults(graph.layers):
        return _assembled(graph, [_open(t) for t in graph.input_tensors])


@renamed
def cell_samples(step: keras.Model, data: np.ndarray) -> list[np.ndarray]:
    """What the inputs of a step model see while it runs over sequences: data to calibrate, train or verify it with.

    Reads: `step` stays as it was.

    Args:
        step: what `cell` returned; one input besides the states.
        data: float32[samples, steps, features].

    Returns:
        One array [samples * steps, 1, ...] for each input, in order.

    Example:
        >>> step = cell(keras.Sequential([keras.Input((20, 3)), layers.GRU(4, name="gru")]))
        >>> [a.shape for a in cell_samples(step, np.zeros((2, 20, 3), np.float32))]
        [(40, 1, 3), (40, 1, 4)]
    """
    check_keras(step, "cell_samples")
    seen: list[list[np.ndarray]] = []
    states = [np.zeros((len(data), *t.shape[1:]), np.float32) for t in step.inputs[1:]]
    for t in range(data.shape[1]):
        given = [np.asarray(data[:, t : t + 1], np.float32), *states]
        seen.append(given)
        made = step([keras.ops.convert_to_tensor(a) for a in given], training=False)
        states = [np.asarray(y) for y in made[-len(states) :]]
    return [np.concatenate(column) for column in zip(*seen, strict=True)]


def _is_known(op: Any) -> bool:
    return find(op) is not None


def _is_recurrent(op: Any) -> bool:
    return type(getattr(op, "cell", None)) in CELLS


def _open(t: Any) -> Any:
    return keras.Input(t.shape[1:], dtype=t.dtype, name=t.name)


def _refuse_mixing(graph: Graph) -> None:
    """Only per-step layers may read a sequence.

    Raises:
        ValueError: naming the first layer that does not.
    """
    mask = next((node.op for node in graph.nodes if isinstance(node.op, StepMask)), None)
    if mask is not None:
        raise ValueError(
            f"{mask.name}: a layer reads this mask, and a stream has no padding. Build the model without Masking and "
            "mask_zero=True (its weights are the same), and run no step where there is none."
        )
    sequences = {id(t) for t in graph.input_tensors}
    for node in graph.nodes:
        if not any(id(t) in sequences for t in node.inputs):
            continue
        op = node.op
        if _is_recurrent(op):
            _refuse_recurrent(node)
            sequences |= {id(node.outputs[0])} if op.return_sequences else set()
            continue
        alike = isinstance(op, PER_STEP) or (isinstance(op, layers.Concatenate) and op.axis in (-1, 2))
        if not alike:
            raise ValueError(
                f"{op.name} ({type(op).__name__}): it computes a step from other steps, so there is no model of one "
                "step of the network. Pass the recurrent part alone; run this layer before it."
            )
        sequences.add(id(node.outputs[0]))


def _refuse_recurrent(node: Node) -> None:
    op = node.op
    if op.go_backwards:
        raise ValueError(f"{op.name} ({type(op).__name__}): go_backwards=True starts at the last step; take it out.")
    if len(node.inputs) > 1:
        raise ValueError(f"{op.name} ({type(op).__name__}): it is given an initial state; a step model has its own.")


class _Builder:
    """Calls of the one-step model, and the states that its recurrent layers pass on."""

    def __init__(self) -> None:
        self.made: dict[tuple[int, str], Any] = {}
        self.states_in: list[Any] = []
        self.states_out: list[Any] = []

    def make_for(self, op: Any) -> Callable[[str, Callable[[], Any]], Any]:
        """One layer for each key of an original."""

        def make(key: str, factory: Callable[[], Any]) -> Any:
            if (id(op), key) not in self.made:
                self.made[id(op), key] = factory()
            return self.made[id(op), key]

        return make

    def call(self, node: Node, args: tuple, kwargs: dict) -> Any:
        """One call: a step of a recurrent layer, or the layer itself."""
        if not _is_recurrent(node.op):
            return expand_call(node.op, self.make_for, args, kwargs)
        op, x = node.op, args[0]
        build, number = CELLS[type(op.cell)]
        steps = Steps(op, self.make_for(op))
        inputs, step = build(steps, x)
        before = [keras.Input((1, op.cell.units), name=f"{op.name}_{name}") for name in "hc"[:number]]
        after = step(inputs, before)
        named = zip("hc", after, before, strict=False)
        after = [SameEncoding(name=f"{op.name}_{n}_next")([new, old]) for n, new, old in named]
        self.states_in += before
        self.states_out += after
        rows = [layers.Reshape((op.cell.units,), name=f"{op.name}_row_{i}")(h) for i, h in enumerate(after)]
        first = after[0] if op.return_sequences else rows[0]
        return [first, *rows] if op.return_state else first


def _assembled(graph: Graph, inputs: list[Any]) -> keras.Model:
    """The model with states beside its own inputs and outputs."""
    builder, new = _Builder(), {}
    for old, fresh in zip(graph.input_tensors, inputs, strict=True):
        new[id(old)] = fresh
    for node in graph.nodes:
        args, kwargs = substitute((node.args, node.kwargs), new)
        for old, fresh in zip(node.outputs, keras.tree.flatten(builder.call(node, args, kwargs)), strict=True):
            new[id(old)] = fresh
    outputs = [new[id(t)] for t in graph.output_tensors]
    states = {id(t) for t in builder.states_out}
    outputs = [layers.Reshape(t.shape[1:], name=f"y{i}")(t) if id(t) in states else t for i, t in enumerate(outputs)]
    with deep_graphs():
        return keras.Model([*inputs, *builder.states_in], [*outputs, *builder.states_out], name=f"{graph.name}_step")
