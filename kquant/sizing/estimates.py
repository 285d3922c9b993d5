"""What `kquant.estimate` returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kquant.core.messages import first_of
from kquant.core.result import Result
from kquant.prepare.forecast import LayerCheck


@dataclass(frozen=True)
class LayerSize:
    """What one layer takes.

    Attributes:
        layer: its name.
        operators: those that it becomes, code -> count.
        macs: multiply-accumulates for one sample.
        flash_bytes: of what the file stores for it: weights, biases, axes. Its scales and names come on top.
        alive_bytes: of all tensors that lie in memory while it runs, its own and those that wait for others; where that
            is most.
    """

    layer: str
    operators: dict[str, int]
    macs: int
    flash_bytes: int
    alive_bytes: int


@dataclass(frozen=True, repr=False)
class Estimate(Result):
    """What a model will take on a target.

    Attributes:
        model, target, recipe: names.
        flash_bytes: of the file, which a microcontroller reads where it lies; None where some layer cannot run.
        stored_bytes: of it, tensors.
        arena_bytes: the smallest in which TensorFlow Lite Micro prepares the file on a 64-bit host (a 32-bit device
            needs a little less); None where it does not run the file, or some layer cannot run.
        reserve_bytes: what a program should give TensorFlow Lite Micro, as the projects of `kquant.bundle` do, and what
            a budget is held against: those, and a margin for kernels that are made for a device (CMSIS-NN, ESP-NN).
            None where `arena_bytes` is.
        arena_is_forecast: it is kquant's own figure, since the `micro` extra is missing.
        activation_bytes: of the tensors that lie in memory together, where that is most; most of the arena.
        peak_layer: the layer that runs then.
        macs: multiply-accumulates for one sample.
        operators: code -> count.
        layers: in the order in which they run.
        refused: layers that would not run, each with the remedy.
        channels_left_out: that no output depends on, as weights and the batch norms of a trained model tell.
        flash_limit, arena_limit: what there is; None where nobody said.
    """

    model: str
    target: str
    recipe: str
    flash_bytes: int | None
    stored_bytes: int
    arena_bytes: int | None
    arena_is_forecast: bool
    activation_bytes: int
    peak_layer: str
    macs: int
    operators: dict[str, int]
    layers: tuple[LayerSize, ...]
    refused: tuple[LayerCheck, ...] = ()
    flash_limit: int | None = None
    arena_limit: int | None = None
    channels_left_out: int = 0
    reserve_bytes: int | None = None

    @property
    def over(self) -> dict[str, int]:
        """By how many bytes it is too large: "flash", "arena"; empty where it fits or nothing was asked."""
        pairs = {"flash": (self.flash_bytes, self.flash_limit), "arena": (self.reserve_bytes, self.arena_limit)}
        return {
            name: needs - limit
            for name, (needs, limit) in pairs.items()
            if needs is not None and limit is not None and needs > limit
        }

    @property
    def ok(self) -> bool:
        """True where every layer runs, and all of it fits."""
        return not self.refused and not self.over

    def __repr__(self) -> str:
        where = f"{self.model!r} on {self.target}, {self.recipe}"
        if self.refused:
            return f"Estimate({where}: {first_of(row.layer for row in self.refused)} would not run)"
        arena = "no" if self.arena_bytes is None else f"{self.arena_bytes:,} (reserve {self.reserve_bytes:,})"
        return f"Estimate({where}: flash {self.flash_bytes:,}, arena {arena} bytes, {self.macs:,} MACs)"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "over": self.over, "ok": self.ok}
