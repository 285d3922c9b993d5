"""Recurrent layers: every time step of the file against the simulation, states, saving, training, refusals."""

from __future__ import annotations

import warnings

import contract
import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant
from kquant.arithmetic.gates import sigmoid_table, tanh_table
from kquant.layers.nodes import encodings_of
from kquant.layers.quantized_lstm import QuantizedLSTM
from kquant.prepare.one_step import cell, cell_samples
from kquant.runtime.interpreters import litert_interpreter
from kquant.tflite.reader import read_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:calibrate. the range differs more than 2 times",
    "ignore:quantize. .* takes no packed 4-bit weights",
)

layers = keras.layers
REFERENCES = (("litert", "litert-reference"), ("tflm", "tflm"))
STEPS, FEATURES = 6, 4


def sequences(count: int = 128, steps: int = STEPS, seed: int = 0) -> np.ndarray:
    """Smooth random sequences, as sensors give them."""
    rng = np.random.default_rng(seed)
    return np.float32(np.cumsum(rng.normal(size=(count, steps, FEATURES)), 1) * 0.5)


def build(*made, steps: int = STEPS, batch: int | None = None) -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((steps, FEATURES), batch_size=batch, name="x")
    x = inputs
    for layer in made:
        x = layer(x)
    return contract.randomise(keras.Model(inputs, x, name="recurrent"))


def calibrated(model: keras.Model, target: str = "litert", data=None) -> keras.Model:
    q = kquant.quantize(model, target=target)
    return kquant.calibrate(q, sequences() if data is None else data, batch_size=64, verbose=False)


NETWORKS = {
    "lstm": lambda: build(layers.LSTM(12, return_sequences=True)),
    # sums beyond 2^22, whose products with a multiplier float64 takes in halves, and beyond 2^24, which float32 loses
    "wide": lambda: build(layers.LSTM(140, return_sequences=True), steps=3),
    "widest": lambda: build(layers.LSTM(520, return_sequences=True), steps=2),
    "stacked": lambda: build(layers.LSTM(8, return_sequences=True), layers.LSTM(6, return_sequences=True)),
    "both ways": lambda: build(layers.Bidirectional(layers.LSTM(6, return_sequences=True))),
    "backwards": lambda: build(layers.LSTM(6, return_sequences=True, go_backwards=True)),
    "states": lambda: build(lambda x: layers.LSTM(6, return_sequences=True, return_state=True)(x)[:2]),
    "last": lambda: build(layers.LSTM(6), layers.Dense(3)),
    "gru": lambda: build(layers.GRU(6, return_sequences=True), steps=3),
    "old gru": lambda: build(layers.GRU(6, return_sequences=True, reset_after=False), steps=3),
    "gru states": lambda: build(lambda x: layers.GRU(6, return_sequences=True, return_state=True)(x), steps=2),
    "two grus": lambda: build(layers.Bidirectional(layers.GRU(3, return_sequences=True), merge_mode="ave"), steps=2),
    "simple": lambda: build(layers.SimpleRNN(6, return_sequences=True), steps=3),
    "relu lstm": lambda: build(layers.LSTM(4, activation="relu", recurrent_activation="hard_sigmoid"), steps=2),
}


@pytest.mark.parametrize("name", ["lstm", "widest"])
@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_predict_gives_the_same_without_the_floats_beside(name, target):
    model = NETWORKS[name]()
    x = sequences(steps=model.inputs[0].shape[1])
    q = calibrated(model, target, x)
    np.testing.assert_array_equal(q.predict(x, verbose=0), contract.simulate(q, [x])[0])


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize(("target", "runtime"), REFERENCES)
def test_every_step_of_the_file_is_simulated(name, target, runtime, record_property):
    model = NETWORKS[name]()
    x = sequences(steps=model.inputs[0].shape[1])
    q = calibrated(model, target, x)
    found = contract.simulate(q, [x])
    parity = contract.parity(contract.file_of(q), runtime, [x[:32]], [y[:32] for y in found])
    assert parity == contract.Parity(1.0, 0)
    wanted = keras.tree.flatten(model(x))
    errors = [np.abs(a - b).max() / np.abs(a).max() for a, b in zip(wanted, found, strict=True)]
    record_property("max_error", float(max(errors)))
    print(f"{name} on {target}: max error against float {max(errors):.4f} of the largest value")
    assert max(errors) < 0.25


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["lstm", "stacked", "both ways", "backwards", "states", "last"])
def test_every_step_in_int16_is_simulated_on_tflm(name):
    """One operator of int16 activations, and codes equal at every step; nearer to float than in int8."""
    model, x = NETWORKS[name](), sequences()
    wanted = keras.tree.flatten(model(x))[0]
    errors = []
    for recipe in ("int8", "int16x8"):
        q = kquant.calibrate(kquant.quantize(model, recipe, target="tflm"), x, batch_size=64, verbose=False)
        errors.append(float(np.sqrt(np.mean((keras.tree.flatten(q(x))[0] - wanted) ** 2))))
    content = contract.file_of(q)
    operators = [op for op in read_model(content).operators if op.code == "UNIDIRECTIONAL_SEQUENCE_LSTM"]
    tensors = read_model(content).tensors
    assert {tensors[op.inputs[0]].dtype for op in operators} == {"int16"}
    assert {tensors[op.inputs[12]].dtype for op in operators} == {"int64"}
    assert contract.compare(q, content, "tflm", [x[:64]]) == contract.Parity(1.0, 0)
    print(f"{name}: rms error {errors[0]:.5f} in int8, {errors[1]:.5f} in int16x8")
    assert errors[1] < 0.75 * errors[0]


def test_int16_trains_saves_and_loads(tmp_path):
    model, x = NETWORKS["last"](), sequences()
    q = kquant.calibrate(kquant.quantize(model, "int16x8", target="tflm"), x, batch_size=64, verbose=False)
    near = float(np.abs(q(x, training=True) - model(x)).max())
    assert 0 < near < 0.02, "in training: floats on grids of 16 bits, weights on those of 8"
    q.compile("sgd", "mse", run_eagerly=True)
    q.fit(x[:64], np.zeros((64, 3)), verbose=0)
    q.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again(x), q(x))
    assert contract.compare(again, contract.file_of(again), "tflm", [x[:32]]) == contract.Parity(1.0, 0)


def test_litert_keeps_the_lstm_in_int8():
    with pytest.warns(UserWarning, match="no 16-bit kernel for .*LSTM"):
        q = kquant.quantize(NETWORKS["last"](), "int16x8")
    kquant.calibrate(q, sequences(), batch_size=64, verbose=False)
    assert contract.compare(q, contract.file_of(q), "litert-reference", [sequences(16)]) == contract.Parity(1.0, 0)


@pytest.mark.parametrize("runtime", ["litert", "tflm"])
def test_tables_are_close_to_the_functions(runtime):
    x = np.arange(-32768, 32768)
    assert np.abs(sigmoid_table(runtime) / 2.0**15 - 1 / (1 + np.exp(-x / 2.0**12))).max() < 2e-4
    for bits in range(7):
        assert np.abs(tanh_table(runtime, bits) / 2.0**15 - np.tanh(x / 2.0 ** (15 - bits))).max() < 1e-3


def test_cell_scale_is_the_power_of_two_that_holds_the_range():
    q = calibrated(NETWORKS["lstm"]())
    (layer,) = (x for x in q.layers if isinstance(x, QuantizedLSTM))
    for reach, bits in ((0.4, 0), (1.0, 1), (1.5, 1), (3.0, 2), (63.0, 6), (900.0, 6)):
        layer.cell.set_range(0, -reach, reach / 2)
        assert int(layer.cell_bits()) == bits
        parity = contract.compare(q, contract.file_of(q), "litert-reference", [sequences(16)])
        assert parity == contract.Parity(1.0, 0)


def test_a_run_forgets_the_run_before():
    """The file puts zeros into its states, so that nobody has to reset an interpreter between two sequences."""
    q = calibrated(NETWORKS["lstm"]())
    file = litert_interpreter(contract.file_of(q), reference=True)
    x = file.get_input_details()[0]["index"]
    made = []
    for _ in range(2):
        file.set_tensor(x, np.full((1, STEPS, FEATURES), 77, np.int8))
        file.invoke()
        made.append(file.get_tensor(file.get_output_details()[0]["index"]))
    np.testing.assert_array_equal(*made)


def test_stateful_file_goes_on_where_it_was():
    """One step at a time with the states in the file: the codes of the whole sequence, bit for bit."""
    sequence = calibrated(NETWORKS["lstm"]())
    one = build(layers.LSTM(12, return_sequences=True, stateful=True), steps=1, batch=1)
    step = kquant.quantize(one)
    step.set_weights(sequence.get_weights())
    whole = litert_interpreter(contract.file_of(sequence), reference=True)
    file = litert_interpreter(contract.file_of(step), reference=True)
    codes = np.random.default_rng(1).integers(-128, 128, (1, STEPS, FEATURES), np.int8)

    def run(interpreter, x):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    wanted = run(whole, codes)
    for _ in range(2):
        found = np.concatenate([run(file, codes[:, t : t + 1]) for t in range(STEPS)], 1)
        np.testing.assert_array_equal(found, wanted)
        file.reset_all_variables()


@pytest.mark.parametrize("kind", [layers.GRU, layers.SimpleRNN, layers.LSTM])
def test_step_model_runs_a_sequence(kind, record_property):
    model = build(kind(6, return_sequences=True, name="memory"))
    step = cell(model)
    x = sequences(96)
    q = kquant.calibrate(kquant.quantize(step), cell_samples(step, x), batch_size=64, verbose=False)
    content = contract.file_of(q)
    ports = {t.name: t for t in (*read_model(content).inputs, *read_model(content).outputs)}
    assert len(ports) == len(q.inputs) + len(q.outputs), "a tensor of its own for each"
    for state in "hc" if kind is layers.LSTM else "h":
        before, after = ports[f"memory_{state}"], ports[f"memory_{state}_next"]
        assert (before.scale, before.zero_point) == (after.scale, after.zero_point)
    file = litert_interpreter(content, reference=True)
    ins, outs = file.get_input_details(), file.get_output_details()
    scale, zero = ports["x"].scale[0], ports["x"].zero_point[0]
    codes = np.clip(np.rint(x[:8] / scale) + zero, -128, 127).astype(np.int8)
    found = np.zeros((8, STEPS, 6), np.int64)
    for n in range(8):
        states = [np.full((1, 1, 6), d["quantization"][1], np.int8) for d in ins[1:]]
        for t in range(STEPS):
            for d, value in zip(ins, [codes[n : n + 1, t : t + 1], *states], strict=True):
                file.set_tensor(d["index"], value)
            file.invoke()
            states = [file.get_tensor(d["index"]) for d in outs[1:]]  # copied as they are
            found[n, t] = file.get_tensor(outs[0]["index"])[0, 0]
    output = outs[0]["quantization"]
    real = (found - output[1]) * output[0]
    wanted = np.asarray(model(x[:8]))
    record_property("max_error", float(np.abs(real - wanted).max()))
    print(f"{kind.__name__}: max error of {STEPS} steps {np.abs(real - wanted).max():.4f}")
    assert np.abs(real - wanted).max() < 0.15


def test_saved_model_computes_the_same(tmp_path):
    q = calibrated(build(layers.LSTM(6, return_sequences=True), layers.LSTM(4)))
    q.save(tmp_path / "q.keras")
    again = keras.saving.load_model(tmp_path / "q.keras")
    x = sequences(16)
    np.testing.assert_array_equal(*(contract.simulate(m, [x])[0] for m in (q, again)))
    assert contract.file_of(q) == contract.file_of(again)


def test_trains_as_the_kernel_computes():
    q = calibrated(build(layers.LSTM(8, return_sequences=True), layers.Dense(3)))
    x = sequences(64)
    inference, training = contract.simulate(q, [x])[0], np.asarray(q(x, training=True))
    assert np.mean(np.abs(inference - training)) < 0.01 * np.abs(inference).max()
    (layer,) = (x for x in q.layers if isinstance(x, QuantizedLSTM))
    for mode in (True, False):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(q(x, training=mode) - 1.0))
        for variable, gradient in zip(
            layer.trainable_variables, tape.gradient(loss, [v.value for v in layer.trainable_variables]), strict=True
        ):
            assert gradient is not None and np.any(np.asarray(gradient)), (variable.path, mode)
    before = [e.count.numpy() for e in encodings_of(q) if e.has_range]
    q.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
    losses = q.fit(x, np.ones((64, STEPS, 3), np.float32), epochs=4, batch_size=64, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    after = [e.count.numpy() for e in encodings_of(q) if e.has_range]
    assert all(np.all(b > a) for a, b in zip(before, after, strict=True)), "the cell's range moves as well"
    parity = contract.compare(q, contract.file_of(q), "litert-reference", [x[:16]])
    assert parity == contract.Parity(1.0, 0)


@pytest.mark.parametrize("kind", ["log", "codebook"])
def test_weights_on_other_grids_are_simulated_and_refused(kind, tmp_path):
    model = build(layers.LSTM(6, name="memory"))
    recipe = {"name": "other", "weights": {"kind": kind, "bits": 3}}
    with pytest.warns(UserWarning, match=f"weights that are simulated only.* memory: weights on a {kind} grid"):
        q = kquant.quantize(model, recipe)
    kquant.calibrate(q, sequences(), verbose=False)
    (layer,) = (x for x in q.layers if isinstance(x, QuantizedLSTM))
    snapped = build(layers.LSTM(6))
    for after, weights in zip(snapped.weights, model.weights, strict=True):
        after.assign(weights)
        if after.name == "bias":
            continue
        after.assign(layer._on_grid(tf.convert_to_tensor(weights)))
        for gate in np.split(after.numpy(), 4, axis=1):
            assert len(np.unique(gate.round(5))) <= 8
    x = sequences(32)
    y, near, far = (np.asarray(m(x)) for m in (q, snapped, model))
    assert np.abs(y - near).max() < 0.05 < np.abs(y - far).max(), (np.abs(y - near).max(), np.abs(y - far).max())
    np.testing.assert_allclose(y, q(x, training=True), atol=0.05)
    with pytest.raises(ValueError, match=f"memory.*: weights on a {kind} grid, which no integer kernel multiplies"):
        kquant.export(q, tmp_path / "m.tflite")


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", [layers.GRU, layers.SimpleRNN])
def test_biases_of_zeros_may_begin_to_train(kind, steps, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((steps, FEATURES))
    model = keras.Model(inputs, layers.Dense(2)(kind(4)(inputs)))
    x = sequences(64, steps=steps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no tensor that is constant on all data
        q = calibrated(model, data=x)
    q.compile(keras.optimizers.SGD(1e-6), "mse", run_eagerly=True)
    q.fit(x, np.ones((len(x), 2)), batch_size=64, verbose=0)
    for report in kquant.export(q, tmp_path / "m.tflite", data=x).verification:
        if report.runtime == "litert-reference":
            assert all(a.equal == 1.0 for a in report.agreements)


def test_trained_without_calibration():
    q = kquant.quantize(build(layers.LSTM(5), layers.Dense(2)))
    q.compile("sgd", "mse", run_eagerly=True)
    q.fit(sequences(64), np.zeros((64, 2), np.float32), verbose=0)
    parity = contract.compare(q, contract.file_of(q), "litert-reference", [sequences(16)])
    assert parity == contract.Parity(1.0, 0)


def test_shared_layer_holds_the_states_of_both_calls():
    memory = layers.LSTM(5, return_sequences=True)
    model = build(lambda x: layers.Concatenate()([memory(layers.Rescaling(0.1)(x)), memory(x)]))
    q = calibrated(model)
    (layer,) = (x for x in q.layers if isinstance(x, QuantizedLSTM))
    assert np.all(layer.cell.count.numpy() > 0) and layer.cell.count.shape == (2,)
    parity = contract.compare(q, contract.file_of(q), "litert-reference", [sequences(32)])
    assert parity == contract.Parity(1.0, 0)


def started(x):
    flat = layers.Flatten()(x)
    return layers.LSTM(4, name="memory")(x, initial_state=[layers.Dense(4)(flat), layers.Dense(4)(flat)])


def reading_the_cell(x):
    return layers.LSTM(4, name="memory", return_state=True)(x)[2]


@keras.saving.register_keras_serializable(package="tests")
class OwnCell(layers.SimpleRNNCell):
    """A cell of the user's."""


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (started, r"memory \(LSTM\): it is given an initial state.*kquant.cell"),
        (reading_the_cell, r"memory_cell_state \(CellState\): the last cell state.*hidden state"),
        (layers.GRU(4, stateful=True, name="memory"), r"memory \(GRU\): stateful=True.*kquant.cell"),
        (layers.RNN(OwnCell(4), name="memory"), r"memory \(RNN\): its cell OwnCell has no rule"),
        (layers.Bidirectional(layers.LSTM(4, stateful=True), name="both"), r"both \(Bidirectional\): stateful"),
    ],
)
def test_refused(made, message):
    model = build(made, batch=1)
    with pytest.raises(ValueError, match=message):
        kquant.quantize(model)


def test_check_tells_the_operators():
    (row,) = kquant.check(build(layers.GRU(4, name="memory"), steps=3)).layers
    assert row.status == "decomposed"
    assert set(row.operators) >= {"FULLY_CONNECTED", "WHILE", "LOGISTIC", "TANH"}
    (row,) = kquant.check(build(layers.GRU(4, name="memory"), steps=3), "ethos-u").layers
    assert len(row.operators) > 25
    (row,) = kquant.check(build(layers.LSTM(4, return_sequences=True, name="memory"))).layers
    assert (row.status, row.operators) == ("integer", ("UNIDIRECTIONAL_SEQUENCE_LSTM",))


def test_step_model_refuses_what_mixes_steps():
    with pytest.raises(ValueError, match=r"conv \(Conv1D\): it computes a step from other steps"):
        cell(build(layers.Conv1D(3, 3, name="conv"), layers.GRU(4)))
    with pytest.raises(ValueError, match="go_backwards"):
        cell(build(layers.GRU(4, go_backwards=True)))


def test_one_step_calibration_of_a_stream_warns():
    model = build(layers.LSTM(4, stateful=True), steps=1, batch=1)
    with pytest.warns(UserWarning, match="one step from a state of zeros"):
        kquant.calibrate(kquant.quantize(model), sequences(64, 1), batch_size=1, verbose=False)
