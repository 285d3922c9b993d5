"""Boxes from the outputs of a detector: against float64, TensorFlow's suppression, and the C that a project gets."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import kquant
from kquant.detecting.choice import chosen
from kquant.detecting.decoding import HIGH, LOW, ONE, decoder, real_corners
from kquant.detecting.outputs import grids_of, of_codes
from kquant.projects.boxes import boxes_of
from kquant.projects.golden import Golden
from kquant.projects.rendering import templates
from kquant.runtime.running import available
from kquant.tflite.reader import FileTensor

WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")
FORMS = ("offsets", "distances", "corners", "centres", "sigmoid", "squares", "distribution")
BINS = 8
SIDE, CLASSES = 6, 3
ROWS = SIDE * SIDE


def _anchors(rng: np.random.Generator, rows: int = ROWS) -> np.ndarray:
    return np.concatenate([rng.uniform(0, 1, (rows, 2)), rng.uniform(0.05, 1.2, (rows, 2))], 1)


def _detection(form: str, rng: np.random.Generator, **more: Any) -> kquant.Detection:
    given: dict[str, Any] = {"form": form, "scales": (10.0, 10.0, 5.0, 5.0)}
    if form not in ("corners", "centres"):
        given["anchors"] = _anchors(rng)
    if form in ("sigmoid", "squares"):
        given |= {"cells": rng.uniform(0.05, 0.2, (ROWS, 2)), "scales": (1.0,) * 4}
    if form == "distribution":
        given |= {"bins": BINS, "scales": (1.0,) * 4}
        given["anchors"][:, 2:] /= 4
    return kquant.Detection(**{**given, **more})


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("order", ["yx", "xy"])
@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_integers_give_the_corners_of_float64(form: str, order: str, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    detection = _detection(form, rng, order=order)
    scale, zero = rng.uniform(0.02, 0.08) / 2 ** (bits - 8), int(rng.integers(-100, 100))
    if form == "squares":  # behind a sigmoid
        scale, zero = 1 / 2**bits, -(2 ** (bits - 1))
    codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (ROWS, detection.box_numbers))
    got = decoder(detection, scale, zero, bits).corners(codes) / 2**ONE
    wanted = real_corners(detection, scale * (codes - zero))
    # half a step of a table and of an anchor, times sizes of up to 1.2 * e^3 images; 16 bits interpolate
    assert np.max(np.abs(got - wanted)) < 2e-3


def test_heads_of_yolo_are_decoded_as_published() -> None:
    # ultralytics/yolov5, models/yolo.py, Detect: xy = (2 s + grid - 0.5) stride, wh = (2 s)^2 anchor, in pixels
    rng = np.random.default_rng(0)
    stride, side = 8, 48
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(-1, 2)
    sizes, t = rng.uniform(10, 60, (ROWS, 2)), rng.normal(0, 2, (ROWS, 4))
    s = 1 / (1 + np.exp(-t))
    xy, wh = (2 * s[:, :2] + grid - 0.5) * stride, (2 * s[:, 2:]) ** 2 * sizes
    wanted = np.clip(np.concatenate([xy - wh / 2, xy + wh / 2], 1)[:, [1, 0, 3, 2]] / side, -1, 2)
    centres, cells = (grid + 0.5) * stride / side, np.full((ROWS, 2), stride / side)
    given: dict[str, Any] = {"order": "xy", "anchors": np.concatenate([centres, sizes / side], 1), "cells": cells}
    np.testing.assert_allclose(real_corners(kquant.Detection(form="sigmoid", **given), t), wanted, atol=1e-12)
    np.testing.assert_allclose(real_corners(kquant.Detection(form="squares", **given), s), wanted, atol=1e-12)
    # ultralytics, nn/modules/block.py, DFL, and utils/tal.py, dist2bbox: softmax of 16 bins weighs 0..15, in strides
    t = rng.normal(0, 2, (ROWS, 64)).astype(np.float32)
    mean = (tf.nn.softmax(t.reshape(ROWS, 4, 16)).numpy() * np.arange(16)).sum(-1)
    boxes = np.concatenate([grid + 0.5 - mean[:, :2], grid + 0.5 + mean[:, 2:]], 1) * stride / side
    cells = np.concatenate([centres, cells], 1)
    found = real_corners(kquant.Detection(form="distribution", order="xy", anchors=cells), t)
    np.testing.assert_allclose(found, np.clip(boxes[:, [1, 0, 3, 2]], -1, 2), atol=1e-6)


def test_corners_end_where_areas_fit_into_64_bits() -> None:
    detection = kquant.Detection(form="corners")
    made = decoder(detection, 1.0, 0, 8).corners(np.array([[-128, -1, 2, 127]]))
    assert made.tolist() == [[LOW, LOW, HIGH, HIGH]]
    assert 4 * (HIGH - LOW) ** 2 * 2**16 < 2**63


@pytest.mark.parametrize("by_class", [True, False])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_what_is_left_is_what_tensorflow_leaves(by_class: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    detection = kquant.Detection(
        form="corners", threshold=0.3, overlap=0.4, limit=50, candidates=1000, by_class=by_class
    )
    corners = np.sort(rng.uniform(0, 1, (40, 2, 2)), axis=1).reshape(40, 4)
    scores = rng.uniform(0, 1, (40, CLASSES))
    rows, classes = chosen(detection, corners, scores, detection.threshold)
    wanted = set()
    for label in range(CLASSES) if by_class else [None]:
        of = scores.max(1) if label is None else scores[:, label]
        kept = tf.image.non_max_suppression(corners, of, 50, detection.overlap, detection.threshold).numpy()
        wanted |= {(int(r), int(scores[r].argmax()) if label is None else label) for r in kept}
    found = list(zip(rows.tolist(), classes.tolist(), strict=True))
    assert set(found) == wanted or len(wanted) > detection.limit
    values = [scores[r, c] for r, c in found]
    assert values == sorted(values, reverse=True)


def test_ties_go_to_the_lower_row_and_then_the_lower_class() -> None:
    detection = kquant.Detection(form="corners", limit=4, candidates=4)
    corners = np.array([[0, 0, 9, 9], [20, 20, 29, 29], [40, 40, 49, 49]]) << 8
    rows, classes = chosen(detection, corners, np.full((3, 2), 7), 7)
    assert list(zip(rows.tolist(), classes.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def _tensor(name: str, shape: tuple[int, ...], dtype: str, scale: float, zero: int) -> FileTensor:
    return FileTensor(0, name, (1, *shape), dtype.upper(), (scale,), (zero,), 0, 0)


def _program(detection: kquant.Detection, named: dict[str, FileTensor], golden: Golden, folder: Path) -> list[str]:
    """What the C of a project finds in golden outputs, one line a box."""
    made, outputs = boxes_of(detection, named, golden), list(named.values())
    ports = [SimpleNamespace(name=t.name, type=f"{t.dtype}_t") for t in outputs]
    about = SimpleNamespace(id="net", guard="NET", outputs=ports, detection=made)
    for name in ("detect.h", "detect.c"):
        (folder / name).write_text(templates().get_template(f"{name}.jinja").render(about=about))
    for i, array in enumerate(golden.outputs):
        array.tofile(folder / f"{i}.bin")
    numbers = [read.output for read in made.read]
    arrays = "\n".join(f"  static {ports[i].type} out{i}[{golden.outputs[i][0].size}];" for i in numbers)
    files = "\n".join(f'  FILE* in{i} = fopen("{i}.bin", "rb");' for i in numbers)
    read = " && ".join(f"fread(out{i}, sizeof(out{i}), 1, in{i}) == 1" for i in numbers)
    (folder / "main.c").write_text(f"""
#include <stdio.h>
#include "detect.h"
int main(void) {{
{arrays}
{files}
  while ({read}) {{
    net_box found[NET_BOXES_MOST];
    const size_t count = net_detect({"".join(f"out{i}, " for i in numbers)}found);
    for (size_t i = 0; i < count; ++i) {{
      printf("%d %d %d %d %d %d %d %.5f\\n", found[i].top, found[i].left, found[i].bottom, found[i].right,
             found[i].score, found[i].label, found[i].row, (double)net_score(&found[i]));
    }}
    printf("-\\n");
  }}
  return 0;
}}
""")
    command = ["gcc", "-std=c11", "-O2", "-fsanitize=undefined", *WARNINGS, "detect.c", "main.c", "-o", "detect"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["./detect"], cwd=folder, capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr
    return done.stdout.split("-\n")[:-1]


# outputs that share columns, as names of `Detection`: widths of the outputs
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "apart": ({}, {"boxes": 4, "scores": CLASSES}),
    "objectness apart (YOLOX)": ({"objectness": "sure"}, {"boxes": 4, "sure": 1, "scores": CLASSES}),
    "one output (YOLOv8)": ({"boxes": "out", "scores": "out"}, {"out": 4 + CLASSES}),
    "one output with objectness (YOLOv5)": (
        {"boxes": "out", "objectness": "out", "scores": "out"},
        {"out": 5 + CLASSES},
    ),
    "objectness before the scores": ({"objectness": "scores"}, {"boxes": 4, "scores": 1 + CLASSES}),
    "one output, boxes as distributions": ({"boxes": "out", "scores": "out"}, {"out": 4 * BINS + CLASSES}),
}


# every form with outputs of their own; what is shared has nothing to do with the form
CASES = [("apart", form) for form in FORMS] + list(zip(list(LAYOUTS)[1:], (*FORMS[:4], FORMS[-1]), strict=True))


@pytest.mark.parametrize(("layout", "form"), CASES)
@pytest.mark.parametrize("dtype", ["int8", "int16"])
@pytest.mark.parametrize("by_class", [True, False])
def test_the_c_of_a_project_finds_the_same_boxes(
    layout: str, form: str, dtype: str, by_class: bool, tmp_path: Path
) -> None:
    names, widths = LAYOUTS[layout]
    rng = np.random.default_rng(len(form) + by_class + len(layout))
    order = "yx" if by_class else "xy"
    detection = _detection(
        form,
        rng,
        order=order,
        by_class=by_class,
        threshold=0.2,
        limit=7,
        candidates=20,
        background=not by_class,
        **names,
    )
    info = np.iinfo(dtype)
    fine = 256 if dtype == "int16" else 1
    zero = 3 if dtype == "int8" else 0  # codes of 16 bits have zero point 0
    if layout == "apart" and form == "distribution":
        widths = widths | {"boxes": 4 * BINS}
    outputs = {
        n: _tensor(n, (ROWS, w), dtype, (0.05 if n in ("boxes", "out") else 1 / 100) / fine, zero)
        for n, w in widths.items()
    }
    codes = [rng.integers(info.min, info.max + 1, (12, ROWS, w)).astype(dtype) for w in widths.values()]
    codes[-1][6:] = codes[-1][6:] // (64 * fine) * (64 * fine)  # many ties
    golden = Golden((np.zeros((12, 1), np.int8),), tuple(codes))
    found = _program(detection, outputs, golden, tmp_path)
    made = boxes_of(detection, outputs, golden)
    said = ["".join(_line(box, made.unit, made.zero) for box in call) for call in made.calls]
    assert found == said
    assert sum(len(call) for call in made.calls) > 30, "hardly any box: the case shows nothing"
    grids = grids_of(detection, outputs, "net")
    for call, boxes in zip(range(12), made.calls, strict=True):
        again = of_codes(detection, grids, [codes[n][call] for n in grids.roles.outputs])
        assert again.rows.tolist() == [box.row for box in boxes]
        real = {
            t.name: t.scale[0] * (c[call].astype(np.float64) - t.zero_point[0])
            for t, c in zip(outputs.values(), codes, strict=True)
        }
        _check_scores(detection, again, real)


def _line(box: Any, unit: float, zero: int) -> str:
    score = np.float32(unit) * np.float32(box.score - zero)
    return f"{' '.join(map(str, vars(box).values()))} {score:.5f}\n"


def _check_scores(detection: kquant.Detection, found: kquant.Found, real: dict[str, np.ndarray]) -> None:
    """Against float64 and the meaning of the columns, written down once more."""
    scores = real[detection.scores][:, -CLASSES:]
    if detection.objectness is not None:
        at = {"sure": 0, "out": 4, "scores": 0}[detection.objectness]
        scores = scores * np.maximum(real[detection.objectness][:, at : at + 1], 0)
    np.testing.assert_allclose(found.scores, scores[found.rows, found.classes], rtol=1e-5, atol=1e-6)
    best = np.sort(scores[:, int(detection.background) :].ravel())[-1]
    assert len(found) == 0 or np.isclose(found.scores[0], best, rtol=1e-5)


def _detector() -> tuple[keras.Model, np.ndarray]:
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 1))
    x = layers.Conv2D(6, 3, 2, padding="same", activation="relu")(image)
    boxes = layers.Reshape((ROWS, 4), name="boxes")(layers.Conv2D(4, 1)(x))
    scores = layers.Reshape((ROWS, CLASSES))(layers.Conv2D(CLASSES, 1)(x))
    outputs = {"boxes": boxes, "scores": layers.Activation("sigmoid", name="scores")(scores)}
    return keras.Model(image, outputs, name="net"), np.random.default_rng(0).random((64, 12, 12, 1), np.float32)


def _grid() -> np.ndarray:
    centres = (np.stack(np.meshgrid(*[np.arange(SIDE)] * 2, indexing="ij"), -1).reshape(-1, 2) + 0.5) / SIDE
    return np.concatenate([centres, np.full((ROWS, 2), 0.3)], 1)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[keras.Model, keras.Model, Path, np.ndarray]:
    model, data = _detector()
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), data, verbose=False)
    path = tmp_path_factory.mktemp("detector") / "net.tflite"
    kquant.export(q, path, data=data[:8])
    return model, q, path, data


def test_model_and_file_find_the_same(detector: tuple[keras.Model, keras.Model, Path, np.ndarray]) -> None:
    _, q, path, data = detector
    detection = kquant.Detection(anchors=_grid(), scales=(10, 10, 5, 5), threshold=0.45, overlap=0.3)
    simulated = kquant.detect(q, data[:8], detection)
    measured = kquant.detect(path, data[:8], detection, runtime="litert-reference")
    assert sum(map(len, simulated)) > 8
    for a, b in zip(simulated, measured, strict=True):
        assert a.rows.tolist() == b.rows.tolist() and a.classes.tolist() == b.classes.tolist()
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)
    assert repr(measured[0]).startswith("Found(class ")


def test_the_float_model_is_read_as_its_outputs_are_named(detector) -> None:
    model, _, _, data = detector
    by_name = kquant.detect(model, data[:4], kquant.Detection(form="centres", threshold=0.1))
    by_number = kquant.detect(model, data[:4], kquant.Detection(boxes=0, scores=1, form="centres", threshold=0.1))
    assert [f.rows.tolist() for f in by_name] == [f.rows.tolist() for f in by_number]


@pytest.mark.skipif("tflm" not in available(), reason="runs on TFLM: pip install 'kquant[micro]' (Linux only)")
def test_a_project_knows_the_boxes_of_its_golden_vectors(detector, tmp_path: Path) -> None:
    _, q, path, data = detector
    detection = kquant.Detection(anchors=_grid(), scales=(10, 10, 5, 5), threshold=0.45, overlap=0.3)
    kquant.bundle(q, tmp_path / "net", data=data, detection=detection, golden=3)
    folder = tmp_path / "net"
    (folder / "said.cc").write_text("""
#include <stdio.h>
#include <string.h>
#include "golden.h"
int main() {
  for (size_t call = 0; call < NET_GOLDEN_CALLS; ++call) {
    net_box found[NET_BOXES_MOST];
    const size_t count = net_detect(static_cast<const int8_t*>(net_golden_outputs[call][0].values),
                                    static_cast<const int8_t*>(net_golden_outputs[call][1].values), found);
    const bool same = count == net_golden_boxes_count[call] &&
                      memcmp(found, net_golden_boxes[call], count * sizeof(found[0])) == 0;
    printf("%d %d\\n", static_cast<int>(count), same);
  }
}
""")
    for source in ("detect.c", "golden.cc", "said.cc"):
        compiler = ["gcc", "-std=c11"] if source.endswith(".c") else ["g++", "-std=c++17"]
        subprocess.run([*compiler, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-c", source], cwd=folder, check=True)
    subprocess.run(["g++", "detect.o", "golden.o", "said.o", "-o", "said"], cwd=folder, check=True)
    said = subprocess.run(["./said"], cwd=folder, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    assert len(said) == 3 and all(line.endswith(" 1") and not line.startswith("0") for line in said), said
    kquant.bundle(q, tmp_path / "named", data=data, detection=detection, golden=1, labels=["cat", "dog", "fox"])
    with pytest.raises(ValueError, match="4 labels for an output of 3 values"):
        kquant.bundle(q, tmp_path / "four", data=data, detection=detection, labels=["cat", "dog", "fox", "owl"])
    with pytest.raises(TypeError, match="detection must be a kquant.Detection. Received: dict"):
        kquant.bundle(q, tmp_path / "plain", data=data, detection={})
    assert "detect.c" in (folder / "CMakeLists.txt").read_text()
    assert "BoxesAreRight" in (folder / "self_test.cc").read_text()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "form": (
        {"form": "corner"},
        "form must be one of offsets, corners, centres, distances, sigmoid, squares, distribution. Received: 'corner'",
    ),
    "no cells": ({"form": "sigmoid", "anchors": np.ones((3, 4))}, r"form 'sigmoid' wants cells, \[rows, 2\]"),
    "cells": ({"form": "corners", "cells": np.ones((3, 2))}, "form 'corners' has no cells; leave them out"),
    "other cells": (
        {"form": "squares", "anchors": np.ones((3, 4)), "cells": np.ones((2, 2))},
        "an anchor is of one cell. Received: 3 anchors, 2 cells",
    ),
    "one bin": ({"form": "distribution", "anchors": np.ones((3, 4)), "bins": 1}, r"bins must lie in 2\.\.64"),
    "scaled distances": (
        {"form": "distribution", "anchors": np.ones((3, 4)), "scales": (2, 2, 2, 2)},
        "form 'distribution' has scales of 1",
    ),
    "no anchors": ({}, "form 'offsets' wants anchors"),
    "anchors": ({"form": "corners", "anchors": np.ones((3, 4))}, "form 'corners' has no anchors"),
    "pixels": ({"anchors": [[10, 10, 30, 30]]}, r"parts of the image.*Received: row 0 is \[10.0, 10.0, 30.0, 30.0\]"),
    "shape": ({"anchors": np.ones((3, 2))}, r"anchors must be numbers \[rows, 4\]. Received: shape \(3, 2\)"),
    "scales": ({"form": "corners", "scales": (1, 1, 0, 1)}, "scales must be four numbers above 0"),
    "limit": ({"form": "corners", "limit": 200}, "limit <= candidates <= 65535"),
    "half a box": ({"form": "corners", "limit": 2.5}, "limit must be 1 or more. Received: 2.5"),
    "a word": ({"form": "corners", "threshold": "high"}, "threshold must be numbers. Received: 'high'"),
    "words": ({"anchors": ["a"]}, "anchors must be numbers"),
    "no number": ({"anchors": [[0.5] * 4, [0.5, np.nan, 1, 1]]}, r"must be finite. Received: row 1 is \[0.5, nan, 1.0"),
    "overlap": ({"form": "corners", "overlap": 2.0}, r"overlap must lie in 0..1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused(case: str) -> None:
    arguments, why = REFUSED[case]
    with pytest.raises(ValueError, match=why):
        kquant.Detection(**arguments)


@pytest.mark.parametrize("name", ["boxes", "scores", "objectness"])
def test_an_output_is_a_name_or_a_number(name: str) -> None:
    with pytest.raises(TypeError, match=f"Detection: {name} is an output's name or number. Received: 1.5"):
        kquant.Detection(form="corners", **{name: 1.5})


def test_outputs_that_do_not_fit_are_refused(detector, tmp_path: Path) -> None:
    model, q, path, data = detector
    with pytest.raises(ValueError, match="net: no output 'score'. Did you mean 'scores'"):
        kquant.detect(model, data, kquant.Detection(form="corners", scores="score"))
    with pytest.raises(ValueError, match=r"boxes \(36, 4\), scores \(36, 3\), 5 anchors"):
        kquant.detect(path, data, kquant.Detection(anchors=_grid()[:5]))
    with pytest.raises(ValueError, match=r"net: .*5 anchors. Make an anchor for each of the 36 rows"):
        kquant.check(model, detection=kquant.Detection(anchors=_grid()[:5]))  # before anyone trains
    assert kquant.check(model, detection=kquant.Detection(anchors=_grid())).ok
    image = keras.Input((None, None, 1))
    cells = [keras.layers.Reshape((-1, n))(keras.layers.Conv2D(n, 3, 2)(image)) for n in (4, 3)]
    whole = keras.Model(image, dict(zip(("boxes", "scores"), cells, strict=True)), name="open")
    assert kquant.check(whole, detection=kquant.Detection(anchors=_grid()), input_shape=(1, 13, 13, 1)).ok
    with pytest.raises(ValueError, match=r"open: .*Make an anchor for each of the 9 rows"):
        kquant.check(whole, detection=kquant.Detection(anchors=_grid()), input_shape=(1, 8, 8, 1))
    with pytest.raises(ValueError, match=r"output 'boxes' has no fixed shape, \(None, 4\).* an input_shape"):
        kquant.check(whole, detection=kquant.Detection(anchors=_grid()))
    with pytest.raises(ValueError, match="no output 7; it has 2: boxes, scores"):
        kquant.detect(path, data, kquant.Detection(form="corners", scores=7))
    with pytest.raises(ValueError, match="the threshold 2 lies above all that output 'scores' can give, 0.996"):
        kquant.detect(path, data, kquant.Detection(form="corners", threshold=2.0))
    with pytest.raises(TypeError, match="detect: detection must be a kquant.Detection. Received: dict"):
        kquant.detect(model, data, {})  # type: ignore[arg-type]
    loudest = keras.Model(model.input, {**model.output, "sure": keras.ops.max(model.output["scores"], axis=(1, 2))})
    with pytest.raises(ValueError, match="output 'sure' is one number a sample; .* Name another for scores"):
        kquant.detect(loudest, data, kquant.Detection(form="corners", scores="sure"))
    kquant.export(q, tmp_path / "float.tflite", data=data[:2], io="float32")
    with pytest.raises(ValueError, match="output 'boxes' is float32; boxes are decoded from int8 or int16 codes"):
        kquant.detect(tmp_path / "float.tflite", data, kquant.Detection(boxes=0, scores=1, form="corners"))
    litert = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    with pytest.raises(ValueError, match="has no code that reads outputs; leave detection out"):
        kquant.bundle(litert, tmp_path / "app", data=data, kind="android", detection=kquant.Detection(form="corners"))
    assert not (tmp_path / "app").exists()


def test_a_head_of_one_output_is_read_as_the_same_head_of_three(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 1))
    x = layers.Conv2D(6, 3, 2, padding="same", activation="relu")(image)
    flat = {name: layers.Reshape((ROWS, n))(layers.Conv2D(n, 1)(x)) for name, n in (("b", 4), ("o", 1), ("s", CLASSES))}
    parts = [layers.Activation("sigmoid", name=name)(t) for name, t in flat.items()]
    three = keras.Model(image, dict(zip(flat, parts, strict=True)), name="three")
    one = keras.Model(image, layers.Concatenate(name="out")(parts), name="one")
    data = np.random.default_rng(0).random((64, 12, 12, 1), np.float32)
    more: dict[str, Any] = {"form": "centres", "threshold": 0.15, "overlap": 0.8}
    apart = kquant.Detection("b", "s", "o", **more)
    joined = kquant.Detection("out", "out", "out", **more)
    for a, b in zip(kquant.detect(three, data[:4], apart), kquant.detect(one, data[:4], joined), strict=True):
        assert len(a) and a.rows.tolist() == b.rows.tolist()
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-6)
    q = kquant.calibrate(kquant.quantize(one, target="tflm"), data, verbose=False)
    path = tmp_path / "one.tflite"
    kquant.export(q, path, data=data[:8])
    measured = kquant.detect(path, data[:8], joined, runtime="litert-reference")
    for a, b in zip(kquant.detect(q, data[:8], joined), measured, strict=True):
        assert a.rows.tolist() == b.rows.tolist() and a.classes.tolist() == b.classes.tolist()
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)
    with pytest.raises(ValueError, match=r"one: boxes with scores \[rows, 4 \+ classes\] and as many anchors"):
        kquant.detect(one, data, kquant.Detection("out", "out", form="offsets", anchors=_grid()[:3]))


def test_the_grids_of_a_file_are_its_own(detector) -> None:
    _, _, path, _ = detector
    file = kquant.inspect(path)
    outputs, grids = file.outputs, grids_of(kquant.Detection(form="corners", threshold=0.5), file.named_outputs, "net")
    assert (
        (grids.lowest - outputs[1].zero_point[0]) * outputs[1].scale[0]
        >= 0.5
        > (grids.lowest - 1 - outputs[1].zero_point[0]) * outputs[1].scale[0]
    )


def test_a_fifth_number_of_a_row_is_read_as_the_message_says() -> None:
    image = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(7, 3, 2, padding="same", activation="sigmoid")(image)
    rows = keras.layers.Reshape((16, 7))(x)
    model = keras.Model(image, {"boxes": rows[..., :5], "scores": rows[..., 5:]})
    with pytest.raises(ValueError, match=r"boxes \(16, 5\).*out\[\.\.\., :4\].*objectness='boxes' where a fifth"):
        kquant.check(model, detection=kquant.Detection(form="centres"))
    assert kquant.check(model, detection=kquant.Detection(form="centres", objectness="boxes")).ok
    with pytest.raises(ValueError, match=r"wants anchors, \[rows, 4\]; forms 'corners' and 'centres' have none"):
        kquant.Detection()
