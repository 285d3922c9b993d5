"""Lengths that the application feeds: which steps of a sequence lie before its end.

    int32 n [1, 1]    LESS  [0, 1, .., steps - 1]    bool [1, steps]    CAST    int8

Whole numbers are compared as they are, so that the input stays int32, and no step is off by a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kquant.core.program import Program, Ref
from kquant.core.spec import FLOAT
from kquant.graph.keras_private import made_of
from kquant.ops.real_steps import FLAG
from kquant.ops.rule import Call, Rule, looked_up

layers = keras.layers
K: Any = keras.ops


@keras.saving.register_keras_serializable(package="kquant")
class Above(keras.layers.Layer):
    """1 where a whole number is above each of some others, else 0.

    Args:
        values: whole numbers.

    Example:
        >>> Above([0, 1, 2, 3])(np.array([[2], [4]])).numpy().tolist()
        [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(self, values: Sequence[int], **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.values = tuple(int(n) for n in values)
        self.trainable = False

    def call(self, x: Any) -> Any:
        """Compare."""
        values = K.cast(K.convert_to_tensor(np.array(self.values, np.int32)), x.dtype)
        return K.cast(K.greater(x, values), "float32")

    def compute_output_spec(self, x: Any) -> Any:
        """One for each of the values."""
        return keras.KerasTensor((*x.shape[:-1], len(self.values)), "float32")

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "values": list(self.values)}


def is_length(x: Any) -> bool:
    """True for one whole number of each sample that the model is given, perhaps behind a new shape."""
    layer, read = made_of(x)
    while isinstance(layer, layers.Reshape):
        layer, read = made_of(read[0])
    return isinstance(layer, layers.InputLayer) and "int" in str(x.dtype) and x.shape[-1] == 1


def _flags(program: Program, call: Call) -> Ref:
    """int8, 1 where the number is above."""
    y, key = call.output, ("above", id(call.inputs[0]), call.op.values)
    if key not in program.made:
        values = program.constant("lengths", np.array([call.op.values], np.int32))
        above = program.value(f"{y.name}/above", y.shape, None, "bool")
        program.emit("LESS", [values, call.inputs[0]], above)
        flags = program.value(f"{y.name}/flags", y.shape, FLAG)
        program.made[key] = program.emit("CAST", [above], flags, inDataType="BOOL", outDataType="INT8")
    program.made["flags in", id(y)] = program.made[key]
    return program.made[key]


def _lower(program: Program, call: Call) -> None:
    program.reshape(_flags(program, call), call.output.shape, call.output)


def _lower_float(program: Program, call: Call) -> None:
    program.emit("CAST", [_flags(program, call)], call.output, inDataType="INT8", outDataType="FLOAT32")


RULES = (
    Rule(
        layers=(Above,),
        operators=("LESS",),
        helpers=("CAST",),
        output="fixed",
        fixed=(1.0, 0),
        widths=(8, FLOAT),
        indices=True,
        lower=_lower,
        lower_float=_lower_float,
        examples=(looked_up(lambda x: layers.Embedding(10, 4)(x) * Above(range(5))(x[:, :1])[..., None], 5),),
    ),
)
