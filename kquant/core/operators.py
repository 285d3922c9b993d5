"""TFLite's operators as data: `operators.toml` says what is so of each, on every target.

    facts("TRANSPOSE_CONV").data        # 2: what it computes from is its third input
    facts("PAD").time                   # "pad": which function of `tflite.timeline` moves it along time

A new operator is an entry there, a row in the files of the targets that run it, and a rule; arithmetic where it rounds
in its own way. Code that is about one operator (its lowering, its kernel) names it; what several operators share is a
field here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kquant.core.fact_tables import parsed, shipped
from kquant.core.messages import did_you_mean

FILE = "operators.toml"
Multiplies = Literal["output", "data", "rows", "steps"]
Unit = Literal["largest", "first", "product", "square", "weights"]
# fmt: off
Along = Literal[
    "local", "last_axis", "reduce", "window", "matmul", "concatenation", "gather",
    "reshape", "transpose", "pad", "slice", "strided", "resize",
]
# fmt: on
_Numbers = Annotated[tuple[int, ...], Field(strict=False)]
# Keys of TOML are texts, those of Python numbers.
_Rows = Annotated[Mapping[Annotated[int, Field(strict=False)], Any], AfterValidator(MappingProxyType)]


class OperatorFacts(BaseModel):
    """What is so of one operator.

    Attributes:
        options: its table of options in the schema; None: its own name in camel case; "": it has none.
        flexible: an operator outside of the schema, whose options are a map in the form of FlexBuffers.
        of_litert: likewise outside of the schema, and LiteRT registers it as TFLM does.
        in_float: computes with floats, whatever the rest of a file does.
        resolver: TFLM registers it by a method of this name, behind `Add`; None: its own name in camel case; "": TFLM
            has none.
        data: number of the input that it computes from, beside weights.
        weights: numbers of the inputs that are weights.
        bias: number of the input that is its bias, of int32 sums; None where it takes none.
        channel_axis: axis of the output channels in its weights.
        unit: what one unit of its integers is worth: the "largest" scale that it reads, the "first", their "product",
            the largest as a "square", or input times "weights"; see `core.rescale`.
        multiplies: how often it multiplies with each weight: once for each number of the "output" that its channel has,
            for each position of the "data", for each of the "rows" of a product of two tensors, for each of the "steps"
            of a sequence. None: it sums no products.
        reads_tables: TFLM's kernel reads its weights when it runs, so that a DECODE may have written them.
        densified: outputs behind a DENSIFY were compared with those of dense weights, see docs/bytes.md.
        time: how it moves along time, of the functions in `tflite.timeline`; "local": element by element. None: it
            cannot be streamed.
        keeps_zero: gives zeros for zeros, whatever its settings: padding stays padding behind it.
        moves_frames: it does nothing in a stream where it leaves the shape of a block as it is.
        size_at: number of the input that tells its output's size.
        any_rank: computes the same with one axis of length 1 more in front of the last one; "local" ones do.
        axis_rows: number of an input with one row for each axis -> the row of a further axis of length 1.
        moves_indices: takes int32 as it takes codes.
        remembers: keeps numbers from call to call, until the interpreter is reset, where no tensor of the file tells.
        rearranges: gives each number that it reads once, in another shape or order.
        as_function: TensorFlow has a kernel of it for graphs that differs in the last bit from that of an operation
            which runs alone.
        unlisted: targets do not list it, as no layer becomes one.
        since: the release of TensorFlow Lite that first had each of its versions, from 1 on; empty where unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    options: str | None = None
    flexible: bool = False
    of_litert: bool = False
    in_float: bool = False
    resolver: str | None = None
    data: int = 0
    weights: _Numbers = ()
    bias: int | None = None
    channel_axis: int = 0
    unit: Unit = "largest"
    multiplies: Multiplies | None = None
    reads_tables: bool = False
    densified: bool = False
    time: Along | None = None
    keeps_zero: bool = False
    moves_frames: bool = False
    size_at: int | None = None
    any_rank: bool = False
    axis_rows: _Rows = Field(default_factory=dict, validate_default=True)
    moves_indices: bool = False
    remembers: bool = False
    rearranges: bool = False
    as_function: bool = False
    unlisted: bool = False
    since: tuple[str, ...] = Field(default=(), strict=False)

    def options_of(self, code: str) -> str | None:
        """Name of the table of options of the operator with this code; None where it has none.

        Example:
            >>> facts("ADD").options_of("ADD"), facts("MEAN").options_of("MEAN"), facts("TANH").options_of("TANH")
            ('AddOptions', 'ReducerOptions', None)
        """
        # three cases: a name of another operator's table, none ("": no options), or by default its own in camel case
        named = "".join(part.capitalize() for part in code.split("_")) + "Options"
        return named if self.options is None else self.options or None

    def resolver_of(self, code: str) -> str | None:
        """The method by which TFLM registers the operator with this code; None where TFLM has none.

        Example:
            >>> facts("CONV_2D").resolver_of("CONV_2D"), facts("TILE").resolver_of("TILE")
            ('AddConv2D', None)
        """
        named = "".join(part if part[0].isdigit() else part.capitalize() for part in code.split("_"))
        named = named if self.resolver is None else self.resolver
        return f"Add{named}" if named else None


def parse(text: str) -> Mapping[str, OperatorFacts]:
    """Check the text of an operator table.

    Raises:
        ValueError: see `kquant.core.fact_tables.parsed`.
    """
    return parsed(text, FILE, OperatorFacts)


OPERATORS = shipped(FILE, OperatorFacts)
# For operators of foreign files: nothing in particular is known of them.
_UNKNOWN = OperatorFacts()


def check_operator(said: str, code: str) -> None:
    """Refuse an operator that the table does not have, and that could not be written.

    Raises:
        ValueError: naming the nearest one.

    Example:
        >>> check_operator("MyRule", "CONV2D")
        Traceback (most recent call last):
        ValueError: MyRule: TFLite has no operator 'CONV2D', or kquant does not know it. Did you mean 'CONV_2D'?
    """
    if code not in OPERATORS:
        hint = did_you_mean(code, OPERATORS)
        raise ValueError(f"{said}: TFLite has no operator {code!r}, or kquant does not know it.{hint}")


def facts(code: str) -> OperatorFacts:
    """What is so of an operator, by its schema name; nothing in particular of one that stands in a foreign file.

    Example:
        >>> facts("CONV_2D").weights, facts("FULLY_CONNECTED").time, facts("CUSTOM").weights
        ((1,), 'last_axis', ())
    """
    return OPERATORS.get(code, _UNKNOWN)
