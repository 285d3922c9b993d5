"""Ranges that learn: gradients against closed forms and finite differences; what every way of training keeps."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_transforms import Half

import kquant
from kquant.core.spec import QuantSpec, encode_range
from kquant.graph.copies import copy_of
from kquant.layers import learned_ranges, range_learner, range_steps
from kquant.layers.nodes import Compressed, FakeQuant
from kquant.layers.range_numbers import encoded
from kquant.layers.weight_learner import WeightLearner

pytestmark = pytest.mark.filterwarnings(
    "ignore:calibrate. these tensors hold a single value",
    "ignore:.* every weight is 0",
    "ignore:quantize. .* takes no packed 4-bit weights",
    r"ignore:quantize. activations of \d+ bits are simulated only",
    "ignore:Skipping variable loading for optimizer",
)

layers = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 6, 6, 2)).astype(np.float32)
Y = (X.mean((1, 2)) @ RNG.normal(size=(2, 3))).argmax(-1)


def small() -> keras.Model:
    x = inputs = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="head")(x), name="small")


def normed() -> keras.Model:
    """A convolution and its batch norm alone: what takes long to compile is each place that is quantized."""
    inputs = keras.Input((6, 6, 2), name="image")
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(3, 6, use_bias=False, name="conv")(inputs))
    return keras.Model(inputs, layers.Softmax(name="softmax")(layers.Flatten(name="flatten")(x)))


def recurrent() -> keras.Model:
    inputs = keras.Input((3, 3), name="steps")
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="head")(layers.LSTM(4, name="lstm")(inputs)))


def adam() -> keras.Optimizer:
    return keras.optimizers.Adam(1e-2)


def trained(training: dict, *, steps: int = 5, bits: tuple[int, int] = (4, 8), model=small, optimizer=adam, **kw):
    """A quantized model after some steps on the whole of the data, and its losses."""
    keras.utils.set_random_seed(1)
    weights = {"bits": bits[0], "observer": "mse"}
    recipe = {"name": "t", "activations": {"bits": bits[1]}, "weights": weights, "training": training}
    q = kquant.quantize(model(), recipe)
    x = X if q.input.shape[1:] == X.shape[1:] else X.reshape(48, -1)[:, :9].reshape(48, 3, 3)
    kquant.calibrate(q, x, verbose=False)
    q.compile(optimizer(), "sparse_categorical_crossentropy", **{"run_eagerly": True, **kw})
    losses = [float(q.train_on_batch(x, Y)) for _ in range(steps)]
    return q, losses, x


def nodes(q: keras.Model) -> list[FakeQuant]:
    return [layer for layer in q.layers if isinstance(layer, FakeQuant) and layer.has_range]


def gradients(low: float, high: float, y: np.ndarray, upstream: np.ndarray, spec: QuantSpec, ranges_: str = "learned"):
    """(d/dlow, d/dhigh, d/dy) of a `FakeQuant` in training, without LSQ's factor."""
    layer = FakeQuant(spec.to_config(), learning={"ranges": ranges_})
    layer.set_range(0, low, high)
    with tf.GradientTape() as tape:
        t = tf.constant(y, tf.float32)
        tape.watch(t)
        loss = tf.reduce_sum(range_learner.fake_quantize(layer, t)[0] * upstream)
    by_stretch, by_y = tape.gradient(loss, [layer.stretch.value, t])
    factor = learned_ranges.gradient_scale(np.prod(y.shape[1:]), spec.high if spec.symmetric else spec.high - spec.low)
    ends = by_stretch.numpy() / factor / (high - low) * np.array([-1.0, 1.0])
    return ends[0], ends[1], by_y.numpy()


def straight(low: float, high: float, y: np.ndarray, spec: QuantSpec, at: tuple[float, float]) -> np.ndarray:
    """The function that the gradients are those of: residues of rounding held as they are at the range `at`.

    A clipped value is the end itself, but for the constant by which rounding the zero point moves it.
    """
    steps = spec.high - spec.low
    scale = (at[1] - at[0]) / steps
    point = np.rint(spec.low - at[0] / scale)
    held = np.rint(y / scale) - y / scale
    codes = np.rint(y / scale) + point
    inside = y + (high - low) / steps * held
    return np.where(codes < spec.low, low, np.where(codes > spec.high, high, inside))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_both_ends_against_finite_differences_and_closed_form(bits):
    spec, low, high = QuantSpec(bits), -0.9, 2.0
    y, upstream = RNG.normal(0.3, 1.5, (400, 3)), RNG.normal(size=(400, 3))
    scale, point = (float(v) for v in encode_range(tf.constant(low), tf.constant(high), spec)[:2])
    edges = np.array([spec.low - point, spec.high - point]) * scale
    keep = np.abs(y[..., None] - edges).min(-1) > 0.51 * scale  # between the end and half a step beyond, both clip
    upstream = np.where(keep, upstream, 0.0)
    by_low, by_high, by_y = gradients(low, high, y, upstream, spec)
    step = 1e-6
    expected = [
        np.sum(
            (straight(low + a, high + b, y, spec, (low, high)) - straight(low - a, high - b, y, spec, (low, high)))
            * upstream
        )
        / (2 * step)
        for a, b in ((step, 0.0), (0.0, step))
    ]
    np.testing.assert_allclose([by_low, by_high], expected, rtol=2e-3, atol=2e-3)
    inside, above = (y > edges[0]) & (y < edges[1]), y >= edges[1]
    residue = np.rint(y / scale) - y / scale
    closed = [
        np.sum(upstream * np.where(inside, way * residue / (2**bits - 1), out))
        for way, out in ((-1, y <= edges[0]), (1, above))
    ]
    np.testing.assert_allclose([by_low, by_high], closed, rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(by_y != 0, inside & (upstream != 0))


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("spec", [QuantSpec(2), QuantSpec(8), QuantSpec(8, True, True), QuantSpec(16, True)])
def test_the_kernels_give_what_is_written_out(spec, inside):
    rng = np.random.default_rng(7)
    y, upstream = (tf.constant(rng.normal(0.3, 1.5, (500, 3)), tf.float32) for _ in range(2))
    y = tf.concat([y, tf.constant([[np.inf, -np.inf, 0.0]])], 0)
    upstream = tf.concat([upstream, tf.ones((1, 3))], 0)
    low, high, factor = tf.constant([-1.0]), tf.constant([1.7]), tf.constant(0.25)

    def written_out(y: tf.Tensor, stretch: tf.Tensor) -> tf.Tensor:
        change = learned_ranges.pending(stretch) * (high - low)[0]
        grid = learned_ranges.encode_through(low[0] - change[0], high[0] + change[1], spec)
        ends = tf.constant(float(spec.low)), tf.constant(float(spec.high))
        return learned_ranges.quantized(y, *grid, *ends, factor, tf.constant(float(inside)))

    def by_kernels(y: tf.Tensor, stretch: tf.Tensor) -> tf.Tensor:
        pull = factor * range_steps.pulled(low, high, tf.ones((2,)), spec)
        return learned_ranges.fused(y, stretch, encoded(low, high, spec)[:4], pull, spec, inside=inside)

    found = []
    for way in (written_out, by_kernels):
        given = y, tf.zeros((2,))
        with tf.GradientTape() as tape:
            tape.watch(given)
            values = way(*given)
        found.append((values, *tape.gradient(values, given, upstream)))
    steps = np.asarray(found[0][0] - found[1][0]) / encode_range(low[0], high[0], spec)[0]
    # TensorFlow's kernel rounds halves up, and float32 leaves it no exact place among 65,536.
    np.testing.assert_allclose(steps, 0.0, atol=1e-4 if spec.bits <= 8 else 1.01)
    assert np.mean(np.abs(steps) > 0.5) < 0.01
    np.testing.assert_array_equal(found[0][1], found[1][1])
    np.testing.assert_allclose(found[0][2], found[1][2], rtol=1e-4, atol=1e-3)
    assert np.all(np.asarray(found[0][2]) != 0.0) or spec.symmetric  # the nearer end of a symmetric one sets nothing


@pytest.mark.parametrize("ways", ["moving", "learned"])
def test_behind_a_relu_nobody_looks_for_values_below_zero(ways):
    y = tf.nn.relu(tf.constant(np.random.default_rng(7).normal(size=(64, 5)), tf.float32))
    found = []
    for attributes in ({"activation": "RELU"}, {}):
        layer = FakeQuant(QuantSpec(8).to_config(), learning={} if ways == "moving" else {"ranges": ways})
        with tf.GradientTape() as tape:
            tape.watch(y)
            for scale in (1.0, 1.5):
                values, encoding = layer(scale * y, attributes=attributes, training=True)
            loss = tf.reduce_sum(values**2)
        found.append((values, encoding, *tape.gradient(loss, [y, *layer.trainable_variables])))
        assert float(layer.low[0]) == 0.0 or not attributes
    for ours, plain in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, plain)
    # What is looked for is no longer found where the fact is wrong: it is the attribute that tells it.
    layer = FakeQuant(QuantSpec(8).to_config())
    layer(-y, attributes={"activation": "RELU"}, training=True)
    assert float(layer.low[0]) == 0.0


@pytest.mark.parametrize(("y", "expected"), [(-3.0, (1.0, 0.0)), (5.0, (0.0, 1.0))])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("low", [-1.0, -0.8])  # the second is rounded to whole steps
def test_clipped_values_reach_their_own_end_alone(y, expected, bits, low):
    by_low, by_high, _ = gradients(low, 1.3, np.array([[y]]), np.array([[1.0]]), QuantSpec(bits))
    np.testing.assert_allclose([by_low, by_high], expected, atol=1e-5)


def test_pact_learns_from_clipped_values_alone():
    y = np.array([[0.31, 0.77, 3.0, 4.0]])
    by_low, by_high, by_y = gradients(0.0, 2.0, y, np.ones_like(y), QuantSpec(4), "pact")
    np.testing.assert_allclose([by_low, by_high], [0.0, 2.0], atol=1e-5)
    np.testing.assert_array_equal(by_y, [[1, 1, 0, 0]])


def test_symmetric_range_follows_the_end_that_sets_it():
    spec = QuantSpec(4, symmetric=True)
    by_low, by_high, _ = gradients(-1.0, 2.0, np.array([[5.0, -5.0]]), np.array([[1.0, 0.0]]), spec)
    np.testing.assert_allclose([by_low, by_high], [0.0, 1.0], atol=1e-5)


def test_weights_have_the_gradient_of_lsq():
    spec = QuantSpec(3, symmetric=True, narrow=True, per_axis=True)
    weights, upstream = RNG.normal(size=(50, 4)), RNG.normal(size=(50, 4))
    scale = np.abs(weights).max(0, keepdims=True) / (1.7 * spec.high)
    learner = WeightLearner({"ranges": "learned"}, spec.to_config())
    learner.build((50, 4), (1, 4))
    with tf.GradientTape() as tape:
        w = tf.constant(weights, tf.float32)
        tape.watch(w)
        loss = tf.reduce_sum(learner.quantized(w, tf.constant(scale, tf.float32)) * upstream)
    by_stretch, by_weights = tape.gradient(loss, [learner.stretch.value, w])
    v = weights / scale
    by_step = np.where(v <= -spec.high, -spec.high, np.where(v >= spec.high, spec.high, np.rint(v) - v))  # equation 3
    expected = np.sum(by_step * upstream, 0, keepdims=True) / np.sqrt(50 * spec.high)
    np.testing.assert_allclose(by_stretch / scale, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(by_weights.numpy() != 0, np.abs(v) < spec.high)


def test_any_step_leaves_a_valid_range():
    for _ in range(200):
        low, high = -abs(RNG.normal()), abs(RNG.normal())
        width = high - low
        change = RNG.normal(size=2).astype("float32")
        low, high = (float(v) for v in learned_ranges.moved_ends(tf.constant(low), tf.constant(high), change))
        assert low <= 0.0 <= high and high - low >= 0.49 * width
        for bits in (2, 4, 8):
            scale, point = encode_range(tf.constant(low), tf.constant(high), QuantSpec(bits))
            assert float(scale) > 0 and float(point) == round(float(point))
            assert QuantSpec(bits).low <= float(point) <= QuantSpec(bits).high


@pytest.mark.parametrize(("optimizer", "step"), [(keras.optimizers.SGD, 1.0), (keras.optimizers.Adam, 1e-3)])
def test_range_rate_multiplies_the_step_of_any_optimizer(optimizer, step):
    moved = {}
    for rate in (1.0, 4.0):
        keras.utils.set_random_seed(1)
        training = {"ranges": "learned", "range_rate": rate}
        q = kquant.calibrate(kquant.quantize(small(), {"name": "t", "training": training}), X, verbose=False)
        q.compile(optimizer(step), "sparse_categorical_crossentropy", run_eagerly=True)
        before = [float(n.high[0]) for n in nodes(q)]
        q.train_on_batch(X, Y)
        for n in nodes(q):
            n.move_range(tf.zeros((1,)), 0)
        moved[rate] = np.array([float(n.high[0]) - b for n, b in zip(nodes(q), before, strict=True)])
    assert np.any(moved[1.0] != 0)
    np.testing.assert_allclose(moved[4.0], 4 * moved[1.0], rtol=1e-2, atol=1e-6)


WAYS = {
    "moving": {},
    "fixed": {"ranges": "fixed"},
    "learned": {"ranges": "learned"},
    "pact": {"ranges": "pact", "range_penalty": 1e-3},
    "frozen": {"ranges": "learned", "freeze_ranges_after": 2, "progressive": {"from": 8, "steps": 4}},
    "live": {
        "ranges": "learned",
        "batch_norm": "live",
        "freeze_batch_norm_after": 4,
        "oscillations": {"dampen": 0.01, "dampen_steps": 3, "freeze": 0.02},
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_trains_saves_and_exports_what_it_simulates(way, tmp_path):
    q, losses, _ = trained(WAYS[way])
    assert np.mean(losses[-2:]) < losses[0]
    y = np.asarray(q(X[:16]))
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(np.asarray(loaded(X[:16])), y)
    np.testing.assert_array_equal(np.asarray(copy_of(q)(X[:16])), y)
    kquant.export(loaded, tmp_path / "m.tflite", data=X[:2], check_runtimes=False)
    np.testing.assert_array_equal(kquant.predict(tmp_path / "m.tflite", X[:16], "litert-reference"), y)
    for node in nodes(q) if q.get_layer("conv").learner is not None else ():
        assert float(node.low[0]) <= 0.0 < float(node.high[0])
        assert node.name != "relu_quant" or float(node.low[0]) == 0.0  # nothing is below it


def test_learned_ranges_move_and_freeze_exactly():
    q, _, _ = trained({"ranges": "learned", "freeze_ranges_after": 2}, steps=2)
    held = [q.get_layer("conv").reach, *(n.high for n in nodes(q))]
    before = [np.asarray(v) for v in held]
    q.train_on_batch(X, Y)
    for old, variable in zip(before, held, strict=True):
        np.testing.assert_array_equal(old, np.asarray(variable))
    q, _, _ = trained({"ranges": "learned"}, steps=3)
    assert any(np.any(np.asarray(v) != old) for old, v in zip(before, [n.high for n in nodes(q)], strict=False))
    kquant.calibrate(q, X, verbose=False)
    assert all(np.all(np.asarray(n.stretch) == 0) for n in nodes(q))
    assert np.all(np.asarray(q.get_layer("conv").learner.stretch) == 0)


def test_learned_without_calibration_starts_at_the_first_batch():
    keras.utils.set_random_seed(1)
    q = kquant.quantize(small(), {"name": "t", "training": {"ranges": "learned"}})
    q.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    q.train_on_batch(X, Y)
    np.testing.assert_allclose([float(nodes(q)[0].low[0]), float(nodes(q)[0].high[0])], [X.min(), X.max()], rtol=1e-5)


def test_width_shrinks_in_training_and_inference_has_the_final_one():
    q, _, _ = trained({"progressive": {"from": 8, "steps": 4}}, steps=0, bits=(4, 4))
    conv, node = q.get_layer("conv"), next(n for n in nodes(q) if n.name == "relu_quant")
    seen = []
    for _ in range(5):
        q.train_on_batch(X, Y)
        levels = float(range_learner.grid(node)[3] - range_learner.grid(node)[2])
        codes = conv.learner.quantized(conv.weights_as_used(), conv.scale_of(conv.weights_as_used()))
        seen.append((levels, max(len(np.unique(c)) for c in codes.numpy().reshape(-1, 4).T)))
        assert np.abs(conv.codes(tf.constant(1.0))[0]).max() <= 7
    assert [levels for levels, _ in seen] == [255.0, 127.0, 63.0, 31.0, 15.0]
    assert seen[0][1] > 15 and seen[-1][1] <= 15
    assert len(np.unique(np.asarray(node(tf.random.normal((500,)))[0]))) <= 16


def test_rules_change_training_of_their_layers():
    rule = {"layer": "head", "training": {"range_rate": 0.5, "ranges": "moving"}}
    q = kquant.quantize(small(), {"name": "t", "training": {"ranges": "learned"}, "rules": [rule]})
    assert q.get_layer("conv").learner.learning.range_rate == 1.0
    assert q.get_layer("head").learner is None
    for bad, hint in (({"rangs": "x"}, "ranges"), ({"progressive": {"from": 8, "stps": 1}}, "steps")):
        with pytest.raises(ValueError, match=hint):
            kquant.Recipe.model_validate({"name": "t"})
            kquant.quantize(small(), {"name": "t", "training": bad})


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = small()
    finally:
        keras.config.set_dtype_policy("float32")
    training = {"ranges": "learned", "batch_norm": "live", "oscillations": {"dampen": 0.01, "freeze": 0.02}}
    q, losses, _ = trained(training, model=lambda: model, steps=3)
    assert np.all(np.isfinite(losses)) and losses[-1] < losses[0]
    assert all(v.dtype == "float32" for v in q.trainable_variables)
    assert np.any(np.asarray(q.get_layer("conv").learner.stretch) != 0)


@pytest.mark.parametrize("jit", [True])  # `fit` without it is what benchmarks and other tests do
def test_graphs_compute_what_eager_mode_does(jit):
    training = {**WAYS["live"], "progressive": {"from": 8, "steps": 2}}
    given = {"steps": 3, "model": normed, "optimizer": lambda: keras.optimizers.SGD(0.1)}
    q, losses, _ = trained(training, run_eagerly=False, jit_compile=jit, **given)
    _, eager, _ = trained(training, **given)
    np.testing.assert_allclose(losses, eager, rtol=0.05)
    assert losses[-1] < losses[0]
    assert np.any(np.asarray(q.get_layer("conv").learner.stretch) != 0)


def test_recurrent_layers_learn_theirs(tmp_path):
    training = {"ranges": "learned", "oscillations": {"freeze": 0.3}}
    q, losses, x = trained(training, model=recurrent, bits=(8, 8), steps=3)
    lstm = q.get_layer("lstm")
    assert losses[-1] < losses[0]
    assert all(np.any(np.asarray(learner.stretch) != 0) for learner in lstm.learners)
    hidden = next(n for n in nodes(q) if n.name == "lstm_quant")
    assert np.any(np.asarray(hidden.stretch) != 0)
    y = np.asarray(q(x[:8]))
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(np.asarray(loaded(x[:8])), y)
    kquant.export(loaded, tmp_path / "m.tflite", data=x[:2], check_runtimes=False)
    np.testing.assert_array_equal(kquant.predict(tmp_path / "m.tflite", x[:8], "litert-reference"), y)


def test_masks_live_below_learned_ranges():
    q, _, _ = trained({"ranges": "learned"}, steps=0)
    head = q.get_layer("head")
    head.transform_by(Half())
    q.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    q.train_on_batch(X, Y)
    zeros = np.asarray(head.transforms[0].mask) == 0
    assert np.all(head.codes(tf.constant(1.0))[0].numpy()[zeros] == 0) and zeros.any()
    assert isinstance(head, Compressed)


WIDTHS = np.concatenate([np.zeros(3), np.linspace(0.01, 2.0, 150), np.full(180, 2.0), np.full(40, 4.0)])


@pytest.mark.parametrize(
    ("ranges_", "calibrated"),
    [("moving", False), ("moving", True), ("fixed", True), ("learned", False), ("pact", True)],
)
def test_a_tensor_that_was_zero_gets_its_range_once_it_is_not(ranges_, calibrated):
    """As behind a batch norm that starts at gamma 0; steps since it has width: 150 of growth, 256 is the last look."""
    learning = {"ranges": ranges_} if ranges_ in ("learned", "pact") else {}
    node = FakeQuant(QuantSpec(8).to_config(), freeze_after=0 if ranges_ == "fixed" else None, learning=learning)
    if calibrated:
        node.set_range(0, 0.0, 0.0)
    step = tf.function(lambda y: node(y, training=True)[0], jit_compile=True)
    found = []
    for width in WIDTHS:
        y = tf.constant([[-0.5 * width, 0.0, width]], tf.float32)
        made = step(y)
        found.append(float(node.high[0]))
        if ranges_ != "moving":
            np.testing.assert_allclose(made, tf.clip_by_value(y, -1.0, 2.0), atol=0.02)
    if ranges_ == "moving":  # the unbiased moving average since
        for last in (3, 4, 100):
            wanted = np.average(WIDTHS[3 : last + 1], weights=0.99 ** np.arange(last - 3, -1, -1))
            np.testing.assert_allclose(found[last], wanted, rtol=1e-4)
        return
    assert found[:3] == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(found[3:-40], WIDTHS[3:-40], rtol=1e-5)
    np.testing.assert_allclose(found[-40:], 2.0, rtol=1e-5)  # it has left zero for good, and stays


def test_places_that_share_a_range_leave_zero_together():
    node = FakeQuant(QuantSpec(8).to_config(), sites=2, learning={"ranges": "learned"})
    step = tf.function(lambda y, site: node(y, site=site, training=True)[0])
    for width in WIDTHS:
        for site, value in enumerate((-0.25 * width, width)):
            step(tf.constant([[value]], tf.float32), site)
        if width < 2.0:
            np.testing.assert_allclose([np.min(node.low), np.max(node.high)], [-0.25 * width, width], rtol=1e-5)
    np.testing.assert_allclose([np.min(node.low), np.max(node.high)], [-0.5, 2.0], rtol=1e-5)


def test_weights_that_were_zero_keep_no_range_until_they_have_left_it():
    spec = QuantSpec(4, symmetric=True, narrow=True, per_axis=True)
    learner = WeightLearner({"ranges": "learned"}, spec.to_config())
    learner.build((4, 3), (1, 3))
    reach = keras.Variable(np.zeros((1, 3)), dtype="float32")
    move = tf.function(lambda widest: learner.move(reach, lambda: widest), jit_compile=True)
    for width in WIDTHS:
        move(tf.constant([[1.0, width, 0.0]], tf.float32))  # a channel that lives, one that wakes, one that is dead
        np.testing.assert_allclose(reach[0, 0], 1.0)
        assert reach[0, 2] == 0.0
        if width < 2.0:
            assert reach[0, 1] == 0.0
    np.testing.assert_allclose(reach[0, 1], 2.0)
    learner.forget()
    assert np.all(np.asarray(learner.waking) == 0.0)


@pytest.mark.parametrize("training", [{}, {"batch_norm": "live"}], ids=["folded", "live"])
def test_a_branch_that_starts_at_zero_trains(training):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((6, 6, 2))
    y = layers.Conv2D(2, 3, padding="same", name="conv")(x)
    x = layers.Add()([x, layers.BatchNormalization(gamma_initializer="zeros", name="norm")(y)])
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x)))
    q = kquant.quantize(model, {"name": "t", "training": {"ranges": "learned", **training}})
    kquant.calibrate(q, X, verbose=False)
    q.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy", run_eagerly=True)
    for _ in range(6):
        q.train_on_batch(X, Y)
    conv = q.get_layer("conv")
    assert not np.any(np.asarray(conv.reach))  # 6 steps are no growth to judge by
    node = next(n for n in nodes(q) if n.name in ("conv_quant", "norm_quant"))
    made = np.asarray(keras.Model(q.input, node.output[0])(X))
    assert float(node.high[0]) - float(node.low[0]) > 0.5 * float(np.ptp(made)) > 0.0
    used = np.asarray(conv.weights_as_used())
    np.testing.assert_allclose(conv.weights_on_grid(), used, atol=0.51 * np.abs(used).max() / 127)


@pytest.mark.parametrize(("model", "loaded"), [(small, False), (small, True), (recurrent, True)])
def test_layers_that_were_frozen_train_nothing(model, loaded, tmp_path):
    frozen = model()
    name = "conv" if model is small else "lstm"
    frozen.get_layer(name).trainable = False
    training = {"ranges": "learned", "batch_norm": "live", "progressive": {"from": 8, "steps": 4}}
    training["oscillations"] = {"dampen": 0.01, "freeze": 0.02}
    q, _, x = trained(training, model=lambda: frozen, steps=0, bits=(4, 8))
    if loaded:
        q.save(tmp_path / "q.keras")
        q = keras.models.load_model(tmp_path / "q.keras")
        q.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", run_eagerly=True)
    layer = q.get_layer(name)
    assert [v.path for v in layer.variables if v.trainable] == []
    before, other = [np.asarray(v) for v in layer.variables], np.asarray(q.get_layer("head").learner.stretch)
    for _ in range(2):
        q.train_on_batch(x, Y)
    for variable, value in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(np.asarray(variable), value, err_msg=variable.path)
    assert np.any(np.asarray(q.get_layer("head").learner.stretch) != other)
    assert [v.path for v in copy_of(q).trainable_variables] == [v.path for v in q.trainable_variables]
    if model is small:  # the codes of the file, not those of 8 bits
        seen = layer(X, training=True)[0]
        wanted = keras.ops.conv(X, layer.weights_on_grid()) + layer.bias_as_used()
        np.testing.assert_allclose(seen, wanted, atol=1e-5)


def test_a_layer_may_thaw():
    frozen = small()
    frozen.get_layer("conv").trainable = False
    q, _, _ = trained({"ranges": "learned", "batch_norm": "live"}, model=lambda: frozen, steps=0)
    q.get_layer("conv").trainable = True
    q.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy", run_eagerly=True)
    q.train_on_batch(X, Y)
    conv = q.get_layer("conv")
    assert np.all(np.asarray(conv.learner.stretch) != 0) and np.any(np.asarray(conv.norm.moving_mean) != 0)


def test_a_range_that_nothing_calibrated_does_not_follow_once_it_is_there():
    for learning, after in (({"ranges": "learned"}, None), ({}, 0)):
        node = FakeQuant(QuantSpec(8).to_config(), sites=2, learning=learning, freeze_after=after)
        for factor in (1.0, 9.0):
            for site, value in enumerate((-0.5, 2.0)):
                node(tf.constant([[value * factor]], tf.float32), site=site, training=True)
            np.testing.assert_allclose([np.min(node.low), np.max(node.high)], [-0.5, 2.0], rtol=1e-5)
        assert not np.any(np.asarray(node.waking))
