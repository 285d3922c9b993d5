"""Lowered model -> the bytes of its file: what lies at the edges, whole clips or frames, how weights are stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kquant import __version__
from kquant.core.messages import first_of, warn
from kquant.core.program import Program
from kquant.exact.narrow import totals
from kquant.graph.graph import Graph
from kquant.layers.nodes import FakeQuant
from kquant.layers.provenance import ALL
from kquant.ops import find
from kquant.ops.rule import MOVES
from kquant.tflite.aliases import keep_apart
from kquant.tflite.box_choice import KEY, BoxChoice, choosing
from kquant.tflite.edges import IO, cast_edges
from kquant.tflite.file_about import ENTRY, About, entry_of, packed_files
from kquant.tflite.flatbuffer import SHRUNK, Buffer, packed, to_bytes, unpacked
from kquant.tflite.lowering import Lowered
from kquant.tflite.reader import SCHEMA, read_model
from kquant.tflite.rows import read_as_rows
from kquant.tflite.states import States, keep_states
from kquant.tflite.storage import Decoding, Storing, refuse_undecoded
from kquant.views.heads import ALIKE, keeps_all

if TYPE_CHECKING:
    from kquant.tflite.streaming import Streamed

CHANNELS = (1, 3, 4)  # of images
PIXELS = (2.0, 260.0)  # between them the largest value of images whose levels are 0 to 255, and not 0 to 1
BYTES = ("int8", "uint8")
BITS, CODES = 8, 255  # at such an edge, and steps between its ends
WIDER = 32767 / 127  # times the steps of 16 bits are those of `cast_edges`
SAME = 0.5 / 255  # by which a scale may differ so that no level becomes another


@dataclass(frozen=True)
class Form:
    """What a file is to be like.

    Attributes:
        io: type of its inputs and outputs, see `cast_edges`.
        frames: of a streaming file, the results in time for each call; 0: the file takes whole clips.
        states: where a streaming file keeps older frames.
        storing: what its weights may be stored in.
        about: what it says of itself to tools of phones; None: nothing.
        bare: without names and what else no kernel reads.
        choice: of a detector's boxes, which the file ends in; None: it ends in the model's outputs.
    """

    io: IO = "model"
    frames: int = 0
    states: States = "io"
    storing: Storing = Storing()
    about: About | None = None
    bare: bool = False
    choice: BoxChoice | None = None


@dataclass(frozen=True, eq=False)
class Files:
    """A file, and those that it is checked with.

    Attributes:
        content: the file.
        over_clips: the same network over whole clips, its weights as they are.
        streamed: the program of a stream; None for other files.
        frames: a stream with the model's own types at its edges; empty for other files.
        decoding: what it costs that weights are decoded; None where none are.
        chooses: the file ends in boxes, and not in the model's outputs as `over_clips` does.
    """

    content: bytes
    over_clips: bytes
    streamed: Streamed | None = None
    frames: bytes = b""
    decoding: Decoding | None = None
    chooses: bool = False

    @property
    def compared(self) -> bytes:
        """What is compared with the model; a stream, and what boxes are chosen from, are compared with it in turn."""
        return self.content if self.streamed is None and not self.chooses else self.over_clips


def to_files(lowered: Lowered, form: Form) -> Files:
    """The file in a form, and what it takes to check it.

    Args:
        lowered: of a quantized model; without frames, the edges of its program are cast in place.
        form: of the file.

    Raises:
        ValueError: a layer that cannot be streamed, weights that do not get smaller, or that the target decodes not;
            labels or words that do not fit the file's inputs and outputs.
    """
    refuse_undecoded(lowered.target, form.storing.storages)
    _warn_narrow_sound(lowered, form.io)
    if form.io in BYTES and form.choice is None:
        _warn_joined_heads(lowered, form.io)
    files = _graph_files(lowered, form)
    if form.io == "uint8" and not form.frames:
        _warn_pixels(lowered)
    return files if form.about is None else _with_about(files, form.about, lowered.graph.name)


def _warn_narrow_sound(lowered: Lowered, io: IO) -> None:
    """8 bits of sound are 48 dB, and a spectrogram reads 16."""
    inputs = {id(t): t.name for t in lowered.graph.input_tensors}
    waves = [n.inputs[0] for n in lowered.graph.nodes if isinstance(n.op, FakeQuant) and n.op.observer == "sound"]
    named = first_of([repr(inputs[id(t)]) for t in waves if id(t) in inputs])
    if named and io in BYTES:
        warn(
            f"export: io='{io}' gives the sound at {named} 8 bits, 48 dB, and what is quieter is lost to the "
            "spectrogram. Leave io out: the file takes the 16-bit samples of the microphone as they are."
        )


def _warn_joined_heads(lowered: Lowered, io: IO) -> None:
    """16 bits hold what heads tell on grids of their own; 8 at the edge are one grid, as coarse as the widest."""
    said: list[str] = []
    for t, ref in zip(lowered.graph.output_tensors, lowered.program.outputs, strict=True):
        joined = _joined_at(lowered.graph, t)
        if ref.encoding is None or joined is None:
            continue
        widths = np.maximum(joined.high.numpy(), 0.0) - np.minimum(joined.low.numpy(), 0.0)
        narrow = float(np.min(widths[widths > 0.0], initial=np.inf))
        left = narrow / (float(ref.encoding.scale[0]) * WIDER)
        if ALIKE * left < CODES:
            lost = 20.0 * np.log10(CODES / left)
            said.append(f"'{ref.name}' (the narrowest, {narrow:.3g} wide, spans {left:.3g} steps; {lost:.0f} dB lost)")
    if said:
        warn(
            f"export: io='{io}' puts heads of unlike ranges, which 16 bits keep apart, on one grid of 8 bits: "
            f"{first_of(said)}. Leave io out: the file takes 8 bits where the model does, and gives these outputs as "
            "int16; io='float32' keeps them, too. Two outputs in place of one have 8 bits each."
        )


def _joined_at(graph: Graph, t: Any) -> Any:
    """The encoding of more than 8 bits that several tensors share which reach an output as they are; or None."""
    node = graph.producers.get(id(t))
    while node is not None and not isinstance(node.op, FakeQuant):
        rule = find(node.op)
        moved = rule is not None and rule.output in MOVES and keeps_all(node)
        node = graph.producers.get(id(node.inputs[0])) if moved else None
    shared = node is not None and node.op.has_range and node.op.sites > 1 and node.op.spec.bits > BITS
    return node.op if node is not None and shared else None


def _warn_pixels(lowered: Lowered) -> None:
    """Bytes of a camera are codes of a grid with a code for each level from 0 to 255, and of no other."""
    inputs = [t for t in lowered.graph.input_tensors if len(t.shape) == 4 and t.shape[-1] in CHANNELS]
    names: dict[int, Any] = {id(t): t.name for t in inputs}
    nodes = [n for n in lowered.graph.nodes if isinstance(n.op, FakeQuant) and id(n.inputs[0]) in names]
    seen: dict[Any, Any] = {names[id(n.inputs[0])]: n.op for n in nodes}
    said: list[str] = []
    for ref in lowered.program.inputs:
        op = seen.get(ref.name)
        if op is None or ref.encoding is None or not op.has_range:
            continue
        low, high = float(np.min(op.low)), float(np.max(op.high))
        scale, zero = float(ref.encoding.scale[0]), int(ref.encoding.zero_point[0])
        if low >= 0.0 and PIXELS[0] < high <= PIXELS[1] and not (zero == 0 and np.isclose(scale, 1.0, rtol=SAME)):
            said.append(f"'{ref.name}' (scale {scale:.6g}, zero point {zero})")
    if said:
        warn(
            f"export: io='uint8' of images whose range is not 0 to 255 (if images they are): {first_of(said)}. "
            "Bytes of a camera, copied as they are, come out wrong there: that takes scale 1 and zero "
            "point 0, so 8-bit activations and "
            "kquant.calibrate with images that have 0 and 255 in them (a black and a white corner in one of them will "
            "do). As it is, the application gives round(byte / scale) + zero point."
        )


def _graph_files(lowered: Lowered, form: Form) -> Files:
    """The file and those beside it, with nothing but the graph."""
    if form.frames:
        content, decoding, streamed = _stream(lowered, form, form.io)
        over_clips = file_content(lowered)
        frames = content if form.io == "model" else _stream(lowered, form, "int8")[0]
        return Files(content, over_clips, streamed, frames, decoding)
    cast_edges(lowered.program, form.io, outputs=form.choice is None)
    plain = file_content(lowered)
    if form.choice is not None:
        program, said = choosing(lowered.program, form.choice)
        content, decoding = _stored(lowered, program, form, **{KEY: said})
        return Files(content, plain, decoding=decoding, chooses=True)
    if not (form.storing or form.bare):
        return Files(plain, plain)
    content, decoding = _stored(lowered, lowered.program, form)
    return Files(content, plain, decoding=decoding)


def file_content(lowered: Lowered) -> bytes:
    """The file that `kquant.export` writes with io="model", without checking it: what searches measure.

    Args:
        lowered: of a quantized model.

    Returns:
        The bytes, metadata with them.
    """
    return _written(lowered, lowered.program)


def _with_about(files: Files, about: About, name: str) -> Files:
    """The files with what tools of Android and MediaPipe read beside the graph, which stays as it is."""
    model = unpacked(files.content)
    entry = SCHEMA.MetadataT()
    held = Buffer.of(np.frombuffer(entry_of(read_model(files.content), about, name), np.uint8))
    entry.name, entry.buffer = ENTRY, len(model.buffers)
    model.metadata, model.buffers = [*model.metadata, entry], [*model.buffers, held]
    content = packed(model)
    content += packed_files(about, len(content))
    over_clips = content if files.over_clips is files.content else files.over_clips
    frames = content if files.frames is files.content else files.frames
    return replace(files, content=content, over_clips=over_clips, frames=frames)


def debug_content(lowered: Lowered) -> bytes:
    """The file with all that its operators write among its outputs, in the order in which they do.

    Args:
        lowered: of a quantized model, of which no file was made yet.
    """
    program = lowered.program
    written = [ref for op in program.operators for ref in op.outputs if not ref.variable]
    passed = [ref for ref in program.outputs if all(ref is not one for one in written)]  # inputs that are outputs
    return _written(lowered, replace(program, outputs=[*written, *passed], output_names=()))


def _stream(lowered: Lowered, form: Form, edges: IO) -> tuple[bytes, Decoding | None, Streamed]:
    """A streaming file with these types at its edges."""
    if ALL in lowered.floats:
        raise ValueError(
            f"export: streaming files compute with integers, and the recipe '{lowered.recipe}' leaves all activations "
            "float. Quantize with recipe 'int8' or 'int16x8', or export without streaming."
        )
    from kquant.tflite.streaming import stream_metadata, to_stream  # few files are streams, and all would wait

    streamed = to_stream(lowered.program, form.frames)
    cast_edges(streamed.program, edges)
    keep_states(streamed, form.states)
    streaming = stream_metadata(streamed, form.states)
    return *_stored(lowered, streamed.program, form, streaming=streaming), streamed


def _written(lowered: Lowered, program: Program) -> bytes:
    """A program as a file, its weights as they are."""
    return _stored(lowered, program, Form())[0]


def _stored(lowered: Lowered, program: Program, form: Form, **more: Any) -> tuple[bytes, Decoding | None]:
    """A program as a file, and what decoding costs; `more` is in its metadata beside where it comes from."""
    program = read_as_rows(program, lowered.target)
    keep_apart(program, lowered.target)
    metadata = {"kquant": __version__, "recipe": lowered.recipe, "target": lowered.target.name, **more}
    if lowered.narrowed:
        metadata[SHRUNK] = totals(lowered.narrowed.removed)
    if form.storing:
        from kquant.tflite.stored_weights import smaller_file  # plans memory: nothing that every export has to load

        return smaller_file(program, lowered.target, metadata, form.storing, form.bare)
    return to_bytes(program, lowered.target, metadata, form.bare), None
