"""Run a `.tflite` file on codes. Imports no TensorFlow, so that it can also be a small process of its own.

    python interpreters.py RUNTIME < request.npz > answer.npz      # used by `kquant.runtimes.probe`
    python interpreters.py arena < model.tflite                    # used by `kquant.runtimes.arena_bytes`

The request holds the file as `model` and the codes of input i as `x<i>`; the answer holds output i as `y<i>`. The
second prints what TFLM says of its arena.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

RUNTIMES = ("litert", "litert-reference", "tflm")
# What `arena_for` counts, in bytes. A value takes 8 at most, and a kernel's scratch as much again (int64 accumulators).
VALUE, TENSOR, CHANNEL, OPERATOR, FIXED = 16, 512, 64, 8192, 1 << 16
LARGEST_ARENA = 1 << 30
# codes of one sample for each input -> codes of each output
Invoke = Callable[[list[np.ndarray]], list[np.ndarray]]


def open_runtime(data: bytes, runtime: str, *, keep: bool = False) -> Invoke:
    """An interpreter of that name, ready to run; `keep`: its states outlive a call (streams)."""
    return _tflm(data, keep) if runtime == "tflm" else _litert(data, runtime == "litert-reference", keep)


def run_all(data: bytes, codes: list[np.ndarray], runtime: str) -> list[np.ndarray]:
    """Every sample through one interpreter: `codes[i]` is [samples, ...] of the file's type."""
    invoke = open_runtime(data, runtime)
    rows = [invoke([c[i : i + 1] for c in codes]) for i in range(len(codes[0]))]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def litert_interpreter(data: bytes, *, reference: bool, keep_all: bool = False) -> Any:
    """LiteRT on one thread: its default (XNNPACK) or its reference kernels."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=data,
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO,
        experimental_preserve_all_tensors=keep_all,
    )
    interpreter.allocate_tensors()
    return interpreter


def _litert(data: bytes, reference: bool, keep: bool) -> Invoke:
    interpreter = litert_interpreter(data, reference=reference)
    inputs = [d["index"] for d in interpreter.get_input_details()]
    outputs = [d["index"] for d in interpreter.get_output_details()]

    def invoke(codes: list[np.ndarray]) -> list[np.ndarray]:
        for index, value in zip(inputs, codes, strict=True):
            interpreter.set_tensor(index, value)
        if not keep:
            interpreter.reset_all_variables()  # every sample is a sequence of its own
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in outputs]

    return invoke


def arena_for(data: bytes) -> int:
    """Bytes of an arena in which TFLM certainly finds room for a file, at most `LARGEST_ARENA`.

    `FIXED + VALUE values + TENSOR tensors + CHANNEL scales + OPERATOR operators`, over all subgraphs, constants too:
    some kernels unpack them. That is several times what a model uses, and costs nothing: the pages that TFLM does not
    touch are never there. Too small an arena, however, may end the process.

    Args:
        data: a `.tflite` file.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(data, 0)
    size = FIXED
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        size += OPERATOR * graph.OperatorsLength()
        for tensor in map(graph.Tensors, range(graph.TensorsLength())):
            quantization = tensor.Quantization()
            scales = 0 if quantization is None else quantization.ScaleLength()
            values = math.prod(max(int(tensor.Shape(i)), 1) for i in range(tensor.ShapeLength()))
            size += VALUE * values + TENSOR + CHANNEL * scales
    # TFLM aligns from both ends: another remainder would change by some bytes what it says to have used
    return min(size + -size % 16, LARGEST_ARENA)


def tflm_interpreter(data: bytes) -> Any:
    """TFLM in an arena that is large enough: that of `arena_for`, or eight times as much until it works.

    Args:
        data: a `.tflite` file.

    Raises:
        RuntimeError: TFLM refuses the file, whatever the arena.
        ValueError: the `micro` extra is missing.
    """
    try:
        from tflite_micro import runtime
    except ImportError as error:
        raise ValueError("runtime 'tflm' needs an extra: pip install 'kquant[micro]' (Linux only).") from error
    size = arena_for(data)
    while True:
        try:
            return runtime.Interpreter.from_bytes(data, arena_size=size)
        except RuntimeError as error:
            if size >= LARGEST_ARENA:
                raise RuntimeError(f"{error}, in an arena of {size:,} bytes too") from error
        size = min(8 * size, LARGEST_ARENA)


def _tflm(data: bytes, keep: bool) -> Invoke:
    from ai_edge_litert import schema_py_generated as schema

    interpreter = tflm_interpreter(data)

    # the interpreter does not tell how many outputs there are, and complains aloud of one too many
    count = schema.Model.GetRootAs(data, 0).Subgraphs(0).OutputsLength()

    def invoke(codes: list[np.ndarray]) -> list[np.ndarray]:
        for i, value in enumerate(codes):
            interpreter.set_input(value, i)
        if not keep:
            interpreter.reset()  # of the states: every sample is a sequence of its own
        interpreter.invoke()
        return [np.array(interpreter.get_output(i)) for i in range(count)]

    return invoke


def main() -> None:
    """Answer one request from standard input; what an interpreter refuses ends with its own words and no traceback."""
    try:
        if sys.argv[1] == "arena":
            tflm_interpreter(sys.stdin.buffer.read()).print_allocations()
        else:
            _answer(sys.argv[1])
    except RuntimeError as error:
        sys.exit(f"{error}")


def _answer(runtime: str) -> None:
    request = np.load(io.BytesIO(sys.stdin.buffer.read()))
    codes = [request[f"x{i}"] for i in range(len(request.files) - 1)]
    outputs = run_all(request["model"].tobytes(), codes, runtime)
    answer = io.BytesIO()
    np.savez(answer, **{f"y{i}": y for i, y in enumerate(outputs)})
    sys.stdout.buffer.write(answer.getvalue())


if __name__ == "__main__":
    main()
