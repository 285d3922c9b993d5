"""U-Net and DeepLabV3+ on the masks of scenes of digits."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from keras import ops

from benchmarks.zoo.segmentation import deeplab_v3_plus, u_net
from benchmarks.zoo.trained.metrics import mean_overlap
from benchmarks.zoo.trained.scenes import CLASSES, scenes
from benchmarks.zoo.trained.task import Data, Subject, Trained, answers

SIDE = 64
PAPER = 0.1  # weight of a pixel without a digit, of one with a digit 1: nine pixels of ten have none


def data() -> Data:
    """2,000 scenes to train with, 300 to judge."""
    train, judge = scenes(2000, SIDE), scenes(300, SIDE, judging=True)
    return Data(train.images, train.masks, judge.images, judge.masks)


def loss(true: Any, found: Any) -> Any:
    """Cross entropy of probabilities, mean over pixels by the weight of their class."""
    true = ops.cast(true, "int32")
    weight = ops.where(true == 0, PAPER, 1.0)
    right = ops.take_along_axis(found, true[..., None], axis=-1)[..., 0]
    return -ops.sum(weight * ops.log(right + 1e-4)) / ops.sum(weight)  # what has sunk to 0 still has a gradient


def judged(subject: Subject, data: Data) -> dict[str, float]:
    """Mean intersection over union of paper and ten digits, and the share of pixels that are right."""
    masks = answers(subject, data.judged).argmax(axis=-1)
    return {"mIoU": mean_overlap(masks, data.truth, CLASSES + 1), "pixels": float(np.mean(masks == data.truth))}


# (name, title, network, epochs): a backbone that nobody has trained takes longer
NETWORKS = (("u_net", "U-Net", u_net, 40), ("deeplab_v3_plus", "DeepLabV3+", deeplab_v3_plus, 160))

TASKS = tuple(
    Trained(
        name=name,
        title=f"{title}, masks of digits on 64 x 64",
        build=partial(network, SIDE, CLASSES + 1),
        data=data,
        loss=loss,
        judge=judged,
        epochs=epochs,
    )
    for name, title, network, epochs in NETWORKS
)
