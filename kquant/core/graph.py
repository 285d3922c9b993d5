"""Keras graphs: read one (`trace`), write one (`rewrite`). The only file that touches Keras internals.

`trace` unfolds whatever has no rule: nested models, Sequential models, subclassed models and custom layers whose `call`
is made of Keras layers and `keras.ops`. It never changes the model it reads: nodes that Keras records on shared layers
while a `call` is unfolded are taken back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras import tree
from keras.src.ops.node import Node as KerasNode  # recorded calls; Keras has no public name for them

Tensor = keras.KerasTensor


@dataclass(frozen=True, eq=False)
class Node:
    """One call of one Keras layer or operation.

    Attributes:
        op: the layer or `keras.Operation`.
        args, kwargs: what it was called with; tensors are `Tensor`s of this graph.
        outputs: the tensors it made.
    """

    op: Any
    args: tuple
    kwargs: dict
    outputs: tuple[Tensor, ...]

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.op.name

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The graph's tensors among the arguments, in order."""
        return tuple(x for x in tree.flatten((self.args, self.kwargs)) if isinstance(x, Tensor))


@dataclass(frozen=True, eq=False)
class Graph:
    """A model as calls in order: `inputs` and `outputs` keep the model's structure (tensor, list or dict)."""

    name: str
    inputs: Any
    outputs: Any
    nodes: tuple[Node, ...]

    def producers(self) -> dict[int, Node]:
        """id(tensor) -> the node that made it."""
        return {id(t): node for node in self.nodes for t in node.outputs}

    def consumers(self) -> dict[int, list[Node]]:
        """id(tensor) -> the nodes that read it, each once for every time it reads it."""
        found: dict[int, list[Node]] = {}
        for node in self.nodes:
            for t in node.inputs:
                found.setdefault(id(t), []).append(node)
        return found

    def calls(self) -> dict[int, list[Node]]:
        """id(layer) -> its calls; more than one for a shared layer."""
        found: dict[int, list[Node]] = {}
        for node in self.nodes:
            found.setdefault(id(node.op), []).append(node)
        return found


def trace(model: keras.Model, known: Callable[[Any], bool], input_shape: Any = None) -> Graph:
    """The calls of `model`, unfolded until every operation is `known`.

    Args:
        model: a built Keras 3 model of any kind.
        known: tells which layers and operations stay whole.
        input_shape: shapes with batch axis (one, or a list for several inputs) that replace the model's own.

    Returns:
        The graph, unused branches left out.

    Raises:
        ValueError: the model is not built, or a `call` cannot be followed symbolically.
    """
    inputs = _inputs_of(model, input_shape)
    with _untouched(model):
        nodes: list[Node] = []
        outputs = _unfold(model, (inputs,), {}, known, nodes)
    return Graph(model.name, inputs, outputs, _reachable(nodes, tree.flatten(outputs)))


def rewrite(
    graph: Graph,
    replace: Callable[[Node, tuple, dict], Any],
    name: str | None = None,
    enter: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> keras.Model:
    """A new Functional model: every node's call is what `replace` makes of it.

    Args:
        graph: what `trace` read.
        replace: called in order with the node and its arguments on the new model's tensors; returns the new outputs.
        name: of the new model, the old one's by default.
        enter: what becomes of a new input before anything reads it, `enter(old, new)`.

    Returns:
        A Functional model with the same structure of inputs and outputs.
    """
    new: dict[int, Any] = {}
    inputs = tree.map_structure(lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name), graph.inputs)
    for old, fresh in zip(tree.flatten(graph.inputs), tree.flatten(inputs), strict=True):
        new[id(old)] = fresh if enter is None else enter(old, fresh)
    for node in graph.nodes:
        args, kwargs = _substitute((node.args, node.kwargs), new)
        results = tree.flatten(replace(node, args, kwargs))
        for old, fresh in zip(node.outputs, results, strict=True):
            new[id(old)] = fresh
    outputs = tree.map_structure(lambda t: new[id(t)], graph.outputs)
    return keras.Model(inputs, _distinct(outputs, inputs), name=name or graph.name)


def _distinct(outputs: Any, inputs: Any) -> Any:
    """A model needs at least one operation between its inputs and outputs; Identity keeps a bare input legal."""
    bare = {id(t) for t in tree.flatten(inputs)}
    return tree.map_structure(lambda t: keras.layers.Identity()(t) if id(t) in bare else t, outputs)


def _inputs_of(model: keras.Model, input_shape: Any) -> Any:
    if not model.built:
        raise ValueError(
            f"{model.name}: the model is not built, so its shapes are unknown. Call it once on data, "
            "or `model.build(input_shape)`, before quantizing."
        )
    if isinstance(model, keras.Sequential):
        model = model._functional
    if hasattr(model, "_inputs_struct"):
        struct = model._inputs_struct
    else:
        struct = _subclassed_inputs(model)
    if isinstance(struct, list | tuple) and len(struct) == 1:
        struct = struct[0]  # as Keras loads old files; a bare tensor is what everybody passes
    if input_shape is not None:
        struct = _reshaped(struct, input_shape, model.name)
    return tree.map_structure(lambda t: Tensor(t.shape, t.dtype, name=t.name), struct)


def _reshaped(struct: Any, input_shape: Any, name: str) -> Any:
    flat = tree.flatten(struct)
    shapes = [input_shape] if isinstance(input_shape[0], int | None) else list(input_shape)
    if len(shapes) != len(flat):
        raise ValueError(f"{name}: input_shape must give {len(flat)} shapes, one for each input. Received: {input_shape}.")
    for t, shape in zip(flat, shapes, strict=True):
        if len(shape) != len(t.shape):
            raise ValueError(
                f"{name}: input_shape for '{t.name}' must have rank {len(t.shape)}, batch axis included, like "
                f"{t.shape}. Received: {tuple(shape)}."
            )
    new = [Tensor((None, *shape[1:]), t.dtype, name=t.name) for t, shape in zip(flat, shapes, strict=True)]
    return tree.pack_sequence_as(struct, new)


def _subclassed_inputs(model: keras.Model) -> Any:
    """Inputs of a subclassed model from the shapes it was built with."""
    shapes = model._build_shapes_dict or {}
    if len(shapes) != 1:
        raise ValueError(
            f"{model.name}: cannot tell the inputs of this subclassed model (built with {sorted(shapes)}). Its `call` "
            "must take one argument (a tensor, list or dict) besides `training`; call the model once on data first."
        )
    shape = next(iter(shapes.values()))
    dtype = model.input_dtype
    counter = iter(range(1000))
    return tree.map_shape_structure(lambda s: Tensor((None, *s[1:]), dtype, name=f"input_{next(counter)}"), shape)


@contextlib.contextmanager
def _untouched(model: keras.Model) -> Iterator[None]:
    """Take back every node that unfolding records on the layers of `model`."""
    layers = list(model._flatten_layers(include_self=True))
    before = [(layer, len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in layers]
    try:
        yield
    finally:
        for layer, inbound, outbound in before:
            del layer._inbound_nodes[inbound:]
            del layer._outbound_nodes[outbound:]


def _unfold(op: Any, args: tuple, kwargs: dict, known: Callable[[Any], bool], nodes: list[Node]) -> Any:
    """Append the calls that `op(*args, **kwargs)` consists of; return its outputs."""
    if known(op):
        outputs = _fresh(op, args, kwargs)
        nodes.append(Node(op, args, kwargs, tuple(tree.flatten(outputs))))
        return outputs
    if isinstance(op, keras.Sequential):
        op = op._functional
    if hasattr(op, "_nodes_by_depth") and type(op).call in (keras.Model.call, keras.Function.call, _functional_call()):
        return _unfold_function(op, args, known, nodes)
    if isinstance(op, keras.layers.Layer):
        return _unfold_call(op, args, kwargs, known, nodes)
    outputs = _fresh(op, args, kwargs)  # an operation without a rule: kept, refused later by name
    nodes.append(Node(op, args, kwargs, tuple(tree.flatten(outputs))))
    return outputs


def _functional_call() -> Any:
    from keras.src.models.functional import Functional

    return Functional.call


def _fresh(op: Any, args: tuple, kwargs: dict) -> Any:
    """New tensors of the shapes that `op` makes of its arguments."""
    training = {k: v for k, v in kwargs.items() if k not in ("training", "mask")}
    spec = op.compute_output_spec(*args, **training)
    return tree.map_structure(lambda t: Tensor(t.shape, t.dtype), spec)


def _unfold_function(op: Any, args: tuple, known: Callable[[Any], bool], nodes: list[Node]) -> Any:
    new: dict[int, Any] = {}
    given = args[0]
    if isinstance(given, dict) and not isinstance(op._inputs_struct, dict):
        given = [given[t.name] for t in op.inputs]  # Keras accepts a dict by input names too
    for old, fresh in zip(op.inputs, tree.flatten(given), strict=True):
        new[id(old)] = fresh
    for depth in sorted(op._nodes_by_depth, reverse=True):
        for node in op._nodes_by_depth[depth]:
            if node.is_input or any(id(t) not in new for t in node.input_tensors):
                continue
            inner_args, inner_kwargs = node.arguments.fill_in(new)
            outputs = _unfold(node.operation, tuple(inner_args), dict(inner_kwargs), known, nodes)
            for old, fresh in zip(node.outputs, tree.flatten(outputs), strict=True):
                new[id(old)] = fresh
    return tree.map_structure(lambda t: new[id(t)], op._outputs_struct)


def _unfold_call(op: Any, args: tuple, kwargs: dict, known: Callable[[Any], bool], nodes: list[Node]) -> Any:
    """Run `op.call` on symbolic tensors and unfold the calls it recorded."""
    starts = [x for x in tree.flatten((args, kwargs)) if isinstance(x, Tensor)]
    ours = {id(t): Tensor(t.shape, t.dtype) for t in starts}
    call_args, call_kwargs = _substitute((args, kwargs), ours)
    if op._call_has_training_arg:
        call_kwargs["training"] = False
    elif "training" in call_kwargs:
        del call_kwargs["training"]
    try:
        outputs = op.call(*call_args, **call_kwargs)
    except Exception as error:  # whatever the user's code raises on symbolic tensors
        raise ValueError(
            f"{op.name} ({type(op).__name__}): its `call` cannot be followed on symbolic tensors, so kquant cannot see "
            f"what it computes. Write it with Keras layers and `keras.ops` instead of raw `tf.*` or numpy, or replace "
            f"it before quantizing. It said: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    if not all(isinstance(t, Tensor) for t in tree.flatten(outputs)):
        raise ValueError(f"{op.name} ({type(op).__name__}): its `call` must return tensors only. Received: {outputs}.")
    back = {id(ours[id(t)]): t for t in starts}
    for node in _recorded(tree.flatten(outputs), set(back)):
        inner_args, inner_kwargs = node.arguments.fill_in(back)
        fresh = _unfold(node.operation, tuple(inner_args), dict(inner_kwargs), known, nodes)
        for old, t in zip(node.outputs, tree.flatten(fresh), strict=True):
            back[id(old)] = t
    return tree.map_structure(lambda t: back[id(t)], outputs)


def _recorded(outputs: list[Tensor], starts: set[int]) -> list[KerasNode]:
    """The recorded calls between the tensors `starts` and `outputs`, in order."""
    ordered: list[KerasNode] = []
    seen: set[int] = set()
    stack: list[tuple[Tensor, bool]] = [(t, False) for t in reversed(outputs)]
    while stack:
        t, done = stack.pop()
        if id(t) in starts or not hasattr(t, "_keras_history") or t._keras_history.operation is None:
            continue
        node = t._keras_history.operation._inbound_nodes[t._keras_history.node_index]
        if done:
            if id(node) not in seen:
                seen.add(id(node))
                ordered.append(node)
        elif id(node) not in seen:
            stack.append((t, True))
            stack.extend((parent, False) for parent in reversed(node.input_tensors))
    return ordered


def _substitute(structure: Any, new: dict[int, Any]) -> Any:
    return tree.map_structure(lambda x: new.get(id(x), x) if isinstance(x, Tensor) else x, structure)


def _reachable(nodes: list[Node], outputs: list[Tensor]) -> tuple[Node, ...]:
    """Only what the outputs need: unused branches go."""
    needed = {id(t) for t in outputs}
    kept = []
    for node in reversed(nodes):
        if any(id(t) in needed for t in node.outputs):
            kept.append(node)
            needed.update(id(t) for t in node.inputs)
    return tuple(reversed(kept))


def run(graph: Graph, inputs: Any) -> dict[int, Any]:
    """Every tensor of the graph computed on real inputs (inference): id(tensor) -> value.

    Args:
        graph: what `trace` read.
        inputs: arrays or tensors in the structure of `graph.inputs`.
    """
    values = {id(t): x for t, x in zip(tree.flatten(graph.inputs), tree.flatten(inputs), strict=True)}
    for node in graph.nodes:
        args, kwargs = _substitute((node.args, node.kwargs), values)
        for t, value in zip(node.outputs, tree.flatten(node.op(*args, **kwargs)), strict=True):
            values[id(t)] = value
    return values


def full_precision() -> contextlib.AbstractContextManager:
    """Inside, variables read in their own dtype, whatever a mixed policy would cast them to."""
    return keras.src.backend.AutocastScope(None)
