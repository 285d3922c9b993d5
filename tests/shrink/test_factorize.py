"""Low-rank halves: the whole function at full rank, numpy's singular values, ranks within a budget."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
from contract import randomise
from keras import layers

import kquant
from kquant.shrink.factorization import full_rank
from kquant.shrink.factors import split
from kquant.shrink.ranks import Candidate, cheapest_ranks, choose_ranks

pytestmark = pytest.mark.filterwarnings(
    r"ignore:calibrate. \d+ samples are few",
)

KINDS = {
    "dense": (lambda: layers.Dense(7, activation="tanh", name="it"), (5, 9)),
    "conv": (lambda: layers.Conv2D(7, 3, padding="same", activation="relu", name="it"), (8, 7, 4)),
    "strided": (lambda: layers.Conv2D(6, (3, 5), strides=(2, 1), padding="same", use_bias=False, name="it"), (9, 8, 3)),
    "dilated": (lambda: layers.Conv2D(5, 3, dilation_rate=2, name="it"), (9, 9, 3)),
    "point": (lambda: layers.Conv2D(6, 1, strides=2, name="it"), (8, 8, 5)),
    "causal": (lambda: layers.Conv1D(6, 3, dilation_rate=2, padding="causal", name="it"), (12, 4)),
    "line": (lambda: layers.Conv1D(6, 3, strides=2, padding="same", name="it"), (11, 4)),
}


def model_of(kind):
    make, shape = KINDS[kind]
    inputs = keras.Input(shape)
    return randomise(keras.Model(inputs, make()(inputs)), 3)


def network():
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(12, 3, padding="same", use_bias=False, name="first")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, name="deep")(x)
    x = layers.ReLU()(layers.Conv2D(16, 3, name="second")(x))
    return randomise(keras.Model(inputs, layers.Dense(5, activation="softmax", name="head")(layers.Flatten()(x))), 1)


def noise(model, count=8):
    return np.float32(np.random.default_rng(0).normal(size=(count, *model.input_shape[1:])))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_full_rank_is_the_same_function(kind):
    model = model_of(kind)
    low = kquant.factorize(model, ranks={"it": full_rank(model.get_layer("it"))}, verbose=False)
    assert [layer.name for layer in low.layers[-2:]] == ["it_first", "it"]
    wanted, found = model(noise(model)).numpy(), low(noise(model)).numpy()
    assert np.abs(wanted - found).max() <= 2e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (3, 4, 6), (9, 7)])
def test_the_error_is_the_singular_values_left_out(shape):
    kernel = np.random.default_rng(1).normal(size=shape)
    equation = {4: "hxij,xwjo->hwio", 3: "hij,xjo->hio", 2: "ij,jo->io"}[len(shape)]
    rows = kernel.transpose(0, 2, 1, 3).reshape(12, 30) if len(shape) == 4 else kernel.reshape(-1, shape[-1])
    values = np.linalg.svd(rows, compute_uv=False)
    for rank in range(1, len(values) + 1):
        error = np.sum((np.einsum(equation, *split(kernel, rank)) - kernel) ** 2)
        assert error == pytest.approx(np.sum(values[rank:] ** 2), abs=1e-9)


def test_a_budget_holds_and_protected_layers_stay():
    model = network()
    for budget in ({"macs": 0.5}, {"weight_bytes": 0.6}):
        low = kquant.factorize(model, **budget, verbose=False)
        unit, share = next(iter(budget.items()))
        assert 0.7 * share < getattr(kquant.cost(low), unit) / getattr(kquant.cost(model), unit) <= share
    for protect in (["second"], "sec*"):
        low = kquant.factorize(model, macs=0.8, protect=protect, verbose=False)
        assert "second_first" not in [layer.name for layer in low.layers]
    with pytest.raises(ValueError, match=r"cannot be reached by splitting.*prune_channels"):
        kquant.factorize(model, macs=0.02, verbose=False)


def test_a_given_number_and_multiples():
    model = network()
    low = kquant.factorize(model, macs=int(0.5 * kquant.cost(model).macs), multiple=4, verbose=False)
    inside = [layer.kernel.shape[-1] for layer in low.layers if layer.name.endswith("_first")]
    assert inside and all(rank % 4 == 0 for rank in inside)


def test_ranks_are_the_best_of_all_by_their_lowest_score():
    """Against all combinations."""
    rng = np.random.default_rng(4)
    for _ in range(30):
        ladders = {}
        for key in "abc":
            costs, scores = np.sort(rng.integers(1, 50, 4)), rng.random(4)
            pairs = zip(costs.tolist(), scores.tolist(), strict=True)
            split_ones = [Candidate(i + 1, cost, score) for i, (cost, score) in enumerate(pairs)]
            ladders[key] = [*split_ones, Candidate(None, 60, float("inf"))]
        limit = int(rng.integers(sum(ladder[0].cost for ladder in ladders.values()), 180))
        best = max(
            min(c.score for c in combination)
            for combination in itertools.product(*ladders.values())
            if sum(c.cost for c in combination) <= limit
        )
        ranks = choose_ranks(ladders, limit)
        taken = [next(c for c in ladder if c.rank == ranks.get(key)) for key, ladder in ladders.items()]
        assert sum(c.cost for c in taken) <= limit
        assert min(c.score for c in taken) == best


def test_ranks_by_score_are_near_the_best_of_all_by_their_sum():
    """Against all combinations; every layer's score falls faster the lower its rank."""
    rng, shares = np.random.default_rng(5), []
    for _ in range(30):
        ladders = {}
        for key in "abcd":
            costs = np.sort(rng.choice(np.arange(5, 100), 8, replace=False))
            scores = -rng.uniform(0.5, 2.0) * (1.0 - costs / 100.0) ** 2
            pairs = zip(costs.tolist(), scores.tolist(), strict=True)
            ladders[key] = [*(Candidate(i + 1, c, s) for i, (c, s) in enumerate(pairs)), Candidate(None, 100, 0.0)]
        ranks = cheapest_ranks(ladders, 200)
        taken = [next(c for c in ladder if c.rank == ranks.get(key)) for key, ladder in ladders.items()]
        assert sum(c.cost for c in taken) <= 200
        best = max(
            sum(c.score for c in combination)
            for combination in itertools.product(*ladders.values())
            if sum(c.cost for c in combination) <= 200
        )
        shares.append(sum(c.score for c in taken) / best)
    assert max(shares) < 1.5 and np.mean(shares) < 1.1


def test_evaluate_decides():
    """A judge that minds one layer only leaves that layer whole."""
    model, x = network(), noise(network())

    def judge(candidate):
        return -float("second_first" in [layer.name for layer in candidate.layers])

    low = kquant.factorize(model, macs=0.85, evaluate=judge, verbose=False)
    names = [layer.name for layer in low.layers]
    assert "second_first" not in names and "first_first" in names
    assert low(x).shape == model(x).shape


def test_evaluate_judges_refitted_models():
    model, errors = network(), {}
    x = noise(model, 128)
    wanted = model(x).numpy()
    for data in (None, x):
        seen = errors.setdefault(data is None, [])
        judge = lambda m, seen=seen: seen.append(np.mean((m(x).numpy() - wanted) ** 2)) or 0.0  # noqa: E731
        kquant.factorize(model, macs=0.85, evaluate=judge, data=data, verbose=False)
    assert len(errors[True]) == len(errors[False]) > 10
    assert np.mean(errors[False]) < 0.7 * np.mean(errors[True])


def test_refitted_halves_are_nearer_and_the_model_is_untouched():
    model = network()
    before, x = model.get_weights(), noise(model, 128)
    wanted = model.predict(x, verbose=0)
    ranks = {"first": 4, "second": 10}
    errors = [
        np.mean((kquant.factorize(model, ranks=ranks, data=data, verbose=False).predict(x, verbose=0) - wanted) ** 2)
        for data in (None, x)
    ]
    assert errors[1] < 0.7 * errors[0]
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_the_halves_are_plain_and_quantize(tmp_path):
    model = network()
    x = noise(model, 16)
    low = kquant.factorize(model, macs=0.5, data=x, verbose=False)
    low.save(tmp_path / "low.keras")
    assert np.array_equal(keras.saving.load_model(tmp_path / "low.keras").predict(x), low.predict(x))
    q = kquant.calibrate(kquant.quantize(low), x, verbose=False)
    report = kquant.export(q, tmp_path / "low.tflite", data=x[:4])
    assert report.operators["CONV_2D"] >= 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"ranks": {"deep": 2}}, "deep.*cannot be split, because a DepthwiseConv2D has no two halves"),
        ({"ranks": {"first": 400}}, "must be a whole number in 1..9"),
        ({"ranks": {"first": 2.5}}, "^first: its rank must be a whole number in 1..9. Received: 2.5"),
        ({"ranks": {"first": "2"}}, "^first: its rank must be a whole number in 1..9. Received: '2'"),
        ({"ranks": {"nobody": 2}}, "no layer"),
        ({"macs": "0.5"}, "^macs: expected a share.*Received: '0.5'"),
        ({"macs": 0.5, "protect": "nobody"}, r"no layer \['nobody'\]"),
        ({"ranks": {"first": 2}, "macs": 0.5}, "either ranks or a budget"),
        ({}, "one budget"),
        ({"macs": 0.5, "multiple": 0}, "multiple: expected a whole number, 1 or more. Received: 0"),
    ],
)
def test_errors_teach(arguments, said):
    with pytest.raises(ValueError, match=said):
        kquant.factorize(network(), verbose=False, **arguments)
