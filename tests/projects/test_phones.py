"""Projects for phones: their sources parse and compile, say what LiteRT computes, and take names of any kind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kquant
from kquant.exporting.streams import Stream
from kquant.projects.described import Described, Normalization, Port, Probe, described, ports
from kquant.projects.golden import Golden, golden_vectors
from kquant.projects.kinds import kinds
from kquant.projects.languages import LANGUAGES
from kquant.projects.names import LONGEST, class_name, distinct, identifier
from kquant.projects.rendering import kotlin_string, placed, rendered, swift_float, swift_string
from kquant.report.page import page
from kquant.runtime.running import quantize_input

pytestmark = [
    pytest.mark.filterwarnings("ignore:calibrate. .* carry hardly any signal"),
    pytest.mark.filterwarnings("ignore:calibrate. tensors of very different ranges"),
]
layers = keras.layers
PHONES = sorted(name for name, kind in kinds().items() if not kind.arena)
X = np.random.default_rng(0).uniform(-1, 1, (64, 8, 8, 2)).astype("float32")
LABELS = ["left", 'the "right" $1', "\u00e9\U0001f600\n\\"]


def _quantized(recipe: str = "int8", target: str = "litert") -> keras.Model:
    x = keras.Input((8, 8, 2), name="image")
    y = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    y = layers.Dense(3, activation="softmax", name="score")(layers.Flatten()(y))
    return kquant.calibrate(kquant.quantize(keras.Model(x, y, name="net"), recipe, target=target), X, verbose=False)


@pytest.fixture(scope="module")
def q() -> keras.Model:
    return _quantized()


@pytest.fixture(scope="module")
def made(q: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, kquant.BundleReport]:
    folder = tmp_path_factory.mktemp("phones")
    more: dict[str, Any] = {"labels": LABELS, "scale": 1 / 255, "mean": [0.5, 0.25], "std": 0.3}
    return {kind: kquant.bundle(q, folder / kind, data=X, kind=kind, golden=3, **more) for kind in PHONES}


@pytest.fixture(scope="module")
def forked() -> tuple[keras.Model, list[np.ndarray]]:
    """Two inputs of two types, two outputs; names that are keywords, or alike."""
    real, positions = keras.Input((6,), name="in"), keras.Input((4,), dtype="int32", name="Class")
    y = layers.Flatten()(layers.Embedding(10, 3)(positions))
    y = layers.Concatenate()([layers.Dense(4, activation="relu")(real), y])
    model = keras.Model([real, positions], [layers.Dense(2, name="out 1")(y), layers.Dense(3, name="out-1")(y)])
    draw = np.random.default_rng(1)
    data = [draw.normal(size=(64, 6)).astype("float32"), draw.integers(0, 10, (64, 4)).astype("int32")]
    return kquant.calibrate(kquant.quantize(model), data, verbose=False), data


def _texts(folder: str | Path) -> dict[str, str]:
    binary = (".tflite",)
    files = [p for p in Path(folder).rglob("*") if p.is_file() and p.suffix not in binary]
    return {str(p.relative_to(folder)): p.read_text() for p in files}


def _asset(report: kquant.BundleReport, ending: str) -> bytes:
    return (Path(report.folder) / next(name for name in report.files if name.endswith(ending))).read_bytes()


def _refuse_errors(texts: dict[str, str]) -> None:
    """Kotlin and Swift as their grammars have it; XML and JSON."""
    reason = "parsing Kotlin and Swift needs tree-sitter, tree-sitter-kotlin and tree-sitter-swift (the dev extra)"
    parsing = pytest.importorskip("tree_sitter", reason=reason)
    grammars = {
        "kt": pytest.importorskip("tree_sitter_kotlin", reason=reason),
        "swift": pytest.importorskip("tree_sitter_swift", reason=reason),
    }
    parsers = {name: parsing.Parser(parsing.Language(one.language())) for name, one in grammars.items()}
    parsers["kts"] = parsers["kt"]
    seen = set()
    for name, text in texts.items():
        assert text.strip(), name
        assert "{{" not in text, name
        assert "{%" not in text, name
        ending = name.rsplit(".", 1)[-1]
        seen.add(ending)
        if ending in parsers:
            root = parsers[ending].parse(text.encode()).root_node
            assert not root.has_error, f"{name}:\n{text}"
        elif ending == "xml":
            ElementTree.fromstring(text)
        elif ending == "json":
            json.loads(text)
    assert seen & {"kt", "swift"}


def test_the_parsers_find_a_mistake() -> None:
    for name, text in {"a.kt": "fun f( = 1", "a.swift": "func f() -> { let"}.items():
        with pytest.raises(AssertionError):
            _refuse_errors({name: text})


@pytest.mark.parametrize("kind", PHONES)
def test_every_kind_is_whole(made: dict[str, kquant.BundleReport], kind: str) -> None:
    report = made[kind]
    folder = Path(report.folder)
    assert sorted(report.files) == sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    _refuse_errors(_texts(folder))
    assert report.arena is None
    assert report.runtime == "litert"
    assert json.loads(json.dumps(report.to_dict()))["arena"] is None
    assert f"{report.flash_bytes:,} bytes" in repr(report)
    assert any("3 golden vectors of LiteRT" in fact for fact in page(report).facts)
    assert not any("arena" in column for column in page(report).tables[0].columns)
    assert len(_asset(report, ".tflite")) == report.flash_bytes
    # the file itself lies there, and not one byte of it in a source
    assert max(len(text) for name, text in _texts(folder).items() if not name.endswith(".json")) < 12_000
    told = "\n".join(_texts(folder).values())
    assert "20.0 dB" in told
    assert re.search(r"score.* on litert: [\d.]+% of codes equal, \d steps at most", told)


def _written_by_hand(language: str) -> Described:
    """Two inputs and two outputs, of codes and of floats, from no model."""
    code = {"scale": 0.25, "zero_point": 3, "low": -128, "high": 127}
    real = {"scale": None, "zero_point": None, "low": 0, "high": 0}
    types = LANGUAGES[language].types
    probes = (Probe(1.125, 7, 1.0), Probe(-40.0, -128, -32.75))

    def port(name: str, index: int, shape: tuple[int, ...], dtype: str, grid: dict[str, Any]) -> Port:
        told = {"elements": int(np.prod(shape)), "channels": shape[-1], "probes": probes if grid is code else ()}
        return Port(name, name, name, index, shape, type=types[dtype], **grid, **told)

    return Described(
        title="tiny */ net",
        id="tiny_net",
        class_name="TinyNetModel",
        version="1.2.3",
        recipe="int8",
        target="litert",
        sha256="0123456789abcdef" * 4,
        digest=(),
        size=1000,
        array=(),
        parts=(),
        operators=(),
        variables=0,
        alone=False,
        estimating=False,
        arena=None,
        inputs=(port("image", 0, (2, 2), "int8", code), port("speed", 1, (1,), "float32", real)),
        outputs=(port("kind", 0, (2,), "int8", code), port("place", 1, (3,), "float32", real)),
        labels=("left", 'the "right"'),
        normalization=Normalization(0.5, (1.0, 2.0), (1.0, 4.0)),
        calls=(),
        agreements=("kind on litert: 99.0% of codes equal, 1 steps at most, 40.0 dB",),
        asked_db=20.0,
        card=(("file", "1,000 bytes"),),
    )


@pytest.mark.parametrize("kind", PHONES)
def test_the_text_is_the_one_that_was_read(kind: str) -> None:
    """A change of a template shows here as it does in a project: REWRITE=1 writes the new text, to be read."""
    chosen, folder = kinds()[kind], Path(__file__).parent / "texts" / kind
    texts = rendered(chosen, _written_by_hand(chosen.language))
    if os.environ.get("REWRITE"):
        shutil.rmtree(folder, ignore_errors=True)
        for place, text in texts.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_text(text)
    assert _texts(folder) == texts


def _compiled_model(content: bytes) -> Any:
    from ai_edge_litert.compiled_model import CompiledModel

    return CompiledModel.from_buffer(content)


def _run(model: Any, values: list[np.ndarray], types: list[Any], shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """One call of LiteRT's CompiledModel, of which Kotlin and Swift have the same."""
    inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
    for buffer, value in zip(inputs, values, strict=True):
        buffer.write(np.ravel(value))
    model.run_by_index(0, inputs, outputs)
    sizes = [int(np.prod(shape)) for shape in shapes]
    return [buffer.read(size, kind) for buffer, size, kind in zip(outputs, sizes, types, strict=True)]


@pytest.mark.parametrize("io", ["model", "uint8", "float32"])
@pytest.mark.parametrize("kind", PHONES)
def test_golden_vectors_are_what_a_compiled_model_gives(
    forked: tuple[keras.Model, list[np.ndarray]], kind: str, io: Any, tmp_path: Path
) -> None:
    qmodel, data = forked
    report = kquant.bundle(qmodel, tmp_path / "project", data=data, kind=kind, io=io, golden=3)
    _refuse_errors(_texts(report.folder))
    content = _asset(report, ".tflite")
    file = kquant.inspect(content)
    calls = json.loads(_asset(report, "_golden.json"))["calls"]
    assert len(calls) == 3
    model = _compiled_model(content)
    types, shapes = [t.dtype for t in file.outputs], [t.shape for t in file.outputs]
    for n, call in enumerate(calls):
        values = [np.array(v, t.dtype) for v, t in zip(call["inputs"], file.inputs, strict=True)]
        # the samples that were given, spread over all
        given_ = [quantize_input(a[[0, 32, 63][n]], t) for a, t in zip(data, file.inputs, strict=True)]
        for value, expected in zip(values, given_, strict=True):
            np.testing.assert_array_equal(value, np.ravel(expected))
        for got, wanted in zip(_run(model, values, types, shapes), call["outputs"], strict=True):
            np.testing.assert_array_equal(got, np.array(wanted, got.dtype))
    assert any(any(np.ptp(outputs) for outputs in call["outputs"]) for call in calls)


@pytest.mark.parametrize("states", ["io", "variables"])
def test_streams_are_called_in_order(states: Any, tmp_path: Path) -> None:
    x = keras.Input((16, 4), name="frames")
    y = layers.Conv1D(6, 3, padding="causal", activation="relu")(x)
    model = keras.Model(x, layers.Conv1D(2, 3, padding="causal", name="score")(y))
    data = np.random.default_rng(1).normal(size=(64, 16, 4)).astype("float32")
    qmodel = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    options: dict[str, Any] = {"streaming": True, "states": states, "golden": 5}
    report = kquant.bundle(qmodel, tmp_path / "android", data=data, kind="android", **options)
    _refuse_errors(_texts(report.folder))
    stream = Stream(_asset(report, ".tflite"), "litert")
    codes = quantize_input(data[:1], stream.file.inputs[0])
    wanted = [stream.step_codes([codes[:, n : n + 1]])[0].ravel().tolist() for n in range(5)]
    calls = json.loads(_asset(report, "_golden.json"))["calls"]
    assert [call["outputs"][0] for call in calls] == wanted
    assert len(calls[0]["inputs"]) == len(stream.file.inputs)
    kept = "states from call to call" in "".join(_texts(report.folder).values())
    assert kept == (states == "variables")


def test_numbers_of_16_bits_go_where_they_can(tmp_path: Path) -> None:
    wide = _quantized("int16x8")
    said = r"is int16, and LiteRT's Kotlin API takes int8, uint8, int32, int64, float32, bool. Give io='float32'"
    with pytest.raises(ValueError, match=said):
        kquant.bundle(wide, tmp_path / "android", data=X, kind="android")
    assert not (tmp_path / "android").exists()
    kquant.bundle(wide, tmp_path / "android", data=X, kind="android", io="float32", golden=1)
    report = kquant.bundle(wide, tmp_path / "ios", data=X, kind="ios", golden=1)
    assert "image: [Int16]" in "".join(_texts(report.folder).values())
    _refuse_errors(_texts(report.folder))


def test_what_does_not_fit_is_refused(q: keras.Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an Android library module has no debug model; leave debug=True out"):
        kquant.bundle(q, tmp_path / "new", data=X, kind="android", debug=True)
    said = "for target 'tflm', and a Swift package runs on LiteRT, .*Expected: kquant.quantize.model, target='litert'"
    with pytest.raises(ValueError, match=said):
        kquant.bundle(_quantized(target="tflm"), tmp_path / "new", data=X, kind="ios")
    nothing = Golden((np.float32([[1.0]]),), (np.float32([[np.inf]]),))
    with pytest.raises(ValueError, match="values that are no numbers"):
        nothing.to_json()
    assert not (tmp_path / "new").exists()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_floats_keep_their_bits(values: list[float]) -> None:
    row = np.float32([values])
    call = json.loads(Golden((row,), (row,)).to_json())["calls"][0]
    np.testing.assert_array_equal(np.float32(call["inputs"][0]).view(np.uint32), row[0].view(np.uint32))
    for value in row[0]:
        bits = re.fullmatch(r"Float\(bitPattern: 0x([0-9a-f]{8})\)", swift_float(value))
        assert bits is not None
        assert int(bits[1], 16) == int(value.view(np.uint32))


def test_probes_are_the_nearest_codes(made: dict[str, kquant.BundleReport]) -> None:
    file = kquant.inspect(_asset(made["ios"], ".tflite"))
    for port in ports([*file.inputs, *file.outputs], "swift"):
        assert port.scale is not None
        assert {port.low, port.high, port.zero_point} <= {probe.code for probe in port.probes}
        for probe in port.probes:
            exact = np.float64(probe.real) / np.float64(port.scale) + port.zero_point
            assert abs(np.clip(exact, port.low, port.high) - probe.code) <= 0.5 + 1e-4
            assert probe.back == np.float32(port.scale) * np.float32(probe.code - port.zero_point)


ODD = ["../x", "*/ fun main(){}", "\U0001f600", "class", "a" * 300, 'say "hi"\\', "$x ${y} \\(z)", "compiled", "1\n2"]


def _about(report: kquant.BundleReport, name: str, language: str) -> Described:
    content = _asset(report, ".tflite")
    file = kquant.inspect(content)
    golden = golden_vectors(content, file, [quantize_input(X[:1], file.inputs[0])], "litert")
    parts: dict[str, Any] = {"arena": None, "normalization": None, "card": [("a", "b")], "language": language}
    return described(content, file, title=name, golden=golden, labels=[name, name, "c"], **parts)


@pytest.mark.parametrize("kind", PHONES)
def test_the_file_says_labels_and_normalization(made: dict[str, kquant.BundleReport], kind: str) -> None:
    (path,) = Path(made[kind].folder).rglob("*.tflite")
    about = kquant.inspect(path).about
    assert about is not None and len(about.outputs[0].labels) == len(LABELS)
    assert about.inputs[0].std and about.inputs[0].mean


@pytest.mark.parametrize("kind", PHONES)
def test_names_of_users_cannot_leave_their_places(
    made: dict[str, kquant.BundleReport], kind: str, tmp_path: Path
) -> None:
    chosen = kinds()[kind]
    for name in ODD:
        about = _about(made[kind], name, chosen.language)
        assert about.array == about.digest == about.calls == ()
        texts = rendered(chosen, about)
        for place in (*texts, *(placed(place, about) for place in chosen.assets)):
            assert (tmp_path / place).resolve().is_relative_to(tmp_path)
            assert ".." not in place
        _refuse_errors(texts)


@pytest.mark.parametrize("language", ["kotlin", "swift"])
@given(names=st.lists(st.text(max_size=70) | st.sampled_from(["in", "as 1", "A b", "a_b", "a b2", "is"]), max_size=8))
@settings(max_examples=150, deadline=None)
def test_names_are_legal_and_distinct(language: str, names: list[str]) -> None:
    reserved = LANGUAGES[language].reserved
    made_ = distinct(names, language)
    assert len(set(made_)) == len(names)
    for name in made_:
        assert re.fullmatch("[a-z][a-zA-Z0-9]*", name)
        assert name not in reserved
        assert len(name) <= LONGEST + 8
    for name in names:
        one = class_name(name, language)
        assert re.fullmatch("([A-Z][a-zA-Z0-9]*)?Model", one)
        assert one != "CompiledModel"
        assert identifier(name, language) not in reserved


@given(st.text(st.characters(codec=None), max_size=40))
@settings(max_examples=200, deadline=None)
def test_words_stay_inside_quotes(text: str) -> None:
    kotlin, swift = kotlin_string(text), swift_string(text)
    assert kotlin.isascii()
    assert swift.isascii()
    # Kotlin's escapes are those of JSON, and one for the dollar
    units = json.loads('"' + kotlin.replace("\\$", "$") + '"')
    assert units.encode("utf-16", "surrogatepass") == text.encode("utf-16", "surrogatepass")
    assert "$" not in kotlin.replace("\\$", "")
    assert re.fullmatch(r'(?:[^"\\\n]|\\["\\]|\\u\{[0-9a-f]{1,6}\})*', swift)
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    said = re.sub(r'\\(?:u\{([0-9a-f]+)\}|(["\\]))', lambda m: m[2] or chr(int(m[1], 16)), swift)
    assert said == whole


STUBS = """package org.junit
annotation class Test
object Assert {
    var count = 0
    fun assertEquals(wanted: Any?, got: Any?) { count++; check(wanted == got) { "$wanted and $got" } }
    fun assertEquals(said: String, wanted: Any?, got: Any?) { count++; check(wanted == got) { "$said: $wanted, $got" } }
    fun assertEquals(wanted: Float, got: Float, by: Float) { count++; check(wanted == got) { "$wanted and $got" } }
    fun assertEquals(said: String, wanted: Float, got: Float, by: Float) = assertEquals(wanted, got, by)
}
"""


@pytest.mark.slow
def test_kotlin_computes_the_codes_of_python(made: dict[str, kquant.BundleReport], tmp_path: Path) -> None:
    """The unit test of the project, compiled and run on the JVM."""
    compiler = os.environ.get("KOTLINC") or shutil.which("kotlinc")
    if compiler is None or shutil.which("java") is None:
        pytest.skip("needs Java and the Kotlin compiler: KOTLINC, its path (npm's kotlin-compiler holds one)")
    report = made["android"]
    sources = [Path(report.folder) / name for name in report.files if re.search(r"Codes(Test)?\.kt$", name)]
    tests = re.findall(r"@Test\n    fun (\w+)", "".join(p.read_text() for p in sources))
    calls = "\n".join(f"    test.{name}()" for name in tests)
    labels = "models.net.NetModelCodes.labels.map { it.codePoints().toArray().toList() }"
    said = f"println(listOf(org.junit.Assert.count) + {labels})"
    (tmp_path / "Stubs.kt").write_text(STUBS)
    (tmp_path / "Main.kt").write_text(
        f"fun main() {{\n    val test = models.net.NetModelCodesTest()\n{calls}\n    {said}\n}}\n"
    )
    jar = tmp_path / "all.jar"
    command = [compiler, *map(str, [*sources, *tmp_path.glob("*.kt")]), "-include-runtime", "-d", str(jar)]
    subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run(["java", "-jar", str(jar)], check=True, capture_output=True, text=True)
    count, *spelled = json.loads(done.stdout)
    assert count == 2 * (27 * 4 + 1) + 4 * 2 + 1
    assert ["".join(map(chr, label)) for label in spelled] == LABELS
