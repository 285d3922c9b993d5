"""Run a `.tflite` file on codes. Imports no TensorFlow, so that it can also be a small process of its own.

    python interpreters.py RUNTIME < request.npz > answer.npz      # used by `kquant.runtimes.probe`

The request holds the file as `model` and the codes of input i as `x<i>`; the answer holds output i as `y<i>`.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

RUNTIMES = ("litert", "litert-reference", "tflm")
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


def _tflm(data: bytes, keep: bool) -> Invoke:
    from ai_edge_litert import schema_py_generated as schema

    try:
        from tflite_micro import runtime
    except ImportError as error:
        raise ValueError("runtime 'tflm' needs an extra: pip install 'kquant[micro]' (Linux only).") from error
    interpreter = runtime.Interpreter.from_bytes(data)

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
    """Answer one request from standard input."""
    request = np.load(io.BytesIO(sys.stdin.buffer.read()))
    codes = [request[f"x{i}"] for i in range(len(request.files) - 1)]
    outputs = run_all(request["model"].tobytes(), codes, sys.argv[1])
    answer = io.BytesIO()
    np.savez(answer, **{f"y{i}": y for i, y in enumerate(outputs)})
    sys.stdout.buffer.write(answer.getvalue())


if __name__ == "__main__":
    main()
