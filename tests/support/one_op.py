"""Files of one operator each, to check what the target files claim; `test_targets` judges the outputs.

A bad file can end the process that runs it, so this module is a program: `python one_op.py RUNTIME FIRST` runs every
file from a number on and prints one JSON line for each: its name and its raw outputs, or null where it was refused.
"""

import json
import math
import sys
from dataclasses import replace
from functools import cache

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from one_op_types import WEIGHTED, Case, Tensor, as_int16, as_packed, packed, per_tensor, quantizes, typed

if __name__ == "__main__":
    sys.argv[0] = "kquant"  # as the command, which starts without TensorFlow

from kquant import targets  # noqa: E402
from kquant.core.packed import PACKED  # noqa: E402

RNG = np.random.default_rng(7)


def signal(*shape, scale=0.05, zero_point=3):
    return Tensor(shape, scale=(scale,), zero_point=zero_point)


def constant(*shape, scale=0.05, zero_point=3):
    return replace(signal(*shape, scale=scale, zero_point=zero_point), data=RNG.integers(20, 128, shape, "int8"))


def integers(values):
    data = np.array(values, "int32")
    return Tensor(data.shape, "int32", (), 0, data)


def kernel_and_bias(*shape, axis=0):
    scale = tuple(np.linspace(0.01, 0.02, shape[axis]))
    weights = Tensor(shape, "int8", scale, 0, RNG.integers(-127, 128, shape, "int8"), axis)
    data = RNG.integers(-200, 200, shape[axis], "int32")
    return [weights, Tensor(data.shape, "int32", tuple(0.05 * value for value in scale), 0, data)]


def tf():
    import tensorflow

    return tensorflow


def conv(x, w, b):
    return tf().nn.convolution(x, w.transpose(1, 2, 3, 0), padding="SAME").numpy() + b


def depthwise(x, w, b):
    kernel = w.reshape(*w.shape[1:3], x.shape[-1], -1)
    return tf().nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME").numpy() + b


def conv_transpose(shape, w, x, b):
    return tf().nn.conv2d_transpose(x, w.transpose(1, 2, 0, 3), shape.astype("int32"), 2, "SAME").numpy() + b


def resize(kind):
    def run(x, size):
        images = x.astype("float32")
        return getattr(tf().raw_ops, kind)(images=images, size=size.astype("int32"), half_pixel_centers=True).numpy()

    return run


def written(x, update, _):
    x = x.copy()
    x[:, 1:2] = update
    return x


def counted(count, x):
    """What a loop of three steps gives, in which a row goes round as it is."""
    return [count + 3, x]


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def all_cases():
    """One case for every operator that the target files list."""
    cases = []

    def add(op, inputs, outputs, expected, options=None, feed=None, **fields):
        outputs = outputs if isinstance(outputs, list) else [outputs]
        cases.append(Case(op, inputs, outputs, expected, options, fields, feed))

    x, image, row = signal(1, 4, 4, 8), signal(1, 8, 8, 4), signal(1, 8)
    stride = {"padding": 0, "strideW": 1, "strideH": 1}
    undilated = {"dilationWFactor": 1, "dilationHFactor": 1, **stride}
    wide = signal(1, 8, 8, 6, scale=0.1)
    add("CONV_2D", [image, *kernel_and_bias(6, 3, 3, 4)], wide, conv, "Conv2DOptions", **undilated)
    inputs = [image, *kernel_and_bias(1, 3, 3, 8, axis=3)]
    add(
        "DEPTHWISE_CONV_2D",
        inputs,
        x_like(image, 8),
        depthwise,
        "DepthwiseConv2DOptions",
        depthMultiplier=2,
        **undilated,
    )
    weights, bias = kernel_and_bias(6, 3, 3, 8)
    inputs = [integers([1, 8, 8, 6]), weights, x, bias]
    add("TRANSPOSE_CONV", inputs, wide, conv_transpose, "TransposeConvOptions", padding=0, strideW=2, strideH=2)
    inputs = [signal(2, 16), *kernel_and_bias(5, 16)]
    add("FULLY_CONNECTED", inputs, signal(2, 5), lambda x, w, b: x @ w.T + b, "FullyConnectedOptions")
    inputs = [signal(2, 4, 8), signal(2, 8, 5, scale=0.03)]
    add("BATCH_MATMUL", inputs, signal(2, 4, 5, scale=0.5), np.matmul, "BatchMatMulOptions", adjX=False, adjY=False)

    other = constant(8, scale=0.03, zero_point=-5)
    for op, run, scale in (("ADD", np.add, 0.08), ("SUB", np.subtract, 0.08), ("MUL", np.multiply, 0.3)):
        add(op, [x, other], signal(1, 4, 4, 8, scale=scale), run, op.title() + "Options")
    add("DIV", [x, other], signal(1, 4, 4, 8, scale=0.3), np.divide, "DivOptions")
    add("MAXIMUM", [x, x], x, np.maximum, "MaximumMinimumOptions")
    add("MINIMUM", [x, x], x, np.minimum, "MaximumMinimumOptions")
    large = signal(1, 4, 4, 8, scale=0.3, zero_point=-10)
    add("SQUARED_DIFFERENCE", [x, other], large, lambda a, b: (a - b) ** 2, "SquaredDifferenceOptions")

    window = {"padding": 1, "strideW": 2, "strideH": 2, "filterWidth": 2, "filterHeight": 2}
    for op, run in (("AVERAGE_POOL_2D", "avg_pool2d"), ("MAX_POOL_2D", "max_pool2d")):
        expected = lambda x, run=run: getattr(tf().nn, run)(x, 2, 2, "VALID").numpy()  # noqa: E731
        add(op, [image], signal(1, 4, 4, 4), expected, "Pool2DOptions", **window)
    for op, run in (("MEAN", np.mean), ("SUM", np.sum), ("REDUCE_MAX", np.max), ("REDUCE_MIN", np.min)):
        out = signal(1, 8, scale=0.2, zero_point=-3) if op == "SUM" else signal(1, 8)
        add(op, [x, integers([1, 2])], out, lambda x, axes, run=run: run(x, axis=(1, 2)), "ReducerOptions")

    twice = signal(1, 4, 4, 16)
    add("CONCATENATION", [x, x], twice, lambda *a: np.concatenate(a, -1), "ConcatenationOptions", axis=3)
    add("RESHAPE", [x, integers([1, 128])], signal(1, 128), lambda x, s: x.reshape(1, 128), newShape=[1, 128],
        options="ReshapeOptions")  # fmt: skip
    add("TRANSPOSE", [x, integers([0, 3, 1, 2])], signal(1, 8, 4, 4), lambda x, p: x.transpose(0, 3, 1, 2))
    margins = [[0, 0], [1, 1], [1, 1], [0, 0]]
    padded = signal(1, 6, 6, 8)
    add("PAD", [x, integers(margins)], padded, lambda x, p: np.pad(x, margins), "PadOptions")
    value = constant()
    pad_value = lambda x, p, v: np.pad(x, margins, constant_values=float(v))  # noqa: E731
    add("PADV2", [x, integers(margins), value], padded, pad_value, "PadV2Options")
    add("MIRROR_PAD", [x, integers(margins)], padded, lambda x, p: np.pad(x, margins, "reflect"), "MirrorPadOptions")
    bounds = [integers([0, 1, 0, 0]), integers([1, 4, 4, 8]), integers([1, 2, 1, 1])]
    add("STRIDED_SLICE", [x, *bounds], signal(1, 2, 4, 8), lambda x, *_: x[:, 1:4:2], "StridedSliceOptions")
    bounds = [integers([0, 1, 2, 0]), integers([1, 2, 2, 3])]
    add("SLICE", [x, *bounds], signal(1, 2, 2, 3), lambda x, *_: x[:, 1:3, 2:4, :3], "SliceOptions")
    add("TILE", [row, integers([3, 2])], signal(3, 16), lambda x, m: np.tile(x, (3, 2)), "TileOptions")
    shape = (1, 3, 8)
    place, whole = integers([0, 1, 0]), signal(1, 3, 8)
    add("DYNAMIC_UPDATE_SLICE", [whole, signal(1, 1, 8), place], whole, written)
    add("WHILE", [integers([0]), row], [Tensor((1,), "int32", ()), row], counted, "WhileOptions", condSubgraphIndex=1,
        bodySubgraphIndex=2)  # fmt: skip
    add("BROADCAST_TO", [row, integers(shape)], signal(*shape), lambda x, s: np.broadcast_to(x, shape))
    add("PACK", [row] * 3, signal(*shape), lambda *a: np.stack(a, 1), "PackOptions", valuesCount=3, axis=1)
    add("UNPACK", [signal(*shape)], [row] * 3, lambda x: [x[:, i] for i in range(3)], "UnpackOptions", num=3, axis=1)
    halves = [signal(1, 4)] * 2
    add("SPLIT", [integers(1), row], halves, lambda a, x: np.split(x, 2, 1), "SplitOptions", numSplits=2)
    inputs, parts = [row, integers([3, 5]), integers(1)], [signal(1, 3), signal(1, 5)]
    add("SPLIT_V", inputs, parts, lambda x, *_: np.split(x, [3], 1), "SplitVOptions", numSplits=2)
    add("EXPAND_DIMS", [row, integers(1)], signal(1, 1, 8), lambda x, a: x[:, None], "ExpandDimsOptions")
    add("SQUEEZE", [signal(1, 1, 8)], row, lambda x: x[:, 0], "SqueezeOptions", squeezeDims=[1])
    picked = signal(1, 4, 3, 8)
    add("GATHER", [x, integers([3, 0, 1])], picked, lambda x, i: x[:, :, [3, 0, 1]], "GatherOptions", axis=2)
    looked_up = [integers([3, 0, 1]), constant(5, 8)]
    add("EMBEDDING_LOOKUP", looked_up, signal(3, 8), lambda i, table: table[[3, 0, 1]])
    for kind, op in (("NearestNeighbor", "RESIZE_NEAREST_NEIGHBOR"), ("Bilinear", "RESIZE_BILINEAR")):
        add(op, [x, integers([8, 8])], x_like(image, 8), resize(f"Resize{kind}"), f"Resize{kind}Options",
            halfPixelCenters=True)  # fmt: skip
    deep = signal(1, 2, 2, 32)
    add("SPACE_TO_DEPTH", [x], deep, lambda x: tf().nn.space_to_depth(x, 2).numpy(), "SpaceToDepthOptions", blockSize=2)
    add("DEPTH_TO_SPACE", [deep], x, lambda x: tf().nn.depth_to_space(x, 2).numpy(), "DepthToSpaceOptions", blockSize=2)
    block = [integers([2, 2]), integers([[0, 0], [0, 0]])]
    batch, none = signal(4, 2, 2, 8), [[0, 0], [0, 0]]
    add("SPACE_TO_BATCH_ND", [x, *block], batch, lambda x, *_: tf().space_to_batch(x, [2, 2], none).numpy())
    add("BATCH_TO_SPACE_ND", [batch, *block], x, lambda x, *_: tf().batch_to_space(x, [2, 2], none).numpy())

    every = signal(1, 1, 1, 256)  # fed with every code, so that a wrong end of the range shows
    codes = np.arange(-128, 128, dtype="int8").reshape(every.shape)
    clip = lambda low, high: lambda x: np.clip(x, low, high)  # noqa: E731
    alpha = {"alpha": 0.2}
    for op, run, options, fields in (
        ("RELU", clip(0, None), None, {}),
        ("RELU6", clip(0, 6), None, {}),
        ("RELU_N1_TO_1", clip(-1, 1), None, {}),
        ("RELU_0_TO_1", clip(0, 1), None, {}),
        ("LEAKY_RELU", lambda x: np.where(x > 0, x, 0.2 * x), "LeakyReluOptions", alpha),
        ("LOGISTIC", lambda x: 1 / (1 + np.exp(-x)), None, {}),
        ("TANH", np.tanh, None, {}),
        ("SOFTMAX", softmax, "SoftmaxOptions", {"beta": 1.0}),
        ("LOG_SOFTMAX", lambda x: np.log(softmax(x)), "LogSoftmaxOptions", {}),
        ("HARD_SWISH", lambda x: x * np.clip(x + 3, 0, 6) / 6, "HardSwishOptions", {}),
        ("ELU", lambda x: np.where(x > 0, x, np.expm1(x)), None, {}),
        ("GELU", gelu, "GeluOptions", {}),
        ("EXP", np.exp, "ExpOptions", {}),
        ("ABS", np.abs, "AbsOptions", {}),
        ("NEG", np.negative, "NegOptions", {}),
    ):
        scale, zero_point = targets.load("litert").ops[op].fixed or (2.0 if op == "EXP" else 0.05, 3)
        out = replace(every, scale=(scale,), zero_point=zero_point)
        add(op, [every], out, run, options, codes, **fields)
    slopes = Tensor((1, 1, 256), scale=(0.01,), zero_point=0, data=RNG.integers(1, 100, (1, 1, 256), "int8"))
    add("PRELU", [every, slopes], every, lambda x, a: np.where(x > 0, x, a * x), feed=codes)
    positive, codes = signal(1, 16, scale=0.1, zero_point=-128), np.arange(-112, 128, 15, dtype="int8")[None]
    for op, run in (("LOG", np.log), ("SQRT", np.sqrt), ("RSQRT", lambda x: x**-0.5)):
        add(op, [positive], signal(1, 16, scale=0.05, zero_point=-20), run, feed=codes)

    int32, float32 = Tensor((1, 8), "int32", ()), Tensor((1, 8), "float32", ())
    add("CAST", [row], int32, lambda x: np.rint(x / 0.05 + 3), "CastOptions", inDataType=9, outDataType=2)
    add("ARG_MAX", [row, integers(1)], Tensor((1,), "int32", ()), lambda x, a: x.argmax(1), "ArgMaxOptions",
        outputType=2)  # fmt: skip
    add("ARG_MIN", [row, integers(1)], Tensor((1,), "int32", ()), lambda x, a: x.argmin(1), "ArgMinOptions",
        outputType=2)  # fmt: skip
    add("NOT_EQUAL", [row, row], Tensor((1, 8), "bool", ()), np.not_equal, "NotEqualOptions")
    add("LESS", [row, row], Tensor((1, 8), "bool", ()), np.less, "LessOptions")
    add("QUANTIZE", [row], signal(1, 8, scale=0.08, zero_point=-9), lambda x: x, "QuantizeOptions")
    add("DEQUANTIZE", [row], float32, lambda x: x, "DequantizeOptions")
    return cases


def x_like(image, channels):
    return replace(image, shape=(*image.shape[:-1], channels))


def shift(out):
    """An output with another encoding than the inputs'."""
    step = 0 if out.dtype == "int16" else -6 if out.zero_point > 99 else 6
    return replace(out, scale=(out.scale[0] * 0.8,), zero_point=out.zero_point + step)


def lstm(x, *w):
    """Hidden states of an LSTM, gates in the order i, f, g, o."""
    squash = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    hidden, cell, made = np.zeros((1, 4)), np.zeros((1, 4)), []
    for step in range(x.shape[1]):
        i, f, g, o = (x[:, step] @ w[n].T + hidden @ w[n + 4].T + w[n + 8] for n in range(4))
        cell = squash(f) * cell + squash(i) * np.tanh(g)
        hidden = squash(o) * np.tanh(cell)
        made.append(hidden)
    return np.stack(made, 1)


def lstm_case():
    """Three steps of an LSTM with 4 units."""
    out = signal(1, 3, 4, scale=1 / 128, zero_point=2)
    kernels = [replace(kernel_and_bias(4, n)[0], scale=(0.005,)) for n in (6,) * 4 + (4,) * 4]
    biases = [replace(kernel_and_bias(4, 6)[1], scale=(0.05 * 0.005,)) for _ in range(4)]
    states = [replace(out, shape=(1, 4), variable=True), Tensor((1, 4), "int16", (2**-12,), 0, variable=True)]
    inputs = [signal(1, 3, 6), *kernels, *[None] * 3, *biases, None, None, *states, *[None] * 4]
    gates = [Tensor((0,), "int16", (2**-12,), 0) for _ in range(4)]
    options = {"fusedActivationFunction": 4, "timeMajor": False}
    name = "UnidirectionalSequenceLSTMOptions"
    hidden = [*gates, replace(out, shape=(0,))]
    return Case("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [out], lstm, name, options, intermediates=hidden)


@cache
def variants():
    """All files to run by name: each operator, with an output encoding of its own, with each fused clip."""
    files = {}
    for case in [*all_cases(), lstm_case()]:
        _enrol(files, case.op, case)
        if quantizes(case):
            _enrol(files, f"{case.op} int16", as_int16(case, targets.load("litert").ops[case.op].fixed_int16))
        if case.op in WEIGHTED:
            files[f"{case.op} int16 per tensor"] = per_tensor(as_int16(case))
            for name in PACKED:
                files[f"{case.op} {name}"] = as_packed(case, name)
                files[f"{case.op} {name} per tensor"] = per_tensor(as_packed(case, name))
    files.update(limits())
    for source, target in (("int8", "int16"), ("int16", "int8"), ("float32", "int16")):
        inputs, outputs = [typed(source, 0.05)], [typed(target, 0.08)]
        files[f"QUANTIZE {source} to {target}"] = Case("QUANTIZE", inputs, outputs, lambda x: x, "QuantizeOptions")
    return files


def _enrol(files, name, case):
    files[name] = case
    if all(out.dtype in ("int8", "int16") for out in case.outputs):
        files[f"{name} shifted"] = replace(case, outputs=[shift(out) for out in case.outputs])
    if targets.load("tflm").ops[case.op].fuses:
        for code, (low, high) in {1: (0, None), 2: (-1, 1), 3: (0, 6)}.items():
            clipped = lambda *a, run=case.expected, low=low, high=high: np.clip(run(*a), low, high)  # noqa: E731
            fields = {**case.fields, "fusedActivationFunction": code}
            files[f"{name} fused {code}"] = replace(case, expected=clipped, fields=fields)


def limits():
    """Files on both sides of a limit that the target files state in numbers."""
    files = {}
    row, join = signal(1, 4), lambda *a: np.concatenate(a, -1)
    for count in (10, 11):
        inputs, out = [row] * count, [signal(1, 4 * count)]
        files[f"{count} inputs"] = Case("CONCATENATION", inputs, out, join, "ConcatenationOptions", {"axis": 1})
    weights = Tensor((5, 8), scale=(0.01,), zero_point=0, data=RNG.integers(-127, 128, (5, 8), "int8"))
    for rescale in (255, 256):
        out = signal(1, 5, scale=0.05 * 0.01 / rescale)
        inputs = [signal(1, 8), weights]
        files[f"rescale {rescale}"] = Case(
            "FULLY_CONNECTED", inputs, [out], lambda x, w: x @ w.T, "FullyConnectedOptions"
        )
    return files


def feeds(case, seed=11):
    """What the inputs of a case are fed with, the same in every process."""
    rng = np.random.default_rng(seed)
    runtime_inputs = [spec for spec in case.given if spec.data is None]
    if case.feed is not None:
        return [case.feed for _ in runtime_inputs]
    return [_random(rng, spec) for spec in runtime_inputs]


def _random(rng, spec):
    if spec.dtype == "float32":
        return rng.uniform(-6, 6, spec.shape).astype("float32")
    limits = np.iinfo(spec.dtype)
    return rng.integers(limits.min, limits.max + 1, spec.shape, spec.dtype)


def add_tensor(model, graph, spec):
    """The number of a new tensor of a subgraph."""
    tensor = schema.TensorT()
    tensor.isVariable = spec.variable
    number = len(graph.tensors)
    tensor.name, tensor.shape, tensor.type = f"t{number}", spec.shape, getattr(schema.TensorType, spec.dtype.upper())
    if spec.scale:
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = np.array(spec.scale, "float32")
        tensor.quantization.zeroPoint = np.full(len(spec.scale), spec.zero_point, "int64")
        tensor.quantization.quantizedDimension = spec.axis if len(spec.scale) > 1 else 0
    if spec.data is not None:
        buffer = schema.BufferT()
        data = packed(spec.data, spec.dtype) if spec.dtype in PACKED else spec.data
        buffer.data = np.frombuffer(data.tobytes(), "uint8")
        model.buffers.append(buffer)
        tensor.buffer = len(model.buffers) - 1
    graph.tensors.append(tensor)
    return number


def loop_graph(model, case, op, constant, result):
    """Condition or body of the WHILE: `op` of the count and a constant; the row goes round as it is."""
    graph, node, code = schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
    graph.tensors, name = [], f"{op.title()}Options"
    numbers = [add_tensor(model, graph, spec) for spec in (*case.outputs, integers([constant]), result)]
    graph.inputs, graph.operators = numbers[:2], [node]
    graph.outputs = numbers[3:] if op == "LESS" else [numbers[3], numbers[1]]
    code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, op)
    code.version = 1
    model.operatorCodes.append(code)
    node.opcodeIndex, node.inputs, node.outputs = len(model.operatorCodes) - 1, [numbers[0], numbers[2]], numbers[3:]
    node.builtinOptionsType, node.builtinOptions = getattr(schema.BuiltinOptions, name), getattr(schema, f"{name}T")()
    return graph


def build(case):
    """The file of a case, as bytes."""
    model, graph, node, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
    model.version, model.buffers, graph.tensors = 3, [schema.BufferT()], []
    places = iter(range(len(case.inputs) + len(case.outputs) + len(case.intermediates)))
    node.inputs = [-1 if spec is None else next(places) for spec in case.inputs]
    node.outputs = [next(places) for _ in case.outputs]
    node.intermediates = [next(places) for _ in case.intermediates]
    present = [spec for spec in (*case.inputs, *case.outputs, *case.intermediates) if spec is not None]
    for spec in present:
        add_tensor(model, graph, spec)
    code.builtinCode = getattr(schema.BuiltinOperator, case.op)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = targets.load("litert").ops[case.op].version_for(case.types)
    if case.options:
        node.builtinOptionsType = getattr(schema.BuiltinOptions, case.options)
        node.builtinOptions = getattr(schema, f"{case.options}T")()
        vars(node.builtinOptions).update(case.fields)
    fed = {id(spec) for spec in case.given if spec.data is None}
    graph.inputs = [n for n, spec in zip(node.inputs, case.inputs, strict=True) if id(spec) in fed]
    graph.outputs, graph.operators = node.outputs, [node]
    model.subgraphs, model.operatorCodes = [graph], [code]
    if case.op == "WHILE":
        count, flag = Tensor((1,), "int32", ()), Tensor((1,), "bool", ())
        model.subgraphs += [loop_graph(model, case, *of) for of in (("LESS", 3, flag), ("ADD", 1, count))]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def invoke(runtime, case):
    """Run a case once and return its raw outputs."""
    if runtime == "tflm":
        from tflite_micro import runtime as micro

        interpreter = micro.Interpreter.from_bytes(build(case), arena_size=200_000)
        for index, feed in enumerate(feeds(case)):
            interpreter.set_input(feed, index)
        interpreter.invoke()
        return [interpreter.get_output(index).tolist() for index in range(len(case.outputs))]
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.BUILTIN_REF if runtime == "litert-reference" else OpResolverType.AUTO
    interpreter = Interpreter(model_content=build(case), experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    for detail, feed in zip(interpreter.get_input_details(), feeds(case), strict=True):
        interpreter.set_tensor(detail["index"], feed)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]).tolist() for detail in interpreter.get_output_details()]


if __name__ == "__main__":
    for file_name, one in list(variants().items())[int(sys.argv[2]) :]:
        try:
            answer = invoke(sys.argv[1], one)
        except (RuntimeError, ValueError) as error:
            print(file_name, error, file=sys.stderr)
            answer = None
        print(json.dumps([file_name, answer]), flush=True)
