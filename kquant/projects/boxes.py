"""Boxes of a detector, as the C of a project chooses them: numbers and tables, and what it must find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kquant.detecting.choice import chosen, limit_of
from kquant.detecting.columns import Roles
from kquant.detecting.decoding import ANCHOR, FROM_CENTRES, HIGH, LOW, ONE, WITH_SIZES
from kquant.detecting.outputs import Grids, grids_of
from kquant.detecting.spec import Detection
from kquant.projects.golden import Golden
from kquant.tflite.reader import FileTensor

PER_LINE = 8


@dataclass(frozen=True)
class Box:
    """A box that the golden outputs of one call hold: corners in steps of 2^-16, the steps of its score."""

    top: int
    left: int
    bottom: int
    right: int
    score: int
    label: int
    row: int


@dataclass(frozen=True)
class Read:
    """An output that is read.

    Attributes:
        name: of the pointer to its codes.
        output: its number.
        holds: what it has, in words.
    """

    name: str
    output: int
    holds: str


@dataclass(frozen=True)
class Boxes:
    """How boxes are chosen, in the words of `Detection` and `Decoder`.

    Attributes:
        read: the outputs, in the order in which they are given.
        roles: where in them boxes, scores and objectness are.
        zeros: zero points of scores and objectness.
        unit, zero: a score is `unit * (steps - zero)`.
        order: which of two numbers comes first.
        first: the first class that counts.
        tables: lines of C, each distinct table once.
        picks: which of the four numbers uses which.
        entries: of a table.
        shift, low: of a code.
        anchors: lines of C; none without anchors.
        columns: of an anchor: 4, or 6 with the size of its cell.
        bins: numbers of each edge, 1 where a number is one.
        from_centres: from an anchor's centre to the edges.
        with_sizes: a centre and a size.
        lowest: steps of the lowest score that counts.
        overlap: in parts of 2^-16.
        limit, candidates, by_class: see `Detection`.
        one, anchor: bits behind the points of coordinates and anchors.
        edges: where a corner is cut off.
        calls: the boxes of each golden call.
    """

    read: tuple[Read, ...]
    roles: Roles
    zeros: tuple[int, int]
    unit: float
    zero: int
    order: str
    first: int
    tables: tuple[tuple[str, ...], ...]
    picks: tuple[int, ...]
    entries: int
    shift: int
    low: int
    anchors: tuple[str, ...]
    columns: int
    bins: int
    from_centres: bool
    with_sizes: bool
    lowest: int
    overlap: int
    limit: int
    candidates: int
    by_class: bool
    one: int
    anchor: int
    edges: tuple[int, int]
    calls: tuple[tuple[Box, ...], ...]

    @property
    def flash_bytes(self) -> int:
        """Of tables and anchors."""
        return 4 * self.entries * len(self.tables) + (2 * self.columns * self.roles.rows if self.anchors else 0)


def boxes_of(detection: Detection, outputs: Mapping[str, FileTensor], golden: Golden) -> Boxes:
    """For a file, and what its golden outputs hold.

    Args:
        detection: what the outputs mean.
        outputs: of the file, in its order.
        golden: of the file.

    Raises:
        ValueError: see `grids_of`.
    """
    grids = grids_of(detection, outputs, "bundle")
    made, roles = grids.decoder, grids.roles
    return Boxes(
        read=tuple(_read(roles, output) for output in roles.outputs),
        roles=roles,
        zeros=grids.zeros,
        unit=grids.unit,
        zero=grids.zero,
        order=detection.order,
        first=int(detection.background),
        tables=tuple(_lines(table) for table in made.tables),
        picks=made.picks,
        entries=len(made.tables[0]),
        shift=made.shift,
        low=made.low,
        anchors=() if made.anchors is None else _lines(made.anchors.ravel()),
        columns=0 if made.anchors is None else made.anchors.shape[1],
        bins=made.bins,
        from_centres=detection.form in FROM_CENTRES,
        with_sizes=detection.form in WITH_SIZES,
        lowest=grids.lowest,
        overlap=limit_of(detection),
        limit=detection.limit,
        candidates=detection.candidates,
        by_class=detection.by_class,
        one=ONE,
        anchor=ANCHOR,
        edges=(LOW, HIGH),
        calls=tuple(_found(detection, grids, golden, n) for n in range(golden.calls)),
    )


def _read(roles: Roles, output: int) -> Read:
    has = [role for role, columns in roles.parts.items() if columns.output == output]
    return Read(has[0], output, ", then ".join(has))


def _found(detection: Detection, grids: Grids, golden: Golden, call: int) -> tuple[Box, ...]:
    boxes, codes, objectness = grids.roles.split([golden.outputs[n][call] for n in grids.roles.outputs])
    corners, scores = grids.decoder.corners(boxes), grids.steps(codes, objectness)
    cells = zip(*chosen(detection, corners, scores, grids.lowest), strict=True)
    return tuple(_box(corners[r].tolist(), int(scores[r, c]), int(c), int(r)) for r, c in cells)


def _box(corners: list[int], score: int, label: int, row: int) -> Box:
    top, left, bottom, right = corners
    return Box(top, left, bottom, right, score, label, row)


def _lines(numbers: np.ndarray) -> tuple[str, ...]:
    words = [str(int(n)) for n in numbers]
    return tuple(", ".join(words[i : i + PER_LINE]) + "," for i in range(0, len(words), PER_LINE))
