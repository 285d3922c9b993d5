"""MTCNN with its own weights, in its own package's cascade: faces and landmarks of the files.

The package `mtcnn` (1.0.0, with `lz4`) has the weights and all between the nets: pyramid, patches, choice of boxes. Its
three models are quantized as they are, subclasses with open sizes, and put back as files.

64 of the 100 small faces of `scikit-image`, side by side on a wall, and its photos calibrate. The other 36 judge, on
walls of three sizes, each mirrored: a face is where the float cascade finds the middle one of the 64, so that float has
a figure, too. scikit-image's astronaut and images that KQUANT_FACES names, those of the package's repository, tell how
far boxes lie from those of the float nets.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kquant
from benchmarks.zoo.trained.measure import CALIBRATION, FLOAT, WAYS, Way, recipe_of
from benchmarks.zoo.trained.scenes import overlaps
from benchmarks.zoo.trained.task import Task

WINDOW = 64  # side of what calibrates the first net, which slides over images of any size
SIZES = (1.0, 0.6)  # of the images that judge, each mirrored too
PICTURES = ("coffee", "chelsea", "rocket")  # the astronaut judges
FACES, CALIBRATING, FACES_IN_ROW, ENLARGED = 100, 64, 8, 4  # of `lfw_subset`, 25 x 25
WALLS, GAP, GREY = (40, 60, 90), 1 / 3, 110.0  # sides of faces, what lies between in parts of them, its brightness


def missing() -> str | None:
    """Why there is no row."""
    for package in ("mtcnn", "lz4", "skimage"):
        if importlib.util.find_spec(package) is None:
            return f"no package '{package}': pip install 'kquant[zoo]'"
    if not os.environ.get("KQUANT_FACES"):
        return "no images of faces: set KQUANT_FACES to a folder with some, such as tests/images of ipazc/mtcnn"
    return None


def calibrating() -> list[np.ndarray]:
    """Images uint8 `[h, w, 3]` of scikit-image, and a wall of 64 small grey faces."""
    from skimage import data as images

    faces = small_faces()[:CALIBRATING]
    side = faces.shape[1]
    wall = faces.reshape(FACES_IN_ROW, FACES_IN_ROW, side, side).swapaxes(1, 2).reshape(FACES_IN_ROW * side, -1)
    wall = np.uint8(255 * wall.repeat(ENLARGED, 0).repeat(ENLARGED, 1) / wall.max())
    return [*(getattr(images, name)()[..., :3] for name in PICTURES), np.stack([wall] * 3, -1)]


def small_faces() -> np.ndarray:
    """float `[100, 25, 25]`, grey."""
    from skimage import data as images

    return np.asarray(images.lfw_subset()[:FACES])


@dataclass(frozen=True, eq=False)
class Wall:
    """Small faces side by side.

    Attributes:
        image: uint8 `[h, w, 3]`.
        corners: float64 `[faces, 2]`, left and top.
        side: of a face.
    """

    image: np.ndarray
    corners: np.ndarray
    side: int


def wall(faces: np.ndarray, side: int) -> Wall:
    """With a gap around each face."""
    gap, columns = round(GAP * side), round(len(faces) ** 0.5)
    step = side + gap
    image = np.full((step * -(-len(faces) // columns) + gap, step * columns + gap), GREY, np.float32)
    corners = np.float64([divmod(n, columns)[::-1] for n in range(len(faces))]) * step + gap
    larger = np.asarray(keras.ops.image.resize(np.float32(faces)[..., None], (side, side), interpolation="bicubic"))
    for (x, y), face in zip(corners.astype(int), larger[..., 0], strict=True):
        image[y : y + side, x : x + side] = 255 * face / faces.max()
    whole = np.uint8(np.clip(np.rint(image), 0, 255))
    return Wall(np.stack([whole] * 3, -1), corners, side)


def where(cascade: Any) -> np.ndarray:
    """float64 `[14]`: box and points of a face in parts of its picture, the middle of what is found in those that
    calibrate.
    """
    made = wall(small_faces()[:CALIBRATING], WALLS[1])
    found = _faces(cascade, made.image)
    centres = (found[:, :2] + found[:, 2:4]) / 2
    inside = centres[:, None] - made.corners[None]
    at = np.argwhere(np.all((inside >= 0) & (inside < made.side), axis=2))
    rows = [(found[k] - np.tile(made.corners[n], 7)) / made.side for k, n in at]
    return np.median(rows, axis=0)


def mirrored(place: np.ndarray) -> np.ndarray:
    """Left and right eye, and corners of the mouth, change places with the edges."""
    points = place.reshape(7, 2)[[1, 0, 3, 2, 4, 6, 5]] * [-1, 1] + [1, 0]
    points[:2, 1] = points[1::-1, 1]  # top and bottom stay
    return points.ravel()


def judging(middle: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Walls of faces, and where those are: float64 `[faces, 14]` each."""
    images, truth = [], []
    for side in WALLS:
        for faces, place in ((small_faces(), middle), (small_faces()[:, :, ::-1], mirrored(middle))):
            made = wall(faces[CALIBRATING:], side)
            images.append(made.image)
            truth.append(np.tile(made.corners, 7) + side * place)
    return images, truth


def photos() -> list[np.ndarray]:
    """scikit-image's astronaut and each image of the folder in two sizes, and mirrored."""
    from skimage import data as images

    found = []
    paths = sorted(Path(os.environ["KQUANT_FACES"]).iterdir())
    for image in (images.astronaut(), *(keras.utils.img_to_array(keras.utils.load_img(path)) for path in paths)):
        for size in SIZES:
            shape = [round(size * n) for n in image.shape[:2]]
            smaller = np.asarray(keras.ops.image.resize(np.float32(image), shape, antialias=True))
            found.extend(np.uint8(np.clip(np.rint(t), 0, 255)) for t in (smaller, smaller[:, ::-1]))
    return found


def samples(cascade: Any) -> list[np.ndarray]:
    """For each of the three nets, what it is given when the cascade looks at the images that calibrate."""
    seen: list[list[np.ndarray]] = [[] for _ in cascade.stages]
    nets = [stage.model for stage in cascade.stages]
    for kept, stage, net in zip(seen, cascade.stages, nets, strict=True):
        stage._model = _watched(net, kept)  # noqa: SLF001  the package has no other way in
    for image in calibrating():
        cascade.detect_faces(image)
    for stage, net in zip(cascade.stages, nets, strict=True):
        stage._model = net  # noqa: SLF001
    rng = np.random.default_rng(0)
    windows = [_window(image, rng) for batch in seen[0] for image in batch if min(image.shape[:2]) >= WINDOW]
    first = [windows[k] for k in rng.integers(0, len(windows), CALIBRATION)]
    patches = [np.concatenate(batches) for batches in seen[1:]]
    return [np.stack(first), *(p[rng.permutation(len(p))[: 2 * CALIBRATION]] for p in patches)]


def _watched(net: Any, kept: list[np.ndarray]) -> Callable[[Any], Any]:
    def call(x: Any) -> Any:
        kept.append(np.asarray(x))
        return net(x)

    return call


def _window(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    y, x = (rng.integers(0, n - WINDOW + 1) for n in image.shape[:2])
    return image[y : y + WINDOW, x : x + WINDOW]


class FileNet:
    """A quantized net as the cascade calls it: a file of the size that comes, run by LiteRT's reference kernels."""

    def __init__(self, net: keras.Model, q: keras.Model, recipe: dict[str, Any]) -> None:
        """`q` holds weights and ranges, whatever size it was calibrated at."""
        self.net, self.q, self.recipe = net, q, recipe
        self.files: dict[tuple[int, ...], bytes] = {}

    def __call__(self, x: Any) -> list[Any]:
        """Outputs in the net's order, tensors as the cascade wants them."""
        x = np.asarray(x)
        if not len(x):  # the net before found nothing
            return self.net(x)
        size = x.shape[1:]
        if size not in self.files:
            self.files[size] = self._file(size)
        found = kquant.predict(self.files[size], x, runtime="litert-reference")
        return [keras.ops.convert_to_tensor(y) for y in found]

    def _file(self, size: tuple[int, ...]) -> bytes:
        q = kquant.quantize(self.net, self.recipe, input_shape=(None, *size))
        for new, old in zip(q.layers, self.q.layers, strict=True):
            for name in getattr(old, "corrected", ()):
                new.correction(name)  # AdaRound's roundings are variables that a new layer has not
        q.set_weights(self.q.get_weights())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.tflite"
            kquant.export(q, path, check_runtimes=False)
            return path.read_bytes()


def rows(task: Task, _: Path, ways: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """One for each way."""
    from mtcnn import MTCNN

    cascade = MTCNN()
    nets = [stage.model for stage in cascade.stages]
    judges = Judges(*judging(where(cascade)), photos(), [_faces(cascade, image) for image in photos()])
    print(f"{task.name}: {sum(map(len, judges.answers))} faces on photos", flush=True)
    given = samples(cascade)
    for name in ways:
        if name == FLOAT:
            yield name, {"figures": judges.figures(cascade), "weights": sum(net.count_params() for net in nets)}
        else:
            yield name, _row(cascade, nets, given, judges, WAYS[name])


@dataclass(frozen=True, eq=False)
class Judges:
    """Walls with known faces, and photos with the answers of the float cascade."""

    walls: list[np.ndarray]
    truth: list[np.ndarray]
    photos: list[np.ndarray]
    answers: list[np.ndarray]

    def figures(self, cascade: Any) -> dict[str, float]:
        """Of a cascade."""
        told = compared([_faces(cascade, image) for image in self.walls], self.truth)
        return told | {"as float": compared([_faces(cascade, image) for image in self.photos], self.answers)["IoU"]}


def _row(cascade: Any, nets: list[Any], given: list[Any], judges: Judges, way: Way) -> dict[str, Any]:
    started = time.perf_counter()
    recipe, made, sizes = recipe_of(way), [], []
    with tempfile.TemporaryDirectory() as folder:
        for n, (net, x) in enumerate(zip(nets, given, strict=True)):
            path = Path(folder) / f"{n}.tflite"
            train = _towards(net, x) if way.trains else None
            shape = (None, *x.shape[1:])
            made.append(kquant.compress(net, x, recipe, path=path, input_shape=shape, train=train, verbose=False))
            sizes.append(kquant.inspect(path).is_integer)
    seconds = time.perf_counter() - started
    files = [FileNet(net, result.model, recipe) for net, result in zip(nets, made, strict=True)]
    for stage, file in zip(cascade.stages, files, strict=True):
        stage._model = file  # noqa: SLF001
    figures = judges.figures(cascade)
    for stage, net in zip(cascade.stages, nets, strict=True):
        stage._model = net  # noqa: SLF001
    told = [v for result in made for v in result.report.verification if v.runtime == "litert-reference"]
    return {
        "figures": figures,
        "bytes": sum(result.report.file_bytes for result in made),
        "equal": min(a.equal for v in told for a in v.agreements),
        "integer": all(sizes),
        "seconds": seconds,
    }


def _towards(net: keras.Model, x: np.ndarray) -> Callable[[keras.Model, str], None]:
    """Training towards what the float net answers: no labels are here."""

    def train(q: keras.Model, _: str) -> None:
        q.compile(keras.optimizers.Adam(1e-4), ["mse"] * len(q.outputs))
        q.fit(x, [np.asarray(y) for y in net(x)], batch_size=32, epochs=5, verbose=0)

    return train


def _faces(cascade: Any, image: np.ndarray) -> np.ndarray:
    """float64 `[k, 14]`: left, top, right, bottom, five points as x and y; not rounded to pixels."""
    found = np.asarray(cascade.detect_faces(image, box_format="xyxy", output_type="numpy"), np.float64)
    points = np.stack([found[:, 6:11], found[:, 11:16]], axis=-1)
    return np.concatenate([found[:, 1:5], points.reshape(-1, 10)], axis=1)


def compared(found: list[np.ndarray], wanted: list[np.ndarray]) -> dict[str, float]:
    """How many faces both have, how well their boxes overlap, and how near their landmarks are, in face widths."""
    pairs = []
    for ours, theirs in zip(found, wanted, strict=True):
        overlap = overlaps(ours[:, :4], theirs[:, :4])
        for k, row in enumerate(overlap):
            best = int(row.argmax()) if len(row) else 0
            if len(row) and row[best] >= 0.5 and overlap[:, best].argmax() == k:
                pairs.append((row[best], _off(ours[k], theirs[best])))
    overlap, off = np.mean(pairs, axis=0)
    faces = 2 * len(pairs) / (sum(map(len, found)) + sum(map(len, wanted)))
    return {"faces": faces, "IoU": float(overlap), "landmarks": float(1 - off)}


def _off(ours: np.ndarray, theirs: np.ndarray) -> float:
    between = np.linalg.norm((ours[4:] - theirs[4:]).reshape(5, 2), axis=1)
    return float(between.mean() / (theirs[2] - theirs[0]))


TASKS = (Task(name="mtcnn", title="MTCNN with its own weights, faces of known places", missing=missing),)
