"""Whether a detector's file can choose its boxes itself, by TFLite_Detection_PostProcess: what that cannot express."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from kquant import targets
from kquant.core.checks import check_kind
from kquant.core.messages import first_of
from kquant.detecting.columns import Roles
from kquant.detecting.outputs import roles_in, shapes_of
from kquant.detecting.spec import Detection
from kquant.targets import Target
from kquant.tflite.box_choice import CODE
from kquant.views.float_model import read

FORM = "offsets"  # the one that it decodes
BESIDE = "Leave detection out: kquant.detect and kquant.bundle(detection=...) choose these boxes beside the file."


def why_beside(detection: Detection, roles: Roles, outputs: int, target: Target) -> str:
    """What stands against a file that ends in boxes, and what to do; empty where nothing does.

    Args:
        detection: what the outputs mean.
        roles: where they are.
        outputs: how many the model has.
        target: that the file is for.

    Example:
        >>> from kquant.detecting.columns import roles_of
        >>> yolo = Detection("out", "out", "out", form="centres")
        >>> roles = roles_of(yolo, ["out"], [(1, 25, 8)], "yolo")
        >>> why_beside(yolo, roles, 1, targets.load("litert")).partition(",")[0]
        "TFLite_Detection_PostProcess decodes the form 'offsets' alone"
    """
    return next(_reasons(detection, roles, outputs, target), "")


def why_of(who: str, model: keras.Model, detection: Detection, target: str, input_shape: Any) -> str:
    """The same of a float model, before anything is quantized.

    Args:
        who: the verb that errors name.
        model: with outputs.
        detection: what they mean.
        target: name of the one that the file is for.
        input_shape: what open dimensions are to be; None where there are none.

    Raises:
        TypeError: `detection` is no `Detection`.
        ValueError: boxes, scores and anchors do not fit.
    """
    check_kind(who, "detection", detection, Detection)
    # of open shapes what `input_shape` makes of them
    made = None if input_shape is None else [t.shape for t in read(model, input_shape).output_tensors]
    return why_beside(detection, roles_in(model, detection, made), len(shapes_of(model)), targets.load(target))


def _reasons(detection: Detection, roles: Roles, outputs: int, target: Target) -> Iterator[str]:
    if not target.chooses_boxes:
        able = [name for name in targets.names() if targets.load(name).chooses_boxes]
        yield f"target '{target.name}' has no {CODE}; {first_of(able, len(able))} have. {BESIDE}"
    if detection.form != FORM:
        yield f"{CODE} decodes the form '{FORM}' alone, centre and size from anchors, not '{detection.form}'. {BESIDE}"
    if detection.objectness is not None:
        yield (
            f"{CODE} multiplies scores by no objectness. Multiply them in the model, which has outputs for boxes and "
            "products then; or leave detection out, and choose beside the file."
        )
    if roles.boxes.output == roles.scores.output:
        yield (
            f"{CODE} reads boxes and scores of two tensors, and here one output has both. Give the model two, "
            "[..., :4] and [..., 4:] of it; or leave detection out, and choose beside the file."
        )
    if outputs > len(roles.outputs):
        yield (
            f"a file that chooses boxes gives these alone, and the model has {outputs} outputs. Export a model of "
            "boxes and scores, or leave detection out, and choose beside the file."
        )
    if detection.overlap == 0.0:
        yield f"{CODE} wants an overlap above 0. Give Detection a small one, overlap=1e-3."
    if roles.rows < 2:
        yield f"{CODE} wants two rows or more: TensorFlow Lite Micro's memory for one is too small. {BESIDE}"
