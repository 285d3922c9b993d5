"""The targets as data: which TFLite builtin operator a runtime takes in which type, its limits, and the source of both.

One TOML file a target: `names` finds it, here or in the folder that `KQUANT_TARGETS` names, `load` checks it. Nothing
else in the package knows a target by its name; what differs between targets is a field here, or one more.

    name = "tflm"
    runtimes = ["tflm"]                 # run the file here, the one to trust first
    rounding = "tflm"                   # whose integer arithmetic the quantized model computes
    arena = "tflm"                      # tells the RAM of the tensors
    ops_of = "other"                    # a target whose operators it has; those below take their places

    [ops.CONV_2D]
    int8 = true                         # runs with int8 activations, and right
    version = 3                         # the operator version to write
    per_axis = true                     # one scale for each channel of the weights
    int16x8 = true                      # runs with int16 activations and int8 weights, and right
    version_int16 = 4                   # the operator version to write then
    per_axis_int16 = true               # and whether each channel of the weights may have its scale
    int4_weights = true                 # runs with int4 weights under int8 activations, and right
    version_int4 = 7
    per_axis_int4 = true
    int4_with = ["int16x8", "float"]    # int4 weights run under these activations, too
    slow_int4 = { litert = 2.3 }        # runtimes that compute slower with them than with int8 weights, and how much
    source = "tflite/kernels/conv.cc"   # where the claim can be read
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from kquant.core.messages import did_you_mean, fault_in_words
from kquant.core.operators import check_operator

# What a target file records: the field of `Operator` that says whether the operator runs in a type.
_FIELDS = {"int8": "int8", "int16x8": "int16x8", "int4": "int4_weights"}
TYPES = tuple(_FIELDS)
# Of every verb and command that takes a target, and of models that do not say what they were quantized for: the widest
# of them, and the one that `kquant.predict` and `kquant.stream` run a file on where nobody says otherwise.
DEFAULT = "litert"
FOLDER = "KQUANT_TARGETS"  # the environment variable with a folder of more target files
# The arithmetics of `kquant.arithmetic`, each with the runtime whose codes it computes.
FOLLOWED = {"litert": "litert-reference", "tflm": "tflm"}


def _known(ops: Mapping[str, Any]) -> Mapping[str, Any]:
    """Operators that `core/operators.toml` has."""
    for code in ops:
        check_operator("a row", code)
    return MappingProxyType(ops)


# A frozen model does not freeze a dict inside it, and one `Target` serves every layer that asks (`_shipped`).
_Options = Annotated[Mapping[str, bool], AfterValidator(MappingProxyType)]
_Runtime = Literal["litert", "litert-reference", "tflm"]  # those of `kquant.predict`
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
    in_place: bool = False
    notes: str = ""

    def version_for(self, type: str = "int8") -> int:
        """The operator version to write in a file of a type, one of `TYPES`.

        Example:
            >>> load("litert").ops["ADD"].version_for("int16x8")
            3
        """
        versions = {"int16x8": self.version_int16, "int4": self.version_int4}
        return versions.get(type) or self.version

    def per_axis_for(self, type: str = "int8") -> bool:
        """Whether the weights may have one scale for each channel in a type, one of `TYPES`.

        Example:
            >>> load("tflm").ops["FULLY_CONNECTED"].per_axis_for("int16x8")
            False
        """
        # no default of another type's: a kernel may read one scale where the one of int8 reads many
        return {"int16x8": self.per_axis_int16, "int4": self.per_axis_int4}.get(type, self.per_axis)

    def max_rescale_for(self, type: str = "int8") -> float | None:
        """The bound of what one unit is worth in a type, one of `TYPES`; None where none is known.

        Example:
            >>> load("tflm").ops["ADD"].max_rescale_for("int16x8")
            16384.0
        """
        return self.max_rescale_int16 or self.max_rescale if type == "int16x8" else self.max_rescale

    def min_scale_for(self, type: str = "int8") -> float | None:
        """What its input's scale must exceed in a type, one of `TYPES`; None where nothing is known.

        Example:
            >>> load("tflm").ops["TANH"].min_scale_for("int16x8")
            4e-14
        """
        return self.min_scale_int16 if type == "int16x8" else self.min_scale

    def max_scale_for(self, type: str = "int8") -> float | None:
        """The bound of its input's scale in a type, one of `TYPES`; None where none is known.

        Example:
            >>> load("tflm").ops["SOFTMAX"].max_scale_for("int16x8")
            5.0
        """
        return self.max_scale_int16 if type == "int16x8" else self.max_scale

    def fixed_for(self, type: str = "int8") -> tuple[float, int] | None:
        """The output encoding that the quantization specification prescribes in a type, one of `TYPES`.

        Example:
            >>> load("tflm").ops["TANH"].fixed_for("int16x8") == (1 / 32768, 0)
            True
        """
        return self.fixed_int16 if type == "int16x8" else self.fixed

    def packs(self, type: str = "int8") -> bool:
        """Whether the weights may be int4 under activations of a type: "int8", "int16x8" or "float".

        Example:
            >>> [load(name).ops["CONV_2D"].packs("int16x8") for name in ("litert", "tflm")]
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
            >>> dense = load("litert").ops["FULLY_CONNECTED"]
            >>> dense.slowdown("litert", 64) is None, dense.slowdown("litert", 63) > 1
            (True, True)
        """
        fast = self.fast_int4_depth is not None and depth % self.fast_int4_depth == 0
        return None if fast or type == "int16x8" else self.slow_int4.get(runtime)


class Target(BaseModel):
    """One target: what to write for it and where to run the file.

    Attributes:
        name: what the user says, the file's name.
        title: what reports say.
        runtimes: the names for `kquant.predict` that can run the file here, the one to trust first.
        rounding: whose integer arithmetic a model that is quantized for the target computes: "litert" (the reference
            kernels) or "tflm".
        ops: the operators by their schema name, such as `CONV_2D`.
        floats: runs float operators as well.
        decodes: what it decodes weights from, of `kquant.tflite.storage.STORAGES`.
        arena: the one of its runtimes that tells the RAM that tensors take on the device; None where none does.
        compiler: what compiles the file for the device and says what its weights take there.
        fallback: the target that runs what this one does not take, for an accelerator beside a processor.

    Example:
        >>> load("tflm").supports("CONV_2D")
        True
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    title: str
    runtimes: tuple[_Runtime, ...] = Field(min_length=1, strict=False)
    rounding: Literal["litert", "tflm"]
    ops: Annotated[Mapping[str, Operator], AfterValidator(_known)]
    floats: bool = False
    decodes: tuple[str, ...] = Field(default=(), strict=False)
    arena: Literal["tflm"] | None = None
    compiler: Literal["vela"] | None = None
    fallback: str | None = None

    @model_validator(mode="after")
    def _check_runtimes(self) -> Target:
        """What a file says of a runtime is of one that it names; otherwise no export could ever be checked with it."""
        for key, needed in (("rounding", self.follows), ("arena", self.arena)):
            if needed is not None and needed not in self.runtimes:
                raise ValueError(f"{key} = {getattr(self, key)!r} needs {needed!r} among the runtimes")
        return self

    @property
    def follows(self) -> str:
        """The runtime whose codes are those of a model that is quantized for the target."""
        return FOLLOWED[self.rounding]

    def supports(self, op: str, type: str = "int8") -> bool:
        """Whether the target runs a builtin operator wholly in a type.

        Args:
            op: the schema's name of the operator, such as `CONV_2D`.
            type: "int8", "int16x8" for int16 activations, or "int4" for int4 weights under int8 activations.

        Returns:
            True where the file says so; False for an operator that it does not list.

        Raises:
            ValueError: for a type that target files do not record.
        """
        if type not in TYPES:
            raise ValueError(f"Target {self.name!r} records the types {', '.join(TYPES)}. Received: type={type!r}.")
        return op in self.ops and getattr(self.ops[op], _FIELDS[type])

    def runtimes_for(self, op: str) -> tuple[str, ...]:
        """The runtimes that can check an operator: those of the target without the ones it is broken on.

        Example:
            >>> load("litert").runtimes_for("SUM")
            ('litert',)
        """
        # an operator that the target does not list is checked by none of its runtimes
        broken = self.ops[op].broken_on if op in self.ops else self.runtimes
        return tuple(runtime for runtime in self.runtimes if runtime not in broken)


def names() -> list[str]:
    """The known targets, sorted: those of the package, and those of the folder that `KQUANT_TARGETS` names.

    Raises:
        ValueError: that folder does not exist, or has a file called like one of the package's.

    Example:
        >>> names()
        ['ethos-u', 'litert', 'tflm']
    """
    return sorted(_files())


def load(name: str) -> Target:
    """Read a target by name.

    Args:
        name: one of `names()`.

    Returns:
        The frozen target.

    Raises:
        ValueError: for an unknown name, listing the known ones, and for a file that does not fit the schema.
    """
    files = _files()
    if name not in files:
        hint = did_you_mean(name, files, cutoff=0.4)
        raise ValueError(
            f"Unknown target {name!r}; the known ones are {', '.join(sorted(files))}.{hint} A target of your own is a "
            f"TOML file in the folder that the environment variable {FOLDER} names."
        )
    return _shipped(name) if name in _shipped_files() else _read(name, files[name])


def _files() -> dict[str, Any]:
    """Name of a target -> its file. The folder is looked into each time: a test or a notebook may set it late."""
    given = os.environ.get(FOLDER)
    if not given:
        return _shipped_files()
    if not Path(given).is_dir():
        raise ValueError(f"{FOLDER} names a folder with target files (*.toml). There is no folder {given!r}.")
    own = _named(Path(given).iterdir())
    for name in sorted(own.keys() & _shipped_files().keys()):  # models say by name what they were quantized for
        raise ValueError(f"{FOLDER}: {own[name]} has the name of one of kquant's own targets. Call it otherwise.")
    return {**_shipped_files(), **own}


@cache
def _shipped_files() -> dict[str, Any]:
    return _named(resources.files(__name__).iterdir())


def _named(files: Iterable[Any]) -> dict[str, Any]:
    return {file.name.removesuffix(".toml"): file for file in files if file.name.endswith(".toml")}


@cache
def _shipped(name: str) -> Target:
    """One of the package's; every layer of a quantized model asks for its own."""
    return _read(name, _shipped_files()[name])


def _read(name: str, file: Any) -> Target:
    target = _parsed(file.read_text(encoding="utf-8"), str(file))
    if target.name != name:
        raise ValueError(f"Target file {file}: name must be that of the file, {name!r}. Received: {target.name!r}.")
    return target


def parse(text: str, where: str) -> Target:
    """Check the text of a target file; `where` names it in errors.

    Args:
        text: TOML with the fields of `Target`; `ops_of` names a target whose operators it has, but for its own `ops`.
        where: for messages.

    Raises:
        ValueError: naming the file and, for every fault, the place in it and the nearest known key.
    """
    try:
        given = tomllib.loads(text)
        if "ops_of" in given:
            # row by row: what a target says of an operator stands whole in its own file
            given["ops"] = {**load(given.pop("ops_of")).ops, **given.get("ops", {})}
        return Target.model_validate(given)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"Target file {where} is not TOML: {error}.") from error
    except ValidationError as error:
        faults = "; ".join(fault_in_words(fault, _keys(fault)) for fault in error.errors())
        raise ValueError(f"Target file {where} does not fit the schema: {faults}.") from error


def _keys(fault: Mapping[str, Any]) -> list[str]:
    """The keys that there are at the place of a fault."""
    return list(Operator.model_fields) if fault["loc"][:1] == ("ops",) else [*Target.model_fields, "ops_of"]


_parsed = cache(parse)  # by its text: a file that changes is read anew
