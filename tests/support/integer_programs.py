"""Random programs of integers with channels that nobody reads, and channels that hold one code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kquant.core.program import Program, Ref
from kquant.core.spec import Encoding, QuantSpec

SIZE = 5
WEIGHTS = QuantSpec(8, symmetric=True, narrow=True, per_axis=True)
BIAS = QuantSpec(16, symmetric=True)
ACTIVATIONS = ("NONE", "RELU", "RELU6")


@dataclass
class Builder:
    """Writes one program; `wide`: int16 activations."""

    rng: np.random.Generator
    wide: bool = False

    def __post_init__(self) -> None:
        self.program = Program("random")
        self.count = 0

    def grid(self) -> Encoding:
        spec = QuantSpec(16, symmetric=True) if self.wide else QuantSpec()
        zero = 0 if self.wide else int(self.rng.choice([-128, -128, 0, 5, 127]))
        scale = self.rng.uniform(0.02, 0.2) / (256 if self.wide else 1)
        return Encoding(np.float32([scale]), np.int64([zero]), spec)

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def start(self, channels: int) -> Ref:
        ref = self.program.value(self.name("x"), (1, SIZE, SIZE, channels), self.grid())
        self.program.inputs.append(ref)
        return ref

    def emit(
        self, code: str, inputs: list[Ref | None], shape: tuple[int, ...], grid: Encoding, **options: object
    ) -> Ref:
        return self.program.emit(code, inputs, self.program.value(self.name(code.lower()), shape, grid), **options)

    def weights(self, shape: tuple[int, ...], axis: int, source: Ref, out: Encoding) -> list[Ref | None]:
        """Kernel and bias: some rows and columns of zeros, some channels so fine that nothing comes of them."""
        rng, count = self.rng, shape[axis]
        codes = rng.integers(-127, 128, shape)
        codes *= (rng.random(count) < 0.75).reshape([-1 if n == axis else 1 for n in range(len(shape))])
        if axis == 0:
            codes = codes * (rng.random(shape[-1]) < 0.6)
        size = codes.size / count
        ratio = rng.uniform(0.2, 2.0, count) / (127 * np.sqrt(size))
        ratio[rng.random(count) < 0.2] *= 2.0**-16
        scale = np.float32(ratio * out.scale[0] / source.grid.scale[0])
        kernel = self.program.codes(
            self.name("kernel"), codes, Encoding(scale, np.zeros(count, np.int64), WEIGHTS, axis)
        )
        steps = rng.normal(0, 60, count) * np.where(rng.random(count) < 0.3, 40.0, 1.0)
        values = np.clip(np.rint(steps / ratio), -(2**29), 2**29).astype(np.int64 if self.wide else np.int32)
        grid = Encoding(np.float32(scale * source.grid.scale[0]), np.zeros(count, np.int64), BIAS, 0)
        bias = self.program.constant(self.name("bias"), values * (rng.random(count) < 0.7).astype(values.dtype), grid)
        optional = len(shape) == 2 and not self.wide  # those of convolutions want one
        return [kernel] if optional and rng.random() < 0.2 else [kernel, bias]

    def window(self, x: Ref) -> tuple[int, dict[str, object], tuple[int, int]]:
        """Size, options and the height and width that come out."""
        size, stride = int(self.rng.choice([1, 2, 3])), int(self.rng.choice([1, 1, 2]))
        size = min(size, *x.shape[1:3])
        padding = str(self.rng.choice(["SAME", "VALID"]))
        less = 0 if padding == "SAME" else size - 1
        made = tuple(-(-(n - less) // stride) for n in x.shape[1:3])
        return size, {"padding": padding, "strideH": stride, "strideW": stride}, made

    def activation(self) -> str:
        return str(self.rng.choice(ACTIVATIONS))

    def conv(self, x: Ref) -> Ref:
        size, options, made = self.window(x)
        count, out = int(self.rng.integers(1, 9)), self.grid()
        given = self.weights((count, size, size, x.shape[-1]), 0, x, out)
        options |= {"dilationHFactor": 1, "dilationWFactor": 1, "fusedActivationFunction": self.activation()}
        return self.emit("CONV_2D", [x, *given], (1, *made, count), out, **options)

    def depthwise(self, x: Ref) -> Ref:
        size, options, made = self.window(x)
        multiplier, out = int(self.rng.choice([1, 1, 2])), self.grid()
        count = x.shape[-1] * multiplier
        given = self.weights((1, size, size, count), 3, x, out)
        options |= {"dilationHFactor": 1, "dilationWFactor": 1, "fusedActivationFunction": self.activation()}
        options["depthMultiplier"] = multiplier
        return self.emit("DEPTHWISE_CONV_2D", [x, *given], (1, *made, count), out, **options)

    def pool(self, x: Ref) -> Ref:
        size, options, made = self.window(x)
        code = str(self.rng.choice(["AVERAGE_POOL_2D", "MAX_POOL_2D"]))
        options |= {"filterHeight": size, "filterWidth": size, "fusedActivationFunction": "NONE"}
        return self.emit(code, [x], (1, *made, x.shape[-1]), x.grid, **options)

    def pad(self, x: Ref) -> Ref:
        widths = self.program.constant("paddings", np.array([[0, 0], [1, 0], [0, 1], [0, 0]], np.int32))
        return self.emit("PAD", [x, widths], (1, x.shape[1] + 1, x.shape[2] + 1, x.shape[3]), x.grid)

    def requantized(self, x: Ref, grid: Encoding | None = None) -> Ref:
        return self.emit("QUANTIZE", [x], x.shape, grid or self.grid())

    def add(self, x: Ref, y: Ref) -> Ref:
        code = "ADD" if self.wide else str(self.rng.choice(["ADD", "SUB", "MUL"]))
        return self.emit(
            code, [x, y], x.shape, self.grid(), fusedActivationFunction=str(self.rng.choice(["NONE", "RELU"]))
        )

    def scaled(self, x: Ref) -> Ref:
        """A stored factor for each channel."""
        codes = self.rng.integers(-100, 100, (1, 1, 1, x.shape[-1]))
        return self.emit(
            "MUL",
            [x, self.program.codes(self.name("by"), codes, self.grid())],
            x.shape,
            self.grid(),
            fusedActivationFunction="NONE",
        )

    def joined(self, x: Ref, y: Ref) -> Ref:
        grid = self.grid()
        parts = [self.requantized(ref, grid) for ref in (x, y)]
        shape = (*x.shape[:3], x.shape[3] + y.shape[3])
        return self.emit("CONCATENATION", parts, shape, grid, axis=3, fusedActivationFunction="NONE")

    def curved(self, x: Ref) -> Ref:
        half = Encoding(np.float32([1 / 256]), np.int64([-128]), QuantSpec())
        return self.emit("LOGISTIC", [x], x.shape, half)

    def dense(self, x: Ref) -> Ref:
        """Behind a Flatten or a mean."""
        if self.rng.random() < 0.5:
            axes = self.program.constant("axes", np.array([1, 2], np.int32))
            x = self.emit("MEAN", [x, axes], (1, x.shape[-1]), self.grid(), keepDims=False)
        else:
            x = self.program.reshape(x, (1, x.size))
        count, out = int(self.rng.integers(1, 6)), self.grid()
        given = self.weights((count, x.shape[-1]), 0, x, out)
        return self.emit(
            "FULLY_CONNECTED",
            [x, *given],
            (1, count),
            out,
            fusedActivationFunction=self.activation(),
            keepNumDims=False,
        )


def random_program(seed: int, steps: int = 7, *, wide: bool = False) -> Program:
    """The same program for the same seed; its outputs are what nobody reads, behind dense layers."""
    rng = np.random.default_rng(seed)
    b = Builder(rng, wide)
    tensors = [b.start(int(rng.integers(1, 5)))]
    tensors.append(b.conv(tensors[0]))
    of_one = [b.conv, b.conv, b.depthwise, b.depthwise, b.pool, b.pad] + (
        [] if wide else [b.requantized, b.scaled, b.curved]
    )
    for _ in range(steps):
        x = tensors[int(rng.integers(max(0, len(tensors) - 2), len(tensors)))]
        alike = [t for t in tensors if t.shape == x.shape and t is not x]
        beside = [t for t in tensors if t.shape[:3] == x.shape[:3] and t is not x]
        if alike and rng.random() < 0.5:
            tensors.append(b.add(x, alike[int(rng.integers(len(alike)))]))
        elif beside and not wide and rng.random() < 0.4:
            tensors.append(b.joined(x, beside[int(rng.integers(len(beside)))]))
        else:
            tensors.append(of_one[int(rng.integers(len(of_one)))](x))
    program, read = b.program, {id(ref) for op in b.program.operators for ref in op.inputs}
    ends = [t for t in tensors[1:] if id(t) not in read]
    program.outputs = [b.dense(ref) if rng.random() < 0.8 else ref for ref in ends]
    return program
