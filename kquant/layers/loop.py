"""`Loop`: one step of a recurrent layer as a small model inside, run over a sequence.

    step    [x_t, .., encodings of x, .., states]  ->  [states after it, .., their encodings, ..]
    Loop    [x, .., encodings of x, ..]            ->  [all states or the last one, .., their encodings, ..]

In a float model the layers of the step are Keras' own. In a quantized one they are `FakeQuant` and `Compressed`, as they
are outside: what iterates a model's layers finds them. A graph holds one step, however long the sequence, and so does
the file (WHILE). Encodings are the same at every step: they are read before the loop, weights are rounded before it, and
ranges that training moves move behind it, once for all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras
import tensorflow as tf

from kquant.graph.keras_private import recorded_calls
from kquant.graph.unfold import Node, substitute
from kquant.layers.compressed import Compressed
from kquant.layers.fake_quant import FakeQuant
from kquant.layers.modes import is_observing, moving_later, observing, show

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
        return tuple(Node(c.operation, c.arguments.args, c.arguments.kwargs, tuple(c.outputs)) for c in calls)

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
        if tf.executing_eagerly() and xs[0].shape[1] > 1:
            return self._traced(list(xs), list(encodings), training, site)
        return self._run(list(xs), list(encodings), training, site, show)

    def _traced(self, xs: list[Any], encodings: list[Any], training: bool, site: int) -> list[tf.Tensor]:
        """The same as one function: a step is traced in the time that one or two of them take without it."""
        shown: list[tuple[FakeQuant, int]] = []

        def run(*given: tf.Tensor) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            seen: Shown = []
            tell = lambda *what: seen.append(what)  # noqa: E731
            made = self._run(list(given[: len(xs)]), list(given[len(xs) :]), training, site, tell)
            shown.extend((layer, number) for layer, number, _ in seen)
            return made, [y for *_, y in seen]

        specs = [tf.TensorSpec((None, *x.shape[1:]), x.dtype) for x in xs]
        specs += [tf.TensorSpec(e.shape, e.dtype) for e in encodings]
        function = tf.function(run, autograph=False).get_concrete_function(*specs)
        made, values = function(*map(tf.convert_to_tensor, (*xs, *encodings)))
        for (layer, number), y in zip(shown, values, strict=True):
            show(layer, number, y)
        return made

    def _run(
        self, xs: list[Any], encodings: list[Any], training: bool, site: int, tell: Callable[..., None]
    ) -> list[tf.Tensor]:
        """The loop; `tell(layer, site, tensor)` is shown what calibration asks for."""
        run = _Run(self, encodings, training, site)
        after, sequences, seen = run.over(xs)
        for (layer, number), y in zip(run.watched, seen, strict=True):
            if is_observing():
                tell(layer, number, y)
            else:  # once for all steps: a range that moved inside the loop would give each step another grid
                layer.move_range(y, number)
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
        watched: calls whose tensors somebody wants to see, in order: calibration, or ranges that move.
    """

    def __init__(self, loop: Loop, encodings: Sequence[Any], training: bool, site: int) -> None:
        self.loop, self.training = loop, training
        self.encodings: dict[int, Any] = {id(t): e for t, e in zip(loop.ports[1], encodings, strict=True)}
        self.weighted: dict[int, Callable[[Any], list[tf.Tensor]]] = {}
        self.watched: list[tuple[FakeQuant, int]] = []
        for node in loop.nodes:
            if isinstance(node.op, FakeQuant):
                self._read(node)
            elif isinstance(node.op, Compressed):
                encoding = self.encodings.get(id(node.kwargs.get("encoding")))
                number = max(site, node.kwargs.get("site", 0))
                self.weighted[id(node)] = node.op.ready(encoding, training, number)

    def _read(self, node: Node) -> None:
        """The encoding that a call tells."""
        op, sources = node.op, [self.encodings[id(e)] for e in node.kwargs.get("encodings", ())]
        self.encodings[id(node.outputs[1])] = op.told_ahead(sources, self.training)
        moves = self.training and op.has_range and op.trainable
        if not node.kwargs.get("peek") and (is_observing() or moves):
            self.watched.append((op, node.kwargs.get("site", 0)))

    def over(self, xs: list[Any]) -> tuple[list[tf.Tensor], dict[int, tf.Tensor], list[tf.Tensor]]:
        """States after the last step, those of all steps where they are asked for, and what is watched."""
        steps, every = int(xs[0].shape[1]), sorted({r.state for r in self.loop.results if r.every})
        batch = tf.shape(xs[0])[0]
        states = [tf.zeros((batch, *t.shape[1:])) for t in self.loop.ports[2]]
        shapes = [self.loop.ends[0][n].shape for n in every] + [self._shape_of(n) for n in range(len(self.watched))]
        rows = [_rows(tf.convert_to_tensor(x), steps) for x in xs]
        made = [tf.TensorArray(tf.float32, steps, element_shape=shape) for shape in shapes]

        def body(t: tf.Tensor, states: list[Any], made: list[Any]) -> Any:
            states, seen = self.step([row.read(t) for row in rows], states)
            values = [*(states[n] for n in every), *seen]
            return t + 1, states, [array.write(t, y) for array, y in zip(made, values, strict=True)]

        begin = (tf.constant(0), states, made)
        _, states, made = tf.while_loop(lambda t, *_: t < steps, body, begin, maximum_iterations=steps)
        stacked = [array.stack() for array in made]
        sequences = {n: _along(y) for n, y in zip(every, stacked, strict=False)}
        seen = [y if y.shape.rank == 2 else _along(y) for y in stacked[len(every) :]]
        return states, sequences, seen

    def _shape_of(self, number: int) -> tuple[Any, ...]:
        """Of what is watched at a step: the tensor for calibration, its ends for a range that moves."""
        return self._tensors[number] if is_observing() else (2,)

    @property
    def _tensors(self) -> list[tuple[Any, ...]]:
        calls = [n for n in self.loop.nodes if isinstance(n.op, FakeQuant) and not n.kwargs.get("peek")]
        return [tuple(n.args[0].shape) for n in calls]

    def step(self, xs: list[Any], states: list[Any]) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """One step: the states after it, and what is watched."""
        seen: list[tf.Tensor] = []
        ports = self.loop.ports
        values = {id(t): x for t, x in zip((*ports[0], *ports[2]), (*xs, *states), strict=True)}

        def keep(layer: FakeQuant, site: int, y: tf.Tensor) -> None:
            seen.append(tf.cast(y, tf.float32))

        def ends(layer: FakeQuant, site: int, y: tf.Tensor) -> None:
            seen.append(tf.stack([tf.reduce_min(y), tf.reduce_max(y)]))

        with observing(keep) if is_observing() else moving_later(ends):
            for node in self.loop.nodes:
                for t, y in zip(node.outputs, self._call(node, values), strict=True):
                    # What the loop knows beforehand stays: inside, it would be read again at every step.
                    values[id(t)] = self.encodings.get(id(t), y)
        return [tf.cast(values[id(t)], tf.float32) for t in self.loop.ends[0]], seen

    def _call(self, node: Node, values: dict[int, Any]) -> Iterator[Any] | list[Any]:
        args, kwargs = substitute((node.args, node.kwargs), {**self.encodings, **values})
        if id(node) in self.weighted:
            return self.weighted[id(node)](args[0])
        if isinstance(node.op, FakeQuant):
            if kwargs.get("peek"):
                return [args[0], self.encodings[id(node.outputs[1])]]
            return node.op.call(*args, **{**kwargs, "training": self.training})
        return keras.tree.flatten(node.op(*args, **kwargs))


def _rows(x: tf.Tensor, steps: int) -> tf.TensorArray:
    """The steps of a sequence, [batch, 1, features] each."""
    rows = tf.transpose(x, (1, 0, *range(2, x.shape.rank)))[:, :, None]
    return tf.TensorArray(x.dtype, steps, element_shape=rows.shape[1:]).unstack(rows)


def _along(y: tf.Tensor) -> tf.Tensor:
    """[steps, batch, 1, ...] to [batch, steps, ...]."""
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
