"""What a target's file says of one operator: whether a kernel runs it, in which types, and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# A frozen model does not freeze a dict inside it, and one `Target` serves every layer that asks (`_shipped`).
_Options = Annotated[Mapping[str, bool], AfterValidator(MappingProxyType)]
_Times = Annotated[Mapping[str, Annotated[float, Field(gt=1)]], AfterValidator(MappingProxyType)]


class Operator(BaseModel):
    """What a target says of one builtin operator.

    Attributes:
        int8: inputs and outputs may be int8 and the numbers come out right; false for one that runs but is wrong.
        version: the operator version to write in an int8 file.
        source: the file or document that the limits were read in.
        per_axis: the weights may have one scale for each channel.
        equal_encodings: the data inputs and the outputs must share one scale and zero point.
        fixed: the output encoding that the quantization specification prescribes: scale and zero point.
        fuses: takes RELU, RELU_N1_TO_1 and RELU6 as its fused activation.
        max_rank: the highest rank of the data tensors; None where no limit was found.
        max_inputs: the largest number of inputs; None where no limit was found.
        max_rescale: what one unit of its integers is worth over the output's scale must stay below it (int8), for every
            channel: `s_in * s_w / s_out` with weights, `max(s_1, s_2) / s_out` for a sum; `core.rescale` has them all.
            The kernel checks it, or its 32-bit integers overflow beyond.
        max_rescale_int16: as `max_rescale`, with int16 activations; `max_rescale` where it is None.
        min_scale: the scale of its input must exceed it (int8): the kernel checks, and ends the process.
        min_scale_int16: as `min_scale`, with int16 activations: below, the multiplier of the kernel is 0.
        max_scale: the scale of its input must stay below it (int8): a shift of the kernel ends there.
        max_scale_int16: as `max_scale`, with int16 activations.
        int16x8: inputs and outputs may be int16 with zero point 0 and the numbers come out right; weights are then
            int8 and the bias int64.
        version_int16: the operator version to write in an int16 file; `version` where it is None.
        per_axis_int16: as `per_axis`, with int16 activations.
        fixed_int16: as `fixed`, with int16 activations.
        options_int16: what has to be written in the operator's options with int16 activations, by the schema's names.
        int4_weights: inputs and outputs may be int8 where the weights are int4, packed two in a byte, the first in the
            low half.
        version_int4: the operator version to write in a file with int4 weights; `version` where it is None.
        per_axis_int4: as `per_axis`, with int4 weights.
        int4_with: activations beside int8 ones that the kernel takes with int4 weights.
        slow_int4: runtimes without a fast kernel for its int4 weights under int8 and float activations, each with the
            latency over that of int8 weights (of DEQUANTIZE: of the layer that computes with what it unpacks); the
            median of `benchmarks.packed`.
        fast_int4_depth: they are fast there all the same, where each output sums a multiple of so many weights.
        optional_bias: types, of `TYPES` and "float", in which the bias may be missing, on every runtime that runs the
            file: one for a microcontroller is tried on a desktop, too.
        broken_on: runtimes of the target that lack the operator or compute it wrongly, so they cannot check it.
        any_shape: its kernels read the data as rows as long as those of the weights, whatever its shape; no RESHAPE has
            to stand in front.
        in_place: the interpreter may write the output over an input that nobody else reads.
        notes: further limits in words.
    """

    # strict: 1 is not true and "3" no version; lists of TOML become tuples where a field says strict=False
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    int8: bool
    version: int = Field(ge=1)
    source: str = Field(min_length=1)
    per_axis: bool = False
    equal_encodings: bool = False
    fixed: tuple[float, int] | None = Field(default=None, strict=False)
    fuses: bool = False
    max_rank: int | None = Field(default=None, ge=1)
    max_inputs: int | None = Field(default=None, ge=1)
    max_rescale: float | None = Field(default=None, gt=0)
    max_rescale_int16: float | None = Field(default=None, gt=0)
    min_scale: float | None = Field(default=None, gt=0)
    min_scale_int16: float | None = Field(default=None, gt=0)
    max_scale: float | None = Field(default=None, gt=0)
    max_scale_int16: float | None = Field(default=None, gt=0)
    int16x8: bool = False
    version_int16: int | None = Field(default=None, ge=1)
    per_axis_int16: bool = False
    fixed_int16: tuple[float, int] | None = Field(default=None, strict=False)
    options_int16: _Options = Field(default_factory=dict, validate_default=True)
    int4_weights: bool = False
    version_int4: int | None = Field(default=None, ge=1)
    per_axis_int4: bool = False
    int4_with: tuple[Literal["int16x8", "float"], ...] = Field(default=(), strict=False)
    slow_int4: _Times = Field(default_factory=dict, validate_default=True)
    fast_int4_depth: int | None = Field(default=None, ge=2)
    optional_bias: tuple[Literal["int8", "int16x8", "int4", "float"], ...] = Field(default=(), strict=False)
    broken_on: tuple[str, ...] = Field(default=(), strict=False)
    any_shape: bool = False
    in_place: bool = False
    notes: str = ""

    def version_for(self, type: str = "int8") -> int:
        """The operator version to write in a file of a type, one of `TYPES`.

        Example:
            >>> kquant.targets.load("litert").ops["ADD"].version_for("int16x8")
            3
        """
        versions = {"int16x8": self.version_int16, "int4": self.version_int4}
        return versions.get(type) or self.version

    def per_axis_for(self, type: str = "int8") -> bool:
        """Whether the weights may have one scale for each channel in a type, one of `TYPES`.

        Example:
            >>> kquant.targets.load("tflm").ops["FULLY_CONNECTED"].per_axis_for("int16x8")
            False
        """
        # no default of another type's: a kernel may read one scale where the one of int8 reads many
        return {"int16x8": self.per_axis_int16, "int4": self.per_axis_int4}.get(type, self.per_axis)

    def max_rescale_for(self, type: str = "int8") -> float | None:
        """The bound of what one unit is worth in a type, one of `TYPES`; None where none is known.

        Example:
            >>> kquant.targets.load("tflm").ops["ADD"].max_rescale_for("int16x8")
            16384.0
        """
        return self.max_rescale_int16 or self.max_rescale if type == "int16x8" else self.max_rescale

    def min_scale_for(self, type: str = "int8") -> float | None:
        """What its input's scale must exceed in a type, one of `TYPES`; None where nothing is known.

        Example:
            >>> kquant.targets.load("tflm").ops["TANH"].min_scale_for("int16x8")
            4e-14
        """
        return self.min_scale_int16 if type == "int16x8" else self.min_scale

    def max_scale_for(self, type: str = "int8") -> float | None:
        """The bound of its input's scale in a type, one of `TYPES`; None where none is known.

        Example:
            >>> kquant.targets.load("tflm").ops["SOFTMAX"].max_scale_for("int16x8")
            5.0
        """
        return self.max_scale_int16 if type == "int16x8" else self.max_scale

    def fixed_for(self, type: str = "int8") -> tuple[float, int] | None:
        """The output encoding that the quantization specification prescribes in a type, one of `TYPES`.

        Example:
            >>> kquant.targets.load("tflm").ops["TANH"].fixed_for("int16x8") == (1 / 32768, 0)
            True
        """
        return self.fixed_int16 if type == "int16x8" else self.fixed

    def packs(self, type: str = "int8") -> bool:
        """Whether the weights may be int4 under activations of a type: "int8", "int16x8" or "float".

        Example:
            >>> [kquant.targets.load(name).ops["CONV_2D"].packs("int16x8") for name in ("litert", "tflm")]
            [True, False]
        """
        # `int4_weights` alone says int8: under other activations another kernel, or none, unpacks the codes
        return self.int4_weights and (type == "int8" or type in self.int4_with)

    def slowdown(self, runtime: str, depth: int, type: str = "int8") -> float | None:
        """How many times the latency of int8 weights int4 ones cost.

        Args:
            runtime: a name for `kquant.predict`.
            depth: weights that each output sums.
            type: of the activations: "int8", "int16x8" or "float".

        Returns:
            None where they cost none.

        Example:
            >>> dense = kquant.targets.load("litert").ops["FULLY_CONNECTED"]
            >>> dense.slowdown("litert", 64) is None, dense.slowdown("litert", 63) > 1
            (True, True)
        """
        fast = self.fast_int4_depth is not None and depth % self.fast_int4_depth == 0
        return None if fast or type == "int16x8" else self.slow_int4.get(runtime)
