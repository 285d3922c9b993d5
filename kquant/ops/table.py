"""Functions of one value: GELU where the target has it, and 256 precomputed codes for everything else."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.core.program import Program
from kquant.core.spec import FLOAT
from kquant.ops.activation import name_of, named
from kquant.ops.rule import Call, Rule, computed, example

layers = keras.layers

# Names of keras.activations without a kernel everywhere. (LiteRT has ELU, but not in its reference resolver.)
NAMES = (
    "elu selu softplus softsign gelu exponential celu mish hard_tanh log_sigmoid soft_shrink hard_shrink tanh_shrink "
    "squareplus sparse_plus sparse_sigmoid"
).split()
# Classes of keras.ops that are finite for every number and keep their settings as attributes.
OPERATIONS = (
    "Elu Selu Softplus Softsign Celu HardTanh LogSigmoid SoftShrink HardShrink TanhShrink Squareplus SparsePlus "
    "SparseSigmoid Threshold Exp Exp2 Expm1 Erf Erfc Sin Cos Tan Arctan Sinh Cosh Arcsinh Sinc Cbrt "
    "I0 Sign Floor Ceil Trunc Round Deg2rad Rad2deg"
).split()


@keras.saving.register_keras_serializable(package="kquant")
class TanhGelu(keras.layers.Layer):
    """`keras.ops.gelu(x)` as it is by default, with tanh for Phi; `Activation("gelu")` is the exact one."""

    def call(self, x: Any) -> Any:
        """Apply the function."""
        return keras.ops.gelu(x, approximate=True)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """As the input."""
        return input_shape


def _is_gelu(op: Any) -> bool:
    return isinstance(op, TanhGelu) or name_of(op.activation) == "gelu"


def _lower_gelu(program: Program, call: Call) -> None:
    program.emit("GELU", call.inputs, call.output, approximate=isinstance(call.op, TanhGelu))


def _expand_gelu(op: Any, make: Any, x: Any, *_: Any, **__: Any) -> Any:
    if op.approximate:
        return make("gelu", lambda: TanhGelu(name=op.name))(x)
    return make("gelu", lambda: layers.Activation("gelu", name=op.name))(x)


def lower_table(program: Program, call: Call) -> None:
    """Look the code up: CAST to int32, ADD 128, GATHER from 256 codes; infinite results take the last code."""
    x, y = call.inputs[0], call.output
    # The layer itself, on the real number of each code: whatever it computes is what the file looks up.
    results = np.asarray(call.op(keras.ops.convert_to_tensor(x.grid.dequantize(np.arange(-128, 128)))))
    # One step beyond either end is still clipped to it, and finite.
    results = np.clip(results, *y.grid.dequantize(np.array([-129, 128])))
    table = program.codes(f"{y.name}/table", y.grid.quantize(results), y.grid)
    index = program.value(f"{y.name}/index", x.shape, None, "int32")
    program.emit("CAST", [x], index, inDataType="INT8", outDataType="INT32")
    # Codes begin at -128, rows at 0.
    first = program.constant("first", np.array(128, np.int32))
    row = program.value(f"{y.name}/row", x.shape, None, "int32")
    program.emit("ADD", [index, first], row, fusedActivationFunction="NONE")
    program.emit("GATHER", [table, row], y, axis=0, batchDims=0)


# Operators of float files: class of keras.ops or name of keras.activations -> builtin operator.
FLOAT_OPERATORS = {"elu": "ELU", "exponential": "EXP", "Elu": "ELU", "Exp": "EXP"}
FLOAT_OPERATORS |= {"Sin": "SIN", "Cos": "COS", "Floor": "FLOOR", "Ceil": "CEIL", "Round": "ROUND", "ELU": "ELU"}


def _float_operator(op: Any) -> str | None:
    kind = type(op).__name__
    code = FLOAT_OPERATORS.get(name_of(op.activation) or "" if kind == "Activation" else kind)
    # The operator has no alpha.
    return None if code == "ELU" and getattr(op, "alpha", 1.0) != 1.0 else code


def _lower_float(program: Program, call: Call) -> None:
    """The builtin operator of the function, where there is one."""
    code = _float_operator(call.op)
    if code is None:
        raise ValueError(
            f"{call.op.name} ({type(call.op).__name__}): there is no float operator for it; leave it integer, or write "
            "it with functions that have one (exp, abs, elu with alpha 1, sin, cos, sigmoid, tanh, gelu)."
        )
    program.emit(code, call.inputs, call.output)


def _activation(name: str) -> Any:
    return example(lambda: layers.Activation(name), shape=(6, 5))


RULES = (
    Rule(
        layers=(layers.Activation, TanhGelu),
        when=_is_gelu,
        operators=("GELU",),
        arithmetic=lambda node: ("GELU", {"approximate": isinstance(node.op, TanhGelu)}),
        lower=_lower_gelu,
        examples=(_activation("gelu"), example(TanhGelu, shape=(20,))),
    ),
    Rule(
        operations=("Gelu",),
        expand=_expand_gelu,
        examples=(computed(keras.ops.gelu, (9,)), computed(lambda x: keras.ops.gelu(x, approximate=False), (9,))),
    ),
    Rule(
        layers=(layers.Activation,),
        when=named(*NAMES),
        operators=("CAST", "ADD", "GATHER"),
        widths=(8, FLOAT),
        lower=lower_table,
        lower_float=_lower_float,
        examples=tuple(_activation(name) for name in NAMES if name != "gelu"),
    ),
    Rule(
        layers=(layers.ReLU, layers.ELU, TanhGelu),
        operations=tuple(OPERATIONS),
        operators=("CAST", "ADD", "GATHER"),
        widths=(8, FLOAT),
        lower=lower_table,
        lower_float=_lower_float,
        examples=(
            example(lambda: layers.ReLU(negative_slope=0.1, threshold=0.5, max_value=2.0), shape=(20,)),
            example(lambda: layers.ReLU(2.0, negative_slope=0.1), shape=(20,)),
            example(lambda: layers.ELU(alpha=0.5), shape=(20,)),
            computed(lambda x: keras.ops.elu(x, alpha=0.5), (20,)),
            computed(lambda x: keras.ops.exp(keras.ops.selu(x)), (4, 5)),
        ),
    ),
)
