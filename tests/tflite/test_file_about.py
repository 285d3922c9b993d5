"""TFLite metadata: what tools of Android and MediaPipe read beside the graph, which runs as before."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kquant
from kquant import report
from kquant.runtime.running import available
from kquant.tflite.file_about import ENTRY, IDENTIFIER, LABELS, About
from kquant.tflite.flatbuffer import ALIGNMENT
from kquant.tflite.reader import SCHEMA
from kquant.tflite.small_tables import Number, Table, read_table, write_table

layers = keras.layers
X = np.random.default_rng(0).uniform(0, 255, (128, 16, 16, 3)).astype("float32")
FULL = About(
    name="pets",
    description="Tells pets apart",
    labels=["cat", "dog", "é none"],
    scale=0.5,
    mean=[1.0, 2.0, 4.0],
    std=2.0,
    image=True,
    descriptions={"image": "a photo"},
    units={"image": "lux", "kind_softmax": "a share"},
    version="v1",
    author="me",
    license="MIT",
)


def _quantized(target: str = "litert") -> keras.Model:
    x = keras.Input((16, 16, 3), name="image")
    y = layers.Conv2D(4, 3, strides=2, activation="relu", name="stem")(layers.Rescaling(1 / 127.5, -1)(x))
    y = layers.Dense(3, activation="softmax", name="kind")(layers.GlobalAveragePooling2D()(y))
    return kquant.calibrate(kquant.quantize(keras.Model(x, y, name="net"), target=target), X, verbose=False)


@pytest.fixture(scope="module")
def q() -> keras.Model:
    return _quantized()


def _written(q: keras.Model, path: Path, about: About | None, **options: Any) -> bytes:
    kquant.export(q, path, check_runtimes=False, about=about, **options)
    return path.read_bytes()


@pytest.mark.parametrize("edges", ["model", "uint8", "float32"])
def test_what_was_said_is_read(q: keras.Model, edges: Any, tmp_path: Path) -> None:
    content = _written(q, tmp_path / "m.tflite", FULL, io=edges)
    about = kquant.inspect(content).about
    assert about is not None
    assert (about.name, about.description, about.files) == ("pets", "Tells pets apart", (LABELS,))
    assert (about.version, about.author, about.license) == ("v1", "me", "MIT")
    (image,), (kind,) = about.inputs, about.outputs
    assert (image.name, image.description) == ("image", "a photo (unit: lux)")
    assert (image.mean, image.std) == ((2.0, 4.0, 8.0), (4.0,))  # (raw - mean) / std, without a factor
    assert (kind.name, kind.description, kind.labels) == ("kind_softmax", "(unit: a share)", tuple(FULL.labels))


def test_the_readers_of_tflite_support_read_it(q: keras.Model, tmp_path: Path) -> None:
    """With the schema's own numbers: what `MetadataDisplayer` of tflite-support 0.4.4 printed of this file."""
    content = _written(q, tmp_path / "m.tflite", FULL)
    printed = json.loads((Path(__file__).parent / "tflite_support.json").read_text())
    known = _as_schema(content)
    assert known == printed
    if importlib.util.find_spec("tflite_support") is not None:
        metadata: Any = importlib.import_module("tflite_support.metadata")
        shown = metadata.MetadataDisplayer.with_model_buffer(content)
        assert json.loads(shown.get_metadata_json()) == printed
        assert shown.get_associated_file_buffer(LABELS).decode() == "cat\ndog\né none\n"


def _as_schema(content: bytes) -> dict[str, Any]:
    """The entry by the schema's names, read by the numbers that its text gives each field."""
    (entry,) = re.findall(rb"(?s)M001.{8,}", content)  # from the identifier on
    start = content.index(entry) - 4
    root = read_table(content[start:], IDENTIFIER)
    graph = root.tables(3)[0]

    def tensor(t: Any) -> dict[str, Any]:
        found: dict[str, Any] = {"name": t.text(0)}
        if t.text(1):
            found["description"] = t.text(1)
        content = t.table(3)
        kind = {1: "FeatureProperties", 2: "ImageProperties"}[content.byte(0)]
        colours = {0: {}, 1: {"color_space": "RGB"}}[content.table(1).byte(0)]
        found["content"] = {"content_properties_type": kind, "content_properties": colours}
        if t.tables(4):
            options = t.tables(4)[0].table(1)
            named = {"mean": list(options.floats(0)), "std": list(options.floats(1))}
            found["process_units"] = [{"options_type": "NormalizationOptions", "options": named}]
        stats = t.table(5)
        found["stats"] = {"max": _short(stats.floats(0)), "min": _short(stats.floats(1))}
        files = [{"name": f.text(0), "description": f.text(1), "type": "TENSOR_AXIS_LABELS"} for f in t.tables(6)]
        return {**found, **({"associated_files": files} if files else {})}

    graphs = [
        {
            "name": graph.text(0),
            "input_tensor_metadata": [tensor(t) for t in graph.tables(2)],
            "output_tensor_metadata": [tensor(t) for t in graph.tables(3)],
        }
    ]
    words = {"name": root.text(0), "description": root.text(1), "version": root.text(2), "subgraph_metadata": graphs}
    return {**words, "author": root.text(4), "license": root.text(5), "min_parser_version": root.text(7)}


def _short(values: tuple[float, ...]) -> list[float]:
    return [round(v, 6) for v in values]


def test_labels_lie_behind_the_file_as_they_are(q: keras.Model, tmp_path: Path) -> None:
    content = _written(q, tmp_path / "m.tflite", FULL)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (entry,) = archive.infolist()
        assert (entry.filename, entry.compress_type) == (LABELS, zipfile.ZIP_STORED)
        assert archive.read(entry).decode() == "cat\ndog\né none\n"
    assert content == _written(q, tmp_path / "again.tflite", FULL)
    assert not zipfile.is_zipfile(io.BytesIO(_written(q, tmp_path / "bare.tflite", About(description="a net"))))


def test_contents_of_tensors_stay_where_a_processor_can_read_them(q: keras.Model, tmp_path: Path) -> None:
    # the schema's force_align of Buffer.data: a Cortex-M0 reads no int32 elsewhere
    content = _written(q, tmp_path / "m.tflite", FULL)
    file = SCHEMA.Model.GetRootAs(content, 0)
    held = [file.Buffers(n).DataAsNumpy() for n in range(file.BuffersLength()) if file.Buffers(n).DataLength()]
    start = np.frombuffer(content, np.uint8).ctypes.data
    assert held and all((data.ctypes.data - start) % ALIGNMENT == 0 for data in held)


@pytest.mark.parametrize("runtime", ["litert", "litert-reference", "tflm"])
def test_it_runs_as_before(runtime: str, tmp_path: Path) -> None:
    if runtime not in available():
        pytest.skip("needs pip install 'kquant[micro]' (Linux only)")
    q = _quantized("tflm" if runtime == "tflm" else "litert")
    plain, said = (_written(q, tmp_path / f"{n}.tflite", about) for n, about in enumerate((None, FULL)))
    a, b = (kquant.predict(content, X, runtime, verbose=False) for content in (plain, said))
    assert np.array_equal(a, b)
    assert kquant.verify(q, said, X, runtime).verdict == kquant.verify(q, plain, X, runtime).verdict
    one, other = kquant.inspect(plain), kquant.inspect(said)
    assert (one.tensors, one.operators, one.signatures) == (other.tensors, other.operators, other.signatures)
    assert len(said) - len(plain) < 2500


def test_with_tables_and_streams(tmp_path: Path) -> None:
    if "tflm" not in available():
        pytest.skip("needs pip install 'kquant[micro]' (Linux only)")
    x = keras.Input((16, 4), name="frames")
    y = layers.Dense(16, name="wide")(layers.Conv1D(8, 3, padding="causal", activation="relu")(x))
    model = kquant.cluster(keras.Model(x, layers.Dense(2, name="out")(y)), {"name": "f", "clustering": {"clusters": 4}})
    clips = np.random.default_rng(0).normal(size=(128, 16, 4)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), clips, verbose=False)
    about = About(labels=["yes", "no"])
    kquant.export(q, tmp_path / "s.tflite", data=clips, streaming=True, about=about)
    found = kquant.inspect(tmp_path / "s.tflite")
    assert found.about is not None and found.about.outputs[0].labels == ("yes", "no")
    assert kquant.Stream((tmp_path / "s.tflite").read_bytes(), "tflm").hop == 1


def test_signatures_have_the_names_of_keras(q: keras.Model, tmp_path: Path) -> None:
    for options in ({}, {"io": "uint8"}, {"about": FULL}):
        kquant.export(q, tmp_path / "m.tflite", check_runtimes=False, **options)  # pyright: ignore[reportArgumentType]
        file = kquant.inspect(tmp_path / "m.tflite")
        (call,) = file.signatures
        assert call.key == "serving_default"
        assert call.inputs == {"image": file.inputs[0].index} and call.outputs == {"kind": file.outputs[0].index}
        assert q.output_names == ["kind"] and file.outputs[0].name == "kind_softmax"


def test_signatures_of_several_outputs_and_of_dicts(tmp_path: Path) -> None:
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    both = layers.Add(name="both")([a, b])
    outputs = {"second": layers.Dense(2, name="x")(both), "first": layers.Dense(3, name="y")(both)}
    for made in (outputs, list(outputs.values())):
        model = keras.Model({"a": a, "b": b}, made)
        x = {name: np.random.default_rng(0).normal(size=(128, 4)).astype("float32") for name in "ab"}
        q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
        kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
        file = kquant.inspect(tmp_path / "m.tflite")
        (call,) = file.signatures
        assert set(call.outputs) == ({"first", "second"} if made is outputs else {"x", "y"})
        assert {file.tensors[i].shape for i in call.outputs.values()} == {(1, 2), (1, 3)}
        assert file.tensors[call.outputs["second" if made is outputs else "x"]].shape == (1, 2)


def test_inspect_shows_it(q: keras.Model, tmp_path: Path) -> None:
    _written(q, tmp_path / "m.tflite", FULL)
    said = " ".join(report.render(kquant.inspect(tmp_path / "m.tflite"), 200).split())
    for words in (
        "signature 'serving_default': image -> kind (kind_softmax)",
        "says of itself: pets, Tells pets apart, version v1, me, MIT",
        "of image: a photo (unit: lux); (raw - [2, 4, 8]) / [4]",
        "of kind_softmax: (unit: a share); 3 labels: cat, dog, é none",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("about", "said"),
    [
        (About(labels=["a", "b"]), "2 labels for an output of 3 values"),
        (About(labels=["a", "b\nc", "d"]), "a label is one line of text"),
        (About(labels=["a", " ", "d"]), "a label is one line of text"),
        (About(units={"imagee": "lux"}), "'imagee' is no input or output. Did you mean 'image'"),
        (About(descriptions={"stem": "a layer"}), "'stem' is no input or output"),
        (About(mean=[1.0, 2.0]), "mean has 2 numbers; the first input, image, has 3 channels"),
        (About(std=0.0), "std must be above 0"),
    ],
)
def test_what_does_not_fit_is_refused(q: keras.Model, about: About, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        _written(q, tmp_path / "m.tflite", about)
    assert list(tmp_path.iterdir()) == []


def test_an_image_has_channels(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,), name="row"), layers.Dense(2)])
    q = kquant.calibrate(kquant.quantize(model), X[:, 0, :4, 0], verbose=False)
    with pytest.raises(ValueError, match=re.escape("'row' is [1, 4]")):
        _written(q, tmp_path / "m.tflite", About(image=True))


def test_a_damaged_entry_is_told_and_the_file_runs(q: keras.Model, tmp_path: Path) -> None:
    content = _written(q, tmp_path / "m.tflite", FULL)
    rng = np.random.default_rng(0)
    start = content.index(b"M001")
    told = 0
    for at in rng.integers(start, start + 600, 200):
        broken = bytearray(content)
        broken[at] ^= 1 << int(rng.integers(8))
        file = kquant.inspect(bytes(broken))
        told += any(ENTRY in line for line in file.findings)
        assert file.about is not None or any(ENTRY in line for line in file.findings)
    assert told > 10
    torn = content.replace(b"M001", b"M009")
    assert any("must read M001" in line for line in kquant.inspect(torn).findings)
    assert np.array_equal(kquant.predict(torn, X[:4], verbose=False), kquant.predict(content, X[:4], verbose=False))


def test_a_table_tells_no_more_than_it_holds() -> None:
    inner = Table({0: "x" * 100})
    content = bytearray(write_table(Table({3: [inner] * 40}), IDENTIFIER))
    assert len(read_table(bytes(content), IDENTIFIER).tables(3)) == 40
    root = read_table(bytes(content), IDENTIFIER)
    with pytest.raises(ValueError, match="far more than it holds"):
        for _ in range(100):
            [t.text(0) for t in root.tables(3)]


FIELDS = st.one_of(st.text(max_size=9), st.lists(st.floats(-9, 9, width=32), max_size=5))


@given(st.dictionaries(st.integers(0, 8), FIELDS))
@settings(max_examples=60, deadline=None)
def test_tables_are_read_as_they_were_written(fields: dict[int, Any]) -> None:
    held = {n: np.array(v, np.float32) if isinstance(v, list) else v for n, v in fields.items()}
    found = read_table(write_table(Table({**held, 9: Number(7), 10: Table(held)}), b"TEST"), b"TEST")
    inner = found.table(10)
    assert found.byte(9) == 7 and inner is not None
    for n, value in fields.items():
        for table in (found, inner):
            assert (list(table.floats(n)) if isinstance(value, list) else table.text(n)) == value
