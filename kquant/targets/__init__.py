"""The targets as data: which TFLite builtin operator a runtime takes in which type, its limits, and the source of both.

One TOML file a target: `names` finds it, here or in the folder that `KQUANT_TARGETS` names, `load` checks it. Nothing
else in the package knows a target by its name; what differs between targets is a field here, or one more. A name comes
in, a frozen `Target` goes out. A new target is one TOML file.

    name = "tflm"
    runtimes = ["tflm"]                 # run the file here, the one to trust first
    rounding = "tflm"                   # whose integer arithmetic the quantized model computes
    arena = "tflm"                      # tells the RAM of the tensors
    ops_of = "other"                    # a target whose operators it has; those below take their places
    extends = "other"                   # or all that another target's file says, but for what stands here

    [accelerator]                       # what runs the operators on the device, see `accelerator`

    [ops.CONV_2D]
    int8 = true                         # runs with int8 activations, and right
    version = 3                         # the operator version to write
    per_axis = true                     # one scale for each channel of the weights
    int16x8 = true                      # runs with int16 activations and int8 weights, and right
    version_int16 = 4                   # the operator version to write then
    per_axis_int16 = true               # and whether each channel of the weights may have its scale
    source = "tflite/kernels/conv.cc"   # where the claim can be read
    [ops.CONV_2D.packed.int4]           # runs with weights of a type of core/packed.toml under int8 activations
    version = 7
    per_axis = true
    under = ["int16x8", "float"]        # and under these activations, too
    slow = { litert = 2.3 }             # runtimes that compute slower with them than with int8 weights, and how much
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from kquant.core.messages import did_you_mean, fault_in_words
from kquant.core.operators import OPERATORS, check_operator
from kquant.core.packed import PACKED
from kquant.targets.accelerator import Accelerator, Claim, Fact, Use
from kquant.targets.kernels import Operator, Packed

# What a target file records: types of activations, and of packed weights under int8 ones.
TYPES = ("int8", "int16x8", *PACKED)
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


_Runtime = Literal["litert", "litert-reference", "tflm"]  # those of `kquant.predict`


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
        chooses_boxes: has TFLite_Detection_PostProcess, which a detector's file may end in.
        bias_scales: something that takes its files reads the scales of biases for each channel; False: kernels multiply
            those of the data and of the weights.
        zero_points: something that takes its files reads a zero point for each scale; False: one for all of them is
            read as often as it takes, where they are equal.
        arena: the one of its runtimes that tells the RAM that tensors take on the device; None where none does.
        compiler: what compiles the file for the device and says what its weights take there.
        fallback: the target that runs what this one does not take, for an accelerator beside a processor.
        accelerator: what runs the operators on the device where that is not what runs them here.
        known_as: what people call it, or what it runs on, in lower case: for who names that instead.

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
    chooses_boxes: bool = False
    bias_scales: bool = True
    zero_points: bool = True
    arena: Literal["tflm"] | None = None
    compiler: Literal["vela"] | None = None
    fallback: str | None = None
    accelerator: Accelerator | None = None
    known_as: tuple[str, ...] = Field(default=(), strict=False)

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
            type: "int8", "int16x8" for int16 activations, or a packed type of weights ("int4") under int8 activations.

        Returns:
            True where the file says so; False for an operator that it does not list.

        Raises:
            ValueError: for a type that target files do not record.
        """
        if type not in TYPES:
            raise ValueError(f"Target {self.name!r} records the types {', '.join(TYPES)}. Received: type={type!r}.")
        return op in self.ops and self.ops[op].runs(type)

    def takes(self, op: str, type: str = "int8") -> Fact:
        """Whether the accelerator takes a builtin operator in a type, in the version that kquant writes.

        Returns:
            True where the target has no accelerator beside its kernels.

        Example:
            >>> load("cmsis-nn").takes("SOFTMAX"), load("cmsis-nn").takes("LOGISTIC"), load("tflm").takes("LOGISTIC")
            (True, False, True)
        """
        if self.accelerator is None:
            return True
        version = self.ops[op].version_for(type) if op in self.ops else 1
        return self.accelerator.takes(Use(op, type, version))[0]

    @cached_property
    def taken(self) -> frozenset[str]:
        """The operators that the accelerator takes with int8 activations.

        Example:
            >>> "SOFTMAX" in load("cmsis-nn").taken, "LOGISTIC" in load("cmsis-nn").taken
            (True, False)
        """
        return frozenset(code for code in OPERATORS if self.takes(code) is True)

    @cached_property
    def left(self) -> frozenset[str]:
        """The operators that it leaves to the processor; what nobody said of others is in neither set."""
        return frozenset(code for code in OPERATORS if self.takes(code) is False)

    def per_axis_for(self, op: str, type: str = "int8") -> bool:
        """Whether to write a scale for each channel of an operator's weights: kernels and accelerator take them.

        Example:
            >>> load("mediatek").per_axis_for("CONV_2D"), load("litert").per_axis_for("CONV_2D")
            (False, True)
        """
        refused = self.accelerator is not None and self.accelerator.fact(op, "per_axis") is False
        # an operator that the accelerator leaves anyway runs on the processor, which has its own rows
        return self.ops[op].per_axis_for(type) and not (refused and self.takes(op, type) is not False)

    def fuses(self, op: str) -> bool:
        """Whether to write an activation into an operator.

        Example:
            >>> load("edgetpu").fuses("MAX_POOL_2D"), load("litert").fuses("MAX_POOL_2D")
            (False, True)
        """
        able = self.accelerator is None or self.accelerator.fact(op, "fused") is not False
        return op in self.ops and self.ops[op].fuses and (able or self.takes(op) is False)

    @property
    def per_tensor(self) -> bool:
        """All that the accelerator takes has one scale for the weights of a layer, not one for each channel.

        Example:
            >>> [name for name in names() if load(name).per_tensor]
            ['mediatek']
        """
        weighted = [code for code, row in self.ops.items() if row.per_axis and self.takes(code) is not False]
        # no target without an accelerator: its own rows are about its kernels, which are not asked for another grid
        taken = self.accelerator
        return taken is not None and bool(weighted) and all(taken.fact(c, "per_axis") is False for c in weighted)

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
        >>> {"litert", "tflm", "ethos-u"} <= set(names())
        True
    """
    return sorted(_files())


def load(name: str) -> Target:
    """Read a target by name.

    Args:
        name: one of `names()`.

    Returns:
        The frozen target.

    Raises:
        ValueError: for what is no name, or an unknown one, listing the known ones, and for a file that does not fit the
            schema.
    """
    files = _files()
    given: Any = name  # whatever the annotation says
    if not isinstance(given, str):
        raise ValueError(
            f"target: expected a name, one of {', '.join(sorted(files))}. Received: {given!r}. Leave target out for "
            f"'{DEFAULT}'."
        )
    if name not in files:
        hint = advice(name) or did_you_mean(name.lower(), files)
        raise ValueError(
            f"Unknown target {name!r}; the known ones are {', '.join(sorted(files))}.{hint} A target of your own is a "
            f"TOML file in the folder that the environment variable {FOLDER} names."
        )
    return _shipped(name) if name in _shipped_files() else _read(name, files[name])


def advice(name: str) -> str:
    """A sentence for behind a full stop, with its space: the target of a board, a chip, a phone; nothing of others.

    Args:
        name: what was given in the place of a target.

    Example:
        >>> advice("STM32"), advice("toaster")
        (" For stm32, take 'cmsis-nn'.", '')
    """
    name = name.lower()
    for target, file in sorted(_files().items()):
        if name in tomllib.loads(file.read_text(encoding="utf-8")).get("known_as", ()):
            return f" For {name}, take {target!r}."
    return ""


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
        text: TOML with the fields of `Target`; `ops_of` names a target whose operators it has, but for its own `ops`,
            `extends` one whose other keys it has as well.
        where: for messages.

    Raises:
        ValueError: naming the file and, for every fault, the place in it and the nearest known key.
    """
    try:
        return _with_fallback(Target.model_validate(_with_others(tomllib.loads(text))))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"Target file {where} is not TOML: {error}.") from error
    except ValidationError as error:
        faults = "; ".join(fault_in_words(fault, _keys(fault)) for fault in error.errors())
        raise ValueError(f"Target file {where} does not fit the schema: {faults}.") from error


def _with_others(given: dict[str, Any]) -> dict[str, Any]:
    """What a file takes from another one, row by row: what it says of an operator itself stands whole in it."""
    ops, keys = given.get("ops", {}), dict[str, Any]()
    if "extends" in given:
        other = load(given.pop("extends"))
        keys = {key: getattr(other, key) for key in other.model_fields_set - {"accelerator", "known_as"}}
        ops = {**other.ops, **ops}
    if "ops_of" in given:
        ops = {**load(given.pop("ops_of")).ops, **ops}
    return {**keys, **given, "ops": ops} if ops else given


def _with_fallback(target: Target) -> Target:
    """Rows that tell what an accelerator takes become its claims; what it leaves gets the rows of the fallback."""
    taken = target.accelerator
    if taken is None or not taken.of_rows or target.fallback is None:
        return target
    rest = load(target.fallback).ops
    claims = (
        *taken.claims,
        *(
            Claim(
                ops=(code,),
                int8=row.int8,
                int16x8=row.int16x8,
                packed={name: row.packs(name) for name in PACKED},
                per_axis=row.per_axis,
                max_rank=row.max_rank,
                notes=row.notes,
                source=row.source,
            )
            for code, row in target.ops.items()
            if code not in taken.by_code
        ),
    )
    ops = {code: rest[code] if not row.int8 and code in rest else row for code, row in target.ops.items()}
    said = {key: getattr(taken, key) for key in taken.model_fields_set}
    whole = Accelerator.model_validate({**said, "claims": claims})
    return target.model_copy(update={"ops": MappingProxyType(ops), "accelerator": whole})


def _keys(fault: Mapping[str, Any]) -> list[str]:
    """The keys that there are at the place of a fault."""
    place = fault["loc"]
    if place[:1] == ("ops",):
        return list((Packed if place[2:3] == ("packed",) else Operator).model_fields)
    if place[:1] == ("accelerator",):
        return list((Claim if place[1:2] == ("claims",) else Accelerator).model_fields)
    return [*Target.model_fields, "ops_of", "extends"]


_parsed = cache(parse)  # by its text: a file that changes is read anew
