"""Every kind of Keras model goes the whole way: quantize, calibrate, fit, export, predict, save and load elsewhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import keras
import new_process
import numpy as np
import pytest
from contract import packed
from enrolled import samples
from model_cases import CASES, Gate, made

import kquant
from kquant.graph.keras_private import structures
from kquant.layers.nodes import FakeQuant

pytestmark = pytest.mark.filterwarnings(
    "ignore:calibrate. the range differs more than 2 times",
)

ROOT = Path(__file__).parents[1]
# Trained and predicted with in graphs, one for each structure of inputs and outputs; the others call by call, which
# computes the same and needs no tracing.
IN_GRAPHS = ("odd_names", "shared_layer", "dict_of_inputs_and_outputs", "subclassed_list")


def fit_one_step(q: keras.Model, x: list[np.ndarray], **options: Any) -> None:
    """One step towards other outputs."""
    _, outputs = structures(q)
    y = keras.tree.map_structure(lambda t: np.ones((16, *t.shape[1:]), "float32"), outputs)
    loss = keras.tree.map_structure(lambda t: "mse", outputs)
    q.compile(keras.optimizers.SGD(0.01), loss=loss, **options)
    q.fit(packed(q, [a[:16] for a in x]), y, batch_size=16, epochs=1, verbose=0)


def calibrated(name: str) -> tuple[keras.Model, list[np.ndarray]]:
    """A quantized model, and samples."""
    q = kquant.quantize(made(name))
    x = samples(q)
    return kquant.calibrate(q, packed(q, x), verbose=False), x


@cache
def quantized(name: str) -> tuple[keras.Model, list[np.ndarray]]:
    """Calibrated and trained for a step; eight bits stayed close to float, so nothing was wired wrongly."""
    q, x = calibrated(name)
    assert_same_function(q, made(name), x)
    before = [v.numpy().copy() for v in q.trainable_variables]
    fit_one_step(q, x, run_eagerly=name not in IN_GRAPHS)
    if before:
        moved = [not np.array_equal(b, v) for b, v in zip(before, q.trainable_variables, strict=True)]
        assert any(moved), "training moved nothing"
    return q, x


def assert_same_function(q: keras.Model, model: keras.Model, x: list[np.ndarray]) -> None:
    simulated, wanted = q(packed(q, x), training=False), model(packed(q, x), training=False)
    keras.tree.assert_same_structure(simulated, wanted)
    for a, b in zip(keras.tree.flatten(simulated), keras.tree.flatten(wanted), strict=True):
        noise, signal = np.mean((np.array(a) - np.array(b)) ** 2), np.var(np.array(b)) + 1e-6
        assert noise < signal / 100, f"{10 * np.log10(signal / noise):.1f} dB"


def assert_same_codes(q: keras.Model, path: Path, x: list[np.ndarray]) -> None:
    assert_few_differ(kquant.verify(q, path, packed(q, x), runtime="litert-reference"))


def assert_few_differ(report: kquant.VerifyReport) -> None:
    assert report.ok, report
    for agreement in report.agreements:
        assert agreement.equal >= 0.999 and agreement.max_err_lsb <= 1, (agreement, report.first_difference)


@pytest.mark.parametrize("name", CASES)
def test_file_equals_simulation(name: str, tmp_path: Path) -> None:
    q, x = quantized(name)
    path = tmp_path / "m.tflite"
    report = kquant.export(q, path, data=packed(q, x))
    assert "FLOAT32" not in report.types
    assert_few_differ(next(run for run in report.verification if run.runtime == "litert-reference"))
    found = kquant.predict(path, x if len(x) > 1 else x[0], "litert-reference")
    wanted = keras.tree.flatten(q.predict(packed(q, x), verbose=0))
    for y, z, port in zip(found if isinstance(found, list) else [found], wanted, report.outputs, strict=True):
        assert np.mean(np.abs(y - z) < port.scale / 2) >= 0.999


LOAD = """
import sys, pathlib, numpy as np
import keras, kquant
for folder in sys.argv[1:]:
    folder = pathlib.Path(folder)
    q = keras.models.load_model(folder / "q.keras")
    inputs = np.load(folder / "x.npz")
    x = keras.tree.pack_sequence_as(q._inputs_struct, [inputs[f"x{i}"] for i in range(len(inputs.files))])
    y = keras.tree.flatten(q(x, training=False))
    np.savez(folder / "y.npz", **{f"y{i}": v for i, v in enumerate(y)})
    kquant.export(q, folder / "q.tflite", check_runtimes=False)
"""


def test_saved_models_load_in_a_new_process(tmp_path: Path) -> None:
    """No custom objects, the same outputs and the same file, bit for bit."""
    expected = {}
    for name in CASES:
        q, x = quantized(name)
        folder = tmp_path / name
        folder.mkdir()
        q.save(folder / "q.keras")
        np.savez(folder / "x.npz", **{f"x{i}": a for i, a in enumerate(x)})
        kquant.export(q, folder / "here.tflite", check_runtimes=False)
        expected[folder] = [np.asarray(y) for y in keras.tree.flatten(q(packed(q, x), training=False))]
    done = new_process.run(LOAD, *expected)
    assert done.returncode == 0, done.stderr[-3000:]
    for folder, outputs in expected.items():
        found = np.load(folder / "y.npz")
        for i, y in enumerate(outputs):
            np.testing.assert_array_equal(found[f"y{i}"], y, err_msg=folder.name)
        assert (folder / "q.tflite").read_bytes() == (folder / "here.tflite").read_bytes(), folder.name


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_trains_and_exports(policy: str, tmp_path: Path) -> None:
    keras.config.set_dtype_policy(policy)  # of the whole process: set back whatever happens
    try:
        q = kquant.quantize(made("functional"))
        x = samples(q)
        kquant.calibrate(q, x[0], verbose=False)
        before = [v.numpy().copy() for v in q.trainable_variables]
        fit_one_step(q, x, run_eagerly=policy != "mixed_float16")  # which scales its losses in the graph
    finally:
        keras.config.set_dtype_policy("float32")
    assert all(v.dtype == "float32" for v in q.trainable_variables)
    assert any(not np.array_equal(b, v) for b, v in zip(before, q.trainable_variables, strict=True))
    assert all(np.all(np.isfinite(v)) for v in q.variables)
    path = tmp_path / "m.tflite"
    report = kquant.export(q, path, data=x[0])
    # the model itself rounds to 16 bits between its layers, where the device does not
    for run in report.verification:
        assert all(a.equal == 1.0 for a in run.agreements if run.runtime != "litert"), run
    exact = kquant.in_float32(q)
    assert exact is not q and {layer.compute_dtype for layer in q.layers} & {"float16", "bfloat16"}
    assert kquant.in_float32(exact) is exact
    assert_same_codes(exact, path, x)


def stepped(rate: float = 0.5, **options: Any) -> keras.Model:
    """After one step, with dropout, which XLA draws by other numbers."""
    keras.utils.set_random_seed(1)
    parts = [keras.layers.Dense(4, activation="relu"), keras.layers.Dropout(rate), keras.layers.Dense(3)]
    x = np.float32(np.random.default_rng(0).normal(size=(64, 6)))
    q = kquant.calibrate(kquant.quantize(keras.Sequential([keras.Input((6,)), *parts])), x, verbose=False)
    fit_one_step(q, [x], **options)
    return q


def test_graphs_and_jit_give_the_same_step_and_seeds_the_same_numbers() -> None:
    graph, again = stepped(), stepped()
    for q, eager in (
        (graph, stepped(run_eagerly=True)),
        (stepped(0.0, jit_compile=True), stepped(0.0, run_eagerly=True)),
    ):
        for a, b in zip(q.trainable_variables, eager.trainable_variables, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-5)
    for a, b in zip(graph.variables, again.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    q, x = calibrated("sequential_in_functional")
    q.compile(jit_compile=True)
    np.testing.assert_allclose(q.predict(x[0], verbose=0), q(x[0], training=False), atol=2e-5)


def test_variables_of_custom_layers_stay_right_and_trainable() -> None:
    """`x * self.gamma` keeps gamma's value, and gamma goes on training."""
    model = made("custom_layer")
    gate = next(layer for layer in model.layers if isinstance(layer, Gate))
    gate.gamma.assign([0.5, -1.0, 2.0, 0.25])
    q = kquant.quantize(model)
    values = {v.path: v.numpy().copy() for v in q.trainable_variables}
    held = [path for path, v in values.items() if v.shape == (4,) and np.allclose(v, [0.5, -1.0, 2.0, 0.25])]
    assert held, values
    x = samples(q)
    kquant.calibrate(q, x[0], verbose=False)
    fit_one_step(q, x, run_eagerly=True)
    after = next(v for v in q.trainable_variables if v.path == held[0])
    assert not np.array_equal(after, values[held[0]])


def test_variables_that_cannot_train_are_named() -> None:
    class Exponent(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.log = self.add_weight(name="log", shape=(shape[-1],), initializer="zeros")

        def call(self, x: Any) -> Any:
            return x * keras.ops.exp(self.log)

    x = keras.Input((3,))
    model = keras.Model(x, Exponent(name="exponent")(keras.layers.Dense(3)(x)))
    with pytest.warns(UserWarning, match="exponent .*log is computed with before it meets a tensor"):
        kquant.quantize(model)


@keras.saving.register_keras_serializable("tests")
class Reloaded(keras.Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.left, self.right = keras.layers.Dense(4), keras.layers.Dense(4)

    def call(self, pair: Any) -> Any:
        return self.left(pair[0]) * self.right(pair[1])


def test_subclassed_model_from_a_file(tmp_path: Path) -> None:
    """Its shapes come back as lists, which look like structures."""
    model = Reloaded()
    x = [np.float32(np.random.default_rng(0).normal(size=(64, n))) for n in (6, 3)]
    model(x)
    model.save(tmp_path / "m.keras")
    q = kquant.quantize(keras.models.load_model(tmp_path / "m.keras"))
    assert [t.name for t in q.inputs] == ["pair_0", "pair_1"] and q.input_shape == [(None, 6), (None, 3)]
    kquant.calibrate(q, x, verbose=False)
    kquant.export(q, tmp_path / "m.tflite")
    assert_same_codes(q, tmp_path / "m.tflite", x)


def test_a_fixed_batch_size_is_let_go(tmp_path: Path) -> None:
    x = keras.Input((6,), batch_size=4)
    q = kquant.quantize(keras.Model(x, keras.layers.Dense(2)(x)))
    assert q.input_shape == (None, 6)
    data = np.float32(np.random.default_rng(0).normal(size=(50, 6)))
    kquant.calibrate(q, data, verbose=False)
    assert kquant.export(q, tmp_path / "m.tflite").inputs[0].shape == (1, 6)


def test_frozen_layers_stay_frozen() -> None:
    model = made("sequential")
    model.layers[0].trainable = False
    q = kquant.quantize(model)
    assert [v.path.split("/")[0] for v in q.trainable_variables] == [model.layers[-1].name] * 2


def test_file_of_a_model_does_not_depend_on_what_ran_before(tmp_path: Path) -> None:
    """Names of unfolded operations come from the layer, not from Keras' running numbers."""
    q = kquant.quantize(made("custom_layer"))
    again = kquant.quantize(made("custom_layer"))
    kquant_names = [[layer.name for layer in m.layers if isinstance(layer, FakeQuant)] for m in (q, again)]
    assert any(name.startswith("gate_") for name in kquant_names[0])
    assert [n for n in kquant_names[0] if n.startswith("gate_")] == [
        n for n in kquant_names[1] if n.startswith("gate_")
    ]
