"""Where the time axis of every tensor lies, and how each operator moves along it: what `streaming` needs to know.

An element is one position on a tensor's time axis. Element `i` of a tensor can be computed once input frame
`i * step + lead` has come, so after `frames` input frames a tensor has `frames / step - delay` elements, `delay` being
`lead // step`. A convolution that pads nothing adds its reach to `lead`; zeros before the first frame take it back.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from kquant.core.operators import Along, facts
from kquant.core.program import Operator, Program, Ref
from kquant.tflite.stream_loops import frames_of, goes_on, going_on, parts_of, remembers

REAL_STEPS = re.compile(r"/real_other$")  # `ops.real_steps`: which steps of a clip are no padding
KEPT = re.compile(r"_kept$")  # `ops.real_steps`, behind the name of the layer that makes or reads a mask
HELPERS = re.compile(r"/(first/end|before|after|2d|unclipped|int8|part\d+|reshape_[0-9x]+)$")


@dataclass(frozen=True)
class Time:
    """The time axis of a tensor.

    Attributes:
        axis: which of the tensor's axes it is.
        step: input frames from one element to the next.
        lead: element `i` needs input frame `i * step + lead`; negative behind padding.
        clean: the first element that equals the file's; those before it depend on frames that no stream holds.
        padded: zeros stand before the first frame somewhere on the way here.
        goes_on: each element is that of all frames so far, as what a recurrent layer gives at each step.
    """

    axis: int
    step: int = 1
    lead: int = 0
    clean: int = 0
    padded: bool = False
    goes_on: bool = False

    @property
    def delay(self) -> int:
        """Elements that this tensor lags behind the newest input frame."""
        return self.lead // self.step


@dataclass(frozen=True)
class Static:
    """A tensor without time axis, computed anew in each call from whole windows.

    Attributes:
        ready: input frames until its windows are full of elements that equal the file's.
        padded: some window holds elements that depend on zeros before the first frame.
        windows: elements that there are at the end of a clip, and the time, of each tensor read as a window.
        goes_on: it is a single state of all frames so far, or computed from one.
    """

    ready: int
    padded: bool
    windows: tuple[tuple[int, Time], ...] = ()
    goes_on: bool = False


@dataclass(frozen=True)
class Read:
    """The part of a tensor's stream that an operator reads in a call: `older` elements before the call's own, `skip`
    of the newest left out; `whole`: so many elements instead, behind those skipped.
    """

    older: int = 0
    skip: int = 0
    whole: int | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One operator of the stream.

    Attributes:
        op: as in the file.
        out: time of its output.
        reads: number of an input -> what is read of it, for inputs with time.
    """

    op: Operator
    out: Time | Static
    reads: dict[int, Read] = field(default_factory=dict[int, Read])


def name_of(op: Operator) -> str:
    """The layer that an operator comes from."""
    return HELPERS.sub("", op.outputs[0].name)


def refuse(op: Operator, reason: str, name: str | None = None) -> ValueError:
    """An error that names the layer: by `name`, or as its operator is called."""
    return ValueError(f"export: {name or name_of(op)} ({op.code}) cannot be streamed: {reason}")


def refuse_padding(program: Program) -> None:
    """A stream takes frames as they come, and padding is known once a clip has ended.

    Raises:
        ValueError: a layer reads a mask that the file computes; the first recurrent one is named, or else the first.
    """
    reached: set[int] = set()
    made: list[Operator] = []
    met: list[Operator] = []  # what masks a tensor
    for op in program.operators:
        marks = any(REAL_STEPS.search(ref.name) for ref in op.outputs)
        if not marks and not any(id(ref) in reached for ref in op.inputs):
            continue
        beside = any(ref is not None and ref.data is None and id(ref) not in reached for ref in op.inputs)
        (made if marks else met if beside else []).append(op)
        reached |= {id(ref) for ref in op.outputs}
        if goes_on(op):
            raise refuse(
                op,
                "it reads a mask, and which steps are padding is known once a whole clip is there. A stream takes real "
                "frames only: build the model without Masking (its weights fit), give it no padding, and reset the "
                "states between clips.",
            )
    if made:
        reader = (met or made)[0]
        raise refuse(
            reader,
            "it reads a mask. A stream takes real frames only: build the model without Masking or mask_zero (its "
            "weights fit), and give it no padding.",
            KEPT.sub("", name_of(reader)),
        )


class Timeline:
    """Times of all tensors of a program, and its operators as steps.

    Args:
        program: tidied; axis 1 of its inputs is time.

    Raises:
        ValueError: an operator that looks ahead, or that mixes frames in a way no stream can follow, by layer name.
    """

    def __init__(self, program: Program) -> None:
        self.times: dict[int, Time | Static] = {}
        refuse_padding(program)
        timed = [len(ref.shape) > 2 or _is_sound(program, ref) for ref in program.inputs]
        lengths = {int(np.prod(ref.shape[1:2])) for ref in program.inputs}
        if len(lengths) != 1 or not all(timed):
            shapes = ", ".join(f"{ref.name} {list(ref.shape)}" for ref in program.inputs)
            raise ValueError(
                "export: streaming needs inputs of one length [batch, time, features...], time first. Received: "
                f"{shapes}. Put a Reshape or Permute in the application, before the model."
            )
        self.frames = lengths.pop()
        for ref in program.inputs:
            self.times[id(ref)] = Time(1)
        self.steps = [self._step(op) for op in going_on(program)]

    def of(self, ref: Ref | None) -> Time | Static | None:
        """Time of a tensor; None for constants."""
        return None if ref is None else self.times.get(id(ref))

    def _step(self, op: Operator) -> Step:
        if frames_of(op) is not None:
            return self._framed(op)
        if goes_on(op):
            return self._going_on(op)
        moving = {i: t for i, ref in enumerate(op.inputs) if isinstance(t := self.of(ref), Time)}
        still = [t for ref in op.inputs if isinstance(t := self.of(ref), Static)]
        if not moving and not still and op.code == "DEQUANTIZE":
            raise refuse(op, "a stream dequantizes no weights. Take weights of dtype 'int' here, or no float.")
        if not moving and not still:
            raise refuse(op, "it depends on no input. Fold it into a weight.")
        lengths = {_shape(op, i)[t.axis] for i, t in moving.items()}  # one row for all frames meets a row for each
        if still or len(lengths) > 1 or self._takes_all(op, moving):
            step = self._whole(op, moving, still)
        else:
            step = _handler(op)(op, moving)
        for ref in op.outputs:
            self.times[id(ref)] = step.out
        return step

    def _going_on(self, op: Operator) -> Step:
        """A recurrent layer: results come with their frames, and a last state is that of all frames so far."""
        loop = parts_of(op) if op.code == "WHILE" else None
        sequences = (0,) if loop is None else loop.sequences
        given = [self.of(op.inputs[n]) for n in sequences]
        times = [t for t in given if isinstance(t, Time) and t.axis == 1]
        if not times or len(times) < len(given) or len({(t.step, t.lead) for t in times}) > 1:
            raise refuse(op, "what it reads is no sequence of frames. Export without streaming.")
        time, length = times[0], _shape(op, sequences[0])[1]
        last = (self.frames - 1 - time.lead) // time.step  # the newest element when a clip ends
        if time.delay or any(t.clean for t in times) or length != last + 1:
            raise refuse(
                op,
                "its states would take up frames that it does not see in a clip, before the first one or behind the "
                "last. Use padding='causal' in the convolutions before it, and neither crop nor pool there.",
            )
        step = Step(op, replace(time, padded=True, goes_on=True), {number: Read() for number in sequences})
        for ref in op.outputs:
            self.times[id(ref)] = step.out
        if loop is not None:
            still = Static((last + 1) * time.step + time.lead, False, ((last + 1, time),), goes_on=True)
            self.times |= {id(op.outputs[number]): still for number in loop.states}
        return step

    def _framed(self, op: Operator) -> Step:
        """Features of frames that a loop cuts out of the samples, as a convolution would."""
        length, stride = frames_of(op) or (0, 0)
        time = self.of(op.inputs[1])
        if not isinstance(time, Time) or time.axis != 1:
            raise refuse(op, "what it reads is no sequence of samples. Export without streaming.")
        out, read = _windowed(op, time, length - 1, stride)
        if remembers(op) and (out.delay or out.clean or time.delay > 0):
            raise refuse(
                op,
                "its estimate of the noise would take up frames that no clip has, as the first samples come. Make the "
                "layer with padding='causal'; its features are those of a clip behind silence.",
            )
        out = replace(out, padded=out.padded or remembers(op), goes_on=remembers(op))
        self.times |= {id(ref): out for ref in op.outputs}
        return Step(op, out, {1: read})

    def _takes_all(self, op: Operator, moving: dict[int, Time]) -> bool:
        """Operators whose result needs every frame at once: means over time, Flatten."""
        time = moving.get(0)
        if time is None:
            return False
        if facts(op.code).time == "reduce":
            return time.axis in _axes(op)
        return op.code == "RESHAPE" and _moved_axis(op, time) is None

    def _whole(self, op: Operator, moving: dict[int, Time], still: list[Static]) -> Step:
        """Every input as the whole window that the file sees."""
        reads: dict[int, Read] = {}
        ready, padded, going = [t.ready for t in still], any(t.padded for t in still), any(t.goes_on for t in still)
        windows = [w for t in still for w in t.windows]
        for i, time in moving.items():
            length = _shape(op, i)[time.axis]
            last = (self.frames - 1 - time.lead) // time.step  # the newest element when a clip ends
            reads[i] = Read(skip=last - length + 1, whole=length)
            # The newest element for which all of the window is clean, and the frame that it comes with.
            ready.append((time.clean + last) * time.step + time.lead + 1)
            last_state = time.goes_on and length == 1  # no window: it holds no frames
            padded, going = padded or (time.padded and not last_state), going or last_state
            windows.append((last + 1, time))
        return Step(op, Static(max(ready), padded, tuple(windows), going), reads)


Handler = Callable[[Operator, dict[int, Time]], Step]


def _is_sound(program: Program, ref: Ref) -> bool:
    """Of sound a frame is one sample, without features: it is cut into frames, or each sample gets an axis."""

    def heard(op: Operator) -> bool:
        if frames_of(op) is not None:
            return True
        out = op.outputs[0]
        if op.code == "RESHAPE":
            return sorted(out.shape)[-2:] == [1, ref.shape[1]]
        return facts(op.code).time in ("local", "pad") and _is_sound(program, out)

    readers = [op for op in program.operators if any(ref is given for given in op.inputs)]
    return len(ref.shape) == 2 and bool(readers) and all(map(heard, readers))


def _shape(op: Operator, i: int) -> tuple[int, ...]:
    ref = op.inputs[i]
    return () if ref is None else ref.shape


def _axes(op: Operator) -> list[int]:
    axes = op.inputs[1].data if len(op.inputs) > 1 and op.inputs[1] is not None else None
    rank = len(_shape(op, 0))
    return [] if axes is None else [int(a) % rank for a in np.ravel(axes)]


def _used(op: Operator, time: Time) -> Time:
    """The time of a computed value: zeros before the first frame are no longer zeros behind a computation."""
    if facts(op.code).keeps_zero or time.delay >= 0:
        return time
    return replace(time, clean=max(time.clean, -time.delay))


def _unknown(op: Operator, moving: dict[int, Time]) -> Step:
    raise refuse(op, "kquant does not know how it moves along time. Export without streaming, or leave it out.")


def _local(op: Operator, moving: dict[int, Time]) -> Step:
    """Frame by frame; inputs that come at different times meet behind delay lines."""
    if len({(t.axis - len(_shape(op, i)), t.step) for i, t in moving.items()}) > 1:
        raise refuse(op, "its inputs run at different rates or have time on different axes. Make them alike.")
    last = max(moving.values(), key=lambda t: t.lead)
    offset = last.axis - len(op.outputs[0].shape)
    beside = [ref for i, ref in enumerate(op.inputs) if i not in moving]
    if facts(op.code).time == "local" and any(_varies(ref, offset) for ref in beside):
        raise refuse(op, "its constant differs from frame to frame, and a stream has no frame numbers. Use one row.")
    # The output comes when the last of the inputs does; the others wait in delay lines: as many elements older are read
    # as are left out of the newest.
    times = moving.values()
    padded, going = any(t.padded for t in times), any(t.goes_on for t in times)
    out = Time(last.axis, last.step, last.lead, max(t.clean for t in times), padded, going)
    reads = {i: Read(out.delay - t.delay, out.delay - t.delay) for i, t in moving.items()}
    return Step(op, _used(op, out), reads)


def _varies(constant: Ref | None, offset: int) -> bool:
    """True where a constant has more than one row along time, counted from its last axis."""
    return constant is not None and len(constant.shape) >= -offset and constant.shape[offset] > 1


def _concatenation(op: Operator, moving: dict[int, Time]) -> Step:
    time = next(iter(moving.values()))
    if op.options["axis"] % len(op.outputs[0].shape) == time.axis:
        raise refuse(op, "it joins frames along time. Join features instead, or join in the application.")
    return _local(op, moving)


def _last_axis(op: Operator, moving: dict[int, Time]) -> Step:
    """Operators over the last axis, one position at a time."""
    if set(moving) != {0} or moving[0].axis == len(_shape(op, 0)) - 1:
        raise refuse(op, "it runs over the time axis. Put time first and features last.")
    return _local(op, moving)


def _reduce(op: Operator, moving: dict[int, Time]) -> Step:
    """Over other axes than time."""
    time = moving[0]
    # Reduced axes in front of time are gone, and it moves up.
    gone = 0 if op.options.get("keepDims") else sum(a < time.axis for a in _axes(op))
    return Step(op, replace(_used(op, time), axis=time.axis - gone), {0: Read()})


def _moved_axis(op: Operator, time: Time) -> int | None:
    """The axis that is time behind a RESHAPE; None where it merges frames."""
    source, result = _shape(op, 0), op.outputs[0].shape
    # Time is still an axis where one has its length and as many elements in front of it.
    before = int(np.prod(source[: time.axis]))
    for axis in range(1, len(result)):
        if result[axis] == source[time.axis] and int(np.prod(result[:axis])) == before:
            return axis
    return None


def _reshape(op: Operator, moving: dict[int, Time]) -> Step:
    axis = _moved_axis(op, moving[0])
    return Step(op, replace(moving[0], axis=moving[0].axis if axis is None else axis), {0: Read()})


def _transpose(op: Operator, moving: dict[int, Time]) -> Step:
    order = op.inputs[1].data if op.inputs[1] is not None else None
    if order is None:
        return _unknown(op, moving)
    return Step(op, replace(moving[0], axis=list(map(int, order)).index(moving[0].axis)), {0: Read()})


def _pad(op: Operator, moving: dict[int, Time]) -> Step:
    """Zeros before the first frame are what the states hold at first; zeros behind the last one never come."""
    time = moving[0]
    rows = op.inputs[1].data if op.inputs[1] is not None else None
    if rows is None:
        return _unknown(op, moving)
    before, behind = (int(n) for n in rows[time.axis])
    if behind:
        raise refuse(
            op,
            f"it pads {behind} frames behind the last one, so what reads it looks ahead. Pad before the first frame "
            f"only: ({before + behind}, 0).",
        )
    # Where the stream gives nothing before element 0, its first states are these zeros; elsewhere it has computed
    # something in their place.
    fresh = time.clean == 0 and time.delay <= 0
    clean = 0 if fresh or not before else time.clean + before
    padded = time.padded or before > 0
    return Step(op, replace(time, lead=time.lead - before * time.step, clean=clean, padded=padded), {0: Read()})


def _slice(op: Operator, moving: dict[int, Time]) -> Step:
    """Left-out first frames make the rest come later; last frames that are left out are never asked for."""
    time = moving[0]
    begin = op.inputs[1].data if op.inputs[1] is not None else None
    if begin is None:
        return _unknown(op, moving)
    first = int(begin[time.axis])
    out = replace(time, lead=time.lead + first * time.step, clean=max(time.clean - first, 0))
    return Step(op, out, {0: Read()})


def _window(op: Operator, moving: dict[int, Time]) -> Step:
    """Convolutions and pools: `reach` older elements, every `stride`-th result."""
    time = moving.get(0)
    shape = _shape(op, 0)
    if time is not None and time.axis == 3 and int(np.prod(shape)) == shape[3] > 1:
        raise refuse(
            op,
            f"it takes the samples of a clip for features. Give it one feature, Reshape(({shape[3]}, 1)) before it and "
            f"Reshape(({shape[3]},)) behind it, or leave it out: sound of 16 bits enters the file as it is, and clips "
            "in -1 .. 1 that calibrate tell its scale.",
        )
    if time is None or time.axis not in (1, 2):
        raise refuse(op, "time is not among the axes that it moves along. Put time first.")
    letter = "HW"[time.axis - 1]
    stride, source, made = op.options[f"stride{letter}"], shape[time.axis], op.outputs[0].shape[time.axis]
    if facts(op.code).weights:  # else a pool
        reach = (_shape(op, 1)[time.axis] - 1) * op.options[f"dilation{letter}Factor"]
    else:
        reach = op.options["filterHeight" if letter == "H" else "filterWidth"] - 1
    # What the last window needs beyond the source: SAME puts the larger half of it behind.
    ahead = max((made - 1) * stride + reach + 1 - source, 0)
    if op.options["padding"] == "SAME" and ahead:
        raise refuse(
            op,
            f"padding='same' looks {ahead - ahead // 2} frames ahead in time. Use padding='causal' (Conv1D), or "
            f"ZeroPadding with ({reach}, 0) in time before padding='valid'.",
        )
    out, read = _windowed(op, time, reach, 1 if made == 1 else stride)
    return Step(op, out, {0: read})


def _windowed(op: Operator, time: Time, reach: int, stride: int) -> tuple[Time, Read]:
    """Of windows of `reach` older elements and one more, every `stride`-th."""
    lead, step = time.lead + reach * time.step, time.step * stride
    out = _used(op, replace(time, step=step, lead=lead, clean=-(-time.clean // stride)))
    # The call's first window begins `out.delay` strides back in the source, which itself lags by its own delay; the
    # last window of the call ends `reach` behind its beginning.
    older = out.delay * stride - time.delay
    return out, Read(older, out.delay * stride + stride - reach - time.delay - 1)


def _gather(op: Operator, moving: dict[int, Time]) -> Step:
    """Codes looked up in a table, or constant rows of another axis than time."""
    if set(moving) == {1} and len(_shape(op, 0)) == 1:
        return _local(op, moving)
    axis = op.options["axis"] % len(_shape(op, 0))
    if set(moving) != {0} or axis == moving[0].axis or len(_shape(op, 1)) != 1:
        raise refuse(op, "it picks frames by number, and a stream has no frame numbers. Pick features only.")
    return _local(op, moving)


def _matmul(op: Operator, moving: dict[int, Time]) -> Step:
    """A product for each frame, where time is an axis of the batch; attention over time is not."""
    if any(t.axis >= len(_shape(op, i)) - 2 for i, t in moving.items()):
        raise refuse(op, "attention over time sees all frames. Export without streaming, or use causal convolutions.")
    return _local(op, moving)


def _strided(op: Operator, moving: dict[int, Time]) -> Step:
    time = moving[0]
    begin, _, step = (None if ref is None else ref.data for ref in op.inputs[1:4])
    whole = _shape(op, 0)[time.axis] == op.outputs[0].shape[time.axis]
    if step is not None and step[time.axis] < 0:
        raise refuse(
            op,
            "it turns time round, as layers that go backwards do, and what mirrors the ends of its clip. Use "
            "kquant.CausalMelSpectrogram in place of MelSpectrogram, and recurrent layers that go forwards.",
        )
    if begin is None or step is None or begin[time.axis] or step[time.axis] != 1 or not whole:
        raise refuse(op, "it strides through time. Use the strides of a convolution.")
    return _local(op, moving)


def _resize(op: Operator, moving: dict[int, Time]) -> Step:
    if _shape(op, 0)[moving[0].axis] != op.outputs[0].shape[moving[0].axis]:
        raise refuse(op, "it stretches time. Resize features only.")
    return Step(op, _used(op, moving[0]), {0: Read()})


# What `operators.toml` calls them. A new way to move along time is a function here and its name there.
HANDLERS: dict[Along, Handler] = {
    "local": _local,
    "last_axis": _last_axis,
    "reduce": _reduce,
    "window": _window,
    "matmul": _matmul,
    "concatenation": _concatenation,
    "gather": _gather,
    "reshape": _reshape,
    "transpose": _transpose,
    "pad": _pad,
    "slice": _slice,
    "strided": _strided,
    "resize": _resize,
}


def _handler(op: Operator) -> Handler:
    time = facts(op.code).time
    return _unknown if time is None else HANDLERS[time]
