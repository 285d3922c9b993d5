"""A model swept once, layer by layer: the tensors of one that is computed anew for each, in memory or from files."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import contract
import keras
import numpy as np
import pytest

import kquant
from kquant.correct import sweep as sweeps
from kquant.correct.sweep import Sweep
from kquant.layers.nodes import Compressed, FakeQuant
from kquant.views.quantized_model import places, tensors

pytestmark = pytest.mark.filterwarnings("ignore:calibrate. 20 samples are few")

layers = keras.layers
X = np.random.default_rng(0).normal(size=(20, 6, 6, 2)).astype("float32")


def branched() -> keras.Model:
    """A residual sum, a layer that is called twice, and one behind both."""
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="first")(inputs)
    shared = layers.Conv2D(4, 1, name="shared")
    x = layers.Add()([x, shared(layers.ReLU()(shared(x)))])
    return contract.randomise(keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x))))


@pytest.fixture(scope="module")
def q() -> keras.Model:
    return kquant.calibrate(kquant.quantize(branched()), X, verbose=False)


def all_pairs(sweep: Sweep) -> dict[str, tuple[list[Any], list[Any]]]:
    """For each layer its inputs in integers and its outputs in float."""
    found = {}
    for place in places(sweep.graph):
        ends = [node.inputs[0] for node in place.calls], [node.outputs[0] for node in place.calls]
        ours, theirs = zip(*sweep.pairs(place.calls[0], *ends), strict=True)
        found[place.name] = [[np.concatenate(parts) for parts in zip(*each, strict=True)] for each in (ours, theirs)]
    return found


@pytest.mark.parametrize("kept", [1 << 30, 0], ids=["in memory", "in files"])
def test_the_tensors_are_those_of_the_whole_model(
    q: keras.Model, kept: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sweeps, "KEPT_BYTES", kept)
    monkeypatch.setattr(sweeps, "SMALL_BYTES", 64)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sweep = Sweep("test", q, X, batch_size=8)
    found = all_pairs(sweep)
    assert list(found) == ["first", "shared", "head"] and len(found["shared"][0]) == 2
    assert bool(list(tmp_path.iterdir())) == (kept == 0)
    for place in places(sweep.graph):
        for side, wanted in enumerate(([n.inputs[0] for n in place.calls], [n.outputs[0] for n in place.calls])):
            (whole,) = tensors(sweep.graph, wanted, [X], quantized=side == 0)
            for ours, theirs in zip(found[place.name][side], whole, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=0 if side == 0 else 1e-5)
    del sweep
    assert not list(tmp_path.iterdir())


def test_a_batch_is_cut_to_what_fits(q: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = all_pairs(Sweep("test", q, X))
    monkeypatch.setattr(sweeps, "BATCH_BYTES", 4 * 6 * 6 * 4 * 3)  # three samples of the largest tensor
    sweep = Sweep("test", q, X)
    first = places(sweep.graph)[0].calls[0]
    assert [len(x) for (x,) in sweep.values(first, [first.inputs[0]], quantized=True)] == [3] * 6 + [2]
    cut = all_pairs(Sweep("test", q, X))
    for name, (ours, _) in whole.items():
        assert all(np.array_equal(a, b) for a, b in zip(ours, cut[name][0], strict=True))


def test_each_node_is_computed_once(q: keras.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    for kind in (Compressed, FakeQuant):
        call = kind.call

        def counted(self: Any, *args: Any, call: Any = call, **kwargs: Any) -> Any:
            calls[self.name] += 1
            return call(self, *args, **kwargs)

        monkeypatch.setattr(kind, "call", counted)
    sweep = Sweep("test", q, X)
    for place in places(sweep.graph):
        list(sweep.values(place.calls[0], [place.calls[0].inputs[0]], quantized=True))
    once = {node.op.name for node in sweep.graph.nodes if isinstance(node.op, FakeQuant)}
    assert calls.keys() & once and all(calls[name] <= 1 for name in once)
    assert calls["first"] == 1 and calls["shared"] == 2 and calls["head"] == 0


def test_what_changes_ahead_is_seen(q: keras.Model) -> None:
    fresh = kquant.calibrate(kquant.quantize(branched()), X, verbose=False)
    sweep = Sweep("test", fresh, X)
    first, _, head = (place.calls[0] for place in places(sweep.graph))
    list(sweep.values(first, [first.inputs[0]], quantized=True))
    before = np.concatenate([x for (x,) in sweep.values(first, [first.outputs[0]], quantized=True)])
    first.op.layer.bias.assign(first.op.layer.bias + 1.0)
    after = np.concatenate([x for (x,) in sweep.values(first, [first.outputs[0]], quantized=True)])
    assert np.allclose(after, before + 1.0, atol=0.1)
    (whole,) = tensors(sweep.graph, [head.inputs[0]], [X], quantized=True)
    ours = np.concatenate([x for (x,) in sweep.values(head, [head.inputs[0]], quantized=True)])
    assert np.array_equal(ours, whole[0])


def test_no_data_are_refused(q: keras.Model) -> None:
    sweep = Sweep("adaround", q, lambda: iter(()))
    first = sweep.graph.nodes[1]
    with pytest.raises(ValueError, match="adaround: the data are empty; give at least one sample"):
        sweep.values(first, [first.inputs[0]], quantized=True)
