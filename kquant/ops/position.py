"""Where the largest or smallest value stands: ARG_MAX, ARG_MIN; classes of a segmenter, the winner of a classifier.
They have no gradient: a model with no other output does not train (Keras: "No gradients provided for any variable").
Give the scores as a second output, or train them first and quantize with the argmax behind.

A position is a whole number, and int8 with scale 1 and zero point -128 holds those of 0 to 255 as they are. So it is
quantized like any other tensor, and whoever reads the file needs to know nothing of positions:

    int8 codes  ARG_MAX  int32  ADD -128  int32  CAST  int8
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from kquant import ops as rules
from kquant.core.program import Program, Ref
from kquant.core.spec import FLOAT
from kquant.graph.graph import Graph, Node
from kquant.graph.keras_private import made_of
from kquant.layers.nodes import FakeQuant
from kquant.ops.reduce import Mean, reduced_axes
from kquant.ops.rule import Call, Make, Rule, computed, example

K: Any = keras.ops
FIRST = -128  # the code of position 0
MOST = 256  # positions that codes tell apart


@keras.saving.register_keras_serializable(package="kquant")
class Position(Mean):
    """Where along an axis the largest (or smallest) value stands, the first of equal ones; as a real number.

    Example:
        >>> Position([1])(np.float32([[1.0, 3.0, 3.0]])).numpy().tolist()
        [1.0]
    """

    def __init__(self, axis: Any, keepdims: bool = False, largest: bool = True, **kwargs: Any) -> None:
        super().__init__(axis, keepdims, **kwargs)
        self.largest = bool(largest)

    def call(self, x: Any) -> Any:
        """Look for it."""
        # -0.0 and 0.0 are one code, and to TensorFlow the one is smaller; a sum with 0 would be optimized away
        x = K.where(x == 0, K.zeros_like(x), x)
        position = (K.argmax if self.largest else K.argmin)(x, axis=self.axis[0], keepdims=self.keepdims)
        return K.cast(position, x.dtype)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "largest": self.largest}


def _expand(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    axes, largest = reduced_axes(op, len(x.shape)), type(op).__name__ == "Argmax"
    return make("position", lambda: Position(axes, op.keepdims, largest, name=op.name))(x)


def _gives_positions(op: Any, inputs: Sequence[Any], holds: Callable[[Any], bool]) -> bool:
    """Whether a call makes positions, or moves or picks those that all of its inputs hold."""
    rule = None if op is None else rules.find(op)
    moves = isinstance(op, FakeQuant) or (rule is not None and rule.output == "same")
    return isinstance(op, Position) or (moves and bool(inputs) and all(map(holds, inputs)))


def holds_positions(x: Any) -> bool:
    """True for tensors of positions, moved or picked ones too: whole numbers, though no cast has made them so."""
    layer, inputs = made_of(x)
    return _gives_positions(layer, inputs, holds_positions)


def found_or_whole(model: keras.Model) -> tuple[bool, ...]:
    """For each output of a model, float or quantized, whether it is right or wrong and never nearly right.

    Example:
        >>> x = keras.Input((4,))
        >>> found_or_whole(keras.Model(x, [keras.layers.ReLU()(x), keras.ops.argmax(x, axis=-1)]))
        (False, True)
    """
    outputs = keras.tree.flatten(model.outputs)
    return tuple("int" in t.dtype or t.dtype == "bool" or holds_positions(t) for t in outputs)


def positions(graph: Graph) -> frozenset[int]:
    """id(tensor) of the tensors of positions in a graph, quantized or moved ones too.

    Args:
        graph: of a model that is expanded, or quantized.
    """
    told: set[int] = set()
    for node in graph.nodes:
        if _gives_positions(node.op, node.inputs, lambda t: id(t) in told):
            told.update(id(t) for t in node.outputs)
    return frozenset(told)


def _refuse(node: Node) -> str | None:
    length = node.inputs[0].shape[node.op.axis[0]]
    if length is not None and length > MOST:
        return f"8 bits tell {MOST} positions apart, and this axis has {length}; end the model before it"
    return None


def _positions(program: Program, call: Call) -> Ref:
    """int32, without the axis."""
    x, axis = call.inputs[0], call.op.axis[0]
    shape = tuple(n for a, n in enumerate(x.shape) if a != axis)
    place = program.constant("axis", np.array(axis, np.int32))
    out = program.value(f"{call.output.name}/position", shape, None, "int32")
    return program.emit("ARG_MAX" if call.op.largest else "ARG_MIN", [x, place], out, outputType="INT32")


def _lower(program: Program, call: Call) -> None:
    position = _positions(program, call)
    first = program.constant("position_zero", np.array(FIRST, np.int32))
    code = program.value(f"{call.output.name}/code", position.shape, None, "int32")
    program.emit("ADD", [position, first], code, fusedActivationFunction="NONE")
    _cast(program, call, code, "INT8")


def _lower_float(program: Program, call: Call) -> None:
    _cast(program, call, _positions(program, call), "FLOAT32")


def _cast(program: Program, call: Call, whole: Ref, to: str) -> None:
    y = call.output
    out = y if whole.shape == y.shape else program.value(f"{y.name}/flat", whole.shape, y.encoding)
    program.emit("CAST", [whole], out, inDataType="INT32", outDataType=to)
    if out is not y:
        program.reshape(out, y.shape, y)


def _rule(largest: bool) -> Rule:
    return Rule(
        layers=(Position,),
        when=lambda op: op.largest == largest,
        operators=("ARG_MAX" if largest else "ARG_MIN",),
        helpers=("ADD", "CAST"),
        output="fixed",
        fixed=(1.0, FIRST),
        widths=(8, FLOAT),
        refuse=_refuse,
        lower=_lower,
        lower_float=_lower_float,
        examples=(example(lambda: Position([2], largest=largest), shape=(9, 4)),),
    )


def _examples(find: Callable[..., Any]) -> tuple[Callable[[], keras.Model], ...]:
    return (
        computed(lambda x: find(x, axis=-1), (6, 5, 7)),
        computed(lambda x: find(x, axis=1, keepdims=True), (9, 4)),
        computed(lambda x: find(x, axis=-1), (12,)),
    )


RULES = (
    _rule(True),
    _rule(False),
    Rule(operations=("Argmax",), expand=_expand, examples=_examples(K.argmax)),
    Rule(operations=("Argmin",), expand=_expand, examples=_examples(K.argmin)),
)
