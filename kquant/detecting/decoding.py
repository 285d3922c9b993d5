"""Codes -> corners in integers, by tables: an exponential of a code needs no floats on the device.

An 8-bit code has 256 values, so that `t / s`, `exp(t / s)` and curves of a sigmoid are tables of int32 in steps of
2^-16. For 16 bits the table has every 128th code, and what lies between is interpolated, as TFLM's tables of 16 bits
are. Anchors are int16 in steps of 2^-14: a hundredth of a pixel in an image of 160.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kquant.detecting.spec import Detection

ONE = 16  # bits behind the point of a coordinate
ANCHOR = 14  # of an anchor
LOW, HIGH = -(1 << ONE), 2 << ONE  # a corner is cut off there: areas and their products fit into 64 bits
MOST = 1 << 26  # of a table: 1024 images
FINE = 7  # 16-bit codes between two entries of a table


def _sigmoid(t: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-np.clip(t, -40.0, 40.0)))


def _plain(t: np.ndarray) -> np.ndarray:
    return t


def _exponential(t: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(t, 20.0))  # beyond MOST


WITH_SIZES = ("offsets", "centres", "sigmoid", "squares")  # forms of a centre and a size
FROM_CENTRES = ("distances", "distribution")  # from an anchor's centre to the edges
Curve = Callable[[np.ndarray], np.ndarray]
# form -> what becomes of the first two numbers, of the last two
FORMS: dict[str, tuple[Curve, Curve]] = {
    "offsets": (_plain, _exponential),
    "corners": (_plain, _plain),
    "centres": (_plain, _plain),
    "distances": (_plain, _plain),
    "sigmoid": (lambda t: 2.0 * _sigmoid(t) - 1.0, lambda t: 4.0 * _sigmoid(t) ** 2),
    "squares": (lambda t: 2.0 * t - 1.0, lambda t: 4.0 * t**2),
    "distribution": (_exponential, _exponential),
}


@dataclass(frozen=True, eq=False)
class Decoder:
    """Boxes of one output, in integers.

    Attributes:
        form, order: see `Detection`.
        tables: distinct ones, int32.
        picks: which of the four numbers uses which table.
        shift: bits of a code between two entries.
        low: the lowest code.
        anchors: int16 `[rows, 4]`, or `[rows, 6]` with the sizes of cells behind, or none.
        bins: of each edge in the form "distribution", else 1.
    """

    form: str
    order: str
    tables: tuple[np.ndarray, ...]
    picks: tuple[int, ...]
    shift: int
    low: int
    anchors: np.ndarray | None
    bins: int

    def corners(self, codes: np.ndarray) -> np.ndarray:
        """int64 `[rows, 4]`: top, left, bottom, right in steps of 2^-16 of the image.

        Args:
            codes: `[rows, 4]`, or `[rows, 4 * bins]`.
        """
        if self.bins > 1:
            t = self._means(codes)
        else:
            t = np.stack([self._read(self.tables[pick], codes[:, i]) for i, pick in enumerate(self.picks)], axis=1)
        first, second = t[:, :2], t[:, 2:]
        if self.anchors is not None:
            columns = self.anchors.astype(np.int64)
            centre, size = columns[:, :2] << (ONE - ANCHOR), columns[:, 2:4]
            # the last two: cells where there are some
            first, second = _times(columns[:, -2:], first), _times(size, second)
            if self.form in FROM_CENTRES:
                first, second = centre - first, centre + second
            else:
                first = centre + first
        if self.form in WITH_SIZES:
            half = second >> 1
            first, second = first - half, first - half + second
        both = np.concatenate([first, second], axis=1)
        if self.order == "xy":
            both = both[:, [1, 0, 3, 2]]
        return np.clip(both, LOW, HIGH)

    def _means(self, codes: np.ndarray) -> np.ndarray:
        """Of each edge the mean of its bins by their softmax, in steps of 2^-16: `[rows, 4 * bins]` -> `[rows, 4]`."""
        edges = codes.reshape(len(codes), 4, self.bins).astype(np.int64)
        # the table is that of exponentials of what codes lie below the largest
        weights = self._read(self.tables[0], edges.max(axis=2, keepdims=True) - edges + self.low)
        sums = weights.sum(axis=2)
        return (((weights * np.arange(self.bins)).sum(axis=2) << ONE) + (sums >> 1)) // sums

    def _read(self, table: np.ndarray, codes: np.ndarray) -> np.ndarray:
        at = codes.astype(np.int64) - self.low
        if not self.shift:
            return table[at].astype(np.int64)
        entry, rest = at >> self.shift, at & ((1 << self.shift) - 1)
        left, right = table[entry].astype(np.int64), table[entry + 1].astype(np.int64)
        return left + (((right - left) * rest + (1 << (self.shift - 1))) >> self.shift)


def _times(anchor: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Product of an anchor's size and a coordinate, rounded half up."""
    return (anchor * value + (1 << (ANCHOR - 1))) >> ANCHOR


def decoder(detection: Detection, scale: float, zero_point: int, bits: int) -> Decoder:
    """For the grid of the output with the boxes.

    Args:
        detection: what the outputs mean.
        scale: of the output, `real = scale * (code - zero_point)`.
        zero_point: of it.
        bits: of a code, 8 or 16.

    Example:
        >>> made = decoder(Detection(form="corners"), 1 / 256, -128, 8)
        >>> made.corners(np.int8([[-128, -64, 0, 127]])).tolist()
        [[0, 16384, 32768, 65280]]
    """
    low, shift = -(1 << (bits - 1)), 0 if bits == 8 else FINE
    codes = np.arange(0, (1 << bits) + 1, 1 << shift)[: (1 << (bits - shift)) + bool(shift)]
    real = codes * -scale if detection.has_bins else (codes + low - zero_point) * scale
    tables: list[np.ndarray] = []
    picks: list[int] = []
    first, second = FORMS[detection.form]
    for curve, divided in zip((first, first, second, second), detection.scales, strict=True):
        table = np.clip(np.rint(curve(real / divided) * (1 << ONE)), -MOST, MOST).astype(np.int32)
        same = [i for i, other in enumerate(tables) if np.array_equal(other, table)]
        picks.append(same[0] if same else len(tables))
        if not same:
            tables.append(table)
    made = (detection.form, detection.order, tuple(tables), tuple(picks), shift, low)
    return Decoder(*made, _stored(detection), detection.bins if detection.has_bins else 1)


def _stored(detection: Detection) -> np.ndarray | None:
    """Anchors and cells as int16."""
    if detection.anchors is None:
        return None
    columns = [detection.anchors] + ([] if detection.cells is None else [detection.cells])
    steps = np.rint(np.concatenate(columns, axis=1) * (1 << ANCHOR))
    return np.minimum(steps, (1 << 15) - 1).astype(np.int16)  # 2 - 2^-15 rounds to 2^15, which int16 has not


def real_corners(detection: Detection, boxes: np.ndarray, *, cut: bool = True) -> np.ndarray:
    """float64 `[rows, 4]`: the same of real numbers, which no grid has rounded; with `cut=False` corners anywhere."""
    t = np.asarray(boxes, np.float64)
    if detection.has_bins:
        edges = t.reshape(len(t), 4, detection.bins)
        weights = np.exp(edges - edges.max(axis=2, keepdims=True))
        t = (weights * np.arange(detection.bins)).sum(axis=2) / weights.sum(axis=2)
    else:
        t = t / np.asarray(detection.scales)
        of_first, of_second = FORMS[detection.form]
        t = np.concatenate([of_first(t[:, :2]), of_second(t[:, 2:])], axis=1)
    first, second = t[:, :2], t[:, 2:]
    if detection.anchors is not None:
        centre, size = detection.anchors[:, :2], detection.anchors[:, 2:]
        first, second = first * (size if detection.cells is None else detection.cells), second * size
        from_centre = detection.form in FROM_CENTRES
        first, second = (centre - first, centre + second) if from_centre else (centre + first, second)
    if detection.form in WITH_SIZES:
        first, second = first - second / 2, first + second / 2
    both = np.concatenate([first, second], axis=1)
    both = both[:, [1, 0, 3, 2]] if detection.order == "xy" else both
    return np.clip(both, -1.0, 2.0) if cut else both
