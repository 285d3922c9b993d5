"""Codes -> corners in integers, by tables: an exponential of a code needs no floats on the device.

An 8-bit code has 256 values, so that `t / s` and `exp(t / s)` are tables of int32 in steps of 2^-16. For 16 bits the
table has every 128th code, and what lies between is interpolated, as TFLM's tables of 16 bits are. Anchors are int16 in
steps of 2^-14: a hundredth of a pixel in an image of 160.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kquant.detecting.spec import Detection

ONE = 16  # bits behind the point of a coordinate
ANCHOR = 14  # of an anchor
LOW, HIGH = -(1 << ONE), 2 << ONE  # a corner is cut off there: areas and their products fit into 64 bits
MOST = 1 << 26  # of a table: 1024 images
FINE = 7  # 16-bit codes between two entries of a table

# form -> which of the four numbers go through the exponential
FORMS = {"offsets": (False, False, True, True)} | {form: (False,) * 4 for form in ("corners", "centres", "distances")}


@dataclass(frozen=True, eq=False)
class Decoder:
    """Boxes of one output, in integers.

    Attributes:
        form, order: see `Detection`.
        tables: distinct ones, int32.
        picks: which of the four numbers uses which table.
        shift: bits of a code between two entries.
        low: the lowest code.
        anchors: int16 `[rows, 4]`, or none.
    """

    form: str
    order: str
    tables: tuple[np.ndarray, ...]
    picks: tuple[int, ...]
    shift: int
    low: int
    anchors: np.ndarray | None

    def corners(self, codes: np.ndarray) -> np.ndarray:
        """int64 `[rows, 4]`: top, left, bottom, right in steps of 2^-16 of the image, for codes `[rows, 4]`."""
        t = np.stack([self._read(self.tables[pick], codes[:, i]) for i, pick in enumerate(self.picks)], axis=1)
        first, second = t[:, :2], t[:, 2:]
        if self.anchors is not None:
            centre, size = self.anchors[:, :2].astype(np.int64), self.anchors[:, 2:].astype(np.int64)
            first, second = _times(size, first), _times(size, second)
            centre <<= ONE - ANCHOR
            if self.form == "distances":
                first, second = centre - first, centre + second
            else:
                first = centre + first
        if self.form in ("offsets", "centres"):
            half = second >> 1
            first, second = first - half, first - half + second
        both = np.concatenate([first, second], axis=1)
        if self.order == "xy":
            both = both[:, [1, 0, 3, 2]]
        return np.clip(both, LOW, HIGH)

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
    real = (np.arange(0, (1 << bits) + 1, 1 << shift)[: (1 << (bits - shift)) + bool(shift)] + low - zero_point) * scale
    tables: list[np.ndarray] = []
    picks: list[int] = []
    for exponential, divided in zip(FORMS[detection.form], detection.scales, strict=True):
        values = real / divided
        with np.errstate(over="ignore"):  # cut off right behind
            steps = np.rint((np.exp(values) if exponential else values) * (1 << ONE))
        table = np.clip(steps, -MOST, MOST).astype(np.int32)
        same = [i for i, other in enumerate(tables) if np.array_equal(other, table)]
        picks.append(same[0] if same else len(tables))
        if not same:
            tables.append(table)
    steps = None if detection.anchors is None else np.rint(detection.anchors * (1 << ANCHOR))
    # 2 - 2^-15 rounds to 2^15, which int16 has not
    anchors = None if steps is None else np.minimum(steps, (1 << 15) - 1).astype(np.int16)
    return Decoder(detection.form, detection.order, tuple(tables), tuple(picks), shift, low, anchors)


def real_corners(detection: Detection, boxes: np.ndarray) -> np.ndarray:
    """float64 `[rows, 4]`: the same of real numbers, which no grid has rounded."""
    t = np.asarray(boxes, np.float64) / np.asarray(detection.scales)
    first, second = t[:, :2], t[:, 2:]
    if detection.form == "offsets":
        centre, size = detection.anchors[:, :2], detection.anchors[:, 2:]
        first, second = centre + size * first, size * np.exp(np.minimum(second, 20.0))
    elif detection.form == "distances":
        centre, size = detection.anchors[:, :2], detection.anchors[:, 2:]
        first, second = centre - size * first, centre + size * second
    if detection.form in ("offsets", "centres"):
        first, second = first - second / 2, first + second / 2
    both = np.concatenate([first, second], axis=1)
    both = both[:, [1, 0, 3, 2]] if detection.order == "xy" else both
    return np.clip(both, -1.0, 2.0)
