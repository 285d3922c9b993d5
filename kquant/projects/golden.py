"""Golden vectors: inputs as codes, and the codes that TFLM gives for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kquant.exporting.streams import Stream
from kquant.runtime.running import ARENA, Running
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


def golden_vectors(content: bytes, file: FileModel, codes: Sequence[np.ndarray]) -> Golden:
    """Run a file on TFLM, call after call from its first state on.

    Args:
        content: of the file.
        file: what it holds.
        codes: [calls, ...] for each input.

    Raises:
        ValueError: TFLM refuses the file, or the `micro` extra is missing.
    """
    rows: list[list[np.ndarray]] = []
    with Running(content, ARENA) as running:
        running.reset()
        for n in range(len(codes[0])):
            rows.append(running.call([a[n : n + 1] for a in codes]))
    outputs = [np.concatenate(column) for column in zip(*rows, strict=True)]
    types = zip(outputs, file.outputs, strict=True)
    return Golden(tuple(codes), tuple(y.astype(t.dtype) for y, t in types))


def golden_stream(content: bytes, clip: Sequence[np.ndarray], calls: int) -> Golden:
    """Run the first frames of a clip through a streaming file on TFLM; states are among inputs and outputs.

    Args:
        content: of the file.
        clip: codes [1, frames, ...] for each input.
        calls: at most so many.

    Raises:
        ValueError: TFLM refuses the file, or the `micro` extra is missing.
    """
    running = Stream(content, ARENA)
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
