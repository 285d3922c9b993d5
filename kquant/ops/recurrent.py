"""LSTM: one UNIDIRECTIONAL_SEQUENCE_LSTM over the whole sequence; everything around it in simpler layers.

    go_backwards            Reverse before it
    return_sequences=False  the last step of its output, sliced
    Bidirectional           two of them, the second reversed, merged
    a mask                  the real steps in front before it, moved back behind it: `real_steps`
    RNN(LSTMCell)           the same as LSTM

The file keeps the states of an LSTM between runs only where the layer is `stateful`; others start each run from zeros.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.arithmetic.lstm import GATE_SCALE
from kquant.core.program import Operator, Program, Ref
from kquant.core.spec import Encoding, QuantSpec
from kquant.layers.quantized_lstm import GATES, QuantizedLSTM
from kquant.ops.real_steps import padded
from kquant.ops.rule import Call, Make, Rule, computed, copy_weights, example, rebuild

layers = keras.layers

BIAS = QuantSpec(16, symmetric=True)
STATES = QuantSpec(16, symmetric=True)
ZEROS = QuantSpec(8, symmetric=True)
# What the rebuilt layer is without: the steps around it are layers of their own, dropout leaves at inference.
PLAIN = {
    "return_sequences": True,
    "return_state": False,
    "go_backwards": False,
    "dropout": 0.0,
    "recurrent_dropout": 0.0,
}


@keras.saving.register_keras_serializable(package="kquant")
class Reverse(keras.layers.Layer):
    """The steps of a sequence, last first."""

    def call(self, x: Any) -> Any:
        """Reverse axis 1."""
        return keras.ops.flip(x, axis=1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """As the input."""
        return input_shape


@keras.saving.register_keras_serializable(package="kquant")
class CellState(keras.layers.Layer):
    """Stands for the last cell state of an LSTM, which no other operator can read."""

    def call(self, x: Any) -> Any:
        """The shape of the state only."""
        return keras.ops.zeros_like(x[:, -1])

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Without the steps."""
        return (input_shape[0], *input_shape[2:])


def refuse_states(op: Any, initial_state: Any = None) -> None:
    """Refuse what an exported sequence cannot be given.

    Raises:
        ValueError: states are given, by the layer's name.
    """
    if initial_state is not None and (not isinstance(initial_state, list | tuple) or len(initial_state)):
        raise ValueError(
            f"{op.name} ({type(op).__name__}): it is given an initial state; the exported sequence starts from zeros. "
            "Export a one-step model with the states as inputs and outputs (kquant.cell), or use stateful=True."
        )


def turned(op: Any, make: Make, x: Any) -> Any:
    """The sequence in the order in which a layer with go_backwards reads it."""
    return make("reverse", lambda: Reverse(name=f"{op.name}_reverse"))(x)


def last_step(op: Any, make: Make, y: Any) -> Any:
    """`[batch, steps, units]` to `[batch, units]`: the last step."""
    last = make("last", lambda: layers.Cropping1D((y.shape[1] - 1, 0), name=f"{op.name}_last"))(y)
    return make("row", lambda: layers.Reshape(y.shape[2:], name=f"{op.name}_state"))(last)


def _plain(op: Any) -> bool:
    """True where the operator computes exactly this layer."""
    return isinstance(op, QuantizedLSTM) or (
        has_kernel(op) and all(getattr(op, key) == value for key, value in PLAIN.items())
    )


def asked_apart(op: Any) -> bool:
    """`unroll=True`: its steps may be written one by one, where an accelerator takes those and nothing else of it."""
    return bool(getattr(op, "unroll", False))


def has_kernel(op: Any) -> bool:
    """True for an LSTM with the activations of the operator."""
    cell = op.cell
    return (
        # By class and by function, not by name: a user's own `tanh` may be anything.
        type(cell) is layers.LSTMCell
        and cell.activation is keras.activations.tanh
        and cell.recurrent_activation is keras.activations.sigmoid
    )


def _expand(op: Any, make: Make, x: Any, initial_state: Any = None, mask: Any = None, **_: Any) -> Any:
    """The plain LSTM, with what its options and the mask mean around it; None where it is the plain LSTM."""
    refuse_states(op, initial_state)
    real = padded(op, make, mask)
    if real is None and _plain(op):
        return None
    if real is not None:
        x = real.enter(x)
    elif op.go_backwards:
        x = turned(op, make, x)
    y = make("lstm", lambda: rebuild(op, **PLAIN))(x)
    last = None
    if op.return_state or not op.return_sequences:
        last = last_step(op, make, y) if real is None else real.last(y)
    if op.return_sequences and real is not None:
        y = real.sequence(y)
    first = y if op.return_sequences else last
    if not op.return_state:
        return first
    # For a model that asks for the cell state and then leaves it alone; whoever reads it is refused by name.
    return [first, last, make("cell", lambda: CellState(name=f"{op.name}_cell_state"))(y)]


def _refuse_plain(node: Any) -> str | None:
    if len(node.inputs) > 1 and not isinstance(node.op, QuantizedLSTM):
        return "it is given an initial state; the exported sequence starts from zeros. Export a one-step model instead"
    return None


def _refuse_cell_state(node: Any) -> str | None:
    return (
        "the last cell state of an LSTM is read; it is an int16 state inside the operator, which no other one takes. "
        "Use the hidden state, or the model of one step (kquant.cell)"
    )


def _attach(op: Any, spec: QuantSpec, inside: Any, bits: int) -> QuantizedLSTM:
    return QuantizedLSTM(op, spec.to_config(), inside("cell"), bits)


def _lower(program: Program, call: Call) -> None:
    """24 inputs in the kernel's order; peepholes, projection and layer norms are absent."""
    op, x, y = call.op, call.inputs[0], call.output
    if not bool(op.seen()):
        raise ValueError(f"export: {op.name} has no range of its cell state yet. Run kquant.calibrate or train first.")
    weights = op.codes(x.grid.scale[0])
    units = y.shape[-1]
    hidden, cell = _states(program, op, y.grid, units)
    # The kernel goes on from what its variables hold, which is right for stateful layers only.
    if not op.layer.stateful:
        _reset(program, op.name, x, hidden, cell)
    kernels = _matrices(program, f"{op.name}/kernel", weights.kernel, weights.kernel_scale, op.spec)
    recurrent = _matrices(program, f"{op.name}/recurrent", weights.recurrent, weights.recurrent_scale, op.spec)
    biases = _biases(program, op.name, weights, x.grid.scale[0], np.int32 if op.bits == 8 else np.int64)
    # Inputs 9 to 11 are peepholes, 16 and 17 the projection, 18 and 19 the states, 20 to 23 layer norms
    # (lstm_shared.h).
    inputs = [x, *kernels, *recurrent, *[None] * 3, *biases, None, None, hidden, cell, *[None] * 4]
    options = {"fusedActivationFunction": "TANH", "cellClip": 0.0, "projClip": 0.0, "timeMajor": False}
    made = Operator("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [y], {**options, "asymmetricQuantizeInputs": False})
    made.intermediates = _intermediates(program, op.name, y.grid)
    program.operators.append(made)


def _states(program: Program, op: Any, encoding: Encoding, units: int) -> tuple[Ref, Ref]:
    """The variables that hold `h` and `c`."""
    scale = np.float32(2.0 ** (int(op.cell_bits()) - 15))
    hidden = program.value(f"{op.name}/hidden_state", (1, units), encoding)
    cell = program.value(f"{op.name}/cell_state", (1, units), _symmetric(scale), "int16")
    hidden.variable = cell.variable = True
    return hidden, cell


def _symmetric(scale: Any, spec: QuantSpec = STATES) -> Encoding:
    return Encoding(np.array([scale], np.float32), np.array([0], np.int64), spec)


def _reset(program: Program, name: str, x: Ref, hidden: Ref, cell: Ref) -> None:
    """Zeros into the states before the LSTM runs: an interpreter keeps variables from the run before."""
    # A variable has no stored contents, so its zeros are computed: one number of the input, whichever it is, times
    # zeros.
    one = program.value(f"{name}/one_input", (1, 1), x.encoding)
    flat = program.reshape(x, (1, x.size))
    corner = [program.constant(what, np.array(n, np.int32)) for what, n in (("begin", [0, 0]), ("size", [1, 1]))]
    program.emit("SLICE", [flat, *corner], one)
    spec = STATES if x.dtype == "int16" else ZEROS
    half = Encoding(0.5 * hidden.grid.scale / x.grid.scale, np.array([0]), spec)  # any; 0.5 suits every kernel
    zeros = program.constant(f"{name}/zeros", np.zeros((1, hidden.shape[1]), x.dtype), half)
    program.emit("MUL", [one, zeros], hidden, fusedActivationFunction="NONE")
    # Real 0 in either encoding, so that the cell state needs no product of its own.
    program.emit("QUANTIZE", [hidden], cell)


def _matrices(program: Program, name: str, codes: Any, scales: Any, spec: QuantSpec) -> list[Ref]:
    """Four tensors `[units, inputs]`, one scale each."""
    gates = np.split(np.asarray(codes), 4, axis=1)
    return [
        program.constant(f"{name}_{gate}", np.ascontiguousarray(w.T).astype(np.int8), _symmetric(s, spec))
        for gate, w, s in zip(GATES, gates, np.asarray(scales), strict=True)
    ]


def _biases(program: Program, name: str, weights: Any, input_scale: Any, dtype: Any) -> list[Ref]:
    """Four tensors at `input scale * kernel scale`."""
    rows = np.split(np.asarray(weights.bias).astype(dtype), 4)
    return [
        program.constant(f"{name}/bias_{gate}", row, _symmetric(s * input_scale, BIAS))
        for gate, row, s in zip(GATES, rows, np.asarray(weights.kernel_scale), strict=True)
    ]


def _intermediates(program: Program, name: str, encoding: Encoding) -> list[Ref]:
    """Scales inside the operator: LiteRT reads that of the hidden state only (the others serve layer norms)."""
    gates = [program.value(f"{name}/gate_{g}", (0,), _symmetric(GATE_SCALE), "int16") for g in GATES]
    return [*gates, program.value(f"{name}/hidden", (0,), encoding)]


def _bidirectional(op: Any, make: Make, x: Any, initial_state: Any = None, mask: Any = None, **_: Any) -> Any:
    """Both directions, the second turned back, merged."""
    refuse_states(op, initial_state)
    if op.stateful:
        raise ValueError(f"{op.name} (Bidirectional): stateful=True has no meaning backwards; set stateful=False.")
    forward = keras.tree.flatten(make("forward", lambda: rebuild(op.forward_layer))(x, mask=mask))
    backward = keras.tree.flatten(make("backward", lambda: rebuild(op.backward_layer))(x, mask=mask))
    first, second = forward[0], backward[0]
    if op.return_sequences:
        # A layer that goes backwards gives its steps in the order in which it read them.
        second = make("turn", lambda: Reverse(name=f"{op.name}_turn"))(second)
    merge = {"concat": layers.Concatenate, "sum": layers.Add, "mul": layers.Multiply, "ave": layers.Average}
    if op.merge_mode is None:
        merged = [first, second]
    else:
        merged = [make("merge", lambda: merge[op.merge_mode](name=op.name))([first, second])]
    # States follow as Keras returns them, those of the forward layer first.
    made = [*merged, *forward[1:], *backward[1:]]
    return made if len(made) > 1 else made[0]


def _from_cell(op: Any, make: Make, x: Any, **kwargs: Any) -> Any:
    """`RNN(LSTMCell)` is `LSTM`."""
    return make("lstm", lambda: _as_lstm(op))(x, **kwargs)


def _as_lstm(op: Any) -> Any:
    shared = {k: getattr(op, k) for k in ("return_sequences", "return_state", "go_backwards", "stateful", "unroll")}
    shared["zero_output_for_mask"] = op.zero_output_for_mask
    # The cell's settings are the layer's, but for what names it.
    config = {k: v for k, v in op.cell.get_config().items() if k not in ("name", "trainable", "dtype")}
    layer = layers.LSTM.from_config({**config, **shared, "name": op.name})
    layer.build_from_config(op.get_build_config())
    copy_weights(op.cell, layer.cell)
    return layer


def lstm(units: int, **kwargs: Any) -> Any:
    """A factory of LSTM layers, for examples."""
    return lambda: layers.LSTM(units, **kwargs)


RULES = (
    Rule(
        layers=(layers.LSTM, QuantizedLSTM),
        when=_plain,
        yields=asked_apart,
        expand=_expand,
        masks=True,
        operators=("UNIDIRECTIONAL_SEQUENCE_LSTM",),
        widths=(8, 16),
        attach=_attach,
        lower=_lower,
        refuse=_refuse_plain,
        examples=(
            example(lstm(6, return_sequences=True), shape=(5, 5)),
            example(lstm(8, return_sequences=True, use_bias=False), lstm(4, return_sequences=True), shape=(6, 3)),
        ),
    ),
    Rule(
        layers=(layers.LSTM,),
        when=has_kernel,
        expand=_expand,
        masks=True,
        examples=(
            example(lstm(5), shape=(3, 4)),
            example(lstm(5, go_backwards=True, dropout=0.2), lambda: layers.Dense(3), shape=(3, 4)),
        ),
    ),
    Rule(
        layers=(CellState,),
        operators=("UNIDIRECTIONAL_SEQUENCE_LSTM",),
        widths=(8, 16),
        refuse=_refuse_cell_state,
        lower=_lower,
        examples=(computed(lambda x: layers.LSTM(4, return_state=True, return_sequences=True)(x)[:2], (5, 3)),),
    ),
    Rule(
        layers=(Reverse,),
        operators=("STRIDED_SLICE",),
        output="same",
        lower=lambda program, call: _lower_reverse(program, call),
        examples=(example(Reverse, shape=(5, 3)),),
    ),
    Rule(
        layers=(layers.Bidirectional,),
        expand=_bidirectional,
        masks=True,
        examples=(
            example(lambda: layers.Bidirectional(layers.LSTM(4)), shape=(3, 3)),
            example(lambda: layers.Bidirectional(layers.LSTM(4, return_sequences=True), "sum"), shape=(3, 3)),
        ),
    ),
    Rule(
        layers=(layers.RNN,),
        when=has_kernel,
        expand=_from_cell,
        masks=True,
        examples=(example(lambda: layers.RNN(layers.LSTMCell(4)), shape=(3, 3)),),
    ),
)


def _lower_reverse(program: Program, call: Call) -> None:
    """STRIDED_SLICE with stride -1 from the last step to the first."""
    rank, steps = len(call.output.shape), call.output.shape[1]
    begin, stride = np.zeros(rank, np.int32), np.ones(rank, np.int32)
    begin[1], stride[1] = steps - 1, -1
    inputs = [program.constant("begin", begin), program.constant("end", np.array(call.output.shape, np.int32))]
    program.emit(
        "STRIDED_SLICE",
        [call.inputs[0], *inputs, program.constant("strides", stride)],
        call.output,
        beginMask=0,
        # Bit 1: axis 1 ends where it ends by itself. An end of -1 would be the last step, not the place before the
        # first.
        endMask=2,
        ellipsisMask=0,
        newAxisMask=0,
        shrinkAxisMask=0,
        offset=False,
    )
