"""What a target's file says of one operator: whether a kernel runs it, in which types, and its limits."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from kquant.core.packed import PACKED

# A frozen model does not freeze a dict inside it, and one `Target` serves every layer that asks (`_shipped`).
_Options = Annotated[Mapping[str, bool], AfterValidator(MappingProxyType)]
_Times = Annotated[Mapping[str, Annotated[float, Field(gt=1)]], AfterValidator(MappingProxyType)]


class Packed(BaseModel):
    """What a target says of one operator with packed weights of one type, under int8 activations.

    Attributes:
        version: of the operator, to write in a file with such weights; that of int8 where it is None.
        per_axis: the weights may have one scale for each channel.
        under: activations beside int8 ones that the kernel takes with them.
        slow: runtimes without a fast kernel for them under int8 and float activations, each with the latency over that
            of int8 weights (of DEQUANTIZE: of the layer that computes with what it unpacks); the median of
            `benchmarks.packed`.
        fast_depth: they are fast there all the same, where each output sums a multiple of so many weights.
        taken: false for an operator that reads them only on the way to another one (DEQUANTIZE), whose cost alone is
            told here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int | None = Field(default=None, ge=1)
    per_axis: bool = False
    under: tuple[Literal["int16x8", "float"], ...] = Field(default=(), strict=False)
    slow: _Times = Field(default_factory=dict, validate_default=True)
    fast_depth: int | None = Field(default=None, ge=2)
    taken: bool = True


def _types(given: tuple[str, ...]) -> tuple[str, ...]:
    """Types of operators: of their activations, or of packed weights under int8 ones."""
    known = ("int8", "int16x8", "float", *PACKED)
    for name in given:
        if name not in known:
            raise ValueError(f"no type '{name}'; there are {', '.join(known)}")
    return given


def _known(rows: Mapping[str, Packed]) -> Mapping[str, Packed]:
    """Types that `core/packed.toml` has."""
    for name in rows:
        if name not in PACKED:
            raise ValueError(f"no packed type '{name}'; there are {', '.join(PACKED)}")
    return MappingProxyType(rows)


def _as_written_before(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of version 0.1 (`int4_weights`, `slow_int4`) as rows of `packed`; beside such a row they are refused."""
    said, rows = dict(given), dict(given.get("packed", {}))
    for name in PACKED:
        old = {
            "taken": f"{name}_weights",
            "version": f"version_{name}",
            "per_axis": f"per_axis_{name}",
            "under": f"{name}_with",
            "slow": f"slow_{name}",
            "fast_depth": f"fast_{name}_depth",
        }
        if name not in rows and any(key in said for key in old.values()):
            row = {key: said.pop(before) for key, before in old.items() if before in said}
            rows[name] = {"taken": False, **row}
    return {**said, "packed": rows} if rows else said


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
        packed: type of weights that lie several to a byte, of `core/packed.toml` -> what is so with those; inputs and
            outputs may be int8 then, too.
        blocks: packed types of weights whose blocks have scales of their own, which it reads for float32 outputs.
        block_multiple: blocks hold so many weights, or a multiple of that; others it reads wrongly.
        block_channels: its kernel has at least so many output channels, or it leaves the weights out.
        blocks_unread: runtimes of the target whose kernel reads no such weights, and does not say so.
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
    packed: Annotated[Mapping[str, Packed], AfterValidator(_known)] = Field(
        default_factory=dict[str, Packed], validate_default=True
    )
    blocks: Annotated[tuple[str, ...], AfterValidator(_types)] = Field(default=(), strict=False)
    block_multiple: int = Field(default=1, ge=1)
    block_channels: int = Field(default=1, ge=1)
    blocks_unread: tuple[str, ...] = Field(default=(), strict=False)
    optional_bias: Annotated[tuple[str, ...], AfterValidator(_types)] = Field(default=(), strict=False)
    broken_on: tuple[str, ...] = Field(default=(), strict=False)
    any_shape: bool = False
    in_place: bool = False
    notes: str = ""

    @model_validator(mode="before")
    @classmethod
    def _before(cls, given: Any) -> Any:
        return _as_written_before(cast(Mapping[str, Any], given)) if isinstance(given, Mapping) else given

    def runs(self, type: str = "int8") -> bool:
        """Whether it runs wholly in a type, one of `TYPES`, and right.

        Example:
            >>> kquant.targets.load("litert").ops["CONV_2D"].runs("int4")
            True
        """
        return self.packs(type) if type in PACKED else self.int16x8 if type == "int16x8" else self.int8

    def version_for(self, type: str = "int8") -> int:
        """The operator version to write in a file of a type, one of `TYPES`.

        Example:
            >>> kquant.targets.load("litert").ops["ADD"].version_for("int16x8")
            3
        """
        if type in self.packed:
            return self.packed[type].version or self.version
        return (self.version_int16 if type == "int16x8" else None) or self.version

    def per_axis_for(self, type: str = "int8") -> bool:
        """Whether the weights may have one scale for each channel in a type, one of `TYPES`.

        Example:
            >>> kquant.targets.load("tflm").ops["FULLY_CONNECTED"].per_axis_for("int16x8")
            False
        """
        # no default of another type's: a kernel may read one scale where the one of int8 reads many
        if type in PACKED:
            return type in self.packed and self.packed[type].per_axis
        return self.per_axis_int16 if type == "int16x8" else self.per_axis

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

    def packs(self, packed: str, type: str = "int8") -> bool:
        """Whether the weights may be of a packed type under activations of a type: "int8", "int16x8" or "float".

        Example:
            >>> [kquant.targets.load(name).ops["CONV_2D"].packs("int4", "int16x8") for name in ("litert", "tflm")]
            [True, False]
        """
        row = self.packed.get(packed)
        # a row alone says int8: under other activations another kernel, or none, unpacks the codes
        return row is not None and row.taken and (type == "int8" or type in row.under)

    def slowdown(self, packed: str, runtime: str, depth: int, type: str = "int8") -> float | None:
        """How many times the latency of int8 weights those of a packed type cost.

        Args:
            packed: the type.
            runtime: a name for `kquant.predict`.
            depth: weights that each output sums.
            type: of the activations: "int8", "int16x8" or "float".

        Returns:
            None where they cost none.

        Example:
            >>> dense = kquant.targets.load("litert").ops["FULLY_CONNECTED"]
            >>> dense.slowdown("int4", "litert", 64) is None, dense.slowdown("int4", "litert", 63) > 1
            (True, True)
        """
        row = self.packed.get(packed)
        if row is None or type == "int16x8":
            return None
        return None if row.fast_depth is not None and depth % row.fast_depth == 0 else row.slow.get(runtime)
