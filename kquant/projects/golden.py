"""Golden vectors: inputs as codes, and the codes that an interpreter gives for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kquant.core.operators import facts
from kquant.exporting.streams import Stream
from kquant.runtime.running import Running
from kquant.tflite.reader import FileModel


@dataclass(frozen=True, eq=False)
class Golden:
    """Calls in order; of a file that keeps states each one begins where the one before it ended.

    Attributes:
        inputs: one array [calls, ...] for each input, in the file's type.
        outputs: the same for each output.
    """

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]

    @property
    def calls(self) -> int:
        """How many there are."""
        return len(self.inputs[0])

    def to_json(self) -> str:
        """One object a call, with the flat values of each input and output in the file's order.

        Raises:
            ValueError: a float that is no number, which JSON has no word for.

        Example:
            >>> print(Golden((np.int8([[1, 2]]),), (np.float32([[0.1]]),)).to_json())
            {"calls": [
            {"inputs": [[1, 2]], "outputs": [[0.1]]}
            ]}
        """
        if not all(np.all(np.isfinite(a)) for a in (*self.inputs, *self.outputs)):
            raise ValueError(
                "bundle: a golden vector holds values that are no numbers (inf or nan). Give other samples, or look "
                "for the layer that makes them with kquant.analyze."
            )
        calls = (
            {"inputs": [_flat(a[n]) for a in self.inputs], "outputs": [_flat(a[n]) for a in self.outputs]}
            for n in range(self.calls)
        )
        return '{"calls": [\n' + ",\n".join(json.dumps(call) for call in calls) + "\n]}"


def _flat(values: np.ndarray) -> list[Any]:
    flat = np.ravel(values)
    # the shortest digits that give the same float32, not those of its double
    return [float(str(v)) for v in flat] if flat.dtype.kind == "f" else flat.tolist()


def starts_anew(file: FileModel) -> bool:
    """True where each call of a file is one of its own, and some operator would remember the last one."""
    return "streaming" not in file.metadata and any(facts(op.code).remembers for op in file.operators)


def golden_vectors(content: bytes, file: FileModel, codes: Sequence[np.ndarray], runtime: str) -> Golden:
    """Run a file, call after call from its first state on, or each from there.

    Args:
        content: of the file.
        file: what it holds.
        codes: [calls, ...] for each input.
        runtime: name of the interpreter.

    Raises:
        ValueError: the runtime refuses the file, or is not installed.
    """
    rows: list[list[np.ndarray]] = []
    with Running(content, runtime) as running:
        running.reset()
        for n in range(len(codes[0])):
            if n and starts_anew(file):
                running.reset()
            rows.append(running.call([a[n : n + 1] for a in codes]))
    outputs = [np.concatenate(column) for column in zip(*rows, strict=True)]
    types = zip(outputs, file.outputs, strict=True)
    return Golden(tuple(codes), tuple(y.astype(t.dtype) for y, t in types))


def golden_stream(content: bytes, clip: Sequence[np.ndarray], calls: int, runtime: str) -> Golden:
    """Run the first frames of a clip through a streaming file; states are among inputs and outputs.

    Args:
        content: of the file.
        clip: codes [1, frames, ...] for each input.
        calls: at most so many.
        runtime: name of the interpreter.

    Raises:
        ValueError: the runtime refuses the file, or is not installed.
    """
    running = Stream(content, runtime)
    inputs: list[list[np.ndarray]] = []
    outputs: list[list[np.ndarray]] = []
    for n in range(min(calls, clip[0].shape[1] // running.hop)):
        frames = [a[:, n * running.hop : (n + 1) * running.hop] for a in clip]
        inputs.append([*frames, *running.states])
        outputs.append([*running.step_codes(frames), *running.states])
    both = [tuple(np.concatenate(column) for column in zip(*rows, strict=True)) for rows in (inputs, outputs)]
    return Golden(*both)


def spread(x: np.ndarray, count: int) -> np.ndarray:
    """So many samples, evenly spread over all of them.

    Args:
        x: [samples, ...].
        count: at most as many as there are.

    Example:
        >>> spread(np.arange(10), 4)
        array([0, 3, 6, 9])
    """
    count = min(count, len(x))
    return x[np.linspace(0, len(x) - 1, count).round().astype(int)]
