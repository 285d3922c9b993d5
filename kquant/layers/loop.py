"""`Loop`: one step of a recurrent layer as a small model inside, run over a sequence.

    step    [x_t, .., encodings of x, .., states]  ->  [states after it, .., their encodings, ..]
    Loop    [x, .., encodings of x, ..]            ->  [all states or the last one, .., their encodings, ..]

In a float model the layers of the step are Keras' own. In a quantized one they are `FakeQuant` and `Compressed`, as
they are outside: what iterates a model's layers finds them. A graph holds one step, however long the sequence, and so
does the file (WHILE). Encodings are the same at every step: they are read before the loop, weights are rounded before
it, and ranges that training moves move behind it, once for all steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.core.one_node import aside
from kquant.graph.keras_private import every_layer, recorded_calls
from kquant.graph.unfold import Node, substitute
from kquant.layers import loop_ranges
from kquant.layers.compressed import Compressed
from kquant.layers.fake_quant import Ahead, FakeQuant
from kquant.layers.modes import is_observing, mode, show

MOST_TRACES = 32
Shown = list[tuple[FakeQuant, int, tf.Tensor]]  # (layer, number of its call, tensor)


@dataclass(frozen=True)
class Result:
    """One output of a loop.

    Attributes:
        state: its number.
        every: after every step, [batch, steps, units]; else after the last one, [batch, 1, units].
    """

    state: int
    every: bool


@dataclass(frozen=True, eq=False)
class _Traced:
    """A loop as a function.

    Attributes:
        function: gives the results, and what is shown.
        shown: whose tensors those are.
    """

    function: Any
    shown: list[tuple[FakeQuant, int]]


class _Traces:
    """The functions of a loop; an object of its own, since Keras saves layers that it finds in lists and dicts.

    Attributes:
        held: what a trace depends on beside the values of variables -> the function; the last few.
    """

    def __init__(self) -> None:
        self.held: dict[Any, _Traced] = {}

    def keep(self, key: Any, traced: _Traced) -> _Traced:
        """Add one, in the place of all others where there are many."""
        if len(self.held) >= MOST_TRACES:
            self.held.clear()
        self.held[key] = traced
        return traced


@keras.saving.register_keras_serializable(package="kquant")
class Step(keras.Model):
    """The model of one step: part of a `Loop`, no model of a user's."""


@keras.saving.register_keras_serializable(package="kquant")
class Loop(keras.layers.Layer):
    """Run a model of one step over the steps of sequences, from states of zeros.

    Args:
        step: the model of one step, or its config; see the file. `x_t` and states are [batch, 1, features].
        states: how many there are.
        results: [state, every] of each output (`Result`).
        encoded: number of each input sequence that comes with an encoding.
    """

    traces: _Traces
    by_steps = True  # what is in it runs once for each of them: `graph.by_xla.way_of`

    def __init__(
        self,
        step: Any,
        states: int,
        results: Sequence[Sequence[Any]],
        encoded: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **{k: v for k, v in kwargs.items() if k != "autocast"})
        self.step = step if isinstance(step, keras.Model) else keras.saving.deserialize_keras_object(step)
        self.states, self.encoded = states, tuple(int(n) for n in encoded)
        self.results = tuple(Result(int(state), bool(every)) for state, every in results)
        # Not tracked: it is no part of the layer.
        object.__setattr__(self, "traces", _Traces())
        self.built = True

    def build(self, *_: Any, **__: Any) -> None:
        """Nothing to do: the model inside is built."""

    @cached_property
    def ports(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Of the step: the tensors that stand for x, for encodings of x, and for states."""
        inputs = list(self.step.inputs)
        first, last = len(inputs) - len(self.encoded) - self.states, len(inputs) - self.states
        return inputs[:first], inputs[first:last], inputs[last:]

    @cached_property
    def ends(self) -> tuple[list[Any], list[Any]]:
        """Of the step: the states after it, and their encodings, where they have any."""
        outputs = list(self.step.outputs)
        return outputs[: self.states], outputs[self.states :]

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The calls of the step, in order."""
        calls = [call for call in recorded_calls(self.step) if not call.is_input]
        given: list[Any] = [call.arguments for call in calls]
        return tuple(Node(c.operation, a.args, a.kwargs, tuple(c.outputs)) for c, a in zip(calls, given, strict=True))

    def compute_output_spec(self, xs: Any, **_: Any) -> list[keras.KerasTensor]:
        """The results, then their encodings."""
        x = xs[0]
        after, encodings = self.ends
        made = []
        for result in self.results:
            state = after[result.state]
            steps = x.shape[1] if result.every else 1
            made.append(keras.KerasTensor((x.shape[0], steps, *state.shape[2:]), "float32"))
        return [*made, *(keras.KerasTensor((2,), "float32") for _ in self.results if encodings)]

    def call(
        self, xs: Sequence[tf.Tensor], encodings: Sequence[tf.Tensor] = (), training: bool = False, site: int = 0
    ) -> list[tf.Tensor]:
        """Run the step over all steps.

        Args:
            xs: float[batch, steps, features] each.
            encodings: float32[2] of those that have one.
            training: as for `FakeQuant` and `Compressed`.
            site: number of this call, where the loop is shared; the first moves masks and codebooks on.

        Returns:
            The results, float32, and their encodings.
        """
        if training or not tf.executing_eagerly():
            return self._run(list(xs), list(encodings), training, site, show)
        traced = self._function(list(xs), list(encodings), site)
        made, values = traced.function(*map(tf.convert_to_tensor, (*xs, *encodings)))
        for (layer, number), y in zip(traced.shown, values, strict=True):
            show(layer, number, y)
        return made

    def at_all_steps(
        self, wanted: Sequence[Any], xs: Sequence[tf.Tensor], encodings: Sequence[tf.Tensor] = (), site: int = 0
    ) -> list[tf.Tensor]:
        """Tensors of the step, as a call without training computes them.

        Args:
            wanted: tensors of the model of one step.
            xs: see `call`.
            encodings: likewise.
            site: likewise.

        Returns:
            float32[batch, steps, ...] each; of a tensor without samples, as the scale of a layer's sums, that of one
            step.
        """
        *_, made = _Run(self, encodings, False, site, 1).over([tf.convert_to_tensor(x) for x in xs], wanted)
        return made

    def _function(self, xs: list[Any], encodings: list[Any], site: int) -> _Traced:
        """The same as a function: without one, a step takes as long as its trace."""
        specs = [tf.TensorSpec((None, *x.shape[1:]), x.dtype) for x in xs]
        specs += [tf.TensorSpec(e.shape, e.dtype) for e in encodings]
        # All that a trace depends on beside the values of variables.
        ranges = [layer for layer in every_layer(self.step) if isinstance(layer, FakeQuant)]
        seen = [layer.is_seen() for layer in ranges if layer.has_range]
        key = (mode(), site, str(specs), str(self.step.get_config()), str(seen), tuple(map(id, self.variables)))
        if key in self.traces.held:
            return self.traces.held[key]
        shown: list[tuple[FakeQuant, int]] = []

        def run(*given: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            told: Shown = []
            tell = lambda *what: told.append(what)  # noqa: E731
            made = self._run(list(given[: len(xs)]), list(given[len(xs) :]), False, site, tell)
            shown.extend((layer, number) for layer, number, _ in told)
            return made, [y for *_, y in told]

        function = tf.function(run, autograph=False).get_concrete_function(*specs)
        return self.traces.keep(key, _Traced(function, shown))

    def _run(
        self, xs: list[Any], encodings: list[Any], training: bool, site: int, tell: Callable[..., None]
    ) -> list[tf.Tensor]:
        """The loop; `tell(layer, site, tensor)` is shown what calibration asks for."""
        run = _Run(self, encodings, training, site, int(xs[0].shape[1]))
        after, sequences, seen, _ = run.over(xs)
        if is_observing():
            for (layer, number), y in zip(run.watched, seen, strict=True):
                tell(layer, number, y)
        else:  # once for all steps: a range that moved inside the loop would give each step another grid
            run.watch.follow(seen)
        made = [sequences[r.state] if r.every else after[r.state] for r in self.results]
        known = [run.encodings[id(self.ends[1][r.state])] for r in self.results if self.ends[1]]
        return [*made, *known]

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {
            **super().get_config(),
            "step": keras.saving.serialize_keras_object(self.step),
            "states": self.states,
            "results": [[r.state, r.every] for r in self.results],
            "encoded": list(self.encoded),
        }


class _Run:
    """One run of a loop: what is the same at every step is found first.

    Attributes:
        encodings: id(tensor of the step) -> float32[2].
        weighted: id(call of the step) -> what a layer with weights does with its input.
        quantized: id(call of the step) -> what a `FakeQuant` does with a tensor.
        steps: of the sequences; what learns by gradient meets a tensor at all of them.
        watched: calls whose tensors somebody wants to see, in order: calibration, or ranges that move.
        watch: how these move in training.
    """

    def __init__(self, loop: Loop, encodings: Sequence[Any], training: bool, site: int, steps: int) -> None:
        self.loop, self.training, self.observing, self.steps = loop, training, is_observing(), steps
        self.encodings: dict[int, Any] = {id(t): e for t, e in zip(loop.ports[1], encodings, strict=True)}
        self.weighted: dict[int, Callable[[Any], list[tf.Tensor]]] = {}
        self.quantized: dict[int, Ahead] = {}
        self.watched: list[tuple[FakeQuant, int]] = []
        self.shapes: list[tuple[Any, ...]] = []  # of what is watched
        if training:
            loop_ranges.take_in(list(dict.fromkeys(n.op for n in loop.nodes if isinstance(n.op, FakeQuant))))
        for node in loop.nodes:
            if isinstance(node.op, FakeQuant):
                self._read(node)
            elif isinstance(node.op, Compressed):
                encoding = self.encodings.get(id(node.kwargs.get("encoding")))
                number = max(site, node.kwargs.get("site", 0))
                self.weighted[id(node)] = node.op.ready(encoding, training, number)
        self.watch = loop_ranges.watch([] if self.observing else self.watched)

    def _read(self, node: Node) -> None:
        """What a `FakeQuant` does, and whether its tensor is to be seen."""
        op, sources = node.op, [self.encodings[id(e)] for e in node.kwargs.get("encodings", ())]
        ahead = self.quantized[id(node)] = op.ahead(sources, self.training, self.steps * _size(node.args[0]))
        self.encodings[id(node.outputs[1])] = ahead.encoding
        if self._is_watched(node):
            self.watched.append((op, node.kwargs.get("site", 0)))
            self.shapes.append(tuple(node.args[0].shape))

    def _is_watched(self, node: Node) -> bool:
        moves = self.training and node.op.has_range and node.op.trainable
        return not node.kwargs.get("peek") and (self.observing or moves)

    def over(
        self, xs: list[Any], wanted: Sequence[Any] = ()
    ) -> tuple[list[tf.Tensor], dict[int, tf.Tensor], list[tf.Tensor], list[tf.Tensor]]:
        """States after the last step, those of all steps where asked for, what is watched, and what is wanted."""
        steps, every = int(xs[0].shape[1]), sorted({r.state for r in self.loop.results if r.every})
        states = [tf.zeros((tf.shape(xs[0])[0], *t.shape[1:])) for t in self.loop.ports[2]]
        shapes = [self.loop.ends[0][n].shape for n in every] + (self.shapes if self.observing else [])
        shapes += [t.shape if len(t.shape) > 1 else None for t in wanted]  # one scale or one for each channel
        sizes = [int(x.shape[2]) for x in xs]
        # side by side: one array to read from at every step
        rows = _rows(tf.concat([tf.cast(x, tf.float32) for x in xs], axis=2), steps)
        made = [tf.TensorArray(tf.float32, steps, element_shape=shape) for shape in shapes]
        # one tensor, whose gradient is summed over the steps at once
        learn = {key: ahead.sums for key, ahead in self.quantized.items() if ahead.sums is not None}
        sums = tf.concat([tf.zeros((0,)), *learn.values()], 0)
        reach, asks = tf.fill((2 * len(self.watched),), tf.constant(-np.inf, tf.float32)), self.watch.asks()

        def body(t: tf.Tensor, states: list[Any], made: list[Any], reach: tf.Tensor) -> Any:
            parts = tf.unstack(sums) if learn else []
            own = {key: tuple(parts[3 * n : 3 * n + 3]) for n, key in enumerate(learn)}
            states, seen, inside = self.step(tf.split(rows.read(t), sizes, axis=2), states, own)
            values = [states[n] for n in every]
            if self.observing:
                values += seen
            elif seen:
                seen = tuple(tf.stop_gradient(y) for y in seen)
                farther = _farther(reach, seen) if asks is None else _farther_if(asks, reach, seen)
                reach = tf.stop_gradient(farther)
            values += [tf.cast(inside[id(t)], tf.float32) for t in wanted]
            return t + 1, states, [array.write(t, y) for array, y in zip(made, values, strict=True)], reach

        begin = (tf.constant(0), states, made, reach)
        _, states, made, reach = tf.while_loop(lambda t, *_: t < steps, body, begin, maximum_iterations=steps)
        stacked = [_along(array.stack()) for array in made]
        stacked, last = stacked[: len(made) - len(wanted)], stacked[len(made) - len(wanted) :]
        # A range moves by the extremes of what it is given: those of all steps.
        ends = [] if self.observing else tf.unstack(_extremes(reach), num=len(self.watched))
        return states, dict(zip(every, stacked, strict=False)), [*stacked[len(every) :], *ends], last

    def step(
        self, xs: list[Any], states: list[Any], sums: dict[int, tuple[tf.Tensor, ...]]
    ) -> tuple[list[tf.Tensor], list[tf.Tensor], dict[int, Any]]:
        """One step: the states after it, what is watched, and all that it made; `sums`: of ranges that learn."""
        seen: list[tf.Tensor] = []
        ports = self.loop.ports
        values = {id(t): x for t, x in zip((*ports[0], *ports[2]), (*xs, *states), strict=True)}
        for node in self.loop.nodes:
            args, kwargs = substitute((node.args, node.kwargs), {**self.encodings, **values})
            if isinstance(node.op, FakeQuant):
                if self._is_watched(node):
                    seen.append(tf.cast(args[0], tf.float32))
                made = self._quantized(node, args, kwargs, sums.get(id(node), ()))
            elif id(node) in self.weighted:
                made = self.weighted[id(node)](args[0])
            else:
                made = keras.tree.flatten(node.op(*args, **kwargs))
            values.update({id(t): y for t, y in zip(node.outputs, made, strict=True) if id(t) not in self.encodings})
        return [tf.cast(values[id(t)], tf.float32) for t in self.loop.ends[0]], seen, values

    def _quantized(self, node: Node, args: tuple, kwargs: dict[str, Any], sums: tuple[tf.Tensor, ...]) -> list[Any]:
        """Values on the grid; the encoding beside them is the one that is known."""
        ahead = self.quantized[id(node)]
        if kwargs.get("peek"):
            return [args[0], ahead.encoding]
        if ahead.values is not None:
            return [ahead.values(tf.cast(args[0], tf.float32), *sums), ahead.encoding]
        return node.op.call(*args, **kwargs)


def _size(y: Any) -> int:
    """Values of one sample of a tensor of the step."""
    return math.prod(n for n in y.shape[1:] if n is not None)


def _farther(reach: tf.Tensor, tensors: tuple[tf.Tensor, ...]) -> tf.Tensor:
    """float32[2 n]: how far each goes below 0, then how far above, or has gone before."""
    both = tf.stack([*(tf.reduce_min(y) for y in tensors), *(tf.reduce_max(y) for y in tensors)])
    return tf.maximum(reach, both * tf.constant([-1.0] * len(tensors) + [1.0] * len(tensors)))


def _farther_if(asks: tf.Tensor, reach: tf.Tensor, tensors: tuple[tf.Tensor, ...]) -> tf.Tensor:
    """`_farther` where somebody asks, which the ranges of most steps do not."""
    return tf.cond(asks, lambda: _farther_aside(reach, tensors), lambda: reach)


_farther_aside = aside(_farther)


def _extremes(reach: tf.Tensor) -> tf.Tensor:
    """float32[n, 2]: smallest and largest value of each."""
    below, above = tf.split(reach, 2)
    return tf.stack([-below, above], axis=1)


def _rows(x: tf.Tensor, steps: int) -> tf.TensorArray:
    """The steps of a sequence, [batch, 1, features] each."""
    rows = tf.transpose(x, (1, 0, 2))[:, :, None]
    return tf.TensorArray(x.dtype, steps, element_shape=rows.shape[1:]).unstack(rows)


def _along(y: tf.Tensor) -> tf.Tensor:
    """[steps, batch, 1, ...] to [batch, steps, ...]; of what has no samples, one step, which are all alike."""
    if len(y.shape) < 3:
        return y[0]
    return tf.transpose(tf.squeeze(y, 2), (1, 0, *range(2, y.shape.rank - 1)))


class LoopPort:
    """A call that stands for an edge of a loop in a graph in which the loop is open (`views.loops`).

    Attributes:
        loop: the layer.
        number: of the sequence, state or result.
        first: True for the port that begins (a sequence) or ends (a result) this call of the loop.
    """

    def __init__(self, loop: Loop, number: int, first: bool) -> None:
        self.loop, self.number, self.first = loop, number, first
        self.name = f"{loop.name}_{type(self).__name__}_{number}".lower()


class LoopStep(LoopPort):
    """This step of a sequence."""


class LoopState(LoopPort):
    """A state before the step: zeros, then what the step before left."""


class LoopResult(LoopPort):
    """A state after every step, or after the last one."""
