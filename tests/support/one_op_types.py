"""What a file of one operator is made of, and such a file in other types: int16 activations, packed weights."""

from dataclasses import dataclass, field, replace

import numpy as np

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")
STEPS = 256  # int16 steps in one of int8


@dataclass(frozen=True)
class Tensor:
    """One tensor; `data` makes it a constant, several scales make it per-axis, `variable` a state."""

    shape: tuple
    dtype: str = "int8"
    scale: tuple = (0.05,)
    zero_point: int = 3
    data: np.ndarray | None = None
    axis: int = 0
    variable: bool = False

    def real(self, codes):
        """The real numbers behind codes."""
        if not self.scale:
            return np.asarray(codes, "float64")
        lanes = [-1 if axis == self.axis else 1 for axis in range(len(self.shape))]
        scale = np.reshape(self.scale, lanes) if len(self.scale) > 1 else self.scale[0]
        return (np.asarray(codes, "float64") - self.zero_point) * scale


@dataclass(frozen=True)
class Case:
    """An operator, its tensors and what it should compute on real numbers."""

    op: str
    inputs: list
    outputs: list
    expected: object
    options: str | None = None
    fields: dict = field(default_factory=dict)
    feed: np.ndarray | None = None
    types: str = "int8"
    intermediates: list = field(default_factory=list)

    @property
    def given(self):
        """The inputs that hold values; others are absent (None) or states."""
        return [spec for spec in self.inputs if spec is not None and not spec.variable]


def quantizes(case):
    """Whether some tensor of the case is int8."""
    return any(spec.dtype == "int8" for spec in [*case.given, *case.outputs])


def typed(dtype, scale):
    """A row of eight values in a type, which reach about as far in each."""
    scales = {"int8": (scale,), "int16": (scale / STEPS,), "float32": ()}
    return Tensor((1, 8), dtype, scales[dtype], 3 if dtype == "int8" else 0)


def as_int16(case, fixed=None):
    """The case with int16 activations, zero point 0; int8 weights and an int64 bias where it has weights.

    Args:
        case: an int8 case.
        fixed: the output's scale and zero point where the operator prescribes them.
    """
    weighted = case.op in (*WEIGHTED, "UNIDIRECTIONAL_SEQUENCE_LSTM")
    inputs = [_wide_input(spec, weighted) for spec in case.inputs]
    outputs = [_widened(spec) for spec in case.outputs]
    case = replace(case, intermediates=[_widened(spec) for spec in case.intermediates])
    if fixed is not None:
        outputs = [replace(spec, scale=(fixed[0],), zero_point=fixed[1]) for spec in outputs]
    case = replace(case, inputs=inputs, outputs=outputs, types="int16x8")
    if case.feed is not None:
        case = replace(case, feed=_spread(inputs[0], case.feed))
    if case.op in ("ADD", "SUB"):
        case = replace(case, fields={"potScaleInt16": False, **case.fields})
    if case.op == "CAST":
        case = replace(case, fields={**case.fields, "inDataType": 7}, expected=lambda x: np.rint(x / inputs[0].scale))
    return case


def as_packed(case, name):
    """The case with packed weights ("int4"), as far below zero as above."""
    inputs = []
    high = 2 ** (bits_of(name) - 1) - 1
    factor = 128 // high
    for spec in case.inputs:
        if spec.dtype == "int8" and spec.data is not None:
            data = np.rint(spec.data.astype(float) * high / 128).astype("int8")
            spec = replace(spec, dtype=name, data=data, scale=tuple(factor * value for value in spec.scale))
        elif spec.dtype == "int32" and spec.scale:
            spec = replace(spec, scale=tuple(factor * value for value in spec.scale))
        inputs.append(spec)
    return replace(case, inputs=inputs, types=name)


def per_tensor(case):
    """The case with one scale for all channels of the weights."""
    return replace(case, inputs=[replace(spec, scale=spec.scale[:1]) for spec in case.inputs])


def bits_of(name):
    """Of a packed type, as its name tells."""
    return int(name.removeprefix("int"))


def packed(codes, name):
    """Codes of a packed type as a file has them: bit after bit, from the lowest of the first byte on."""
    bits = np.asarray(codes, "int8").reshape(-1, 1) >> np.arange(bits_of(name), dtype="int8") & 1
    return np.packbits(bits.reshape(-1).astype("uint8"), bitorder="little")


def _wide_input(spec, weighted):
    if spec is None:
        return None
    if weighted and spec.dtype == "int32" and spec.scale:
        return _wide_bias(spec)
    return spec if weighted and spec.data is not None else _widened(spec)


def _widened(spec):
    if spec.dtype != "int8":
        return spec
    factor = STEPS / 2 if spec.zero_point == -128 else STEPS
    data = None if spec.data is None else (spec.data.astype("int16") - spec.zero_point) * 200
    return replace(spec, dtype="int16", scale=tuple(value / factor for value in spec.scale), zero_point=0, data=data)


def _wide_bias(spec):
    data = spec.data.astype("int64") * STEPS
    return replace(spec, dtype="int64", scale=tuple(value / STEPS for value in spec.scale), data=data)


def _spread(spec, feed):
    """Codes from one end of the range to the other, or positive ones where the int8 case has those only."""
    codes = np.linspace(-32768, 32767, feed.size) if feed.size == 256 else np.linspace(200, 32767, feed.size)
    return codes.astype("int16").reshape(spec.shape)
