"""`kquant.compress`: the stages of a recipe in order, each trained where the caller trains."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import kquant
from kquant.train.clustering import has_codebooks
from kquant.train.pruning import has_masks

layers = keras.layers


@pytest.fixture(scope="module")
def task():
    keras.utils.set_random_seed(3)
    x = np.random.default_rng(0).normal(size=(96, 12)).astype(np.float32)
    y = (x[:, :4].argmax(-1)).astype(np.int32)
    inputs = keras.Input((12,), name="x")
    hidden = layers.BatchNormalization(name="norm")(layers.Dense(32, name="first")(inputs))
    outputs = layers.Dense(4, activation="softmax", name="head")(layers.ReLU(name="relu")(hidden))
    return keras.Model(inputs, outputs, name="task"), x, y


def test_every_stage_of_the_recipe_is_trained_in_order(task, tmp_path):
    model, x, y = task
    before = [v.numpy() for v in model.variables]
    seen = []

    def train(stage_model, stage):
        seen.append((stage, has_masks(stage_model), has_codebooks(stage_model)))
        stage_model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
        stage_model.fit(x, y, batch_size=32, verbose=0)

    path = tmp_path / "small.tflite"
    result = kquant.compress(model, x, "prune50-cluster16-int8", output=path, target="tflm", train=train, verbose=False)
    assert seen == [("prune", True, False), ("cluster", True, True), ("quantize", True, True)]
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    kernels = {row.name: row for row in result.report.weights.layers if "kernel" in row.name}
    assert len(kernels) == 2
    assert np.average([r.sparsity for r in kernels.values()], weights=[r.raw_bytes for r in kernels.values()]) >= 0.5
    assert all(row.unique_per_channel <= 16 for row in kernels.values())


def test_without_training_the_stages_are_there_all_the_same(task, tmp_path):
    model, x, _ = task
    result = kquant.compress(model, x, "prune50-int8", output=tmp_path / "s.tflite", verbose=False)
    assert has_masks(result.model)
    rows = [row for row in result.report.weights.layers if "kernel" in row.name]
    assert sum(row.sparsity * row.raw_bytes for row in rows) >= 0.5 * sum(row.raw_bytes for row in rows)


def test_a_ramp_without_its_training_is_said(task, tmp_path):
    model, x, _ = task
    ramp = {"name": "ramp", "pruning": {"sparsity": 0.8, "schedule": "polynomial", "end": 1000}}
    with pytest.warns(UserWarning, match="still on their ramp"):
        kquant.compress(model, x, ramp, output=tmp_path / "r.tflite", verbose=False)
