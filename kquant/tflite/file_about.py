"""What tools of Android and MediaPipe read beside the graph: names, labels, normalization, units (TFLite metadata).

    About(labels=["cat", "dog"], mean=127.5, std=127.5)
        ->  an entry TFLITE_METADATA of the file, a flatbuffer of its own ("M001"), and `labels.txt` in a ZIP behind it

A runtime reads neither: the ZIP lies behind the end of the flatbuffer, where nothing points at.

Source: tensorflow/tflite-support, `tensorflow_lite_support/metadata/metadata_schema.fbs` 1.5.0, whose numbers of fields
stand below; `metadata.py` there packs files in the same way.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kquant.core.messages import check_known
from kquant.tflite.file_model import CHOOSES, FileAbout, FileModel, FileTensor, TensorAbout
from kquant.tflite.file_positions import positions_in
from kquant.tflite.raw_values import Normalization, normalization_of
from kquant.tflite.small_tables import Fields, Number, Table, read_table, write_table

ENTRY, IDENTIFIER = "TFLITE_METADATA", b"M001"
LABELS = "labels.txt"
PARSER = "1.0.0"  # the oldest one that knows all that is written here
MOST_LABELS_BYTES = 1 << 20
# Fields of the schema's tables, by their numbers there.
NAME, DESCRIPTION = 0, 1  # of every table that has them
VERSION, GRAPHS, AUTHOR, LICENSE, MIN_PARSER = 2, 3, 4, 5, 7  # ModelMetadata
INPUTS, OUTPUTS = 2, 3  # SubGraphMetadata
CONTENT, UNITS, STATS, FILES = 3, 4, 5, 6  # TensorMetadata
KIND, VALUE = 0, 1  # of a union; Content, ProcessUnit
FILE_TYPE, AXIS_LABELS, VALUE_LABELS = 2, 2, 3  # AssociatedFile; of a score for each class, of numbers of classes
FEATURE, IMAGE, BOX = 1, 2, 3  # ContentProperties
ORDER, EDGES = 0, 1  # BoundingBoxProperties: where left, top, right and bottom stand, and that it is these
BOX_TYPE = Number(1)  # BOUNDARIES
# What MediaPipe and the Task Library call the outputs of a file that chooses boxes, in the order of the operator.
OF_BOXES = ("location", "category", "score", "number of detections")
CATEGORY = 1
COLOURS = {3: 1, 1: 2}  # channels -> ImageProperties' color_space: RGB, GRAYSCALE
NORMALIZES, MEAN, STD = 1, 0, 1  # ProcessUnitOptions, NormalizationOptions
MOST, LEAST = 0, 1  # Stats


@dataclass(frozen=True)
class About:
    """What a file is to say of itself, for tools of Android and MediaPipe.

    Attributes:
        name: of the model; by default the Keras model's.
        description: what it does.
        labels: names of the classes, one for each value of the last axis of the first output; where that holds
            positions (`ops.argmax`), one for each of them; of a file that chooses boxes one for each class.
        scale, mean, std: of the first input, what becomes of raw values: `(raw * scale - mean[c]) / std[c]`.
        image: the first input is an image with 3 channels (red, green, blue) or 1.
        descriptions: of inputs and outputs, by their names.
        units: of inputs and outputs likewise, like "m/s2"; the format has no field for them, so they stand behind the
            description.
        version, author, license: of the model.
    """

    name: str = ""
    description: str = ""
    labels: Sequence[str] = ()
    scale: float | None = None
    mean: Sequence[float] | float | None = None
    std: Sequence[float] | float | None = None
    image: bool = False
    descriptions: Mapping[str, str] = field(default_factory=dict[str, str])
    units: Mapping[str, str] = field(default_factory=dict[str, str])
    version: str = ""
    author: str = ""
    license: str = ""


def entry_of(file: FileModel, about: About, name: str) -> bytes:
    """The content of the file's entry `ENTRY`.

    Args:
        file: that it is about.
        about: it.
        name: of the model, where `about` has none.

    Raises:
        ValueError: labels of another number than classes, or with line breaks; words for a tensor that is neither input
            nor output; a normalization that does not fit; an image of other channels.
    """
    known = [t.name for t in (*file.inputs, *file.outputs)]
    for given in (*about.descriptions, *about.units):
        check_known(f"export: about: '{given}' is no input or output", given, known)
    boxes = CHOOSES in file.metadata
    positions = int(file.metadata[CHOOSES]["classes"]) if boxes else positions_in(file, file.outputs[0])
    check_labels(about.labels, file.outputs[0].shape, positions, boxes=boxes)
    torn = [label for label in about.labels if not label.strip() or len(label.splitlines()) != 1]
    if torn:
        raise ValueError(f"export: a label is one line of text. Received: {torn[0]!r}.")
    first = file.inputs[0]
    raw = normalization_of("export", first, about.scale, about.mean, about.std)
    inputs = [_tensor(t, about, {**_content(t, about), **_units(raw)} if t is first else {}) for t in file.inputs]
    kind = Number(VALUE_LABELS if positions else AXIS_LABELS)
    labels = Table({NAME: LABELS, DESCRIPTION: "names of the classes", FILE_TYPE: kind})
    named = {FILES: [labels]} if about.labels else {}
    at = CATEGORY if boxes else 0
    outputs = [
        _tensor(t, about, {**(_box(n) if boxes else {}), **(named if n == at else {})})
        for n, t in enumerate(file.outputs)
    ]
    graph = Table({NAME: "main", INPUTS: inputs, OUTPUTS: outputs})
    root = {NAME: about.name or name, DESCRIPTION: about.description, VERSION: about.version, GRAPHS: [graph]}
    more = {AUTHOR: about.author, LICENSE: about.license, MIN_PARSER: PARSER}
    return write_table(Table({**root, **more}), IDENTIFIER)


def check_labels(
    labels: Sequence[str], shape: Sequence[int], positions: int, who: str = "export", *, boxes: bool = False
) -> None:
    """Refuse names of classes that do not fit an output.

    Args:
        labels: none, or one for each class.
        shape: of the output.
        positions: that it tells apart; 0 where it holds a score for each class.
        who: the verb that errors name.
        boxes: the positions are classes of boxes that the file chooses.

    Raises:
        ValueError: another number of them than the last axis has values, or than there are positions.
    """
    values = positions or (shape[-1] if shape else 1)
    if not labels or (len(labels) == values and (positions or shape)):
        return
    if boxes:
        raise ValueError(
            f"{who}: {len(labels)} labels for boxes of {positions} classes; give one for each, and none for the "
            "background."
        )
    if positions:
        raise ValueError(
            f"{who}: {len(labels)} labels for an output of {positions} positions; give one for each value of the axis "
            "that its argmax or argmin reads."
        )
    raise ValueError(
        f"{who}: {len(labels)} labels for an output of {values} values; give one for each value of its last axis."
    )


def _tensor(t: FileTensor, about: About, more: dict[int, Any]) -> Table:
    unit = about.units.get(t.name, "")
    said = [about.descriptions.get(t.name, ""), f"(unit: {unit})" if unit else ""]
    fields: dict[int, Any] = {NAME: t.name, DESCRIPTION: " ".join(filter(None, said))}
    fields[CONTENT] = Table({KIND: Number(FEATURE), VALUE: Table({})})
    if t.scale is not None:  # the numbers that codes stand for reach so far
        info = np.iinfo(t.dtype)
        low, high = ((code - t.zero_point[0]) * t.scale[0] for code in (info.min, info.max))
        fields[STATS] = Table({MOST: np.array([high], np.float32), LEAST: np.array([low], np.float32)})
    return Table({**fields, **more})


def _box(number: int) -> dict[int, Any]:
    """What is so of an output of a file that chooses boxes, which stand as top, left, bottom, right."""
    if number:
        return {NAME: OF_BOXES[number]}
    shape = Table({ORDER: np.array([1, 0, 3, 2], np.uint32), EDGES: BOX_TYPE})
    return {NAME: OF_BOXES[number], CONTENT: Table({KIND: Number(BOX), VALUE: shape})}


def _content(t: FileTensor, about: About) -> dict[int, Any]:
    if not about.image:
        return {}
    if len(t.shape) != 4 or t.shape[-1] not in COLOURS:
        raise ValueError(
            f"export: about: image=True is for an input [1, height, width, 3 or 1]; '{t.name}' is {list(t.shape)}."
        )
    return {CONTENT: Table({KIND: Number(IMAGE), VALUE: Table({0: Number(COLOURS[t.shape[-1]])})})}


def _units(raw: Normalization | None) -> dict[int, Any]:
    """The format knows `(raw - mean) / std` alone; a mean or deviation that all channels share stands once."""
    if raw is None:
        return {}
    rows = ((row[:1] if len(set(row)) == 1 else row) for row in (raw.mean, raw.std))
    mean, std = (np.array(row, np.float32) / np.float32(raw.scale) for row in rows)
    options = Table({MEAN: mean, STD: std})
    return {UNITS: [Table({KIND: Number(NORMALIZES), VALUE: options})]}


def packed_files(about: About, offset: int) -> bytes:
    """What lies behind the flatbuffer: a ZIP that is not compressed, as MediaPipe asks.

    Args:
        about: with labels, or nothing is to be packed.
        offset: where it will lie.
    """
    if not about.labels:
        return b""
    held = io.BytesIO()
    held.write(bytes(offset))  # its places count from the beginning of the file
    with zipfile.ZipFile(held, "w", zipfile.ZIP_STORED) as archive:
        # a fixed time, so that the same model gives the same bytes
        entry = zipfile.ZipInfo(LABELS, (1980, 1, 1, 0, 0, 0))
        archive.writestr(entry, "".join(f"{label}\n" for label in about.labels))
    return held.getvalue()[offset:]


def read_about(entry: bytes, content: bytes) -> FileAbout:
    """What a file says of itself.

    Args:
        entry: of the file's metadata.
        content: the whole file.

    Raises:
        ValueError: another format, or damaged; damaged bytes raise what `reader.DAMAGE` has, too.
    """
    root = read_table(entry, IDENTIFIER)
    graph = next(iter(root.tables(GRAPHS)), None)
    packed = dict(_packed(content))
    sides = [[] if graph is None else graph.tables(side) for side in (INPUTS, OUTPUTS)]
    inputs, outputs = (tuple(_read_tensor(t, packed) for t in side) for side in sides)
    return FileAbout(
        name=root.text(NAME),
        description=root.text(DESCRIPTION),
        version=root.text(VERSION),
        author=root.text(AUTHOR),
        license=root.text(LICENSE),
        inputs=inputs,
        outputs=outputs,
        files=tuple(packed),
    )


def _read_tensor(t: Fields, packed: Mapping[str, str]) -> TensorAbout:
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    for unit in t.tables(UNITS):
        options = unit.table(VALUE)
        if unit.byte(KIND) == NORMALIZES and options is not None:
            mean, std = options.floats(MEAN), options.floats(STD)
    files = [file.text(NAME) for file in t.tables(FILES) if file.byte(FILE_TYPE) in (AXIS_LABELS, VALUE_LABELS)]
    labels = tuple(packed[files[0]].splitlines()) if files and files[0] in packed else ()
    return TensorAbout(t.text(NAME), t.text(DESCRIPTION), mean, std, labels)


def _packed(content: bytes) -> Iterator[tuple[str, str]]:
    """The texts of the files behind a file, by name; "" of those that are no short text."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist()[:16]:
            short = entry.file_size <= MOST_LABELS_BYTES and entry.compress_type == zipfile.ZIP_STORED
            yield entry.filename, archive.read(entry).decode("utf-8", "replace") if short else ""
