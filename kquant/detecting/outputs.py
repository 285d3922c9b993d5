"""A detector and samples -> boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kquant.core.messages import did_you_mean
from kquant.detecting.choice import chosen
from kquant.detecting.decoding import ONE, Decoder, decoder, real_corners
from kquant.detecting.spec import Detection, Found
from kquant.runtime.running import predict, quantize_input
from kquant.tflite.reader import FileTensor, inspect, label

WIDTHS = {"int8": 8, "int16": 16}


@dataclass(frozen=True, eq=False)
class Grids:
    """How the codes of a file's two outputs become boxes.

    Attributes:
        boxes, scores: numbers of the outputs.
        decoder: of the boxes.
        lowest: the lowest code of a score that counts.
        tensors: the two outputs.
    """

    boxes: int
    scores: int
    decoder: Decoder
    lowest: int
    tensors: tuple[FileTensor, FileTensor]


def detect(
    model: keras.Model | str | Path | bytes, data: Any, detection: Detection, *, runtime: str = "litert"
) -> list[Found]:
    """The boxes that a detector finds, sample by sample.

    Reads: `model` stays as it was.

    A file's codes are decoded and compared in integers, as the C of `kquant.bundle(detection=...)` does it on the
    device; outputs of a Keras model, float or quantized, in float64.

    Args:
        model: a Keras model, or a `.tflite` file or its bytes.
        data: samples, as for `model.predict` or `kquant.predict`.
        detection: what the outputs mean.
        runtime: that computes a file, see `kquant.predict`.

    Returns:
        One `Found` for each sample.

    Raises:
        ValueError: an output that there is not, or of another shape than boxes, scores and anchors want; a file whose
            outputs are floats.

    Example:
        >>> image = keras.Input((8, 8, 1))
        >>> x = keras.layers.Conv2D(4, 3, 2, padding="same", activation="relu")(image)
        >>> boxes = keras.layers.Reshape((16, 4), name="boxes")(keras.layers.Conv2D(4, 1)(x))
        >>> scores = keras.layers.Reshape((16, 2))(keras.layers.Conv2D(2, 1, activation="sigmoid")(x))
        >>> model = keras.Model(image, {"boxes": boxes, "scores": scores})
        >>> data = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
        >>> [len(found) <= 3 for found in kquant.detect(model, data, kquant.Detection(form="centres", limit=3))]
        [True, True]
    """
    if isinstance(model, keras.Model):
        outputs = _named(model)
        at = [_number(key, list(outputs), model.name) for key in (detection.boxes, detection.scores)]
        shapes = [tuple(list(outputs.values())[i]) for i in at]
        _check_shapes(detection, shapes[0], shapes[1], model.name)
        arrays = keras.tree.flatten(model.predict(data, verbose=0))  # pyright: ignore[reportArgumentType]
        return [
            found_of(detection, real_corners(detection, _rows(b)), _rows(s), detection.threshold)
            for b, s in zip(arrays[at[0]], arrays[at[1]], strict=True)
        ]
    grids = grids_of(detection, inspect(model).outputs, label(model))
    given = predict(model, data, runtime)
    arrays = [given] if isinstance(given, np.ndarray) else given
    coded = [quantize_input(arrays[i], t) for i, t in zip((grids.boxes, grids.scores), grids.tensors, strict=True)]
    return [of_codes(detection, grids, b, s) for b, s in zip(*coded, strict=True)]


def grids_of(detection: Detection, outputs: Sequence[FileTensor], where: str) -> Grids:
    """The two outputs among those of a file.

    Args:
        detection: names them.
        outputs: of the file, in its order.
        where: what to call the file.

    Raises:
        ValueError: there is none of that name, it has another shape, or it holds floats.
    """
    names = [t.name for t in outputs]
    boxes, scores = (_number(key, names, where) for key in (detection.boxes, detection.scores))
    _check_shapes(detection, outputs[boxes].shape, outputs[scores].shape, where)
    for tensor in (outputs[boxes], outputs[scores]):
        if tensor.dtype not in WIDTHS or tensor.scale is None:
            raise ValueError(
                f"{where}: output '{tensor.name}' is {tensor.dtype}; boxes are decoded from int8 or int16 codes. "
                "Export with io='int8', or leave io out."
            )
    b, s = outputs[boxes], outputs[scores]
    made = decoder(detection, b.scale[0], b.zero_point[0], WIDTHS[b.dtype])  # type: ignore[index]
    wanted = np.ceil(detection.threshold / s.scale[0] - 1e-6) + s.zero_point[0]  # type: ignore[index]
    info = np.iinfo(s.dtype)
    if wanted > info.max:
        raise ValueError(
            f"{where}: the threshold {detection.threshold:g} lies above all that output '{s.name}' can give, "
            f"{(info.max - s.zero_point[0]) * s.scale[0]:.3g}; take a lower one."  # type: ignore[index]
        )
    return Grids(boxes, scores, made, int(max(wanted, info.min)), (b, s))


def of_codes(detection: Detection, grids: Grids, boxes: np.ndarray, scores: np.ndarray) -> Found:
    """The boxes of one sample, from its codes."""
    scale, zero = grids.tensors[1].scale[0], grids.tensors[1].zero_point[0]  # type: ignore[index]
    found = found_of(detection, grids.decoder.corners(_rows(boxes)), _rows(scores), grids.lowest)
    real = (found.scores.astype(np.float32) - zero) * np.float32(scale)
    return Found(found.boxes, real, found.classes, found.rows)


def found_of(detection: Detection, corners: np.ndarray, scores: np.ndarray, lowest: float) -> Found:
    """Those that are left, with corners in parts of the image and scores as they came."""
    rows, classes = chosen(detection, corners, scores, lowest)
    unit = 2.0**-ONE if np.issubdtype(corners.dtype, np.integer) else 1.0
    return Found((corners[rows] * unit).astype(np.float32), scores[rows, classes], classes, rows)


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1])


def _named(model: keras.Model) -> dict[str, tuple[Any, ...]]:
    """Names and shapes of the outputs, in the order in which `predict` gives them; a dict's keys are its names."""
    names = sorted(model.output) if isinstance(model.output, dict) else model.output_names
    return {name: t.shape for name, t in zip(names, keras.tree.flatten(model.output), strict=True)}


def _number(key: str | int, names: list[str], where: str) -> int:
    if isinstance(key, int):
        if not 0 <= key < len(names):
            raise ValueError(f"{where}: no output {key}; it has {len(names)}: {', '.join(names)}.")
        return key
    if key not in names:
        raise ValueError(f"{where}: no output '{key}'.{did_you_mean(key, names)} Its outputs: {', '.join(names)}.")
    return names.index(key)


def _check_shapes(detection: Detection, boxes: Sequence[Any], scores: Sequence[Any], where: str) -> None:
    rows = [int(np.prod([n for n in shape[1:-1]])) for shape in (boxes, scores)]
    anchors = rows[0] if detection.anchors is None else len(detection.anchors)
    if boxes[-1] != 4 or rows[0] != rows[1] or anchors != rows[0]:
        raise ValueError(
            f"{where}: boxes [rows, 4], scores [rows, classes] and as many anchors are wanted. Received: boxes "
            f"{tuple(boxes[1:])}, scores {tuple(scores[1:])}"
            + ("." if detection.anchors is None else f", {anchors} anchors.")
        )
    if scores[-1] <= detection.background:
        raise ValueError(f"{where}: scores of {scores[-1]} class, and that is the background; leave background out.")
