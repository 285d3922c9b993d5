"""What the raw outputs of a detector mean, and which boxes are wanted of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from kquant.core.checks import check_count

Form = Literal["offsets", "corners", "centres", "distances", "sigmoid", "squares", "distribution"]
Order = Literal["yx", "xy"]
MOST_CANDIDATES = 65_535
MOST_BINS = 64  # sums of weights and of their products with bins fit into 32 bits
MOST_ANCHOR = 2.0  # an anchor is stored as int16 in steps of 2^-14


@dataclass(frozen=True, eq=False)
class Detection:
    """How boxes and scores of a detector are read, and what is chosen of them.

    Coordinates are parts of the image's height and width: 0 is the top or left edge, 1 the bottom or right.

    Attributes:
        boxes, scores: names of the outputs, `[rows, 4]` and `[rows, classes]`, or their numbers.
        objectness: likewise, `[rows, 1]`: how sure a row is that there is anything, which its scores are multiplied by
            (YOLOv5, YOLOX). None without. What is one output's to several of the three has them side by side in its
            last axis, boxes first, then objectness, then scores: `[rows, 5 + classes]` for YOLOv5.
        form: what four numbers of a row are:
            "offsets" from anchors: `centre = anchor_centre + anchor_size * t / s`, `size = anchor_size * exp(t / s)`,
            centre before size (SSD, RetinaNet, Faster R-CNN), `s` being `scales`;
            "distances" from anchors: from their centres to the four edges, times `anchor_size / s` (FCOS, YOLOv8);
            "corners": two opposite ones, `t / s`; "centres": centre and size, `t / s`;
            "sigmoid" from anchors and cells: `centre = anchor_centre + cell * (2 sigmoid(t / s) - 1)`,
            `size = anchor_size * (2 sigmoid(t / s))^2` (YOLOv5, YOLOv7); "squares": the same of a head that ends in a
            sigmoid, `t / s` in its place;
            "distribution" from anchors: `bins` numbers for each edge, whose softmax says how likely its distance from
            the centre is 0, 1, 2 ... times `anchor_size`; the mean counts (Li et al. 2020, YOLOv8). A row has
            `4 * bins` numbers, those of an edge together, and `scales` stay ones.
        order: "yx" where height comes before width (TensorFlow), "xy" else (YOLO).
        anchors: `[rows, 4]`, centre and size of each in parts of the image, in `order`; none for "corners" and
            "centres". Where a cell has several, its centre is that of each.
        cells: `[rows, 2]`, the size of each row's cell in parts of the image, in `order`: by "sigmoid" and "squares".
        bins: of each edge, by "distribution".
        scales: what the four numbers are divided by. SSD's variances 0.1 and 0.2 are scales of 10 and 5.
        background: class 0 is none of the classes.
        threshold: the lowest score that is kept.
        overlap: a box goes where a better one overlaps it by more (intersection over union).
        limit: how many boxes at most.
        candidates: how many of the best scores are looked at, before boxes that overlap go.
        by_class: boxes of different classes do not exclude each other, and a row may give several; else each row
            counts for its best class.

    Example:
        >>> Detection(form="corners", threshold=0.4).limit
        10
    """

    boxes: str | int = "boxes"
    scores: str | int = "scores"
    objectness: str | int | None = None
    form: Form = "offsets"
    order: Order = "yx"
    anchors: Any = field(default=None, repr=False)
    cells: Any = field(default=None, repr=False)
    bins: int = 16
    scales: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    background: bool = False
    threshold: float = 0.5
    overlap: float = 0.5
    limit: int = 10
    candidates: int = 100
    by_class: bool = True

    def __post_init__(self) -> None:
        for name, kinds in (("form", Form), ("order", Order)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(
                    f"Detection: {name} must be one of {', '.join(get_args(kinds))}. Received: {getattr(self, name)!r}."
                )
        for name in ("boxes", "scores", "objectness"):
            given = getattr(self, name)
            absent = name == "objectness" and given is None
            if not absent and (isinstance(given, bool) or not isinstance(given, str | int)):
                raise TypeError(f"Detection: {name} is an output's name or number. Received: {given!r}.")
        scales = _numbers("scales", self.scales)
        if scales.shape != (4,) or not np.all(np.isfinite(scales)) or np.any(scales <= 0):
            raise ValueError(f"Detection: scales must be four numbers above 0. Received: {self.scales!r}.")
        for name in ("threshold", "overlap"):
            _numbers(name, getattr(self, name))
        for name in ("limit", "candidates", "bins"):
            check_count("Detection", name, getattr(self, name))
        if not 0.0 <= self.overlap <= 1.0 or not np.isfinite(self.threshold):
            raise ValueError(
                "Detection: overlap must lie in 0..1 and threshold be a number. Received: "
                f"overlap={self.overlap!r}, threshold={self.threshold!r}."
            )
        if not self.limit <= self.candidates <= MOST_CANDIDATES:
            raise ValueError(
                f"Detection: limit <= candidates <= {MOST_CANDIDATES} is wanted. Received: "
                f"limit={self.limit!r}, candidates={self.candidates!r}."
            )
        self._check_bins(scales)
        self._check_parts("anchors", 4, self.has_anchors)
        self._check_parts("cells", 2, self.has_cells)
        if self.has_cells and len(self.anchors) != len(self.cells):
            raise ValueError(
                f"Detection: an anchor is of one cell. Received: {len(self.anchors)} anchors, {len(self.cells)} cells."
            )

    def _check_bins(self, scales: np.ndarray) -> None:
        if not self.has_bins:
            return
        if not 2 <= self.bins <= MOST_BINS:
            raise ValueError(f"Detection: bins must lie in 2..{MOST_BINS}. Received: {self.bins}.")
        if np.any(scales != 1.0):
            raise ValueError(
                f"Detection: form '{self.form}' has scales of 1: a distance is a number of anchors' sizes; divide the "
                f"sizes. Received: {self.scales!r}."
            )

    def _check_parts(self, name: str, columns: int, wanted: bool) -> None:
        """Anchors or cells: the last two of their columns are sizes."""
        given = getattr(self, name)
        if wanted == (given is None):
            own = "forms 'corners' and 'centres' have none"
            wants = f"wants {name}, [rows, {columns}]; {own}" if wanted else f"has no {name}; leave them out"
            raise ValueError(f"Detection: form '{self.form}' {wants}.")
        if given is None:
            return
        parts = _numbers(name, given)
        if parts.ndim != 2 or parts.shape[1] != columns or not len(parts):
            raise ValueError(f"Detection: {name} must be numbers [rows, {columns}]. Received: shape {parts.shape}.")
        if not np.all(np.isfinite(parts)):
            row = int(np.argmin(np.isfinite(parts).all(axis=1)))
            raise ValueError(f"Detection: {name} must be finite. Received: row {row} is {parts[row].tolist()}.")
        worst = int(np.argmax(np.max(np.abs(parts), axis=1)))
        if np.max(np.abs(parts)) >= MOST_ANCHOR or np.any(parts[:, -2:] <= 0):
            raise ValueError(
                f"Detection: {name} are parts of the image, smaller than 2, sizes above 0; pixels are divided by the "
                f"image's height and width first. Received: row {worst} is {parts[worst].tolist()}."
            )
        object.__setattr__(self, name, parts)  # frozen: the array that was checked is the one that is used

    @property
    def has_anchors(self) -> bool:
        """True for the forms that are relative to anchors."""
        return self.form not in ("corners", "centres")

    @property
    def has_cells(self) -> bool:
        """True for the forms whose centres move by the size of a cell, not of an anchor."""
        return self.form in ("sigmoid", "squares")

    @property
    def has_bins(self) -> bool:
        """True for the form with several numbers for each edge."""
        return self.form == "distribution"

    @property
    def box_numbers(self) -> int:
        """How many numbers of a row are its box."""
        return 4 * self.bins if self.has_bins else 4


def _numbers(name: str, given: Any) -> np.ndarray:
    try:
        return np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"Detection: {name} must be numbers. Received: {given!r}.") from None


@dataclass(frozen=True, eq=False)
class Found:
    """The boxes of one sample, the best first.

    Attributes:
        boxes: float32 `[n, 4]`: top, left, bottom, right in parts of the image; a part of a box may lie outside it.
        scores: float32 `[n]`.
        classes: int64 `[n]`.
        rows: int64 `[n]`, of the raw outputs that they come from.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        said = [f"class {c} {s:.2f}" for c, s in zip(self.classes, self.scores, strict=True)]
        return f"Found({', '.join(said[:5])}{', ...' if len(said) > 5 else ''})"
