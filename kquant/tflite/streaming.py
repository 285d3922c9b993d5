"""A program over a clip -> a program over the newest frames, with states that hold what older frames left.

    PAD (time) + CONV   ->   CONCATENATION(state, x) -> CONV, VALID in time
                             SLICE of its newest frames -> the next state

States hold codes in the encoding of the tensor they delay, at first its zero point: the zeros that causal padding puts
before the first frame. Readers of one tensor share its state. Where an operator needs all frames at once (a mean over
time, Flatten), the state holds the whole window, and what follows is computed as in the file. The streaming of Keras
networks in this way is described in Rybakov et al. 2020 (arXiv:2005.06720).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kquant.core.operators import facts
from kquant.core.program import Operator, Program, Ref
from kquant.tflite.stream_loops import continued, frames_of, parts_of, remembers
from kquant.tflite.timeline import HELPERS, Read, Static, Step, Time, Timeline, name_of


@dataclass(frozen=True, eq=False)
class State:
    """What a stream keeps from call to call: `read` at the start of a call, `written` at its end, `code` at first."""

    read: Ref
    written: Ref
    code: int


@dataclass(frozen=True)
class StreamOutput:
    """An output of the stream.

    Attributes:
        name: of the tensor.
        axis: its time axis; None where each call gives one result for the last frames.
        delay: elements that it lags behind the newest frames.
        clean: index of the first element that equals the file's.
        warm_up: calls whose results are not (all) those of the file.
        complete: calls from a reset on that give the file's result on a clip, for results of a window; 0 where no
            number of calls ends with the clip.
        goes_on: each call gives the result for all frames since the reset, as a recurrent layer that returns its last
            state does.
    """

    name: str
    axis: int | None
    delay: int
    clean: int
    warm_up: int
    complete: int = 0
    goes_on: bool = False


@dataclass(frozen=True, eq=False)
class Streamed:
    """A streaming program.

    Attributes:
        program: its inputs and outputs are frames; states are not among them yet.
        states: to be kept by the application or in variables.
        hop: input frames that each call takes.
        window: frames of the longest window that is computed anew in each call; 0 without one.
        outputs: in the order of the program.
        padded_window: windows hold results that the file computes with zeros before its first frame.
        inside: layers whose operator keeps its states in itself, which the interpreter's reset takes away.
    """

    program: Program
    states: list[State]
    hop: int
    window: int
    outputs: tuple[StreamOutput, ...]
    padded_window: bool
    inside: tuple[str, ...] = ()


def to_stream(program: Program, frames: int = 1) -> Streamed:
    """The same network, fed with the newest frames only.

    Args:
        program: tidied, with batch 1; axis 1 of its inputs is time. It is not changed.
        frames: results in time that each call gives; the call takes as many input frames times the network's strides.

    Returns:
        The streaming program and its states.

    Raises:
        ValueError: a layer that cannot be streamed, by name, with the remedy.
    """
    timeline = Timeline(program)
    # The smallest call after which every tensor has grown by whole elements.
    rates = [t.step for t in timeline.times.values() if isinstance(t, Time)]
    return _Emitter(program, timeline, math.lcm(*rates) * frames).run()


def stream_metadata(streamed: Streamed, kept: str) -> dict[str, Any]:
    """What `kquant.stream` must know of a file, written into its metadata.

    Args:
        streamed: the program.
        kept: where its states are, "io" or "variables".
    """
    return {
        "hop": streamed.hop,
        "kept": kept,
        "states": [state.code for state in streamed.states] if kept == "io" else [],
        "axes": [output.axis for output in streamed.outputs],
    }


@dataclass
class _Emitter:
    """Writes the operators again, on blocks of frames."""

    source: Program
    timeline: Timeline
    hop: int
    blocks: dict[int, Ref] = field(default_factory=dict[int, Ref])
    held: dict[int, Ref] = field(default_factory=dict[int, Ref])
    parts: dict[tuple[int, int, int], Ref] = field(default_factory=dict[tuple[int, int, int], Ref])
    states: list[State] = field(default_factory=list[State])

    def __post_init__(self) -> None:
        self.program = Program(self.source.name, output_names=self.source.output_names)
        # All readers of a tensor share one history, as long as the one that looks back furthest needs it.
        self.needs: dict[int, int] = {}
        for step in self.timeline.steps:
            for i, read in step.reads.items():
                ref = step.op.inputs[i]
                if ref is not None:
                    self.needs[id(ref)] = max(self.needs.get(id(ref), 0), self.older(ref, read))

    def run(self) -> Streamed:
        for ref in self.source.inputs:
            self.program.inputs.append(self.block(ref))
        for step in self.timeline.steps:
            self.emit(step)
        self.program.outputs = [self.block(ref) for ref in self.source.outputs]
        self.states = [self.apart(state) for state in self.states]
        outputs = tuple(self.output(ref) for ref in self.source.outputs)
        still = [t for t in self.timeline.times.values() if isinstance(t, Static)]
        window = max((t.ready for t in still if not t.goes_on), default=0)
        padded = any(t.padded for t in still)
        inside = tuple(
            name_of(step.op) for step in self.timeline.steps if step.op.code.endswith("LSTM") or remembers(step.op)
        )
        return Streamed(self.program, self.states, self.hop, window, outputs, padded, inside)

    def count(self, time: Time) -> int:
        """Elements of a tensor that each call adds."""
        return self.hop // time.step

    def older(self, ref: Ref, read: Read) -> int:
        """Elements from before the call that a reader needs."""
        time = self.timeline.of(ref)
        if read.whole is None or not isinstance(time, Time):
            return read.older
        return read.whole + read.skip - self.count(time)

    def block(self, ref: Ref) -> Ref:
        """The tensor of the stream that stands for a tensor of the file."""
        if id(ref) not in self.blocks:
            time = self.timeline.of(ref)
            shape = list(ref.shape)
            if isinstance(time, Time):
                shape[time.axis] = self.count(time)
            self.blocks[id(ref)] = replace(ref, shape=tuple(shape))
        return self.blocks[id(ref)]

    def emit(self, step: Step) -> None:
        op = step.op
        if op.code == "WHILE":
            self.loop(step)
            return
        inputs = [None if ref is None else self.operand(ref, step.reads.get(i)) for i, ref in enumerate(op.inputs)]
        outputs = [self.block(ref) for ref in op.outputs]
        options = dict(op.options)
        time = self.timeline.of(op.outputs[0])
        if isinstance(time, Time):
            inputs, options = self.fitted(step, time, inputs, outputs[0], options)
            first = inputs[0]
            # A PAD or SLICE in time alone only moves elements: what reads it reads its source.
            still = facts(op.code).moves_frames and first is not None and first.shape == outputs[0].shape
            if first is not None and still and not any(op.outputs[0] is ref for ref in self.source.outputs):
                self.blocks[id(op.outputs[0])] = first  # it moved frames only
                return
        self.program.operators.append(Operator(op.code, inputs, outputs, options, op.intermediates))

    def loop(self, step: Step) -> None:
        """A loop, which goes on from call to call."""
        op, parts = step.op, parts_of(step.op)
        read = [(ref, step.reads[n]) for n in parts.sequences if (ref := op.inputs[n]) is not None]
        sequences = [self.operand(ref, part) for ref, part in read]
        results = [self.block(op.outputs[n]) for n in parts.results]
        steps = sequences[0].shape[1] if frames_of(op) is None else results[0].shape[1]
        made = continued(op, name_of(op), sequences, results, steps)
        self.program.operators += made.operators
        self.blocks |= {id(op.outputs[number]): ref for number, ref in made.outputs.items()}
        for before, after in made.states:
            code = 0 if before.encoding is None else int(before.encoding.zero_point[0])
            self.states.append(State(before, after, code))

    def apart(self, state: State) -> State:
        """A state that is no output of the network too: the application asks for either."""
        if all(state.written is not ref for ref in self.program.outputs):
            return state
        ref = state.written
        return replace(state, written=self.slice(ref, 1, 0, ref.shape[1], f"{state.read.name}_out"))

    def fitted(
        self, step: Step, time: Time, inputs: list[Ref | None], output: Ref, options: dict[str, Any]
    ) -> tuple[list[Ref | None], dict[str, Any]]:
        """Sizes, offsets and strides along time, for the block."""
        op = step.op
        at = facts(op.code).size_at
        if at is not None and inputs[at] is not None:
            size = output.shape[1:3] if op.code.startswith("RESIZE") else output.shape
            inputs[at] = self.program.constant("shape", np.array(size, np.int32))
            if "newShape" in options:
                options["newShape"] = list(output.shape)
        if op.code == "STRIDED_SLICE" and op.inputs[2] is not None and op.inputs[2].data is not None:
            ends = op.inputs[2].data.copy()
            ends[time.axis] = output.shape[time.axis]
            inputs[2] = self.program.constant("end", ends)
        if op.code in ("PAD", "SLICE") and op.inputs[1] is not None and op.inputs[1].data is not None:
            amounts = op.inputs[1].data.copy()
            # Along time these two only move elements, which first states and delays do here.
            amounts[time.axis] = 0
            inputs[1] = self.program.constant(op.inputs[1].name, amounts)
        stride = f"stride{'HW'[time.axis - 1]}" if time.axis in (1, 2) else ""
        if stride in options and op.outputs[0].shape[time.axis] == 1:
            # A single result for the whole clip has no next one to step to; a stream gives one for every position.
            options[stride] = 1
        return inputs, options

    def operand(self, ref: Ref, read: Read | None) -> Ref:
        """What an operator reads of a tensor in a call: its own block, or more, or less."""
        block, time = self.block(ref), self.timeline.of(ref)
        if read is None or not isinstance(time, Time):
            return block
        count = self.count(time)
        older = self.older(ref, read)
        length = older + count - read.skip
        need = self.needs[id(ref)]
        full = self.history(ref, need, time) if need else block
        # The history begins `need` elements before the call, this reader `older` of them.
        first = need - older
        if first == 0 and length == full.shape[time.axis]:
            return full
        key = (id(ref), first, length)
        if key not in self.parts:
            self.parts[key] = self.slice(full, time.axis, first, length, f"{ref.name}/{first}to{first + length}")
        return self.parts[key]

    def history(self, ref: Ref, need: int, time: Time) -> Ref:
        """The block behind `need` older elements, which become a state."""
        if id(ref) in self.held:
            return self.held[id(ref)]
        block, encoding = self.block(ref), ref.encoding
        shape = list(block.shape)
        shape[time.axis] = need
        name = HELPERS.sub("", ref.name)
        state = Ref(f"{name}/state", tuple(shape), ref.dtype, encoding)
        shape[time.axis] += block.shape[time.axis]
        full = self.program.value(f"{name}/history", shape, encoding, ref.dtype)
        options = {"axis": time.axis, "fusedActivationFunction": "NONE"}
        self.program.emit("CONCATENATION", [state, block], full, **options)
        # What the next call finds before it: the newest `need` elements of the history and this block.
        written = self.slice(full, time.axis, block.shape[time.axis], need, f"{name}/state_out")
        self.states.append(State(state, written, 0 if encoding is None else int(encoding.zero_point[0])))
        self.held[id(ref)] = full
        return full

    def slice(self, x: Ref, axis: int, first: int, length: int, name: str) -> Ref:
        begin, shape = [0] * len(x.shape), list(x.shape)
        begin[axis], shape[axis] = first, length
        where = self.program.constant("begin", np.array(begin, np.int32))
        size = self.program.constant("size", np.array(shape, np.int32))
        return self.program.emit("SLICE", [x, where, size], self.program.value(name, shape, x.encoding, x.dtype))

    def output(self, ref: Ref) -> StreamOutput:
        time = self.timeline.of(ref)
        if isinstance(time, Time):
            # Calls before the one whose first element is `clean` or later, where element i comes `delay` elements late.
            warm_up = max(-(-(time.clean + time.delay) // self.count(time)), 0)
            return StreamOutput(ref.name, time.axis, time.delay, time.clean, warm_up)
        if not isinstance(time, Static):
            raise ValueError(f"export: {ref.name}: this output depends on no input, so there is nothing to stream.")
        calls = -(-time.ready // self.hop)
        # Whether some call ends just where the clip does: only then does the window hold what the file sees.
        ends = all(calls * self.count(t) - t.delay == length for length, t in time.windows)
        return StreamOutput(ref.name, None, 0, 0, calls - 1, calls if ends else 0, time.goes_on)
