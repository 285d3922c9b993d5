"""The integer arithmetic of the TFLite kernels on TensorFlow tensors, code for code.

    codes  ->  KERNELS["LEAKY_RELU"](sources, grids, out, alpha=0.1)  ->  codes
    accumulator  ->  requantize(accumulator, s_in * s_w, out, ROUNDING["litert"]["CONV_2D"])  ->  codes

Codes and accumulators come in with their grids, codes go out. A new kernel is a function in the file of its family, and
its entry in `KERNELS`; what a runtime rounds in another way is an entry in `ROUNDING`.

Every kernel takes int32 codes with their grids and returns codes clipped to the output's range, as int32 or as float32
that hold integers, whichever it computed in. Attributes are
plain Python values. `runtime="litert"`, the default, is what LiteRT's reference kernels compute; `runtime="tflm"` is
TensorFlow Lite Micro: RELU6 keeps its input's encoding, LOGISTIC, TANH, MUL, PRELU, RELU and LEAKY_RELU differ in a few
codes in a million, the rest is the same. Grids of -32768 .. 32767 with zero point 0 choose the kernels of int16
tensors; inputs and output are of one type, except in QUANTIZE. All are pure, run inside `tf.function` and under XLA,
where they cost little more than reading their operands, and take scales as tensors. They are not differentiable. Where
a kernel's own 32-bit integers would overflow, the codes are not defined.
"""

from __future__ import annotations

from collections.abc import Callable

import keras  # noqa: F401  first: `kquant.registration` runs then
import tensorflow as tf

from kquant.arithmetic.activation import absolute, hard_swish, leaky_relu, relu, relu6, relu_n1_to_1
from kquant.arithmetic.bands import bands
from kquant.arithmetic.elementwise import add, add_steps, maximum, minimum, mul, mul_steps, prelu, sub, sub_steps
from kquant.arithmetic.grid import Grid, activation_range, starts_at_zero
from kquant.arithmetic.matmul import batch_matmul
from kquant.arithmetic.pooling import average_pool_2d, mean
from kquant.arithmetic.requantize import accumulator_scale, product_scale, quantize, requantize, requantized_steps
from kquant.arithmetic.resize import resize_bilinear, resize_nearest_neighbor
from kquant.arithmetic.signal_steps import micro_frontend
from kquant.arithmetic.softmax import softmax, wide_below
from kquant.arithmetic.table import elu, gelu, logistic, lookup, table, tanh

KERNELS: dict[str, Callable[..., tf.Tensor]] = {
    "ABS": absolute,
    "ADD": add,
    "AVERAGE_POOL_2D": average_pool_2d,
    "BATCH_MATMUL": batch_matmul,
    "ELU": elu,
    "GELU": gelu,
    "HARD_SWISH": hard_swish,
    "LEAKY_RELU": leaky_relu,
    "LOGISTIC": logistic,
    "MAXIMUM": maximum,
    "MEAN": mean,
    "MINIMUM": minimum,
    "MUL": mul,
    "PRELU": prelu,
    "QUANTIZE": quantize,
    "RELU": relu,
    "RELU6": relu6,
    "RELU_N1_TO_1": relu_n1_to_1,
    "RESIZE_BILINEAR": resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": resize_nearest_neighbor,
    "SOFTMAX": softmax,
    "SUB": sub,
    "TANH": tanh,
}

# Those that compute on steps, codes without their zero point in floats, which is how codes travel between layers: they
# take and give steps, and the entries above are these between two shifts.
OF_STEPS: dict[str, Callable[..., tf.Tensor]] = {"ADD": add_steps, "MUL": mul_steps, "SUB": sub_steps}

# Those of one operand, element by element: of 8-bit codes a table of 256 says all.
OF_ONE = frozenset(
    ("ABS", "ELU", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "QUANTIZE", "RELU", "RELU6", "RELU_N1_TO_1", "TANH")
)

# Of several operators, which one layer writes.
CHAINS: dict[str, Callable[..., tf.Tensor]] = {"BANDS": bands, "MICRO_FRONTEND": micro_frontend}

# How each runtime rounds the accumulator of an int8 kernel, its weights int8 or int4; test_arithmetic.py pins it.
ROUNDING: dict[str, dict[str, str]] = {
    "litert": {
        "BATCH_MATMUL": "double",
        "CONV_2D": "double",
        "DEPTHWISE_CONV_2D": "double",
        "FULLY_CONNECTED": "real",
        "TRANSPOSE_CONV": "double",
    },
    "tflm": {
        "BATCH_MATMUL": "double",
        "CONV_2D": "double",
        "DEPTHWISE_CONV_2D": "double",
        "FULLY_CONNECTED": "double",
        "TRANSPOSE_CONV": "double",
    },
    "xnnpack": {
        "BATCH_MATMUL": "double",
        "CONV_2D": "float",
        "DEPTHWISE_CONV_2D": "float",
        "FULLY_CONNECTED": "float",
        "TRANSPOSE_CONV": "float",
    },
}

# The same for int16 activations with int8 weights and an int64 bias.
ROUNDING_INT16: dict[str, dict[str, str]] = {
    "litert": {
        "BATCH_MATMUL": "reduced",
        "CONV_2D": "reduced",
        "DEPTHWISE_CONV_2D": "reduced",
        "FULLY_CONNECTED": "real",
        "TRANSPOSE_CONV": "reduced",
    },
    "tflm": {
        "BATCH_MATMUL": "reduced",
        "CONV_2D": "reduced",
        "DEPTHWISE_CONV_2D": "reduced",
        "FULLY_CONNECTED": "reduced",
        "TRANSPOSE_CONV": "reduced",
    },
    "xnnpack": {
        "BATCH_MATMUL": "reduced",
        "CONV_2D": "reduced",
        "DEPTHWISE_CONV_2D": "reduced",
        "FULLY_CONNECTED": "real",
        "TRANSPOSE_CONV": "reduced",
    },
}

__all__ = [
    "CHAINS",
    "KERNELS",
    "OF_ONE",
    "OF_STEPS",
    "ROUNDING",
    "ROUNDING_INT16",
    "Grid",
    "accumulator_scale",
    "activation_range",
    "lookup",
    "product_scale",
    "requantize",
    "requantized_steps",
    "starts_at_zero",
    "table",
    "wide_below",
]
