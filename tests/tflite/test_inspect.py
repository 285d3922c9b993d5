"""Any `.tflite` file is read: ours, a float one and a hybrid one written by hand, and the TensorFlow converter's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import flatbuffers
import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

import kquant

X = np.float32(np.random.default_rng(0).normal(size=(64, 6)))


def tensor(name: str, shape: list[int], kind: str, buffer: int, scale: list[float] | None = None) -> Any:
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name, shape, getattr(schema.TensorType, kind), buffer
    if scale is not None:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = scale, [0] * len(scale)
    return made


def dense_file(weights: np.ndarray, batch: int = 1, subgraphs: int = 1) -> bytes:
    """FULLY_CONNECTED by hand: float activations, and weights of the type given."""
    model, graph, operator, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
    stored = schema.BufferT()
    stored.data = np.frombuffer(weights.tobytes(), np.uint8)
    model.version, model.buffers = 3, [schema.BufferT(), stored]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version, model.operatorCodes = 4, [code]
    kind, scale = ("INT8", [0.01]) if weights.dtype == np.int8 else ("FLOAT32", None)
    units, width = weights.shape
    graph.tensors = [
        tensor("x", [batch, width], "FLOAT32", 0),
        tensor("w", [units, width], kind, 1, scale),
        tensor("y", [batch, units], "FLOAT32", 0),
    ]
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, -1], [2]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph.inputs, graph.outputs, graph.operators, graph.name = [0], [2], [operator], "main"
    model.subgraphs = [graph] * subgraphs
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


W = np.float32(np.random.default_rng(1).normal(size=(3, 6)))


def test_float_file() -> None:
    found = kquant.inspect(dense_file(W))
    assert not found.is_integer and found.operator_counts == {"FULLY_CONNECTED": 1}
    assert (
        "1 of 1 operators compute in float (FULLY_CONNECTED x1): slow or impossible on microcontrollers"
        in found.findings[0]
    )
    assert any("'x' is FLOAT32" in line for line in found.findings) and any(
        "'y' is FLOAT32" in line for line in found.findings
    )
    assert found.weight_bytes == W.nbytes and found.metadata == {}
    assert found.inputs[0].shape == (1, 6) and found.inputs[0].dtype == "float32" and found.inputs[0].scale is None


def test_float_file_runs() -> None:
    np.testing.assert_allclose(kquant.predict(dense_file(W), X, "litert-reference"), X @ W.T, rtol=1e-5, atol=1e-5)


def test_hybrid_file() -> None:
    found = kquant.inspect(dense_file(np.int8(W * 50)))
    assert any(
        "1 operators are hybrid (int8 weights, float activations): TFLM refuses them" in line for line in found.findings
    )
    assert found.tensors[1].scale == (pytest.approx(0.01),) and found.tensors[1].type == "INT8"


def test_open_shapes_are_told() -> None:
    assert any(line.startswith("open shapes (x, y)") for line in kquant.inspect(dense_file(W, batch=-1)).findings)


def test_all_subgraphs_are_read() -> None:
    file = kquant.inspect(dense_file(W, subgraphs=2))
    assert [(op.subgraph, op.inputs, op.outputs) for op in file.operators] == [
        (0, (0, 1, -1), (2,)),
        (1, (3, 4, -1), (5,)),
    ]
    assert [t.index for t in file.tensors] == list(range(6))
    assert [t.index for t in (*file.inputs, *file.outputs)] == [0, 2]


def test_converters_file(tmp_path: Path) -> None:
    converter = getattr(getattr(tf, "lite", None), "TFLiteConverter", None)
    if converter is None:
        pytest.skip("this TensorFlow has no converter")
    inputs = keras.Input((6,), batch_size=1, name="x")
    model = keras.Model(inputs, keras.layers.Dense(3, activation="relu")(inputs))
    found = kquant.inspect(converter.from_keras_model(model).convert())
    assert found.operator_counts == {"FULLY_CONNECTED": 1} and not found.is_integer
    assert "compute in float" in found.findings[0]


@pytest.fixture(scope="module")
def ours() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(5, activation="relu", name="hidden"), keras.layers.Dense(3, name="out")]
    model = keras.Sequential([keras.Input((6,), name="x"), *layers])
    return kquant.calibrate(kquant.quantize(model), X, verbose=False)


def test_our_file(ours: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    report = kquant.export(ours, path)
    found = kquant.inspect(path)
    assert found.is_integer and found.findings == () and found.size_bytes == path.stat().st_size == report.file_bytes
    assert found.metadata == {"kquant": kquant.__version__, "recipe": "int8", "target": "litert"}
    kernel = next(t for t in found.tensors if t.name == "hidden/kernel")
    assert kernel.type == "INT8" and len(kernel.scale) == 5 and kernel.axis == 0 and kernel.size_bytes == 30
    assert kquant.inspect(path.read_bytes()) == found == kquant.inspect(str(path))
    json.dumps(found.to_dict())


@pytest.mark.parametrize(
    ("io", "kind", "casts"), [("uint8", "UINT8", ["QUANTIZE"] * 2), ("float32", "FLOAT32", ["QUANTIZE", "DEQUANTIZE"])]
)
def test_casts_at_the_edge_are_no_float_operators(
    ours: keras.Model, tmp_path: Path, io: Any, kind: str, casts: list[str]
) -> None:
    path = tmp_path / "m.tflite"
    kquant.export(ours, path, data=X, io=io)
    found = kquant.inspect(path)
    assert found.is_integer
    assert [op.code for op in found.operators] == [casts[0], "FULLY_CONNECTED", "FULLY_CONNECTED", casts[1]]
    assert found.inputs[0].type == found.outputs[0].type == kind
    assert bool(found.findings) == (io == "float32")
    report = kquant.verify(ours, path, X, "litert-reference")
    assert report.ok and report.agreements[0].equal == 1.0
    whole = tmp_path / "int8.tflite"
    kquant.export(ours, whole)
    found, wanted = (kquant.predict(p, X, "litert-reference") for p in (path, whole))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
