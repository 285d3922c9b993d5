"""Any Keras model -> the same function as a flat Functional model of layers that have a rule of their own.

Nested and subclassed models are unfolded, what does nothing leaves, activations stand alone, SeparableConv2D becomes
two convolutions, batch norms and constants become `Affine`. Weights are copied: the given model keeps its own. What no
integer kernel computes is refused, every layer of it at once, each with its remedy.
"""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from kquant import ops as rules
from kquant.core.messages import warn
from kquant.core.origin import mark, origins
from kquant.graph.copies import own
from kquant.graph.defaults import own_defaults
from kquant.graph.graph import Graph, Node, legal_name, named_apart, rewrite, rewritten, trace
from kquant.graph.keras_private import layers_inside
from kquant.graph.step_mask import reads_mask
from kquant.graph.unfold import lost_draws, substitute
from kquant.ops.passive import is_idle
from kquant.ops.refused import Problem, describe, remedy
from kquant.ops.rule import Make
from kquant.targets import Target

REPLACE = "replace it by layers that have one, or leave it out of the exported model"


def expand(model: keras.Model, input_shape: Any = None) -> keras.Model:
    """The same function in layers whose rules say how they are quantized and written.

    Args:
        model: any built Keras 3 model.
        input_shape: replaces the model's input shape(s), batch axis included.

    Returns:
        A Functional model; layers keep their names.

    Raises:
        ValueError: naming a layer that has no rule, with what to do.
    """
    graph = trace(model, is_known, input_shape)
    made = _expanding_graph(graph, None, rewrite)
    _warn_lost_draws(graph, made)
    return made


def expanded(graph: Graph, target: Target) -> Graph:
    """`expand_graph`, or all that it refuses at once.

    Raises:
        ValueError: naming every layer without a rule, and every one that its rule refuses, with the remedy.
    """
    unknown = unknown_layers(graph)
    known = [node for node in graph.nodes if rules.find(node.op) is not None]
    refusal = None
    if not unknown:
        try:
            return expand_graph(graph, target)
        except ValueError as error:
            refusal = error
    problems = [*unknown, *_refusals(known, target)]
    if refusal is not None and len(problems) < 2:
        raise refusal
    raise ValueError(describe(problems, target)) from refusal


def is_known(op: Any) -> bool:
    """Layers and operations that stay whole when a float model is read."""
    return rules.find(op) is not None


def expand_graph(graph: Graph, target: Target | None = None) -> Graph:
    """The calls of what `expand` makes of a graph; with a target, in what that has operators for."""
    made = _expanded(graph, target)
    _warn_lost_draws(graph, made)
    return made


def _expanded(graph: Graph, target: Target | None) -> Graph:
    return _expanding_graph(graph, target, functools.partial(rewritten, known=is_known))


def _expanding_graph(graph: Graph, target: Target | None, write: Callable[..., Any]) -> Any:
    """What `write` makes of the calls that a graph comes apart into: a model or a graph."""
    apart = _outputs_apart(graph)
    owners: dict[int, tuple[tuple[str, str], ...]] = {}
    make_for = _making({t.name for t in graph.input_tensors}, owners)

    def replace(node: Node, args: tuple, kwargs: dict) -> Any:
        if id(node) in apart:
            return _keep(node.op, make_for)(*args, **kwargs)
        if node.owner is not None:
            owners[id(node.op)] = ((node.owner.name, type(node.owner).__name__),)
        return expand_call(node.op, make_for, args, kwargs, target)

    return write(graph, replace, name=legal_name(graph.name, root=True))


def widened(graph: Graph, names: frozenset[str], target: Target) -> Graph:
    """The same function, the calls of these names in layers that have 16-bit kernels, where their rules know any.

    Args:
        graph: of a model that `expand` made and that may be taken apart: the other layers go on in the new one.
        names: of calls whose operators the target has in 8 bits only.
        target: has the kernels.
    """
    make_for = _making({t.name for t in graph.input_tensors} | {n.name for n in graph.nodes if n.name not in names}, {})

    def replace(node: Node, args: tuple, kwargs: dict) -> Any:
        rule = rules.find(node.op, target)
        if node.name not in names or rule is None or rule.widen is None:
            return node.op(*args, **kwargs)
        wide = rule.widen(node.op, _expanding(node.op, make_for, target), *args)
        return node.op(*args, **kwargs) if wide is None else wide

    return rewritten(graph, replace, is_known)


def _making(taken: set[str], owners: dict[int, tuple[tuple[str, str], ...]]) -> Callable[[Any], Make]:
    """`make` for each layer: what it makes is made once, named apart from what is taken, and knows its origins."""
    made: dict[tuple[int, str], Any] = {}

    def make_for(op: Any) -> Make:
        def make(key: str, factory: Callable[[], Any]) -> Any:
            if (id(op), key) not in made:
                name = op.name
                with own_defaults([op]) if isinstance(op, keras.layers.Layer) else contextlib.nullcontext():
                    made[id(op), key] = named_apart(factory(), taken)
                if isinstance(made[id(op), key], keras.Operation):
                    mark(made[id(op), key], (*origins(op), *owners.get(id(op), ()), (name, type(op).__name__)))
            return made[id(op), key]

        return make

    return make_for


def expand_alone(node: Node, target: Target | None = None) -> Graph:
    """`expand` of one call, to look at: a warning is for who makes the model.

    Raises:
        ValueError: what its rule refuses; it reads a tensor without axes, which no model takes as an input.
    """
    if not all(t.shape for t in node.inputs):
        raise ValueError(
            f"{node.name} ({type(node.op).__name__}): it reads one number for all samples, a tensor without axes. What "
            "makes it is refused: let that keep axis 0."
        )
    inputs = list({id(t): t for t in node.inputs}.values())
    return _expanded(Graph(node.name, inputs, list(node.outputs), (node,)), target)


def _refusals(nodes: list[Node], target: Target) -> list[Problem]:
    """The calls that `expand_graph` refuses, each tried alone."""
    problems = []
    for node in nodes:
        try:
            if all(t.shape for t in node.inputs):  # without axes: what made it is refused
                expand_alone(node, target)
        except ValueError as error:
            kind = type(node.op).__name__
            reason = str(error).removeprefix(f"{node.name} ({kind}): ").removeprefix(f"{node.name}: ").rstrip(".")
            problems.append(Problem(node.name, kind, reason))
    return problems


def unknown_layers(graph: Graph) -> list[Problem]:
    """Layers without a rule; one that was unfolded shows once, with the operations in it that have none."""
    unknown: dict[int, tuple[Any, set[str]]] = {}
    remedies: dict[str, str] = {}
    for node in graph.nodes:
        if rules.find(node.op) is None:
            owner = None if isinstance(node.op, keras.layers.Layer) else node.owner
            kind = type(node.op).__name__
            unknown.setdefault(id(owner or node.op), (owner, set()))[1].add(kind)
            remedies[kind] = remedy(node.op) or ""
    problems = []
    for node in graph.nodes:
        owner = None if isinstance(node.op, keras.layers.Layer) else node.owner
        owner, kinds = unknown.pop(id(owner or node.op), (None, set()))
        said = "; ".join(f"{k}: {remedies[k]}" for k in sorted(kinds) if remedies[k])
        if owner is not None:
            reason = f"it unfolds into {', '.join(sorted(kinds))}, which kquant has no rule for; {said or REPLACE}"
            problems.append(Problem(owner.name, type(owner).__name__, reason))
        elif kinds:
            reason = remedy(node.op) or f"kquant has no rule for it; {REPLACE}"
            problems.append(Problem(node.name, type(node.op).__name__, reason))
    return problems


def _outputs_apart(graph: Graph) -> set[int]:
    """Ids of idle calls that stay, because they keep an output of the model apart from another one."""
    roots: dict[int, int] = {}
    for node in graph.nodes:
        if node.args and is_idle(node.op, node.args[0]):
            roots[id(node.outputs[0])] = roots.get(id(node.args[0]), id(node.args[0]))
    ends = {id(t) for t in graph.output_tensors}
    shared = collections.Counter(roots.get(end, end) for end in ends)
    return {id(n) for n in graph.nodes if (end := id(n.outputs[0])) in ends and end in roots and shared[roots[end]] > 1}


def _warn_lost_draws(graph: Graph, made: Any) -> None:
    """Augmentation and dropout act in training only; some leave, or come apart into layers that do not draw."""
    lost = lost_draws(graph.layers, layers_inside(made.layers))
    if lost:
        warn(
            f"{', '.join(lost)}: what it draws in training (augmentation, dropout inside a recurrent layer) is left "
            "out of the new model. Augment the samples before they enter it; put a Dropout before or behind the layer."
        )


def expand_call(
    op: Any,
    make_for: Callable[[Any], Any],
    args: tuple,
    kwargs: dict,
    target: Target | None = None,
    *,
    ours: bool = False,
) -> Any:
    """One call, expanded until no rule has anything to expand; what is `ours` need not be copied."""
    rule = rules.find(op, target)
    if rule is None:
        said = remedy(op) or (
            "kquant has no rule for it. Replace it by layers that have one (`kquant.check(model)` lists what each "
            "layer becomes), or leave it out of the exported model"
        )
        raise ValueError(f"{op.name} ({type(op).__name__}): {said}.")
    if args and is_idle(op, args[0]):
        return args[0]
    left_out = ("training",) if rule.masks else ("training", "mask")
    if not rule.masks and kwargs.get("mask") is not None and reads_mask(op):
        raise ValueError(
            f"{op.name} ({type(op).__name__}): it leaves out the steps that a mask marks, and kquant writes it for all "
            "steps only. Feed it sequences of full length without Masking or mask_zero, or let a recurrent layer or "
            "GlobalAveragePooling1D, which take masks, sum them up."
        )
    kwargs = {k: v for k, v in kwargs.items() if k not in left_out}
    if rule.expand is None:
        return _keep(op, make_for)(*args, **kwargs)

    outputs = rule.expand(op, _expanding(op, make_for, target), *args, **kwargs)
    if outputs is not None:
        return outputs
    return (op if ours else _keep(op, make_for))(*args, **kwargs)


def _expanding(op: Any, make_for: Callable[[Any], Make], target: Target | None) -> Make:
    """`make` of a layer, whose layers are expanded in turn when they are called."""

    def make(key: str, factory: Callable[[], Any]) -> Any:
        layer = make_for(op)(key, factory)
        return lambda *a, **k: _again(layer, make_for, a, k, target)

    return make


def _again(layer: Any, make_for: Callable[[Any], Any], args: tuple, kwargs: dict, target: Target | None) -> Any:
    """What an expansion made may have to be expanded too (Dense -> Dense, Activation -> ReLU)."""
    rule = rules.find(layer, target)
    if remedy(layer) is not None:
        raise ValueError(f"{layer.name} ({type(layer).__name__}): {remedy(layer)}.")
    if rule is None and isinstance(layer, keras.layers.Layer):
        return _inside(layer, make_for, args, target)
    if rule is None or rule.expand is None:
        return layer(*args, **kwargs)
    return expand_call(layer, make_for, args, kwargs, target, ours=True)


@dataclass
class _Inside:
    """The calls of a layer without a rule, traced once for all its calls, so that they share weights."""

    name: str
    graph: Graph


def _inside(layer: Any, make_for: Callable[[Any], Any], args: tuple, target: Target | None) -> Any:
    """A layer or model that a rule found inside another (TimeDistributed): unfolded and expanded in turn."""

    def read() -> _Inside:
        inputs = keras.tree.map_structure(lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype), args[0])
        graph = trace(keras.Model(inputs, layer(inputs)), is_known)
        for node in graph.nodes:
            if isinstance(node.op, keras.layers.Layer):
                mark(node.op, origins(layer))
        return _Inside(layer.name, graph)

    graph = make_for(layer)("inside", read).graph
    new = {id(old): t for old, t in zip(graph.input_tensors, keras.tree.flatten(args[0]), strict=True)}
    for node in graph.nodes:
        node_args, node_kwargs = substitute((node.args, node.kwargs), new)
        outputs = keras.tree.flatten(expand_call(node.op, make_for, node_args, node_kwargs, target))
        new.update({id(old): t for old, t in zip(node.outputs, outputs, strict=True)})
    return keras.tree.map_structure(lambda t: new[id(t)], graph.outputs)


def _keep(op: Any, make_for: Callable[[Any], Any]) -> Any:
    """A copy with its own weights, made once for each original."""
    return make_for(op)("copy", lambda: own(op))
