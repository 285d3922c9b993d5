"""A file that chooses its boxes itself: what its last operator is told, and whether it chooses as `Detection` says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kquant.core.checks import check_kind
from kquant.detecting.choice import candidates_of
from kquant.detecting.decoding import real_corners
from kquant.detecting.in_file import why_beside
from kquant.detecting.outputs import Grids, grids_of
from kquant.detecting.spec import Detection
from kquant.runtime.running import probe, quantize_input
from kquant.tflite.box_choice import BoxChoice
from kquant.tflite.file_content import Files, file_content
from kquant.tflite.file_model import by_nature
from kquant.tflite.lowering import Lowered
from kquant.tflite.reader import FileModel, read_model

SAMPLES = 16
EPSILON = 2.0**-23  # of float32
NEAR = 1e-5  # of the overlap: which side of the limit it is on, float32 decides


@dataclass(frozen=True)
class BoxCheck:
    """The boxes of a file on one runtime, against those of `Detection` in float64 from the same codes.

    Attributes:
        runtime: the interpreter.
        samples, boxes: how many were compared.
        undecided: samples left out, where two boxes overlap by the limit to 1e-5, and float32 chose otherwise.
        corner_err: the largest difference of a corner, in parts of the image.
    """

    runtime: str
    samples: int
    boxes: int
    undecided: int
    corner_err: float


@dataclass(frozen=True)
class Choosing:
    """What an export tells of a file that chooses its boxes itself.

    Attributes:
        operators: those that compute in float32, code -> count.
        anchor_bytes: what the anchors take in the file.
        checks: one for each runtime that ran the file.
    """

    operators: dict[str, int]
    anchor_bytes: int
    checks: tuple[BoxCheck, ...]


def choice_of(detection: Detection, lowered: Lowered) -> BoxChoice:
    """What the operator is told.

    Args:
        detection: what the outputs mean.
        lowered: the model, of which no file with other types at its edges was made yet.

    Raises:
        TypeError: `detection` is no `Detection`.
        ValueError: an output that there is not or of another shape; a head that the operator cannot express, or a
            target that has none.
    """
    check_kind("export", "detection", detection, Detection)
    named = read_model(file_content(lowered)).named_outputs
    if any(t.dtype == "float32" for t in named.values()):
        raise ValueError(
            f"export: the recipe '{lowered.recipe}' leaves outputs float, and boxes are chosen from codes. Quantize "
            "with recipe 'int8' or 'int16x8', or leave detection out."
        )
    grids = grids_of(detection, named, "export")
    why = why_beside(detection, grids.roles, len(named), lowered.target)
    if why:
        raise ValueError(f"export: this file cannot choose its boxes itself: {why}")
    swap = [1, 0, 3, 2] if detection.order == "xy" else [0, 1, 2, 3]
    return BoxChoice(
        boxes=grids.roles.boxes.output,
        scores=grids.roles.scores.output,
        anchors=np.asarray(detection.anchors, np.float32)[:, swap],
        scales=tuple(detection.scales[i] for i in swap),  # pyright: ignore[reportArgumentType]
        from_xy=detection.order == "xy",
        classes=grids.roles.scores.many - detection.background,
        # half a step below the lowest code that counts: no rounding of float32 moves a code across
        threshold=(grids.lowest - 0.5 - grids.zero) * grids.unit,
        overlap=detection.overlap,
        limit=detection.limit,
        by_class=detection.by_class,
    )


def choosing_of(file: FileModel, checks: tuple[BoxCheck, ...]) -> Choosing:
    """What is told of a file that was written.

    Args:
        file: it.
        checks: what running it gave.
    """
    in_float, _ = by_nature(file)
    anchors = file.tensors[in_float[-1].inputs[-1]]
    return Choosing(dict(Counter(op.code for op in in_float)), anchors.size_bytes, checks)


def check_boxes(detection: Detection, files: Files, file: FileModel, x: Sequence[np.ndarray], runtime: str) -> BoxCheck:
    """Run the file, and the one that ends in the model's outputs, and compare.

    Args:
        detection: that was asked for.
        files: both.
        file: the first.
        x: real numbers [samples, ...] for each input.
        runtime: the interpreter.

    Raises:
        ValueError: other boxes than `Detection` chooses.
    """
    codes = [quantize_input(a[:SAMPLES], t) for a, t in zip(x, file.inputs, strict=True)]
    outputs, given = probe(files.over_clips, runtime, codes), probe(files.content, runtime, codes)
    grids = grids_of(detection, read_model(files.over_clips).named_outputs, "export")
    boxes, undecided, worst = 0, 0, 0.0
    for n in range(len(codes[0])):
        wanted = _wanted(detection, grids, [outputs[number][n] for number in grids.roles.outputs])
        error = wanted.error(_given(grids, [part[n] for part in given], detection), detection.limit)
        if error <= wanted.tolerance:
            boxes, worst = boxes + min(detection.limit, len(wanted.steps)), max(worst, error)
        elif wanted.near:
            undecided += 1
        else:
            raise ValueError(
                f"export: on {runtime} the file chooses other boxes than kquant.Detection does of the same codes, in "
                f"sample {n}. Leave detection out, and choose with kquant.detect or in C; please report this."
            )
    return BoxCheck(runtime, len(codes[0]) - undecided, boxes, undecided, worst)


@dataclass(frozen=True, eq=False)
class _Boxes:
    """Boxes of one sample, the best first.

    Attributes:
        steps: codes of the scores.
        classes: of each.
        corners: float64 [n, 4].
        near: overlaps that float32 may see on the other side of the limit.
        tolerance: of a corner.
    """

    steps: np.ndarray
    classes: np.ndarray
    corners: np.ndarray
    near: bool = False
    tolerance: float = 0.0

    def error(self, other: _Boxes, limit: int) -> float:
        """The largest difference of a corner; inf where scores, classes or the number differ.

        The order of equal scores is nobody's promise, so boxes of one score are compared as a set; of the last score
        there may be more here than the limit leaves there.
        """
        count = min(limit, len(self.steps))
        if len(other.steps) != count or not np.array_equal(other.steps, self.steps[:count]):
            return np.inf
        left, worst = set(range(len(self.steps))), 0.0
        for step, kind, corners in zip(other.steps, other.classes, other.corners, strict=True):
            twins = [i for i in left if self.steps[i] == step and self.classes[i] == kind]
            if not twins:
                return np.inf
            errors = np.abs(self.corners[twins] - corners).max(axis=1)
            left.remove(twins[int(np.argmin(errors))])
            worst = max(worst, float(errors.min()))
        return worst


def _wanted(detection: Detection, grids: Grids, parts: Sequence[np.ndarray]) -> _Boxes:
    """What `Detection` chooses in float64, and all further boxes of the last score."""
    codes, scores, _ = grids.roles.split(parts)
    tensor = grids.tensors[grids.roles.outputs.index(grids.roles.boxes.output)]
    t = (codes.astype(np.float64) - tensor.zero_point[0]) * tensor.scale[0]  # pyright: ignore[reportOptionalSubscript]
    corners = real_corners(detection, t, cut=False)
    rows, classes = candidates_of(detection, scores, grids.lowest, None)
    steps, boxes = scores[rows, classes].astype(np.int64), corners[rows]
    active, picked, near = np.ones(len(rows), bool), list[int](), False
    for n in range(len(rows)):
        if len(picked) >= detection.limit and steps[n] < steps[picked[-1]]:
            break
        if not active[n]:
            continue
        picked.append(n)
        rivals = np.flatnonzero(active[n + 1 :] & ((classes[n + 1 :] == classes[n]) | (not detection.by_class))) + n + 1
        shared = _overlap(boxes[n], boxes[rivals])
        near = near or bool(np.any(np.abs(shared - detection.overlap) < NEAR))
        active[rivals[shared > detection.overlap]] = False
    # the kernel rounds t, anchors, centres and sizes to float32; an exponential multiplies the error of what it takes
    growth = 4.0 + np.abs(t[:, 2:] / np.asarray(detection.scales)[2:]).max(initial=0.0)
    largest = max(1.0, np.abs(corners).max(initial=0.0))
    return _Boxes(steps[picked], classes[picked], boxes[picked], near, growth * EPSILON * largest)


def _overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union with each."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.prod(np.maximum(sides, 0.0), axis=1)
    areas = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1)
    return shared / np.maximum(areas - shared, 1e-30)


def _given(grids: Grids, outputs: Sequence[np.ndarray], detection: Detection) -> _Boxes:
    """What the file gave."""
    corners, classes, scores, count = (np.asarray(part, np.float64) for part in outputs)
    n = int(count)
    steps = np.rint(scores[:n] / grids.unit).astype(np.int64) + grids.zero
    return _Boxes(steps, classes[:n].astype(np.int64) + detection.background, corners[:n])
