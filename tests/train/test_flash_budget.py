"""Codes of a quantized model at a price: bits against numpy, gradients, `FlashBudget` against the file, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant
from kquant import callbacks
from kquant.core.spec import QuantSpec
from kquant.layers.code_rate import AS_COUNTED, interpolated
from kquant.layers.kernel import holders
from kquant.layers.weight_learner import WeightLearner
from kquant.tflite.huffman_format import find_code

layers = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(256, 24)).astype(np.float32)
Y = (X @ np.random.default_rng(7).normal(size=(24, 4))).argmax(-1)
GRID = QuantSpec(8, True).to_config()


def coded(
    entropy: float = 0.02, ranges: str = "learned", target: str = "tflm", zeros: float | None = None
) -> keras.Model:
    """Trained in float, masked where zeros are asked for, quantized with a price."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((24,), name="x")
    x = layers.Dense(96, activation="relu", name="wide")(inputs)
    x = layers.Dense(64, activation="relu", name="middle")(x)
    model = keras.Model(inputs, layers.Dense(4, activation="softmax", name="head")(x), name="net")
    model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    model.fit(X, Y, epochs=5, verbose=0)
    if zeros is not None:
        model = kquant.prune(model, zeros)
    recipe = {"name": "coded", "weights": {"per_axis": False}, "training": {"ranges": ranges, "entropy": entropy}}
    return kquant.calibrate(kquant.quantize(model, recipe, target=target), X, verbose=False)


def train(q: keras.Model, epochs: int, *callbacks: keras.callbacks.Callback) -> Any:
    q.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return q.fit(X, Y, batch_size=32, epochs=epochs, verbose=0, callbacks=list(callbacks)).history


def size_of(q: keras.Model, folder: Path) -> int:
    return kquant.export(q, folder / "m.tflite", compression="auto", strip_names=True).file_bytes


@pytest.mark.parametrize("ranges", ["moving", "learned"])
def test_the_price_is_that_of_the_histogram(ranges: str) -> None:
    learner = WeightLearner({"ranges": ranges, "entropy": 0.5}, GRID)
    learner.build((6, 50), (1, 1))
    codes = RNG.integers(-3, 4, (6, 50))
    scale = tf.constant([[0.25]])
    counts = np.bincount(codes.ravel() + 3, minlength=7)
    bits = float(np.sum(-np.log2(counts[codes + 3] / codes.size)))
    weights = tf.constant(codes * 0.25, tf.float32)
    assert float(learner.charge(weights, scale)) == pytest.approx(0.5 * bits / 8192, rel=1e-5)
    learner.price.assign(2.0)
    learner.least_bits.assign(bits / codes.size - 0.5)
    assert float(learner.charge(weights, scale)) == pytest.approx(2.0 * 150 / 8192, rel=1e-4)
    learner.least_bits.assign(9.0)
    assert float(learner.charge(weights, scale)) == 0.0


def test_a_range_that_learns_grows_where_codes_are_long() -> None:
    learner = WeightLearner({"ranges": "learned", "entropy": 1.0}, GRID)
    learner.build((2000,), (1,))
    weights = tf.constant(RNG.laplace(0, 0.1, 2000), tf.float32)
    with tf.GradientTape() as tape:
        charged = learner.charge(weights, tf.constant([0.02]))
    assert float(tape.gradient(charged, learner.stretch)[0]) < 0.0


def test_codes_rise_from_the_most_frequent_one_on() -> None:
    """A heap at 9 behind empty codes: slopes as counted hold it there, with a rise it is drawn to 2."""
    steps = tf.constant([2.0] * 50 + [9.0] * 8 + [0.0] * 3 + [8.6, 9.4, 1.5, 2.3, 5.0])

    def slopes(rise: float | None) -> np.ndarray:
        with tf.GradientTape() as tape:
            tape.watch(steps)
            total = tf.reduce_sum(interpolated(steps, 12, rise))
        assert float(total) == pytest.approx(float(tf.reduce_sum(interpolated(steps, 12))), rel=1e-6)
        return tape.gradient(total, steps).numpy()[-5:]

    counted = slopes(None)
    assert np.array_equal(slopes(AS_COUNTED), counted)
    assert counted[0] < -1.0, "towards 9, away from 2"
    risen = slopes(0.25)
    assert np.allclose(risen[0], 0.25)
    assert np.array_equal(risen[[1, 2, 3]], counted[[1, 2, 3]]), "towards heaps as before, where they lie on the way"


@pytest.mark.parametrize("spread", [0.2, 0.4, 0.6, 1.0, 3.0])
def test_bits_are_those_of_the_huffman_code_in_the_file(spread: float) -> None:
    """Counted by logarithms alone, nine tenths of zeros cost a sixth more than the file has."""
    codes = np.rint(np.random.default_rng(3).laplace(0.0, spread, 30_000)).astype(np.int8)
    total = float(tf.reduce_sum(interpolated(tf.constant(codes + 40.0, tf.float32), 81)))
    assert 0.94 < total / find_code(codes).body_bits < 1.0


def test_a_move_to_the_frequent_code_costs_what_it_saves_in_the_file() -> None:
    steps = tf.constant([1.0] * 60 + [0.0] * 10 + [2.0] * 10 + [1.4])
    with tf.GradientTape() as tape:
        tape.watch(steps)
        total = tf.reduce_sum(interpolated(steps, 3))
    before, after = (find_code(np.int8([1] * (60 + n) + [0] * (10 - n) + [2] * 10)).body_bits for n in (0, 1))
    saved = before - after
    assert float(tape.gradient(total, steps)[-1]) == pytest.approx(saved, abs=0.02)


def test_nothing_is_charged_without_a_price() -> None:
    learner = WeightLearner({"ranges": "learned"}, GRID)
    learner.build((4, 3), (1, 1))
    assert learner.charge(tf.ones((4, 3)), tf.ones((1, 1))) is None


def test_the_file_comes_to_the_budget(tmp_path: Path) -> None:
    q = kquant.shorten_codes(coded(), X, flash_bytes=6500, strip_names=True, verbose=False)
    start = size_of(q, tmp_path)
    flash_bytes = int(0.8 * start)
    budget = kquant.callbacks.FlashBudget(flash_bytes, 80, strip_names=True)
    history = train(q, 30, budget)
    found = size_of(q, tmp_path)
    assert budget.file_bytes == found == history["file_bytes"][-1] <= flash_bytes
    assert found > 0.9 * flash_bytes, "no more is given away than is asked for"
    assert history["accuracy"][-1] > 0.9


def test_masked_kernels_come_to_the_budget(tmp_path: Path) -> None:
    """Beside 0 a mask leaves codes that no weight has: the price alone ended above the budget, with no zero more."""
    q = kquant.shorten_codes(coded(zeros=0.6), X, flash_bytes=5400, strip_names=True, verbose=False)
    budget = kquant.callbacks.FlashBudget(4600, 80, strip_names=True)
    history = train(q, 50, budget)
    assert budget.file_bytes == size_of(q, tmp_path) <= 4600
    assert budget.file_bytes > 0.9 * 4600
    assert history["accuracy"][-1] > 0.9


def answers(
    monkeypatch: pytest.MonkeyPatch, slow: float, asked: dict[str, int | None], steps: int = 0, first: int = 0
) -> tuple[list[float], float]:
    """Prices, and the bytes in the end, which fall by `slow` of the logarithm of the price at each count."""
    budget = kquant.callbacks.FlashBudget(20_000, steps)
    price, state = tf.Variable(1.0), {"bytes": 20_000 * callbacks.AIM * 1.0075}
    monkeypatch.setattr(callbacks, "coded_file", lambda *_: bytes(round(state["bytes"])))
    monkeypatch.setattr(callbacks, "check_target", lambda *_, **__: None)
    for name, value in {"_prices": [price], "_codes": lambda: state["bytes"], "_learners": []}.items():
        monkeypatch.setattr(budget, name, value if callable(value) else lambda value=value: value)
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    budget.set_model(model)
    budget.set_params(asked)
    budget.on_train_begin()
    budget.on_epoch_begin(first)
    prices = []
    for step in range(1, 16 * 313):
        model.optimizer.iterations.assign(step)
        budget.on_train_batch_end(step)
        if step % callbacks.EVERY == 0:
            prices.append(float(price))
            state["bytes"] *= float(price) ** -slow
    return prices, state["bytes"]


class StopAfter(keras.callbacks.Callback):
    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.stop_training = epoch + 1 == self.epochs


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # as Keras says of data without a length
@pytest.mark.parametrize("sized", [True, False], ids=["1000 epochs", "no length"])
def test_the_budget_holds_where_training_stops_long_before_what_was_asked(sized: bool) -> None:
    """Damped by the epochs asked for, the file had 5,391 bytes in the end."""
    q = kquant.shorten_codes(coded(), X, flash_bytes=6500, strip_names=True, verbose=False)
    budget = kquant.callbacks.FlashBudget(5200, 80, strip_names=True)
    q.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(256, seed=1).batch(32)
    data = data if sized else data.filter(lambda *_: True)
    q.fit(data, epochs=1000, shuffle=False, verbose=0, callbacks=[budget, StopAfter(60)])
    assert 0.88 * 5200 < budget.file_bytes <= 5200


def test_epochs_before_the_first_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, resumed, longer = (
        answers(monkeypatch, 2e-4, {"epochs": epochs, "steps": 313}, first=first)
        for epochs, first in ((2, 0), (42, 40), (42, 0))
    )
    assert resumed == whole != longer


def test_a_price_without_a_known_length_is_damped(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = answers(monkeypatch, 2e-4, {"epochs": 16, "steps": None})
    assert max(found) < 2.6 and min(found) > 0.65, "only summed up it swings to 3.3 and 0.3"
    behind_a_way, _ = answers(monkeypatch, 2e-4, {"epochs": 16, "steps": 313}, steps=80)
    assert max(behind_a_way[125:]) / min(behind_a_way[125:]) < 2.5, "calmer as it goes on, where it was 5"


@pytest.mark.parametrize("slow", [2e-4, 2e-3])
def test_the_price_does_not_swing_where_weights_are_slow(monkeypatch: pytest.MonkeyPatch, slow: float) -> None:
    """Bytes that fall by `slow` of the logarithm of the price at each count; only summed up it swung by 3 and 1 / 3."""
    prices, left = answers(monkeypatch, slow, {"epochs": 16, "steps": 313})
    assert 1.2 < max(prices) < 2.0 and min(prices) > 0.7
    assert left == pytest.approx(20_000 * callbacks.AIM, rel=2e-3)


@pytest.mark.parametrize(("flash_bytes", "remedy"), [(1500, "No training removes those"), (5000, "Train longer")])
def test_a_budget_that_does_not_hold_is_told(flash_bytes: int, remedy: str) -> None:
    q = coded()
    said = rf"FlashBudget: the file has .* flash_bytes={flash_bytes:,}. 2,\d+ of them are no codes of weights. {remedy}"
    with pytest.warns(UserWarning, match=said):
        train(q, 1, kquant.callbacks.FlashBudget(flash_bytes, 4))


@pytest.mark.parametrize(("flash_bytes", "price"), [(1500, callbacks.DEAREST), (100_000, callbacks.CHEAPEST)])
@pytest.mark.filterwarnings("ignore:FlashBudget")
def test_the_price_stays_a_number_where_bytes_cannot_follow(flash_bytes: int, price: float) -> None:
    q = coded()
    for holder in holders(q):
        holder.learner.price.assign(price)  # where some thousand steps would take it
    history = train(q, 6, kquant.callbacks.FlashBudget(flash_bytes, 0))
    assert np.all(np.isfinite(history["loss"]))
    assert all(float(holder.learner.price) == np.float32(price) for holder in holders(q))


def test_the_price_is_saved_and_a_teacher_is_none_of_its_business(tmp_path: Path) -> None:
    q = coded(entropy=0.01)
    trainer = kquant.distill(q, keras.models.clone_model(kquant.strip(q)), outputs="probabilities")
    trainer.compile("adam", "sparse_categorical_crossentropy")
    budget = kquant.callbacks.FlashBudget(3000, 10)
    with pytest.warns(UserWarning, match="FlashBudget: the file has"):
        trainer.fit(X, Y, epochs=3, verbose=0, callbacks=[budget])
    prices = [float(h.learner.price) for h in holders(q)]
    assert len(set(prices)) == 1 and prices[0] > 0.011, "one for all, and raised"
    q.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    assert [float(h.learner.price) for h in holders(loaded)] == prices


@pytest.mark.filterwarnings("ignore:FlashBudget")
def test_one_peak_slopes_end_with_the_training() -> None:
    q = coded()
    budget = kquant.callbacks.FlashBudget(1500, 0)
    rises: list[set[float]] = []
    told = lambda *_: rises.append({float(holder.learner.rise) for holder in holders(q)})  # noqa: E731
    watch = keras.callbacks.LambdaCallback(on_train_begin=told, on_epoch_end=told)
    train(q, 3, budget, watch)
    assert rises[-1] == {callbacks.RISE}, "it is on at the end: the file is larger than the budget"
    told()
    for holder in holders(q):
        holder.learner.rise.assign(callbacks.RISE)  # as in a file that was written while it trained
    train(q, 1, kquant.callbacks.FlashBudget(100_000, 50), watch)
    assert rises[4:] == [{AS_COUNTED}] * 3


def test_refusals() -> None:
    with pytest.raises(ValueError, match="steps must be a whole number, 0 or more. Received: -1"):
        kquant.callbacks.FlashBudget(3000, -1)
    with pytest.raises(ValueError, match="steps must be a whole number, 0 or more. Received: True"):
        kquant.callbacks.FlashBudget(3000, True)
    with pytest.raises(ValueError, match="training.entropy\\s+Input should be greater than or equal to 0"):
        kquant.Recipe(name="bad", training={"entropy": -1.0})
    with pytest.raises(ValueError, match=r"the codes of net have no price. .* training = \{ entropy = 0.01 \}"):
        train(coded(entropy=0.0), 1, kquant.callbacks.FlashBudget(3000, 4))
    with pytest.raises(ValueError, match="FlashBudget: io must be one of 'model', .* Received: 'float'"):
        kquant.callbacks.FlashBudget(3000, 4, io="float")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="FlashBudget: flash_bytes counts .* 'litert' decodes none"):
        train(coded(target="litert"), 1, kquant.callbacks.FlashBudget(3000, 4))
    with pytest.raises(
        ValueError, match="FlashBudget: flash_bytes must be a whole number of bytes, 1 or more, .* Received: 0"
    ):
        kquant.callbacks.FlashBudget(0, 4)


def test_a_file_of_before_there_was_a_rise_loads() -> None:
    settings: dict[str, Any] = {"entropy": 0.1, "oscillations": {"freeze": 0.5}}
    made = [WeightLearner(settings, QuantSpec(8, True, True).to_config()) for _ in range(2)]
    for learner in made:
        learner.build((4, 2), (1, 2))
    store: dict[str, Any] = {}
    made[0].price.assign(0.3)
    made[0].save_own_variables(store)
    del store[max(store, key=int)]
    made[1].load_own_variables(store)
    assert float(made[1].price) == pytest.approx(0.3) and float(made[1].rise) == AS_COUNTED
