"""Scaling at a model's inputs, taken out of it: what the application runs in float, and what is quantized.

    x  ->  preprocessing  ->  model  ->  y         composed, they are the model that was given

An input has one scale in the file. Channels that differ a thousandfold leave the narrow ones a single code of it;
scaled before they are quantized, all get the same number of codes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from kquant.calibration.data import gather
from kquant.core.messages import first_of
from kquant.graph.given_model import check_keras, float_layers
from kquant.graph.graph import Graph, Node, rewrite, substitute
from kquant.graph.output_names import as_keras
from kquant.ops import find
from kquant.ops.affine import Affine
from kquant.ops.constant import Stored
from kquant.ops.expansion import expand_alone
from kquant.ops.function import COMPARISONS, Function
from kquant.ops.rule import MOVES
from kquant.prepare.divided_columns import column_widths, division, of_divided
from kquant.prepare.folding import fold
from kquant.views.flat_copy import plain, read
from kquant.views.float_model import refuse_quantized

layers = keras.layers
SCALES = (layers.Normalization, layers.Rescaling, layers.BatchNormalization)
ELEMENTWISE = (Affine, Stored, Function, layers.Add, layers.Subtract, layers.Multiply)


@dataclass(frozen=True, repr=False)
class SplitModel:
    """What `kquant.split_preprocessing` returns.

    Attributes:
        preprocessing: Keras model, to run in float before the other one.
        model: Keras model, to quantize; its inputs are what `preprocessing` gives.
        moved: names of the layers that left it; empty where nothing in it scaled, and columns are divided.
        widths: for each input what its columns are divided by, float32[columns]; None for one whose columns are not.
            Empty where layers were moved.
    """

    preprocessing: keras.Model
    model: keras.Model
    moved: tuple[str, ...]
    widths: tuple[np.ndarray | None, ...] = ()

    def __repr__(self) -> str:
        return f"SplitModel({self.model.name!r}: {first_of(self.moved) or 'a division'} moved in front of it)"


def split_preprocessing(model: keras.Model, data: Any = None) -> SplitModel:
    """Split a model behind the layers that scale its inputs by constants.

    Copies: `model` stays as it was.

    `split.model(split.preprocessing(x)) = model(x)`. What leaves is what comes before any other layer: Normalization,
    Rescaling, BatchNormalization (as it is at inference), constant factors and summands, functions of one value (log,
    sqrt), Keras layers without weights that only prepare data (MelSpectrogram), and what moves values between them.

    Where no layer does that, `data` tell by what: each column (the last axis) of an input of floats is divided by its
    width in them, largest less smallest value, and the weights of the layer that reads it are multiplied.

    Args:
        model: any built float Keras 3 model.
        data: samples, see `kquant.calibrate`; read only where no layer scales inputs.

    Returns:
        Both parts, with weights of their own. Where every input keeps one tensor of its own, `model` has inputs of the
        same names and structure; else a list, one for each tensor that the rest reads.

    Raises:
        ValueError: there is nothing to split and no data are given, naming what reads each input; a model that is
            quantized, not built, or whose `call` cannot be followed.

    Example:
        >>> norm = keras.layers.Normalization(mean=[0.0, 500.0], variance=[1.0, 1e6])
        >>> model = keras.Sequential([keras.Input((2,), name="sensors"), norm, keras.layers.Dense(3)])
        >>> split = kquant.split_preprocessing(model)
        >>> x = np.float32([[1.0, 1500.0]])
        >>> split.preprocessing(x).numpy().tolist(), len(split.model.layers)
        ([[1.0, 1.0]], 2)
        >>> bare = keras.Sequential([keras.Input((2,), name="sensors"), keras.layers.Dense(3)])
        >>> kquant.split_preprocessing(bare, np.float32([[0, 0], [2, 500]])).widths[0].tolist()
        [2.0, 500.0]
    """
    check_keras(model, "split_preprocessing")
    refuse_quantized(model, float_layers(model, "quantize"))
    graph = read(plain(model))
    outside = _outside(graph)
    if not outside and data is not None:
        return _divided(_keras(graph), gather(model, data, None))
    if not outside:
        raise ValueError(
            f"split_preprocessing: {model.name} scales no input before it computes: {_first(graph)}. Give samples, and "
            "its columns are divided by their widths in them: kquant.split_preprocessing(model, data)."
        )
    left = {id(node) for node in outside}
    rest = [node for node in graph.nodes if id(node) not in left]
    cut, names = _cut(graph, outside, rest)
    before = Graph(f"{graph.name}_preprocessing", graph.inputs, cut, tuple(outside))
    entrances = _entrances(cut, names)
    new = {id(old): t for old, t in zip(keras.tree.flatten(cut), keras.tree.flatten(entrances), strict=True)}
    nodes = []
    for node in rest:
        args, kwargs = substitute((node.args, node.kwargs), new)
        nodes.append(replace(node, args=args, kwargs=kwargs))
    after = Graph(graph.name, entrances, substitute(graph.outputs, new), tuple(nodes), graph.output_names)
    first, second = _keras(before), _keras(after)
    moved = tuple(dict.fromkeys(n.name for n in outside if isinstance(n.op, layers.Layer) or _scales(n)))
    return SplitModel(first, second, moved)


def _keras(graph: Graph) -> keras.Model:
    return as_keras(rewrite(graph, lambda node, args, kwargs: node.op(*args, **kwargs)))


def _divided(model: keras.Model, x: list[np.ndarray]) -> SplitModel:
    widths = column_widths(model, x)
    if all(each is None for each in widths):
        raise ValueError(f"split_preprocessing: {model.name} has no input of floats with columns to divide.")
    before = division(model, widths, f"{model.name}_preprocessing")
    return SplitModel(before, fold(of_divided(model, widths)), (), tuple(widths))


def _outside(graph: Graph) -> list[Node]:
    """The calls that scale inputs, with what comes before them."""
    known = {id(t) for t in graph.input_tensors}
    first = []
    for node in graph.nodes:
        if node.inputs and all(id(t) in known for t in node.inputs) and (_scales(node) or _moves(node)):
            first.append(node)
            known.update(id(t) for t in node.outputs)
    needed: set[int] = set()
    kept = []
    for node in reversed(first):
        if _scales(node) or any(id(t) in needed for t in node.outputs):
            kept.append(node)
            needed.update(id(t) for t in node.inputs)
    return kept[::-1]


def _pieces(node: Node) -> list[Any] | None:
    """The layers that one call consists of; None where it has no integer form."""
    if find(node.op) is None:
        return None
    try:
        part = expand_alone(node)
    except ValueError:  # refused by its rule: no scaling that can be told apart
        return None
    return [n.op for n in part.nodes if not isinstance(n.op, layers.Identity)]


def _scales(node: Node) -> bool:
    if isinstance(node.op, SCALES):
        return True
    if find(node.op) is None:  # like MelSpectrogram
        prepares = isinstance(node.op, layers.Layer) and type(node.op).__module__.startswith("keras.")
        return prepares and not node.op.trainable_variables
    pieces = _pieces(node) if len(node.inputs) == 1 else None
    compares = any(isinstance(op, Function) and op.function in COMPARISONS for op in pieces or ())
    return bool(pieces) and not compares and all(isinstance(op, ELEMENTWISE) or _is_table(op) for op in pieces)


def _is_table(op: Any) -> bool:
    """True for a function of one value that is written as a table of its codes."""
    rule = find(op)
    return rule is not None and "GATHER" in rule.operators and rule.weights is None and not rule.indices


def _moves(node: Node) -> bool:
    """True for what leaves values as they are: reshapes, slices, joins, and what does nothing at inference."""
    pieces = _pieces(node)
    if pieces is None:
        return False
    rules = [find(op) for op in pieces]
    return all(rule is not None and rule.weights is None and rule.output in MOVES for rule in rules)


def _cut(graph: Graph, outside: list[Node], rest: list[Node]) -> tuple[Any, list[str]]:
    """The tensors that pass from one part to the other, and their names: those of the inputs, in their structure, where
    each input keeps one tensor of its own; else a list, named after the layers that made them.
    """
    inputs = graph.input_tensors
    origins = {id(t): frozenset([id(t)]) for t in inputs}
    for node in outside:
        origins.update({id(t): frozenset().union(*(origins[id(x)] for x in node.inputs)) for t in node.outputs})
    read_later = {id(t) for node in rest for t in node.inputs} | {id(t) for t in graph.output_tensors}
    made = {id(t): node.name for node in outside for t in node.outputs}
    passed = [t for t in (*inputs, *(t for node in outside for t in node.outputs)) if id(t) in read_later]
    of_input = {id(t): [p for p in passed if origins[id(p)] == {id(t)}] for t in inputs}
    if len(passed) == len(inputs) and all(len(own) == 1 for own in of_input.values()):
        return keras.tree.map_structure(lambda t: of_input[id(t)][0], graph.inputs), [t.name for t in inputs]
    return (passed[0] if len(passed) == 1 else passed), [str(made.get(id(t), t.name)) for t in passed]


def _entrances(cut: Any, names: list[str]) -> Any:
    """New inputs for these tensors."""
    taken: set[str] = set()
    entrances = []
    for t, name in zip(keras.tree.flatten(cut), names, strict=True):
        fresh, n = name, 1
        while fresh in taken:
            fresh, n = f"{name}_{n}", n + 1
        taken.add(fresh)
        entrances.append(keras.KerasTensor(t.shape, "float32" if "float" in t.dtype else t.dtype, name=fresh))
    return keras.tree.pack_sequence_as(cut, entrances)


def _first(graph: Graph) -> str:
    """What reads each input."""
    consumers = graph.consumers
    said = []
    for t in graph.input_tensors:
        readers = [f"{n.name} ({type(n.op).__name__})" for n in consumers.get(id(t), [])]
        said.append(f"input '{t.name}' is read by {', '.join(readers) or 'nothing'}")
    return "; ".join(said)
