"""Channels that leave: the function without silent ones, budgets counted apart, importances from their definitions."""

from __future__ import annotations

import functools
import itertools

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from contract import randomise
from keras import layers
from keras.src.applications import efficientnet, resnet  # to build small ones
from model_cases import made as any_model
from shrink_cases import CASES, channels_of, images, made, silence

import kquant
from kquant.graph.keras_private import calls_of
from kquant.shrink.by_score import choose_by_score
from kquant.shrink.channel_pruning import _jobs, smaller
from kquant.shrink.channels import follow_channels
from kquant.shrink.choose import choose, ledger, widths_allowed
from kquant.shrink.importance import by_bn_scale, by_l1, by_taylor
from kquant.shrink.labelled_data import loss_of
from kquant.shrink.reconstruct import Sums, least_squares, refit
from kquant.views.flat_copy import plain, read

pytestmark = pytest.mark.filterwarnings(
    "ignore:The structure of `inputs` doesn't match",
)


def _tiny_efficientnet():
    """EfficientNet's own blocks, fewer of them."""
    return efficientnet.EfficientNet(0.4, 0.2, 32, weights=None, classes=5, input_shape=(32, 32, 3), name="tiny")


def _tiny_resnet():
    def stack(x):
        return resnet.stack_residual_blocks_v2(resnet.stack_residual_blocks_v2(x, 8, 2, name="a"), 12, 2, name="b")

    return resnet.ResNet(stack, True, True, weights=None, input_shape=(32, 32, 3), classes=5, name="tiny")


APPS = {
    "MobileNetV2": lambda: keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=5),
    "EfficientNet": _tiny_efficientnet,
    "ResNetV2": _tiny_resnet,
}


def widths(model):
    return {layer.name: int(layer.kernel.shape[-1]) for layer in model.layers if hasattr(layer, "kernel")}


def close(a, b, rtol=1e-4):
    a, b = np.asarray(a), np.asarray(b)
    return np.abs(a - b).max() <= rtol * np.abs(a).max()


@pytest.mark.parametrize("name", sorted(CASES))
def test_silent_channels_leave_the_function_alone(name):
    model = made(name)
    channels = channels_of(model)
    kept = silence(channels)
    x = images(model)
    graph = channels.graph
    whole = smaller(channels, np.ones(channels.count, bool))
    small = smaller(channels, kept)
    assert close(whole.predict(x, verbose=0), small.predict(x, verbose=0))
    assert small.count_params() < 0.75 * whole.count_params()
    assert all(type(layer).__module__.startswith("keras.") for layer in small.layers), graph.name
    fixed = {s.name for s in channels.kernels if all(int(c) in channels.fixed for c in s.makes)}
    assert fixed == {"head"}, "every other layer can lose channels"


@pytest.mark.parametrize(
    "name",  # what MobileNetV2 is made of, a case "depthwise" and EfficientNet have too
    [pytest.param(name, marks=[pytest.mark.exhaustive] * (name == "MobileNetV2")) for name in sorted(APPS)],
)
def test_silent_channels_of_applications(name):
    model = randomise(APPS[name](), 1)
    channels = channels_of(model)
    kept = silence(channels)
    small = smaller(channels, kept)
    x = images(model, 2)
    whole = smaller(channels, np.ones(channels.count, bool))
    assert close(whole(x[0]), small(x[0]), 1e-3)
    assert small.count_params() < 0.5 * whole.count_params()
    assert {s.name for s in channels.kernels if s.makes[0] in channels.fixed} == {"predictions"}


def file_macs(path):
    """Multiplications that the operators of a file say of themselves, batch norms folded."""
    runner = Interpreter(str(path))
    runner.allocate_tensors()
    shape = {d["index"]: d["shape"] for d in runner.get_tensor_details()}
    total = 0
    for op in runner._get_ops_details():
        kernel, output = (shape.get(op["inputs"][1]) if len(op["inputs"]) > 1 else None), shape[op["outputs"][0]]
        if op["op_name"] == "CONV_2D":
            total += np.prod(output[1:3]) * np.prod(kernel)
        elif op["op_name"] == "DEPTHWISE_CONV_2D":
            total += np.prod(output[1:3]) * np.prod(kernel)
        elif op["op_name"] == "FULLY_CONNECTED":
            total += np.prod(kernel)
    return int(total)


@pytest.mark.parametrize("name", ["residual", "squeezed"])
def test_a_budget_holds_in_the_exported_file(name, tmp_path):
    model = made(name)
    x = images(model, 32)[0]
    small = kquant.prune_channels(model, macs=0.5, data=x, minimum=2, verbose=False)
    assert 0.3 * kquant.cost(model).macs < kquant.cost(small).macs <= 0.5 * kquant.cost(model).macs
    q = kquant.calibrate(kquant.quantize(small), x, verbose=False)
    kquant.export(q, tmp_path / "small.tflite", check_runtimes=False)
    assert file_macs(tmp_path / "small.tflite") == kquant.cost(small).macs


def test_weight_bytes_are_those_of_the_kernels():
    small = kquant.prune_channels(made("residual"), weight_bytes=0.4, minimum=1, verbose=False)
    kernels = [layer.kernel.numpy() for layer in small.layers if hasattr(layer, "kernel")]
    by_hand = sum(kernel.size + 4 * kernel.shape[-1] for kernel in kernels)
    assert kquant.cost(small).weight_bytes == by_hand <= 0.4 * kquant.cost(made("residual")).weight_bytes


def test_the_books_after_each_removal_are_those_of_the_model():
    channels = channels_of(made("concatenated"))
    books, kept = ledger(channels, "macs"), np.ones(channels.count, bool)
    for _, members in channels.groups():
        if int(members[0]) not in channels.fixed:
            kept[members[0]] = False
            books.remove(int(members[0]))
            assert books.total("macs") == kquant.cost(smaller(channels, kept)).macs


def test_the_least_important_leave_first():
    model = made("residual")
    channels = channels_of(model)
    scores = by_l1(channels)
    kept = choose(channels, scores, int(0.6 * kquant.cost(model).macs), "macs", minimum=2, multiple=1)
    for makers, members in channels.groups():
        gone = scores[members][~kept[members]]
        assert not len(gone) or gone.max() <= scores[members][kept[members]].min(), makers


def test_multiple_and_minimum():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(20, 3, name="b")(layers.Conv2D(32, 3, name="a")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))
    small = kquant.prune_channels(model, macs=0.5, multiple=8, minimum=8, verbose=False)
    assert widths(small)["a"] in (32, 24, 16, 8) and widths(small)["b"] in (20, 16, 8)
    assert widths_allowed(32, 4, 8) == [32, 24, 16, 8]
    with pytest.raises(ValueError, match="narrowest model has.*head: they are outputs of the model"):
        kquant.prune_channels(model, macs=0.01, minimum=8, verbose=False)


def test_l1_and_bn_scale_by_hand():
    model = made("residual")
    channels = channels_of(model)
    stem, second = (np.abs(model.get_layer(n).kernel.numpy()).sum((0, 1, 2)) for n in ("stem", "a_2"))
    members = next(m for makers, m in channels.groups() if makers[0].name == "stem")
    assert np.allclose(by_l1(channels)[members], (stem / stem.mean() + second / second.mean()) / 2)
    inside = next(m for makers, m in channels.groups() if makers[0].name == "a_1")
    gamma = np.abs(model.get_layer("batch_normalization_1").gamma.numpy())
    assert np.allclose(by_bn_scale(channels)[inside], gamma / gamma.mean())


def smooth_residual():
    x = inputs = keras.Input((6, 6, 3))
    x = layers.BatchNormalization(name="stem_norm")(layers.Conv2D(4, 3, name="stem")(x))
    y = layers.Conv2D(5, 3, padding="same", activation="swish", name="inside")(layers.Activation("swish")(x))
    x = layers.Add()([x, layers.BatchNormalization(name="end_norm")(layers.Conv2D(4, 1, name="end")(y))])
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="head")(layers.Flatten()(x)))


@pytest.mark.parametrize("layer", ["stem", "inside"])
def test_taylor_is_the_squared_derivative_of_a_gate(layer):
    wide = plain(randomise(smooth_residual()))
    channels = follow_channels(read(wide))
    x, y = images(wide, 16)[0], np.arange(16) % 3
    loss = loss_of(wide, "sparse_categorical_crossentropy")
    scores = by_taylor(channels, wide, lambda: iter([(x[:8], y[:8]), (x[8:], y[8:])]), loss, False)
    members = next(m for makers, m in channels.groups() if makers[0].name == layer)
    gated = {"stem": ["stem_norm", "end_norm"], "inside": ["inside"]}[layer]
    variables = [v for name in gated for v in wide.get_layer(name).trainable_variables]
    before, step, index = [v.numpy() for v in variables], 1e-2, 2

    def lost(z, part):
        for v, old in zip(variables, before, strict=True):
            v.assign(np.where(np.arange(old.shape[-1]) == index, old * z, old))
        return float(loss(y[part], wide(x[part])))

    halves = (slice(8), slice(8, 16))
    numeric = np.mean([((lost(1 + step, part) - lost(1 - step, part)) / (2 * step)) ** 2 for part in halves])
    assert scores[members[index]] == pytest.approx(numeric, rel=0.02)


def test_least_squares_is_numpys():
    rng = np.random.default_rng(0)
    x, y, start = rng.normal(2.0, 1.0, (300, 7)), rng.normal(size=(300, 4)), rng.normal(size=(7, 4))
    ones = np.concatenate([x, np.ones((300, 1))], axis=1)
    wanted = np.linalg.lstsq(ones, y, rcond=None)[0]
    weights, bias = least_squares(Sums().add(x[:90], y[:90]).add(x[90:], y[90:]), start, intercept=True, ridge=1e-12)
    assert np.allclose(weights, wanted[:-1], atol=1e-7) and np.allclose(bias, wanted[-1], atol=1e-6)
    weights, bias = least_squares(Sums().add(x, y), start, intercept=False, ridge=1e-12)
    assert np.allclose(weights, np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-7) and not bias.any()
    twice = np.concatenate([x, x], axis=1)  # what the samples do not tell stays as it was
    weights, _ = least_squares(Sums().add(twice, y), np.concatenate([start, start]), intercept=False)
    assert np.allclose(weights[:7] + weights[7:], np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-3)
    assert np.allclose(weights[:7] - weights[7:], 0.0, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_reconstruction_makes_up_for_channels_that_others_tell(bias):
    """Of two equal channels and of a constant one, nothing is lost."""
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.Conv2D(6, 3, name="first")(inputs))
    x = layers.Conv2D(4, 3, use_bias=bias, name="second")(x)
    x = layers.BatchNormalization(name="norm")(x)
    model = randomise(keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x))))
    kernel, offset = (v.numpy() for v in model.get_layer("first").variables)
    kernel[..., 1], offset[1] = kernel[..., 0] * 0.5, offset[0] * 0.5
    kernel[..., 2], offset[2] = 1e-3, 0.8
    kernel[..., 2] = 0.0
    model.get_layer("first").set_weights([kernel, offset])
    x = images(model, 64)[0]
    channels = channels_of(model)
    members = channels.groups()[0][1]
    kept = np.ones(channels.count, bool)
    kept[members[[1, 2]]] = False
    small = smaller(channels, kept)
    broken = small.predict(x, verbose=0)
    refit(channels.graph, small, _jobs(channels, kept), x, verbose=False)
    wanted, found = model.predict(x, verbose=0), small.predict(x, verbose=0)
    assert not close(wanted, broken, 0.1) and close(wanted, found, 1e-3)


def test_reconstruction_lowers_the_error_and_changes_nothing_without_need():
    model = made("residual")
    x = images(model, 64)[0]
    wanted = model.predict(x, verbose=0)
    errors = []
    for data in (None, x):
        small = kquant.prune_channels(model, macs=0.7, data=data, minimum=2, verbose=False)
        errors.append(np.mean((small.predict(x, verbose=0) - wanted) ** 2))
    assert errors[1] < 0.5 * errors[0]


def test_what_is_not_understood_keeps_its_width():
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(8, 3, padding="same", name="grouped_in")(inputs)
    x = layers.Conv2D(8, 3, groups=2, padding="same", name="grouped")(x)
    x = layers.Conv2D(8, 1, name="normed")(x)
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.Conv2D(8, 1, activation="softmax", name="soft")(x)
    x = layers.Conv2D(8, 1, name="free")(x)
    x = layers.Permute((3, 1, 2))(layers.Conv2D(8, 1, name="moved")(x))
    x = layers.LSTM(4, name="lstm")(layers.Reshape((8, 36))(x))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    groups = {g.layers: g for g in kquant.channel_groups(model).groups}
    assert {names[0] for names, g in groups.items() if g.removable} == {"free"}
    said = str(kquant.channel_groups(model))
    for reason in ("2 groups", "norm (LayerNormalization) mixes", "softmax", "Permute", "outputs of the model"):
        assert reason in said
    model = randomise(model)
    small = kquant.prune_channels(model, macs=0.97, minimum=1, verbose=False)
    assert {n for n, w in widths(small).items() if w != widths(model)[n]} == {"free"}


def test_protect_nested_and_subclassed_models():
    for name in ("functional_in_functional", "subclassed", "nested_model_shared", "dict_of_inputs_and_outputs"):
        model = any_model(name)
        groups = kquant.channel_groups(model).groups
        assert sum(g.removable for g in groups) >= 0 and groups, name
    model = made("residual")
    for protect in (["a_1"], "a_1", "a_*"):
        kept = kquant.channel_groups(model, protect=protect)
        assert next(g for g in kept.groups if g.layers == ("a_1",)).reason == "it is protected"
    with pytest.raises(ValueError, match=r"no layer \['a_9'\]. It has: .*a_1"):
        kquant.channel_groups(model, protect=["a_9"])


def test_the_small_model_is_plain_trains_and_is_saved(tmp_path):
    model = made("depthwise")
    before, config, nodes = model.get_weights(), model.to_json(), [len(calls_of(layer)[0]) for layer in model.layers]
    x = images(model)[0]
    small = kquant.prune_channels(model, macs=0.6, data=x, minimum=2, verbose=False)
    small.compile("adam", "mse")
    small.fit(x, np.zeros((8, *small.output_shape[1:]), "float32"), verbose=0)
    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    assert np.array_equal(again.predict(x, verbose=0), small.predict(x, verbose=0))
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert model.to_json() == config and nodes == [len(calls_of(layer)[0]) for layer in model.layers]


@functools.cache
def refused():
    """One model for all that cannot be done with it."""
    return made("residual")


def test_frozen_layers_stay_frozen_and_seeds_give_equal_models():
    model = made("residual")
    model.get_layer("stem").trainable = False
    x = images(model, 16)[0]
    first, second = (kquant.prune_channels(model, macs=0.6, data=x, minimum=2, verbose=False) for _ in range(2))
    assert not first.get_layer("stem").trainable and first.get_layer("a_1").trainable
    assert all(np.array_equal(a, b) for a, b in zip(first.get_weights(), second.get_weights(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "one budget is to be given"),
        ({"macs": 0.5, "weight_bytes": 0.5}, "one budget"),
        ({"macs": -1.0}, "expected a share"),
        ({"macs": float("nan")}, r"^macs: expected a share in \(0, 1\] or a number. Received: nan"),
        ({"macs": float("inf")}, "^macs: expected a share.*Received: inf"),
        ({"macs": "0.5"}, "^macs: expected a share.*Received: '0.5'"),
        ({"weight_bytes": True}, "^weight_bytes: expected a share.*Received: True"),
        ({"macs": 0.5, "protect": "zz"}, r"no layer \['zz'\]. It has: .*a_1"),
        ({"macs": 0.5, "multiple": 0}, "multiple: expected a whole number, 1 or more. Received: 0"),
        ({"macs": 0.5, "minimum": 0}, "minimum: expected a whole number, 1 or more. Received: 0"),
        ({"macs": 0.5, "importance": "l3"}, "expected one of l1, bn-scale, taylor"),
        ({"macs": 0.5, "importance": "taylor"}, "needs a loss"),
        ({"macs": 0.5, "importance": "taylor", "loss": "mse", "data": np.zeros((4, 8, 8, 3))}, "samples with labels"),
    ],
)
def test_errors_teach(arguments, said):
    with pytest.raises(ValueError, match=said):
        kquant.prune_channels(refused(), verbose=False, **arguments)


def test_quantized_models_are_refused():
    q = kquant.quantize(keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(2)]))
    with pytest.raises(ValueError, match="plain float model"):
        kquant.prune_channels(q, macs=0.5)


@keras.saving.register_keras_serializable(package="shrink_tests")
class ReZero(layers.Layer):
    """Mixes channels by a factor that starts at zero: what it does shows in other weights only."""

    def build(self, shape):
        self.factor = self.add_weight(name="factor", shape=(1,), initializer="zeros")

    def call(self, x):
        return x + self.factor * keras.ops.mean(x, axis=-1, keepdims=True)


@keras.saving.register_keras_serializable(package="shrink_tests")
class Gain(layers.Layer):
    """A factor for each channel."""

    def build(self, shape):
        self.gain = self.add_weight(name="gain", shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.gain


def test_layers_of_your_own():
    inputs = keras.Input((6,))
    x = ReZero()(layers.Dense(5, name="mixed")(Gain()(layers.Dense(7, name="scaled")(inputs))))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    free = {g.layers[0] for g in kquant.channel_groups(model).groups if g.removable}
    assert free == {"scaled"}


def test_open_shapes_want_a_budget_in_bytes():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(8, 3, name="a")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    with pytest.raises(ValueError, match="open shape.*weight_bytes"):
        kquant.prune_channels(model, macs=0.5, verbose=False)
    assert kquant.prune_channels(model, weight_bytes=0.6, verbose=False).get_layer("a").filters < 8


def score_of_widths(channels, worth):
    """A judge: a layer's share of channels, squared, times what it is worth."""
    groups = [(makers[0].name, members) for makers, members in channels.groups()]
    return lambda kept: -sum(worth.get(name, 1.0) * (1.0 - np.mean(kept[members])) ** 2 for name, members in groups)


@pytest.mark.parametrize(("unit", "multiple"), [("macs", 1), ("weight_bytes", 2)])
def test_widths_by_score_are_near_the_best_of_all(unit, multiple):
    """Against all combinations of widths, their costs counted on the models."""
    channels = channels_of(made("residual"))
    score = score_of_widths(channels, {"stem": 3.0, "a_1": 0.5})
    free = [members for _, members in channels.groups() if int(members[0]) not in channels.fixed]
    best, limit = -np.inf, int(0.5 * ledger(channels, unit).total(unit))
    for left in itertools.product(*(widths_allowed(len(members), 2, multiple) for members in free)):
        kept, books = np.ones(channels.count, bool), ledger(channels, unit)
        for members, width in zip(free, left, strict=True):
            kept[members[width:]] = False
            for channel in members[width:]:
                books.remove(int(channel))
        if books.total(unit) <= limit:
            best = max(best, score(kept))
    importances = by_l1(channels)
    arguments = {"minimum": 2, "multiple": multiple}
    scores = lambda models: enumerate(map(score, models))  # noqa: E731
    kept = choose_by_score(channels, importances, limit, unit, scores, verbose=False, **arguments)
    small = smaller(channels, kept)
    assert getattr(kquant.cost(small), unit) <= limit
    assert score(kept) >= 1.1 * best > 1.1 * score(choose(channels, importances, limit, unit, **arguments))
    for makers, members in channels.groups():
        gone = importances[members][~kept[members]]
        assert not len(gone) or gone.max() <= importances[members][kept[members]].min(), makers


def test_evaluate_decides_the_widths_of_refitted_models():
    """A judge that minds one layer only leaves it whole; what it sees is nearer than what was cut."""
    inputs = keras.Input((6, 6, 3))
    y = layers.Conv2D(10, 3, activation="relu", name="b_1")(layers.Conv2D(6, 3, activation="relu", name="a")(inputs))
    model = randomise(keras.Model(inputs, layers.Dense(4, name="head")(layers.Flatten()(y))))
    x, seen = images(model, 32)[0], {}
    wanted = model.predict(x, verbose=0)

    def judge(candidate):
        width = widths(candidate)["b_1"]
        seen.setdefault(width, []).append(np.mean((candidate(x).numpy() - wanted) ** 2))
        return float(width)

    cut = kquant.prune_channels(model, macs=0.6, minimum=2, evaluate=judge, verbose=False)
    narrow, seen = min(seen), {width: errors[0] for width, errors in seen.items()}
    raw, seen = seen[narrow], {}
    kept = kquant.prune_channels(model, macs=0.6, minimum=2, evaluate=judge, data=x, verbose=False)
    assert widths(cut)["b_1"] == widths(kept)["b_1"] == widths(model)["b_1"]
    assert kquant.cost(kept).macs <= 0.6 * kquant.cost(model).macs
    assert seen[narrow][0] < raw and len(seen) > 5


def test_scores_that_decide_nothing_teach():
    inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(4, 3, name="only")(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))
    for score, said in ((float("nan"), "nan"), (None, "None"), ("0.5", "'0.5'"), ([0.5, 0.6], r"\[0.5, 0.6\]")):
        with pytest.raises(ValueError, match=f"prune_channels: evaluate must return .* channels it returned {said}"):
            kquant.prune_channels(model, macs=0.6, minimum=1, evaluate=lambda _, score=score: score, verbose=False)
    with pytest.raises(ValueError, match="narrowest model has.*head: they are outputs of the model"):
        kquant.prune_channels(model, macs=0.01, evaluate=lambda _: 0.0, verbose=False)
