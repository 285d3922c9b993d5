"""GRU, SimpleRNN, and LSTM with other activations on targets without loops: every step is written out.

    x_z, x_r, x_h = Dense(x)                      once for the whole sequence, then one slice for each step
    z, r          = sigmoid(x_z + Dense(h)), sigmoid(x_r + Dense(h))
    n             = tanh(x_h + r * Dense(h))      reset_after; else tanh(x_h + Dense(r * h))
    h'            = n + z * (h - n)

The matrices are layers that all steps share: one variable to train, one tensor in the file. A file grows by 10 to 20
operators a step, so longer sequences are refused; `kquant.cell` makes the model of one step instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kquant.core.program import Program
from kquant.ops.activation import activate, name_of
from kquant.ops.real_steps import Padded, padded
from kquant.ops.recurrent import refuse_states, turned
from kquant.ops.rule import Call, Make, Rule, computed, copy_weights, example

layers = keras.layers

MOST_STEPS = 64
FIXED = ("tanh", "sigmoid")  # the kernel prescribes their encodings, so that all states have one anyway


@keras.saving.register_keras_serializable(package="kquant")
class SameEncoding(keras.layers.Layer):
    """The first of several tensors, which all get one encoding: the state before a step and after it."""

    def call(self, xs: Any) -> Any:
        """Pass the first tensor on."""
        return xs[0]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the first tensor."""
        return input_shape[0]


def dense(make: Make, op: Any, name: str, kernel: np.ndarray, bias: np.ndarray | None) -> Any:
    """A `Dense` layer with these weights; the same one for every step."""

    def build() -> Any:
        layer: Any = layers.Dense(kernel.shape[1], use_bias=bias is not None, name=f"{op.name}_{name}")
        layer.build((None, kernel.shape[0]))
        layer.kernel.assign(kernel)
        if bias is not None:
            layer.bias.assign(bias)
        layer.trainable = op.trainable
        return layer

    return make(name, build)


class Steps:
    """What the cells below build their steps with: the layer, `make`, and the number of the step in names."""

    def __init__(self, op: Any, make: Make) -> None:
        self.op, self.cell, self.make, self.step = op, op.cell, make, 0
        self.zero: Any = None  # the state before the first step, where something needs it

    def layer(self, name: str, factory: Callable[[str], Any]) -> Any:
        """A layer of its own for this step."""
        return self.make(f"{name}/{self.step}", lambda: factory(f"{self.op.name}_{name}_{self.step}"))

    def add(self, name: str, a: Any, b: Any) -> Any:
        """`a + b`."""
        return self.layer(name, lambda label: layers.Add(name=label))([a, b])

    def subtract(self, name: str, a: Any, b: Any) -> Any:
        """`a - b`."""
        return self.layer(name, lambda label: layers.Subtract(name=label))([a, b])

    def multiply(self, name: str, a: Any, b: Any) -> Any:
        """`a * b`."""
        return self.layer(name, lambda label: layers.Multiply(name=label))([a, b])

    def tie(self, name: str, *tensors: Any) -> Any:
        """The first tensor; all of them get one encoding."""
        return self.layer(name, lambda label: SameEncoding(name=label))(list(tensors))

    def activate(self, name: str, function: Any, x: Any) -> Any:
        """An activation function; its helper layers are numbered too."""
        # A layer for each step, as each has a range of its own; the helper layers of an activation count as well.
        make = lambda key, factory: self.make(f"{name}/{key}/{self.step}", factory)  # noqa: E731
        return activate(function, make, x, layer=f"{self.op.name}_{name}_{self.step}")

    def matrix(self, name: str, kernel: np.ndarray, bias: np.ndarray | None = None) -> Any:
        """A matrix that all steps share."""
        return dense(self.make, self.op, name, kernel, bias)

    def gate(self, name: str, by_input: Any, kernel: np.ndarray, state: Any) -> Any:
        """`x W + b + h U`; in the first step there is no state."""
        # h is 0 before the first step, and no operator has to add it.
        if state is None:
            return by_input
        return self.add(f"sum_{name}", by_input, self.matrix(f"h_{name}", kernel)(state))

    def at(self, x: Any, name: str) -> Any:
        """This step of a sequence: `[batch, 1, features]`."""
        rest = x.shape[1] - 1 - self.step
        return self.layer(f"{name}_at", lambda label: layers.Cropping1D((self.step, rest), name=label))(x)


def _parts(weights: Any, gates: int) -> list[np.ndarray]:
    return np.split(np.asarray(weights), gates, axis=-1)


def _biases(cell: Any, gates: int) -> tuple[list[Any], list[Any]]:
    """Input and recurrent biases of each gate, None where there are none."""
    if not cell.use_bias:
        return [None] * gates, [None] * gates
    bias = np.asarray(cell.bias)
    # reset_after keeps two rows, one for the input and one for the state.
    if bias.ndim == 1:
        return _parts(bias, gates), [None] * gates
    return _parts(bias[0], gates), _parts(bias[1], gates)


def gru(steps: Steps, x: Any) -> tuple[list[Any], Callable[[list[Any], list[Any]], list[Any]]]:
    """What a GRU makes of the whole input, and its step."""
    cell = steps.cell
    before, after = _biases(cell, 3)
    for gate in (0, 1):  # the two biases of these gates only ever meet as a sum
        before[gate] = before[gate] if after[gate] is None else before[gate] + after[gate]
    inputs = [steps.matrix(f"x_{g}", w, b)(x) for g, w, b in zip("zrh", _parts(cell.kernel, 3), before, strict=True)]
    by_z, by_r, by_h = _parts(cell.recurrent_kernel, 3)

    def step(x: list[Any], states: list[Any]) -> list[Any]:
        (h,) = states
        z = steps.activate("z", cell.recurrent_activation, steps.gate("z", x[0], by_z, h))
        r = steps.activate("r", cell.recurrent_activation, steps.gate("r", x[1], by_r, h))
        reset = reset_after if cell.reset_after else reset_before
        new = steps.activate("new", cell.activation, reset(x, r, h))
        if h is None:
            return [steps.subtract("state", new, steps.multiply("kept", z, new))]
        # n + z (h - n) is z h + (1 - z) n with one product and one rounding less.
        kept = steps.multiply("kept", z, steps.subtract("change", h, new))
        return [steps.add("state", new, kept)]

    def reset_after(x: list[Any], r: Any, h: Any) -> Any:
        if h is None and after[2] is None:
            return x[2]
        first = h is None
        if first:  # the bias is there in the first step too
            h = steps.zero = steps.subtract("zero", x[0], x[0])
        by_state = steps.matrix("h_h", by_h, after[2])(h)
        reset = steps.multiply("reset", r, by_state)
        if first:  # a bias of zeros has no range of its own, and one that has just begun to train hardly any
            x[2] = steps.tie("tie_h", x[2], by_state, reset)
        return steps.add("sum_h", x[2], reset)

    def reset_before(x: list[Any], r: Any, h: Any) -> Any:
        return x[2] if h is None else steps.gate("h", x[2], by_h, steps.multiply("reset", r, h))

    return inputs, step


def simple(steps: Steps, x: Any) -> tuple[list[Any], Callable[[list[Any], list[Any]], list[Any]]]:
    """What a SimpleRNN makes of the whole input, and its step."""
    cell = steps.cell
    bias = np.asarray(cell.bias) if cell.use_bias else None
    inputs = [steps.matrix("x_h", np.asarray(cell.kernel), bias)(x)]

    def step(x: list[Any], states: list[Any]) -> list[Any]:
        total = steps.gate("h", x[0], np.asarray(cell.recurrent_kernel), states[0])
        return [steps.activate("state", cell.activation, total)]

    return inputs, step


def long(steps: Steps, x: Any) -> tuple[list[Any], Callable[[list[Any], list[Any]], list[Any]]]:
    """What an LSTM makes of the whole input, and its step; the states are `h` and `c`."""
    cell = steps.cell
    before, _ = _biases(cell, 4)
    names, recurrent = "ifgo", _parts(cell.recurrent_kernel, 4)
    inputs = [steps.matrix(f"x_{g}", w, b)(x) for g, w, b in zip(names, _parts(cell.kernel, 4), before, strict=True)]

    def step(x: list[Any], states: list[Any]) -> list[Any]:
        h, c = states
        sums = [steps.gate(g, part, w, h) for g, part, w in zip(names, x, recurrent, strict=True)]
        functions = [cell.recurrent_activation] * 2 + [cell.activation, cell.recurrent_activation]
        i, f, g, o = (steps.activate(n, a, s) for n, a, s in zip(names, functions, sums, strict=True))
        update = steps.multiply("update", i, g)
        c = update if c is None else steps.add("cell", steps.multiply("forget", f, c), update)
        return [steps.multiply("state", o, steps.activate("squashed", cell.activation, c)), c]

    return inputs, step


CELLS = {layers.GRUCell: (gru, 1), layers.SimpleRNNCell: (simple, 1), layers.LSTMCell: (long, 2)}


def refuse_stateful(op: Any) -> None:
    """Refuse states that a file would have to keep.

    Raises:
        ValueError: `stateful=True`, by the layer's name.
    """
    if op.stateful:
        raise ValueError(
            f"{op.name} ({type(op).__name__}): stateful=True, but no operator keeps its state. Export the model of one "
            "step with the state as input and output (kquant.cell), or an LSTM with its default activations."
        )


def entered(op: Any, make: Make, x: Any, initial_state: Any, mask: Any) -> tuple[Any, Any]:
    """The sequence as the cell meets it, and which of its steps are real; None where nothing masks any.

    Raises:
        ValueError: an initial state or one that stays, by the layer's name; a mask that cannot be followed.
    """
    refuse_states(op, initial_state)
    refuse_stateful(op)
    real = padded(op, make, mask)
    if real is not None:
        return real.enter(x), real
    return (turned(op, make, x) if op.go_backwards else x), None


def unroll(op: Any, make: Make, x: Any, initial_state: Any = None, mask: Any = None, **_: Any) -> Any:
    """Every step of the layer in simpler layers."""
    x, real = entered(op, make, x, initial_state, mask)
    count = x.shape[1]
    if count > MOST_STEPS:
        raise ValueError(
            f"{op.name} ({type(op).__name__}): no kernel computes it, so each of its {count} steps is written out; "
            f"more than {MOST_STEPS} make a file too large. Export the model of one step (kquant.cell), take an LSTM "
            "with its default activations, which is one operator, or shorten the sequence (a convolution with strides)."
        )
    build, number = CELLS[type(op.cell)]
    steps = Steps(op, make)
    inputs, step = build(steps, x)
    states: list[Any] = [None] * number
    made = []  # the states after every step
    # The loop counts in `steps` itself, where the names and keys of all layers of a step come from.
    for steps.step in range(count):
        new = step([steps.at(part, str(i)) for i, part in enumerate(inputs)], states)
        # The matrices that all steps share read a state of each: with one encoding for it, they have one bias in the
        # file.
        states = [_tied(steps, i, after, before) for i, (after, before) in enumerate(zip(new, states, strict=True))]
        made.append(states)
    if real is not None:
        return of_real(op, [_sequence(op, make, made, i) for i in range(number if op.return_state else 1)], real)
    y = _sequence(op, make, made, 0) if op.return_sequences else states[0]
    return returned(op, make, y, states)


def _sequence(op: Any, make: Make, made: list[Any], number: int) -> Any:
    """One of the states after every step."""
    name = f"{op.name}_states_{number}" if number else op.name
    steps = [states[number] for states in made]
    return steps[0] if len(steps) == 1 else make(f"sequence{number}", lambda: layers.Concatenate(1, name=name))(steps)


def of_real(op: Any, sequences: list[Any], real: Padded) -> Any:
    """What the layer returns where a mask says which steps are real, of the states after every step."""
    first = real.sequence(sequences[0]) if op.return_sequences else real.last(sequences[0])
    if not op.return_state:
        return first
    return [first, *(real.last(y, f"last_{i}") for i, y in enumerate(sequences))]


def _tied(steps: Steps, number: int, after: Any, before: Any) -> Any:
    """One encoding for a state over all steps, so that what the steps share is stored once."""
    cell = steps.cell
    # Its state is the output of that activation, so every step has the kernel's encoding already.
    if type(cell) is layers.SimpleRNNCell and name_of(cell.activation) in FIXED:
        return after
    # The first step has none, but for the zeros that `reset_after` made; the second one ties them all.
    before = steps.zero if before is None else before
    if before is None:
        return after
    return steps.tie(f"tie_{number}", after, before)


def returned(op: Any, make: Make, y: Any, states: list[Any]) -> Any:
    """The sequence or the last state, then the states, as the layer returns them."""

    def row(i: int) -> Any:
        return make(f"row_{i}", lambda: layers.Reshape((states[i].shape[-1],), name=f"{op.name}_row_{i}"))(states[i])

    if op.return_sequences and not op.return_state:
        return y
    rows = [row(i) for i in range(len(states) if op.return_state else 1)]
    first = y if op.return_sequences else rows[0]
    return [first, *rows] if op.return_state else first


def unrollable(op: Any) -> bool:
    """True for a layer of a cell that is known."""
    return type(getattr(op, "cell", None)) in CELLS


def _stacked(op: Any) -> bool:
    return isinstance(getattr(op, "cell", None), layers.StackedRNNCells)


def _stack(op: Any, make: Make, x: Any, initial_state: Any = None, mask: Any = None, **_: Any) -> Any:
    """`RNN([cell, cell])`: one layer after the other."""
    refuse_states(op, initial_state)
    if op.return_state or op.stateful:
        raise ValueError(
            f"{op.name} (RNN): stacked cells with return_state or stateful; write them as layers, one after the other."
        )
    for i, cell in enumerate(op.cell.cells):
        last = i == len(op.cell.cells) - 1
        x = make(f"cell{i}", lambda cell=cell, last=last, i=i, x=x: _alone(op, cell, x, last, i))(x, mask=mask)
    return x


def _alone(op: Any, cell: Any, x: Any, last: bool, number: int) -> Any:
    """An RNN of one of the cells."""
    # Only the first one reads the sequence backwards: the others are given what it made, in that order. Zeros at masked
    # steps are for the output alone.
    layer = layers.RNN(
        type(cell).from_config(cell.get_config()),
        return_sequences=op.return_sequences or not last,
        go_backwards=op.go_backwards and number == 0,
        zero_output_for_mask=op.zero_output_for_mask and last,
        name=f"{op.name}_{number}",
    )
    layer.build(x.shape)
    copy_weights(cell, layer.cell)
    return layer


def _refuse_cell(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    raise ValueError(
        f"{op.name} (RNN): its cell {type(op.cell).__name__} has no rule; kquant knows LSTMCell, GRUCell, "
        "SimpleRNNCell and stacks of them. Write its steps as Keras layers, or export the model of one step."
    )


def _lower_first(program: Program, call: Call) -> None:
    """A RESHAPE to the same shape, which tidying removes."""
    program.reshape(call.inputs[0], call.output.shape, call.output)


RULES = (
    Rule(
        layers=(layers.LSTM,),
        expand=unroll,
        masks=True,
        examples=(example(lambda: layers.LSTM(3, activation="relu"), shape=(2, 3)),),
    ),
    Rule(
        layers=(layers.GRU, layers.SimpleRNN),
        expand=unroll,
        masks=True,
        examples=(
            example(lambda: layers.GRU(4), shape=(2, 3)),
            example(lambda: layers.GRU(4, reset_after=False, return_sequences=True), shape=(3, 3)),
            example(lambda: layers.SimpleRNN(4, return_sequences=True, go_backwards=True), shape=(3, 3)),
            example(lambda: layers.SimpleRNN(4, activation="relu", use_bias=False), shape=(2, 3)),
        ),
    ),
    Rule(
        layers=(layers.RNN,),
        when=unrollable,
        expand=unroll,
        masks=True,
        examples=(example(lambda: layers.RNN(layers.GRUCell(3)), shape=(2, 3)),),
    ),
    Rule(
        layers=(layers.RNN,),
        when=_stacked,
        expand=_stack,
        masks=True,
        examples=(example(lambda: layers.RNN([layers.LSTMCell(3), layers.LSTMCell(4)]), shape=(3, 3)),),
    ),
    Rule(
        layers=(layers.RNN,),
        expand=_refuse_cell,
        examples=(example(lambda: layers.RNN(layers.SimpleRNNCell(3)), shape=(2, 3)),),
    ),
    Rule(
        layers=(SameEncoding,),
        output="shared",
        lower=_lower_first,
        examples=(computed(lambda a, b: keras.ops.tanh(SameEncoding()([a, b])) + b, (4, 3), (4, 3)),),
    ),
)
