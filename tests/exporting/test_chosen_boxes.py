"""Files that choose boxes themselves, by TFLite_Detection_PostProcess: run by LiteRT and TFLM, against `Detection`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from flatbuffers import flexbuffers
from keras import layers, ops

import kquant
from kquant import report
from kquant.exporting import chosen_boxes
from kquant.report.verdict import verdict_of
from kquant.runtime.running import available
from kquant.tflite.box_choice import CODE, KEY, OUTPUTS, without_choice
from kquant.tflite.reader import SCHEMA
from kquant.tflite.small_tables import read_table

SIDE, CLASSES = 4, 3
ROWS = SIDE * SIDE
X = np.random.default_rng(0).random((64, 8, 8, 3), np.float32)
SCALES = (10.0, 8.0, 5.0, 4.0)
RUNTIMES = {"litert": ("litert", "litert-reference"), "tflm": ("tflm",)}


def _anchors(order: str = "yx") -> np.ndarray:
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"), -1).reshape(-1, 2)
    found = np.concatenate([(grid + 0.5) / SIDE, np.tile([0.6, 0.35], (ROWS, 1))], 1)
    return found[:, [1, 0, 3, 2]] if order == "xy" else found


def _heads(x: Any, classes: int, bare: bool = False) -> tuple[Any, Any]:
    boxes, scores = layers.Conv2D(4, 1, name="encode")(x), layers.Conv2D(classes, 1, name="rate")(x)
    if not bare:
        boxes = layers.Reshape((ROWS, 4), name="boxes")(boxes)
        scores = layers.Reshape((ROWS, classes), name="rows")(scores)
    return boxes, layers.Activation("sigmoid", name="scores")(scores)


def _model(classes: int = CLASSES, bare: bool = False, **more: Any) -> keras.Model:
    keras.utils.set_random_seed(1)
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(16, 3, 2, padding="same", activation="relu", name="stem")(image)
    boxes, scores = _heads(x, classes, bare)
    return keras.Model(image, {"boxes": boxes, "scores": scores, **{k: f(x) for k, f in more.items()}}, name="ssd")


def _quantized(model: keras.Model, target: str = "tflm", recipe: Any = "int8") -> keras.Model:
    return kquant.calibrate(kquant.quantize(model, recipe, target=target), X, verbose=False)


@pytest.fixture(scope="module")
def q() -> keras.Model:
    return _quantized(_model())


def _detection(**more: Any) -> kquant.Detection:
    given: dict[str, Any] = {"anchors": _anchors(), "scales": SCALES, "threshold": 0.45, "overlap": 0.3, "limit": 6}
    return kquant.Detection(**{**given, **more})


def _rendered(result: Any) -> str:
    return re.sub(r"\s+", " ", report.render(result))


def _options(content: bytes) -> dict[str, Any]:
    graph = SCHEMA.Model.GetRootAs(content, 0).Subgraphs(0)
    held = graph.Operators(graph.OperatorsLength() - 1).CustomOptionsAsNumpy()
    return flexbuffers.Loads(bytearray(held.tobytes()))


def _same(detection: kquant.Detection, content: bytes, plain: bytes, runtime: str) -> int:
    """Boxes that are compared: what the file chooses, and what `kquant.detect` does of the plain file in integers.

    Corners differ by what integers do (tests/detecting: 0.002 of the image), scores by a rounding of float32. A tie may
    be in another order, and the last ones of a score others, where the limit leaves some out.
    """
    boxes, classes, scores, count = kquant.predict(content, X[:12], runtime)
    many = replace(detection, limit=ROWS * CLASSES, candidates=65_535)
    compared = 0
    for n, wanted in enumerate(kquant.detect(plain, X[:12], many, runtime=runtime)):
        most = int(count[n])
        assert most == min(len(wanted), detection.limit)
        np.testing.assert_allclose(scores[n, :most], wanted.scores[:most], rtol=1e-6)
        left = set(range(len(wanted)))
        for i in range(most):
            kind = int(classes[n, i]) + detection.background
            twins = [k for k in left if wanted.classes[k] == kind and np.isclose(wanted.scores[k], scores[n, i], 1e-6)]
            errors = np.abs(wanted.boxes[twins] - np.clip(boxes[n, i], -1, 2)).max(1)
            assert errors.min() < 2e-3
            left.remove(twins[int(np.argmin(errors))])
        compared += most
    return compared


@pytest.mark.parametrize("recipe", ["int8", "int16x8"])
@pytest.mark.parametrize("by_class", [True, False])
@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_the_file_chooses_what_detection_does(target: str, by_class: bool, recipe: str, tmp_path: Path) -> None:
    if not set(RUNTIMES[target]) <= set(available()):
        pytest.skip("needs pip install 'kquant[micro]' (Linux only)")
    quantized, detection = _quantized(_model(), target, recipe), _detection(by_class=by_class)
    made = kquant.export(quantized, tmp_path / "chooses.tflite", data=X, detection=detection)
    kquant.export(quantized, tmp_path / "plain.tflite", check_runtimes=False)
    content, plain = (tmp_path / "chooses.tflite").read_bytes(), (tmp_path / "plain.tflite").read_bytes()
    assert made.choosing is not None and made.choosing.operators == {"DEQUANTIZE": 2, CODE: 1}
    assert made.choosing.anchor_bytes == 16 * ROWS
    assert [check.runtime for check in made.choosing.checks] == list(RUNTIMES[target])
    assert all(c.samples == 16 and c.boxes > 40 and c.corner_err < 1e-6 for c in made.choosing.checks)
    assert [(p.name, p.type) for p in made.outputs] == [(name, "FLOAT32") for name in OUTPUTS]
    for runtime in RUNTIMES[target]:
        assert _same(detection, content, plain, runtime) > 40
    assert kquant.verify(quantized, content, X).verdict == kquant.verify(quantized, plain, X).verdict


def test_what_the_kernels_read_stands_in_the_options(q: keras.Model, tmp_path: Path) -> None:
    kquant.export(q, tmp_path / "m.tflite", detection=_detection(), check_runtimes=False)
    content = (tmp_path / "m.tflite").read_bytes()
    said, file = _options(content), kquant.inspect(content)
    scale = {t.name: t.scale for t in file.tensors}["scores"]
    # half a step below the first code from 0.45 on: 116 of 256
    assert scale == (1 / 256,) and said.pop("nms_score_threshold") == 115.5 / 256
    assert said == {
        "max_detections": 6,
        "max_classes_per_detection": 1,
        "detections_per_class": 6,
        "use_regular_nms": True,
        "nms_iou_threshold": pytest.approx(0.3),
        "num_classes": CLASSES,
        "y_scale": 10.0,
        "x_scale": 8.0,
        "h_scale": 5.0,
        "w_scale": 4.0,
    }
    assert [t.shape for t in file.outputs] == [(1, 6, 4), (1, 6), (1, 6), (1,)]
    assert dict(file.signatures[0].outputs).keys() == set(OUTPUTS)


@pytest.mark.parametrize("form", ["xy", "background", "bare", "uint8", "lut"])
def test_other_heads_and_edges(form: str, tmp_path: Path) -> None:
    if "tflm" not in available():
        pytest.skip("needs pip install 'kquant[micro]' (Linux only)")
    order = "xy" if form == "xy" else "yx"
    more = {"order": order, "anchors": _anchors(order), "background": form == "background"}
    model = _model(CLASSES + (form == "background"), form == "bare")
    given: dict[str, Any] = {"uint8": {"io": "uint8"}, "lut": {"compression": "lut"}}.get(form, {})
    if form == "lut":
        model = kquant.cluster(model, {"name": "f", "clustering": {"clusters": 4}})
    quantized, detection = _quantized(model), _detection(**more)
    made = kquant.export(quantized, tmp_path / "chooses.tflite", data=X, detection=detection, **given)
    kquant.export(quantized, tmp_path / "plain.tflite", check_runtimes=False)
    content, plain = (tmp_path / "chooses.tflite").read_bytes(), (tmp_path / "plain.tflite").read_bytes()
    assert made.choosing is not None and sum(c.boxes for c in made.choosing.checks) > 40
    assert ("GATHER" in made.choosing.operators) == (form == "xy")
    assert made.inputs[0].type == ("UINT8" if form == "uint8" else "INT8")
    assert (made.decoding is not None) == (form == "lut")
    assert _same(detection, content, plain, "tflm") > 40
    assert kquant.verify(quantized, content, X, "tflm").verdict == "equal"


def test_float_is_said_wherever_a_file_is_told_of(q: keras.Model, tmp_path: Path) -> None:
    made = kquant.export(q, tmp_path / "m.tflite", data=X, detection=_detection())
    text = _rendered(made)
    assert f"every operator integer but {CODE}" in text and f"float32 (DEQUANTIZE x2, {CODE} x1)" in text
    assert f"every operator is integer but {CODE}, which chooses the boxes in float" in verdict_of([made])
    assert f"float: {CODE}" in repr(made) and json.loads(json.dumps(made.to_dict()))["choosing"]["operators"][CODE] == 1
    file = kquant.inspect(tmp_path / "m.tflite")
    assert f"integer but for {CODE}" in repr(file) and not file.is_integer
    assert f"operators, all integer but {CODE}" in _rendered(file) and KEY not in _rendered(file)
    (said,) = file.findings
    assert CODE in said and said.endswith("every other operator is integer.")
    # what is float beside it is no less told of
    foreign = replace(
        file, operators=tuple(replace(op, code="EXP" if op.code == CODE else op.code) for op in file.operators)
    )
    assert "NOT all integer" in repr(foreign)


def test_check_tells_before_training(tmp_path: Path) -> None:
    model = _model()
    found = kquant.check(model, detection=_detection())
    assert "export(detection=...)" in found.boxes and f"{CODE} then, in float32" in found.boxes
    assert found.boxes in _rendered(found) and found.ok
    beside = kquant.check(model, "ethos-u", detection=_detection()).boxes
    assert beside.startswith("boxes are chosen beside the file, in integers: target 'ethos-u' has no ")
    assert kquant.check(model).boxes == ""
    corners = kquant.check(model, detection=kquant.Detection(form="corners")).boxes
    assert "'offsets' alone" in corners


class Inside(keras.Model):
    """A subclassed model, which tells of no outputs."""

    def __init__(self, inner: keras.Model) -> None:
        super().__init__()
        self.inner = inner

    def call(self, x: Any) -> Any:
        return self.inner(x)


def test_a_subclassed_detector(tmp_path: Path) -> None:
    inner = _model()
    model, head = Inside(inner), _detection()
    model(X[:1])
    for one, other in zip(kquant.detect(model, X[:4], head), kquant.detect(inner, X[:4], head), strict=True):
        assert np.array_equal(one.boxes, other.boxes) and np.array_equal(one.classes, other.classes)
    assert "export(detection=...)" in kquant.check(model, detection=head).boxes
    made = kquant.compress(model, X, path=tmp_path / "m.tflite", target="tflm", detection=head, verbose=False)
    assert made.report.choosing is not None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "corners": ({"form": "corners", "anchors": None}, "decodes the form 'offsets' alone, .* not 'corners'. Leave"),
    "overlap": ({"overlap": 0.0}, "an overlap above 0. Give Detection a small one, overlap=1e-3"),
    "objectness": ({"objectness": "sure"}, "no objectness. Multiply them in the model"),
    "threshold": ({"threshold": 1.5}, "lies above all that output 'scores' can give"),
    "anchors": ({"anchors": _anchors()[:5]}, "Make an anchor for each of the 16 rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_heads_that_it_cannot_express_are_refused(name: str, q: keras.Model, tmp_path: Path) -> None:
    changed, said = REFUSED[name]
    if name == "objectness":
        q = _quantized(_model(sure=lambda x: ops.sigmoid(layers.Reshape((ROWS, 1))(layers.Conv2D(1, 1)(x)))))
    with pytest.raises(ValueError, match=said):
        kquant.export(q, tmp_path / "m.tflite", detection=_detection(**changed))
    assert not list(tmp_path.iterdir())


def test_remedies_for_what_is_refused(q: keras.Model, tmp_path: Path) -> None:
    # an overlap of nearly nothing
    made = kquant.export(q, tmp_path / "a.tflite", detection=_detection(overlap=1e-3), check_runtimes=False)
    assert made.choosing is not None
    # landmarks beside the boxes: a model without them
    extra = _model(landmarks=lambda x: layers.Conv2D(10, 1)(x))
    with pytest.raises(ValueError, match="the model has 3 outputs. Export a model of boxes and scores"):
        kquant.export(_quantized(extra), tmp_path / "b.tflite", detection=_detection())
    fewer = keras.Model(extra.input, {key: extra.output[key] for key in ("boxes", "scores")})
    assert kquant.export(_quantized(fewer), tmp_path / "b.tflite", data=X, detection=_detection()).choosing is not None
    # side by side in one output: two of it
    image = keras.Input((8, 8, 3))
    joined = layers.Reshape((ROWS, 4 + CLASSES), name="out")(
        layers.Conv2D(4 + CLASSES, 1)(layers.AveragePooling2D(2)(image))
    )
    one = _detection(boxes="out", scores="out")
    with pytest.raises(ValueError, match="two tensors, and here one output has both. Give the model two"):
        kquant.export(_quantized(keras.Model(image, {"out": joined})), tmp_path / "c.tflite", detection=one)
    two = keras.Model(image, {"boxes": joined[..., :4], "scores": joined[..., 4:]})
    low = _detection(threshold=0.0)
    assert kquant.export(_quantized(two), tmp_path / "c.tflite", data=X, detection=low).choosing is not None


def test_what_does_not_go_together(q: keras.Model, tmp_path: Path) -> None:
    head: Any = _detection()
    with pytest.raises(ValueError, match="which strip_names cannot follow. Leave it out, or detection"):
        kquant.export(q, tmp_path / "m.tflite", detection=head, strip_names=True)
    with pytest.raises(ValueError, match="which streaming cannot follow"):
        kquant.export(q, tmp_path / "m.tflite", detection=head, streaming=True)
    with pytest.raises(ValueError, match="which test cannot follow"):
        kquant.export(q, tmp_path / "m.tflite", detection=head, test=(X, np.zeros(64)))
    with pytest.raises(TypeError, match="Detection"):
        kquant.export(q, tmp_path / "m.tflite", detection={"limit": 3})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leave detection out, and give it to kquant.export"):
        kquant.compress(_model(), X, path=tmp_path / "m.tflite", flash_bytes=10**6, detection=head, verbose=False)
    with pytest.raises(ValueError, match="compress: this file cannot choose its boxes itself: .* 'offsets' alone"):
        kquant.compress(_model(), lambda: 1 / 0, path=tmp_path / "m.tflite", detection=kquant.Detection(form="corners"))
    with pytest.raises(ValueError, match="Make an anchor for each of the 16 rows"):
        kquant.compress(
            _model(), lambda: 1 / 0, path=tmp_path / "m.tflite", detection=_detection(anchors=_anchors()[1:])
        )
    vela = _quantized(_model(), "ethos-u")
    with pytest.raises(
        ValueError, match="target 'ethos-u' has no TFLite_Detection_PostProcess; cmsis-nn, .*litert.* have"
    ):
        kquant.export(vela, tmp_path / "m.tflite", detection=head)
    floats = _quantized(_model(), "litert", "weight-only-int8")
    with pytest.raises(ValueError, match="leaves outputs float, and boxes are chosen from codes"):
        kquant.export(floats, tmp_path / "m.tflite", detection=head)
    assert not list(tmp_path.iterdir())


def test_a_file_that_chooses_otherwise_is_not_written(
    q: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = chosen_boxes.choice_of
    for wrong in ({"limit": 5}, {"overlap": 0.9}, {"threshold": 0.99}, {"scales": (10.0, 8.0, 4.0, 5.0)}):
        monkeypatch.setattr(chosen_boxes, "choice_of", lambda *given, w=wrong: replace(real(*given), **w))
        with pytest.raises(ValueError, match="the file chooses other boxes than kquant.Detection"):
            kquant.export(q, tmp_path / "m.tflite", data=X, detection=_detection())
    assert not list(tmp_path.iterdir())


def test_samples_in_which_float32_decides_are_left_out_and_counted(
    q: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # half of one box in another of its size is a third of what both cover
    others = np.array([[0.5, 0, 1.5, 1], [2.0, 2, 3, 3], [0.0, 0, 1, 1]])
    np.testing.assert_allclose(chosen_boxes._overlap(np.array([0.0, 0, 1, 1]), others), [1 / 3, 0, 1])
    real = chosen_boxes.choice_of
    # a file that chooses otherwise, and a limit that every overlap is near to
    monkeypatch.setattr(chosen_boxes, "choice_of", lambda *given: replace(real(*given), overlap=0.9))
    monkeypatch.setattr(chosen_boxes, "NEAR", 1.0)
    made = kquant.export(q, tmp_path / "m.tflite", data=X, detection=_detection())
    assert made.choosing is not None and made.choosing.checks[0].undecided > 0
    assert made.choosing.checks[0].samples == 16 - made.choosing.checks[0].undecided
    assert "left out, where float32 decides on an overlap" in _rendered(made)


def test_tools_of_phones_find_boxes_and_names(q: keras.Model, tmp_path: Path) -> None:
    about = kquant.About(labels=["cat", "dog", "cow"], image=True)
    kquant.export(q, tmp_path / "m.tflite", data=X, io="uint8", detection=_detection(), about=about)
    content = (tmp_path / "m.tflite").read_bytes()
    said = kquant.inspect(content).about
    assert said is not None
    # the names that MediaPipe and the Task Library look for, and the order of the operator
    assert [t.name for t in said.outputs] == ["location", "category", "score", "number of detections"]
    assert [t.labels for t in said.outputs] == [(), ("cat", "dog", "cow"), (), ()]
    file = SCHEMA.Model.GetRootAs(content, 0)
    entries = {file.Metadata(n).Name(): file.Metadata(n).Buffer() for n in range(file.MetadataLength())}
    root = read_table(file.Buffers(entries[b"TFLITE_METADATA"]).DataAsNumpy().tobytes(), b"M001")
    # metadata_schema.fbs: SubGraphMetadata.output_tensor_metadata, TensorMetadata.content, BoundingBoxProperties
    (graph,) = root.tables(3)
    content_of = graph.tables(3)[0].table(3)
    assert content_of is not None and content_of.byte(0) == 3
    shape = content_of.table(1)
    # BOUNDARIES: where left, top, right and bottom stand
    assert shape is not None and shape.byte(1) == 1
    assert np.array(shape.floats(0), np.float32).view(np.uint32).tolist() == [1, 0, 3, 2]
    with pytest.raises(ValueError, match="2 labels for boxes of 3 classes; give one for each, and none for the backg"):
        kquant.export(q, tmp_path / "n.tflite", detection=_detection(), about=kquant.About(labels=["a", "b"]))


def test_what_reads_raw_outputs_says_so(q: keras.Model, tmp_path: Path) -> None:
    kquant.export(q, tmp_path / "m.tflite", detection=_detection(), check_runtimes=False)
    with pytest.raises(ValueError, match="m.tflite.*: this file chooses boxes itself.*kquant.predict gives them"):
        kquant.detect(tmp_path / "m.tflite", X[:1], _detection())
    with pytest.raises(ValueError, match="another tool has changed it. Export the model again"):
        without_choice((tmp_path / "m.tflite").read_bytes(), {"outputs": ["nothing"], "operators": 3})
    for said in (None, [], {"outputs": 3, "operators": 3}, {"outputs": ["boxes"], "operators": 300}):
        with pytest.raises(ValueError, match="its metadata tell of"):
            without_choice((tmp_path / "m.tflite").read_bytes(), said)
    assert kquant.inspect(tmp_path / "m.tflite").metadata[KEY] == {
        "classes": 3,
        "operators": 3,
        "outputs": ["boxes", "scores"],
    }


def test_a_saved_model_gives_the_same_file_in_a_new_process(q: keras.Model, tmp_path: Path) -> None:
    kquant.export(q, tmp_path / "here.tflite", detection=_detection(), check_runtimes=False)
    q.save(tmp_path / "q.keras")
    np.save(tmp_path / "anchors.npy", _anchors())
    script = (
        "import keras, kquant, numpy as np, sys\n"
        "folder = sys.argv[1]\n"
        "q = keras.models.load_model(folder + '/q.keras')\n"
        "head = kquant.Detection(anchors=np.load(folder + '/anchors.npy'), scales=(10, 8, 5, 4), threshold=0.45,\n"
        "                        overlap=0.3, limit=6)\n"
        "kquant.export(q, folder + '/there.tflite', detection=head, check_runtimes=False)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True)
    assert (tmp_path / "there.tflite").read_bytes() == (tmp_path / "here.tflite").read_bytes()


def test_the_command_writes_such_a_file(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from kquant.app.cli import app

    _model().save(tmp_path / "ssd.keras")
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "anchors.npy", _anchors())
    (tmp_path / "head.toml").write_text('anchors = "anchors.npy"\nscales = [10, 8, 5, 4]\nthreshold = 0.45\n')
    given = [str(tmp_path / "ssd.keras"), "--data", str(tmp_path / "x.npy"), "--detection", str(tmp_path / "head.toml")]
    made = CliRunner().invoke(app, ["compress", *given, "--folder", str(tmp_path / "build"), "--target", "tflm"])
    assert made.exit_code == 0, made.output
    assert f"every operator integer but {CODE}" in re.sub(r"\s+", " ", made.output)
    assert kquant.inspect(tmp_path / "build" / "ssd.tflite").operator_counts[CODE] == 1
    (tmp_path / "y.npy").write_bytes((tmp_path / "x.npy").read_bytes())
    labelled = CliRunner().invoke(
        app, ["compress", *given, "--folder", str(tmp_path / "other"), "--labels", str(tmp_path / "y.npy")]
    )
    assert labelled.exit_code != 0 and not (tmp_path / "other").exists()
