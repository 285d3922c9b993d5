"""How good answers are: average precision as COCO counts it, intersection over union, label errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.zoo.trained.scenes import overlaps

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)


def average_precision(
    found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], truth: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Mean over classes for each IoU of 0.50, 0.55 .. 0.95, after COCO's definition (cocodataset.org, "Detection
    evaluation"): precision at 101 recalls, each the best at that recall or above.

    Args:
        found: of each image boxes `[k, 4]`, scores and classes, at most 100.
        truth: of each image boxes and classes.

    Returns:
        float64 `[10]`; their mean is mAP@0.5:0.95, the first mAP@0.5.
    """
    classes = sorted({int(c) for _, labels in truth for c in labels})
    return np.mean([_of_class(found, truth, c) for c in classes], axis=0)


def _of_class(found: Sequence[tuple[np.ndarray, ...]], truth: Sequence[tuple[np.ndarray, ...]], c: int) -> np.ndarray:
    scores, hits, wanted = [], [], 0
    for (boxes, confidence, classes), (true_boxes, labels) in zip(found, truth, strict=True):
        order = np.flatnonzero(classes == c)
        order = order[np.argsort(-confidence[order], kind="stable")]
        scores.append(confidence[order])
        hits.append(_hits(overlaps(boxes[order], true_boxes[labels == c])))
        wanted += int(np.sum(labels == c))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit = np.concatenate(hits, axis=1)[:, order]
    right, wrong = np.cumsum(hit, axis=1), np.cumsum(~hit, axis=1)
    recall, precision = right / wanted, right / np.maximum(right + wrong, 1)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return np.array([_at_recalls(r, p) for r, p in zip(recall, best, strict=True)])


def _at_recalls(recall: np.ndarray, precision: np.ndarray) -> float:
    at = np.searchsorted(recall, RECALLS, side="left")
    return float(np.mean(np.append(precision, 0.0)[at]))


def _hits(overlap: np.ndarray) -> np.ndarray:
    """bool `[10, k]`: which boxes, the best first, take a true one that none before them took, by threshold."""
    hit = np.zeros((len(THRESHOLDS), len(overlap)), bool)
    for t, threshold in enumerate(THRESHOLDS):
        free = np.ones(overlap.shape[1], bool)
        for k, row in enumerate(overlap):
            if not free.any():
                break
            # among equal ones the last, as COCO's own evaluation walks through them
            best = int(np.flatnonzero(free)[::-1][np.argmax(row[free][::-1])])
            if row[best] >= min(threshold, 1 - 1e-10):
                hit[t, k], free[best] = True, False
    return hit


def matched_overlap(
    found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], truth: Sequence[tuple[np.ndarray, np.ndarray]]
) -> float:
    """Mean over true boxes of the overlap with the best box found of the same class, of those that have one of 0.5."""
    best = []
    for (boxes, _, classes), (true_boxes, labels) in zip(found, truth, strict=True):
        same = overlaps(true_boxes, boxes) * (labels[:, None] == classes[None])
        best.extend(same.max(axis=1, initial=0.0))
    kept = np.asarray(best)
    return float(kept[kept >= THRESHOLDS[0]].mean())


def mean_overlap(masks: np.ndarray, truth: np.ndarray, classes: int) -> float:
    """Mean over classes of pixels that both have over pixels that either has, over all images; 0 is a class too."""
    both = np.bincount(truth.ravel().astype(np.int64) * classes + masks.ravel(), minlength=classes**2)
    both = both.reshape(classes, classes)
    shared = np.diag(both)
    return float(np.mean(shared / np.maximum(both.sum(0) + both.sum(1) - shared, 1)))


def greedy(scores: np.ndarray, blank: int) -> list[int]:
    """Labels of `[steps, letters]`: the best of each step, repeated ones once, blanks gone."""
    best = scores.argmax(axis=1)
    changed = np.append(True, best[1:] != best[:-1])
    return [int(label) for label in best[changed] if label != blank]


def label_errors(found: Sequence[Sequence[int]], truth: Sequence[Sequence[int]]) -> float:
    """Insertions, deletions and substitutions over the number of true labels."""
    return sum(_distance(a, b) for a, b in zip(found, truth, strict=True)) / sum(map(len, truth))


def _distance(a: Sequence[int], b: Sequence[int]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]
