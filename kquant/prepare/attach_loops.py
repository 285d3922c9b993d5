"""The loops of a plan, in which they are open, closed again: the quantized step becomes the model in a `Loop`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras

from kquant.core.spec import QuantSpec
from kquant.graph.graph import Node
from kquant.layers.fake_quant import FakeQuant
from kquant.layers.loop import Loop, LoopPort, LoopResult, LoopState, Step


@dataclass(frozen=True)
class Known:
    """Of a quantized tensor of the new model: the tensor that holds its encoding, and its grid."""

    encoding: Any
    spec: QuantSpec


@dataclass
class _Open:
    """A loop whose step is being built: its inputs, those of the step, and the grids of what comes out."""

    xs: list[Any] = field(default_factory=list[Any])
    encodings: list[Any] = field(default_factory=list[Any])
    encoded: list[int] = field(default_factory=list[int])
    step_xs: list[Any] = field(default_factory=list[Any])
    step_encodings: list[Any] = field(default_factory=list[Any])
    step_states: list[Any] = field(default_factory=list[Any])


class Loops:
    """The loops of a model that is being built.

    Args:
        known: id(tensor) -> its encoding and grid, of the builder that builds the model.
        holder: the `FakeQuant` of a state port, None where it stays float.
        name: a name for a layer that no other one has.
    """

    def __init__(
        self, known: dict[int, Known], holder: Callable[[Any], FakeQuant | None], name: Callable[[str], str]
    ) -> None:
        self.known, self.holder, self.name = known, holder, name
        self.open: dict[int, _Open] = {}
        self.made: dict[int, Loop] = {}
        self.results: dict[int, list[Any]] = {}
        self.grids: dict[int, list[Known]] = {}

    def port(self, node: Node, args: tuple) -> Any:
        """The tensor of the new model, or of the step, that a port stands for."""
        op: LoopPort = node.op
        key = id(op.loop)
        if isinstance(op, LoopState):
            return self._state(self.open[key], node)
        if isinstance(op, LoopResult):
            return self._result(op, args)
        # sequences stand before all else of a loop, so the first of them opens it
        if op.first:
            self.open[key] = _Open()
        return self._step(self.open[key], op, args[0])

    def _step(self, open_: _Open, op: LoopPort, x: Any) -> Any:
        """This step of a sequence: an input of the step, with its encoding beside it."""
        label = f"{op.loop.name}_x{op.number}"
        inside = keras.Input((1, *x.shape[2:]), name=self.name(label))
        open_.xs.append(x)
        open_.step_xs.append(inside)
        known = self.known.get(id(x))
        if known is not None:
            # an input too: the step is a model of its own and cannot read a tensor outside of it
            # the same for all samples, so without a batch axis
            encoding = keras.Input(batch_shape=(2,), name=self.name(f"{label}_encoding"))
            open_.encodings.append(known.encoding)
            open_.encoded.append(op.number)
            open_.step_encodings.append(encoding)
            self.known[id(inside)] = Known(encoding, known.spec)
        return inside

    def _state(self, open_: _Open, node: Node) -> Any:
        """A state before the step, in the encoding that the one after it is going to have."""
        shape = node.outputs[0].shape
        inside = keras.Input(shape[1:], name=self.name(f"{node.op.loop.name}_state{node.op.number}"))
        open_.step_states.append(inside)
        holder = self.holder(node.outputs[0])
        if holder is None:
            return inside
        # peek: the step before has rounded the state and has shown it to calibration, so its encoding is read alone
        _, encoding = holder(inside, peek=True)
        self.known[id(inside)] = Known(encoding, holder.spec)
        return inside

    def _result(self, op: LoopPort, args: tuple) -> Any:
        """A result of the loop, which is made at the first of them."""
        key = id(op.loop)
        if op.first:
            self.results[key] = self._close(op, self.open.pop(key), list(args[1]))
        made, grids = self.results[key], self.grids[key]
        y, grid = made[op.number], grids[op.loop.results[op.number].state] if grids else None
        if grid is not None:
            # encodings stand behind all results, one for each
            self.known[id(y)] = Known(made[len(op.loop.results) + op.number], grid.spec)
        return y

    def _close(self, op: LoopPort, open_: _Open, after: list[Any]) -> list[Any]:
        """The loop's outputs; a shared one is made at its first call."""
        key = id(op.loop)
        if key not in self.made:
            grids = [self.known[id(t)] for t in after if id(t) in self.known]
            # `Loop` tells states from their encodings by number alone, so all have one or none has
            if len(grids) not in (0, len(after)):
                raise ValueError(f"{op.loop.name}: one of its states is quantized and another one is not.")
            inputs = [*open_.step_xs, *open_.step_encodings, *open_.step_states]
            step = Step(inputs, [*after, *(grid.encoding for grid in grids)], name=f"{op.loop.name}_step")
            results = [[r.state, r.every] for r in op.loop.results]
            self.grids[key] = grids
            made = Loop(step, len(after), results, open_.encoded, name=op.loop.name, dtype="float32")
            self.made[key] = made
        return keras.tree.flatten(self.made[key](open_.xs, encodings=open_.encodings))
