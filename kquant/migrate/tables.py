"""What the two TOML files of this room say, checked once and frozen."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Value = bool | int | float | str


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Ramp(_Table):
    """A function that is `clip(scale * x + offset, 0, highest)`."""

    scale: float
    offset: float
    highest: float


class Layers(_Table):
    """`layers.toml`: how the configuration of a layer differs.

    Attributes:
        classes: name of a class in Keras 2 -> in Keras 3.
        gone: name of a class in Keras 2 that Keras 3 does not have -> what to know of it.
        dropped: argument -> classes that lose it; under "all" the arguments that every class loses.
        renamed: class -> argument -> its name in Keras 3.
        expected: argument -> the only value with which it may be left out.
        weights: class -> weight -> its name in Keras 3.
        left: "weights" -> names of weights that need no place in Keras 3.
        other_values: activation -> what Keras 2 computes under that name.
    """

    classes: Mapping[str, str]
    gone: Mapping[str, str]
    dropped: Mapping[str, list[str]]
    renamed: Mapping[str, Mapping[str, str]]
    expected: Mapping[str, Value]
    weights: Mapping[str, Mapping[str, str]]
    left: Mapping[str, list[str]]
    other_values: Mapping[str, Ramp]


class Operation(_Table):
    """An entry of `operations.toml`: a function of TensorFlow in `keras.ops`.

    Attributes:
        ops: name in `keras.ops`.
        parameters: in TensorFlow's order, by the names of `keras.ops`; see the file for the signs.
        names: TensorFlow's name of a parameter -> that of `keras.ops`.
        nulls: parameter -> what null stands for.
    """

    ops: str
    parameters: list[str]
    names: Mapping[str, str] = Field(default_factory=dict)
    nulls: Mapping[str, Value] = Field(default_factory=dict)


@cache
def layers() -> Layers:
    """The table of layers."""
    return Layers.model_validate(_read("layers.toml"))


@cache
def operations() -> Mapping[str, Operation]:
    """TensorFlow's name -> the operation.

    Example:
        >>> operations()["math.truediv"].ops
        'true_divide'
    """
    return {name: Operation.model_validate(entry) for name, entry in _read("operations.toml").items()}


def _read(name: str) -> dict[str, dict[str, Any]]:
    return tomllib.loads((resources.files("kquant.migrate") / name).read_text(encoding="utf-8"))
