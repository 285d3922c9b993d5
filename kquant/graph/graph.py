"""Keras graphs: read one (`trace`), write one (`rewrite`), compute one (`run`).

What Keras does not export stands in `keras_private`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
from keras import KerasTensor as Tensor
from keras import tree

from kquant.graph.creation import with_one_name, without_collection
from kquant.graph.defaults import own_defaults
from kquant.graph.inputs import check_static, inputs_of, like
from kquant.graph.keras_private import calls_forgotten, deep_graphs, forget_calls, made_of, maker
from kquant.graph.output_names import functional, output_names
from kquant.graph.steps_kept import StepsKept, steps_kept, told
from kquant.graph.unfold import Node, substitute, unfold


@dataclass(frozen=True, eq=False)
class Graph:
    """A model as calls in order: `inputs` and `outputs` keep the model's structure (tensor, list or dict).

    `output_names` are what the model calls its outputs, flattened; None where nothing says so. `kept` tells which steps
    of them losses count, where masks say so. What follows from the calls (`producers` and the like) is found at its
    first use and kept: it is for reading.
    """

    name: str
    inputs: Any
    outputs: Any
    nodes: tuple[Node, ...]
    output_names: tuple[str, ...] | None = None
    kept: tuple[StepsKept | None, ...] = ()

    @cached_property
    def input_tensors(self) -> list[Any]:
        """`inputs`, flattened."""
        return tree.flatten(self.inputs)

    @cached_property
    def output_tensors(self) -> list[Any]:
        """`outputs`, flattened."""
        return tree.flatten(self.outputs)

    @cached_property
    def layers(self) -> list[Any]:
        """The layers and operations that the nodes call, each once."""
        return list({id(node.op): node.op for node in self.nodes}.values())

    @cached_property
    def producers(self) -> dict[int, Node]:
        """id(tensor) -> the node that made it."""
        return {id(t): node for node in self.nodes for t in node.outputs}

    @cached_property
    def consumers(self) -> dict[int, list[Node]]:
        """id(tensor) -> the nodes that read it, each once for every time it reads it."""
        readers: dict[int, list[Node]] = {}
        for node in self.nodes:
            for t in node.inputs:
                readers.setdefault(id(t), []).append(node)
        return readers

    @cached_property
    def last_reads(self) -> dict[int, int]:
        """id(tensor) -> number of the last node that reads it; what no node reads is not in it."""
        return {id(t): i for i, node in enumerate(self.nodes) for t in node.inputs}

    @cached_property
    def calls(self) -> dict[int, list[Node]]:
        """id(layer) -> its calls; more than one for a shared layer."""
        by_layer: dict[int, list[Node]] = {}
        for node in self.nodes:
            by_layer.setdefault(id(node.op), []).append(node)
        return by_layer


def trace(
    model: keras.Model,
    known: Callable[[Any], bool],
    input_shape: Any = None,
    *,
    masks: bool = False,
    whole: Callable[[Any], bool] | None = None,
    static: bool = False,
) -> Graph:
    """The calls of `model`, unfolded until every operation is `known`.

    Args:
        model: a built Keras 3 model of any kind.
        known: tells which layers and operations stay whole.
        input_shape: shapes with batch axis (one, or a list for several inputs) that replace the model's own.
        masks: layers that heed a mask are welcome, because the graph becomes a Keras model, not a file.
        whole: which of those that act otherwise in training stay whole, so that they go on doing so; none by default.
        static: refuse inputs with open or empty dimensions.

    Returns:
        The graph, unused branches left out.

    Raises:
        ValueError: the model is not built, `input_shape` does not fit, a shape is open that must be static, or a `call`
            cannot be followed symbolically.
    """
    inputs = inputs_of(model, input_shape)
    if static:
        check_static(model.name, inputs)
    try:
        with without_collection():
            nodes, outputs, masked = unfold(model, inputs, known, masks, whole)
        if input_shape is not None:
            for node in nodes:
                _refuse_misfit(node)
    except ValueError as error:
        if input_shape is None:
            raise
        raise ValueError(f"{model.name}: with input_shape={input_shape}: {error}") from error
    # a model of ours tells itself, where its layers hand nothing on
    kept = getattr(model, "kept", ()) or steps_kept(masked, tree.flatten(outputs), nodes, tree.flatten(inputs))
    nodes = reachable(nodes, tree.flatten(outputs))
    return Graph(model.name, inputs, outputs, nodes, output_names(model) or _names(outputs, nodes), kept)


def _names(outputs: Any, nodes: Sequence[Node]) -> tuple[str, ...] | None:
    """What a subclassed model calls its outputs: the keys of a dict, or the layers that make them."""
    flat = tree.flatten(outputs)
    if isinstance(outputs, dict) and len(outputs) == len(flat):
        keys = {id(t): key for key, t in outputs.items()}
        return tuple(str(keys[id(t)]) for t in flat) if len(keys) == len(flat) else None
    makers = {id(t): node.name for node in nodes for t in node.outputs}
    return tuple(makers[id(t)] for t in flat) if all(id(t) in makers for t in flat) else None


def _refuse_misfit(node: Node) -> None:
    """A layer's weights are for one number of channels; Keras says so only where the layer is called."""
    # A layer of several inputs has a list of them; the first says what its first input has to be.
    spec = next(iter(tree.flatten(getattr(node.op, "input_spec", None))), None)
    for axis, expected in (getattr(spec, "axes", None) or {}).items():
        shape = node.inputs[0].shape
        if expected is not None and shape[axis] not in (None, expected):
            raise ValueError(
                f"{node.name} ({type(node.op).__name__}): its weights are for {expected} values along axis {axis} of "
                f"its input. Received: an input of shape {shape}."
            )


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
        A Functional model with the same structure of inputs and outputs, the same names of them, and their masks where
        its layers hand none on.
    """
    with _made_anew(graph, replace, enter) as (inputs, outputs):
        return functional(inputs, outputs, name or graph.name, graph.output_names, told(graph.kept, outputs))


def rewritten(
    graph: Graph, replace: Callable[[Node, tuple, dict], Any], known: Callable[[Any], bool], name: str | None = None
) -> Graph:
    """`trace(rewrite(graph, replace, name), known)`, without the model in between.

    Keras takes as long to make one of calls, and kquant to read these from it, as for some layers of it.

    Args:
        graph: what `trace` read.
        replace: see `rewrite`.
        known: see `trace`.
        name: of the new graph, the old one's by default.
    """
    own = {id(node.op): node.op for node in graph.nodes}
    with calls_forgotten(own.values()), _made_anew(graph, replace) as (inputs, outputs), deep_graphs():
        calls, starts = keras.Function(inputs, outputs), like(inputs)
        nodes, ends, masked = unfold(calls, starts, known)
        flat = tree.flatten(ends)
        kept = told(graph.kept, outputs) or steps_kept(masked, flat, nodes, tree.flatten(starts))
        names = graph.output_names or tuple(maker(t).name for t in tree.flatten(outputs))
        made = Graph(name or graph.name, starts, ends, reachable(nodes, flat), names, kept)
    # These calls belong to no model. A layer that goes on into one would show them as its first, and its `output`
    # would be a tensor that the model does not have.
    for node in made.nodes:
        if id(node.op) not in own:
            forget_calls(node.op)
    return made


@contextlib.contextmanager
def _made_anew(
    graph: Graph,
    replace: Callable[[Node, tuple, dict], Any],
    enter: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """Inputs and outputs of the new calls, where layers are made as the graph has them."""
    new: dict[int, Any] = {}
    # Layers made by `replace` take what the process is set to, and that may be another policy than the model was made
    # under.
    with own_defaults(graph.layers), with_one_name(), without_collection():
        inputs = tree.map_structure(lambda t: keras.Input(t.shape[1:], t.shape[0], t.dtype, name=t.name), graph.inputs)
        for old, fresh in zip(graph.input_tensors, tree.flatten(inputs), strict=True):
            new[id(old)] = fresh if enter is None else enter(old, fresh)
        for node in graph.nodes:
            args, kwargs = substitute((node.args, node.kwargs), new)
            results = tree.flatten(replace(node, args, kwargs))
            for old, fresh in zip(node.outputs, results, strict=True):
                new[id(old)] = fresh
        outputs = tree.map_structure(lambda t: new[id(t)], graph.outputs)
        # Before the model is made, which refuses two operations of one name (Keras' `map_graph`).
        _name_operations_apart(graph, tree.flatten(outputs))
        yield inputs, _distinct(outputs, inputs)


def _name_operations_apart(graph: Graph, outputs: list[Tensor]) -> None:
    """Operations that `replace` called are named by Keras' running numbers, which start anew in every process and after
    `keras.backend.clear_session`: so such a name may be that of an operation that the graph had.
    """
    given, ops, seen = {id(node.op) for node in graph.nodes}, {}, set()
    todo = list(outputs)
    while todo:
        t = todo.pop()
        op, read = (None, []) if id(t) in seen else made_of(t)
        seen.add(id(t))
        todo += read
        if op is not None:
            ops[id(op)] = op
    # Layers have names that `replace` chose, and recipes go by them; names of bare operations mean nothing to anybody.
    ours = [op for key, op in ops.items() if key not in given and not isinstance(op, keras.layers.Layer)]
    others = ops.keys() - {id(op) for op in ours}
    taken = {ops[key].name for key in others}
    for op in reversed(ours):  # in the order of the calls
        named_apart(op, taken)


def _distinct(outputs: Any, inputs: Any) -> Any:
    """A model needs at least one operation between its inputs and outputs; a Reshape to the same shape keeps a bare
    input legal, and gives the file's output a tensor of its own.
    """
    bare = {id(t) for t in tree.flatten(inputs)}
    return tree.map_structure(lambda t: keras.layers.Reshape(t.shape[1:])(t) if id(t) in bare else t, outputs)


def legal_name(name: str, *, root: bool = False) -> str:
    """A name that TensorFlow's graphs allow; Keras takes any, but then fails in `predict` and `fit`.

    Args:
        name: of a layer or model.
        root: of a model, whose first character is more restricted.

    Example:
        >>> legal_name("in put, 1"), legal_name("_model", root=True)
        ('in_put__1', 'model_model')
    """
    legal = re.sub(r"[^A-Za-z0-9_.>-]", "_", name)
    return f"model{legal}" if root and legal[:1] in ("_", "-", ">") else legal


def named_apart(op: Any, taken: set[str]) -> Any:
    """Layers of different nested models may share a name; a flat model wants them apart, and graphs want them legal.

    Args:
        op: layer or operation; it is renamed where its name is in `taken`.
        taken: names in use; the new one is added.
    """
    op.name = legal_name(op.name)
    name, n = op.name, 1
    while op.name in taken:
        op.name = f"{name}_{n}"
        n += 1
    taken.add(op.name)
    return op


def reachable(nodes: Sequence[Node], outputs: list[Tensor]) -> tuple[Node, ...]:
    """Only what the outputs need: unused branches go."""
    needed = {id(t) for t in outputs}
    kept = []
    # From the end: when a call is reached, all that could need it have been.
    for node in reversed(nodes):
        if any(id(t) in needed for t in node.outputs):
            kept.append(node)
            needed.update(id(t) for t in node.inputs)
    return tuple(reversed(kept))


def drop_read(values: dict[int, Any], last: dict[int, int], done: int) -> None:
    """Forget values that no node behind number `done` reads.

    Args:
        values: id(tensor) -> value; shrinks in place.
        last: see `Graph.last_reads`.
        done: number of the node that has run.
    """
    # Read by nothing: -1, and forgotten at once.
    for key in [key for key in values if last.get(key, -1) <= done]:
        del values[key]


def run(graph: Graph, inputs: Any) -> dict[int, Any]:
    """Every tensor of the graph computed on real inputs (inference): id(tensor) -> value.

    Args:
        graph: what `trace` read.
        inputs: arrays or tensors in the structure of `graph.inputs`.
    """
    values = {id(t): x for t, x in zip(graph.input_tensors, tree.flatten(inputs), strict=True)}
    for node in graph.nodes:
        args, kwargs = substitute((node.args, node.kwargs), values)
        for t, value in zip(node.outputs, tree.flatten(node.op(*args, **kwargs)), strict=True):
            values[id(t)] = value
    return values


def outputs_of(graph: Graph, inputs: Any) -> Any:
    """The outputs on real inputs (inference), and no tensor held beyond the last call that reads it.

    Args:
        graph: what `trace` read.
        inputs: arrays or tensors in the structure of `graph.inputs`.

    Returns:
        Tensors in the structure of `graph.outputs`.
    """
    last = graph.last_reads | {id(t): len(graph.nodes) for t in graph.output_tensors}
    values = {id(t): x for t, x in zip(graph.input_tensors, tree.flatten(inputs), strict=True)}
    for number, node in enumerate(graph.nodes):
        args, kwargs = substitute((node.args, node.kwargs), values)
        values |= {id(t): y for t, y in zip(node.outputs, tree.flatten(node.op(*args, **kwargs)), strict=True)}
        drop_read(values, last, number)
    return tree.map_structure(lambda t: values[id(t)], graph.outputs)
