"""A detector and samples -> boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kquant.core.checks import check_kind
from kquant.detecting.choice import chosen
from kquant.detecting.columns import Columns, Roles, roles_of
from kquant.detecting.decoding import ONE, Decoder, decoder, real_corners
from kquant.detecting.spec import Detection, Found
from kquant.graph.output_names import named_shapes
from kquant.runtime.running import predict, quantize_input
from kquant.tflite.box_choice import KEY
from kquant.tflite.reader import FileTensor, inspect, label
from kquant.views.float_model import read

WIDTHS = {"int8": 8, "int16": 16}


@dataclass(frozen=True, eq=False)
class Grids:
    """How the codes of a file's outputs become boxes.

    Attributes:
        roles: where boxes, scores and objectness are.
        decoder: of the boxes.
        unit, zero: a score is `unit * (steps - zero)`; its steps are codes, or with objectness `product`s of codes.
        zeros: zero points of the scores and of objectness, of which products are made.
        lowest: the fewest steps of a score that counts.
        tensors: the outputs that are read, in the order of `roles.outputs`.
    """

    roles: Roles
    decoder: Decoder
    unit: float
    zero: int
    zeros: tuple[int, int]
    lowest: int
    tensors: tuple[FileTensor, ...]

    def steps(self, scores: np.ndarray, objectness: np.ndarray | None) -> np.ndarray:
        """What scores are compared by: codes, or products that fit into int32 (16-bit codes have zero point 0)."""
        if objectness is None:
            return scores
        of_scores, of_objectness = self.zeros
        return product(scores.astype(np.int64) - of_scores, objectness.astype(np.int64) - of_objectness)


def product(scores: np.ndarray, objectness: np.ndarray) -> np.ndarray:
    """Scores `[rows, classes]` times how sure a row `[rows, 1]` is, which is not below 0."""
    return scores * np.maximum(objectness, 0)


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
        TypeError: `detection` is no `Detection`.
        ValueError: an output that there is not, or of another shape than boxes, scores and anchors want; a file whose
            outputs are floats, or that chooses boxes itself.

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
    check_kind("detect", "detection", detection, Detection)
    if isinstance(model, keras.Model):
        roles = roles_in(model, detection)
        arrays = keras.tree.flatten(model.predict(data, verbose=0))  # pyright: ignore[reportArgumentType]
        return [_of_numbers(detection, roles, parts) for parts in _each(roles, arrays)]
    grids = grids_of(detection, raw_outputs(model), label(model))
    given = predict(model, data, runtime)
    arrays = [given] if isinstance(given, np.ndarray) else list(given)
    for number, tensor in zip(grids.roles.outputs, grids.tensors, strict=True):
        arrays[number] = quantize_input(arrays[number], tensor)
    return [of_codes(detection, grids, parts) for parts in _each(grids.roles, arrays)]


def roles_in(
    model: keras.Model | str | Path | bytes, detection: Detection, made: Sequence[Sequence[Any]] | None = None
) -> Roles:
    """Where boxes and scores stand in the outputs of a Keras model or of a file.

    Args:
        model: see `detect`.
        detection: names them.
        made: the shapes of the outputs, in their order; None: those that the model tells.

    Raises:
        ValueError: an output that there is not, or of another shape.
    """
    if isinstance(model, keras.Model):
        shapes = shapes_of(model)
    else:
        shapes = {name: tensor.shape for name, tensor in raw_outputs(model).items()}
    where = model.name if isinstance(model, keras.Model) else label(model)
    return roles_of(detection, list(shapes), list(shapes.values()) if made is None else made, where)


def shapes_of(model: keras.Model) -> dict[str, tuple[Any, ...]]:
    """Names and shapes of the outputs, in their order; a subclassed model, which tells of none, is followed."""
    if getattr(model, "output", None) is not None:
        return named_shapes(model)
    graph = read(model, None)
    names = sorted(graph.outputs) if isinstance(graph.outputs, dict) else range(len(graph.output_tensors))
    return {str(name): t.shape for name, t in zip(names, graph.output_tensors, strict=True)}


def raw_outputs(model: str | Path | bytes) -> dict[str, FileTensor]:
    """Outputs of a file that leaves the choice of boxes to others, by name.

    Args:
        model: the file, or its bytes.

    Raises:
        ValueError: it chooses boxes itself.
    """
    file = inspect(model)
    if KEY in file.metadata:
        raise ValueError(
            f"{label(model)}: this file chooses boxes itself, as its export was told. kquant.predict gives them: "
            "boxes, classes, scores and how many; for another choice export without detection."
        )
    return file.named_outputs


def _each(roles: Roles, arrays: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, ...]]:
    """Sample by sample, the outputs that are read."""
    return zip(*(arrays[number] for number in roles.outputs), strict=True)


def _of_numbers(detection: Detection, roles: Roles, parts: Sequence[np.ndarray]) -> Found:
    """The boxes of one sample, from real numbers."""
    boxes, scores, objectness = roles.split(parts)
    scores = scores if objectness is None else product(scores, objectness)
    return found_of(detection, real_corners(detection, boxes), scores, detection.threshold)


def grids_of(detection: Detection, named: Mapping[str, FileTensor], where: str) -> Grids:
    """The outputs among those of a file.

    Args:
        detection: names them.
        named: outputs of the file, in its order.
        where: what to call the file.

    Raises:
        ValueError: there is none of that name, it has another shape, or it holds floats.
    """
    names, outputs = list(named), list(named.values())
    roles = roles_of(detection, names, [t.shape for t in outputs], where)
    tensors = tuple(outputs[number] for number in roles.outputs)
    for number, tensor in zip(roles.outputs, tensors, strict=True):
        if tensor.dtype not in WIDTHS or tensor.scale is None:
            raise ValueError(
                f"{where}: output '{names[number]}' is {tensor.dtype}; boxes are decoded from int8 or int16 codes. "
                "Export with io='int8', or leave io out."
            )
    b = outputs[roles.boxes.output]
    made = decoder(detection, *_grid(b), WIDTHS[b.dtype])
    unit, zero, most = _score(outputs, roles.scores)
    zeros = (zero, 0)
    if roles.objectness is not None:
        sure, zero_of, most_sure = _score(outputs, roles.objectness)
        zeros = (zero, zero_of)
        unit, zero, most = unit * sure, 0, (most - zero) * (most_sure - zero_of)
    wanted = int(np.ceil(detection.threshold / unit - 1e-6)) + zero
    if wanted > most:
        raise ValueError(
            f"{where}: the threshold {detection.threshold:g} lies above all that output "
            f"'{names[roles.scores.output]}' can give, {(most - zero) * unit:.3g}; take a lower one."
        )
    least = np.iinfo(outputs[roles.scores.output].dtype).min if roles.objectness is None else np.iinfo(np.int32).min
    return Grids(roles, made, unit, zero, zeros, max(wanted, int(least)), tensors)


def _score(outputs: Sequence[FileTensor], columns: Columns) -> tuple[float, int, int]:
    """Scale, zero point and largest code."""
    tensor = outputs[columns.output]
    return *_grid(tensor), int(np.iinfo(tensor.dtype).max)


def _grid(tensor: FileTensor) -> tuple[float, int]:
    return tensor.scale[0], tensor.zero_point[0]  # type: ignore[index]


def of_codes(detection: Detection, grids: Grids, parts: Sequence[np.ndarray]) -> Found:
    """The boxes of one sample, from the codes of the outputs that are read."""
    boxes, scores, objectness = grids.roles.split(parts)
    found = found_of(detection, grids.decoder.corners(boxes), grids.steps(scores, objectness), grids.lowest)
    real = (found.scores.astype(np.float32) - grids.zero) * np.float32(grids.unit)
    return Found(found.boxes, real, found.classes, found.rows)


def found_of(detection: Detection, corners: np.ndarray, scores: np.ndarray, lowest: float) -> Found:
    """Those that are left, with corners in parts of the image and scores as they came."""
    rows, classes = chosen(detection, corners, scores, lowest)
    unit = 2.0**-ONE if np.issubdtype(corners.dtype, np.integer) else 1.0
    return Found((corners[rows] * unit).astype(np.float32), scores[rows, classes], classes, rows)
