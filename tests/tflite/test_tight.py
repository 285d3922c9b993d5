"""Files without idle bytes: the schema's own reader finds in them what it finds in any other."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from benchmarks import assets
from kquant.tflite.anatomy import file_parts
from kquant.tflite.flatbuffer import ALIGNMENT, Buffer, packed, unpacked
from kquant.tflite.reader import SCHEMA, constants, read_model
from kquant.tflite.tight import Tight

FILES = sorted((assets.FOLDER / "mlperf_tiny").glob("*/*.tflite"))


def told(value: Any) -> Any:
    """Objects of the schema as plain data."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        return [told(v) for v in value]
    if hasattr(value, "__dict__"):
        return {"kind": type(value).__name__, **{name: told(v) for name, v in vars(value).items()}}
    return value


def a_model() -> Any:
    """Two graphs, options of several kinds, equal and unequal vectors, every width of number."""
    model = SCHEMA.ModelT()
    model.version, model.description = 3, "tight"
    rng = np.random.default_rng(0)
    model.buffers = [SCHEMA.BufferT()]
    for size in (1, 15, 16, 17, 64, 1000, 64):
        buffer = Buffer()
        buffer.data = rng.integers(0, 256, size).astype(np.uint8)
        model.buffers.append(buffer)
    model.operatorCodes, model.subgraphs = [], []
    for code, version in ((3, 1), (3, 2), (127, 1)):
        entry = SCHEMA.OperatorCodeT()
        entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), version
        model.operatorCodes.append(entry)
    for n in range(2):
        graph = SCHEMA.SubGraphT()
        graph.inputs, graph.outputs, graph.name = [0], [5], f"graph {n}"
        graph.tensors = [tensor(k, rng) for k in range(6)]
        graph.operators = [operator(k) for k in range(4)]
        model.subgraphs.append(graph)
    return model


def tensor(k: int, rng: np.random.Generator) -> Any:
    made = SCHEMA.TensorT()
    made.shape, made.type, made.buffer = np.array([1, 2, k // 2], np.int32), [9, 2, 7][k % 3], k
    made.hasRank, made.isVariable = bool(k % 2), k == 4
    made.quantization = SCHEMA.QuantizationParametersT()
    made.quantization.scale = rng.random(1 + k // 4).astype(np.float32)
    made.quantization.zeroPoint = np.zeros(1 + k // 4, np.int64)
    made.quantization.quantizedDimension = k % 3
    return made


def operator(k: int) -> Any:
    made = SCHEMA.OperatorT()
    made.opcodeIndex, made.inputs, made.outputs = k % 3, [k, k + 1, -1], [k + 2]
    if k != 2:
        made.builtinOptionsType = SCHEMA.BuiltinOptions.Conv2DOptions
        made.builtinOptions = SCHEMA.Conv2DOptionsT()
        made.builtinOptions.strideW = made.builtinOptions.strideH = 1 + k // 2
    return made


def test_nothing_is_lost_and_little_is_idle():
    model = a_model()
    loose, tight = packed(model), packed(model, tight=True)
    assert told(unpacked(tight)) == told(unpacked(loose)) and tight[4:8] == b"TFL3"
    assert len(tight) < len(loose) - 200
    parts = {part.name: part.bytes for part in file_parts(tight, read_model(tight))}
    assert parts["padding"] < 100


@pytest.mark.parametrize("seed", range(6))
def test_contents_lie_at_multiples_of_16(seed):
    rng = np.random.default_rng(seed)
    model = a_model()
    for buffer in model.buffers[1:]:
        buffer.data = rng.integers(0, 256, rng.integers(1, 40)).astype(np.uint8)
    content = packed(model, tight=True)
    read = SCHEMA.Model.GetRootAs(content, 0)
    start = np.frombuffer(content, np.uint8).ctypes.data
    for i in range(1, read.BuffersLength()):
        held = read.Buffers(i).DataAsNumpy()
        assert (held.ctypes.data - start) % ALIGNMENT == 0
        assert held.tolist() == model.buffers[i].data.tolist()
    graph = read.Subgraphs(0)
    for i in range(graph.TensorsLength()):
        grid = graph.Tensors(i).Quantization()
        assert (grid.ZeroPointAsNumpy().ctypes.data - start) % 8 == 0
        assert (grid.ScaleAsNumpy().ctypes.data - start) % 4 == 0


def test_equal_things_are_one():
    read = SCHEMA.Model.GetRootAs(packed(a_model(), tight=True), 0)
    graph = read.Subgraphs(0)
    options = [graph.Operators(i).BuiltinOptions().Pos for i in (0, 1, 3)]
    assert Counter(options).most_common(1)[0][1] == 2  # of the three, two have the same strides
    again = read.Buffers(5).DataAsNumpy().ctypes.data, read.Buffers(7).DataAsNumpy().ctypes.data
    assert again[0] != again[1]  # of one length, and not the same


def test_what_it_does_not_know_is_an_error():
    with pytest.raises(AttributeError):
        Tight().PrependStructSlot(0, 1, 0)


@pytest.mark.skipif(not FILES, reason="the models are not part of the repository; set KQUANT_ASSETS")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_foreign_files_keep_what_they_hold(path):
    model = unpacked(path.read_bytes())
    content = packed(model, tight=True)
    assert len(content) < path.stat().st_size
    before, after = constants(path.read_bytes()), constants(content)
    assert before.keys() == after.keys() and all(np.array_equal(before[i], after[i]) for i in before)
