"""A detector's file that chooses its boxes itself: the custom operator TFLite_Detection_PostProcess behind its outputs.

    boxes, scores  ->  DEQUANTIZE  ->  TFLite_Detection_PostProcess  ->  boxes, classes, scores, how many

It computes in float32, and is the one operator with DEQUANTIZE in front that does. LiteRT's kernel takes float32 or
uint8, TFLM's float32 alone, so that is what both get. Facts from tensorflow/lite/kernels/detection_postprocess.cc of
LiteRT (f674577) and tensorflow/lite/micro/kernels/detection_postprocess.cc of tflite-micro (90b983c): three inputs,
encodings `[1, rows, 4]` of `y, x, h, w`, scores `[1, rows, classes]` as they are (no sigmoid), anchors `[rows, 4]`;
four outputs of float32; options as a map in the form of FlexBuffers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from kquant.core.program import Operator, Program, Ref
from kquant.tflite.file_model import CHOOSES
from kquant.tflite.flatbuffer import packed, unpacked

CODE = "TFLite_Detection_PostProcess"
KEY = CHOOSES
OUTPUTS = ("detection_boxes", "detection_classes", "detection_scores", "num_detections")
YX = np.array([1, 0, 3, 2], np.int32)


@dataclass(frozen=True, eq=False)
class BoxChoice:
    """What the operator is told.

    Attributes:
        boxes, scores: numbers of the outputs that it reads.
        anchors: float32 `[rows, 4]`: centre and size, height first.
        scales: what the four numbers are divided by, height first.
        from_xy: the boxes have width before height.
        classes: how many, without a background.
        threshold: the lowest score that counts.
        overlap: intersection over union by more than which a box goes.
        limit: boxes at most.
        by_class: boxes of different classes do not exclude each other.
    """

    boxes: int
    scores: int
    anchors: np.ndarray
    scales: tuple[float, float, float, float]
    from_xy: bool
    classes: int
    threshold: float
    overlap: float
    limit: int
    by_class: bool

    @property
    def options(self) -> dict[str, Any]:
        """By the names that the kernels read."""
        by_axis = zip(("y_scale", "x_scale", "h_scale", "w_scale"), self.scales, strict=True)
        return {
            "max_detections": self.limit,
            "max_classes_per_detection": 1,
            "detections_per_class": self.limit,
            "use_regular_nms": self.by_class,
            "nms_score_threshold": float(self.threshold),
            "nms_iou_threshold": float(self.overlap),
            "num_classes": self.classes,
            **{name: float(scale) for name, scale in by_axis},
        }


def choosing(program: Program, choice: BoxChoice) -> tuple[Program, dict[str, Any]]:
    """The program with the operator behind its outputs, and what its file's metadata have to say under `KEY`.

    Args:
        program: of a detector; it stays as it was.
        choice: what the operator is told.
    """
    longer = replace(program, operators=list(program.operators), output_names=OUTPUTS)
    read = [program.outputs[number] for number in (choice.boxes, choice.scores)]
    boxes, scores = (_in_float(longer, ref, len(choice.anchors)) for ref in read)
    if choice.from_xy:
        swapped = longer.value(f"{boxes.name}/yx", boxes.shape, None)
        boxes = longer.emit("GATHER", [boxes, longer.constant("yx", YX)], swapped, axis=2)
    anchors = longer.constant("anchors", choice.anchors.astype(np.float32))
    shapes = ((1, choice.limit, 4), (1, choice.limit), (1, choice.limit), (1,))
    longer.outputs = [longer.value(name, shape, None) for name, shape in zip(OUTPUTS, shapes, strict=True)]
    longer.operators.append(Operator(CODE, [boxes, scores, anchors], list(longer.outputs), choice.options))
    behind = len(longer.operators) - len(program.operators)
    return longer, {"outputs": [ref.name for ref in program.outputs], "operators": behind, "classes": choice.classes}


def _in_float(program: Program, ref: Ref, rows: int) -> Ref:
    """An output as the operator reads it: `[1, rows, columns]` of float32."""
    ref = program.reshape(ref, (1, rows, ref.shape[-1]))
    return program.emit("DEQUANTIZE", [ref], program.value(f"{ref.name}/float32", ref.shape, None))


def without_choice(content: bytes, said: Any) -> bytes:
    """The file without the operator: what it reads are the outputs again, and signatures are left out.

    Args:
        content: a `.tflite` file that chooses boxes.
        said: in its metadata under `KEY`.

    Raises:
        ValueError: the file is another one than its metadata tell.
    """
    model = unpacked(content)
    graph = model.subgraphs[0]
    index: dict[str, int] = {(t.name or b"").decode(): number for number, t in enumerate(graph.tensors)}
    told = cast(dict[str, Any], said if isinstance(said, dict) else {})
    behind, names = told.get("operators"), told.get("outputs")
    outputs = [index.get(str(name)) for name in cast(list[Any], names if isinstance(names, list) else [])]
    last = model.operatorCodes[graph.operators[-1].opcodeIndex].customCode if graph.operators else None
    if (
        not (isinstance(behind, int) and 0 < behind < len(graph.operators))
        or last != CODE.encode()
        or not outputs
        or None in outputs
    ):
        raise ValueError(
            f"its metadata tell of {CODE} behind the outputs {names}, which is not what it ends in: another tool has "
            "changed it. Export the model again."
        )
    graph.operators = graph.operators[:-behind]
    graph.outputs = outputs
    model.signatureDefs = []
    return packed(model)
