"""Every class that `keras.layers` exports has a rule, unfolds, or is refused with a remedy."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import kquant
from kquant.ops import RULES
from kquant.ops.refused import ABSTRACT, LAYERS, UNFOLDED

pytestmark = pytest.mark.filterwarnings(
    "ignore:.* bias is computed with before it meets",
    "ignore:.* what it draws in training",
)

EXPORTED = {n for n in dir(layers) if isinstance(cls := getattr(layers, n), type) and issubclass(cls, layers.Layer)}


def stepped(cell, states):
    """One step of a cell on features of the image, with states computed from them too."""

    def build(x):
        x = layers.Flatten()(x)
        return cell(x, [layers.Dense(4, activation="tanh")(x) for _ in range(states)])[0]

    return build


MODELS = {
    "Lambda": lambda: layers.Lambda(lambda x: ops.tanh(x) * 2.0),
    "Pipeline": lambda: layers.Pipeline([layers.Rescaling(0.5), layers.RandomFlip()]),
    "GRUCell": lambda: stepped(layers.GRUCell(4), 1),
    "LSTMCell": lambda: stepped(layers.LSTMCell(4), 2),
    "SimpleRNNCell": lambda: stepped(layers.SimpleRNNCell(4), 1),
    "StackedRNNCells": lambda: stepped(layers.StackedRNNCells([layers.SimpleRNNCell(4), layers.GRUCell(4)]), 2),
}


def test_every_layer_of_keras_is_spoken_for():
    ruled = {cls for rule in RULES for cls in rule.layers}
    listed = {*LAYERS, *UNFOLDED, *ABSTRACT}
    missing = {n for n in EXPORTED if getattr(layers, n) not in ruled and not {n, getattr(layers, n).__name__} & listed}
    assert not missing, f"{sorted(missing)}: add a rule, or a reason to refuse them in ops/refused.py"


def test_the_lists_name_layers_that_exist_once():
    lists = [*LAYERS, *UNFOLDED, *ABSTRACT]
    assert set(lists) <= EXPORTED
    assert len(set(lists)) == len(lists)
    assert not {cls.__name__ for rule in RULES for cls in rule.layers} & set(lists)
    assert set(MODELS) == set(UNFOLDED)


@pytest.mark.parametrize("name", sorted(UNFOLDED))
def test_unfolds(name, tmp_path):
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, MODELS[name]()(inputs))
    x = np.float32(np.random.default_rng(0).normal(size=(64, 6, 6, 3)))
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), x, verbose=False)
    report = kquant.export(q, tmp_path / "model.tflite", data=x)
    assert all(a.equal == 1.0 for v in report.verification if v.runtime == "tflm" for a in v.agreements)
    wanted = np.asarray(model(x, training=False))
    assert np.abs(wanted - np.asarray(q(x))).max() < 0.05 * np.abs(wanted).max()


LAYERS_REFUSED = {
    "ConvLSTM1D": lambda: layers.ConvLSTM1D(4, 3),
    "AutoContrast": lambda: layers.AutoContrast((0, 255)),
    "ContrastLimitedAdaptiveHistogramEqualization": lambda: layers.ContrastLimitedAdaptiveHistogramEqualization(
        (0, 255)
    ),
    "Discretization": lambda: layers.Discretization([0.0, 1.0]),
    "Hashing": lambda: layers.Hashing(4),
    "IntegerLookup": lambda: layers.IntegerLookup(vocabulary=[1, 2]),
    "RandomCrop": lambda: layers.RandomCrop(4, 4),
}


@pytest.mark.parametrize("name", sorted(LAYERS_REFUSED))
def test_refused_with_its_own_remedy(name):
    dtype = "int32" if name in ("Hashing", "IntegerLookup") else "float32"
    inputs = keras.Input((8, 8, 3), dtype=dtype)
    layer = LAYERS_REFUSED[name]()
    model = keras.Model(inputs, layer(inputs))
    with pytest.raises(ValueError, match=f"{layer.name}.*{LAYERS[name][:30]}"):
        kquant.quantize(model)
    row = next(row for row in kquant.check(model).layers if row.layer == layer.name)
    assert (row.status, row.remedy) == ("refused", LAYERS[name])
