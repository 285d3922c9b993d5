"""The metrics and data of benchmarks/zoo/trained, against what others count and by hand."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

import kquant
from benchmarks.zoo.trained import TASKS, detector, faces, metrics, segmenters, speech, table
from benchmarks.zoo.trained.measure import FLOAT
from benchmarks.zoo.trained.scenes import overlaps, scenes
from kquant.detecting.decoding import real_corners

# seed -> precision by threshold of `_detections`, by pycocotools 2.0.11 (COCOeval, area "all", 100 detections)
PYCOCOTOOLS = {
    0: (0.574892, 0.560878, 0.515327, 0.484658, 0.380439, 0.278596, 0.204233, 0.096371, 0.027354, 0.001603),
    3: (0.571801, 0.566214, 0.506508, 0.500781, 0.470944, 0.407475, 0.254831, 0.182745, 0.05018, 0.00445),
}

FIRST_MEAN = 126.01242  # of three scenes of 64 x 64


def _detections(seed: int) -> tuple[list, list]:
    """Thirty images with up to four boxes of three classes, found once or twice, moved, with ties and false ones."""
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(30):
        k = rng.integers(1, 5)
        corner, size = rng.integers(0, 60, (k, 2)), rng.integers(10, 40, (k, 2))
        boxes = np.concatenate([corner, corner + size], 1).astype(float)
        labels = rng.integers(0, 3, k)
        seen = [
            (
                boxes[i] + np.array([0, 0, 1, 1]) + rng.integers(-far, far + 1, 4),
                labels[i] if rng.random() < 0.8 else rng.integers(0, 3),
            )
            for i in range(k)
            for far in (1, 4)
            if rng.random() < 0.7
        ]
        seen += [(np.array([5.0, 5, 30, 30]), 0)]
        found.append(
            (np.stack([b for b, _ in seen]), np.round(rng.random(len(seen)), 2), np.array([c for _, c in seen]))
        )
        truth.append((boxes, labels))
    return found, truth


@pytest.mark.parametrize("seed", PYCOCOTOOLS)
def test_average_precision_is_that_of_pycocotools(seed: int) -> None:
    np.testing.assert_allclose(metrics.average_precision(*_detections(seed)), PYCOCOTOOLS[seed], atol=6e-7)


def test_average_precision_by_hand() -> None:
    box, other, far = [0.0, 0, 10, 10], [20.0, 20, 30, 30], [50.0, 50, 60, 60]
    truth = [(np.float64([box, other]), np.array([0, 0]))]
    found = [(np.float64([box, far, other]), np.array([0.9, 0.8, 0.7]), np.array([0, 0, 0]))]
    # precision 1 up to a recall of a half (51 of 101 recalls), then two of three
    np.testing.assert_allclose(metrics.average_precision(found, truth), np.full(10, (51 + 50 * 2 / 3) / 101))
    # the same box twice is right once
    twice = [(np.float64([box, box]), np.array([0.9, 0.8]), np.array([0, 0]))]
    np.testing.assert_allclose(metrics.average_precision(twice, truth), np.full(10, 51 / 101))


def test_overlaps_of_boxes_and_masks_by_hand() -> None:
    a = np.float64([[0, 0, 2, 2]])
    np.testing.assert_allclose(overlaps(a, np.float64([[1, 1, 3, 3], [0, 0, 2, 2], [5, 5, 6, 6]])), [[1 / 7, 1, 0]])
    truth, masks = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 1]])
    assert metrics.mean_overlap(masks, truth, 2) == pytest.approx((1 / 2 + 2 / 3) / 2)
    found = [(np.float64([[0, 0, 2, 1.5], [0, 0, 2, 2]]), np.array([0.9, 0.8]), np.array([1, 0]))]
    assert metrics.matched_overlap(found, [(a, np.array([1]))]) == pytest.approx(0.75)


def test_labels_are_read_greedily_and_counted() -> None:
    assert metrics.greedy(np.eye(3)[[1, 1, 0, 1, 2, 2, 0]], blank=0) == [1, 1, 2]
    assert metrics.label_errors([[1, 2, 3], []], [[1, 3], [4, 4]]) == 3 / 4


def test_scenes_are_the_same_for_everybody() -> None:
    first, again, judging = scenes(3, 64), scenes(3, 64), scenes(3, 64, judging=True)
    np.testing.assert_array_equal(first.images, again.images)
    assert not np.array_equal(first.images, judging.images)
    assert first.images.mean() == pytest.approx(FIRST_MEAN, abs=1e-3)
    for boxes, classes, mask in zip(first.boxes, first.classes, first.masks, strict=True):
        for (top, left, bottom, right), c in zip(np.rint(boxes * 64).astype(int), classes, strict=True):
            assert (mask[top:bottom, left:right] == c + 1).any()
        assert {int(v) for v in np.unique(mask)} <= {0, *(classes + 1).tolist()}


def test_the_targets_of_anchors_are_decoded_to_the_true_boxes() -> None:
    made = scenes(4, detector.SIDE)
    numbers = detector.targets(made)
    for boxes, row in zip(made.boxes, numbers["boxes"], strict=True):
        corners = real_corners(detector.DETECTION, row[:, :4])
        best = overlaps(boxes, corners[row[:, 4] > 0])
        np.testing.assert_allclose(best.max(axis=1), 1.0, atol=1e-5)


def test_a_score_that_sank_to_nothing_still_learns() -> None:
    true = np.zeros((1, 1, 11), np.float32)
    true[..., 3] = true[..., 10] = 1.0  # class 3, and it counts
    low, higher = np.full((1, 1, 10), 1e-6, np.float32), np.full((1, 1, 10), 1e-6, np.float32)
    higher[..., 3] = 5e-4
    assert float(detector.score_loss(true, higher)) < float(detector.score_loss(true, low)) - 0.01


def test_the_loss_of_labels_falls_towards_the_right_ones() -> None:
    true = np.int32([[3, 0]])
    right = np.full((1, 6, 11), 1e-3, np.float32)
    right[0, :3, 0], right[0, 3, 3], right[0, 4:, 0] = 0.99, 0.99, 0.99
    assert float(speech.loss(true, right)) < 0.2 < float(speech.loss(true, np.roll(right, 1, axis=2)))


def test_data_that_are_not_here_are_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KQUANT_TEXTS", raising=False)
    monkeypatch.delenv("KQUANT_FACES", raising=False)
    monkeypatch.setattr(speech, "FOLDER", tmp_path)
    for name, remedy in (("text_transformer", "pip download"), ("mtcnn", ""), ("deepspeech2", "set KQUANT_ASSETS")):
        assert remedy in (TASKS[name].missing() or ""), name
        assert TASKS[name].missing(), name
    assert TASKS["ssdlite"].missing() is None  # its data come with scikit-learn


def test_a_row_of_this_run_stands_under_the_heads_of_those_that_were_read() -> None:
    read, fresh = {"IoU": 0.5, "mAP": 0.25}, {"mAP": 0.2, "IoU": 0.5}
    rows = {
        f"ssdlite/{FLOAT}": {"figures": read, "weights": 1},
        "ssdlite/int8": {"figures": fresh, "bytes": 1, "equal": 1.0, "integer": True, "seconds": 1.0},
    }
    assert "| int8 | 50.00 % | 20.00 % | 0.00, 20.00 % |" in table.tables(rows)


def test_the_page_tells_the_figures_that_were_measured() -> None:
    rows = table.load()
    assert {key.split("/")[0] for key in rows} <= set(TASKS)
    assert table.tables(rows) in table.table.PAGE.read_text()
    for key, row in rows.items():
        assert key.endswith(f"/{FLOAT}") or (row["equal"] == 1.0 and row["integer"]), key


def test_faces_of_a_wall_are_where_it_says() -> None:
    pictures = np.random.default_rng(0).random((4, 5, 5))
    made = faces.wall(pictures, 15)
    assert made.corners.tolist() == [[5, 5], [25, 5], [5, 25], [25, 25]]
    x, y = made.corners[1].astype(int)
    centre = made.image[y + 7, x + 7, 0] / 255
    assert abs(centre - pictures[1, 2, 2] / pictures.max()) < 0.01  # of three pixels the middle one is the old one
    assert set(made.image[:5].ravel()) == {110}


def test_a_mirrored_face_has_its_left_eye_on_the_left() -> None:
    place = np.array([0.1, 0.2, 0.7, 0.9, 0.3, 0.4, 0.6, 0.41, 0.5, 0.5, 0.35, 0.7, 0.62, 0.71])
    wanted = [0.3, 0.2, 0.9, 0.9, 0.4, 0.41, 0.7, 0.4, 0.5, 0.5, 0.38, 0.71, 0.65, 0.7]
    np.testing.assert_allclose(faces.mirrored(place), wanted)


def test_a_net_of_another_size_keeps_corrected_weights() -> None:
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 3))
    shared = keras.layers.Conv2D(4, 3, activation="relu")(image)
    net = keras.Model(image, [keras.layers.Conv2D(n, 3)(shared) for n in (4, 2)])
    x = np.random.default_rng(0).random((128, 8, 8, 3), np.float32)
    q = kquant.calibrate(kquant.quantize(net, input_shape=(None, 8, 8, 3)), x, verbose=False)
    plain = q.predict(x, verbose=0)
    kquant.adaround(q, x, iterations=200, verbose=False)
    wanted = q.predict(x, verbose=0)
    assert np.any(plain[0] != wanted[0]), "no rounding has changed: the test shows nothing"
    given = faces.FileNet(net, q, {"name": "a"})
    for found, of_q in zip(given(x), wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(found), of_q)
    assert [tuple(y.shape) for y in given(np.zeros((1, 10, 12, 3), np.float32))] == [(1, 6, 8, 4), (1, 6, 8, 2)]


def test_a_pixel_without_a_digit_weighs_a_tenth() -> None:
    true = np.int64([[[0, 3]]])
    found = np.float32([[[[0.5, 0.2, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]]]])
    wanted = -(0.1 * np.log(0.5) + np.log(0.25)) / 1.1
    np.testing.assert_allclose(float(segmenters.loss(true, found)), wanted, rtol=1e-3)  # beside what keeps 0 learning
