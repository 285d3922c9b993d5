"""One random example per operator: the file, its inputs, and the call of the kernel that has to give the same codes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
from kernel_oracle import ACTIVATION_CODES, Operand, one_op_model

from kquant.core.arithmetic import KERNELS, Grid

ALL_CODES = np.arange(-128, 128, dtype=np.int8).reshape(1, 256)


@dataclass(frozen=True)
class Encoding:
    """Scale and zero point as plain numbers, for the file and for the kernel."""

    scale: float
    zero_point: int

    def grid(self) -> Grid:
        """The same for the kernels."""
        return Grid(tf.constant(self.scale, tf.float32), tf.constant(float(self.zero_point), tf.float32))

    def operand(self, shape: Sequence[int], data: np.ndarray | None = None) -> Operand:
        """The same for the file."""
        return Operand(tuple(shape), np.int8, self.scale, self.zero_point, data)


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
        shape = self.computed("litert" if self.op == "RELU_N1_TO_1" else "tflm").shape
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
            made = [None if s is None else Grid(s, z) for s, z in zip(scales, zero_points, strict=True)]
            return kernel(sources, made[:-1], made[-1], runtime=runtime, **self.attributes)

        every = [*grids, self.out.grid()]
        return traced(sources, [g and g.scale for g in every], [g and g.zero_point for g in every]).numpy()


def random_encoding(rng: np.random.Generator, low: float = 2e-3, high: float = 0.5) -> Encoding:
    """Scales spread evenly over their logarithm, any zero point."""
    scale = np.float32(np.exp(rng.uniform(np.log(low), np.log(high))))
    return Encoding(float(scale), int(rng.integers(-128, 128)))


def random_codes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Every int8 code equally likely."""
    return rng.integers(-128, 128, shape).astype(np.int8)


def unary(op: str, out: Encoding | None = None) -> Callable[[np.random.Generator], Case]:
    """All 256 codes through an operator without attributes; `out` where the operator fixes its encoding."""
    return lambda rng: Case(op, [ALL_CODES], [random_encoding(rng)], out or random_encoding(rng))


def relu6(rng: np.random.Generator) -> Case:
    """Input and output share the encoding, for TFLM's sake."""
    encoding = random_encoding(rng)
    return Case("RELU6", [ALL_CODES], [encoding], encoding)


def leaky_relu(rng: np.random.Generator) -> Case:
    """Slopes of both signs."""
    alpha = float(rng.uniform(-0.6, 0.9))
    return Case(
        "LEAKY_RELU", [ALL_CODES], [random_encoding(rng)], random_encoding(rng), {"alpha": alpha}, {"alpha": alpha}
    )


def hard_swish(rng: np.random.Generator) -> Case:
    """The kernels refuse an input scale above 128 times the output's."""
    source, out = random_encoding(rng), random_encoding(rng)
    return Case("HARD_SWISH", [ALL_CODES], [source], Encoding(max(out.scale, source.scale / 100), out.zero_point))


def gelu(rng: np.random.Generator) -> Case:
    """Both forms."""
    choice = {"approximate": bool(rng.integers(2))}
    return Case("GELU", [ALL_CODES], [random_encoding(rng)], random_encoding(rng), choice, choice)


def quantize_real(rng: np.random.Generator) -> Case:
    """Real numbers around the range of the output, halves of a step among them."""
    out = random_encoding(rng)
    steps = np.concatenate([rng.normal(size=4000) * 120, rng.integers(-300, 300, 1000) + 0.5])
    return Case("QUANTIZE", [(steps * np.float32(out.scale)).astype(np.float32)[None]], [None], out)


def softmax(rng: np.random.Generator) -> Case:
    """Rows of 2 to 300 logits."""
    beta = float(rng.choice([1.0, 0.7, 3.0]))
    codes = random_codes(rng, 40, int(rng.integers(2, 300)))
    return Case("SOFTMAX", [codes], [random_encoding(rng)], Encoding(1 / 256, -128), {"beta": beta}, {"beta": beta})


def binary(op: str, fuses: bool = True) -> Callable[[np.random.Generator], Case]:
    """Two operands, of one shape or broadcast along channels, with or without a fused activation."""

    def case(rng: np.random.Generator) -> Case:
        shape = (1, 1, 1, 24) if rng.integers(2) else (2, 7, 5, 24)
        codes = [random_codes(rng, 2, 7, 5, 24), random_codes(rng, *shape)]
        if not fuses:
            encoding = random_encoding(rng)
            return Case(op, codes, [encoding, encoding], encoding)
        activation = (None, "RELU", "RELU6", "RELU_N1_TO_1")[rng.integers(4)]
        return Case(
            op,
            codes,
            [random_encoding(rng), random_encoding(rng)],
            random_encoding(rng),
            {"fusedActivationFunction": ACTIVATION_CODES[activation]},
            {"activation": activation},
        )

    return case


def prelu(rng: np.random.Generator) -> Case:
    """One alpha per channel, a constant of the file."""
    codes = [random_codes(rng, 2, 7, 5, 24), random_codes(rng, 1, 1, 24)]
    encodings = [random_encoding(rng), random_encoding(rng)]
    return Case("PRELU", codes, encodings, random_encoding(rng), constant_from=1)


def average_pool(rng: np.random.Generator) -> Case:
    """Windows up to the whole image."""
    encoding, codes = random_encoding(rng), random_codes(rng, 2, 11, 9, 16)
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


def mean(rng: np.random.Generator) -> Case:
    """Global average pooling, and means along other axes."""
    source, codes = random_encoding(rng), random_codes(rng, 1, *rng.integers(1, 20, 2), 48)
    axes = [[1, 2], [2], [-1], [1], [1, 2, 3]][rng.integers(5)]
    keepdims = bool(rng.integers(2))
    out = Encoding(float(np.float32(source.scale * rng.uniform(0.05, 1.5))), random_encoding(rng).zero_point)
    constant = Operand((len(axes),), np.int32, data=np.array(axes))
    attributes = {"axes": axes, "keepdims": keepdims}
    return Case("MEAN", [codes], [source], out, {"keepDims": keepdims}, attributes, [constant])


def batch_matmul(rng: np.random.Generator) -> Case:
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


def resize(op: str) -> Callable[[np.random.Generator], Case]:
    """Up and down, in the three conventions for positions."""

    def case(rng: np.random.Generator) -> Case:
        encoding, codes = random_encoding(rng), random_codes(rng, 2, 11, 9, 8)
        size = [int(length) for length in rng.integers(3, 40, 2)]
        centers, corners = ((True, False), (False, True), (False, False))[rng.integers(3)]
        options = {"halfPixelCenters": centers, "alignCorners": corners}
        attributes = {"size": size, "half_pixel_centers": centers, "align_corners": corners}
        constant = Operand((2,), np.int32, data=np.array(size))
        return Case(op, [codes], [encoding], encoding, options, attributes, [constant])

    return case


CASES: dict[str, Callable[[np.random.Generator], Case]] = {
    "ADD": binary("ADD"),
    "AVERAGE_POOL_2D": average_pool,
    "BATCH_MATMUL": batch_matmul,
    "ELU": unary("ELU"),
    "GELU": gelu,
    "HARD_SWISH": hard_swish,
    "LEAKY_RELU": leaky_relu,
    "LOGISTIC": unary("LOGISTIC", Encoding(1 / 256, -128)),
    "MAXIMUM": binary("MAXIMUM", fuses=False),
    "MEAN": mean,
    "MINIMUM": binary("MINIMUM", fuses=False),
    "MUL": binary("MUL"),
    "PRELU": prelu,
    "QUANTIZE": unary("QUANTIZE"),
    "QUANTIZE of reals": quantize_real,
    "RELU": unary("RELU"),
    "RELU6": relu6,
    "RELU_N1_TO_1": unary("RELU_N1_TO_1"),
    "RESIZE_BILINEAR": resize("RESIZE_BILINEAR"),
    "RESIZE_NEAREST_NEIGHBOR": resize("RESIZE_NEAREST_NEIGHBOR"),
    "SOFTMAX": softmax,
    "SUB": binary("SUB"),
    "TANH": unary("TANH", Encoding(1 / 128, 0)),
}
