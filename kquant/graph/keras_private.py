"""What kquant needs of Keras that Keras does not export: every such name stands in this file, and in no other.

Each function gives one thing and says which attribute it relies on; all are there in Keras 3.11 to 3.15. Where a new
Keras changes one, this is the file to mend. What has a public name (`model.input` of a Functional model,
`layer.call_signature_parameters`, `layer.get_build_config()`) is read by that instead.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import keras
from keras.src import backend
from keras.src.backend.common import global_state
from keras.src.layers.layer import CallContext
from keras.src.models.functional import Functional
from keras.src.ops.node import Node as KerasNode
from keras.src.ops.numpy import Multiply
from keras.src.utils.naming import to_snake_case
from keras.src.utils.python_utils import pythonify_logs

__all__ = [
    "KerasNode",  # one recorded call: operation, arguments, input_tensors, outputs, is_input
    "Multiply",  # the operation, which may be given a name; `keras.ops.multiply` is the function only
    "to_snake_case",  # how Keras makes a name of a class
]

# Attributes in which a layer keeps books of its own: recorded calls, the config it was made with, a lock.
BOOKKEEPING = ("_inbound_nodes", "_outbound_nodes", "_auto_config", "_lock")
# Those in which it lists once more what its other attributes hold.
LISTS = ("_tracker", "_parent_path", "_inbound_nodes", "_outbound_nodes", "_layers", "_metrics")


# What a layer holds


def every_layer(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """A layer or model and all layers in it, at any depth, a wrapper before what it wraps.

    Relies on `Layer._flatten_layers(include_self, recursive)`; the public `Model.layers` has one level, of models only.

    Example:
        >>> layer = keras.layers.TimeDistributed(keras.layers.Dense(2, name="inside"), name="around")
        >>> [held.name for held in every_layer(layer)], [held.name for held in inner_layers(layer)]
        (['around', 'inside'], ['inside'])
    """
    return list(layer._flatten_layers())


def layers_inside(ops: Iterable[Any]) -> list[keras.layers.Layer]:
    """The layers among operations, each with all layers in it.

    Relies on what `every_layer` relies on.
    """
    return [held for op in ops if isinstance(op, keras.layers.Layer) for held in every_layer(op)]


def inner_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers in a layer or model, at any depth, without itself.

    Relies on `Layer._flatten_layers`, as `every_layer` does.
    """
    return list(layer._flatten_layers(include_self=False))


def own_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The variables that a layer made itself to be trained, whether they are frozen now or not.

    Relies on `Layer._trainable_variables`, the list of Keras' tracker; the public lists have those of inner layers too.
    """
    return list(layer._trainable_variables)


def own_states(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The other variables that a layer made itself: statistics, counters.

    Relies on `Layer._non_trainable_variables`, the list of Keras' tracker.
    """
    return list(layer._non_trainable_variables)


def variable_of(layer: keras.layers.Layer, name: str) -> Any:
    """What a layer has under a name: the variable itself where Keras shows a property computed of it.

    Relies on `_kernel` and `_embeddings` of Dense, EinsumDense, Embedding and the convolutions; their public `kernel`
    and `embeddings` are the variables plus what LoRA adds.

    Example:
        >>> layer = keras.layers.Dense(2)
        >>> layer.build((None, 3))
        >>> len(variable_of(layer, "kernel").shape), variable_of(layer, "bias") is layer.bias
        (2, True)
    """
    held = getattr(layer, f"_{name}", None)
    return held if isinstance(held, keras.Variable) else getattr(layer, name)


def set_trainable_alone(layer: keras.layers.Layer, value: bool) -> None:
    """Set `trainable` of a layer, but not of its variables and the layers in it.

    Relies on `Layer._trainable`, what the public property reads; setting that one goes down to all within.
    """
    layer._trainable = value


@contextlib.contextmanager
def growing(layer: keras.layers.Layer) -> Iterator[None]:
    """Inside, a built layer takes on variables and layers, as Keras' own do where they must (enable_lora).

    Relies on `Layer._tracker`, its `locked` and `unlock()`: a built layer refuses new variables while it is locked.
    """
    locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.locked = locked


def projection(layer: keras.layers.Layer, name: str) -> keras.layers.EinsumDense:
    """One of the projections of MultiHeadAttention or GroupQueryAttention.

    Relies on `_query_dense`, `_key_dense`, `_value_dense`, `_output_dense`, and on `_gate_dense` where the layer has
    `use_gate` (Keras 3.14); MultiHeadAttention has public properties of all but the gate, GroupQueryAttention of none.

    Args:
        layer: built.
        name: "query", "key", "value", "gate" or "output".
    """
    return getattr(layer, f"_{name}_dense")


def masked_moments(norm: keras.layers.BatchNormalization, x: Any, mask: Any) -> tuple[Any, Any]:
    """Mean and variance of each channel over the steps that a mask keeps, as a batch norm computes them in training.

    Relies on `BatchNormalization._moments(inputs, mask)`.
    """
    moments: Any = norm._moments(x, mask)
    return moments


# Calls that Keras has recorded


def recorded(t: keras.KerasTensor) -> KerasNode | None:
    """The call that made a symbolic tensor; None of one that nothing made.

    Relies on `KerasTensor._keras_history` (operation, node_index), which is missing before anything has read the
    tensor, and on `Operation._inbound_nodes`.
    """
    history = getattr(t, "_keras_history", None)
    if history is None or history.operation is None or not hasattr(history.operation, "_inbound_nodes"):
        return None
    return history.operation._inbound_nodes[history.node_index]


def maker(t: keras.KerasTensor) -> Any:
    """The layer or operation that made a symbolic tensor; None of one that nothing made.

    Relies on `KerasTensor._keras_history`, as `recorded` does.

    Example:
        >>> maker(keras.layers.ReLU(name="relu")(keras.Input((2,)))).name
        'relu'
    """
    return getattr(getattr(t, "_keras_history", None), "operation", None)


def made_of(t: keras.KerasTensor) -> tuple[Any, list[keras.KerasTensor]]:
    """The layer or operation that made a symbolic tensor, and the tensors it read; None and none where nothing did.

    Relies on what `recorded` relies on.
    """
    node = recorded(t)
    return (None, []) if node is None else (node.operation, list(node.input_tensors))


def mask_of(t: keras.KerasTensor) -> Any:
    """The mask that Keras hands on beside a tensor, or None.

    Relies on the attribute `_keras_mask`, which Keras sets on tensors.
    """
    return getattr(t, "_keras_mask", None)


def losses_of_calls(layer: keras.layers.Layer) -> list[Any]:
    """What the last call of a layer or model added to the loss, without the regularizers of its weights.

    Relies on `Layer._losses`; the public `losses` has those of weights too.
    """
    return [loss for held in every_layer(layer) for loss in held._losses]


def calls_of(op: Any) -> tuple[list[KerasNode], list[KerasNode]]:
    """The recorded calls of a layer or operation, and those that read its outputs: Keras' own lists.

    Relies on `Operation._inbound_nodes` and `_outbound_nodes`.

    Example:
        >>> layer = keras.layers.ReLU()
        >>> y = layer(layer(keras.Input((2,))))
        >>> [len(calls) for calls in calls_of(layer)]
        [2, 1]
    """
    return op._inbound_nodes, op._outbound_nodes


def forget_calls(op: Any) -> None:
    """A layer or operation as if nothing had called it; what its calls made can no longer be followed.

    Relies on the lists of `calls_of`.

    Example:
        >>> layer = keras.layers.ReLU()
        >>> y = layer(keras.Input((2,)))
        >>> forget_calls(layer)
        >>> len(calls_of(layer)[0])
        0
    """
    for calls in calls_of(op):
        calls.clear()


@contextlib.contextmanager
def calls_forgotten(layers: Iterable[Any]) -> Iterator[None]:
    """Afterwards, layers have no record of the calls that they got inside.

    Relies on the lists of `calls_of`, from whose ends it takes.
    """
    before = [(calls, len(calls)) for layer in layers for calls in calls_of(layer)]
    try:
        yield
    finally:
        for calls, count in before:
            del calls[count:]


# Functional models

DEEP = 100_000  # layers in a row, of which a quantized model has three where the float one has one


@contextlib.contextmanager
def deep_graphs() -> Iterator[None]:
    """Inside, Keras makes Functional models of any depth.

    Relies on `keras.src.ops.function._build_map_helper`, which goes from the outputs to the inputs by calling itself:
    with Python's own limit of 1,000 that fails for some 990 layers in a row. Python takes no room on the stack of C for
    such a call.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, DEEP))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def functional_of(model: keras.Sequential) -> keras.Model:
    """The Functional model that a built Sequential one computes with.

    Relies on `Sequential._functional`.
    """
    return model._functional


def computes_recorded(op: Any) -> bool:
    """True for models and functions whose `call` is Keras' own, which repeats the calls that were recorded.

    Relies on `keras.src.models.functional.Functional`, which Keras exports as no name of its own: `keras.Model(x, y)`
    makes one.
    """
    own = (keras.Model.call, keras.Function.call, Functional.call)
    return isinstance(op, keras.Function) and type(op).call in own


def recorded_calls(function: keras.Function) -> list[KerasNode]:
    """The calls that a function or Functional model consists of, in the order in which it computes them.

    Relies on `Function._nodes_by_depth` (depth -> calls), the deepest of which come first.
    """
    by_depth = function._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def structures(function: keras.Function) -> tuple[Any, Any]:
    """Inputs and outputs of a function or Functional model, nested as they were given.

    Relies on `Function._inputs_struct` and `_outputs_struct`; Functional models have them as `input` and `output`.
    """
    return function._inputs_struct, function._outputs_struct


# Scopes of a call


@contextlib.contextmanager
def called_from(layer: keras.layers.Layer, training: bool | None) -> Iterator[None]:
    """Inside, as in `layer.__call__`: the layers that `layer.call` calls inherit `training`.

    Relies on `CallContext(entry_layer)`, which Keras reads as the global attribute "current_call_ctx".
    """
    before = global_state.get_global_attribute("current_call_ctx")
    context: Any = CallContext(entry_layer=layer)
    context.training = training
    global_state.set_global_attribute("current_call_ctx", context)
    try:
        yield
    finally:
        global_state.set_global_attribute("current_call_ctx", before)


def variables_as(dtype: str) -> contextlib.AbstractContextManager[Any]:
    """Inside, float variables read as this type, whatever a policy would cast them to.

    Relies on `keras.src.backend.AutocastScope(dtype)`, which `Layer.__call__` opens around `call`.
    """
    return backend.AutocastScope(dtype)


def is_autocasting() -> bool:
    """True inside a layer whose policy has float variables read as another type.

    Relies on `keras.src.backend.get_autocast_scope()`.
    """
    return backend.get_autocast_scope() is not None


# What `evaluate` tells


def results_of(model: keras.Model, logs: Any) -> dict[str, Any]:
    """Results of a model's metrics as numbers, by name; the logs of its last step where that names others.

    Relies on `Trainer._get_metrics_result_or_logs` and `pythonify_logs`.

    Args:
        model: a compiled one.
        logs: that its `test_step` returned.
    """
    return pythonify_logs(model._get_metrics_result_or_logs(logs))


def in_order(model: keras.Model, results: dict[str, Any]) -> Any:
    """Results as `evaluate` returns them: a list in the order of a model's metrics, or the only one.

    Relies on `Trainer._flatten_metrics_in_order`.
    """
    return model._flatten_metrics_in_order(results)
