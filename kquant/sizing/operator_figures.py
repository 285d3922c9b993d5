"""The figures of a file by operator: bytes, multiplications, what is alive, and how far its layer is from float."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kquant.analysis.results import Analysis
from kquant.core.operators import facts
from kquant.sizing.layer_sizes import layer_of, stored_bytes
from kquant.tflite.memory_plan import memory_plan
from kquant.tflite.reader import FileModel, FileOperator, inspect


@dataclass(frozen=True)
class OperatorFigures:
    """Of one operator.

    Attributes:
        layer: the Keras layer that it comes from.
        code: of the operator.
        graph: name of its subgraph.
        node: its number in there.
        output: name of the first tensor that it writes; "" where it writes none.
        stored_bytes: of the constants that no operator before it reads.
        macs: multiply-accumulates of one call; in a loop, of one step.
        arena_bytes: of the tensors that are alive while it runs.
        sqnr_db: of its layer's output against the float model's; None where nobody analyzed it.
    """

    layer: str
    code: str
    graph: str
    node: int
    output: str
    stored_bytes: int
    macs: int
    arena_bytes: int
    sqnr_db: float | None = None


@dataclass(frozen=True)
class FileFigures:
    """Of a file.

    Attributes:
        name: of the file, or of the model in it.
        operators: in the file's order.
        size_bytes: of the file.
    """

    name: str
    operators: tuple[OperatorFigures, ...]
    size_bytes: int

    @property
    def macs(self) -> int:
        """Of one call; what loops repeat counts once."""
        return sum(row.macs for row in self.operators)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "macs": self.macs}


def figures_of(path: str | Path | bytes, analysis: Analysis | None = None) -> FileFigures:
    """What each operator of a file takes.

    Args:
        path: a `.tflite` file, or its bytes.
        analysis: of the quantized model that the file was exported from.

    Raises:
        ValueError: no such file, not a TFLite file, or one that has no layer of the analyzed model.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(32, name="first")])
        >>> q = kquant.calibrate(kquant.quantize(model), np.ones((64, 8), "float32"), verbose=False)
        >>> report = kquant.export(q, "dense.tflite", check_runtimes=False)
        >>> [(row.layer, row.macs, row.arena_bytes) for row in figures_of("dense.tflite").operators]
        [('first', 256, 48)]
    """
    file = inspect(path)
    alive, stored = memory_plan(file).alive_bytes, stored_bytes(file)
    far = {} if analysis is None else {row.name: row.sqnr_db for row in analysis.layers}
    rows: list[OperatorFigures] = []
    counts: dict[int, int] = {}
    for op in file.operators:
        node = counts[op.subgraph] = counts.get(op.subgraph, -1) + 1
        layer = layer_of(file, op, {})
        rows.append(
            OperatorFigures(
                layer=layer,
                code=op.code,
                graph=file.graphs[op.subgraph],
                node=node,
                output=file.tensors[op.outputs[0]].name if op.outputs else "",
                stored_bytes=stored[op.index],
                macs=macs_of_operator(file, op),
                arena_bytes=alive[op.index],
                sqnr_db=_far(far, file, op, layer),
            )
        )
    if analysis is not None and all(row.sqnr_db is None for row in rows):
        raise ValueError(
            f"view: this file has no layer of '{analysis.model}', the model that was analyzed; give the one that it "
            "was exported from."
        )
    name = "model" if isinstance(path, bytes | bytearray) else Path(path).stem
    return FileFigures(name, tuple(rows), file.size_bytes)


def _far(far: Mapping[str, float], file: FileModel, op: FileOperator, layer: str) -> float | None:
    """Of the tensor that it writes, where the analysis has it by that name, or of its layer."""
    written = file.tensors[op.outputs[0]].name.split("/")[0] if op.outputs else layer
    return far.get(written, far.get(layer))


def macs_of_operator(file: FileModel, op: FileOperator) -> int:
    """Multiply-accumulates of one call of an operator.

    Args:
        file: with the operator.
        op: one of its operators.
    """
    known = facts(op.code)
    if known.multiplies is None:
        return 0
    shapes: list[tuple[int, ...]] = [file.tensors[i].shape if i >= 0 else () for i in op.inputs]
    weights = [shapes[i] for i in known.weights if i < len(shapes) and shapes[i]]
    data, output = shapes[known.data], file.tensors[op.outputs[0]].shape
    if not weights or not output:
        return 0
    if known.multiplies == "rows":  # of [..., rows, depth] x [..., depth, columns], either of them transposed
        depth = data[-1] if data[-2] == output[-2] else data[-2]
        return math.prod(output) * depth
    size = sum(math.prod(shape) for shape in weights)
    if known.multiplies == "output":
        return math.prod(output) // weights[0][known.channel_axis] * size
    return math.prod((data if known.multiplies == "data" else output)[:-1]) * size
