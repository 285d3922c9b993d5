"""Run a streaming file frame by frame (`stream`), and check one against the file over whole clips (`check_stream`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from kquant.core.program import Ref
from kquant.core.renamed import renamed
from kquant.runtime.running import (
    ROUNDS_BY_SHAPE,
    Running,
    dequantize_output,
    probe,
    quantize_input,
    refuse_tables,
)
from kquant.tflite.reader import FileModel, FileTensor, read_bytes, read_model
from kquant.tflite.streaming import Streamed, StreamOutput

# A stream is checked on two clips.
CLIPS = 2
LONGEST = 2000


@dataclass(frozen=True)
class StateInfo:
    """A state of a streaming file: `real = scale * (code - zero_point)`; every element is `initial` at first."""

    name: str
    shape: tuple[int, ...]
    type: str
    scale: float | None
    zero_point: int
    initial: int

    @property
    def size_bytes(self) -> int:
        """Bytes that the application or the interpreter keeps."""
        return int(np.prod(self.shape)) * np.dtype(self.type).itemsize


@dataclass(frozen=True)
class StreamCheck:
    """A streaming file against the file over whole clips, on one runtime: frames of the clips, share of equal codes
    (None where no call ends with a clip, so that nothing could be compared).
    """

    runtime: str
    frames: int
    equal: float | None


@dataclass(frozen=True)
class StreamReport:
    """What a streaming file needs of the application.

    Attributes:
        hop: input frames that each call takes.
        kept: "io": the application copies each state output to its state input; "variables": the interpreter keeps
            them.
        states: in the order of the file's state inputs and outputs.
        outputs: how each output lies in time.
        checks: one for each runtime.
        notes: what to know before relying on the outputs.
    """

    hop: int
    kept: str
    states: tuple[StateInfo, ...]
    outputs: tuple[StreamOutput, ...]
    checks: tuple[StreamCheck, ...]
    notes: tuple[str, ...]

    @property
    def state_bytes(self) -> int:
        """Bytes of all states."""
        return sum(state.size_bytes for state in self.states)


def describe_stream(streamed: Streamed, kept: str, checks: Sequence[StreamCheck]) -> StreamReport:
    """The report of a streaming program."""
    notes = [
        f"{output.name}: the first {output.warm_up} calls give no result of the file's; leave them out."
        for output in streamed.outputs
        if output.warm_up and not output.goes_on
    ]
    notes += [
        f"{output.name}: each call gives the result for all frames since the reset; that of the file comes with call "
        f"{output.warm_up + 1}. Reset where a clip begins."
        for output in streamed.outputs
        if output.goes_on
    ]
    if streamed.inside:
        notes.append(
            f"{', '.join(streamed.inside)}: the operator keeps its states in itself, whatever `states` says. A new "
            "stream begins with the interpreter's reset: reset_all_variables() in Python, MicroInterpreter::Reset() on "
            "the device."
        )
    if streamed.padded_window:
        notes.append(
            f"The window of {streamed.window} frames holds results of causal layers. The file pads each clip with "
            "zeros, a stream goes on from the frames before: they agree on the first window after a reset. Valid "
            "convolutions (padding='valid') agree on every window."
        )
    infos = tuple(_info(state.read, state.code) for state in streamed.states)
    return StreamReport(streamed.hop, kept, infos, streamed.outputs, tuple(checks), tuple(notes))


def _info(ref: Ref, code: int) -> StateInfo:
    scale = None if ref.encoding is None else float(ref.encoding.scale[0])
    zero_point = 0 if ref.encoding is None else int(ref.encoding.zero_point[0])
    return StateInfo(ref.name, ref.shape, ref.dtype, scale, zero_point, code)


class Stream:
    """A streaming file with its states: `step` for the newest frames, `run` for a clip, `reset` between clips.

    Args:
        content: the file.
        runtime: "litert", "litert-reference" or "tflm".
        where: names the file in errors.
    """

    @renamed
    def __init__(self, content: bytes, runtime: str = "litert", where: str = "the file") -> None:
        self.content, self.runtime = content, runtime
        self.file: FileModel = read_model(content, where)
        about = self.file.metadata.get("streaming")
        if about is None:
            raise ValueError(
                f"stream: {where} is not a streaming file; write one with kquant.export(..., streaming=True), or run "
                "it on whole clips with kquant.predict."
            )
        refuse_tables("stream", self.file, runtime)
        self.hop, self.axes, self._initial = _told(about, self.file, where)
        # states stand behind the application's own, on both sides and in one order
        self.inputs = self.file.inputs[: len(self.file.inputs) - len(self._initial)]
        self.outputs = self.file.outputs[: len(self.file.outputs) - len(self._initial)]
        self._running = Running(content, runtime)
        self._states = self._first_states()
        self.step_codes([np.zeros(t.shape, t.dtype) for t in self.inputs])  # what cannot run is refused here
        self.reset()

    def __repr__(self) -> str:
        return f"Stream({self.hop} frames a call, {len(self._states)} states, {self.runtime})"

    def reset(self) -> None:
        """Forget all frames: the next call is the first one of a clip."""
        self._running.reset()
        self._states = self._first_states()

    def _first_states(self) -> list[np.ndarray]:
        kept = self.file.inputs[len(self.inputs) :]
        return [np.full(t.shape, code, t.dtype) for t, code in zip(kept, self._initial, strict=True)]

    @property
    def states(self) -> list[np.ndarray]:
        """Codes of the states that are inputs of the next call; none where the interpreter keeps them."""
        return list(self._states)

    def step_codes(self, codes: list[np.ndarray]) -> list[np.ndarray]:
        """`step` on codes: inputs and outputs as the file has them, batch axis included."""
        results = self._running.call([*codes, *self._states])
        self._states = results[len(self.outputs) :]
        return results[: len(self.outputs)]

    @renamed
    def step(self, data: Any) -> np.ndarray | list[np.ndarray]:
        """The newest frames in, the newest outputs out.

        Args:
            data: real numbers [hop, features...], or [features...] where `hop` is 1; a list for several inputs.

        Returns:
            float32 without batch axis; a list for several outputs.

        Raises:
            ValueError: a wrong shape, or NaN.

        Example:
            >>> import keras
            >>> inputs = keras.Input((16, 4))
            >>> model = keras.Model(inputs, keras.layers.Conv1D(2, 3, padding="causal")(inputs))
            >>> q = kquant.calibrate(kquant.quantize(model), np.ones((64, 16, 4), "float32"), verbose=False)
            >>> report = kquant.export(q, "conv.tflite", streaming=True)
            >>> kquant.stream("conv.tflite").step(np.ones(4)).shape
            (1, 2)
        """
        arrays = [np.asarray(data)] if len(self.inputs) == 1 else [np.asarray(a) for a in data]
        codes = [self._codes(a, t) for a, t in zip(arrays, self.inputs, strict=True)]
        results = [dequantize_output(y, t)[0] for y, t in zip(self.step_codes(codes), self.outputs, strict=True)]
        return results[0] if len(results) == 1 else results

    def _codes(self, array: np.ndarray, tensor: FileTensor) -> np.ndarray:
        wanted = tuple(tensor.shape[1:])
        array = array[None] if self.hop == 1 and array.shape == wanted[1:] else array
        if array.shape != wanted:
            raise ValueError(f"stream: input '{tensor.name}' takes frames {wanted}. Received: {array.shape}.")
        if np.isnan(array).any():
            raise ValueError(f"stream: NaN among the values of input '{tensor.name}'; it has no code.")
        return quantize_input(array[None], tensor)

    @renamed
    def run(self, data: Any) -> np.ndarray | list[np.ndarray]:
        """A clip from a reset on, `hop` frames a call; frames that do not fill a last call are left out.

        Args:
            data: real numbers [frames, features...]; a list for several inputs.

        Returns:
            Outputs with time joined along it, others stacked: one for each call.
        """
        self.reset()
        arrays = [np.asarray(data)] if len(self.inputs) == 1 else [np.asarray(a) for a in data]
        rows = []
        for start in range(0, len(arrays[0]) - self.hop + 1, self.hop):
            parts = [a[start : start + self.hop] for a in arrays]
            made = self.step(parts[0] if len(parts) == 1 else parts)
            rows.append(made if isinstance(made, list) else [made])
        if not rows:
            raise ValueError(f"stream: a call takes {self.hop} frames. Received: {len(arrays[0])}.")
        joined = [
            np.stack(column) if axis is None else np.concatenate(column, axis - 1)
            for axis, column in zip(self.axes, zip(*rows, strict=True), strict=True)
        ]
        return joined[0] if len(joined) == 1 else joined


def _told(about: Any, file: FileModel, where: str) -> tuple[int, list[int | None], list[int]]:
    """Hop, time axes of the outputs and first codes of the states, as the file's metadata tell them."""
    told: dict[str, Any] = about if isinstance(about, dict) else {}
    # whatever stands there: the checks below say what it has to be
    hop, axes, states = (cast(Any, told.get(key)) for key in ("hop", "axes", "states"))
    counts = isinstance(hop, int) and hop > 0 and isinstance(axes, list) and isinstance(states, list)
    if not counts or len(states) > len(file.inputs) or len(states) + len(axes) != len(file.outputs):
        raise ValueError(f"stream: {where} is damaged: its metadata tell of other inputs and outputs. Export it again.")
    kept = file.inputs[len(file.inputs) - len(states) :]
    fits = all(_is_code(code, t) for code, t in zip(states, kept, strict=True))
    ranks = [len(t.shape) for t in file.outputs]
    if not fits or not all(a is None or (isinstance(a, int) and 0 < a < n) for a, n in zip(axes, ranks, strict=False)):
        raise ValueError(f"stream: {where} is damaged: its metadata tell of states or axes that it has not.")
    return int(hop), list(axes), list(states)


def _is_code(code: Any, tensor: FileTensor) -> bool:
    if isinstance(code, bool) or not isinstance(code, int | float):
        return False
    if not tensor.dtype.startswith(("int", "uint")):
        return tensor.dtype.startswith("float")
    info = np.iinfo(tensor.dtype)
    return isinstance(code, int) and info.min <= code <= info.max


def stream(path: str | Path | bytes, runtime: str = "litert") -> Stream:
    """Open a streaming file, which `kquant.export(..., streaming=True)` wrote.

    Args:
        path: the file, or its bytes.
        runtime: "litert" (XNNPACK), "litert-reference" or "tflm".

    Returns:
        An object that keeps the states: `step(data)`, `run(data)`, `reset()`.

    Raises:
        ValueError: not a streaming file, or the runtime refuses it.

    Example:
        >>> inputs = keras.Input((16, 4))
        >>> model = keras.Model(inputs, keras.layers.Conv1D(2, 3, padding="causal")(inputs))
        >>> q = kquant.calibrate(kquant.quantize(model), np.ones((64, 16, 4), "float32"), verbose=False)
        >>> report = kquant.export(q, "conv.tflite", streaming=True)
        >>> kquant.stream("conv.tflite").run(np.ones((50, 4))).shape
        (50, 2)
    """
    where = "the file" if isinstance(path, bytes | bytearray) else str(path)
    return Stream(read_bytes(path), runtime, where)


def check_stream(
    plain: bytes,
    file: FileModel,
    content: bytes,
    outputs: Sequence[StreamOutput],
    clips: list[np.ndarray],
    runtime: str,
) -> StreamCheck:
    """Run clips through both files and compare codes.

    Args:
        plain: the file over whole clips.
        file: what that one holds.
        content: the streaming file, int8 at its edges.
        outputs: of the stream.
        clips: real numbers [clips, frames, features...], one array for each input. Their loudness is changed from frame
            to frame, so that a frame in the wrong place shows even behind a mean.
        runtime: where to run both.

    Returns:
        The share of equal codes.

    Raises:
        ValueError: codes differ, naming the output; on XNNPACK, which may round differently for other shapes, the share
            is reported instead.
    """
    running = Stream(content, runtime)
    length = clips[0].shape[1]
    count = 1 if length // running.hop > LONGEST else CLIPS
    codes = [quantize_input(_uneven(a[:count]), t) for a, t in zip(clips, file.inputs, strict=True)]
    over_clips, equal, total = probe(plain, runtime, codes), 0, 0
    for i in range(len(codes[0])):
        wanted = [output[i : i + 1] for output in over_clips]
        running.reset()
        # frames behind the clip fill the last call; no result that is compared depends on them
        fed = [np.pad(c[i : i + 1], [(0, 0), (0, -length % running.hop), *[(0, 0)] * (c.ndim - 2)]) for c in codes]
        calls = [running.step_codes([c[:, at : at + running.hop] for c in fed]) for at in range(0, length, running.hop)]
        for output, expected, made in zip(outputs, wanted, zip(*calls, strict=True), strict=True):
            same = _same(output, expected, list(made))
            if runtime != ROUNDS_BY_SHAPE and not np.all(same):
                raise ValueError(
                    f"export: {output.name}: {1 - np.mean(same):.2%} of the stream's codes differ from the file's on "
                    f"{runtime}. Export without streaming, and report this network."
                )
            equal, total = equal + int(np.sum(same)), total + same.size
    return StreamCheck(runtime, len(codes[0]) * length, equal / total if total else None)


def _uneven(clips: np.ndarray) -> np.ndarray:
    """Clips times a loudness of each frame."""
    rng = np.random.default_rng(1)
    return clips * rng.random((*clips.shape[:2], *(1,) * (clips.ndim - 2)), np.float32) ** 3


def _same(output: StreamOutput, expected: np.ndarray, calls: list[np.ndarray]) -> np.ndarray:
    """Which codes are equal, of those that both files have."""
    if output.axis is None:
        return (calls[output.complete - 1] == expected).ravel() if output.complete else np.zeros(0, bool)
    made = np.moveaxis(np.concatenate(calls, output.axis), output.axis, 0)
    wanted = np.moveaxis(expected, output.axis, 0)
    first = max(output.clean, -output.delay)
    last = max(min(len(wanted), len(made) - output.delay), first)
    return (made[first + output.delay : last + output.delay] == wanted[first:last]).ravel()
