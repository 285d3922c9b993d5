"""A quantized model and samples -> a folder that builds and tests itself on the device."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Unpack

import keras
import numpy as np

from kquant.calibration.data import gather
from kquant.core.checks import check_count, check_kind
from kquant.core.messages import first_of
from kquant.core.renamed import renamed
from kquant.core.result import Result
from kquant.detecting.outputs import grids_of
from kquant.detecting.spec import Detection
from kquant.exporting.checked_runs import runs
from kquant.exporting.export_file import ExportReport
from kquant.exporting.file_options import FileOptions, check_file_options
from kquant.exporting.model_card import ModelCard
from kquant.files.atomic import Outputs
from kquant.files.destination import path_of
from kquant.files.untrusted import read_json
from kquant.graph.given_model import check_keras
from kquant.graph.output_names import named_shapes
from kquant.layers.provenance import provenance_of
from kquant.projects.arena import Arena
from kquant.projects.boxes import boxes_of
from kquant.projects.card import card_rows
from kquant.projects.ctc_labels import labels_of
from kquant.projects.described import Described, described
from kquant.projects.exported import Array, array_of, exported, layer_by_layer
from kquant.projects.golden import Golden, golden_stream, golden_vectors, spread
from kquant.projects.kinds import Kind, kind_of
from kquant.projects.layer_names import written_by
from kquant.projects.names import LONGEST
from kquant.projects.npu import Compiled, accelerator_of
from kquant.projects.rendering import placed, rendered
from kquant.runtime.running import available, quantize_input
from kquant.targets import Target
from kquant.tflite.file_about import About, check_labels
from kquant.tflite.file_positions import positions_in
from kquant.tflite.raw_values import normalization_of
from kquant.tflite.reader import FileModel, FileTensor
from kquant.transcribing.best_path import resolved
from kquant.transcribing.spec import Ctc
from kquant.views.quantized_model import read

MANIFEST = "bundle.json"
ANSWERS = {"detection": Detection, "ctc": Ctc}  # what reads the outputs


@dataclass(frozen=True, repr=False)
class BundleReport(Result):
    """What `kquant.bundle` wrote.

    Attributes:
        folder: of the project.
        kind: of it.
        runtime: that gave the golden vectors.
        name: of the model in the project's language.
        files: what lies in the folder, by relative path.
        flash_bytes: of the model.
        arena: RAM for tensors; None where the interpreter asks the system for it.
        macs: multiply-accumulates of one sample.
        operators: code -> count.
        golden: vectors that the self-test runs.
        sha256: of the file in the array.
        export: the report of the file.
        card: of that file, with accuracy where `test` was given.
        compiled: what the compiler of an NPU made of it; None for targets without one.
    """

    folder: str
    kind: str
    runtime: str
    name: str
    files: tuple[str, ...]
    flash_bytes: int
    arena: Arena | None
    macs: int
    operators: dict[str, int]
    golden: int
    sha256: str
    export: ExportReport
    card: ModelCard
    compiled: Compiled | None = None

    def __repr__(self) -> str:
        if self.arena is None:
            return f"BundleReport({self.folder}: {self.kind}, {self.flash_bytes:,} bytes)"
        arena = f"{self.arena.bytes:,} bytes of arena"
        return f"BundleReport({self.folder}: {self.kind}, {self.flash_bytes:,} bytes of flash, {arena})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        arena = None if self.arena is None else {**asdict(self.arena), "bytes": self.arena.bytes}
        return {**asdict(self), "arena": arena, "export": self.export.to_dict()}


@renamed
def bundle(
    qmodel: keras.Model,
    folder: str | Path,
    *,
    data: Any,
    kind: str = "tflm",
    name: str | None = None,
    golden: int = 4,
    labels: Sequence[str] = (),
    test: tuple[Any, Any] | None = None,
    scale: float | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    accelerator: str | None = None,
    detection: Detection | None = None,
    ctc: Ctc | None = None,
    debug: bool = False,
    **form: Unpack[FileOptions],
) -> BundleReport:
    """Write a project for a microcontroller or a phone: the model, and all that a program needs beside it.

    Reads: `qmodel` stays as it was.

    The file is verified as `kquant.export` does it; the golden vectors are what TFLM computes for some of the samples,
    or LiteRT where the project is for a phone.
    The project's `README.md` says how to use it. See docs/bundle.md.

    Args:
        qmodel: quantized for target "tflm", for a phone "litert", and calibrated or trained.
        folder: to write; new, empty, or an earlier bundle, which is replaced.
        data: representative data, see `kquant.calibrate`: the file is checked on them, and some become golden vectors.
        kind: "tflm" (CMake), "arduino", "esp-idf", "zephyr", "android" or "ios".
        name: of the model in the project; the model's own by default. What is no legal name there becomes one.
        golden: how many vectors the self-test runs; of a stream, calls.
        labels: names of the classes, one for each value of the last axis of the first output, or for each position
            where that is `ops.argmax` of scores.
        test: samples in the structure of the model's inputs, and the number of the class of each: the report and
            the README tell how many of them the float model and the file have right. Not for streams.
        scale: of the first input, what becomes of raw values: `(raw * scale - mean[c]) / std[c]`. Without any of the
            three a project has no conversion of raw values.
        mean: one number, or one for each value of the last axis.
        std: the same.
        accelerator: what to compile for, where the target has a compiler (target "ethos-u" and its family, with
            the `ethos-u` extra), as that names it: "ethos-u55-256". The target's own by default, or "ethos-u55-128".
        detection: of a detector, what its outputs mean: the project chooses boxes from them as `kquant.detect` does,
            and its self-test knows those of the golden vectors.
        ctc: of a network trained with CTC, what its output means: the project reads labels from it as
            `kquant.transcribe` does; likewise.
        debug: add a second model to the project, with what every layer computes among its outputs, whose self-test
            names the first layer that differs. Not for streams, nor for phones.
        **form: `io`, `streaming`, `states`, `compression`, `decode_budget`, `strip_names` and `shrink` of
            `kquant.export`.

    Returns:
        The report.

    Raises:
        ValueError: no such kind, a model for another target, a float layer, labels or classes of the wrong number,
            samples that do not fit, a file that a compiler refuses, or a folder with other files in it; nothing is
            written then.
        TypeError: an argument that neither this nor `kquant.export` has.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="score")], name="my net")
        >>> x = np.random.default_rng(0).random((64, 4), np.float32)
        >>> q = kquant.calibrate(kquant.quantize(model, target="tflm"), x, verbose=False)
        >>> report = kquant.bundle(q, "firmware", data=x, labels=["no", "yes"])
        >>> report.name, report.golden, sorted(report.files)[:3]
        ('my_net', 4, ['CMakeLists.txt', 'README.md', 'arena.h'])
    """
    check_keras(qmodel, "bundle")
    check_file_options("bundle", form)
    chosen, streaming = kind_of(kind), bool(form.get("streaming"))
    check_count("bundle", "golden", golden)
    _check_words(name, labels)
    _check_stream(streaming, debug, test)
    _check_kind(chosen, debug, {"detection": detection, "ctc": ctc})
    goal = _target_of(qmodel, chosen)
    compiles_for = accelerator_of(goal, accelerator)
    old = earlier(folder := path_of(folder, "bundle", "firmware"))
    x = gather(qmodel, data, None)
    normalization = normalization_of("bundle", qmodel.inputs[0], scale, mean, std)
    said = About(labels=_lines(labels), scale=scale, mean=mean, std=std)
    tells = chosen.about and (labels or normalization)
    made, report = exported(qmodel, x, form, said if tells else None, test)
    outputs = _named_outputs(qmodel, made.file)
    check_labels(labels, *_of_classes(made.file, outputs, detection, ctc), "bundle")
    _check_kernels(made.file, goal, chosen)
    vectors = _golden(made.content, made.file, x, golden, streaming, chosen.runtime)
    array = array_of(made, compiles_for) if chosen.arena else Array(made.content, made.file)
    title = qmodel.name if name is None else name
    parts: dict[str, Any] = {"labels": labels, "normalization": normalization, "compiled": array.compiled}
    parts |= {"card": card_rows(report, made.file, array, vectors.calls), "language": chosen.language}
    parts |= {"verified": report.verification, **_answers(outputs, detection, ctc, vectors)}
    about = described(array.content, array.file, title=title, arena=array.arena, golden=vectors, **parts)
    with_layers = _debug(qmodel, x, title, chosen, form, compiles_for) if debug else None
    texts = {place: text.encode() for place, text in rendered(chosen, about, with_layers).items()}
    files = texts | _assets(chosen, about, made.content, array, vectors)
    _write(folder, files, old, about)
    return _report(folder, kind, tuple(files), about, vectors, report)


def _report(
    folder: Path,
    kind: str,
    files: tuple[str, ...],
    about: Described,
    golden: Golden,
    exported: ExportReport,
) -> BundleReport:
    return BundleReport(
        folder=str(folder),
        kind=kind,
        runtime=kind_of(kind).runtime,
        name=about.id,
        files=(*files, MANIFEST),
        flash_bytes=about.size,
        arena=about.arena,
        macs=exported.macs,
        operators=exported.operators,
        golden=golden.calls,
        sha256=about.sha256,
        export=exported,
        card=exported.card,
        compiled=about.compiled,
    )


def earlier(folder: Path) -> list[str]:
    """The files of an earlier bundle in a folder, by their relative paths; none where it is new or empty.

    Args:
        folder: where a bundle is to go.

    Raises:
        ValueError: it is a file, or holds files that are no bundle's.
    """
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise ValueError(f"bundle: {folder} is a file; give a folder.")
    known: list[str] = []
    if (folder / MANIFEST).is_file():
        manifest = read_json(folder / MANIFEST, f"bundle: {folder / MANIFEST}")
        listed = manifest.get("files") if isinstance(manifest, dict) else None
        known = [MANIFEST, *(str(name) for name in listed)] if isinstance(listed, dict) else []
    present = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    # the first few, since somebody may give a folder of a million files
    foreign = list(itertools.islice((name for name in present if name not in known), 6))
    if foreign:
        raise ValueError(
            f"bundle: {folder} holds other files: {first_of(foreign)}. Give a new folder, or move them away."
        )
    return known


def _write(folder: Path, files: dict[str, bytes], old: list[str], about: Described) -> None:
    """All files take their places together; those of an earlier bundle that this one has not go."""
    hashes = {place: hashlib.sha256(content).hexdigest() for place, content in files.items()}
    manifest = {"kquant": about.version, "name": about.title, "model": about.sha256, "files": hashes}
    files = {**files, MANIFEST: f"{json.dumps(manifest, indent=1)}\n".encode()}
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    inside = sorted({(folder / place).parent for place in files} - {folder})
    try:
        for each in (folder, *inside):
            each.mkdir(parents=True, exist_ok=True)
        with Outputs([folder / place for place in files], "bundle") as new:
            for place, content in files.items():
                new.write(folder / place, content)
    except BaseException:
        for each in (*reversed(inside), *made):
            if each.is_dir() and not any(each.iterdir()):
                each.rmdir()
        raise
    for place in set(old) - set(files):
        (folder / place).unlink(missing_ok=True)


def _assets(kind: Kind, about: Described, content: bytes, array: Array, golden: Golden) -> dict[str, bytes]:
    """Files that no template makes."""
    made = {
        "model": lambda: content,
        "golden": lambda: f"{golden.to_json()}\n".encode(),
        "compiled": lambda: array.content,
    }
    if array.content == content:
        del made["compiled"]
    return {placed(place, about): made[what]() for place, what in kind.assets.items() if what in made}


def _golden(content: bytes, file: FileModel, x: list[np.ndarray], count: int, streaming: bool, runtime: str) -> Golden:
    """Some of the samples; of a stream, the first frames of one."""
    picked = [spread(a, 1 if streaming else count) for a in x]
    # a stream's states are inputs behind those that samples are given for
    codes = [quantize_input(a, t) for a, t in zip(picked, file.inputs, strict=False)]
    if streaming:
        return golden_stream(content, codes, count, runtime)
    return golden_vectors(content, file, codes, runtime)


def _debug(
    qmodel: keras.Model, x: list[np.ndarray], title: str, kind: Kind, form: FileOptions, accelerator: str | None
) -> Described:
    """The model with what every layer computes among its outputs, and one golden vector."""
    made = layer_by_layer(qmodel, form)
    vectors = _golden(made.content, made.file, x, 1, streaming=False, runtime=kind.runtime)
    array = array_of(made, accelerator)
    parts: dict[str, Any] = {"labels": (), "normalization": None, "card": (), "compiled": array.compiled}
    # room for the ending, which alone makes it another name
    title = f"{title[: LONGEST - 8]} debug"
    return described(array.content, array.file, title=title, arena=array.arena, golden=vectors, **parts)


def _check_stream(streaming: bool, debug: bool, test: Any) -> None:
    if streaming and debug:
        raise ValueError("bundle: debug=True is for models over whole clips; leave it, or `streaming`, out.")
    if streaming and test is not None:
        raise ValueError("bundle: a stream has no accuracy of clips. Give test to a bundle without streaming.")


def _named_outputs(qmodel: keras.Model, file: FileModel) -> dict[str, FileTensor]:
    """By Keras' names, which a file may have left out; behind the model's own are states of a stream."""
    names = list(named_shapes(qmodel))
    return dict(zip([*names, *list(file.named_outputs)[len(names) :]], file.outputs, strict=True))


def _answers(
    outputs: Mapping[str, FileTensor], detection: Detection | None, ctc: Ctc | None, vectors: Golden
) -> dict[str, Any]:
    """What reads the outputs, and what it must read of the golden ones."""
    made = {} if detection is None else {"detection": boxes_of(detection, outputs, vectors)}
    return made if ctc is None else {**made, "ctc": labels_of(ctc, outputs, vectors)}


def _of_classes(
    file: FileModel, outputs: Mapping[str, FileTensor], detection: Detection | None, ctc: Ctc | None
) -> tuple[tuple[int, ...], int]:
    """A shape whose last axis counts classes, or the number of positions that name them."""
    if detection is not None:
        roles = grids_of(detection, outputs, "bundle").roles
        return (1, roles.rows, roles.scores.many), 0
    shapes = [t.shape for t in outputs.values()]
    if ctc is not None:
        return shapes[resolved(ctc, list(outputs), shapes, "bundle")[0]], 0
    return shapes[0], positions_in(file, file.outputs[0])


def _check_kind(kind: Kind, debug: bool, answers: Mapping[str, object]) -> None:
    if debug and not kind.debug:
        raise ValueError(f"bundle: {kind.title} has no debug model; leave debug=True out.")
    for name, given in answers.items():
        if given is None:
            continue
        check_kind("bundle", name, given, ANSWERS[name])
        if not kind.answers:
            raise ValueError(
                f"bundle: {kind.title} has no code that reads outputs; leave {name} out, and read them in the app."
            )
    if kind.runtime not in available():
        arena = " and an arena" if kind.arena else ""
        raise ImportError(
            f"bundle: {kind.title} wants golden vectors{arena} of {kind.runs_on}: pip install "
            "'kquant[micro]' (Linux only)."
        )


def _lines(labels: Sequence[str]) -> list[str]:
    """In a project a label may be any text; in the file's metadata it is a line."""
    return [" ".join(label.split()) or str(n) for n, label in enumerate(labels)]


def _check_words(name: Any, labels: Any) -> None:
    """Any text will do, and nothing else."""
    if name is not None and not isinstance(name, str):
        raise ValueError(f"bundle: name must be a text, which becomes a legal name by itself. Received: {name!r}.")
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"bundle: labels must be texts, one for each class. Received: {labels!r}.")


def _check_kernels(file: FileModel, goal: Target, kind: Kind) -> None:
    """The golden vectors are what the runtime computes with kernels of its own."""
    writers = written_by(file)
    lacking = [op for op in file.operators if not runs(goal, op.code, kind.runtime)]
    if lacking:
        named = ", ".join(dict.fromkeys(f"{writers[op.outputs[0]]} ({op.code})" for op in lacking))
        raise ValueError(
            f"bundle: {kind.runs_on} has no kernel for {named}, or another one than the device, so that nobody tells "
            f"the golden vectors. Quantize for target='{kind.target}', which writes other operators, or refuses the "
            "layer with a remedy."
        )


def _target_of(qmodel: keras.Model, kind: Kind) -> Target:
    """A file of another target may use operators or roundings that this one has not."""
    read(qmodel)  # what is no quantized model is refused here
    origin = provenance_of(qmodel.layers)
    goal = origin.load_target()
    if kind.runtime not in goal.runtimes:
        raise ValueError(
            f"bundle: this model is quantized for target '{origin.target}', and {kind.title} runs on "
            f"{kind.runs_on}, which rounds otherwise. Expected: kquant.quantize(model, "
            f"target='{kind.target}')."
        )
    return goal
