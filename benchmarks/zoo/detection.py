"""Detectors: the raw heads, before anchors are decoded and boxes chosen."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from benchmarks.zoo.blocks import conv, inverted_residual, mobilenet_v2, model, separable, upsample


def ssdlite_mobilenet_v2(side: int = 96, classes: int = 4, anchors: int = 3) -> keras.Model:
    """SSDLite (Sandler et al. 2018, section 6.2): separable predictors on four scales, joined over all anchors."""
    image = keras.Input((side, side, 3))
    _, _, sixteen, last = mobilenet_v2(layers.Rescaling(1 / 127.5, -1)(image))
    maps = [sixteen, last]
    for filters in (64, 48):
        maps.append(inverted_residual(maps[-1], filters, 2, expansion=2))
    boxes, scores = [], []
    for features in maps:
        for found, size in ((boxes, 4), (scores, classes + 1)):
            y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(features)
            y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
            y = layers.Conv2D(anchors * size, 1)(y)
            found.append(layers.Reshape((-1, size))(y))
    joined = {
        "boxes": layers.Concatenate(1, name="boxes")(boxes),
        "scores": layers.Activation("sigmoid", name="scores")(layers.Concatenate(1)(scores)),
    }
    return model(image, joined, "ssdlite_mobilenet_v2")


def retinanet(side: int = 96, classes: int = 4, anchors: int = 9, width: int = 32) -> keras.Model:
    """RetinaNet (Lin et al. 2017): a feature pyramid, and two heads whose layers all levels share."""
    image = keras.Input((side, side, 3))
    x = conv(layers.Rescaling(1 / 255)(image), 16, 7, 2)
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    features = []
    for filters, strides in ((16, 1), (32, 2), (64, 2), (128, 2)):
        short = conv(x, filters, 1, strides, None)
        x = conv(conv(x, filters, 3, strides), filters, activation=None)
        x = layers.ReLU()(layers.Add()([x, short]))
        features.append(x)
    levels = [layers.Conv2D(width, 1)(t) for t in features[1:]]
    for n in (1, 0):
        levels[n] = layers.Add()([levels[n], upsample(levels[n + 1], levels[n], "nearest")])
    levels = [layers.Conv2D(width, 3, padding="same")(t) for t in levels]
    levels.append(layers.Conv2D(width, 3, 2, padding="same")(features[-1]))
    levels.append(layers.Conv2D(width, 3, 2, padding="same")(layers.ReLU()(levels[-1])))

    def head(size: int, name: str) -> keras.Sequential:
        inner: list[Any] = [layers.Conv2D(width, 3, padding="same", activation="relu") for _ in range(2)]
        return keras.Sequential(
            [keras.Input((None, None, width)), *inner, layers.Conv2D(anchors * size, 3, padding="same")], name=name
        )

    box_head, class_head = head(4, "box_head"), head(classes, "class_head")
    boxes = layers.Concatenate(1, name="boxes")([layers.Reshape((-1, 4))(box_head(t)) for t in levels])
    scores = layers.Concatenate(1)([layers.Reshape((-1, classes))(class_head(t)) for t in levels])
    return model(image, [boxes, layers.Activation("sigmoid", name="scores")(scores)], "retinanet")


def _csp(x: Any, filters: int, *, shortcut: bool = True) -> Any:
    """A cross-stage block with one bottleneck (YOLOv5's C3)."""
    a, b = conv(x, filters // 2, 1, activation="silu"), conv(x, filters // 2, 1, activation="silu")
    y = conv(conv(a, filters // 2, 1, activation="silu"), filters // 2, activation="silu")
    a = layers.Add()([a, y]) if shortcut else y
    return conv(layers.Concatenate()([a, b]), filters, 1, activation="silu")


def _yolo_features(image: Any) -> list[Any]:
    """Backbone, fast spatial pyramid pooling and the path up and down again: three scales."""
    x = conv(layers.Rescaling(1 / 255)(image), 8, 6, 2, "silu")
    found = []
    for filters in (16, 32, 64, 96):
        x = _csp(conv(x, filters, 3, 2, "silu"), filters)
        found.append(x)
    y = conv(x, 48, 1, activation="silu")
    pools = [y]
    for _ in range(3):
        pools.append(layers.MaxPooling2D(5, 1, padding="same")(pools[-1]))
    x = conv(layers.Concatenate()(pools), 96, 1, activation="silu")
    up = conv(x, 64, 1, activation="silu")
    middle = _csp(layers.Concatenate()([upsample(up, found[2], "nearest"), found[2]]), 64, shortcut=False)
    side = conv(middle, 32, 1, activation="silu")
    small = _csp(layers.Concatenate()([upsample(side, found[1], "nearest"), found[1]]), 32, shortcut=False)
    middle = _csp(layers.Concatenate()([conv(small, 32, 3, 2, "silu"), side]), 64, shortcut=False)
    large = _csp(layers.Concatenate()([conv(middle, 64, 3, 2, "silu"), up]), 96, shortcut=False)
    return [small, middle, large]


def yolo_v5(side: int = 96, classes: int = 4) -> keras.Model:
    """YOLOv5's head: sigmoid of all, centres and sizes in cells decoded in the graph, one output of [box, object,
    classes] as the exporters write it: boxes in pixels beside scores in 0..1.
    """
    image = keras.Input((side, side, 3))
    anchors = np.float32(
        [[[10, 13], [16, 30], [33, 23]], [[30, 61], [62, 45], [59, 119]], [[116, 90], [156, 198], [373, 326]]]
    )
    rows = []
    for features, sizes in zip(_yolo_features(image), anchors, strict=True):
        y = layers.Conv2D(3 * (5 + classes), 1)(features)
        height, width = y.shape[1:3]
        y = layers.Activation("sigmoid")(layers.Reshape((height, width, 3, 5 + classes))(y))
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype("float32")
        centre = (y[..., 0:2] * 2.0 + (grid[:, :, None] - 0.5)) * (side / width)
        size = ops.square(y[..., 2:4] * 2.0) * sizes
        whole = layers.Concatenate()([centre, size, y[..., 4:]])
        rows.append(layers.Reshape((height * width * 3, 5 + classes))(whole))
    return model(image, layers.Concatenate(1)(rows), "yolo_v5")


def yolo_v8(side: int = 96, classes: int = 4, bins: int = 8) -> keras.Model:
    """YOLOv8's head: boxes as distances, each the mean of a distribution over bins (Li et al. 2020)."""
    image = keras.Input((side, side, 3))
    boxes, scores = [], []
    for features in _yolo_features(image):
        height, width = features.shape[1:3]
        y = layers.Conv2D(4 * bins, 1)(conv(features, 32, activation="silu"))
        y = layers.Softmax(-1)(layers.Reshape((height * width, 4, bins))(y))
        y = layers.Reshape((height * width, 4))(layers.Dense(1, use_bias=False, name=f"bins_{width}")(y))
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(1, -1, 2) + 0.5
        grid = grid.astype("float32")
        corners = layers.Concatenate()([ops.subtract(grid, y[..., :2]), ops.add(grid, y[..., 2:])])
        boxes.append(corners * (side / width))
        y = layers.Conv2D(classes, 1)(conv(features, 32, activation="silu"))
        scores.append(layers.Reshape((height * width, classes))(y))
    joined = layers.Concatenate(1, name="boxes")(boxes)
    return model(image, [joined, layers.Activation("sigmoid", name="scores")(layers.Concatenate(1)(scores))], "yolo_v8")


def centernet(side: int = 96, classes: int = 4) -> keras.Model:
    """CenterNet (Zhou et al. 2019): heat map, sizes and offsets at stride 4 through transposed convolutions."""
    image = keras.Input((side, side, 3))
    x = mobilenet_v2(layers.Rescaling(1 / 127.5, -1)(image))[-1]
    for filters in (48, 32, 24):
        x = layers.Conv2DTranspose(filters, 4, 2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    outputs = {}
    for name, size, last in (("heat", classes, "sigmoid"), ("sizes", 2, "linear"), ("offsets", 2, "sigmoid")):
        y = separable(x, 24, activation="relu")
        outputs[name] = layers.Conv2D(size, 1, activation=last, name=name)(y)
    return model(image, outputs, "centernet")


def _net(inputs: Any, filters: tuple[int, ...], kernels: tuple[int, ...], pools: tuple[int, ...]) -> Any:
    x = (inputs - 127.5) * 0.0078125
    for width, kernel, pool in zip(filters, kernels, pools, strict=True):
        x = layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(width, kernel)(x))
        if pool:
            x = layers.MaxPooling2D(pool, 2, padding="same")(x)
    return x


def mtcnn_pnet(side: int = 48) -> keras.Model:
    """MTCNN's first net (Zhang et al. 2016): fully convolutional."""
    image = keras.Input((side, side, 3))
    x = _net(image, (10, 16, 32), (3, 3, 3), (2, 0, 0))
    return model(image, [layers.Conv2D(4, 1)(x), layers.Softmax()(layers.Conv2D(2, 1)(x))], "mtcnn_pnet")


def mtcnn_rnet() -> keras.Model:
    """MTCNN's second net: 24 x 24 crops."""
    image = keras.Input((24, 24, 3))
    x = _net(image, (28, 48, 64), (3, 3, 2), (3, 3, 0))
    x = layers.PReLU()(layers.Dense(128)(layers.Flatten()(x)))
    return model(image, [layers.Dense(4)(x), layers.Softmax()(layers.Dense(2)(x))], "mtcnn_rnet")


def mtcnn_onet() -> keras.Model:
    """MTCNN's third net: 48 x 48 crops, boxes, landmarks and face or not."""
    image = keras.Input((48, 48, 3))
    x = _net(image, (32, 64, 64, 128), (3, 3, 3, 2), (3, 3, 2, 0))
    x = layers.PReLU()(layers.Dense(256)(layers.Flatten()(x)))
    return model(image, [layers.Dense(4)(x), layers.Dense(10)(x), layers.Softmax()(layers.Dense(2)(x))], "mtcnn_onet")
