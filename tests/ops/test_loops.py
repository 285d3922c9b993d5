"""Recurrent layers in a loop: its files on both interpreters, its states against Keras, training, saving, sizes."""

from __future__ import annotations

from pathlib import Path

import contract
import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant
from kquant.graph.keras_private import every_layer
from kquant.layers.kernel import holders
from kquant.layers.loop import Loop
from kquant.layers.nodes import FakeQuant, encodings_of
from kquant.prepare.one_step import cell
from kquant.runtime.running import available
from kquant.tflite.reader import read_model
from kquant.tflite.stored_weights import without_decodes

pytestmark = [
    pytest.mark.filterwarnings("ignore:calibrate. the range differs more than 2 times"),
    pytest.mark.filterwarnings("ignore:calibrate. in some samples the mask"),
]

layers = keras.layers
FEATURES = 4
MINMAX = {"name": "extremes", "activations": {"observer": "minmax"}}


def sequences(steps: int, count: int = 64) -> np.ndarray:
    """Smooth random sequences, as sensors give them."""
    return np.float32(np.cumsum(np.random.default_rng(0).normal(size=(count, steps, FEATURES)), 1) * 0.5)


def build(*made, steps: int = 9) -> keras.Model:
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((steps, FEATURES), name="x")
    for layer in made:
        x = layer(x)
    return contract.randomise(keras.Model(inputs, x, name="looping"))


def calibrated(model: keras.Model, target: str = "litert", recipe="int8") -> keras.Model:
    q = kquant.quantize(model, recipe, target=target)
    return kquant.calibrate(q, sequences(model.inputs[0].shape[1]), batch_size=32, verbose=False)


def loops(model: keras.Model) -> list[Loop]:
    return [layer for layer in model.layers if isinstance(layer, Loop)]


def state_and_sequence(x):
    return layers.LSTM(4, activation="relu", return_sequences=True, return_state=True, name="memory")(x)


def masked(x):
    return layers.Bidirectional(layers.GRU(3, return_sequences=True), name="both")(layers.Masking()(x))


NETWORKS = {
    "gru": lambda: build(layers.GRU(6), layers.Dense(2)),
    "gru sequence": lambda: build(layers.GRU(6, return_sequences=True)),
    "old gru": lambda: build(layers.GRU(6, reset_after=False, use_bias=False, return_sequences=True)),
    "backwards": lambda: build(layers.GRU(5, go_backwards=True, return_sequences=True)),
    "simple": lambda: build(layers.SimpleRNN(6, return_sequences=True)),
    "relu": lambda: build(layers.SimpleRNN(6, activation="relu"), layers.Dense(2)),
    "linear": lambda: build(layers.SimpleRNN(3, activation=None, return_sequences=True), steps=3),
    "lstm": lambda: build(layers.LSTM(4, activation="relu", recurrent_activation="hard_sigmoid")),
    "lstm states": lambda: build(state_and_sequence),
    "stack": lambda: build(layers.RNN([layers.GRUCell(4), layers.SimpleRNNCell(3)]), layers.Dense(2)),
    "masked": lambda: build(masked),
    "one step": lambda: build(layers.GRU(3), steps=1),
    "dropout": lambda: build(layers.GRU(4, dropout=0.2), layers.Dense(2)),
}


@pytest.mark.filterwarnings("ignore:.* what it draws in training")
@pytest.mark.parametrize("target", ["litert", "tflm"])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_file_computes_the_codes_of_the_model(name, target) -> None:
    model = NETWORKS[name]()
    q = calibrated(model, target)
    assert loops(q)
    content = contract.file_of(q)
    assert read_model(content).operator_counts["WHILE"] == len(loops(q))
    x = sequences(model.inputs[0].shape[1], 32)
    if name == "masked":
        x[::3, 5:] = 0.0
    assert contract.compare(q, content, contract.RUNTIMES[target], [x]) == contract.Parity(1.0, 0)
    for y, z in zip(keras.tree.flatten(q(x)), keras.tree.flatten(model(x)), strict=True):
        assert np.abs(y - z).max() < 0.12 * np.abs(z).max() + 0.02


@pytest.mark.parametrize("name", ["gru sequence", "lstm", "simple"])
@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_sixteen_bits(name, target) -> None:
    q = calibrated(NETWORKS[name](), target, "int16x8")
    parity = contract.compare(q, contract.file_of(q), contract.RUNTIMES[target], [sequences(9, 16)])
    assert parity == contract.Parity(1.0, 0)


@pytest.mark.parametrize("recipe", ["float16", "weight-only-int8"])
def test_a_float_loop_computes_as_keras_does(recipe, tmp_path: Path) -> None:
    model = NETWORKS["gru sequence"]()
    q = kquant.quantize(model, recipe)
    x = sequences(9, 8)
    report = kquant.export(q, tmp_path / "q.tflite", data=x)
    assert report.operators["WHILE"] == 1
    assert all(a.max_err_lsb == 0 for v in report.verification for a in v.agreements)
    np.testing.assert_allclose(q(x), model(x), atol=0.02)


@pytest.mark.parametrize("name", ["gru", "old gru", "lstm", "relu"])
def test_loop_is_the_model_of_one_step_again_and_again(name) -> None:
    """`kquant.cell` makes the model of one step without a loop; with the same ranges it gives the same codes."""
    model = keras.Model((m := NETWORKS[name]()).inputs, m.layers[1].output)
    q, step = calibrated(model, "tflm"), kquant.quantize(cell(model), target="tflm")
    ranges = {layer.name: layer for layer in encodings_of(q) if layer.has_range}
    states = {f"{model.layers[1].name}_{s}_quant": f"{n}_quant" for s, n in states_of(q)}
    for layer in encodings_of(step):
        if layer.has_range:
            held = ranges[states.get(layer.name) or layer.name.replace("_0_", "_").removesuffix("_0")]
            for site in range(layer.sites):
                layer.set_range(site, float(held.low.numpy().min()), float(held.high.numpy().max()), exact=True)
    x = sequences(9, 8)
    given = [np.zeros((8, *t.shape[1:]), np.float32) for t in step.inputs[1:]]
    for t in range(9):
        last, *given = step([tf.constant(x[:, t : t + 1]), *map(tf.convert_to_tensor, given)])
    last = np.reshape(last, (8, -1))
    np.testing.assert_array_equal(last, np.reshape(q(x), (8, -1))[:, -last.shape[1] :])


def states_of(q: keras.Model) -> list[tuple[str, str]]:
    """Letter of each state, and the name of the layer that makes it."""
    (loop,) = loops(q)
    made = [call.op.name.removesuffix("_quant") for call in loop.nodes if call.kwargs.get("peek")]
    return list(zip("hc", made, strict=False))


def test_ranges_are_those_of_all_steps() -> None:
    model = build(layers.GRU(6, return_sequences=True, name="memory"))
    q, x = calibrated(model, recipe=MINMAX), sequences(9)
    states = np.asarray(model(x))
    (loop,) = loops(q)
    (holder,) = [n.op for n in loop.nodes if isinstance(n.op, FakeQuant) and n.kwargs.get("peek")]
    low, high = float(holder.low.numpy().min()), float(holder.high.numpy().max())
    np.testing.assert_allclose([low, high], [states.min(), states.max()], rtol=1e-5)


def test_ranges_move_once_for_a_batch() -> None:
    model = build(layers.GRU(6, return_sequences=True, name="memory"))
    q, x = kquant.quantize(model), sequences(9)
    q(x, training=True)
    states = np.asarray(model(x))
    (loop,) = loops(q)
    ranges = [layer for layer in encodings_of(loop.step) if layer.has_range]
    assert all(layer.count.numpy().sum() == 1.0 for layer in ranges)
    (holder,) = [n.op for n in loop.nodes if isinstance(n.op, FakeQuant) and n.kwargs.get("peek")]
    # before the first batch no range is known, so that the step computes in float
    np.testing.assert_allclose(holder.high.numpy(), [states.max()], rtol=0.02)
    q(x, training=True)
    assert all(layer.count.numpy().sum() == 2.0 for layer in ranges)


@pytest.mark.parametrize("recipe", ["int8", {"name": "learned", "training": {"ranges": "learned"}}])
def test_trains_and_saves(recipe, tmp_path: Path) -> None:
    q = calibrated(build(layers.GRU(6, name="memory"), layers.Dense(1)), recipe=recipe)
    x = sequences(9)
    y = x.mean(axis=(1, 2))[:, None]
    before = [k.on_grid.numpy() for h in holders(loops(q)[0].step) for k in h.kernels()]
    q.compile(keras.optimizers.Adam(0.02), "mse")
    history = q.fit(x, y, epochs=12, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]
    after = [k.on_grid.numpy() for h in holders(loops(q)[0].step) for k in h.kernels()]
    assert all(np.abs(a - b).max() > 0.0 for a, b in zip(before, after, strict=True))
    q.save(tmp_path / "q.keras")
    again = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(again(x), q(x))
    np.testing.assert_array_equal(q.predict(x, verbose=0), q(x))
    assert contract.file_of(again) == contract.file_of(q)


@pytest.mark.parametrize("ranges", ["learned", "pact"])
def test_learned_ranges_have_the_gradients_of_steps_written_out(ranges: str) -> None:
    q = calibrated(build(layers.GRU(4, name="memory")), recipe={"name": "learning", "training": {"ranges": ranges}})
    (loop,) = loops(q)
    inner = [layer for layer in every_layer(loop.step) if isinstance(layer, FakeQuant) and layer.has_range]
    for layer in inner:  # some values lie beyond, so that both kinds of gradients are there
        layer.low.assign(layer.low * 0.6)
        layer.high.assign(layer.high * 0.6)
    stretches = [layer.stretch.value for layer in inner]
    xs = [
        tf.constant(np.random.default_rng(n).normal(size=(8, 9, t.shape[2])), "float32")
        for n, t in enumerate(loop.ports[0])
    ]
    given = [tf.constant([0.05, 3.0]) for _ in loop.ports[1]]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(loop(xs, given, training=True)[0]))
    in_loop, penalties = tape.gradient(loss, stretches), loop.losses
    states = [tf.zeros((8, *t.shape[1:])) for t in loop.ports[2]]
    with tf.GradientTape() as tape:
        for step in range(9):
            states = loop.step([*(x[:, step : step + 1] for x in xs), *given, *states], training=True)[: loop.states]
        written_out = tf.reduce_sum(tf.square(states[loop.results[0].state]))
    np.testing.assert_allclose(loss, written_out, rtol=1e-5)
    for ours, theirs in zip(in_loop, tape.gradient(written_out, stretches), strict=True):
        # a tensor has as many values as there are in all steps (Esser et al., section 2.2)
        np.testing.assert_allclose(3.0 * ours, theirs, rtol=1e-3, atol=1e-5)
    assert any(np.abs(ours).max() > 1e-2 for ours in in_loop)
    assert len(penalties) == (len(inner) if ranges == "pact" else 0)


@pytest.mark.parametrize("training", [{}, {"freeze_ranges_after": 5}])
def test_weights_of_before_ranges_of_loops_learned_are_loaded(training: dict, tmp_path: Path) -> None:
    """Such files have of a range in a loop what a moving one has, beside learned ones outside of it."""
    learned, moving = ({"name": name, "training": {"ranges": name, **training}} for name in ("learned", "moving"))
    models = [calibrated(build(layers.GRU(4, name="memory")), recipe=recipe) for recipe in (learned, moving, learned)]
    ranges = [
        [layer for layer in every_layer(loops(q)[0].step) if isinstance(layer, FakeQuant) and layer.has_range]
        for q in models
    ]
    for old, moved, _ in zip(*ranges, strict=True):
        moved.high.assign(2.0 * moved.high)
        object.__setattr__(old, "save_own_variables", moved.save_own_variables)
    models[0].save_weights(tmp_path / "old.weights.h5")
    models[2].load_weights(tmp_path / "old.weights.h5")
    for _, moved, now in zip(*ranges, strict=True):
        for name in ("low", "high", "count"):
            np.testing.assert_array_equal(getattr(now, name), getattr(moved, name))
    x = sequences(9)
    models[2].compile("sgd", "mse")
    assert np.isfinite(models[2].fit(x, np.tanh(x[:, -1]), epochs=1, verbose=0).history["loss"][0])


def test_an_end_that_calibration_left_at_zero_opens_where_values_lie_beyond() -> None:
    q = calibrated(build(layers.GRU(4, name="memory")), recipe={"name": "learning", "training": {"ranges": "learned"}})
    (loop,), x = loops(q), sequences(9)
    (summed,) = [layer for layer in every_layer(loop.step) if layer.name == "memory_sum_h_quant"]
    for low in (0.0, 0.5 * float(summed.low[0])):
        summed.low.assign([low])
        q.compile(keras.optimizers.SGD(0.0), "mse")  # nothing learns
        q.fit(x, np.tanh(x[:, -1]), batch_size=64, epochs=1, verbose=0)
        assert float(summed.low[0]) == pytest.approx(low or -1e-6 * float(summed.high[0]))


TRAINING = {
    "learned": {"ranges": "learned"},
    "pact": {"ranges": "pact"},
    "robust": {"ranges": "pact", "robust": {"shift": 0.5}},
    "frozen": {"ranges": "learned", "freeze_ranges_after": 2},
}


@pytest.mark.one_in(3, always="learned")
@pytest.mark.parametrize("training", TRAINING)
def test_ranges_of_a_loop_learn_and_are_those_of_the_file(training: str) -> None:
    recipe = {"name": "learning", "training": TRAINING[training]}
    q = calibrated(build(layers.SimpleRNN(4, name="memory", activation="relu"), layers.Dense(1)), "tflm", recipe)
    (loop,), x = loops(q), sequences(9)
    inner = [layer for layer in every_layer(loop.step) if isinstance(layer, FakeQuant) and layer.has_range]
    reach = lambda: np.array([[layer.low.numpy()[0], layer.high.numpy()[0]] for layer in inner])  # noqa: E731
    before = reach()
    q.compile(keras.optimizers.Adam(0.01), "mse")
    q.fit(x, x.mean(axis=(1, 2))[:, None], batch_size=16, epochs=1, verbose=0)  # 4 steps, of which 3 are in force
    after = reach()
    assert np.all(np.abs(after - before).max(axis=1) > 0.0)
    if training == "frozen":
        q.fit(x, x.mean(axis=(1, 2))[:, None], batch_size=16, epochs=1, verbose=0)
        np.testing.assert_array_equal(reach(), after)
    assert contract.compare(q, contract.file_of(q), contract.RUNTIMES["tflm"], [x]) == contract.Parity(1.0, 0)


def test_gradients_are_those_of_the_float_layer() -> None:
    """16 bits are near enough to float that the two agree, also through all steps."""
    model = build(layers.GRU(4, name="memory"))
    q, x = calibrated(model, recipe="int16x8"), tf.constant(sequences(9, 8))
    given = []
    for one in (model, q):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.square(one(x, training=one is q)))
        given.append(tape.gradient(loss, x))
    assert np.abs(given[0] - given[1]).max() < 0.03 * np.abs(given[0]).max()


@pytest.mark.filterwarnings("ignore:.*output channels are all 0")
def test_masks_reach_the_kernels_inside() -> None:
    model = kquant.prune(build(layers.GRU(16, name="memory"), layers.Dense(2)), 0.5)
    q = calibrated(model)
    inside = [kernel for holder in holders(loops(q)[0].step) for kernel in holder.kernels()]
    assert len(inside) == 3
    shares = [float(np.mean(kernel.on_grid.numpy() == 0.0)) for kernel in inside]
    assert all(kernel.transforms for kernel in inside)
    rows = [row for row in kquant.sparsity(q).kernels if row.layer.startswith("memory_h")]
    assert [row.masked for row in rows] == [True] * 3
    np.testing.assert_allclose(sorted(row.sparsity for row in rows), sorted(shares))
    assert 0.4 < np.mean(shares) < 0.65
    q.compile("adam", "mse")
    q.fit(sequences(9), np.zeros((64, 2)), verbose=0)
    assert [float(np.mean(kernel.on_grid.numpy() == 0.0)) for kernel in inside] >= shares


def test_a_file_does_not_grow_with_the_steps() -> None:
    files = [read_model(contract.file_of(calibrated(build(layers.GRU(6), steps=n)))) for n in (9, 90)]
    assert files[0].operator_counts == files[1].operator_counts
    assert abs(files[0].size_bytes - files[1].size_bytes) < 256  # contents are aligned


def test_three_lstms_of_thirty_steps_are_small() -> None:
    made = [layers.LSTM(8, activation="relu", return_sequences=n < 2) for n in range(3)]
    q = kquant.quantize(build(*made, steps=30), target="tflm")
    kquant.calibrate(q, sequences(30, 32), verbose=False)
    file = read_model(contract.file_of(q))
    assert len(file.operators) <= 150
    assert file.size_bytes < 40_000


def test_two_hundred_steps(tmp_path: Path) -> None:
    model = build(layers.GRU(6), layers.Dense(2), steps=200)
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), 0.1 * sequences(200, 32), verbose=False)
    report = kquant.export(q, tmp_path / "long.tflite", data=0.1 * sequences(200, 8))
    assert [v.verdict for v in report.verification] == ["equal"] * len(report.verification)


@pytest.mark.skipif("tflm" not in available(), reason="needs the micro extra")
def test_products_move_into_the_loop_where_ram_counts(tmp_path: Path) -> None:
    model = build(layers.GRU(16, return_sequences=True), steps=50)
    made = {}
    for target in ("tflm", "litert"):
        q = calibrated(model, target)
        made[target] = kquant.export(q, tmp_path / f"{target}.tflite", data=sequences(50, 4))
        outside = [op.code for op in kquant.inspect(tmp_path / f"{target}.tflite").operators if op.subgraph == 0]
        assert ("FULLY_CONNECTED" in outside) == (target == "litert")
        assert made[target].operators["FULLY_CONNECTED"] == 6
    assert made["tflm"].arena_bytes < 0.6 * made["litert"].arena_bytes


@pytest.mark.skipif("tflm" not in available(), reason="needs the micro extra")
@pytest.mark.filterwarnings("ignore:.*output channels are all 0")
@pytest.mark.parametrize("compression", ["lut", "prune", "huffman", "auto"])
def test_weights_inside_are_decoded_at_every_step(compression, tmp_path: Path) -> None:
    """TFLM decodes them in the body of the WHILE; LiteRT, which decodes nothing, runs the file without."""
    made = build(layers.GRU(32, return_sequences=True, name="memory"), layers.LSTM(24, activation="relu", name="after"))
    shrunk = kquant.prune(made, 0.8) if compression == "prune" else kquant.cluster(made, 4)
    q = calibrated(shrunk, "tflm")
    x = sequences(9, 16)
    report = kquant.export(q, tmp_path / "q.tflite", data=x, compression=compression)
    assert [v.verdict for v in report.verification] == ["equal"]
    content = (tmp_path / "q.tflite").read_bytes()
    file = read_model(content)
    assert {"memory_h_r/kernel", "after_h_i/kernel"} <= {table.name for table in file.tables}
    decoding = [op for op in file.operators if op.code == "TFLM_DECODE"]
    assert all(op.subgraph for op in decoding if set(op.outputs) & {t.output for t in file.tables if "_h_" in t.name})
    assert contract.compare(q, content, "tflm", [x]) == contract.Parity(1.0, 0)
    plain = without_decodes(content)
    assert "TFLM_DECODE" not in read_model(plain).operator_counts
    assert contract.compare(q, plain, "tflm", [x]) == contract.Parity(1.0, 0)
    assert file.size_bytes < len(contract.file_of(q))


def test_a_shared_layer_is_one_loop() -> None:
    keras.utils.set_random_seed(3)
    a, b = (keras.Input((5, FEATURES), name=name) for name in "ab")
    shared = layers.GRU(4, name="memory")
    model = contract.randomise(keras.Model([a, b], layers.Subtract()([shared(a), shared(b)])))
    x = [sequences(5), sequences(5)[::-1]]
    q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
    assert len(loops(q)) == 1
    content = contract.file_of(q)
    assert read_model(content).operator_counts["WHILE"] == 2
    assert contract.compare(q, content, "litert-reference", x) == contract.Parity(1.0, 0)


def test_targets_without_loops_write_every_step() -> None:
    model = build(layers.GRU(6, return_sequences=True), steps=3)
    q = kquant.calibrate(kquant.quantize(model, target="ethos-u"), sequences(3), verbose=False)
    assert not loops(q)
    content = contract.file_of(q)
    assert contract.compare(q, content, "litert-reference", [sequences(3, 16)]) == contract.Parity(1.0, 0)
    kernels = [t for t in read_model(content).tensors if t.shape == (6, 6) and t.size_bytes]
    assert len(kernels) == 3  # one for all steps
    with pytest.raises(ValueError, match=r"memory \(GRU\): .*65 steps.*64.*kquant.cell"):
        kquant.quantize(build(layers.GRU(4, name="memory"), steps=65), target="ethos-u")


def test_verbs_see_what_is_inside(tmp_path: Path) -> None:
    model = build(layers.GRU(6, name="memory"), layers.Dense(2, name="head"))
    q, x = calibrated(model), sequences(9)
    told = kquant.encodings(q)
    again = kquant.quantize(model, encodings=told)
    np.testing.assert_array_equal(again(x), q(x))
    rows = {row.name: row for row in kquant.analyze(q, x[:32], sensitivity=False, verbose=False).layers}
    assert rows["memory"].macs == 9 * 3 * 36
    assert 20.0 < rows["memory"].sqnr_db < np.inf
    plain = kquant.strip(q)
    np.testing.assert_allclose(plain(x), model(x), atol=1e-5)
    assert not any(isinstance(layer, FakeQuant) for layer in every_layer(plain))
    np.testing.assert_array_equal(calibrated(kquant.fold(model))(x), q(x))
    report = kquant.export(q, tmp_path / "q.tflite", data=x)
    assert {weights.name.split("/")[0] for weights in report.weights.layers} >= {"memory_h_z", "memory_x_z", "head"}
    lines = []
    q.summary(print_fn=lines.append)
    assert "memory (Loop)" in lines[0]
    assert "memory_h_z (Dense)" in lines[0]


def test_what_does_not_reach_the_kernels_inside_is_told() -> None:
    model = build(layers.GRU(6, name="memory"), layers.Dense(2, name="head"))
    folded = kquant.fold(model)
    for verb in (kquant.prune, lambda m: kquant.cluster(m, 4)):
        with pytest.warns(UserWarning, match=r"holds a single step of them: memory \(Loop\). Change the model before"):
            verb(folded)
