"""What stands beside the processor of a target, as data: which operators it takes, in which types, under which limits.

The rows under `ops` of a target say what runs the file here, and right; these claims say where it runs on the device:
an operator that the accelerator leaves runs on the processor, with the same codes. A fact is true, false or "unknown".

    [accelerator]
    title = "the NPU"
    cuts = "graph"                      # what an operator that it leaves does to the others
    unlisted = false                    # of operators that no claim names
    int8 = true                         # of those that claims name, where they say nothing else
    int16x8 = "unknown"
    per_axis = true
    source = "where that can be read"

    [[accelerator.claims]]
    ops = ["CONV_2D", "DEPTHWISE_CONV_2D"]
    max_version = 5
    source = "where that can be read"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from kquant.core.operators import check_operator
from kquant.core.packed import PACKED

Fact = bool | Literal["unknown"]
_Facts = Annotated[Mapping[str, Fact], AfterValidator(MappingProxyType)]
# What files of a type are called in words.
_WORDS = {
    "int8": "8-bit activations",
    "int16x8": "16-bit activations",
    **{name: f"{each.bits}-bit weights" for name, each in PACKED.items()},
    "float": "floats",
    "int32": "32-bit integers",
}
_LIMITS = ("max_rank", "max_inner_rank")


@dataclass(frozen=True)
class Use:
    """One operator as a file has it.

    Attributes:
        code, version: of the operator.
        type: "int8", "int16x8", "float" or a packed type of weights, see `kquant.core.program.Operator.type`; "int32"
            where it computes positions and counts only.
        rank: the highest of its tensors that hold activations.
        inner_rank: the highest without the axes of length 1 in front.
        per_axis: its weights have a scale for each channel.
        fused: it has an activation in it.
        dilated: its kernel has holes.
    """

    code: str
    type: str = "int8"
    version: int = 1
    rank: int = 1
    inner_rank: int = 1
    per_axis: bool = False
    fused: bool = False
    dilated: bool = False


def _packed_apart(given: Any) -> Any:
    """`int4 = true` of a file is a fact of `packed`, so that a new type there is no field here."""
    if not isinstance(given, Mapping):
        return given
    rest = dict(cast(Mapping[str, Any], given))
    facts = {name: rest.pop(name) for name in PACKED if name in rest}
    return {**rest, "packed": {**rest.get("packed", {}), **facts}} if facts else rest


class Claim(BaseModel):
    """What is so of some operators; what a claim leaves out is as the accelerator says.

    Attributes:
        ops: codes of the operators.
        int8, int16x8, float, int32: takes them in these types.
        packed: and with weights of these types under int8 activations; in a file simply `int4 = true`.
        per_axis: with a scale for each channel of the weights.
        fused: with an activation in them.
        dilated: with holes in the kernel.
        max_rank: up to so many axes.
        max_inner_rank: up to so many axes behind those of length 1 in front.
        max_version: up to this version of the operator.
        notes: further limits in words, which `kquant.check` cannot see.
        source: where that can be read, or what was run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    ops: tuple[str, ...] = Field(min_length=1, strict=False)
    source: str = Field(min_length=1)
    int8: Fact | None = None
    int16x8: Fact | None = None
    packed: _Facts = Field(default_factory=dict[str, Fact], validate_default=True)
    float: Fact | None = None
    int32: Fact | None = None
    per_axis: Fact | None = None
    fused: Fact | None = None
    dilated: Fact | None = None
    max_rank: int | None = Field(default=None, ge=1)
    max_inner_rank: int | None = Field(default=None, ge=1)
    max_version: int | None = Field(default=None, ge=1)
    notes: str = ""

    @model_validator(mode="before")
    @classmethod
    def _before(cls, given: Any) -> Any:
        return _packed_apart(given)


class Accelerator(BaseModel):
    """What a target's accelerator takes.

    Attributes:
        title: in messages, behind "runs on" and before "takes".
        source: where can be read what is said here, and of `unlisted`.
        cuts: "graph": where it leaves an operator, what it takes before and behind are parts of their own; "rest": all
            behind the first one that it leaves stays on the processor; "nothing": kernels of the same runtime.
        unlisted: takes operators that no claim names.
        int8, int16x8, packed, float, int32, per_axis, fused, dilated, max_rank, max_inner_rank: see `Claim`.
        most: parts of a graph that it takes, the largest first; None: all.
        of_rows: takes what the target's own `ops` say, where no claim names them; the rest runs on its `fallback`.
        compiled_for: what the target's compiler calls it.
        claims: of operators.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    title: str = Field(min_length=1)
    source: str = Field(min_length=1)
    cuts: Literal["graph", "rest", "nothing"]
    unlisted: Fact
    int8: Fact = "unknown"
    int16x8: Fact = "unknown"
    packed: _Facts = Field(default_factory=dict[str, Fact], validate_default=True)
    float: Fact = "unknown"
    int32: Fact = "unknown"
    per_axis: Fact = "unknown"
    fused: Fact = True
    dilated: Fact = True
    max_rank: int | None = Field(default=None, ge=1)
    max_inner_rank: int | None = Field(default=None, ge=1)
    most: int | None = Field(default=None, ge=1)
    of_rows: bool = False
    compiled_for: str | None = None
    claims: tuple[Claim, ...] = Field(default=(), strict=False)

    @model_validator(mode="before")
    @classmethod
    def _before(cls, given: Any) -> Any:
        return _packed_apart(given)

    @model_validator(mode="after")
    def _check_operators(self) -> Accelerator:
        seen: set[str] = set()
        for code in (code for claim in self.claims for code in claim.ops):
            check_operator("a claim", code)
            if code in seen:
                raise ValueError(f"two claims name {code}; join them, or take it out of one")
            seen.add(code)
        return self

    @cached_property
    def by_code(self) -> Mapping[str, Claim]:
        """Operator -> the claim that names it."""
        return {code: claim for claim in self.claims for code in claim.ops}

    def fact(self, code: str, field: str) -> Fact:
        """What is so of an operator, of the fields of `Claim` that are facts.

        Example:
            >>> from kquant import targets
            >>> taken = targets.load("cmsis-nn").accelerator
            >>> taken.fact("CONV_2D", "int16x8"), taken.fact("GATHER", "int8")
            (True, False)
        """
        return self.unlisted if code not in self.by_code else self._said(code, field)

    def _said(self, code: str, field: str) -> Any:
        if field in PACKED:
            return self.by_code[code].packed.get(field, self.packed.get(field, "unknown"))
        given = getattr(self.by_code[code], field)
        return getattr(self, field) if given is None else given

    def takes(self, use: Use) -> tuple[Fact, str]:
        """Whether it takes an operator as a file has it, and why not, or what is not known.

        Example:
            >>> from kquant import targets
            >>> targets.load("cmsis-nn").accelerator.takes(Use("TRANSPOSE_CONV", "int16x8"))
            (False, 'TRANSPOSE_CONV with 16-bit activations')
        """
        if use.code not in self.by_code:
            return self.unlisted, "" if self.unlisted is True else use.code
        open_questions: list[str] = []
        for fact, reason in self._answers(use):
            if fact is False:
                return False, reason
            if fact == "unknown":
                open_questions.append(reason)
        return ("unknown", "; ".join(open_questions)) if open_questions else (True, "")

    def _answers(self, use: Use) -> list[tuple[Fact, str]]:
        """All that a claim says of one use, each with the words for where it says no."""
        code, claim = use.code, self.by_code[use.code]
        answers: list[tuple[Fact, str]] = [(self._said(code, use.type), f"{code} with {_WORDS[use.type]}")]
        for field, words in (
            ("per_axis", "a scale for each channel of the weights"),
            ("fused", "an activation in it"),
            ("dilated", "a dilated kernel"),
        ):
            if getattr(use, field):
                answers.append((self._said(code, field), f"{code} with {words}"))
        for field, rank in zip(_LIMITS, (use.rank, use.inner_rank), strict=True):
            most = self._said(code, field)
            if most is not None:
                behind = "" if field == "max_rank" else ", without those of length 1 in front"
                answers.append((rank <= most, f"{code} of rank {rank}, {most} is the most{behind}"))
        if claim.max_version is not None:
            newest = claim.max_version
            answers.append((use.version <= newest, f"{code} of version {use.version}, {newest} is the newest"))
        return answers
