"""Sequences with padding: the real steps, moved to the front for a recurrent kernel, and its outputs moved back.

No kernel skips a step, but a recurrent one is causal: what it computes at the first n steps knows nothing of those
behind. So the real steps k .. n - 1 of x, as the mask says, are moved to the front, the layer runs over all T steps,
and what it makes of the padding behind them is never read. With h' = [0, h[0], .., h[T - 1]] and L = n - k:

    begin      x[min(k + j, T - 1)]           last       h'[L]
    reversed   x[max(n - 1 - j, 0)]           spread     h'[clip(t + 1 - k, 0, L)]
    kept       [0, x][(t + 1) real[t]]        backward   h'[clip(n - (T - 1 - s), 0, L)]

That is what Keras computes: a masked step leaves the states as they are and repeats the output before it, which is 0
before the first real step; with zero_output_for_mask it gives 0. Rows are picked, so codes stay what they are. k is the
first real step and n - 1 the last one: padding may be at the end, in front, or both, not between. What Masking gives to
layers that read no mask is "kept": 0 at masked steps.

A masked step is told by the code that its value gets, which is that of the grid's end where the value lies beyond: a
tensor whose padding nobody else reads (`unread_padding`) has a grid for the real steps only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.core.checks import static_length
from kquant.core.messages import warn
from kquant.core.program import Program, Ref
from kquant.core.spec import FLOAT, Encoding, QuantSpec
from kquant.graph.graph import Graph
from kquant.graph.keras_private import made_of
from kquant.graph.step_mask import StepMask, is_other
from kquant.layers.modes import is_observing
from kquant.ops.rule import Call, Make, Rule, computed, looked_up

layers = keras.layers
K = keras.ops
BEFORE, AFTER, KEPT = ("begin", "reversed"), ("last", "spread", "backward"), "kept"
FLAG = Encoding(np.array([1.0], np.float32), np.array([0], np.int64), QuantSpec())


@keras.saving.register_keras_serializable(package="kquant")
class RealSteps(keras.layers.Layer):
    """The rows of a sequence that the head of this file says, of the steps that `source` tells.

    Args:
        rows: "begin" or "reversed" before a recurrent layer, "last", "spread" or "backward" behind it; "kept" anywhere.
        zeros: "spread" and "backward" are 0 at masked steps, instead of the output before.
        value: what every feature of a masked step of `source` holds.

    Example:
        >>> x = np.float32([[[0.0], [5.0], [6.0], [0.0]]])
        >>> RealSteps("reversed")([x, x]).numpy()[0, :2, 0].tolist()
        [6.0, 5.0]
        >>> RealSteps("spread")([np.float32([[[1.0], [2.0], [9.0], [9.0]]]), x]).numpy().ravel().tolist()
        [0.0, 1.0, 2.0, 2.0]
    """

    def __init__(self, rows: str, zeros: bool = False, value: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rows, self.zeros, self.value = rows, bool(zeros), float(value)

    def call(self, xs: Any, encoding: Any = None, codes: Sequence[int] = ()) -> Any:
        """Pick the rows; `encoding` and the lowest and highest of its `codes` are those of the source."""
        x, source = xs
        real = is_other(source, self.value, encoding, codes)
        # A step counts as masked where all of its features hold the value.
        real = tf.reduce_any(real, axis=-1) if len(source.shape) > 2 else real
        if self.rows == KEPT:
            return tf.where(real[..., None], x, tf.zeros_like(x))
        if self.rows in BEFORE and self.value != 0.0:  # what recurrent layers make of -999 would tell in their ranges
            on_grid = encoding is not None and encoding[0] > 0.0
            # With an encoding they stay as they are, as in the file; what is made of their codes is never read.
            x = tf.where(tf.expand_dims(tf.logical_or(real, on_grid), -1), x, tf.zeros_like(x))
        first, end = _block(real)
        if is_observing() and self.rows in BEFORE:
            inside = tf.logical_and(_steps(real) >= first, _steps(real) < end)
            # What the mask holds is known only while the model runs, in a graph as well.
            tf.py_function(self._warn_between, [tf.reduce_any(tf.logical_and(inside, tf.logical_not(real)))], [])
        rows = _positions(self, static_length(x, 1), first, end)
        if self.rows in AFTER:
            # h' of the docstring: row 0 is the state before the first step, and later rows are one further on.
            x = tf.pad(x, [[0, 0], [1, 0], [0, 0]])
        return tf.gather(x, rows, axis=1, batch_dims=1)

    def _warn_between(self, between: tf.Tensor) -> None:
        if between:
            warn(
                f"calibrate: {self.name}: in some samples the mask leaves out steps between real ones, and the file "
                "computes those as real: padding may stand in front and behind only. Move the real steps of each "
                "sample together (x[i, : real.sum()] = x[i, real], zeros behind), which is the same to a mask."
            )

    def compute_output_spec(self, xs: Any, **_: Any) -> keras.KerasTensor:
        """As the sequence, or one step of it."""
        x = xs[0]
        return keras.KerasTensor((x.shape[0], 1 if self.rows == "last" else x.shape[1], *x.shape[2:]), x.dtype)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "rows": self.rows, "zeros": self.zeros, "value": self.value}


def _steps(real: tf.Tensor) -> tf.Tensor:
    return tf.range(static_length(real, 1), dtype=tf.int32)[None]


def _block(real: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The first real step and the one behind the last; 0 and 0 where there is none. int32[samples, 1] each."""
    flags, steps = tf.cast(real, tf.int32), static_length(real, 1)
    # `argmax` gives the first of equals. The 1 at the end stops it where no step is real: then end is 0.
    behind = tf.concat([tf.reverse(flags, [1]), tf.ones_like(flags[:, :1])], axis=1)
    first, rest = (tf.argmax(f, axis=1, output_type=tf.int32)[:, None] for f in (flags, behind))
    return first, steps - rest


def _positions(op: RealSteps, steps: int, first: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """Rows of x, or of h', int32[samples, steps]."""
    at = tf.range(steps, dtype=tf.int32)[None]
    if op.rows == "begin":
        return tf.minimum(first + at, steps - 1)
    if op.rows == "reversed":
        return tf.maximum(end - 1 - at, 0)
    length = end - first
    if op.rows == "last":
        return length
    forward = op.rows == "spread"
    rows = at + 1 - first if forward else at + end - (steps - 1)
    rows = tf.clip_by_value(rows, 0, length)
    if op.zeros:  # what lies behind the real steps in the order in which they are read
        ahead = end - at if forward else steps - first - at
        rows *= tf.clip_by_value(ahead, 0, 1)
    return rows


@dataclass(frozen=True, eq=False)
class Padded:
    """What a recurrent layer, or a mean, that is given a mask needs around it.

    Attributes:
        op: the layer.
        make: of its rule.
        source: the tensor whose values tell which steps are real: [samples, steps], or with features.
        value: what a masked step holds there.
    """

    op: Any
    make: Make
    source: Any
    value: float = 0.0

    def pick(self, x: Any, rows: str, name: str = "", zeros: bool = False) -> Any:
        """Rows of `x`."""
        name = name or rows
        build = lambda: RealSteps(rows, zeros, self.value, name=f"{self.op.name}_{name}")  # noqa: E731
        return self.make(f"pick_{name}", build)([x, self.source])

    def enter(self, x: Any) -> Any:
        """The real steps first, in the order in which the layer reads them."""
        before, read = made_of(x)
        if (
            isinstance(before, RealSteps)
            and before.rows == KEPT
            and (read[1], before.value) == (self.source, self.value)
        ):
            x = read[0]  # which of the masked steps is 0 makes no difference here
        if self.op.go_backwards:
            # The GATHER that moves the real steps to the front turns them round as well.
            return self.pick(x, "reversed")
        if isinstance(before, RealSteps) and before.rows == "spread" and read[1] is self.source:
            return read[0]  # of a recurrent layer with the same mask: they stand there already
        return self.pick(x, "begin")

    def last(self, y: Any, name: str = "last") -> Any:
        """[samples, units]: what the layer makes of `enter`, at the last real step."""
        row = self.pick(y, "last", name)
        return self.make(f"{name}_row", lambda: layers.Reshape(y.shape[2:], name=f"{self.op.name}_{name}_row"))(row)

    def sequence(self, y: Any) -> Any:
        """The outputs at every step, as Keras gives them."""
        rows = "backward" if self.op.go_backwards else "spread"
        return self.pick(y, rows, zeros=self.op.zero_output_for_mask)


def padded(op: Any, make: Make, mask: Any) -> Padded | None:
    """What goes around a layer that reads a mask, or None without a mask.

    Raises:
        ValueError: the mask is no tensor of steps.
    """
    mask = keras.tree.flatten(mask)[0] if mask is not None else None
    if mask is None:
        return None
    if not isinstance(mask, keras.KerasTensor) or len(mask.shape) != 2:
        raise ValueError(
            f"{op.name} ({type(op).__name__}): expected a mask of shape [samples, steps] that depends on an input. "
            f"Received: {mask}. Leave out a constant mask and cut the steps off, as x[:, :n]."
        )
    if getattr(op, "stateful", False):
        raise ValueError(
            f"{op.name} ({type(op).__name__}): stateful=True with a mask: the kernel's state would go on through the "
            "padding. Set stateful=False, or run a stream without padding."
        )
    made, read = made_of(mask)
    if isinstance(made, StepMask):
        return Padded(op, make, read[0], made.value)
    return Padded(op, make, mask)


def unread_padding(graph: Graph) -> dict[int, float]:
    """Tensors whose masked steps are told by their value, where nothing else reads those: id(tensor) -> that value.

    A value of 0, which every grid holds, may be read.

    Args:
        graph: of an expanded model.
    """
    values: dict[int, float] = {}
    consumers, outputs = graph.consumers, {id(t) for t in graph.output_tensors}
    for node in graph.nodes:
        if marks_padding(node.op) and "int" not in node.inputs[-1].dtype:
            t, value = node.inputs[-1], node.op.value
            alone = id(t) not in outputs and all(_leaves_out(n, t, value) for n in consumers[id(t)])
            if alone or value == 0.0:
                values[id(t)] = value
    return values


def marks_padding(op: Any) -> bool:
    """True for what tells real steps by the values of its last input."""
    return isinstance(op, RealSteps) or (isinstance(op, StepMask) and op.features)


def _leaves_out(node: Any, t: Any, value: float) -> bool:
    """True for a call that reads of `t` only which steps are not `value`, or those steps."""
    if not marks_padding(node.op) or node.op.value != value or node.inputs[-1] is not t:
        return False
    return isinstance(node.op, StepMask) or node.inputs[0] is not t or node.op.rows in (*BEFORE, KEPT)


def _flags(program: Program, source: Ref, value: float, features: bool) -> Ref:
    """1 at real steps: int8[1, steps]."""
    # Every layer that is given this mask reads the same flags: they are computed once in the file.
    key = ("flags", id(source), value)
    if key in program.made:
        return program.made[key]
    name = f"{source.name}/real"
    padding: Any = value
    if source.encoding is not None:  # NOT_EQUAL of int8 scales first, which loses the small ones; int32 is exact
        padding = source.encoding.quantize(np.array([value], np.float32))
        whole = program.value(f"{name}_codes", source.shape, None, "int32")
        types = {"inDataType": source.dtype.upper(), "outDataType": "INT32"}
        source = program.emit("CAST", [source], whole, **types)
    constant = program.constant("padding", np.atleast_1d(np.asarray(padding, source.dtype)))
    other = program.value(f"{name}_other", source.shape, None, "bool")
    program.emit("NOT_EQUAL", [source, constant], other)
    flags = program.value(name if not features else f"{name}_each", source.shape, FLAG)
    program.emit("CAST", [other], flags, inDataType="BOOL", outDataType="INT8")
    if features:
        # The largest flag of a step is 1 where any feature is another value.
        axes = program.constant("axes", np.array([len(source.shape) - 1], np.int32))
        largest = program.value(name, source.shape[:-1], FLAG)
        flags = program.emit("REDUCE_MAX", [flags, axes], largest, keepDims=False)
    program.made[key] = flags
    return flags


def flags_of(program: Program, condition: Ref) -> Ref:
    """int8, 0 where a tensor of conditions is 0, else 1; those of a `StepMask` are what it made."""
    made = program.made.get(("flags in", id(condition)))
    return _flags(program, condition, 0.0, features=False) if made is None else made


class _Positions:
    """int32 vectors of the file: positions of steps."""

    def __init__(self, program: Program, name: str) -> None:
        self.program, self.name, self.count = program, name, 0

    def __call__(self, code: str, a: Any, b: Any) -> Ref:
        """`a code b`, of tensors or numbers."""
        refs = [v if isinstance(v, Ref) else self.constant(v) for v in (a, b)]
        # A vector of positions and a single one broadcast; there are no other shapes here.
        shape = max((ref.shape for ref in refs), key=lambda s: s[0])
        options = {} if code in ("MAXIMUM", "MINIMUM") else {"fusedActivationFunction": "NONE"}
        self.count += 1
        out = self.program.value(f"{self.name}/{self.count}", shape, None, "int32")
        return self.program.emit(code, refs, out, **options)

    def constant(self, values: Any) -> Ref:
        return self.program.constant("positions", np.atleast_1d(np.asarray(values, np.int32)))

    def flat(self, flags: Ref) -> Ref:
        """int8[1, steps] as int32[steps]."""
        whole = self.program.value(f"{self.name}/flags", flags.shape, None, "int32")
        self.program.emit("CAST", [flags], whole, inDataType="INT8", outDataType="INT32")
        return self.program.reshape(
            whole, flags.shape[1:], self.program.value(f"{self.name}/flat", flags.shape[1:], None, "int32")
        )

    def first(self, flags: Ref, name: str) -> Ref:
        """Where the first 1 stands."""
        axis = self.program.constant("axis", np.array(1, np.int32))
        out = self.program.value(name, (1,), None, "int32")
        return self.program.emit("ARG_MAX", [flags, axis], out, outputType="INT32")


def _ends(program: Program, flags: Ref) -> tuple[Ref, Ref, Ref]:
    """The first real step, the one behind the last, and how many lie between: int32[1] each."""
    keys = [(what, id(flags)) for what in ("first", "end", "length")]
    if keys[0] not in program.made:
        name, steps = flags.name, flags.shape[1]
        calculate = _Positions(program, f"{name}_end")
        back = program.value(f"{name}_back", flags.shape, FLAG)
        turned = (("begin", [0, steps - 1]), ("end", [1, steps]), ("strides", [1, -1]))
        bounds = [program.constant(n, np.array(v, np.int32)) for n, v in turned]
        masks = dict.fromkeys(("ellipsisMask", "newAxisMask", "shrinkAxisMask", "beginMask"), 0)
        program.emit("STRIDED_SLICE", [flags, *bounds], back, endMask=2, offset=False, **masks)
        one = program.codes("one", np.ones((1, 1)), FLAG)
        # As in `_block`: the flags turned round, and a 1 behind them that ARG_MAX finds where there is no other.
        ended = program.value(f"{name}_ended", (1, steps + 1), FLAG)
        program.emit("CONCATENATION", [back, one], ended, axis=1, fusedActivationFunction="NONE")
        first = calculate.first(flags, f"{name}_first")
        end = calculate("SUB", steps, calculate.first(ended, f"{name}_rest"))
        program.made.update(zip(keys, (first, end, calculate("SUB", end, first)), strict=True))
    first, end, length = (program.made[key] for key in keys)
    return first, end, length


def _lower(program: Program, call: Call) -> None:
    """GATHER with positions that the mask gives."""
    op, (x, source), y = call.op, call.inputs, call.output
    flags = _flags(program, source, op.value, features=len(source.shape) > 2)
    calculate, steps = _Positions(program, f"{y.name}/rows"), x.shape[1]
    at = np.arange(steps)
    if op.rows == KEPT:
        # Row t + 1 of the padded sequence is step t; masked steps read row 0, which is zeros.
        rows = calculate("MUL", calculate.flat(flags), at + 1)
    else:
        rows = _moved(op, calculate, steps, at, _ends(program, flags))
    if op.rows in (*AFTER, KEPT):
        pads = program.constant("pads", np.array([[0, 0], [1, 0], [0, 0]], np.int32))
        grown = program.value(f"{y.name}/from_zero", (1, steps + 1, *x.shape[2:]), x.encoding, x.dtype)
        x = program.emit("PAD", [x, pads], grown)
    program.emit("GATHER", [x, rows], y, axis=1, batchDims=0)


def _moved(op: RealSteps, calculate: _Positions, steps: int, at: np.ndarray, ends: tuple[Ref, Ref, Ref]) -> Ref:
    """Rows of x, or of h', for real steps that lie together."""
    first, end, length = ends
    if op.rows == "begin":
        rows = calculate("MINIMUM", calculate("ADD", first, at), steps - 1)
    elif op.rows == "reversed":
        rows = calculate("MAXIMUM", calculate("ADD", end, -1 - at), 0)
    elif op.rows == "last":
        rows = length
    else:
        forward = op.rows == "spread"
        rows = calculate("SUB", at + 1, first) if forward else calculate("ADD", end, at - (steps - 1))
        rows = calculate("MINIMUM", calculate("MAXIMUM", rows, 0), length)
        if op.zeros:
            ahead = calculate("SUB", end, at) if forward else calculate("SUB", steps - at, first)
            rows = calculate("MUL", rows, calculate("MINIMUM", calculate("MAXIMUM", ahead, 0), 1))
    return rows


def _lower_mask(program: Program, call: Call) -> None:
    flags = _flags(program, call.inputs[0], call.op.value, call.op.features)
    program.made["flags in", id(call.output)] = flags
    program.reshape(flags, call.output.shape, call.output)


def _lower_mask_float(program: Program, call: Call) -> None:
    flags = _flags(program, call.inputs[0], call.op.value, call.op.features)
    program.made["flags in", id(call.output)] = flags
    program.emit("CAST", [flags], call.output, inDataType="INT8", outDataType="FLOAT32")


RULES = (
    Rule(
        layers=(RealSteps,),
        operators=("PAD", "GATHER"),
        helpers=("NOT_EQUAL", "CAST", "REDUCE_MAX", "ARG_MAX", "STRIDED_SLICE", "CONCATENATION", "ADD", "SUB"),
        output="same",
        told=True,
        lower=_lower,
        examples=tuple(
            computed(lambda x, rows=rows: RealSteps(rows)([x, K.relu(x - 1.0)]), (6, 3))
            for rows in (*BEFORE, *AFTER, KEPT)
        ),
    ),
    Rule(
        layers=(StepMask,),
        when=lambda op: op.features,
        operators=("NOT_EQUAL",),
        helpers=("CAST", "REDUCE_MAX"),
        output="fixed",
        fixed=(1.0, 0),
        widths=(8, FLOAT),
        told=True,
        lower=_lower_mask,
        lower_float=_lower_mask_float,
        examples=(computed(lambda x: StepMask()(K.relu(x - 0.5)), (6, 2)),),
    ),
    Rule(
        layers=(StepMask,),
        operators=("NOT_EQUAL",),
        helpers=("CAST",),
        output="fixed",
        fixed=(1.0, 0),
        widths=(8, FLOAT),
        indices=True,
        lower=_lower_mask,
        lower_float=_lower_mask_float,
        examples=(looked_up(lambda x: layers.Embedding(10, 4)(x) * StepMask(features=False)(x)[..., None], 5),),
    ),
)
