"""U-Net and DeepLabV3+ on the masks of scenes of digits."""

from __future__ import annotations

import numpy as np

from benchmarks.zoo.segmentation import deeplab_v3_plus, u_net
from benchmarks.zoo.trained.metrics import mean_overlap
from benchmarks.zoo.trained.scenes import CLASSES, scenes
from benchmarks.zoo.trained.task import Data, Subject, Trained, answers

SIDE = 64


def data() -> Data:
    """2,000 scenes to train with, 300 to judge."""
    train, judge = scenes(2000, SIDE), scenes(300, SIDE, judging=True)
    return Data(train.images, train.masks, judge.images, judge.masks)


def judged(subject: Subject, data: Data) -> dict[str, float]:
    """Mean intersection over union of paper and ten digits, and the share of pixels that are right."""
    masks = answers(subject, data.judged).argmax(axis=-1)
    return {"mIoU": mean_overlap(masks, data.truth, CLASSES + 1), "pixels": float(np.mean(masks == data.truth))}


TASKS = (
    Trained(
        name="u_net",
        title="U-Net, masks of digits on 64 x 64",
        build=lambda: u_net(SIDE, CLASSES + 1),
        data=data,
        loss="sparse_categorical_crossentropy",
        judge=judged,
        epochs=40,
    ),
    Trained(
        name="deeplab_v3_plus",
        title="DeepLabV3+, masks of digits on 64 x 64",
        build=lambda: deeplab_v3_plus(SIDE, CLASSES + 1),
        data=data,
        loss="sparse_categorical_crossentropy",
        judge=judged,
        epochs=40,
    ),
)
