"""Which boxes are left: the best scores, without those that a better one overlaps.

Ties are decided once and for all: the higher score first, then the lower row, then the lower class.
"""

from __future__ import annotations

import numpy as np

from kquant.detecting.spec import Detection

PARTS = 1 << 16  # of 1, in which an overlap of integers is compared


def chosen(
    detection: Detection, corners: np.ndarray, scores: np.ndarray, lowest: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and classes of the boxes that are left, the best first.

    Args:
        detection: how many, and when one excludes another.
        corners: `[rows, 4]`: top, left, bottom, right; integers in steps of 2^-16, or real numbers.
        scores: `[rows, classes]`, codes or real numbers.
        lowest: the lowest score that counts, in the same unit.

    Example:
        >>> corners = np.float64([[0, 0, 1, 1], [0, 0, 1, 0.9], [0, 0, 0.2, 0.2]])
        >>> rows, _ = chosen(Detection(form="corners"), corners, np.float64([[0.8], [0.9], [0.6]]), 0.5)
        >>> rows.tolist()
        [1, 2]
    """
    rows, classes = candidates_of(detection, scores, lowest, detection.candidates)
    left: list[int] = []
    for n, (row, which) in enumerate(zip(rows, classes, strict=True)):
        rivals = [rows[k] for k in left if not detection.by_class or classes[k] == which]
        if not any(_overlaps(detection, corners[row], corners[other]) for other in rivals):
            left.append(n)
        if len(left) == detection.limit:
            break
    return rows[left], classes[left]


def candidates_of(
    detection: Detection, scores: np.ndarray, lowest: float, most: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and classes of what counts, the best first, before boxes that overlap go.

    Args:
        detection: whether classes exclude each other.
        scores: see `chosen`.
        lowest: likewise.
        most: how many at most; None: all.
    """
    first = int(detection.background)
    real = scores[:, first:]
    if detection.by_class:
        rows, classes = np.nonzero(real >= lowest)
    else:
        classes = np.argmax(real, axis=1)  # the first of equal ones
        rows = np.nonzero(real[np.arange(len(real)), classes] >= lowest)[0]
        classes = classes[rows]
    # nonzero goes by rows, then by classes: a stable sort leaves ties so
    order = np.argsort(-real[rows, classes].astype(np.float64), kind="stable")[:most]
    return rows[order], classes[order] + first


def _overlaps(detection: Detection, a: np.ndarray, b: np.ndarray) -> bool:
    """Intersection over union above the limit; in integers without a division."""
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    if height <= 0 or width <= 0:
        return False
    shared = height * width
    union = _area(a) + _area(b) - shared
    if np.issubdtype(a.dtype, np.integer):
        return bool(int(shared) * PARTS > limit_of(detection) * int(union))
    return bool(shared > detection.overlap * union)


def _area(box: np.ndarray) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def limit_of(detection: Detection) -> int:
    """The overlap in parts of 2^-16."""
    return round(detection.overlap * PARTS)
