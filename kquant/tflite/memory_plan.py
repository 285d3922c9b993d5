"""Where the tensors of a file lie in memory while it runs, as TensorFlow Lite Micro plans it.

    first     the largest tensor lies at 0
    next      the next smaller one at the lowest offset at which nothing lies that is alive at the same time

A tensor is alive from the operator that writes it to the last that reads it; inputs from the first operator, outputs to
the last. An operator that runs subgraphs (a loop) lasts as long as all of theirs. What kernels ask for beside (a MEAN
for its sums, say) is not in the plan.

Source: tflite-micro, `micro/memory_planner/greedy_memory_planner.cc` and `micro/micro_allocation_info.cc`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kquant.tflite.reader import FileModel, FileTensor

ALIGNMENT = 16
RUNS = {"WHILE": 2, "IF": 2, "CALL_ONCE": 1}  # subgraphs
BYTES = {"INT8": 1, "UINT8": 1, "BOOL": 1, "INT16": 2, "FLOAT16": 2, "INT64": 8, "FLOAT64": 8}  # others 4


@dataclass(frozen=True)
class Lifetime:
    """A tensor that lies in memory.

    Attributes:
        index: in the file; below 0 of what is no tensor.
        bytes: that it takes there, aligned.
        first, last: between which it is alive, both included; an operator is a step of time.
        offset: where it lies.
    """

    index: int
    bytes: int
    first: int
    last: int
    offset: int = 0

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.bytes

    def is_alive(self, at: int) -> bool:
        """Whether it is there at a time."""
        return self.first <= at <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """Of a file.

    Attributes:
        tensors: all that is computed, in the order of the file.
        spans: for each operator of the file, when it begins and ends, both included.
    """

    tensors: tuple[Lifetime, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def size_bytes(self) -> int:
        """Of the memory that all of it lies in."""
        return max((t.end for t in self.tensors), default=0)

    @property
    def alive_bytes(self) -> tuple[int, ...]:
        """For each operator, of the tensors that are there while it runs, where that is most."""
        return tuple(
            max(sum(t.bytes for t in self.tensors if t.is_alive(at)) for at in range(begin, end + 1))
            for begin, end in self.spans
        )

    @property
    def peak(self) -> int:
        """The operator at which the memory is filled to its end; of several, that with most in it; -1 without any."""
        alive, count = self.alive_bytes, len(self.spans)
        # of an operator that runs others, those
        steps = [i for i in range(count) if self.spans[i][0] == self.spans[i][1]] or list(range(count))
        reach = {i: max((t.end for t in self.tensors if t.is_alive(self.spans[i][0])), default=0) for i in steps}
        return max(steps, key=lambda i: (reach[i], alive[i]), default=-1)


def memory_plan(file: FileModel, scratch: Mapping[int, int] = MappingProxyType({})) -> MemoryPlan:
    """Lifetimes and places of the tensors of a file.

    Args:
        file: see `kquant.inspect`.
        scratch: number of an operator -> bytes that its kernel asks for beside its tensors, while it runs.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(32), keras.layers.Dense(8)])
        >>> q = kquant.calibrate(kquant.quantize(model), np.ones((64, 8), "float32"), verbose=False)
        >>> report = kquant.export(q, "dense.tflite", check_runtimes=False)
        >>> memory_plan(kquant.inspect("dense.tflite")).size_bytes  # 32 codes, and 8 that take 16 bytes
        48
    """
    placed: list[Lifetime] = []
    spans = _spans(file)
    asked = [Lifetime(-1 - op, aligned(size), *spans[op]) for op, size in scratch.items()]
    # TFLM fills its list from the end and sorts it stably: of tensors of one size, the last in the file comes first
    for t in sorted([*_lifetimes(file), *asked], key=lambda t: (-t.bytes, -t.index)):
        placed.append(Lifetime(t.index, t.bytes, t.first, t.last, _offset(t, placed)))
    return MemoryPlan(tuple(sorted(placed, key=lambda t: t.index)), tuple(spans))


def _offset(new: Lifetime, placed: list[Lifetime]) -> int:
    """The lowest place without anything that is alive together with it."""
    offset = 0
    beside = [t for t in placed if t.first <= new.last and new.first <= t.last]
    for t in sorted(beside, key=lambda t: t.offset):
        if t.offset - offset >= new.bytes:
            break
        offset = max(offset, t.end)
    return offset


def _lifetimes(file: FileModel) -> list[Lifetime]:
    spans = _spans(file)
    end = max((last for _, last in spans), default=0)
    closes = _closes(file, spans)  # of each subgraph
    tensors = {t.index: t for t in file.tensors}
    first = {t.index: 0 for t in file.inputs}
    last: dict[int, int] = {}
    for op in sorted(file.operators, key=lambda op: spans[op.index]):
        begin, finish = spans[op.index]
        # what a subgraph reads and nobody in it writes comes in from outside, and may go out as it is
        entering = [i for i in op.inputs if i >= 0 and i not in first and op.subgraph and not tensors[i].size_bytes]
        for index in entering:
            first[index], last[index] = closes[op.subgraph]
        for index in op.outputs:
            first.setdefault(index, begin)
        reached = {index: finish for index in (*op.inputs, *op.outputs) if index in first}
        last |= {index: max(at, last.get(index, 0)) for index, at in reached.items()}
    read = {index for op in file.operators for index in op.inputs}
    for op in file.operators:
        if op.subgraph:  # its results are what nobody in it reads
            last |= {index: closes[op.subgraph][1] for index in op.outputs if index not in read}
    last |= {t.index: end for t in file.outputs}
    computed = [index for index in first if not tensors[index].variable]  # those are kept apart, for good
    return [Lifetime(i, aligned_bytes(tensors[i]), first[i], last.get(i, first[i])) for i in sorted(computed)]


def _spans(file: FileModel) -> list[tuple[int, int]]:
    """For each operator, when it begins and ends; one that runs subgraphs spans all of their operators."""
    spans: dict[int, tuple[int, int]] = {}
    waiting = iter(range(1, max((op.subgraph for op in file.operators), default=0) + 1))
    time = 0

    def walk(subgraph: int) -> None:
        nonlocal time
        for op in (op for op in file.operators if op.subgraph == subgraph):
            begin, time = time, time + 1
            # files number subgraphs in the order in which operators run them, those inside of them first
            for _ in range(RUNS.get(op.code, 0)):
                inner = next(waiting, None)
                if inner is not None:
                    walk(inner)
            spans[op.index] = (begin, time - 1)

    walk(0)
    return [spans.get(op.index, (0, 0)) for op in file.operators]


def _closes(file: FileModel, spans: list[tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """For each subgraph, the begin of its first operator and the end of its last."""
    inside: dict[int, list[tuple[int, int]]] = {}
    for op in file.operators:
        inside.setdefault(op.subgraph, []).append(spans[op.index])
    return {number: (min(s[0] for s in held), max(s[1] for s in held)) for number, held in inside.items()}


def aligned_bytes(tensor: FileTensor) -> int:
    """What a tensor takes in memory: whole blocks of 16 bytes."""
    return aligned(BYTES.get(tensor.type, 4) * math.prod(tensor.shape))


def aligned(size: int) -> int:
    """Whole blocks of 16 bytes."""
    return -(-size // ALIGNMENT) * ALIGNMENT
