"""Scenes composed from scikit-learn's digits: images, boxes, classes and masks, the same for everybody by their seed.

Up to four digits of 8 x 8, enlarged, stretched and coloured, lie on a coloured blur with noise. Digits of the scenes
that judge are other people's than of those that train: the data set is ordered by writers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

CLASSES = 10
TRAINED_ON = 1400  # of 1,797 digits
SMALLEST, LARGEST = 0.2, 0.45  # height of a digit in parts of the image
INK, PAPER = 0.35, 0.05  # alpha from which a pixel is of the digit; how much two digits may overlap


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images and what is on them.

    Attributes:
        images: float32 `[n, side, side, 3]` in 0..255.
        boxes: of each image, float64 `[k, 4]`: top, left, bottom, right in parts of the image.
        classes: of each image, int64 `[k]`.
        masks: uint8 `[n, side, side]`: 0, or the digit and 1.
    """

    images: np.ndarray
    boxes: list[np.ndarray]
    classes: list[np.ndarray]
    masks: np.ndarray


def scenes(limit: int, side: int, *, judging: bool = False) -> Scenes:
    """So many of them; those that judge have another seed and other digits."""
    digits: Any = load_digits()
    part = slice(TRAINED_ON, None) if judging else slice(0, TRAINED_ON)
    inks, labels = digits.images[part] / 16.0, digits.target[part]
    rng = np.random.default_rng(1 if judging else 0)
    made = [_scene(inks, labels, side, rng) for _ in range(limit)]
    images, boxes, classes, masks = zip(*made, strict=True)
    return Scenes(np.stack(images), list(boxes), list(classes), np.stack(masks))


def _scene(inks: np.ndarray, labels: np.ndarray, side: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Image, boxes, classes, mask."""
    image = _enlarged(rng.uniform(30, 225, (4, 4, 3)), side, side)
    mask = np.zeros((side, side), np.uint8)
    boxes: list[np.ndarray] = []
    classes: list[int] = []
    for _ in range(rng.integers(1, 5)):
        which = rng.integers(len(inks))
        height = round(side * rng.uniform(SMALLEST, LARGEST))
        width = round(height * rng.uniform(0.8, 1.2))
        top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
        ink = np.clip(_enlarged(inks[which][..., None], height, width), 0, 1)
        rows, columns = (np.flatnonzero(np.any(ink[..., 0] > INK, axis=axis)) for axis in (1, 0))
        box = np.float64([top + rows[0], left + columns[0], top + rows[-1] + 1, left + columns[-1] + 1]) / side
        if boxes and np.max(overlaps(box[None], np.stack(boxes))) > PAPER:
            continue
        there = (slice(top, top + height), slice(left, left + width))
        bright = image[there].mean() < 128
        colour = rng.uniform(170, 255, 3) if bright else rng.uniform(0, 85, 3)
        image[there] = image[there] * (1 - ink) + colour * ink
        mask[there][ink[..., 0] > INK] = labels[which] + 1
        boxes.append(box)
        classes.append(int(labels[which]))
    image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255)
    return np.float32(np.rint(image)), np.stack(boxes), np.int64(classes), mask


def _enlarged(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, `[h, w, c]`, pixel centres aligned."""
    rows, columns = _weights(image.shape[0], height), _weights(image.shape[1], width)
    return np.einsum("yh,hwc,xw->yxc", rows, image, columns, optimize=True)


def _weights(old: int, new: int) -> np.ndarray:
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0.0, 1.0 - np.abs(at[:, None] - np.arange(old)[None]))


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes `[n, 4]` and `[m, 4]`, corners: float64 `[n, m]`."""
    top_left, bottom_right = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(bottom_right - top_left, 0.0), axis=2)
    areas = [np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0), axis=1) for boxes in (a, b)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12)
