"""Files of one contraction, a 1x1 convolution or a matrix product, beside the accumulator that they have to find."""

from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf
from arithmetic_cases import Encoding, random_codes, random_encoding
from kernel_oracle import ACTIVATION_CODES, Operand, one_op_model
from one_op_types import bits_of

from kquant.arithmetic import Grid
from kquant.core.packed import PACKED

CONTRACTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
# The types of a contraction's activations, of its weights and of its bias.
TYPES = {
    "int8": ("int8", "int8", "int32"),
    "int16x8": ("int16", "int8", "int64"),
    **{name: ("int8", name, "int32") for name in PACKED},
}
# An odd number, so that with packed weights a row ends inside a byte.
CHANNELS_IN, CHANNELS = 15, 24


@dataclass(frozen=True)
class Contraction:
    """A file of one contraction with a bias, its input, and the accumulator it has to find."""

    model: bytes
    codes: np.ndarray
    accumulator: np.ndarray
    source: Grid
    weights: Grid
    out: Grid
    activation: str | None = None


def contraction(
    op: str,
    per_axis: bool,
    halves: bool,
    seed: int,
    types: str = "int8",
    activation: str | None = None,
    reach: float = 0.5,
) -> Contraction:
    """Random weights.

    Args:
        op: one of `CONTRACTIONS`.
        per_axis: one scale for each channel.
        halves: scales that put many accumulators exactly half way between two codes.
        seed: of the random numbers.
        types: one of `TYPES`.
        activation: the fused one.
        reach: the output's standard deviation in parts of its largest code; above 1 most codes saturate.
    """
    rng = np.random.default_rng(seed)
    dtype, weight_type, bias_type = TYPES[types]
    depthwise, wide = op == "DEPTHWISE_CONV_2D", dtype == "int16"
    source = random_encoding(rng, 0.01, 0.1, dtype)
    if halves:
        source = Encoding(2.0**-12, 0, dtype) if wide else Encoding(2.0**-4, 17)
    count = CHANNELS if per_axis else 1
    scales = 2.0 ** -rng.integers(5, 8, count) if halves else rng.uniform(0.002, 0.02, count)
    codes = random_codes(rng, 1, 40, 40, CHANNELS if depthwise else CHANNELS_IN, dtype=dtype)
    largest = 2 ** (bits_of(weight_type) - 1) - 1
    weights = rng.integers(-largest, largest + 1, (1, CHANNELS) if depthwise else (CHANNELS, CHANNELS_IN))
    bias = rng.integers(-(2**34), 2**34, CHANNELS) // (1 if wide else 2**22)
    centred = codes.astype(np.int64) - source.zero_point
    accumulator = (centred * weights[0] if depthwise else centred @ weights.T) + bias
    steps = reach * np.iinfo(dtype).max
    spread = accumulator.std() * source.scale * scales.mean() / steps
    out_scale = 2.0 ** np.round(np.log2(spread)) if halves else np.float32(spread)
    if op == "FULLY_CONNECTED":
        codes, accumulator = codes.reshape(-1, CHANNELS_IN), accumulator.reshape(-1, CHANNELS)
    out = Encoding(float(out_scale), 0 if wide else int(rng.integers(-20, 20)), dtype)
    scales = np.float32(scales if per_axis else scales[0])
    kernel = Operand(_weights_shape(op), weight_type, scales, 0, weights, _weights_axis(op) if per_axis else 0)
    biases = Operand(bias.shape, np.dtype(bias_type), np.float32(source.scale) * scales, 0, bias)
    model = _model(op, source.operand(codes.shape), kernel, biases, out.operand(accumulator.shape), activation)
    weight_grid = Grid(tf.constant(scales), tf.constant(0.0), -largest, largest)
    return Contraction(model, codes, accumulator, source.grid(), weight_grid, out.grid(), activation)


def matmul(halves: bool, seed: int, dtype: str) -> tuple[Contraction, np.ndarray]:
    """A BATCH_MATMUL of two inputs, and the codes of the second."""
    rng = np.random.default_rng(seed)
    encodings = [random_encoding(rng, 0.01, 0.1, dtype) for _ in range(2)]
    if halves:
        encodings = [replace(encoding, scale=2.0**-12 if dtype == "int16" else 2.0**-4) for encoding in encodings]
    codes = [random_codes(rng, 1, *shape, dtype=dtype) for shape in ((40, CHANNELS_IN), (CHANNELS_IN, CHANNELS))]
    centred = [code.astype(np.int64) - encoding.zero_point for code, encoding in zip(codes, encodings, strict=True)]
    accumulator = centred[0] @ centred[1]
    spread = accumulator.std() * encodings[0].scale * encodings[1].scale / (np.iinfo(dtype).max / 2)
    out_scale = 2.0 ** np.round(np.log2(spread)) if halves else np.float32(spread)
    out = replace(random_encoding(rng, dtype=dtype), scale=float(out_scale))
    operands = [encoding.operand(code.shape) for code, encoding in zip(codes, encodings, strict=True)]
    model = one_op_model("BATCH_MATMUL", operands, out.operand(accumulator.shape))
    made = Contraction(model, codes[0], accumulator, encodings[0].grid(), encodings[1].grid(), out.grid())
    return made, codes[1]


def _weights_shape(op: str) -> tuple[int, ...]:
    shapes = {"FULLY_CONNECTED": (CHANNELS, CHANNELS_IN), "DEPTHWISE_CONV_2D": (1, 1, 1, CHANNELS)}
    return shapes.get(op, (CHANNELS, 1, 1, CHANNELS_IN))


def _weights_axis(op: str) -> int:
    return 3 if op == "DEPTHWISE_CONV_2D" else 0


def _model(op: str, source: Operand, weights: Operand, bias: Operand, out: Operand, activation: str | None) -> bytes:
    options = {} if op == "FULLY_CONNECTED" else {"strideW": 1, "strideH": 1, "padding": 1}
    if op == "DEPTHWISE_CONV_2D":
        # LiteRT derives it from the shapes; TFLM reads it, and computes nonsense from the default of 0.
        options["depthMultiplier"] = 1
    operands = [source, weights, bias]
    if op == "TRANSPOSE_CONV":
        operands = [Operand((4,), np.int32, data=np.array(out.shape)), weights, source, bias]
    return one_op_model(op, operands, out, fusedActivationFunction=ACTIVATION_CODES[activation], **options)
