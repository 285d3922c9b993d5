"""What `summary` prints of a model with layers of kquant's: kinds, shapes, parameters, weights and encodings.

A quantized model has three layers where the float one had one; here they are one row: the kind is that of the layer
inside, and an encoding stands beside the layer whose output it encodes.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import keras
import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kquant.core.spec import QuantSpec
from kquant.graph.given_model import check_keras
from kquant.graph.keras_private import functional_of, maker, recorded, recorded_calls
from kquant.graph.output_names import NamedOutputs
from kquant.layers.kernel import Holder
from kquant.layers.loop import Loop
from kquant.layers.nodes import FakeQuant
from kquant.layers.provenance import provenance_of

WIDEST, NARROW = 100, 72  # characters: where the terminal has more; where figures are folded, too


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        name: of the layer.
        kind: class of the layer, or of the one inside.
        shape: of a sample of its first output.
        params: numbers in the weights that it has in Keras.
        weights: how they are stored; empty where it has none.
        encoding: of its output; empty where it is none of its own: the layer behind ends the same operator.
    """

    name: str
    kind: str
    shape: tuple[int | None, ...]
    params: int
    weights: str = ""
    encoding: str = ""


def summary(model: keras.Model, line_length: int | None = None, print_fn: Callable[[str], Any] | None = None) -> None:
    """Print the layers of a model: kinds, shapes, parameters, and how weights and outputs are encoded.

    Reads: `model` stays as it was.

    The `summary()` of what `kquant.quantize`, `prune` and `cluster` return prints the same.

    Args:
        model: quantized, pruned, clustered, or any other Keras model, of which Keras' own summary is printed.
        line_length: characters in a line; by default those of the terminal, at most 100.
        print_fn: is given the text, instead of standard output.

    Example:
        >>> head = keras.layers.Dense(2, kernel_initializer="ones", name="head")
        >>> model = keras.Sequential([keras.Input((4,), name="x"), head], name="tiny")
        >>> q = kquant.calibrate(kquant.quantize(model), np.tile(np.eye(4), (16, 1)), verbose=False)
        >>> kquant.summary(q)
        Model: "tiny" (recipe int8, target litert)
        Layer (type)    Output shape  Params  Weights       Encoding
        ─────────────────────────────────────────────────────────────────────
        x (InputLayer)  (4)                0                int8 0.00392 -128
        head (Dense)    (2)               10  int8 0.00787  int8 0.00392 -128
        Encoding: ...
        Total params: 16 (10 of layers, 6 of kquant: ranges, gains, masks)
        Trainable params: 10
        Non-trainable params: 6
    """
    check_keras(model, "summary")
    if not isinstance(model, keras.Sequential | keras.Function) or not any(map(_is_own, model.layers)):
        keras.Model.summary(model, line_length=line_length, print_fn=print_fn)
        return
    width = line_length or min(WIDEST, shutil.get_terminal_size().columns)
    text = _text(model, rows(model), width)
    if print_fn is None:
        print(text, end="")
    else:
        print_fn(text)


NamedOutputs.describe = summary


def _is_own(layer: Any) -> bool:
    return isinstance(layer, FakeQuant | Holder)


def rows(model: keras.Model) -> list[Row]:
    """One for each layer in the order in which they compute, encodings with the layer whose output they encode.

    Args:
        model: Functional or Sequential.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="relu", name="head")])
        >>> [(row.name, row.kind, row.weights != "") for row in rows(kquant.quantize(model))][1:]
        [('head', 'Dense', True), ('head_relu', 'ReLU', False)]
    """
    calls: list[Any] = recorded_calls(functional_of(model) if isinstance(model, keras.Sequential) else model)
    ops = {id(call.operation): call for call in reversed(calls)}  # a layer's first call tells of it
    encoded: dict[int, str] = {}
    alone: set[int] = set()
    for call in calls:
        # a peek asks for an encoding before there is a tensor, and encodes none
        if isinstance(call.operation, FakeQuant) and not call.arguments.kwargs.get("peek"):
            made_by = maker(call.input_tensors[0])
            if isinstance(made_by, FakeQuant) or encoded.get(id(made_by)):  # the same tensor in codes of another width
                alone.add(id(call.operation))
            else:
                encoded[id(made_by)] = _encoding(call)
    by_layer: dict[int, Row] = {}
    for call in calls:
        op = call.operation
        if id(op) not in by_layer and (not isinstance(op, FakeQuant) or id(op) in alone):
            first = ops[id(op)]
            told = _encoding(first) if isinstance(op, FakeQuant) else encoded.get(id(op), "")
            by_layer[id(op)] = _row(op, tuple(first.output_tensors[0].shape[1:]), told)
            if isinstance(op, Loop):  # what it repeats stands below it, as far as it has weights
                by_layer |= {id(row): row for row in rows(op.step) if row.weights}
    return list(by_layer.values())


def _row(op: Any, shape: tuple[int | None, ...], encoding: str) -> Row:
    if isinstance(op, Holder):
        inner = op.layer
        inside = [f"{what} {_grid(layer, scale.item(), 0)}" for what, (layer, scale) in op.tensors_inside().items()]
        told = "\n".join(text for text in (encoding, *inside) if text)
        return Row(op.name, type(inner).__name__, shape, _count(inner.weights), _weights(op, encoding != ""), told)
    params = 0 if isinstance(op, FakeQuant | Loop) else _count(getattr(op, "weights", ()))
    return Row(op.name, type(op).__name__, shape, params, "", encoding)


def _count(variables: Any) -> int:
    return sum(int(np.prod(v.shape)) for v in variables)


def _weights(holder: Holder, encoded: bool) -> str:
    """How the kernels of a layer are stored: bits and scales, and what acts on them before."""
    kernels, spec = holder.kernels(), holder.spec
    acting = list(dict.fromkeys(type(t).__name__.lower() for kernel in kernels for t in kernel.transforms))
    if spec is None:
        lines = [("as its output" if encoded else "float32") if holder.storage == "integer" else holder.storage]
    elif spec.block:
        lines = [f"{f'int{spec.bits}' if spec.in_blocks else spec.kind}, blocks of {spec.block}"]
    elif not spec.has_codes:
        lines = [f"{spec.kind}, {spec.bits} bits"]
    else:
        scales = np.concatenate([np.ravel(k.scale) for k in kernels if k.scale is not None] or [np.zeros(1)])
        low, high = scales.min(), scales.max()
        one = [f"int{spec.bits} {low:.3g}"]
        lines = one if low == high else [f"int{spec.bits}, {scales.size} scales", f"{low:.2g}..{high:.2g}"]
    return "\n".join([*lines, *acting])


def _encoding(call: Any) -> str:
    """Type, scale and zero point of a tensor; one that follows has those of its first source."""
    layer = holding = call.operation
    while isinstance(holding, FakeQuant) and holding.follows:
        call = _teller(call.arguments.kwargs["encodings"][0])
        holding = call.operation
    if not isinstance(holding, FakeQuant):  # an input of a loop's step: its encoding comes from outside
        return f"int{layer.spec.bits}, as its source"
    scale, zero_point, seen = holding.grid()
    return _grid(layer, float(scale) if bool(seen) else None, int(zero_point))


def _teller(encoding: Any) -> Any:
    """The call that an encoding comes from, inside a loop too."""
    call: Any = recorded(encoding)
    if not isinstance(call.operation, Loop):
        return call
    loop, number = call.operation, [id(t) for t in call.output_tensors].index(id(encoding))
    return recorded(loop.ends[1][loop.results[number - len(loop.results)].state])


def _grid(layer: FakeQuant, scale: float | None, zero_point: int) -> str:
    spec = layer.spec
    if spec.block:
        return f"{spec.kind}, blocks of {spec.block}"
    if spec.floating is not None:
        if scale is None:
            return f"{spec.kind}, no range yet"
        highest = scale * ((QuantSpec() if layer.fixed else spec).high - zero_point)
        return f"{spec.kind} {highest / spec.floating.largest:.3g}"
    kind = f"{'' if spec.signed else 'u'}int{spec.bits}"
    return f"{kind}, no range yet" if scale is None else f"{kind} {scale:.3g} {zero_point}"


def _text(model: keras.Model, listed: list[Row], width: int) -> str:
    """The table of a width, and what Keras' summary says below it."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("Layer (type)", "Output shape", "Params", "Weights", "Encoding"):
        words = column in ("Layer (type)", "Output shape")  # may be folded; figures stay whole where there is room
        justify = "right" if column == "Params" else "left"
        table.add_column(column, justify=justify, no_wrap=not words and width >= NARROW, overflow="fold")
    for row in listed:
        shape = f"({', '.join(str(n) for n in row.shape)})"
        cells = (f"{row.name} ({row.kind})", shape, f"{row.params:,}", row.weights, row.encoding)
        table.add_row(*map(escape, cells))
    text = io.StringIO()
    console = Console(file=text, width=width, no_color=True, color_system=None, force_terminal=False)
    console.print(table)
    origin = provenance_of(layer for layer in model.layers if _is_own(layer))
    made = f" (recipe {origin.recipe}, target {origin.target})" if origin.recipe else ""
    total, inner = _count(model.weights), sum(row.params for row in listed)
    legend = "Encoding: type, scale, zero point; empty where the layer behind ends the operator, or codes pass."
    numbers = f"Total params: {total:,} ({inner:,} of layers, {total - inner:,} of kquant: ranges, gains, masks)"
    below = [
        *wrap(legend, width),
        *wrap(numbers, width),
        f"Trainable params: {_count(model.trainable_weights):,}",
        f"Non-trainable params: {_count(model.non_trainable_weights):,}",
    ]
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join([f'Model: "{model.name}"{made}', *lines, *below]) + "\n"
