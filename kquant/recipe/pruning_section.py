"""The `[pruning]` section of a recipe: what `kquant.prune` is asked for, as data."""

from __future__ import annotations

from numbers import Integral
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BeforeValidator, Field, model_validator

from kquant.recipe.section import Section


def structure_name(given: Any) -> Any:
    """A block size as tfmot gives it, (inputs, outputs), by kquant's name; everything else as it is.

    Example:
        >>> structure_name((4, 1)), structure_name("2:4")
        ('4x1', '2:4')
    """
    sizes: list[Any] = [*given] if isinstance(given, list | tuple) else []
    # True is an Integral to Python
    if len(sizes) == 2 and all(not isinstance(n, bool) and isinstance(n, Integral) for n in sizes):
        return f"{sizes[0]}x{sizes[1]}"
    return cast("Any", given)


class Pruning(Section):
    """How kernels are pruned; the arguments of `kquant.prune` and `kquant.SparsitySchedule` by the same names.

    `schedule` "constant" has `sparsity` from the call on, "polynomial" comes from `initial` at step `begin` to
    `sparsity` at step `end`.
    """

    key: ClassVar[str] = "pruning"
    place: ClassVar[int] = 1

    sparsity: float = Field(default=0.5, ge=0.0, lt=1.0)
    schedule: Literal["constant", "polynomial"] = "constant"
    initial: float = Field(default=0.0, ge=0.0, lt=1.0)
    begin: int = Field(default=0, ge=0)
    end: int | None = Field(default=None, ge=0)
    power: float = Field(default=3.0, gt=0.0)
    frequency: int = Field(default=10, ge=1)
    structure: Annotated[str, BeforeValidator(structure_name)] = Field(
        default="unstructured", pattern=r"^(unstructured|[1-9]\d*x[1-9]\d*|[1-9]\d*:[1-9]\d*)$"
    )
    pooling: Literal["mean", "max"] = "mean"
    scope: Literal["layer", "global"] = "layer"
    criterion: Literal["magnitude", "movement"] = "magnitude"
    gradient: Literal["straight-through", "masked"] = "straight-through"
    depthwise: bool = False
    entropy: float = Field(default=0.0, ge=0.0)
    target_bytes: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _ramp_has_an_end(self) -> Pruning:
        if self.schedule == "polynomial" and self.end is None:
            raise ValueError("schedule 'polynomial' needs `end`, the training step at which `sparsity` is reached")
        return self
