"""A calibrated or trained model -> a full-integer `.tflite`, read back and run before it takes its place."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from kquant.calibration.encodings_version import Version
from kquant.core.messages import first_of, warn
from kquant.core.renamed import renamed
from kquant.core.result import Result
from kquant.detecting.spec import Detection
from kquant.exact.narrow import Removed
from kquant.exporting.asked_storing import Compression, storing_of
from kquant.exporting.model_card import ModelCard
from kquant.files.atomic import Outputs
from kquant.files.destination import destination
from kquant.graph.creation import without_collection
from kquant.graph.given_model import check_keras
from kquant.graph.tensorflow_private import operations_as_kernels
from kquant.tflite.box_choice import CODE, BoxChoice
from kquant.tflite.edges import IO, check_io
from kquant.tflite.file_about import About
from kquant.tflite.file_content import Files, Form, to_files
from kquant.tflite.lowering import Lowered, lower
from kquant.tflite.names import with_names
from kquant.tflite.reader import FileModel, read_model
from kquant.tflite.states import States
from kquant.tflite.storage import Decoding, Storing
from kquant.tflite.uncounted import Uncounted
from kquant.views.multiplications import macs_of_model
from kquant.views.recipe_steps import warn_of_steps

if TYPE_CHECKING:
    from kquant.exporting.chosen_boxes import BoxCheck, Choosing
    from kquant.exporting.streams import StreamCheck, StreamReport
    from kquant.exporting.verification import VerifyReport
    from kquant.tflite.streaming import Streamed
    from kquant.tflite.weight_bytes import FileBytes


@dataclass(frozen=True)
class Port:
    """An input or output of the file: `real = scale * (code - zero_point)`; scale None for float32."""

    name: str
    shape: tuple[int, ...]
    type: str
    scale: float | None
    zero_point: int | None


@dataclass(frozen=True, repr=False)
class ExportReport(Result):
    """What `kquant.export` wrote.

    Attributes:
        path: of the file.
        target, recipe: what it was made for.
        file_bytes: size of the file.
        weight_bytes: of it, stored tensors.
        arena_bytes: the smallest arena for TFLM on a 64-bit host, by trial (a 32-bit device needs a little less); None
            without the `micro` extra, with check_runtimes=False, and for files that TFLM does not run.
        operators: code -> count.
        types: tensor type -> number of tensors.
        inputs, outputs: what the application feeds and reads.
        float_layers: those that the recipe leaves float ("*": all).
        verification: one report for each runtime of the target that is installed; of the file over whole clips, where
            this is a streaming file; none with check_runtimes=False.
        card: the figures that are asked for first, with accuracy where `test` was given.
        uncounted: what `weights` counts.
        streaming: what a streaming file needs of the application; None for others.
        decoding: what it costs that weights are decoded as the file runs; None where none are.
        removed: channels that are not in the file as no output depends on them, layer by layer.
        macs: multiply-accumulates of the model for one sample.
        choosing: of a detector's file that chooses its boxes itself, which operators do so in float32, and whether they
            choose what `kquant.Detection` says; None for others.
    """

    path: str
    target: str
    recipe: str
    file_bytes: int
    weight_bytes: int
    arena_bytes: int | None
    operators: dict[str, int]
    types: dict[str, int]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    float_layers: tuple[str, ...]
    verification: tuple[VerifyReport, ...]
    card: ModelCard
    uncounted: Uncounted = field(compare=False)
    streaming: StreamReport | None = None
    decoding: Decoding | None = None
    removed: tuple[Removed, ...] = ()
    macs: int = 0
    choosing: Choosing | None = None

    def __str__(self) -> str:
        return f"{self!r}\n{self.card}"

    @property
    def weights(self) -> FileBytes:
        """Bytes, zeros and distinct codes of the weights, layer by layer; counted at the first time."""
        return self.uncounted.counted

    def __repr__(self) -> str:
        ran = ", ".join(f"{v.verdict} on {v.runtime}" for v in self.verification) or "not run"
        floats = f", float: {first_of(self.float_layers, 2)}" if self.float_layers else ""
        floats += "" if self.choosing is None else f", float: {CODE}"
        return f"ExportReport({self.path}: {self.recipe} for {self.target}, {self.file_bytes:,} bytes{floats}, {ran})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        plain = asdict(self)
        del plain["uncounted"]
        return {**plain, "verification": [v.to_dict() for v in self.verification], "weights": self.weights.to_dict()}


@renamed
def export(
    qmodel: keras.Model,
    path: str | Path,
    *,
    data: Any = None,
    io: IO = "model",
    check_runtimes: bool = True,
    streaming: bool | int = False,
    states: States = "io",
    encodings: str | Path | None = None,
    encodings_version: Version = "0.6.1",
    compression: Compression = None,
    decode_budget: int | None = None,
    strip_names: bool = False,
    shrink: bool = True,
    about: About | None = None,
    test: tuple[Any, Any] | None = None,
    detection: Detection | None = None,
) -> ExportReport:
    """Write a full-integer TFLite file, static batch 1.

    Reads: `qmodel` stays as it was.

    The file is verified before it takes its place: every operator integer, every scale the model's own, and run on the
    target's interpreters in a process of their own. A failed export leaves an older file as it was.

    Args:
        qmodel: quantized and calibrated or trained.
        path: of the `.tflite` file.
        data: representative data to verify the file with, see `kquant.calibrate`; random codes by default.
        io: type of inputs and outputs: what the model computes with (int8, or int16 with 16-bit activations), or
            another one behind a QUANTIZE or DEQUANTIZE at the edges.
        check_runtimes: run the file before returning.
        streaming: True or a number: the file takes the newest frames only, and gives that many results in time for
            each call. The network must be causal in time, axis 1 of its inputs; see docs/streaming.md.
        states: where a streaming file keeps older frames: "io", in inputs and outputs that the application copies, or
            "variables", in the interpreter.
        encodings: also write the scales and zero points to this path, as AIMET's JSON; see docs/encodings.md.
        encodings_version: "0.6.1" or "1.0.0".
        compression: store weights in codes that TFLM decodes as the file runs, where that saves bytes; same outputs,
            target "tflm" only. "lut" (indices into tables), "prune" (bit masks and what is not zero) or "huffman", or
            several; of these each tensor gets the smallest. "auto": of all of them, 4 bits and plain.
            `kquant.LookUpTables`, `kquant.BitMasks` and `kquant.Huffman` name layers. See docs/bytes.md.
        decode_budget: bytes by which that may make the arena larger; weights that would take more stay as they are.
        strip_names: leave out what no kernel reads: names, signatures, metadata, and for target "tflm" the scales of
            biases and all but one of the zero points of weights, without which LiteRT refuses the file. Applications
            find inputs and outputs by their place then; not for streams.
        shrink: leave out channels that no output code depends on, for any input; see docs/bytes.md. The outputs' codes
            are the same without.
        about: names, labels, normalization, units that the file is to tell tools of Android and MediaPipe (TFLite
            metadata); see docs/metadata.md.
        test: samples in the structure of the model's inputs, and the number of the class of each: the report's card
            tells how many of them the float model, the quantized one and the file have right. Not for streams.
        detection: of a detector, what its outputs mean: the file ends in the custom operator
            TFLite_Detection_PostProcess, which chooses the boxes on the device, in float32, and gives boxes
            [1, limit, 4], classes, scores and how many; see docs/detection.md for heads that it can express. Without
            it the file ends in the model's outputs, and `kquant.detect` or the C of `kquant.bundle` choose in integers.

    Returns:
        The report.

    Raises:
        ValueError: not calibrated, float layers left, an interpreter refuses the file, a layer that cannot be streamed,
            weights that `compression` does not make smaller, classes of another number than samples, a head that
            TFLite_Detection_PostProcess cannot express, or the path cannot be written.
        TypeError: `detection` is no `Detection`.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> q = kquant.calibrate(kquant.quantize(model), np.ones((64, 4), "float32"), verbose=False)
        >>> kquant.export(q, "dense.tflite").operators
        {'FULLY_CONNECTED': 1}
    """
    check_keras(qmodel, "export")
    _check_options(io, states, streaming, about, strip_names)
    _check_test(streaming, test)
    _check_choice(streaming, strip_names, test, detection)
    storing = storing_of(compression, decode_budget)
    place = destination(path, "export", "model.tflite").given
    results = Outputs([place] if encodings is None else [place, encodings], "export")
    beside = None if encodings is None else _beside(qmodel, encodings_version)
    with without_collection(), operations_as_kernels():
        lowered = lower(qmodel, shrink=shrink)
        warn_of_steps("export", qmodel, "The file is made")  # of a model that has its ranges
        choice = None if detection is None else _choice(detection, lowered)
        files = to_files(lowered, Form(io, int(streaming), states, storing, about, strip_names, choice))
        file = _named(files, strip_names)
        _warn_barred(lowered, storing)
    checked = _checked(qmodel, lowered, files, file, data, detection) if check_runtimes else _Checked()
    card = ModelCard(macs_of_model(lowered.graph), file.weight_bytes, len(files.content), checked.arena)
    if test is not None:
        from kquant.exporting.scoring import rated  # few ask for it, and all would wait

        card = rated(card, qmodel, files.content, lowered.target.name, test)
    with results as new:
        new.write(place, files.content)
        if encodings is not None:
            new.write(encodings, f"{json.dumps(beside, indent=1)}\n".encode())
    uncounted = _uncounted(lowered, files, strip_names, check_runtimes)
    return _report(str(place), lowered, files, file, checked, states, card, uncounted)


def _beside(qmodel: keras.Model, version: Version) -> dict[str, Any]:
    """Scales and zero points, for a file of their own."""
    from kquant.calibration.aimet_encodings import encodings  # few ask for it, and all would wait

    return encodings(qmodel, version)


def _report(
    path: str,
    lowered: Lowered,
    files: Files,
    file: FileModel,
    checked: _Checked,
    states: States,
    card: ModelCard,
    uncounted: Uncounted,
) -> ExportReport:
    """What is told of a file that has taken its place."""
    return ExportReport(
        path=path,
        target=lowered.target.name,
        recipe=lowered.recipe,
        file_bytes=card.flash_bytes,
        weight_bytes=card.weight_bytes,
        arena_bytes=card.arena_bytes,
        operators=file.operator_counts,
        types=dict(Counter(t.type for t in file.tensors)),
        inputs=tuple(_port(t) for t in file.inputs),
        outputs=tuple(_port(t) for t in file.outputs),
        float_layers=tuple(sorted(lowered.floats)),
        verification=checked.reports,
        card=card,
        uncounted=uncounted,
        streaming=None if files.streamed is None else _described(files.streamed, states, checked),
        decoding=files.decoding,
        removed=lowered.narrowed.removed,
        macs=card.macs,
        choosing=_choosing(file, checked) if files.chooses else None,
    )


def _warn_barred(lowered: Lowered, storing: Storing) -> None:
    """Of weights that nothing decodes, where "auto" leaves them without a word."""
    if not storing.free:
        return
    from kquant.tflite.stored_weights import barred  # few files are in codes, and all would wait

    kept = barred(lowered.program)
    if kept:
        warn(f"export: {kept}")


def _named(files: Files, strip_names: bool) -> FileModel:
    """What the file holds, by the names of the model."""
    file = read_model(files.content)
    return with_names(file, read_model(files.over_clips)) if strip_names else file


def _check_options(io: Any, states: Any, streaming: Any, about: About | None, strip_names: bool) -> None:
    """Refuse values that `export` does not know."""
    check_io("export", io)
    if states not in ("io", "variables") or isinstance(streaming, float) or streaming < 0:
        raise ValueError(
            "export: streaming must be False, True or a number of results for each call, and states 'io' or "
            f"'variables'. Received: streaming={streaming!r}, states={states!r}."
        )
    if streaming and strip_names:
        raise ValueError("export: a stream finds its states by their names; leave strip_names out, or streaming.")
    if about is not None and strip_names:
        raise ValueError("export: about tells of inputs and outputs by their names; leave strip_names out, or about.")


def _check_test(streaming: bool | int, test: Any) -> None:
    if streaming and test is not None:
        raise ValueError("export: a stream has no accuracy of clips. Give test to an export without streaming.")


def _check_choice(streaming: bool | int, strip_names: bool, test: Any, detection: Any) -> None:
    """Refuse what does not go with a file that chooses boxes."""
    given = {"streaming": streaming, "strip_names": strip_names, "test": test is not None}
    named = [name for name, value in given.items() if value]
    if detection is not None and named:
        raise ValueError(
            f"export: with detection the file ends in boxes, which {first_of(named)} cannot follow. Leave "
            f"{'it' if len(named) == 1 else 'them'} out, or detection: boxes are chosen beside the file then."
        )


def _choice(detection: Detection, lowered: Lowered) -> BoxChoice:
    from kquant.exporting.chosen_boxes import choice_of  # few files choose boxes, and all would wait

    return choice_of(detection, lowered)


def _choosing(file: FileModel, checked: _Checked) -> Choosing:
    from kquant.exporting.chosen_boxes import choosing_of

    return choosing_of(file, checked.boxes)


def _uncounted(lowered: Lowered, files: Files, strip_names: bool, check: bool) -> Uncounted:
    """The bytes of the weights; Vela's too, where it compiles the target's files and is installed."""
    plain = partial(Uncounted, files.content, files.over_clips if strip_names else None)
    if not check or lowered.target.compiler is None:
        return plain()
    from kquant.tflite.vela import find_vela, vela_bytes  # few targets are compiled by it

    if find_vela() is None:
        return plain()
    try:
        return plain(vela_bytes=vela_bytes(files.content))
    except ValueError as error:
        return plain(vela_refusal=str(error))


@dataclass(frozen=True)
class _Checked:
    """What running a file gave."""

    reports: tuple[VerifyReport, ...] = ()
    arena: int | None = None
    streams: tuple[StreamCheck, ...] = ()
    boxes: tuple[BoxCheck, ...] = ()


def _checked(
    qmodel: keras.Model, lowered: Lowered, files: Files, file: FileModel, data: Any, detection: Detection | None
) -> _Checked:
    """What running a file gave, see `checked_runs`."""
    from kquant.exporting.checked_runs import checked  # runtimes and what compares them: nothing else needs them

    return _Checked(*checked(qmodel, lowered, files, file, data, detection))


def _described(streamed: Streamed, states: States, checked: _Checked) -> StreamReport:
    from kquant.exporting.streams import describe_stream  # few files are streams, and all would wait

    return describe_stream(streamed, states, checked.streams)


def _port(t: Any) -> Port:
    scale = None if t.scale is None else t.scale[0]
    return Port(t.name, t.shape, t.type, scale, None if scale is None else t.zero_point[0])
