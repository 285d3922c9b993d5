"""Scores and boxes that one output joins keep grids of their own; what is computed on further does not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant.analysis.sqnr import noise_of
from kquant.layers.nodes import encodings_of

JOINED = {"name": "joined", "activations": {"heads": "joined"}}


def _features() -> tuple[Any, Any]:
    image = keras.Input((8, 8, 3))
    return image, layers.Conv2D(8, 3, padding="same", activation="relu")(image)


def _detector(*, behind: bool = False) -> keras.Model:
    """Boxes in pixels beside scores, two scales joined row by row; with a layer behind the join, if asked."""
    image, x = _features()
    rows = []
    for strides in (1, 2):
        y = layers.MaxPooling2D(strides)(x) if strides > 1 else x
        boxes = layers.Rescaling(100.0)(layers.Conv2D(4, 1)(y))
        scores = layers.Conv2D(3, 1, activation="sigmoid")(y)
        joined = layers.Concatenate(name=f"join_{strides}")([boxes, scores])
        rows.append(layers.Reshape((-1, 7))(joined))
    whole = layers.Concatenate(1, name="rows")(rows)
    return keras.Model(image, layers.Dense(7)(whole) if behind else whole)


def _data() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")


@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_boxes_and_scores_of_one_output_keep_their_grids(target: str, tmp_path) -> None:
    model, data = _detector(), _data()
    with pytest.warns(UserWarning, match=r"quantize: an output .*join_.*join_.*rows.* 16 bits.*heads = \"joined\""):
        q = kquant.quantize(model, target=target)
    kquant.calibrate(q, data, verbose=False)
    report = kquant.export(q, tmp_path / "heads.tflite", data=data)
    wanted, found = model.predict(data, verbose=0), q.predict(data, verbose=0)
    for part in (slice(0, 4), slice(4, 7)):
        assert noise_of(wanted[..., part], found[..., part]).db > 30
    runtime = {"litert": "litert-reference", "tflm": "tflm"}[target]
    assert {v.runtime: v.agreements[0].equal for v in report.verification}[runtime] == 1.0
    assert [t.dtype for t in kquant.inspect(tmp_path / "heads.tflite").outputs] == ["int16"]


def test_the_recipe_may_have_them_on_one_grid(tmp_path) -> None:
    model, data = _detector(), _data()
    q = kquant.quantize(model, JOINED)
    with pytest.warns(UserWarning, match=r"share an encoding: .*Give the join 16 bits"):
        kquant.calibrate(q, data, verbose=False)
    kquant.export(q, tmp_path / "joined.tflite", data=data)
    assert [t.dtype for t in kquant.inspect(tmp_path / "joined.tflite").outputs] == ["int8"]
    wanted, found = model.predict(data, verbose=0), q.predict(data, verbose=0)
    assert noise_of(wanted[..., 4:], found[..., 4:]).db < 10, "one grid would do: nothing to keep apart"


def test_a_rule_for_one_join_is_enough(recwarn) -> None:
    q = kquant.quantize(_detector(), {**JOINED, "rules": [{"type": "Concatenate", "activations": {"bits": 16}}]})
    kquant.calibrate(q, _data(), verbose=False)
    assert not [w for w in recwarn if "share an encoding" in str(w.message)], "the remedy of the warning"


def _rows_of(units: int, x: Any, **options: Any) -> Any:
    return layers.Reshape((64, units))(layers.Conv2D(units, 1, **options)(x))


def _parted(x: Any, first: Callable[[Any], Any]) -> list[Any]:
    """Columns of one layer: a function of the first four, the others as they are."""
    whole = _rows_of(7, x)
    return [first(whole[..., :4]), whole[..., 4:]]


def _scaled(y: Any) -> Any:
    return layers.Rescaling(50.0)(y)


# sizes by an exponential, distances behind a ReLU, and the like, beside logits as they are
DECODED: dict[str, Callable[[Any], list[Any]]] = {
    "exponential": lambda x: [_scaled(keras.ops.exp(0.5 * _rows_of(4, x))), _rows_of(3, x)],
    "softplus": lambda x: [_scaled(keras.ops.softplus(_rows_of(4, x))), _rows_of(3, x)],
    "distances": lambda x: [_scaled(_rows_of(4, x, activation="relu")), _rows_of(3, x)],
    "relu behind": lambda x: [layers.ReLU()(_scaled(_rows_of(4, x))), _rows_of(3, x)],
    "edges": lambda x: [_corners(layers.ReLU()(_scaled(_rows_of(4, x)))), _rows_of(3, x)],
    "squares": lambda x: [_scaled(keras.ops.square(_rows_of(4, x))), _rows_of(3, x)],
    "one layer, exponential": lambda x: _parted(x, lambda y: _scaled(keras.ops.exp(0.5 * y))),
    "one layer, scaled": lambda x: _parted(x, _scaled),
    "one column each": lambda x: [_scaled(_rows_of(4, x)), *_columns(_rows_of(3, x))],
}


def _columns(y: Any) -> list[Any]:
    return [y[..., n : n + 1] for n in range(y.shape[-1])]


def _beside(form: str) -> keras.Model:
    """Boxes in pixels beside what has no prescribed scale; or one kind of numbers, which no join is to widen."""
    image, x = _features()
    if form in DECODED:
        return keras.Model(image, keras.ops.concatenate(DECODED[form](x), axis=-1))
    boxes = _scaled(layers.Conv2D(4, 1)(x))
    if form == "levels":  # rows of each kind first, then the kinds
        pooled = layers.MaxPooling2D(2)(x)
        kinds = [[layers.Reshape((-1, n))(layers.Conv2D(2 * n, 1)(t)) for t in (x, pooled)] for n in (4, 3)]
        kinds[0] = [layers.Rescaling(50.0)(t) for t in kinds[0]]
        return keras.Model(image, layers.Concatenate()([layers.Concatenate(1)(rows) for rows in kinds]))
    boxes = layers.Reshape((64, 4))(boxes)
    others: dict[str, Callable[[], Any]] = {
        "logits": lambda: layers.Conv2D(3, 1)(x),
        "hard": lambda: layers.Conv2D(3, 1, activation="hard_sigmoid")(x),
        "hard operation": lambda: keras.ops.hard_sigmoid(layers.Conv2D(3, 1)(x)),
        "nested": lambda: keras.Sequential([keras.Input((8, 8, 8)), layers.Conv2D(3, 1, name="head")])(x),
        "columns first": lambda: layers.Conv2D(3, 1)(x),
        "corners": lambda: layers.Conv2D(3, 1)(x),
    }
    other = layers.Reshape((64, 3))(others[form]())
    if form == "columns first":
        joined = layers.Concatenate(1)([layers.Permute((2, 1))(boxes), layers.Permute((2, 1))(other)])
        return keras.Model(image, layers.Permute((2, 1))(joined))
    if form == "corners":
        boxes = _corners(boxes)
    return keras.Model(image, keras.ops.concatenate([boxes, other], axis=-1))


def _corners(boxes: Any) -> Any:
    grid = 8.0 * np.stack(np.divmod(np.arange(64.0), 8.0), -1).astype("float32")
    ends = keras.ops.subtract(grid, boxes[..., :2]), keras.ops.add(grid, boxes[..., 2:])
    return keras.ops.concatenate(ends, axis=-1)


BESIDE = ["logits", "levels", "hard", "hard operation", "nested", "columns first", "corners", *DECODED]


@pytest.mark.parametrize("target", ["litert", "tflm"])
@pytest.mark.parametrize("form", BESIDE)
@pytest.mark.filterwarnings("ignore:quantize. an output of the model joins heads")
def test_heads_without_prescribed_scales_keep_their_grids(form: str, target: str, tmp_path) -> None:
    data = _data()
    q = kquant.calibrate(kquant.quantize(_beside(form), target=target), data, verbose=False)
    report = kquant.export(q, tmp_path / "heads.tflite", data=data[:8])
    runtime = {"litert": "litert-reference", "tflm": "tflm"}[target]
    assert {v.runtime: v.agreements[0].equal for v in report.verification}[runtime] == 1.0
    assert [t.dtype for t in kquant.inspect(tmp_path / "heads.tflite").outputs] == ["int16"]


@pytest.mark.parametrize("form", BESIDE)
@pytest.mark.filterwarnings("ignore:quantize. an output of the model joins heads")
@pytest.mark.filterwarnings("ignore:calibrate. tensors of very different ranges")
def test_every_column_gains(form: str) -> None:
    model, data = _beside(form), _data()
    wanted, noise = model.predict(data, verbose=0), {}
    for recipe in ("int8", "joined"):
        q = kquant.quantize(model, JOINED if recipe == "joined" else recipe)
        found = kquant.calibrate(q, data, verbose=False).predict(data, verbose=0)
        noise[recipe] = [noise_of(wanted[..., i], found[..., i]).db for i in range(wanted.shape[-1])]
    gained = np.subtract(noise["int8"], noise["joined"])
    assert min(gained) > -1.0, "boxes lose nothing"
    assert min(gained[4:]) > 15.0, "two and a half bits at least"
    if form not in DECODED:  # where a ReLU cuts off nearly all of a column, little signal is left in any file
        assert min(noise["int8"]) > 28.0


@pytest.mark.parametrize("form", DECODED)
@pytest.mark.filterwarnings("ignore:quantize. an output of the model joins heads")
def test_a_joined_part_tells_what_an_output_of_its_own_does(form: str) -> None:
    model, data = _beside(form), _data()
    q = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    alone = keras.Model(model.input, keras.tree.flatten(model.operations[-1].input))
    parts = kquant.calibrate(kquant.quantize(alone), data, verbose=False).predict(data, verbose=0)
    wanted, found, own = model.predict(data, verbose=0), q.predict(data, verbose=0), np.concatenate(parts, axis=-1)
    for i in range(wanted.shape[-1]):
        joined, apart = (noise_of(wanted[..., i], y[..., i]).db for y in (found, own))
        assert joined > apart - 0.5


def test_a_saved_model_keeps_its_widths(tmp_path) -> None:
    with pytest.warns(UserWarning, match="joins heads"):
        q = kquant.calibrate(kquant.quantize(_beside("logits")), _data(), verbose=False)
    q.save(tmp_path / "q.keras")
    again = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(again.predict(_data(), verbose=0), q.predict(_data(), verbose=0))


def _two_sigmoids() -> keras.Model:
    image, x = _features()
    parts = [layers.Conv2D(n, 1, activation="sigmoid")(x) for n in (4, 3)]
    return keras.Model(image, layers.Concatenate()(parts))


def _sigmoids() -> keras.Model:
    image, x = _features()
    kinds = ("sigmoid", "hard_sigmoid")
    return keras.Model(image, layers.Concatenate()([layers.Conv2D(3, 1, activation=kind)(x) for kind in kinds]))


def _rows() -> keras.Model:
    """Levels of a pyramid, with other numbers of anchors."""
    image, x = _features()
    levels = [(8, x), (12, layers.MaxPooling2D(2)(x))]
    return keras.Model(
        image, layers.Concatenate(1)([layers.Reshape((-1, 4))(layers.Conv2D(n, 1)(t)) for n, t in levels])
    )


def _one_layer() -> keras.Model:
    """The corners of boxes are one kind of numbers, as one layer gave them."""
    image, x = _features()
    return keras.Model(image, _corners(layers.Reshape((64, 4))(layers.Conv2D(4, 1)(x))))


def _inception() -> keras.Model:
    image, x = _features()
    branches = [layers.Conv2D(4, n, padding="same", activation="relu")(x) for n in (1, 3)]
    return keras.Model(image, layers.Concatenate()([*branches, layers.MaxPooling2D(3, 1, padding="same")(x)]))


def _densenet() -> keras.Model:
    image, x = _features()
    for _ in range(2):
        y = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Concatenate()([x, layers.Conv2D(4, 3, padding="same")(y)])
    return keras.Model(image, x)


def _residual() -> keras.Model:
    """Sums of residual blocks, and an activation behind one of them: a pyramid of features."""
    image, x = _features()
    parts = []
    for _ in range(2):
        x = layers.Add()([layers.Conv2D(8, 3, padding="same")(x), x])
        parts.append(layers.Conv2D(4, 1, activation="elu")(x))
    return keras.Model(image, layers.Concatenate()([layers.ReLU()(x), *parts]))


def _crelu() -> keras.Model:
    image, x = _features()
    y = layers.Conv2D(4, 3, padding="same")(x)
    return keras.Model(image, layers.Concatenate()([layers.ReLU()(y), layers.ReLU()(layers.Rescaling(-1.0)(y))]))


OTHERS = [lambda: _detector(behind=True), _two_sigmoids, _sigmoids, _rows, _one_layer, _inception, _densenet]
OTHERS += [_residual, _crelu]


@pytest.mark.parametrize("build", OTHERS)
def test_other_joins_stay_in_8_bits(build, recwarn, tmp_path) -> None:
    q = kquant.quantize(build())
    assert not [w for w in recwarn if "16 bits" in str(w.message)]
    assert {layer.spec.bits for layer in encodings_of(q)} == {8}
    kquant.calibrate(q, _data(), verbose=False)
    kquant.export(q, tmp_path / "model.tflite", data=_data()[:8])
    assert {t.dtype for t in kquant.inspect(tmp_path / "model.tflite").outputs} == {"int8"}


@pytest.mark.parametrize("build", [_detector, lambda: _beside("logits")])
def test_a_target_without_16_bits_keeps_8(build, recwarn) -> None:
    q = kquant.quantize(build(), target="edgetpu")
    assert {layer.spec.bits for layer in encodings_of(q)} == {8}
    assert not [w for w in recwarn if "16 bits" in str(w.message)]
    with pytest.warns(UserWarning, match="share an encoding: .*joins 8 bits only, so .* outputs of their own; or"):
        kquant.calibrate(q, _data(), verbose=False)


def test_outputs_of_their_own_are_the_remedy_there(recwarn) -> None:
    image, x = _features()
    parts = [layers.Rescaling(50.0)(layers.Conv2D(4, 1)(x)), layers.Conv2D(3, 1)(x)]
    model, data = keras.Model(image, parts), _data()
    q = kquant.calibrate(kquant.quantize(model, target="edgetpu"), data, verbose=False)
    assert not [w for w in recwarn if "share an encoding" in str(w.message)]
    for wanted, found in zip(model.predict(data, verbose=0), q.predict(data, verbose=0), strict=True):
        assert noise_of(wanted, found).db > 30
