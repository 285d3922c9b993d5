"""Which columns of which output are boxes, objectness and scores.

One output may hold all three, side by side in its last axis: boxes, then objectness, then scores, as YOLO's heads do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from kquant.detecting.spec import Detection
from kquant.graph.output_names import output_number


@dataclass(frozen=True)
class Columns:
    """A part of the last axis of an output.

    Attributes:
        output: its number.
        first, many: the columns.
        width: of the output's last axis.
    """

    output: int
    first: int
    many: int
    width: int

    def of(self, array: np.ndarray) -> np.ndarray:
        """`[rows, many]` of an output of one sample."""
        return array.reshape(-1, self.width)[:, self.first : self.first + self.many]


@dataclass(frozen=True)
class Roles:
    """What is read of the outputs of a detector; `objectness` is None without one.

    Attributes:
        rows: how many.
        boxes, scores, objectness: where they are.
    """

    rows: int
    boxes: Columns
    scores: Columns
    objectness: Columns | None

    @property
    def parts(self) -> dict[str, Columns]:
        """By name, in the order in which they share an output."""
        parts = {"boxes": self.boxes, "objectness": self.objectness, "scores": self.scores}
        return {role: columns for role, columns in parts.items() if columns is not None}

    @property
    def outputs(self) -> list[int]:
        """Numbers of the outputs that are read, each once."""
        return list(dict.fromkeys(columns.output for columns in self.parts.values()))

    def split(self, parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Boxes, scores and objectness of one sample, `[rows, columns]` each, of the `outputs` that are read."""
        by_number = dict(zip(self.outputs, parts, strict=True))
        read = {role: columns.of(by_number[columns.output]) for role, columns in self.parts.items()}
        return read["boxes"], read["scores"], read.get("objectness")


BESIDE = (
    " Give the model an output of each part alone (out[..., :4]); or name an output for all parts that lie in its last "
    "axis: objectness='boxes' where a fifth number says how sure a row is."
)


def roles_of(detection: Detection, names: Sequence[str], shapes: Sequence[Sequence[Any]], where: str) -> Roles:
    """The columns of a model's outputs.

    Args:
        detection: names them.
        names: of the outputs.
        shapes: of them, the batch first.
        where: what to call the model in errors.

    Raises:
        ValueError: there is no output of that name, or it has another shape.

    Example:
        >>> roles = roles_of(Detection("out", "out", "out", form="centres"), ["out"], [(None, 25, 8)], "yolo")
        >>> roles.objectness, roles.scores
        (Columns(output=0, first=4, many=1, width=8), Columns(output=0, first=5, many=3, width=8))
    """
    keys = {"boxes": detection.boxes, "objectness": detection.objectness, "scores": detection.scores}
    at = {role: output_number(key, names, where) for role, key in keys.items() if key is not None}
    fixed = {"boxes": detection.box_numbers, "objectness": 1}
    parts: dict[str, Columns] = {}
    used = dict.fromkeys(at.values(), 0)
    for role, output in at.items():
        if None in shapes[output][1:]:
            raise ValueError(
                f"{where}: output '{names[output]}' has no fixed shape, {tuple(shapes[output][1:])}; give the model's "
                "Input one, or kquant.check and kquant.quantize an input_shape."
            )
        if len(shapes[output]) < 2:
            raise ValueError(
                f"{where}: output '{names[output]}' is one number a sample; {_wanted(at, fixed)} are wanted. Name "
                f"another for {role}."
            )
        width = int(shapes[output][-1])
        last = [other for other, number in at.items() if number == output][-1] == role
        many = width - used[output] if last else fixed[role]
        parts[role] = Columns(output, used[output], many, width)
        used[output] += many
    rows = [prod(int(n) for n in shapes[output][1:-1]) for output in at.values()]
    anchors = rows[0] if detection.anchors is None else len(detection.anchors)
    right = all(parts[role].many == many for role, many in fixed.items() if role in parts)
    if not right or parts["scores"].many < 1 or {*rows, anchors} != {rows[0]}:
        given = ", ".join(f"{role} {tuple(shapes[output][1:])}" for role, output in at.items())
        raise ValueError(
            f"{where}: {_wanted(at, fixed)} and as many anchors are wanted. Received: {given}"
            + ("." if detection.anchors is None else f", {anchors} anchors.")
            + ("" if right else BESIDE)
            + (f" Make an anchor for each of the {rows[0]} rows." if right and {*rows} == {rows[0]} else "")
        )
    if parts["scores"].many <= detection.background:
        raise ValueError(f"{where}: scores of one class, and that is the background; leave background out.")
    return Roles(rows[0], parts["boxes"], parts["scores"], parts.get("objectness"))


def _wanted(at: dict[str, int], fixed: dict[str, int]) -> str:
    """The shapes, in words: those that share an output have their columns added."""
    said = []
    columns = {**{role: str(many) for role, many in fixed.items()}, "scores": "classes"}
    for output in dict.fromkeys(at.values()):
        of = [role for role, number in at.items() if number == output]
        said.append(f"{' with '.join(of)} [rows, {' + '.join(columns[role] for role in of)}]")
    return ", ".join(said)
