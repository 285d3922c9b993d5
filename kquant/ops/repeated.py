"""GRU, SimpleRNN, and LSTM with other activations on targets with WHILE: the file holds one step and repeats it.

    x_z, x_r, x_h = Dense(x)          once for the whole sequence, outside
    h'            = step(x_t, h)      the layers that `unrolled` writes out for every step, once

A `Loop` holds the model of the step. Before anything is planned or written it is opened (`views.loops`): its layers
stand among those of the model, between ports that say where this step of a sequence comes from and where states go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from kquant.layers.loop import Loop, Step
from kquant.ops.activation import activate
from kquant.ops.recurrent import asked_apart
from kquant.ops.rule import Make, Rule, example
from kquant.ops.unrolled import CELLS, Steps, entered, of_real, returned, unrollable

layers = keras.layers

# What a file needs beside the operators of the step: the counter and the states, rows picked and rows written.
HELPERS = ("LESS", "ADD", "CONCATENATION", "SLICE", "DYNAMIC_UPDATE_SLICE", "BROADCAST_TO")


class OneStep(Steps):
    """What a cell builds the step of a loop with: layers without a number."""

    def layer(self, name: str, factory: Callable[[str], Any]) -> Any:
        """A layer of the step."""
        return self.make(name, lambda: factory(f"{self.op.name}_{name}"))

    def activate(self, name: str, function: Any, x: Any) -> Any:
        """An activation function of the step."""
        make = lambda key, factory: self.make(f"{name}/{key}", factory)  # noqa: E731
        return activate(function, make, x, layer=f"{self.op.name}_{name}")


def loop(op: Any, make: Make, x: Any, initial_state: Any = None, mask: Any = None, **_: Any) -> Any:
    """The layer as a `Loop` behind its products with the whole sequence."""
    x, real = entered(op, make, x, initial_state, mask)
    build, count = CELLS[type(op.cell)]
    steps = OneStep(op, make)
    parts, step = build(steps, x)
    returning = range(count if op.return_state else 1)
    if real is not None:  # any step may be the last real one, so that all are kept
        results = [(n, True) for n in returning]
    else:
        lasts = [(n, False) for n in returning] if op.return_state or not op.return_sequences else []
        results = [*([(0, True)] if op.return_sequences else []), *lasts]
    made = keras.tree.flatten(make("loop", lambda: _loop(op, steps, step, parts, count, results))(parts))
    if real is not None:
        return of_real(op, made, real)
    return returned(op, make, made[0], made[1:] if op.return_sequences else made)


def _loop(op: Any, steps: OneStep, step: Any, parts: list[Any], count: int, results: list[tuple[int, bool]]) -> Loop:
    """The step of the cell on tensors of its own."""
    xs = [keras.Input((1, *t.shape[2:]), name=f"{op.name}_x{n}") for n, t in enumerate(parts)]
    before = [keras.Input((1, op.cell.units), name=f"{op.name}_{name}") for name in "hc"[:count]]
    after = step(list(xs), list(before))
    tied = [steps.tie(f"{name}_next", new, old) for name, new, old in zip("hc", after, before, strict=False)]
    return Loop(Step([*xs, *before], tied, name=f"{op.name}_step"), count, results, name=op.name)


RULES = (
    Rule(
        layers=(layers.LSTM, layers.GRU, layers.SimpleRNN, layers.RNN),
        when=unrollable,
        yields=asked_apart,
        expand=loop,
        masks=True,
        operators=("WHILE",),
        helpers=HELPERS,
        examples=(
            example(lambda: layers.LSTM(3, activation="relu"), shape=(4, 3)),
            example(lambda: layers.GRU(4), shape=(5, 3)),
            example(lambda: layers.GRU(4, reset_after=False, return_sequences=True), shape=(3, 3)),
            example(lambda: layers.SimpleRNN(4, return_sequences=True, go_backwards=True), shape=(3, 3)),
            example(lambda: layers.SimpleRNN(4, activation="relu", use_bias=False), shape=(4, 3)),
            example(lambda: layers.RNN(layers.GRUCell(3)), shape=(3, 3)),
        ),
    ),
    Rule(
        layers=(Loop,),
        operators=("WHILE",),
        helpers=HELPERS,
        output="closed",
        examples=(example(lambda: layers.SimpleRNN(3), shape=(4, 2)),),
    ),
    Rule(
        operations=("LoopStep",),
        operators=("SLICE",),
        output="closed",
        examples=(example(lambda: layers.SimpleRNN(3), shape=(4, 2)),),
    ),
    Rule(
        operations=("LoopState",),
        output="state",
        examples=(example(lambda: layers.SimpleRNN(3), shape=(4, 2)),),
    ),
    Rule(
        operations=("LoopResult",),
        operators=("WHILE",),
        helpers=HELPERS,
        output="closed",
        examples=(example(lambda: layers.SimpleRNN(3), shape=(4, 2)),),
    ),
)
