"""What a recipe says of training: the table `[training]`, and what of it the layers keep.

ranges = "moving"    activations: moving averages of the batches' extremes; weights: as the weights are, or as an
                     observer or a correction chose
         "fixed"     activations: as calibrated
         "learned"   both by gradient: LSQ and LSQ+
         "pact"      activations: the ends learn from clipped values alone
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Refuses unknown keys and values of another type (an int is a float, numpy's numbers are); does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _from_numpy(cls, given: Any) -> Any:
        return plain(cast("dict[str, Any]", given)) if isinstance(given, dict) else given


def plain(given: dict[str, Any]) -> dict[str, Any]:
    """Python's numbers in place of numpy's.

    Example:
        >>> plain({"bits": np.int64(4)})
        {'bits': 4}
    """
    # np.int64(4) is no int to a strict field; numbers that NumPy made are meant as numbers
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in given.items()}


class Progressive(Strict):
    """Training starts at a wider grid: `bits = max(recipe's, start - floor(t (start - recipe's) / steps))`."""

    start: int = Field(default=8, ge=3, le=8, alias="from")
    steps: int = Field(ge=1)


class Oscillations(Strict):
    """What is done about weights that jump between two codes: see `layers.oscillations`.

    Attributes:
        dampen: weight of the loss that pulls weights to the middle of their step; 0: none.
        dampen_steps: it rises to that weight over so many training steps, by half a cosine; None: at once.
        freeze: frequency of oscillation above which a weight is frozen; None: none is.
        momentum: of the moving frequency.
    """

    dampen: float = Field(default=0.0, ge=0.0)
    dampen_steps: int | None = Field(default=None, ge=1)
    freeze: float | None = Field(default=None, gt=0.0, lt=1.0)
    momentum: float = Field(default=0.01, gt=0.0, lt=1.0)

    @model_validator(mode="after")
    def _reachable(self) -> Oscillations:
        if self.freeze is not None and self.freeze <= self.momentum:
            raise ValueError(
                f"freeze must be above momentum ({self.momentum}), or the first jump of a weight freezes it; 2 to 3 "
                "times the momentum and more is usual"
            )
        return self


class Robust(Strict):
    """A grid drawn at every training step, so that one model holds on all of them: see `layers.drawn_grids`.

    Attributes:
        bits: of kernels, drawn from these.
        per_tensor: one scale for the whole kernel in half of the steps, however many the recipe has.
        shift: of a step, by how much the rounding of activations is moved at most: runtimes round otherwise.
        seed: of the draws.
    """

    bits: tuple[Annotated[int, Field(ge=2, le=8)], ...] = Field(default=(8, 4), strict=False, min_length=1)
    per_tensor: bool = True
    shift: float = Field(default=1 / 16, ge=0.0, le=0.5)
    seed: int = Field(default=0, ge=0, lt=1 << 31)


class Training(Strict):
    """How a quantized model trains.

    Attributes:
        momentum: of moving ranges.
        freeze_ranges_after: training steps after which ranges stay.
        ranges: see the top of this file.
        range_rate: learning rate of learned ranges, in units of the optimizer's, relative to the range.
        range_penalty: "pact": weight of the squared ends, relative to the largest value of the batch.
        progressive: wider grids at first.
        robust: another grid at every step.
        oscillations: of weights.
        entropy: what a KiB of the kernels' codes costs, added to the loss; frequent codes get more frequent, so that
            Huffman codes are short. 0: nothing.
        batch_norm: "live": batch norms behind a layer with weights normalise by the batch while the model trains.
        freeze_batch_norm_after: training steps after which they use their moving statistics.
    """

    momentum: float = Field(default=0.99, gt=0.0, lt=1.0)
    freeze_ranges_after: int | None = Field(default=None, ge=0)
    ranges: Literal["moving", "fixed", "learned", "pact"] = "moving"
    range_rate: float = Field(default=1.0, gt=0.0)
    range_penalty: float = Field(default=1e-4, ge=0.0)
    progressive: Progressive | None = None
    robust: Robust | None = None
    oscillations: Oscillations = Oscillations()
    entropy: float = Field(default=0.0, ge=0.0)
    batch_norm: Literal["folded", "live"] = "folded"
    freeze_batch_norm_after: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_grid_at_a_time(self) -> Training:
        others = {
            "progressive": self.progressive is not None,
            "ranges = 'learned'": self.learns_weights,
            "oscillations.freeze": self.oscillations.freeze is not None,
            "entropy": self.entropy > 0.0,
        }
        beside = [key for key, asked in others.items() if asked and self.robust is not None]
        if beside:
            raise ValueError(
                f"robust draws a grid at every step, and {beside[0]} counts on one that stays. Take one of the two"
            )
        return self

    @property
    def learns_weights(self) -> bool:
        """True where the ranges of weights have gradients."""
        return self.ranges == "learned"

    @property
    def learns_tensors(self) -> bool:
        """True where the ranges of activations have gradients."""
        return self.ranges in ("learned", "pact")

    def for_weights(self) -> dict[str, Any]:
        """What differs from plain training of weights, as a layer's config."""
        kept = {"ranges", "range_rate", "progressive", "robust", "oscillations", "freeze_ranges_after", "entropy"}
        draws = self.progressive or self.robust
        asked = self.learns_weights or draws or self.oscillations != Oscillations() or self.entropy
        return self._plain(kept) if asked else {}

    def for_tensors(self) -> dict[str, Any]:
        """What differs from moving ranges, as a layer's config."""
        kept = {"ranges", "range_rate", "range_penalty", "progressive"}
        shifts = self.robust is not None and self.robust.shift > 0.0
        asked = self.learns_tensors or self.progressive or shifts
        return self._plain(kept | {"robust"} if shifts else kept) if asked else {}

    def _plain(self, kept: set[str]) -> dict[str, Any]:
        # what is so by default stays out: configs of layers are saved, and most say nothing of training
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=kept)


class Grids(NamedTuple):
    """What a recipe may make of kernels, and of activations.

    Attributes:
        bits: widths of kernels.
        per_axis: some kernels have a scale for each channel.
        codes: some are integers times a scale of their channel, or of the kernel.
        activations: they have grids.
    """

    bits: Collection[int]
    per_axis: bool
    codes: bool
    activations: bool


def idle(tables: Sequence[Mapping[str, Any]], bits: int, grids: Grids | None = None) -> str:
    """What a recipe asks of training that nothing in it could carry out; "" where all may act.

    Args:
        tables: `[training]`, whole, and what rules change of it.
        bits: the narrowest grid of the recipe.
        grids: of the recipe; None: not known, they may be any.

    Example:
        >>> idle([Training(range_rate=0.1).model_dump()], 8)
        "training.range_rate does nothing without ranges = 'learned' or 'pact'"
    """
    default = Training().model_dump()
    # a rule may be the only one that learns, and [training] say how fast
    ways = {table["ranges"] for table in tables if "ranges" in table}
    turns = [Oscillations.model_validate(table["oscillations"]) for table in tables if table.get("oscillations")]
    starts = [table["progressive"] for table in tables if table.get("progressive")]
    needs = {
        "range_rate": (bool(ways & {"learned", "pact"}), "without ranges = 'learned' or 'pact'"),
        "range_penalty": ("pact" in ways, "without ranges = 'pact'"),
        "freeze_ranges_after": (ways != {"fixed"}, "with ranges = 'fixed', which stay from the first step on"),
        "freeze_batch_norm_after": (tables[0]["batch_norm"] == "live", "without batch_norm = 'live'"),
    }
    for key, (acts, why) in needs.items():
        if not acts and any(table.get(key, default[key]) != default[key] for table in tables):
            return f"training.{key} does nothing {why}"
    if any(turn.dampen_steps for turn in turns) and not any(turn.dampen for turn in turns):
        return "training.oscillations.dampen_steps does nothing without dampen"
    if starts and max(Progressive.model_validate(start).start for start in starts) <= bits:
        return f"training.progressive does nothing: from must be above the width that training ends at, {bits} bits"
    draws = [Robust.model_validate(table["robust"]) for table in tables if table.get("robust") is not None]
    if draws and grids is not None and not any(_draws_another(robust, grids) for robust in draws):
        return (
            "training.robust does nothing: all it draws is the grid that weights have anyway, and no activation shifts"
        )
    return ""


def _draws_another(robust: Robust, grids: Grids) -> bool:
    merges = robust.per_tensor and grids.per_axis
    others = merges or any({bits} != set(robust.bits) for bits in grids.bits)
    return (grids.activations and robust.shift > 0.0) or (grids.codes and others)
