"""`kquant.compress`: the stages of a recipe in order, each trained where the caller trains."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import kquant
from kquant.masking.clustering import has_codebooks
from kquant.masking.pruning import has_masks
from kquant.tflite.reader import constants, read_model

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
    result = kquant.compress(model, x, "prune50-cluster16-int8", path=path, target="tflm", train=train, verbose=False)
    assert seen == [("prune", True, False), ("cluster", True, True), ("quantize", True, True)]
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())
    kernels = {row.name: row for row in result.report.weights.layers if "kernel" in row.name}
    assert len(kernels) == 2
    assert np.average([r.sparsity for r in kernels.values()], weights=[r.raw_bytes for r in kernels.values()]) >= 0.5
    assert all(row.unique_per_channel <= 16 for row in kernels.values())


def test_without_training_the_stages_are_there_all_the_same(task, tmp_path):
    model, x, _ = task
    with pytest.warns(UserWarning, match=r"the recipe asks for pruning, and nothing trains: .* Give train="):
        result = kquant.compress(model, x, "prune50-int8", path=tmp_path / "s.tflite", verbose=False)
    assert has_masks(result.model)
    rows = [row for row in result.report.weights.layers if "kernel" in row.name]
    assert sum(row.sparsity * row.raw_bytes for row in rows) >= 0.5 * sum(row.raw_bytes for row in rows)


def test_a_ramp_without_its_training_is_said(task, tmp_path):
    model, x, _ = task
    ramp = {"name": "ramp", "pruning": {"sparsity": 0.8, "schedule": "polynomial", "end": 1000}}
    untrained = pytest.warns(UserWarning, match="nothing trains")
    with untrained, pytest.warns(UserWarning, match="still on their ramp"):
        kquant.compress(model, x, ramp, path=tmp_path / "r.tflite", verbose=False)


@pytest.fixture(scope="module")
def words():
    keras.utils.set_random_seed(4)
    x = np.random.default_rng(1).integers(0, 40, (96, 6)).astype(np.int32)
    inputs = keras.Input((6,), dtype="int32", name="words")
    pooled = layers.GlobalAveragePooling1D(name="mean")(layers.Embedding(40, 8, name="table")(inputs))
    return keras.Model(inputs, layers.Dense(4, activation="softmax", name="head")(pooled), name="words"), x, x[:, 0] % 4


def fit(model, x, y):
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(x, y, batch_size=16, verbose=0)
    return model


def pruned(model):
    return kquant.prune(model, 0.5)


def clustered(model):
    return kquant.cluster(model, 8)


ORDERS = {
    "prune, cluster, quantize": (pruned, clustered, kquant.quantize),
    "quantize, prune, cluster": (kquant.quantize, pruned, clustered),
}


def codes_of(path, ending):
    """Codes and zero point of the weights of that name."""
    content = path.read_bytes()
    (tensor,) = [t for t in read_model(content).tensors if t.name.endswith(ending)]
    return constants(content)[tensor.index], tensor.zero_point[0]


@pytest.mark.parametrize("steps", ORDERS.values(), ids=ORDERS)
def test_a_table_of_embeddings_keeps_its_mask_and_codebook_through_training(words, steps, tmp_path):
    model, x, y = words
    made = model
    for step in steps:
        made = step(made)
        if step is kquant.quantize:
            kquant.calibrate(made, x, verbose=False)
    fit(made, x, y)
    found = np.asarray(made.get_layer("table").weights_as_used())
    assert np.mean(found == 0.0) >= 0.5 and np.unique(found).size <= 8
    assert np.any(found != model.get_layer("table").embeddings.numpy())  # it trained
    made.save(tmp_path / "m.keras")
    again = fit(keras.models.load_model(tmp_path / "m.keras"), x, y)
    path = tmp_path / "m.tflite"
    report = kquant.export(again, path, data=x, shrink=False)  # the table is compared column by column
    exact = [v for v in report.verification if v.runtime == "litert-reference"]
    assert exact and all(a.equal == 1.0 for v in exact for a in v.agreements), report.verification
    found = np.asarray(again.get_layer("table").weights_as_used())
    codes, zero = codes_of(path, "table/embeddings")
    assert np.all((codes == zero)[found == 0.0]) and np.mean(codes == zero) >= 0.5
    assert np.unique(codes).size <= 8
    row = next(row for row in report.weights.layers if row.name == "table/embeddings")
    assert (row.sparsity, row.unique) == (np.mean(codes == zero), np.unique(codes).size)


def test_a_recipe_prunes_a_table_in_the_quantized_model_too(words, tmp_path):
    model, x, y = words
    q = fit(kquant.calibrate(kquant.quantize(model, "prune50-cluster16-int8"), x, verbose=False), x, y)
    kquant.export(q, tmp_path / "m.tflite", data=x)
    codes, zero = codes_of(tmp_path / "m.tflite", "table/embeddings")
    assert np.mean(codes == zero) >= 0.4 and max(np.unique(c).size for c in codes.T) <= 16
    plain = kquant.strip(q)
    np.testing.assert_array_equal(plain.get_layer("table").embeddings, q.get_layer("table").weights_as_used())


@pytest.mark.parametrize("limit", [0, 2.5, True])
def test_a_limit_is_refused_by_the_name_of_the_verb(limit):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=rf"^compress: limit must be 1 or more. Received: {limit}"):
        kquant.compress(model, np.ones((40, 4), "float32"), path="never.tflite", limit=limit)
