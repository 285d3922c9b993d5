"""Lowered model -> the bytes of its file: what lies at the edges, whole clips or frames, how weights are stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kquant import __version__
from kquant.core.program import Program
from kquant.layers.provenance import ALL
from kquant.tflite.aliases import keep_apart
from kquant.tflite.edges import IO, cast_edges
from kquant.tflite.flatbuffer import to_bytes
from kquant.tflite.lowering import Lowered
from kquant.tflite.states import States, keep_states
from kquant.tflite.storage import Storage, refuse_undecoded
from kquant.tflite.stored_weights import smaller_file
from kquant.tflite.streaming import Streamed, stream_metadata, to_stream


@dataclass(frozen=True)
class Form:
    """What a file is to be like.

    Attributes:
        io: type of its inputs and outputs, see `cast_edges`.
        frames: of a streaming file, the results in time for each call; 0: the file takes whole clips.
        states: where a streaming file keeps older frames.
        storages: what its weights may be stored in; none: they lie there as they are.
    """

    io: IO = "model"
    frames: int = 0
    states: States = "io"
    storages: tuple[Storage, ...] = ()


@dataclass(frozen=True, eq=False)
class Files:
    """A file, and those that it is checked with.

    Attributes:
        content: the file.
        over_clips: the same network over whole clips, its weights as they are.
        streamed: the program of a stream; None for other files.
        frames: a stream with the model's own types at its edges; empty for other files.
    """

    content: bytes
    over_clips: bytes
    streamed: Streamed | None = None
    frames: bytes = b""

    @property
    def compared(self) -> bytes:
        """What is compared with the model; a stream is compared with the file over whole clips in its turn."""
        return self.content if self.streamed is None else self.over_clips


def to_files(lowered: Lowered, form: Form) -> Files:
    """The file in a form, and what it takes to check it.

    Args:
        lowered: of a quantized model; without frames, the edges of its program are cast in place.
        form: of the file.

    Raises:
        ValueError: a layer that cannot be streamed, weights that do not get smaller, or that the target decodes not.
    """
    refuse_undecoded(lowered.target, form.storages)
    if form.frames:
        content, streamed = _stream(lowered, form, form.io)
        over_clips = file_content(lowered)
        frames = content if form.io == "model" else _stream(lowered, form, "int8")[0]
        return Files(content, over_clips, streamed, frames)
    cast_edges(lowered.program, form.io)
    plain = file_content(lowered)
    return Files(_written(lowered, lowered.program, form.storages) if form.storages else plain, plain)


def file_content(lowered: Lowered) -> bytes:
    """The file that `kquant.export` writes with io="model", without checking it: what searches measure.

    Args:
        lowered: of a quantized model.

    Returns:
        The bytes, metadata with them.
    """
    return _written(lowered, lowered.program)


def debug_content(lowered: Lowered) -> bytes:
    """The file with all that its operators write among its outputs, in the order in which they do.

    Args:
        lowered: of a quantized model, of which no file was made yet.
    """
    program = lowered.program
    written = [ref for op in program.operators for ref in op.outputs if not ref.variable]
    passed = [ref for ref in program.outputs if all(ref is not one for one in written)]  # inputs that are outputs
    return _written(lowered, replace(program, outputs=[*written, *passed]))


def _stream(lowered: Lowered, form: Form, edges: IO) -> tuple[bytes, Streamed]:
    """A streaming file with these types at its edges."""
    if ALL in lowered.floats:
        raise ValueError(
            f"export: streaming files compute with integers, and the recipe '{lowered.recipe}' leaves all activations "
            "float. Quantize with recipe 'int8' or 'int16x8', or export without streaming."
        )
    streamed = to_stream(lowered.program, form.frames)
    cast_edges(streamed.program, edges)
    keep_states(streamed, form.states)
    streaming = stream_metadata(streamed, form.states)
    return _written(lowered, streamed.program, form.storages, streaming=streaming), streamed


def _written(lowered: Lowered, program: Program, storages: tuple[Storage, ...] = (), **more: Any) -> bytes:
    """A program as a file, its weights in storages or plain; `more` is in its metadata beside where it comes from."""
    keep_apart(program, lowered.target)
    metadata = {"kquant": __version__, "recipe": lowered.recipe, "target": lowered.target.name, **more}
    if storages:
        return smaller_file(program, lowered.target, metadata, storages)
    return to_bytes(program, lowered.target, metadata)
