"""One random example per operator: the file, its inputs, and the call of the kernel that has to give the same codes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tensorflow as tf
from kernel_oracle import ACTIVATION_CODES, Operand, one_op_model

from kquant.arithmetic import KERNELS, Grid


def all_codes(dtype: str = "int8") -> np.ndarray:
    """Every code of a type, in a row."""
    return np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1).astype(dtype)[None]


@dataclass(frozen=True)
class Encoding:
    """Scale and zero point as plain numbers, for the file and for the kernel."""

    scale: float
    zero_point: int
    dtype: str = "int8"

    def grid(self) -> Grid:
        """The same for the kernels."""
        return self.grid_of(tf.constant(self.scale, tf.float32), tf.constant(float(self.zero_point), tf.float32))

    def grid_of(self, scale: tf.Tensor, zero_point: tf.Tensor) -> Grid:
        """A grid of the same codes."""
        return Grid(scale, zero_point, int(np.iinfo(self.dtype).min), int(np.iinfo(self.dtype).max))

    def operand(self, shape: Sequence[int], data: np.ndarray | None = None) -> Operand:
        """The same for the file."""
        return Operand(tuple(shape), np.dtype(self.dtype), self.scale, self.zero_point, data)


@dataclass(frozen=True)
class Case:
    """An example of one operator; `options` are named as in the schema, `attributes` as in the kernel."""

    op: str
    codes: list[np.ndarray]
    encodings: list[Encoding | None]
    out: Encoding
    options: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: list[Operand] = field(default_factory=list)
    constant_from: int = 9

    def expected(self, run: Callable[..., np.ndarray]) -> np.ndarray:
        """The interpreter's codes."""
        pairs = list(zip(self.codes, self.encodings, strict=True))
        operands = [
            Operand(codes.shape, np.float32) if encoding is None else encoding.operand(codes.shape)
            for codes, encoding in pairs[: self.constant_from]
        ]
        operands += [encoding.operand(codes.shape, codes) for codes, encoding in pairs[self.constant_from :]]
        shape = self.computed("litert").shape
        model = one_op_model(self.op, operands + self.constants, self.out.operand(shape), **self.options)
        return run(model, *self.codes[: self.constant_from])

    def computed(self, runtime: str, compiled: bool = False) -> np.ndarray:
        """The kernel's codes; compiled, everything but the attributes is a traced tensor."""
        sources = [tf.constant(codes, tf.float32 if codes.dtype == np.float32 else tf.int32) for codes in self.codes]
        grids = [None if encoding is None else encoding.grid() for encoding in self.encodings]
        kernel = KERNELS[self.op]
        if not compiled:
            return kernel(sources, grids, self.out.grid(), runtime=runtime, **self.attributes).numpy()

        @tf.function(jit_compile=True)
        def traced(sources: list, scales: list, zero_points: list) -> tf.Tensor:
            triples = zip([*self.encodings, self.out], scales, zero_points, strict=True)
            made = [None if encoding is None else encoding.grid_of(s, z) for encoding, s, z in triples]
            return kernel(sources, made[:-1], made[-1], runtime=runtime, **self.attributes)

        every = [*grids, self.out.grid()]
        return traced(sources, [g and g.scale for g in every], [g and g.zero_point for g in every]).numpy()


def random_encoding(rng: np.random.Generator, low: float = 2e-3, high: float = 0.5, dtype: str = "int8") -> Encoding:
    """Scales spread evenly over their logarithm, any zero point; int16 reaches as far with zero point 0."""
    scale = np.float32(np.exp(rng.uniform(np.log(low), np.log(high))))
    zero_point = int(rng.integers(-128, 128))
    if dtype == "int16":
        return Encoding(float(np.float32(scale / 256)), 0, dtype)
    return Encoding(float(scale), zero_point)


def random_codes(rng: np.random.Generator, *shape: int, dtype: str = "int8") -> np.ndarray:
    """Every code of a type equally likely."""
    return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, shape).astype(dtype)


Make = Callable[[np.random.Generator, str], Case]
PROBABILITIES = {"int8": Encoding(1 / 256, -128), "int16": Encoding(1 / 32768, 0, "int16")}
# Without it, LiteRT adds int16 codes whose scales are powers of two in another way.
GENERAL_SCALES = {("ADD", "int16"): {"potScaleInt16": False}, ("SUB", "int16"): {"potScaleInt16": False}}


def unary(op: str, **fixed: Encoding) -> Make:
    """All codes through an operator without attributes; `fixed` where the operator fixes its output's encoding."""

    def case(rng: np.random.Generator, dtype: str) -> Case:
        source = random_encoding(rng, dtype=dtype)
        return Case(op, [all_codes(dtype)], [source], fixed.get(dtype) or random_encoding(rng, dtype=dtype))

    return case


def relu6(rng: np.random.Generator, dtype: str) -> Case:
    """Input and output share the encoding, for TFLM's sake."""
    encoding = random_encoding(rng, dtype=dtype)
    return Case("RELU6", [all_codes(dtype)], [encoding], encoding)


def leaky_relu(rng: np.random.Generator, dtype: str) -> Case:
    """Slopes of both signs."""
    alpha = float(rng.uniform(-0.6, 0.9))
    source, out = random_encoding(rng, dtype=dtype), random_encoding(rng, dtype=dtype)
    return Case("LEAKY_RELU", [all_codes(dtype)], [source], out, {"alpha": alpha}, {"alpha": alpha})


def hard_swish(rng: np.random.Generator, dtype: str) -> Case:
    """The kernels refuse an input scale above 128 times the output's."""
    source, out = random_encoding(rng, dtype=dtype), random_encoding(rng, dtype=dtype)
    return Case("HARD_SWISH", [all_codes(dtype)], [source], replace(out, scale=max(out.scale, source.scale / 100)))


def gelu(rng: np.random.Generator, dtype: str) -> Case:
    """Both forms."""
    choice = {"approximate": bool(rng.integers(2))}
    source, out = random_encoding(rng, dtype=dtype), random_encoding(rng, dtype=dtype)
    return Case("GELU", [all_codes(dtype)], [source], out, choice, choice)


def quantize_real(rng: np.random.Generator, dtype: str) -> Case:
    """Real numbers around the range of the output, halves of a step among them."""
    out = random_encoding(rng, dtype=dtype)
    largest = int(np.iinfo(dtype).max)
    steps = np.concatenate([rng.normal(size=4000) * largest, rng.integers(-2 * largest, 2 * largest, 1000) + 0.5])
    return Case("QUANTIZE", [(steps * np.float32(out.scale)).astype(np.float32)[None]], [None], out)


def between(source: str, target: str) -> Make:
    """All codes of one type to another."""
    return lambda rng, _: Case(
        "QUANTIZE", [all_codes(source)], [random_encoding(rng, dtype=source)], random_encoding(rng, dtype=target)
    )


def softmax(rng: np.random.Generator, dtype: str) -> Case:
    """Rows of 2 to 300 logits."""
    beta = float(rng.choice([1.0, 0.7, 3.0]))
    codes = random_codes(rng, 40, int(rng.integers(2, 300)), dtype=dtype)
    out = PROBABILITIES[dtype]
    return Case("SOFTMAX", [codes], [random_encoding(rng, dtype=dtype)], out, {"beta": beta}, {"beta": beta})


def binary(op: str, fuses: bool = True) -> Make:
    """Two operands, of one shape or broadcast along channels, with or without a fused activation."""

    def case(rng: np.random.Generator, dtype: str) -> Case:
        shape = (1, 1, 1, 24) if rng.integers(2) else (2, 7, 5, 24)
        codes = [random_codes(rng, 2, 7, 5, 24, dtype=dtype), random_codes(rng, *shape, dtype=dtype)]
        if not fuses:
            encoding = random_encoding(rng, dtype=dtype)
            return Case(op, codes, [encoding, encoding], encoding)
        activation = (None, "RELU", "RELU6", "RELU_N1_TO_1")[rng.integers(4)]
        return Case(
            op,
            codes,
            [random_encoding(rng, dtype=dtype), random_encoding(rng, dtype=dtype)],
            random_encoding(rng, dtype=dtype),
            {"fusedActivationFunction": ACTIVATION_CODES[activation], **GENERAL_SCALES.get((op, dtype), {})},
            {"activation": activation},
        )

    return case


def prelu(rng: np.random.Generator, dtype: str) -> Case:
    """One alpha per channel, a constant of the file."""
    codes = [random_codes(rng, 2, 7, 5, 24, dtype=dtype), random_codes(rng, 1, 1, 24, dtype=dtype)]
    encodings = [random_encoding(rng, dtype=dtype), random_encoding(rng, dtype=dtype)]
    return Case("PRELU", codes, encodings, random_encoding(rng, dtype=dtype), constant_from=1)


def average_pool(rng: np.random.Generator, dtype: str) -> Case:
    """Windows up to the whole image."""
    encoding, codes = random_encoding(rng, dtype=dtype), random_codes(rng, 2, 11, 9, 16, dtype=dtype)
    window = [int(rng.integers(1, 12)), int(rng.integers(1, 10))]
    strides = [int(stride) for stride in rng.integers(1, 4, 2)]
    padding = ("same", "valid")[rng.integers(2)]
    activation = (None, "RELU", "RELU6")[rng.integers(3)]
    options = {
        "padding": ("same", "valid").index(padding),
        "strideH": strides[0],
        "strideW": strides[1],
        "filterHeight": window[0],
        "filterWidth": window[1],
        "fusedActivationFunction": ACTIVATION_CODES[activation],
    }
    attributes = {"pool_size": window, "strides": strides, "padding": padding, "activation": activation}
    return Case("AVERAGE_POOL_2D", [codes], [encoding], encoding, options, attributes)


def mean(rng: np.random.Generator, dtype: str) -> Case:
    """Global average pooling, and means along other axes."""
    source, codes = random_encoding(rng, dtype=dtype), random_codes(rng, 1, *rng.integers(1, 20, 2), 48, dtype=dtype)
    axes = [[1, 2], [2], [-1], [1], [1, 2, 3]][rng.integers(5)]
    keepdims = bool(rng.integers(2))
    out = replace(random_encoding(rng, dtype=dtype), scale=float(np.float32(source.scale * rng.uniform(0.05, 1.5))))
    constant = Operand((len(axes),), np.int32, data=np.array(axes))
    attributes = {"axes": axes, "keepdims": keepdims}
    return Case("MEAN", [codes], [source], out, {"keepDims": keepdims}, attributes, [constant])


def batch_matmul(rng: np.random.Generator, dtype: str) -> Case:
    """Ranks 2 to 5, either operand transposed, batches broadcast, depths up to 700."""
    rows, depth, columns = (int(n) for n in (rng.integers(1, 9), rng.integers(1, 700), rng.integers(1, 9)))
    batch = tuple(int(n) for n in rng.integers(1, 4, rng.integers(0, 4)))
    other = tuple(1 if rng.integers(2) else n for n in batch)
    adj_x, adj_y = bool(rng.integers(2)), bool(rng.integers(2))
    left = (depth, rows) if adj_x else (rows, depth)
    right = (columns, depth) if adj_y else (depth, columns)
    codes = [random_codes(rng, *batch, *left), random_codes(rng, *other, *right)]
    encodings = [random_encoding(rng), random_encoding(rng)]
    scale = np.float32(encodings[0].scale * encodings[1].scale * np.sqrt(depth) * rng.uniform(20, 300))
    return Case(
        "BATCH_MATMUL",
        codes,
        encodings,
        Encoding(float(scale), int(rng.integers(-128, 128))),
        {"adjX": adj_x, "adjY": adj_y},
        {"adj_x": adj_x, "adj_y": adj_y},
        constant_from=1 if rng.integers(2) else 9,
    )


def resize(op: str) -> Make:
    """Up and down, in the three conventions for positions."""

    def case(rng: np.random.Generator, dtype: str) -> Case:
        encoding, codes = random_encoding(rng, dtype=dtype), random_codes(rng, 2, 11, 9, 8, dtype=dtype)
        size = [int(length) for length in rng.integers(3, 40, 2)]
        centers, corners = ((True, False), (False, True), (False, False))[rng.integers(3)]
        options = {"halfPixelCenters": centers, "alignCorners": corners}
        attributes = {"size": size, "half_pixel_centers": centers, "align_corners": corners}
        constant = Operand((2,), np.int32, data=np.array(size))
        return Case(op, [codes], [encoding], encoding, options, attributes, [constant])

    return case


CASES: dict[str, Make] = {
    "ABS": unary("ABS"),
    "ADD": binary("ADD"),
    "AVERAGE_POOL_2D": average_pool,
    "BATCH_MATMUL": batch_matmul,
    "ELU": unary("ELU"),
    "GELU": gelu,
    "HARD_SWISH": hard_swish,
    "LEAKY_RELU": leaky_relu,
    "LOGISTIC": unary("LOGISTIC", **PROBABILITIES),
    "MAXIMUM": binary("MAXIMUM", fuses=False),
    "MEAN": mean,
    "MINIMUM": binary("MINIMUM", fuses=False),
    "MUL": binary("MUL"),
    "PRELU": prelu,
    "QUANTIZE": unary("QUANTIZE"),
    "QUANTIZE of int8": between("int8", "int16"),
    "QUANTIZE of reals": quantize_real,
    "QUANTIZE to int8": between("int16", "int8"),
    "RELU": unary("RELU"),
    "RELU6": relu6,
    "RELU_N1_TO_1": unary("RELU_N1_TO_1"),
    "RESIZE_BILINEAR": resize("RESIZE_BILINEAR"),
    "RESIZE_NEAREST_NEIGHBOR": resize("RESIZE_NEAREST_NEIGHBOR"),
    "SOFTMAX": softmax,
    "SUB": binary("SUB"),
    "TANH": unary("TANH", int8=Encoding(1 / 128, 0), int16=PROBABILITIES["int16"]),
}

# What runs with int16 activations and is met exactly, by runtime.
INT16_ANYWHERE = (
    "ABS",
    "ADD",
    "AVERAGE_POOL_2D",
    "LEAKY_RELU",
    "LOGISTIC",
    "MAXIMUM",
    "MEAN",
    "MINIMUM",
    "MUL",
    "QUANTIZE",
    "QUANTIZE of int8",
    "QUANTIZE of reals",
    "QUANTIZE to int8",
    "RELU",
    "RELU6",
    "RESIZE_NEAREST_NEIGHBOR",
    "SOFTMAX",
    "SUB",
    "TANH",
)
INT16 = {"litert": (*INT16_ANYWHERE, "RESIZE_BILINEAR"), "tflm": INT16_ANYWHERE}
