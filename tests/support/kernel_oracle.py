"""Writes a TFLite file of a single operator and runs it, as the oracle of the arithmetic tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from one_op_types import packed

from kquant.core.packed import PACKED

_TYPES = ("int8", "int16", "int32", "int64", "float32", *PACKED)

# Operator name -> (stem of its options in the schema, or None; version).
_OPTIONS: dict[str, tuple[str | None, int]] = {
    "ABS": ("AbsOptions", 3),
    "ADD": ("AddOptions", 2),
    "AVERAGE_POOL_2D": ("Pool2DOptions", 2),
    "BATCH_MATMUL": ("BatchMatMulOptions", 2),
    "CONV_2D": ("Conv2DOptions", 3),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", 3),
    "ELU": (None, 1),
    "FULLY_CONNECTED": ("FullyConnectedOptions", 4),
    "GELU": ("GeluOptions", 2),
    "HARD_SWISH": ("HardSwishOptions", 1),
    "LEAKY_RELU": ("LeakyReluOptions", 2),
    "LOGISTIC": (None, 2),
    "MAXIMUM": ("MaximumMinimumOptions", 2),
    "MEAN": ("ReducerOptions", 2),
    "MINIMUM": ("MaximumMinimumOptions", 2),
    "MUL": ("MulOptions", 2),
    "PRELU": (None, 1),
    "QUANTIZE": ("QuantizeOptions", 2),
    "RELU": (None, 2),
    "RELU6": (None, 2),
    "RELU_N1_TO_1": (None, 1),
    "RESIZE_BILINEAR": ("ResizeBilinearOptions", 3),
    "RESIZE_NEAREST_NEIGHBOR": ("ResizeNearestNeighborOptions", 3),
    "SOFTMAX": ("SoftmaxOptions", 2),
    "SUB": ("SubOptions", 2),
    "TANH": (None, 2),
    "TRANSPOSE_CONV": ("TransposeConvOptions", 3),
}

ACTIVATION_CODES = {None: 0, "RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}


@dataclass(frozen=True)
class Operand:
    """A tensor of the file: what it holds and, when it is constant, its values.

    Attributes:
        shape: static shape.
        dtype: int8, int16, int32, int64 or float32, or a packed type, several in a byte.
        scale: float32 scale or scales; None for an unquantized tensor.
        zero_point: the code of zero.
        data: constant values; None for an input of the model.
        axis: quantized dimension when there are several scales.
    """

    shape: tuple[int, ...]
    dtype: Any = np.int8
    scale: Any = None
    zero_point: int = 0
    data: np.ndarray | None = None
    axis: int = 0


def one_op_model(op: str, operands: Sequence[Operand], out: Operand, **options: Any) -> bytes:
    """A TFLite file with one operator; operands without data are the model's inputs."""
    model = schema.ModelT()
    model.version = 3
    model.buffers = [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.tensors = []
    indices = [_add_tensor(model, graph, operand) for operand in operands]
    output = _add_tensor(model, graph, out)
    graph.inputs = [i for i, operand in zip(indices, operands, strict=True) if operand.data is None]
    graph.outputs = [output]
    graph.operators = [_operator(op, indices, output, options)]
    model.operatorCodes = [_operator_code(op)]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def run_litert(model: bytes, *inputs: np.ndarray, resolver: OpResolverType = OpResolverType.BUILTIN_REF) -> np.ndarray:
    """Output of the model on LiteRT, by default on its reference kernels."""
    interpreter = Interpreter(model_content=model, experimental_op_resolver_type=resolver, num_threads=1)
    interpreter.allocate_tensors()
    for detail, values in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], values)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def run_tflm(model: bytes, *inputs: np.ndarray) -> np.ndarray:
    """Output of the model on TensorFlow Lite Micro."""
    from tflite_micro import runtime

    arena_size = 500_000 + 16 * sum(values.nbytes for values in inputs)
    interpreter = runtime.Interpreter.from_bytes(model, arena_size=arena_size)
    for i, values in enumerate(inputs):
        interpreter.set_input(values, i)
    interpreter.invoke()
    return interpreter.get_output(0)


def _add_tensor(model: schema.ModelT, graph: schema.SubGraphT, operand: Operand) -> int:
    tensor = schema.TensorT()
    tensor.name = f"tensor_{len(graph.tensors)}".encode()
    tensor.shape = list(operand.shape)
    name = operand.dtype if operand.dtype in PACKED else np.dtype(operand.dtype).name
    if name not in _TYPES:
        raise ValueError(f"Operand: expected a dtype of {_TYPES}, received {name}.")
    tensor.type = getattr(schema.TensorType, name.upper())
    tensor.buffer = 0
    if operand.data is not None:
        buffer = schema.BufferT()
        data = packed(operand.data, name) if name in PACKED else np.ascontiguousarray(operand.data, operand.dtype)
        buffer.data = np.frombuffer(data.tobytes(), np.uint8)
        tensor.buffer = len(model.buffers)
        model.buffers.append(buffer)
    if operand.scale is not None:
        scales = np.atleast_1d(np.asarray(operand.scale, np.float32))
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = scales
        tensor.quantization.zeroPoint = np.full(scales.shape, operand.zero_point, np.int64)
        tensor.quantization.quantizedDimension = operand.axis
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _operator(op: str, inputs: list[int], output: int, options: dict[str, Any]) -> schema.OperatorT:
    operator = schema.OperatorT()
    operator.opcodeIndex = 0
    operator.inputs = inputs
    operator.outputs = [output]
    stem, _ = _OPTIONS[op]
    if stem is not None:
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, stem)
        operator.builtinOptions = getattr(schema, f"{stem}T")()
        for name, value in options.items():
            if not hasattr(operator.builtinOptions, name):
                raise AttributeError(f"{op}: {stem} has no field {name!r}.")
            setattr(operator.builtinOptions, name, value)
    return operator


def _operator_code(op: str) -> schema.OperatorCodeT:
    code = schema.OperatorCodeT()
    builtin = getattr(schema.BuiltinOperator, op)
    code.builtinCode = builtin
    code.deprecatedBuiltinCode = min(builtin, 127)
    code.version = _OPTIONS[op][1]
    return code
