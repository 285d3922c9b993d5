"""Casts at the edges of a file (`io=`), by the file's own integers: what the model gets there, and what it gives."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from kquant.arithmetic import Grid, quantize
from kquant.tflite.reader import FileModel, FileTensor

SIGNED = "/signed"  # what `cast_edges` calls a tensor between uint8 and int16
ON_GRID = 1e-3  # of a step; codes of 16 bits stand 1/258 of an 8-bit one apart


def behind_edge(file: FileModel, tensor: FileTensor, codes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """What the model is to compute from: what the file makes of an input's codes, where its edge has another type.

    Args:
        file: that has the edge.
        tensor: an input of it, or what stands between two casts.
        codes: of the tensor.
        x: real numbers that the codes are of.

    Returns:
        Real numbers on the model's own grid; the numbers as they came where nothing is cast there.
    """
    # the names are those that `cast_edges` gives; another QUANTIZE is a step of the model, which is simulated
    readers = [op for op in file.operators if op.subgraph == 0 and tensor.index in op.inputs]
    result = file.tensors[readers[0].outputs[0]] if len(readers) == 1 and readers[0].code == "QUANTIZE" else None
    given = tensor.name.removesuffix(SIGNED)
    if result is None or result.scale is None or result.name not in (f"{given}/{result.dtype}", f"{given}{SIGNED}"):
        return x
    made = _cast(codes, tensor, result)
    real = (made - result.zero_point[0]) * np.float64(result.scale[0])
    return behind_edge(file, result, made, real.astype(np.float32))


def at_edge(file: FileModel, tensor: FileTensor, values: np.ndarray) -> np.ndarray:
    """Outputs as a QUANTIZE at the file's edge gives them (`io=`), by its own integers: it rounds the model's codes.

    Args:
        file: that has the edge.
        tensor: an output of it, or what stands between two such operators.
        values: of the model, real numbers on its own grid.

    Returns:
        Real numbers on the tensor's grid; the values as they are where nothing is cast there.
    """
    made = next((op for op in file.operators if op.subgraph == 0 and tensor.index in op.outputs), None)
    if made is None or made.code != "QUANTIZE" or tensor.scale is None:
        return values
    source = file.tensors[made.inputs[0]]
    steps = values / tensor.scale[0]
    if source.scale is None or np.all(np.abs(steps - np.rint(steps)) < ON_GRID):
        return values  # the model's own last step, which is simulated
    inner = at_edge(file, source, values)
    codes = _cast(np.rint(inner / source.scale[0]) + source.zero_point[0], source, tensor)
    return (codes - tensor.zero_point[0]) * np.float64(tensor.scale[0])


def _cast(codes: np.ndarray, source: FileTensor, result: FileTensor) -> np.ndarray:
    """What QUANTIZE makes of codes, or of real numbers: integers."""
    before, after = _grid_of(source), _grid_of(result)
    if after is None:
        raise ValueError(f"'{result.name}': a QUANTIZE gives codes, which have a scale.")
    given = tf.constant(codes, tf.float32 if before is None else tf.int32)
    return quantize([given], [before], after).numpy()


def _grid_of(tensor: FileTensor) -> Grid | None:
    """Of a tensor with one scale, up to the ends of its type; None for real numbers."""
    if tensor.scale is None:
        return None
    info = np.iinfo(tensor.dtype)
    return Grid(tf.constant(tensor.scale[0]), tf.constant(float(tensor.zero_point[0])), int(info.min), int(info.max))
