"""SSDLite on scenes of digits: targets for its anchors, its losses, mAP of the boxes that `kquant.detect` chooses."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

import kquant
from benchmarks.zoo.blocks import conv, mobilenet_v2, model, separable, upsample
from benchmarks.zoo.trained.metrics import average_precision, matched_overlap
from benchmarks.zoo.trained.scenes import CLASSES, Scenes, overlaps, scenes
from benchmarks.zoo.trained.task import Data, Subject, Trained

SIDE, WIDTH = 64, 48
# cells to a side -> height of its anchors: of 99 digits in a hundred one of them overlaps 0.45 or more. On cells twice
# as wide a sixth had none.
HEIGHTS = {16: 0.2, 8: 0.28, 4: 0.38}
ASPECTS = (0.5, 0.75, 1.0)
SCALES = (10.0, 10.0, 5.0, 5.0)
POSITIVE, NEGATIVE = 0.45, 0.35  # overlap with a true box: from there an anchor is that box, below it is none


def anchors() -> np.ndarray:
    """float64 `[1008, 4]`: centre and size, height before width."""
    rows = []
    for cells, height in HEIGHTS.items():
        y, x = np.meshgrid((np.arange(cells) + 0.5) / cells, (np.arange(cells) + 0.5) / cells, indexing="ij")
        for cell in np.stack([y, x], -1).reshape(-1, 2):
            rows.extend([*cell, height, height * aspect] for aspect in ASPECTS)
    return np.float64(rows)


DETECTION = kquant.Detection(anchors=anchors(), scales=SCALES, threshold=0.05, overlap=0.45, limit=100, candidates=300)


def ssdlite() -> keras.Model:
    """SSDLite's separable predictors on MobileNetV2 with a feature pyramid (Lin et al. 2017; "FPNLite" in TensorFlow's
    model garden): digits are small, and what tells them apart is deep.
    """
    image = keras.Input((SIDE, SIDE, 3), name="image")
    maps = mobilenet_v2(layers.Rescaling(1 / 127.5, -1)(image), 0.5)[:-1]
    maps = [conv(t, WIDTH, 1, activation="relu6") for t in maps]
    for n in (1, 0):
        maps[n] = separable(layers.Add()([maps[n], upsample(maps[n + 1], maps[n], "nearest")]), WIDTH)
    boxes, scores = [], []
    for features in maps:
        for found, size in ((boxes, 4), (scores, CLASSES)):
            rare = keras.initializers.Constant(-4.0 if size == CLASSES else 0.0)  # Lin et al. 2017b, section 4.1
            y = layers.Conv2D(len(ASPECTS) * size, 1, bias_initializer=rare)(separable(features, WIDTH))
            found.append(layers.Reshape((-1, size))(y))
    joined = {
        "boxes": layers.Concatenate(1, name="boxes")(boxes),
        "scores": layers.Activation("sigmoid", name="scores")(layers.Concatenate(1)(scores)),
    }
    return model(image, joined, "ssdlite")


def targets(made: Scenes) -> dict[str, np.ndarray]:
    """For each anchor the four numbers and whether they count, the classes and whether they count."""
    rows = [_targets(boxes, classes) for boxes, classes in zip(made.boxes, made.classes, strict=True)]
    boxes, scores = zip(*rows, strict=True)
    return {"boxes": np.stack(boxes), "scores": np.stack(scores)}


def _targets(boxes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    grid = DETECTION.anchors
    corners = np.concatenate([grid[:, :2] - grid[:, 2:] / 2, grid[:, :2] + grid[:, 2:] / 2], axis=1)
    overlap = overlaps(corners, boxes)
    which, best = overlap.argmax(axis=1), overlap.max(axis=1)
    nearest = overlap.argmax(axis=0)  # each box has an anchor, however bad
    which[nearest], best[nearest] = np.arange(len(boxes)), 1.0
    true = boxes[which]
    centre, size = (true[:, :2] + true[:, 2:]) / 2, true[:, 2:] - true[:, :2]
    moved = np.concatenate([(centre - grid[:, :2]) / grid[:, 2:], np.log(size / grid[:, 2:])], axis=1) * SCALES
    positive = best >= POSITIVE
    label = np.eye(CLASSES)[classes[which]] * positive[:, None]
    counts = positive | (best < NEGATIVE)
    return np.float32(np.c_[moved, positive]), np.float32(np.c_[label, counts])


def box_loss(true: Any, found: Any) -> Any:
    """Huber's, over positive anchors."""
    off = ops.abs(true[..., :4] - found)
    each = ops.sum(ops.where(off < 1.0, 0.5 * ops.square(off), off - 0.5), axis=-1)
    return ops.sum(each * true[..., 4]) / (ops.sum(true[..., 4]) + 1.0)


def score_loss(true: Any, found: Any) -> Any:
    """Focal loss (Lin et al. 2017, equation 5) over the number of positive anchors."""
    label, counts = true[..., :CLASSES], true[..., CLASSES:]
    right = ops.where(label > 0, found, 1 - found)
    weight = ops.where(label > 0, 0.25, 0.75)
    # added, not clipped: what has sunk to 0 still has a gradient
    loss = -weight * ops.square(1 - right) * ops.log(right + 1e-4) * counts
    return ops.sum(loss) / (ops.sum(label) + 1.0)


def judged(subject: Subject, data: Data) -> dict[str, float]:
    """mAP at 0.5, over 0.5:0.95, and how well the boxes found lie on true ones."""
    if isinstance(subject, keras.Model):
        given = kquant.detect(subject, data.judged, DETECTION)
    else:
        given = kquant.detect(subject, data.judged, DETECTION, runtime="litert-reference")
    found = [(f.boxes.astype(np.float64), f.scores, f.classes) for f in given]
    precisions = average_precision(found, data.truth)
    return {
        "mAP@0.5": float(precisions[0]),
        "mAP@0.5:0.95": float(precisions.mean()),
        "IoU": matched_overlap(found, data.truth),
    }


def data() -> Data:
    """3,000 scenes to train with, 400 to judge."""
    train, judge = scenes(3000, SIDE), scenes(400, SIDE, judging=True)
    truth = list(zip(judge.boxes, judge.classes, strict=True))
    return Data(train.images, targets(train), judge.images, truth)


TASKS = (
    Trained(
        name="ssdlite",
        title="SSDLite-MobileNetV2 with a feature pyramid, digits on 64 x 64",
        build=ssdlite,
        data=data,
        loss={"boxes": box_loss, "scores": score_loss},
        judge=judged,
        epochs=14,
        batch=16,
        rate=3e-3,
    ),
)
