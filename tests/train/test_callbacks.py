"""`Monitor`: what the event files hold, against the variables of the model and numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant
from kquant.graph.keras_private import every_layer
from kquant.layers.nodes import Compressed, FakeQuant

pytestmark = pytest.mark.filterwarnings(
    "ignore:This model has quantization nodes that have seen no data",
    r"ignore:.* the weights of \d+ of its \d+ output channels are all 0",
)

RNG = np.random.default_rng(0)
X, Y = np.float32(RNG.normal(size=(32, 6))), np.float32(RNG.normal(size=(32, 3)))
HIDDEN = [-1.0, 0.0, 0.0, 0.5]


def model() -> keras.Model:
    keras.utils.set_random_seed(1)
    hidden = keras.layers.Dense(8, activation="relu", name="hidden")
    made = keras.Sequential([keras.Input((6,), name="x"), hidden, keras.layers.Dense(3, name="out")])
    hidden.kernel.assign(np.resize(np.float32(HIDDEN), (6, 8)))
    return made


def events(folder: Path) -> dict[tuple[str, int], Any]:
    """(tag, step) -> the number, or the buckets float[n, 3] (left, right, count), from the files alone."""
    found = {}
    for path in folder.iterdir():
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found[value.tag, event.step] = tf.make_ndarray(value.tensor)
    return found


def fit(q: keras.Model, monitor: keras.callbacks.Callback, epochs: int = 2, **options: Any) -> None:
    q.compile(keras.optimizers.SGD(0.0), "mse", **options)
    q.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, callbacks=[monitor])


def test_records_are_the_state_of_the_model(tmp_path: Path) -> None:
    q = kquant.calibrate(kquant.quantize(model()), X, verbose=False)
    fit(q, kquant.callbacks.Monitor(tmp_path, data=X * 2.0))
    found = events(tmp_path)
    assert {step for _, step in found} == {4, 8}
    node = q.get_layer("x_quant")
    low, high = min(0.0, float(node.low.numpy()[0])), max(0.0, float(node.high.numpy()[0]))
    scale, zero = float(found["x_quant/scale", 8]), float(found["x_quant/zero_point", 8])
    assert scale == pytest.approx((high - low) / 255, rel=1e-5) and zero == round(-128 - low / scale)
    assert float(found["x_quant/low", 8]) == pytest.approx(low, abs=scale)
    assert float(found["x_quant/high", 8]) == pytest.approx(high, abs=scale)
    beyond = np.mean((2 * X / scale + zero < -128.5) | (2 * X / scale + zero > 127.5))
    assert 0.0 < beyond == pytest.approx(float(found["x_quant/clipped", 8]), abs=1e-6)
    assert float(found["hidden/sparsity", 8]) == 0.5 == float(found["hidden/zero_codes", 8])
    assert float(found["hidden/unique", 8]) == 3.0 == float(found["hidden/unique_codes", 8])
    assert float(found["hidden/clipped", 8]) == 0.0
    kernel = q.get_layer("out").weights_as_used().numpy()
    assert float(found["out/scale_max", 8]) == pytest.approx(np.abs(kernel).max() / 127, rel=1e-6)
    assert float(found["out/scale_min", 8]) == pytest.approx(np.abs(kernel).max(axis=0).min() / 127, rel=1e-6)
    assert found["out/weights", 8][:, 2].sum() == kernel.size
    assert found["out/weights", 8][-1, 1] == pytest.approx(kernel.max())
    assert found["hidden/codebook", 8][:, 2].sum() == 3
    assert found["hidden/scales", 8][:, 2].sum() == 8


def test_weights_beyond_a_chosen_range_are_counted(tmp_path: Path) -> None:
    q = kquant.quantize(model())
    layer = q.get_layer("hidden")
    layer.set_reach(np.full((1, 8), 0.6, "float32"), by_data=True)
    fit(q, kquant.callbacks.Monitor(tmp_path, histograms=False), epochs=1)
    found = events(tmp_path)
    assert float(found["hidden/clipped", 4]) == 0.25
    assert not [tag for tag, _ in found if tag.endswith(("weights", "scales", "codebook"))]


@pytest.mark.parametrize(("every", "per_execution", "steps"), [(3, 1, {3, 6, 8}), (2, 4, {4, 8}), (100, 1, {8})])
def test_steps(every: int, per_execution: int, steps: set[int], tmp_path: Path) -> None:
    q = kquant.quantize(model())
    monitor = kquant.callbacks.Monitor(tmp_path, every=every, histograms=False)
    fit(q, monitor, steps_per_execution=per_execution)
    assert {step for _, step in events(tmp_path)} == steps
    q.fit(X[:8], Y[:8], verbose=0, callbacks=[monitor])
    assert max(step for _, step in events(tmp_path)) == 9, "a second fit goes on"


def test_a_distilled_student_is_recorded_and_its_teacher_is_not(tmp_path: Path) -> None:
    student, teacher = kquant.quantize(model()), kquant.quantize(model())
    teacher.get_layer("out").name = "out_of_teacher"
    trainer = kquant.distill(student, teacher)
    fit(trainer, kquant.callbacks.Monitor(tmp_path), epochs=1)
    tags = {tag for tag, _ in events(tmp_path)}
    assert "out/unique" in tags and not [tag for tag in tags if "teacher" in tag]


def test_layers_of_several_kernels_and_their_paths() -> None:
    """What wraps a layer with masks or codebooks tells its kernels by path."""
    model = keras.Sequential([keras.Input((3, 4)), keras.layers.LSTM(2, name="masked")])
    monitor = kquant.callbacks.Monitor("unused")
    monitor.set_model(kquant.prune(model, 0.5))
    found = monitor.scalars()
    for path, size in (("cell.kernel", 4 * 8), ("cell.recurrent_kernel", 2 * 8)):
        assert found[f"masked/{path}/sparsity"] == 0.5 and 2 <= found[f"masked/{path}/unique"] <= size / 2 + 1


def test_recurrent_layers_show_the_range_of_their_cell(tmp_path: Path) -> None:
    x = keras.Input((3, 2), name="x")
    q = kquant.quantize(keras.Model(x, keras.layers.LSTM(3, name="memory")(x)))
    q.compile("sgd", "mse")
    q.fit(X.reshape(32, 3, 2), Y, verbose=0, callbacks=[kquant.callbacks.Monitor(tmp_path)])
    cells = [layer for layer in every_layer(q) if isinstance(layer, FakeQuant) and "cell" in layer.name]
    assert (f"{cells[0].name}/high", 1) in events(tmp_path)


def test_refusals(tmp_path: Path) -> None:
    for every in (0, -1, "step", 1.5):
        with pytest.raises(ValueError, match="every must be 'epoch' or a number of steps"):
            kquant.callbacks.Monitor(tmp_path, every=every)
    plain = model()
    with pytest.raises(ValueError, match="has no encodings, masks or codebooks"):
        fit(plain, kquant.callbacks.Monitor(tmp_path))
    assert not any(isinstance(layer, Compressed) for layer in plain.layers)
