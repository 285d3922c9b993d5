"""Where the operators of a file run on a target with an accelerator: what `kquant.check` tells of it, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Place = Literal["accelerator", "processor", "both", "unknown"]


@dataclass(frozen=True)
class PlacedLayer:
    """One layer.

    Attributes:
        layer: its name.
        operators: those that it becomes, in order.
        place: "accelerator" where it runs all of them, "processor" where it runs none, "both", or "unknown".
        parts: numbers of the accelerator's parts of the graph that hold its operators.
        reason: what the accelerator does not take, or what is not known; empty where it takes all.
    """

    layer: str
    operators: tuple[str, ...]
    place: Place
    parts: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Change:
    """A change of the model or the recipe that was tried.

    Attributes:
        layers: that it changes.
        what: in words, to be done by hand.
        same_function: the float model computes the same; else it has to be trained again.
        parts: into how many the graph falls then, the changes of the cuts before done as well.
        on_accelerator, operators: how many of its operators run on the accelerator then, of how many.
    """

    layers: tuple[str, ...]
    what: str
    same_function: bool
    parts: int
    on_accelerator: int
    operators: int


@dataclass(frozen=True)
class Cut:
    """Layers that part what the accelerator takes.

    Attributes:
        layers: of one class, and parted by the same operators.
        kind: the class.
        reason: what the accelerator does not take.
        change: that joins the graph there, tried; None where none is known.
    """

    layers: tuple[str, ...]
    kind: str
    reason: str
    change: Change | None = None


@dataclass(frozen=True)
class Placement:
    """Where the operators of a file run.

    Attributes:
        accelerator: in words.
        source: what said so: the target's file, or its compiler, which was run.
        layers: in the order in which they run; only of the outermost graph, as a loop is one operator.
        cuts: how the accelerator's table is read, see `kquant.targets.accelerator.Accelerator`.
        parts: parts of the graph that the accelerator takes.
        parts_if_left: the same where all that is unknown is left to the processor.
        most: of them that it runs; None: all.
        on_accelerator, unknown, operators: how many operators it runs, of how many that is not known, and how many
            there are; `on_accelerator` counts no unknown ones.
        cut_by: layers that part the graph.
        limits: further ones of operators that it takes, which nobody here can see.
        needs: the first release of TensorFlow Lite that has all versions of the operators; empty where unknown.
    """

    accelerator: str
    source: str
    layers: tuple[PlacedLayer, ...]
    cuts: Literal["graph", "rest", "nothing"]
    parts: int
    parts_if_left: int
    most: int | None
    on_accelerator: int
    unknown: int
    operators: int
    cut_by: tuple[Cut, ...] = ()
    limits: tuple[str, ...] = ()
    needs: str = ""
