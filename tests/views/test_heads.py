"""Scores and boxes that one output joins keep grids of their own; what is computed on further does not change."""

from __future__ import annotations

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


def _plain_join() -> keras.Model:
    image, x = _features()
    return keras.Model(image, layers.Concatenate()([layers.Conv2D(4, 1)(x), layers.Conv2D(3, 1)(x)]))


def _two_sigmoids() -> keras.Model:
    image, x = _features()
    parts = [layers.Conv2D(n, 1, activation="sigmoid")(x) for n in (4, 3)]
    return keras.Model(image, layers.Concatenate()(parts))


@pytest.mark.parametrize("build", [lambda: _detector(behind=True), _plain_join, _two_sigmoids])
def test_other_joins_stay_in_8_bits(build, recwarn, tmp_path) -> None:
    q = kquant.quantize(build())
    assert not [w for w in recwarn if "16 bits" in str(w.message)]
    kquant.calibrate(q, _data(), verbose=False)
    kquant.export(q, tmp_path / "model.tflite", data=_data()[:8])
    assert {t.dtype for t in kquant.inspect(tmp_path / "model.tflite").outputs} == {"int8"}


def test_a_target_without_16_bits_keeps_8(recwarn) -> None:
    widths = {layer.spec.bits for layer in encodings_of(kquant.quantize(_detector(), target="edgetpu"))}
    assert widths == {8}
    assert not [w for w in recwarn if "16 bits" in str(w.message)]
