"""Analysis and dry runs: figures against numpy, causes in models broken on purpose, reports, the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import contract
import keras
import numpy as np
import pytest
from typer.testing import CliRunner

import kquant
from kquant import report
from kquant.analysis.liveness import peak_bytes
from kquant.analysis.pairs import pairs
from kquant.analysis.remedies import LEAST_DB, Trials, merged, told, with_remedy
from kquant.analysis.separately import GROUP, Work
from kquant.analysis.units import units
from kquant.app.cli import app
from kquant.correct.steps import STEPS
from kquant.files.finished_work import Kept
from kquant.graph.copies import copy_of
from kquant.graph.graph import run
from kquant.layers.nodes import FakeQuant, observing, only
from kquant.recipe.recipe import load
from kquant.views import quantized_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:calibrate. tensors of very different ranges share",
)

layers = keras.layers
RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(96, 6, 6, 2)))
WORK = Work(Kept(None, "analyze", {}))
PER_TENSOR = {"name": "one-scale", "weights": {"per_axis": False}}


def network(breaking: Any = None) -> keras.Model:
    """Two convolutions and a head; `breaking(model)` spoils it."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((6, 6, 2), name="image")
    x = layers.ReLU(name="relu_a")(layers.Conv2D(8, 3, padding="same", name="a")(x))
    x = layers.ReLU(name="relu_b")(layers.Conv2D(8, 3, name="b")(x))
    model = keras.Model(inputs, layers.Dense(4, name="head")(layers.Flatten(name="flat")(x)), name="net")
    if breaking is not None:
        breaking(model)
    return model


def calibrated(model: keras.Model, recipe: Any = "int8", data: Any = X) -> keras.Model:
    return kquant.calibrate(kquant.quantize(model, recipe), data, verbose=False)


def analyzed(q: keras.Model, data: Any = X, **options: Any) -> kquant.Analysis:
    return kquant.analyze(q, data, verbose=False, **{"remedies": False, **options})


def causes(a: kquant.Analysis) -> set[str]:
    return {f.cause for f in a.findings}


def db(real: np.ndarray, found: np.ndarray) -> float:
    real, found = real.astype(np.float64), found.astype(np.float64)
    return float(10 * np.log10(np.sum(real**2) / np.sum((found - real) ** 2)))


@pytest.fixture(scope="module")
def healthy() -> tuple[keras.Model, kquant.Analysis]:
    q = calibrated(network())
    return q, analyzed(q)


@pytest.fixture(scope="module")
def broken() -> tuple[keras.Model, kquant.Analysis]:
    """The second convolution has 2-bit weights."""
    with pytest.warns(UserWarning, match="no packed 2-bit weights for b; their codes have 2 bits and are stored in 4"):
        q = calibrated(network(), {"name": "two", "rules": [{"layer": "b", "weights": {"bits": 2}}]})
    return q, analyzed(q, remedies=True)


# Figures


def test_a_dense_layer_against_numpy() -> None:
    x = np.float32(RNG.normal(size=(96, 5)))
    model = keras.Sequential([keras.Input((5,), name="x"), layers.Dense(3, name="head")])
    q = calibrated(model, data=x)
    a = analyzed(q, x)
    row, tensor = a.layer("head"), a.tensor("head_quant")
    w, b = (v.astype(np.float64) for v in model.layers[0].get_weights())
    scale = np.abs(w).max(0) / 127
    on_grid = np.rint(w / scale) * scale
    assert row.weights.sqnr_db == pytest.approx(db(w, on_grid), abs=1e-3)
    assert row.weights.spread == pytest.approx(np.abs(w).max(0).max() / np.abs(w).max(0).min(), rel=1e-6)
    assert row.weights.clipped == 0.0
    assert row.weights.channels == pytest.approx(np.abs(w).max(0))
    y = x.astype(np.float64) @ w + b
    step = (tensor.high - tensor.low) / 255

    def quantized_to(values: np.ndarray, low: float, step: float) -> np.ndarray:
        return np.clip(np.rint((values - low) / step), 0, 255) * step + low

    local = quantized_to(x.astype(np.float64) @ on_grid + b, tensor.low, step)
    assert row.local_sqnr_db == pytest.approx(db(y, local), abs=0.05)
    assert row.sqnr_db == pytest.approx(db(y, q(x).numpy()), abs=1e-3)
    assert a.sqnr_db == a.value == row.sqnr_db
    assert (tensor.seen_low, tensor.seen_high) == pytest.approx((y.min(), y.max()), rel=1e-5)
    error = (quantized_to(y, tensor.low, step) - y) ** 2
    outside = (y < tensor.low - step / 2) | (y > tensor.high + step / 2)
    assert tensor.clipped == np.mean(outside)
    assert tensor.rounding == pytest.approx(error[~outside].sum() / y.size, rel=1e-3)
    assert (row.macs, row.weight_bytes, row.live_bytes) == (15, 15 + 12, 5 + 3)


def test_clipping_against_numpy() -> None:
    q = calibrated(network())
    layer = next(v for v in q.layers if v.name == "head_quant")
    layer.set_range(0, -0.3, 0.4)
    tensor = analyzed(q, sensitivity=False).tensor("head_quant")
    y = network()(X).numpy().astype(np.float64)
    step = (tensor.high - tensor.low) / 255
    codes = np.rint((y - tensor.low) / step)
    outside = (codes < 0) | (codes > 255)
    error = (np.clip(codes, 0, 255) * step + tensor.low - y) ** 2
    assert tensor.clipped == pytest.approx(np.mean(outside), abs=1e-3)
    assert tensor.clipped > 0.1
    assert tensor.clipping == pytest.approx(error[outside].sum() / y.size, rel=1e-3)
    assert tensor.rounding == pytest.approx(error[~outside].sum() / y.size, rel=1e-2)
    assert tensor.sqnr_db == pytest.approx(db(y, np.clip(codes, 0, 255) * step + tensor.low), abs=1e-2)


def test_macs_and_bytes_of_every_kind_of_layer() -> None:
    x = inputs = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(6, 3, strides=2, groups=2, padding="same", name="grouped")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise", use_bias=False)(x)
    x = layers.Conv2DTranspose(3, 2, strides=2, name="up")(x)
    q = calibrated(keras.Model(inputs, x), data=np.float32(RNG.normal(size=(40, 8, 8, 4))))
    a = analyzed(q, np.float32(RNG.normal(size=(40, 8, 8, 4))), sensitivity=False)
    assert [a.layer(n).macs for n in ("grouped", "depthwise", "up")] == [
        4 * 4 * 6 * 3 * 3 * 2,
        2 * 2 * 12 * 3 * 3,
        2 * 2 * 12 * 2 * 2 * 3,
    ]
    assert a.macs == sum(row.macs for row in a.layers)
    assert a.layer("depthwise").weight_bytes == 108 + 12 * 4  # a file stores biases of zeros
    assert a.layer("grouped").live_bytes == a.peak_bytes == 8 * 8 * 4 + 4 * 4 * 6
    packed = analyzed(calibrated(network(), "int4-weights"), sensitivity=False).layer("b")
    assert packed.weight_bytes == 8 * 8 * 9 // 2 + 8 * 4


def file_peak(q: keras.Model, path: Path) -> int:
    """Bytes alive together by the operators and tensors of the file that kquant writes."""
    path.write_bytes(contract.file_of(q))
    file = kquant.inspect(path)
    widths = {"INT8": 1, "INT16": 2, "FLOAT32": 4}  # of activations; other types are of constants
    sizes = {t.index: math.prod(t.shape) * widths.get(t.type.upper(), 0) for t in file.tensors}
    first = {t.index: 0 for t in file.inputs} | {t: op.index for op in file.operators for t in op.outputs}
    last = {t: op.index for op in file.operators for t in op.inputs} | {t.index: 10**6 for t in file.outputs}
    now = range(len(file.operators))
    return max(sum(sizes[t] for t, at in first.items() if at <= i <= last.get(t, at)) for i in now)


def chain() -> keras.Model:
    """Three convolutions of the same size, whose inputs are all added at the end."""
    found = [keras.Input((6, 6, 2), name="image")]
    for name in "abc":
        found.append(layers.Conv2D(2, 3, padding="same", activation="relu", name=name)(found[-1]))
    return keras.Model(found[0], layers.Add(name="sum")(found))


def branched() -> keras.Model:
    """A ReLU layer, a ReLU behind a sum, encodings that a concatenation shares, a pool, a reshape, two outputs."""
    x = inputs = keras.Input((6, 6, 2), name="image")
    a = layers.Conv2D(4, 3, padding="same", name="a")(x)
    b = layers.ReLU(name="relu")(layers.Conv2D(4, 3, padding="same", name="b")(a))
    both = layers.Concatenate(name="both")([layers.ReLU(name="cut")(layers.Add(name="sum")([a, b])), b, a])
    rows = layers.Reshape((9, 12), name="rows")(layers.MaxPooling2D(name="pool")(both))
    y = layers.Dense(3, activation="softmax", name="head")(layers.GlobalAveragePooling1D(name="mean")(rows))
    return keras.Model(inputs, [y, layers.Dense(40, name="other")(rows)])


def recurrent() -> keras.Model:
    """An LSTM, which has no float form in a file, behind a sum."""
    inputs = keras.Input((6, 6, 2), name="image")
    rows = layers.Reshape((12, 6), name="rows")(layers.Add(name="sum")([inputs, layers.ReLU(name="cut")(inputs)]))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.LSTM(4, name="memory")(rows)))


FLOAT_B = {"name": "mixed", "rules": [{"layer": "b", "float": True}]}


@pytest.mark.parametrize(
    ("make", "recipe"),
    [
        (recurrent, "int8"),
        (branched, FLOAT_B),
        *((make, recipe) for make in (chain, branched) for recipe in ("int8", "int16x8", "dynamic-int8")),
    ],
)
def test_most_activations_alive_together(make: Any, recipe: Any, tmp_path: Path) -> None:
    q = calibrated(make(), recipe)
    assert peak_bytes(quantized_model.read(q)) == file_peak(q, tmp_path / "m.tflite")


def test_skip_connections_are_alive() -> None:
    """When the last convolution runs, the input and three outputs are; alone it needs two tensors."""
    a = analyzed(calibrated(chain()), sensitivity=False)
    one = 6 * 6 * 2
    assert [a.layer(name).live_bytes for name in "abc"] == [2 * one] * 3
    assert a.peak_bytes == 4 * one
    assert f"activations alive together at most {4 * one} bytes" in " ".join(report.render(a).split())


def test_wholly_float_and_wholly_quantized(healthy: tuple) -> None:
    q, a = healthy
    graph = quantized_model.read(q)
    out = id(keras.tree.flatten(graph.outputs)[0])
    with observing(lambda *_: None):
        real = run(graph, X[:32])[out].numpy()
    with only([]):
        np.testing.assert_array_equal(run(graph, X[:32])[out], real)
    everything = frozenset().union(*(u.names for u in units(graph)))
    with only(everything):
        simulated = run(graph, X[:32])[out].numpy()
    assert db(q(X[:32]).numpy(), simulated) > 40  # integer sums round a few codes otherwise
    assert a.simulated == pytest.approx(a.value, abs=1.0)
    assert a.float_value == math.inf


# Sensitivity


def test_the_destroyed_layer_is_found(broken: tuple) -> None:
    _, a = broken
    alone = {row.name: row.sensitivity.only for row in a.layers}
    assert min(alone, key=lambda name: alone[name]) == "b"
    best = max(a.layers, key=lambda row: row.sensitivity.all_but)
    assert best.name == "b"
    assert best.sensitivity.all_but > a.simulated + 15
    assert a.weights_only < a.activations_only - 15
    assert best.sensitivity.only_weights == pytest.approx(a.weights_only, abs=1.0)
    assert best.sensitivity.only_activations > 30
    assert {"2-bit weights", "most sensitive layer"} <= causes(a)
    finding = next(f for f in a.findings if f.cause == "most sensitive layer")
    assert finding.layer == "b"
    assert finding.remedy == '[[rules]]\nlayer = "b"\nweights = { bits = 8 }'
    assert finding.gain.sqnr_db > 15


def test_the_remedies_are_recipes_that_help(broken: tuple) -> None:
    q, a = broken
    import tomllib

    finding = next(f for f in a.findings if f.cause == "most sensitive layer")
    rules = tomllib.loads(finding.remedy)["rules"]
    better = calibrated(network(), {"name": "two", "rules": [{"layer": "b", "weights": {"bits": 2}}, *rules]})
    assert analyzed(better, sensitivity=False).value > a.value + 15


def test_the_gain_is_what_applying_the_remedy_gives(broken: tuple) -> None:
    """The recipe that `--apply` writes, through TOML, on the float model: the gain that was told."""
    q, a = broken
    best = max((f for f in a.findings if f.gain), key=lambda f: f.gain.sqnr_db)
    recipe = load_toml(kquant.recipe_to_toml(with_remedy(q, a)))
    assert recipe["rules"] == [{"layer": "b", "weights": {"bits": 2}}, {"layer": "b", "weights": {"bits": 8}}]
    better = analyzed(calibrated(network(), recipe), sensitivity=False, remedies=False)
    assert better.sqnr_db - a.sqnr_db == pytest.approx(best.gain.sqnr_db, abs=0.1)
    text = report.render(a)
    assert f"Tried: {best.gain.sqnr_db:+.1f} dB SQNR:\n{best.remedy}" in text  # the box, as it can be pasted


def test_a_tie_goes_to_the_cheaper_and_nothing_is_told_that_gains_nothing() -> None:
    from kquant.analysis.results import Finding, Gain

    wide, eight = (f'[[rules]]\nlayer = "b"\n{s} = {{ bits = {n} }}' for s, n in (("activations", 16), ("weights", 8)))
    given = Finding("b", "most sensitive layer", "", candidates=(wide, eight))
    gains = {wide: Gain(0.07, 6.0), eight: Gain(0.07, 6.1)}

    class Fixed(Trials):
        def gain(self, change: str) -> Gain | None:
            return gains[change]

    for metric in (None, lambda y: 0.0):
        trials = Fixed(None, None, "litert", [], metric, 0.0, 0.0)
        assert told([given], trials, WORK.gains, False)[0].remedy == eight
    gains = {wide: Gain(0.0, 0.1), eight: Gain(-0.01, 0.4)}
    (found,) = told([given], trials, WORK.gains, False)
    assert (found.remedy, found.gain, found.tried) == ("", None, True)
    gains = {wide: None, eight: Gain(0.01, 3.0)}
    assert told([given], trials, WORK.gains, False)[0].remedy == eight


def test_every_box_is_lines_of_a_recipe(broken: tuple) -> None:
    for finding in broken[1].findings:
        for change in finding.candidates:
            assert merged(kquant.Recipe(name="mine", weights={"bits": 4}), change).weights.bits == 4


def load_toml(text: str) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(text)


def test_the_model_stays_as_it_is(broken: tuple) -> None:
    q, _ = broken
    before, y = [np.array(w) for w in q.get_weights()], q(X[:16]).numpy()
    analyzed(q, limit=16)
    for old, new in zip(before, q.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(y, q(X[:16]).numpy())


def test_a_metric_sees_the_outputs_in_order(broken: tuple) -> None:
    q, _ = broken
    labels = network()(X).numpy().argmax(1)
    shapes = []

    def accuracy(outputs: np.ndarray) -> float:
        shapes.append(outputs.shape)
        return float(np.mean(outputs.argmax(1) == labels[: len(outputs)]))

    a = analyzed(q, metric=accuracy, limit=80)
    assert (a.metric, a.samples, a.float_value) == ("accuracy", 80, 1.0)
    assert set(shapes) == {(80, 4)}
    assert a.value == np.mean(q(X[:80]).numpy().argmax(1) == labels[:80])
    assert a.layer("b").sensitivity.all_but > a.value
    assert next(f for f in a.findings if f.cause == "most sensitive layer").layer == "b"


# Causes


def test_a_healthy_model_has_none(healthy: tuple) -> None:
    assert healthy[1].findings == ()


def outlier(model: keras.Model) -> None:
    kernel, bias = model.get_layer("b").get_weights()
    kernel[..., 3] *= 100
    model.get_layer("b").set_weights([kernel, bias])


def rescaled(model: keras.Model) -> None:
    """Channels between a and b by up to 1000, the function left as it is."""
    factor = np.float32(np.geomspace(1, 1000, 8))
    (a, bias), (b, after) = model.get_layer("a").get_weights(), model.get_layer("b").get_weights()
    model.get_layer("a").set_weights([a * factor, bias * factor])
    model.get_layer("b").set_weights([b / factor[:, None], after])


def test_outlier_channels() -> None:
    a = analyzed(calibrated(network(outlier), PER_TENSOR), sensitivity=False, remedies=True)
    finding = next(f for f in a.findings if f.cause == "outlier channels")
    assert (finding.layer, a.layer("b").weights.spread > 50) == ("b", True)
    assert any("per_axis = true" in change for change in finding.candidates)
    assert finding.remedy in finding.candidates and finding.gain.sqnr_db >= LEAST_DB
    assert "outlier channels" not in causes(analyzed(calibrated(network(outlier)), sensitivity=False))


def test_an_unequalized_pair() -> None:
    q = calibrated(network(rescaled), PER_TENSOR)
    a = analyzed(q)
    finding = next(f for f in a.findings if f.cause == "unequalized pair")
    assert finding.layer == "a"
    assert finding.candidates == ('steps = ["equalize", "calibrate"]',)
    found = {(p.first, p.second): p.spread for p in pairs(quantized_model.read(q))}
    (first, _), (second, _) = (network(rescaled).get_layer(n).get_weights() for n in "ab")
    ratio = np.abs(first).max((0, 1, 2)) / np.abs(second).max((0, 1, 3))
    assert found["a", "b"] == pytest.approx(ratio.max() / ratio.min(), rel=1e-5)
    assert found["b", "head"] < 2.0  # through a pool


@pytest.mark.parametrize(("factor", "cause"), [(0.1, "saturated activations"), (60.0, "too wide range")])
def test_a_wrong_range(factor: float, cause: str) -> None:
    q = calibrated(network())
    layer = next(v for v in q.layers if v.name == "relu_a_quant")
    layer.set_range(0, 0.0, factor * float(layer.high.numpy()[0]))
    a = analyzed(q, sensitivity=False, remedies=True)
    finding = next(f for f in a.findings if f.cause == cause)
    assert finding.layer == "a"
    assert finding.candidates[0] == '[[rules]]\nlayer = "relu_a"\nactivations = { observer = "mse" }'
    assert finding.remedy in finding.candidates and finding.gain.sqnr_db > 1
    tensor = a.tensor("relu_a_quant")
    assert tensor.clipped > 0.3 if factor < 1 else tensor.used < 0.05


def test_an_unbalanced_concat() -> None:
    def joined(scale: float, bits: int = 8) -> kquant.Analysis:
        keras.utils.set_random_seed(1)
        x = keras.Input((6, 6, 2), name="image")
        left = layers.Conv2D(3, 3, name="left")(x)
        right = layers.Conv2D(3, 3, name="right", kernel_initializer=keras.initializers.RandomNormal(0, scale))(x)
        model = keras.Model(x, layers.Flatten()(layers.Concatenate(name="both")([left, right])))
        one_grid = {"name": "joined", "activations": {"heads": "joined", "bits": bits}}
        return analyzed(calibrated(model, one_grid), sensitivity=False, remedies=True, limit=64)

    a = joined(30.0)
    finding = next(f for f in a.findings if f.cause == "unbalanced concat")
    assert finding.layer == "both"
    assert "bits = 16" in finding.remedy and finding.gain.sqnr_db > 1
    assert "unbalanced concat" not in causes(joined(0.3))
    assert "unbalanced concat" not in causes(joined(30.0, bits=16)), "that was the remedy"


def test_too_few_samples(healthy: tuple) -> None:
    assert "too few samples" in causes(analyzed(healthy[0], X[:16], sensitivity=False))
    moving = np.concatenate([X[:64], 4 * X[64:]])
    assert "too few samples" in causes(analyzed(healthy[0], moving, sensitivity=False))


def test_low_bits(broken: tuple) -> None:
    a = analyzed(calibrated(network(), "int4-weights"), sensitivity=False)
    finding = next(f for f in a.findings if f.cause == "4-bit weights")
    assert any("adaround" in change for change in finding.candidates)
    assert any("sequential-mse" in change for change in finding.candidates)
    assert (finding.remedy, finding.gain) == ("", None)  # not tried, so not told
    tried = next(f for f in broken[1].findings if f.cause == "2-bit weights")
    assert tried.remedy in tried.candidates and tried.gain.sqnr_db > 1


# Other models


def test_float_activations_and_several_outputs() -> None:
    x = keras.Input((6,), name="x")
    hidden = layers.Dense(8, activation="relu", name="hidden")(x)
    model = keras.Model(x, [layers.Dense(2, name="one")(hidden), layers.Dense(3, name="two")(hidden)])
    data = np.float32(RNG.normal(size=(64, 6)))
    seen = []
    a = analyzed(calibrated(model, "weight-only-int8", data), data, metric=lambda y: seen.append(y) or 0.0)
    assert {r.name for r in a.layers} == {"hidden", "one", "two"}
    assert [y.shape for y in seen[0]] == [(64, 2), (64, 3)]
    assert a.tensors == ()
    wide = analyzed(calibrated(model, "int16x8", data), data)
    assert wide.activations_only > 60 > wide.weights_only


def test_an_lstm() -> None:
    x = keras.Input((5, 3), name="x")
    model = keras.Model(x, layers.Dense(2, name="head")(layers.LSTM(4, return_sequences=True, name="memory")(x)))
    data = np.float32(RNG.normal(size=(48, 5, 3)))
    a = analyzed(calibrated(model, data=data), data)
    row = a.layer("memory")
    assert row.macs == 5 * 4 * 4 * (3 + 4)
    assert 15 < row.sensitivity.only < math.inf
    assert row.sensitivity.only_weights > row.sensitivity.only
    assert row.weights.sqnr_db > 35


def test_refusals(healthy: tuple) -> None:
    with pytest.raises(ValueError, match="not a quantized model"):
        analyzed(network())
    with pytest.raises(ValueError, match=r"without a range: image_quant.*calibrate"):
        analyzed(kquant.quantize(network()))
    with pytest.raises(ValueError, match="limit must be 1 or more"):
        analyzed(healthy[0], limit=0)
    with pytest.raises(ValueError, match="data are empty"):
        analyzed(healthy[0], X[:0])
    with pytest.raises(ValueError, match="no 'nowhere'. There are: image, a, b, head"):
        healthy[1].layer("nowhere")


# Reports


def test_text_and_json(broken: tuple) -> None:
    _, a = broken
    text = report.render(a)
    assert text.index("b: most sensitive layer") < text.index("Sensitivity: SQNR in dB")
    found = json.loads(report.to_json(a), parse_constant=pytest.fail)
    assert found["float_value"] is None
    assert found["value"] == a.value
    assert [r["name"] for r in found["layers"]] == [r.name for r in a.layers]
    assert found["layers"][2]["weights"]["channels"] == list(a.layers[2].weights.channels)
    assert json.loads(json.dumps(found)) == found


def test_html(broken: tuple, tmp_path: Any) -> None:
    _, a = broken
    path = report.html(a, tmp_path / "report.html")
    text = path.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    for row in a.layers:
        assert f">{row.name}</span>" in text.replace("<wbr>", "")
    for finding in a.findings:
        assert finding.cause in text and finding.remedy.splitlines()[0].split("=")[0].strip() in text
    with pytest.raises(ValueError, match="ends in .html"):
        report.html(a, tmp_path / "report.txt")
    with pytest.raises(TypeError, match="Received: int"):
        report.html(3, path)
    with pytest.warns(DeprecationWarning, match="`analysis` is called `result` now"):
        report.html(analysis=a, path=path)


def test_command(tmp_path: Any) -> None:
    keras.utils.set_random_seed(1)
    hidden = layers.Dense(8, activation="relu", name="hidden")
    model = keras.Sequential([keras.Input((6,), name="row"), hidden, layers.Dense(4, name="head")])
    rows = X[:, 0, :, 0] * np.float32([0.1, 1, 1, 1, 1, 1])
    model.layers[0].kernel.assign(model.layers[0].kernel * np.float32([[8], [1], [1], [1], [1], [1]]))  # wide grids
    model.save(tmp_path / "net.keras")
    calibrated(model, "int4-weights", rows).save(tmp_path / "quantized.keras")
    np.savez(tmp_path / "x.npz", x=rows)
    labels = model(rows).numpy().argmax(1)
    np.save(tmp_path / "y.npy", labels)

    def call(*arguments: Any) -> Any:
        return CliRunner().invoke(app, ["analyze", *map(str, arguments)])

    data = ("--data", tmp_path / "x.npz", "--limit", 64)
    out = ("--labels", tmp_path / "y.npy", "--path", tmp_path / "report.html")
    result = call(tmp_path / "net.keras", *data, *out, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["recipe"], found["metric"], found["float_value"], found["samples"]) == ("int8", "accuracy", 1.0, 64)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    result = call(tmp_path / "quantized.keras", *data, "--apply", tmp_path / "better.toml")
    assert result.exit_code == 0, result.output
    assert "4-bit weights" in result.stdout and "Tried: +" in result.stdout
    applied = load(tmp_path / "better.toml")
    assert applied.rules or applied.steps != load("int4-weights").steps
    result = call(tmp_path / "quantized.keras", *data, "--recipe", "int8")
    assert (result.exit_code, "leave --recipe out" in result.stderr) == (1, True)
    result = call(tmp_path / "net.keras", *data, "--path", tmp_path / "none" / "report.html")
    assert (result.exit_code, "does not exist" in result.stderr) == (1, True)


# Dry run


def test_dry_run_leaves_the_model_and_tells_what_would_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def halve(qmodel: keras.Model, data: Any, *, verbose: bool = True, layer: str = "a") -> keras.Model:
        """Half the weights' range, which clips."""
        place = next(p for p in quantized_model.places(quantized_model.read(qmodel)) if p.name == layer)
        place.layer.correction("reach").assign(np.abs(place.layer.weights_as_used()).max((0, 1, 2), keepdims=True) / 2)
        return qmodel

    monkeypatch.setitem(STEPS, "halve", halve)
    q = calibrated(network())
    before, y = [np.array(w) for w in q.get_weights()], q(X[:16]).numpy()
    found = kquant.dry_run(q, [{"name": "halve", "layer": "b"}], X, verbose=False)
    for old, new in zip(before, q.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(y, q(X[:16]).numpy())
    a = analyzed(q, sensitivity=False)
    assert found.before_db == pytest.approx(a.sqnr_db, abs=1e-6)
    assert found.after_db < found.before_db - 10
    changes = {c.name: c for c in found.layers}
    assert changes["a"].before == changes["a"].after
    assert changes["b"].after.weights_db < changes["b"].before.weights_db - 10
    assert changes["b"].before.sqnr_db == pytest.approx(a.layer("b").sqnr_db, abs=1e-6)
    text = report.render(found)
    assert "halve on a copy" in text
    assert "further from the float model" in text
    assert json.loads(report.to_json(found))["after_db"] == found.after_db


def test_dry_run_before_calibration() -> None:
    q = kquant.quantize(network())
    found = kquant.dry_run(q, ["calibrate"], X, verbose=False)
    assert (found.before_db, found.layers[0].before.sqnr_db) == (None, None)
    assert found.after_db > 25
    assert not any(np.any(v.count.numpy()) for v in q.layers if isinstance(v, FakeQuant) and v.has_range)
    with pytest.raises(ValueError, match="no step 'calibrat'. Did you mean 'calibrate'"):
        kquant.dry_run(q, ["calibrat"], X)


@pytest.mark.filterwarnings("ignore:equalize")
def test_dry_run_calibrates_again_where_ranges_were_forgotten() -> None:
    """The same as the steps and a calibration by hand."""
    q = calibrated(network(unbalanced), PER_TENSOR)
    before = [np.array(w) for w in q.get_weights()]
    found = kquant.dry_run(q, ["equalize"], X, verbose=False)
    for old, new in zip(before, q.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    by_hand = kquant.calibrate(kquant.equalize(copy_of(q), verbose=False), X, verbose=False)
    assert found.after_db == pytest.approx(db(network(unbalanced)(X).numpy(), by_hand(X).numpy()), abs=0.01)
    assert found.after_db > found.before_db + 3
    assert all(c.after.sqnr_db is not None for c in found.layers)
    (note,) = found.notes
    assert "relu_a_quant, relu_b_quant; the copy was calibrated again on these 96 samples" in note
    assert note in " ".join(report.render(found).split())
    assert kquant.dry_run(q, ["calibrate"], X, verbose=False).notes == ()


def unbalanced(model: keras.Model) -> None:
    """Channels of "a" that differ 100 times; the function is that of balanced ones."""
    factors = np.float32(np.geomspace(0.1, 10, 8))
    a, b = model.get_layer("a"), model.get_layer("b")
    a.set_weights([w * factors for w in a.get_weights()])
    b.kernel.assign(b.kernel / factors[:, None])


def test_the_benchmark_says_what_it_measured() -> None:
    """Its grids are those of the recipe "int4-weights", whose steps it leaves out."""
    root = Path(__file__).parents[2]
    text = (root / "docs/benchmarks.md").read_text()
    section = text[text.index("\n\n## What analysis says") :]
    assert "\n| 4-bit weights, rounded to nearest | 55.64 |\n" in section
    assert "| int4-weights |" not in section
    assert "-bit weights, rounded to nearest" in (root / "benchmarks/analysis.py").read_text()


class Stopping:
    """A metric that is asked so many times, and then stops the call."""

    def __init__(self, left: int) -> None:
        self.left, self.__name__ = left, "mine"

    def __call__(self, y: np.ndarray) -> float:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return -float(np.mean(np.square(y)))


def test_a_stopped_analysis_goes_on(tmp_path: Path) -> None:
    """In a folder: to the figures of one walk, with fewer calls of the metric; not with other samples."""
    q = kquant.calibrate(kquant.quantize(network()), X, verbose=False)
    options = {"remedies": True, "verbose": False}
    whole = Stopping(10**6)
    wanted = report.to_json(kquant.analyze(q, X, whole, **options))
    with pytest.raises(KeyboardInterrupt):
        kquant.analyze(q, X, Stopping(GROUP + 4), folder=tmp_path, **options)
    later = Stopping(10**6)
    assert report.to_json(kquant.analyze(q, X, later, folder=tmp_path, **options)) == wanted
    assert later.left - whole.left >= GROUP // 2, "settings that were finished are not measured again"
    with pytest.raises(ValueError, match=r"analyze: .*analysis.json is of another search"):
        kquant.analyze(q, X + 1, later, folder=tmp_path, **options)
    with pytest.raises(ValueError, match=r"analyze: .*analysis.json is of another search"):
        kquant.analyze(q, X, lambda y: float(np.mean(y)), folder=tmp_path, **options)
