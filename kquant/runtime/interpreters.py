"""Run a `.tflite` file on codes. Imports no TensorFlow, so that it can also be a small process of its own.

    python interpreters.py RUNTIME       # serves `kquant.runtime.running.Running` until its standard input ends
    python interpreters.py arena         # prints what TFLM says of its arena, for `kquant.runtime.arenas`
    python interpreters.py smallest      # prints the smallest arena in which TFLM prepares and runs the file, by trial
    python interpreters.py time          # prints nanoseconds of TFLM's fastest call on this machine

Messages either way are lists of arrays, see `send`. The first one is the file; each one after it is a request, which
begins with a number of `REQUESTS` and is answered by one message. What an interpreter refuses ends the process.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

RUNTIMES = ("litert", "litert-reference", "tflm")
IN_ARENAS = ("tflm", "arena", "smallest", "time")  # what runs on TFLM
# What `arena_for` counts, in bytes. A value takes 8 at most, and a kernel's scratch as much again (int64 accumulators).
VALUE, TENSOR, CHANNEL, OPERATOR, FIXED = 16, 512, 64, 8192, 1 << 16
LARGEST_ARENA, ALIGNMENT = 1 << 30, 16
CALLS, MOST_SECONDS = 50, 2.0  # of a measurement of time: calls, of which the fastest counts, and when no more begin
# What a request asks for: every sample as one of its own; one call, with the states of the last; a first call again;
# all tensors of one call, on LiteRT's reference kernels.
SAMPLES, CALL, RESET, TENSORS = range(4)
# Address space of a process beyond what the libraries take: this, and so many times the file (kernels repack weights).
FREE_BYTES, FILE_TIMES = 1 << 30, 8
# codes of one sample for each input -> codes of each output
Invoke = Callable[[list[np.ndarray]], list[np.ndarray]]


def open_runtime(data: bytes, runtime: str, *, keep: bool = False) -> Invoke:
    """An interpreter of that name, ready to run; `keep`: its states outlive a call (streams)."""
    return _tflm(data, keep) if runtime == "tflm" else _litert(data, runtime == "litert-reference", keep)


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

    model: Any = schema.Model.GetRootAs(data, 0)
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


def run_in(data: bytes, size: int) -> None:
    """Prepare a file in an arena of that size, and run it once on zeros.

    Args:
        data: a `.tflite` file.
        size: bytes of the arena.

    Raises:
        RuntimeError: it is too small; the process may end instead.
    """
    from tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(data, arena_size=size)
    set_zeros(interpreter, data)
    interpreter.invoke()


def set_zeros(interpreter: Any, data: bytes) -> None:
    """Zeros in all inputs: a tensor of a fresh arena holds what was there before, and as indices that may be anything.

    Args:
        interpreter: TFLM's, of the file.
        data: the file.
    """
    for i in range(_graph(data).InputsLength()):
        details = interpreter.get_input_details(i)
        interpreter.set_input(np.zeros(details["shape"], details["dtype"]), i)


def _graph(data: bytes) -> Any:
    """The main graph of a file: the interpreter does not tell how many ports it has, and complains of one too many."""
    from ai_edge_litert import schema_py_generated as schema

    model: Any = schema.Model.GetRootAs(data, 0)
    return model.Subgraphs(0)


def smallest_arena(data: bytes) -> int:
    """Bytes of the smallest arena in which TFLM prepares and runs a file, by trial.

    What TFLM says to have used is no answer: while it prepares a file it needs memory that it gives back, and where the
    tensors are small beside the scales of a layer, that is more. Each trial is a process of its own, as too small an
    arena may end it.

    Args:
        data: a `.tflite` file.

    Raises:
        RuntimeError: TFLM refuses the file, whatever the arena.
        ValueError: the `micro` extra is missing.
    """
    tflm_interpreter(data)  # raises what no arena helps against
    low, high = 0, arena_for(data)
    while high < LARGEST_ARENA and not _fits(data, high):
        high = min(8 * high, LARGEST_ARENA)
    while high - low > ALIGNMENT:
        middle = (low + high) // (2 * ALIGNMENT) * ALIGNMENT
        low, high = (low, middle) if _fits(data, middle) else (middle, high)
    return high


def _fits(data: bytes, arena: int) -> bool:
    """Whether TFLM can with this arena; in a fork of this process, which has loaded all that it takes."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    failed = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # it complains of each that is too small
        run_in(data, arena)
        failed = 0
    finally:
        os._exit(failed)  # whatever happened, nothing else of the parent's runs twice


def fastest_call(data: bytes) -> int:
    """Nanoseconds of the fastest of `CALLS` calls of TFLM on zeros, in time of this process.

    What else the machine computes does not count, but for the caches it takes: the fastest of many calls is steadiest.

    Args:
        data: a `.tflite` file.

    Raises:
        RuntimeError: TFLM refuses the file.
        ValueError: the `micro` extra is missing.
    """
    interpreter, taken = tflm_interpreter(data), []
    set_zeros(interpreter, data)
    interpreter.invoke()  # the first one fills caches
    end = time.monotonic() + MOST_SECONDS
    while len(taken) < CALLS and (not taken or time.monotonic() < end):
        start = time.process_time_ns()
        interpreter.invoke()
        taken.append(time.process_time_ns() - start)
    return min(taken)


def _tflm(data: bytes, keep: bool) -> Invoke:
    interpreter, count = tflm_interpreter(data), _graph(data).OutputsLength()

    def invoke(codes: list[np.ndarray]) -> list[np.ndarray]:
        for i, value in enumerate(codes):
            interpreter.set_input(value, i)
        if not keep:
            interpreter.reset()  # of the states: every sample is a sequence of its own
        interpreter.invoke()
        return [np.array(interpreter.get_output(i)) for i in range(count)]

    return invoke


def send(pipe: BinaryIO, arrays: list[np.ndarray]) -> None:
    """Write a message: the length of a line of JSON in 8 bytes, the line (types and shapes), and the values.

    Args:
        pipe: where to.
        arrays: of numbers.
    """
    told = json.dumps([(a.dtype.str, a.shape) for a in arrays]).encode()
    pipe.write(len(told).to_bytes(8, "little") + told)
    for array in arrays:
        pipe.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    pipe.flush()


def receive(pipe: BinaryIO) -> list[np.ndarray]:
    """Read a message of `send`.

    Args:
        pipe: where from.

    Raises:
        EOFError: there is none any more, or half of one.
    """
    told = json.loads(_exactly(pipe, int.from_bytes(_exactly(pipe, 8), "little")))
    return [_array(pipe, np.dtype(dtype), tuple(shape)) for dtype, shape in told]


def _array(pipe: BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(_exactly(pipe, math.prod(shape) * dtype.itemsize), dtype).reshape(shape)


def _exactly(pipe: BinaryIO, size: int) -> bytearray:
    content = bytearray(size)
    view, at = memoryview(content), 0
    while at < size:
        got = pipe.readinto(view[at:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        at += got
    return content


class _Served:
    """A file in this process, and the answers to requests."""

    def __init__(self, data: bytes, runtime: str) -> None:
        self.data, self.runtime = data, runtime
        self.opened: dict[bool, Invoke] = {}

    def answer(self, asked: int, arrays: list[np.ndarray]) -> list[np.ndarray]:
        if asked == RESET:
            self.opened.pop(True, None)
            return []
        if asked == TENSORS:
            return all_tensors(self.data, arrays)
        keep = asked == CALL
        if keep not in self.opened:
            self.opened[keep] = open_runtime(self.data, self.runtime, keep=keep)
        invoke = self.opened[keep]
        if keep:
            return invoke(arrays)
        rows = [invoke([a[i : i + 1] for a in arrays]) for i in range(len(arrays[0]))]
        return [np.concatenate(column) for column in zip(*rows, strict=True)]


def all_tensors(data: bytes, codes: list[np.ndarray]) -> list[np.ndarray]:
    """Every tensor of a call on the reference kernels: the indices of those that have values, then the values.

    Args:
        data: a `.tflite` file.
        codes: one sample for each input.
    """
    interpreter = litert_interpreter(data, reference=True, keep_all=True)
    for detail, value in zip(interpreter.get_input_details(), codes, strict=True):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    values = {}
    for detail in interpreter.get_tensor_details():
        try:
            values[detail["index"]] = interpreter.get_tensor(detail["index"])
        except ValueError:  # what the kernels keep for themselves has no values to read
            continue
    return [np.array(list(values), np.int64), *values.values()]


def _limit_memory(size: int, runtime: str) -> None:
    """Damaged sizes end this process instead of filling the machine; nothing where the system knows no such limit."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return
    # an arena is replaced by a larger one while the old one is there; pages that are not touched are never there
    arenas = 2 * LARGEST_ARENA if runtime in IN_ARENAS else 0
    most = used + FREE_BYTES + FILE_TIMES * size + arenas
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _load(runtime: str) -> None:
    """Import what the runtime needs, before memory is limited."""
    from ai_edge_litert import schema_py_generated  # noqa: F401

    if runtime in IN_ARENAS:
        from tflite_micro import runtime as _  # noqa: F401
    from ai_edge_litert import interpreter  # noqa: F401  # for all tensors too


def main() -> None:
    """Serve requests until standard input ends; what an interpreter refuses ends with its own words, no traceback."""
    # interpreters print to standard output as they like: what they print goes to standard error
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests, runtime = sys.stdin.buffer, sys.argv[1]
    try:
        data = receive(requests)[0].tobytes()
        _load(runtime)
        _limit_memory(len(data), runtime)
        if runtime == "arena":
            tflm_interpreter(data).print_allocations()
            return
        if runtime == "smallest":
            print(f"smallest arena {smallest_arena(data)} bytes", flush=True)
            return
        if runtime == "time":
            print(f"fastest call {fastest_call(data)} ns", flush=True)
            return
        served = _Served(data, runtime)
        while True:
            asked, *arrays = receive(requests)
            send(answers, served.answer(int(asked), arrays))
    except EOFError:
        return
    except (MemoryError, RuntimeError) as error:
        sys.exit(str(error) or "out of memory")


if __name__ == "__main__":
    main()
