"""What is begun, cancelled and refused, without a cluster: a stand-in pickles what it is given, and keeps a list."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant
from kquant.on_ray.shipping import Begun, finished
from kquant.recipe.recipe import load
from kquant.search import bit_widths, ladder

X = np.float32(np.random.default_rng(0).normal(size=(128, 4)))


@dataclass(eq=False)
class Reference:
    """What a task would give."""

    task: Any
    arguments: tuple[Any, ...]


@dataclass
class StandIn:
    """Those functions of Ray that kquant calls; tasks run when they are asked for."""

    begun: list[tuple[Any, ...]] = field(default_factory=list)
    cancelled: list[tuple[Any, ...]] = field(default_factory=list)

    def is_initialized(self) -> bool:
        return True

    def put(self, value: Any) -> Any:
        return pickle.loads(pickle.dumps(value))

    def remote(self, max_retries: int) -> Any:
        assert max_retries > 0
        return lambda task: SimpleNamespace(remote=lambda *arguments: self.begin(task, arguments))

    def begin(self, task: Any, arguments: tuple[Any, ...]) -> Reference:
        self.begun.append(arguments)
        return Reference(task, arguments)

    def get(self, reference: Reference) -> Any:
        return reference.task(*reference.arguments)

    def wait(self, references: list[Reference], num_returns: int) -> Any:
        return references[:num_returns], references[num_returns:]

    def cancel(self, reference: Reference, force: bool) -> None:
        assert force
        self.cancelled.append(reference.arguments)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    return stand_in


def net(seed: int | None = None) -> keras.Model:
    if seed is not None:
        keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2, name="head")], name="net")


def joined(shared: str, *rest: str) -> str:
    if "wrong" in rest:
        raise RuntimeError("this one fails")
    return "".join((shared, *rest))


def score(model: keras.Model) -> float:
    return 1.0


class Holding:
    """A score that refers to data which do not pickle."""

    def __init__(self) -> None:
        self.data = tf.data.Dataset.from_tensor_slices(X).batch(4)

    def __call__(self, _: Any) -> float:
        return 1.0


def test_what_is_not_wanted_any_more_is_cancelled(ray: StandIn) -> None:
    begun = Begun(ray, joined, ["s"])
    begun.ahead([("a",), ("b",)])
    begun.ahead([("b",), ("c",)])
    assert ray.begun == [("s", "a"), ("s", "b"), ("s", "c")] and ray.cancelled == [("s", "a")]
    assert begun.result("b") == "sb" and len(ray.begun) == 3, "it was begun already"
    assert begun.result("d") == "sd" and ray.begun[3:] == [("s", "d")]
    begun.close()
    assert ray.cancelled == [("s", "a"), ("s", "c")], "neither of those that were asked for"


def test_results_that_nobody_takes_are_cancelled(ray: StandIn) -> None:
    calls = [("s", "a"), ("s", "wrong"), ("s", "c"), ("s", "d")]
    results = finished(ray, joined, calls)
    assert next(results) == (0, "sa")
    with pytest.raises(RuntimeError, match="this one fails"):
        next(results)
    assert ray.begun == calls and ray.cancelled == calls[2:]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_search_that_is_stopped_leaves_no_task(ray: StandIn, error: type, monkeypatch: pytest.MonkeyPatch) -> None:
    def climbed(*arguments: Any, **_: Any) -> None:
        arguments[4](0.5).ahead([(name, load("int8")) for name in ("one", "two")])
        raise error

    def mixed(*arguments: Any, **_: Any) -> None:
        arguments[4].ahead_points([{"name": "one"}, {"name": "two"}])
        raise error

    monkeypatch.setattr(ladder, "climbed", climbed)
    monkeypatch.setattr(bit_widths, "mixed", mixed)
    with pytest.raises(error):
        kquant.on_ray.autotune(net(), X, score)
    assert len(ray.begun) == 2 and ray.cancelled == ray.begun
    with pytest.raises(error):
        kquant.on_ray.mixed_precision(net(), X, flash_bytes=4000)
    assert len(ray.begun) == 4 and ray.cancelled == ray.begun


@pytest.mark.parametrize("verb", ["autotune", "mixed_precision", "try_recipes"])
def test_data_and_scores_that_do_not_pickle_are_refused(ray: StandIn, verb: str) -> None:
    def call(data: Any, given: Any) -> None:
        more: dict[str, Any] = {"evaluate": given, "verbose": False}
        more |= {"mixed_precision": {"flash_bytes": 4000}, "try_recipes": {"recipes": ["int8"]}}.get(verb, {})
        getattr(kquant.on_ray, verb)(net(), data, **more)

    data = tf.data.Dataset.from_tensor_slices(X).batch(4)
    with pytest.raises(
        ValueError, match=rf"on_ray.{verb}: data \(_Batch.*cannot be sent .*[a-z]\. Give arrays or a keras"
    ):
        call(data, score)
    with pytest.raises(ValueError, match=rf"on_ray.{verb}: evaluate \(Holding\) cannot be sent .* when it is called"):
        call(X, Holding())
    assert not ray.begun


def test_a_metric_that_does_not_pickle_is_refused(ray: StandIn) -> None:
    q = kquant.calibrate(kquant.quantize(net()), X, verbose=False)
    with pytest.raises(ValueError, match=r"on_ray.analyze: metric \(Holding\) cannot be sent"):
        kquant.on_ray.analyze(q, X, Holding(), verbose=False)


def test_a_folder_that_cannot_be_used_is_refused_first(ray: StandIn, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def unasked(_: Any) -> float:
        raise AssertionError("something was measured")

    calls: dict[str, Any] = {
        "autotune": {"evaluate": unasked},
        "mixed_precision": {"flash_bytes": 4000, "evaluate": unasked},
        "try_recipes": {"evaluate": unasked, "recipes": ["int8"]},
    }
    for verb, given in calls.items():
        with pytest.raises(ValueError, match=rf"{verb}: .*file cannot be written: File exists; choose another path"):
            getattr(kquant.on_ray, verb)(net(), X, folder=tmp_path / "file", **given)
    for verb in ("autotune", "mixed_precision"):
        with pytest.raises(ValueError, match=rf"^{verb}: .*file cannot be written: File exists"):
            getattr(kquant, verb)(net(), X, folder=tmp_path / "file", **calls[verb])


def test_a_scan_asks_for_a_task_a_layer_and_goes_on(ray: StandIn, tmp_path: Path) -> None:
    given: dict[str, Any] = {"sparsities": (0.5,), "sparsity": 0.4, "verbose": False}
    alone = kquant.scan_sparsity(net(seed=0), X, **given)
    assert kquant.on_ray.scan_sparsity(net(seed=0), X, folder=tmp_path, **given) == alone
    assert [arguments[-1] for arguments in ray.begun] == ["head"]
    assert kquant.scan_sparsity(net(seed=0), X, folder=tmp_path, **given) == alone, "here as there"
    assert kquant.on_ray.scan_sparsity(net(seed=0), X, folder=tmp_path, **given) == alone and len(ray.begun) == 1


def test_the_observers_are_begun_before_the_first_rung(ray: StandIn) -> None:
    seen: list[int] = []

    def evaluate(_: keras.Model) -> float:
        seen.append(len(ray.begun))
        return 1.0

    ray.put = lambda value: value  # type: ignore[method-assign]  a function of a test does not pickle
    tuned = kquant.on_ray.autotune(net(), X, evaluate, verbose=False)
    assert seen == [0, 4] and [arguments[3] for arguments in ray.begun][-1] == "equalization"
    assert tuned.ok and len(tuned.rungs) == 1 and len(ray.cancelled) == 4


def test_a_score_that_is_no_number_ends_the_candidates_and_finished_ones_stay(ray: StandIn, tmp_path: Path) -> None:
    scores = iter([1.0, 0.5, float("nan")])
    ray.put = lambda value: value  # type: ignore[method-assign]  a function of a test does not pickle
    with pytest.raises(ValueError, match=r"on_ray.try_recipes: evaluate must .* the rung 'int16x8' it returned nan"):
        kquant.on_ray.try_recipes(net(), X, lambda _: next(scores), ["int8", "int16x8"], folder=tmp_path, verbose=False)
    assert [row["name"] for row in json.loads((tmp_path / "candidates.json").read_text())["done"]["rows"]] == ["int8"]


def narrow() -> keras.Model:
    keras.utils.set_random_seed(1)
    parts = [keras.layers.Dense(n, activation="relu", name=f"d{n}") for n in (12, 9)]
    return keras.Sequential([keras.Input((4,), name="x"), *parts, keras.layers.Dense(2, name="head")], name="net")


OF_NET = narrow().predict(X, verbose=0)


def nearness(model: keras.Model) -> float:
    return -float(np.mean((model.predict(X, verbose=0) - OF_NET) ** 2))


@pytest.mark.parametrize("verb", ["prune_channels", "factorize"])
def test_what_shrinks_asks_for_a_task_a_model(ray: StandIn, verb: str) -> None:
    given: dict[str, Any] = {"macs": 0.7, "data": X, "evaluate": nearness, "protect": ["d12"], "verbose": False}
    judged: list[float] = []
    alone = getattr(kquant, verb)(narrow(), **{**given, "evaluate": lambda m: judged.append(0) or nearness(m)})
    many = getattr(kquant.on_ray, verb)(narrow(), **given)
    assert len(ray.begun) == len(judged) > 3 and not ray.cancelled
    assert [w.path for w in many.weights] == [w.path for w in alone.weights]
    assert all(np.array_equal(a, b) for a, b in zip(many.get_weights(), alone.get_weights(), strict=True))
    assert many.count_params() < narrow().count_params()
    with pytest.raises(ValueError, match=rf"on_ray.{verb}: evaluate \(Holding\) cannot be sent"):
        getattr(kquant.on_ray, verb)(narrow(), **{**given, "evaluate": Holding()})
    said = f"{verb}: evaluate must return a finite number, higher is better. For the model with .* it returned nan"
    with pytest.raises(ValueError, match=said):
        getattr(kquant.on_ray, verb)(narrow(), **{**given, "evaluate": nothing})


@pytest.mark.parametrize("verb", ["prune_channels", "factorize"])
def test_what_shrinks_needs_nothing_of_the_script_elsewhere(ray: StandIn, verb: str) -> None:
    """Neither the class nor the loss of the caller's model, which another process cannot find."""

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = narrow(), keras.layers.Dense(2, name="last")

        def call(self, x: Any) -> Any:
            y = keras.ops.tanh(self.inner(x))
            return self.head(keras.ops.reshape(y, (-1, 2))) * 2.0

    keras.utils.set_random_seed(0)
    own = Own()
    own(X[:1])
    own.compile("adam", loss=my_loss(), jit_compile=False)
    own.fit(X, OF_NET, verbose=0)
    given: dict[str, Any] = {"macs": 0.7, "data": X, "evaluate": nearness, "verbose": False}
    alone, many = getattr(kquant, verb)(own, **given), getattr(kquant.on_ray, verb)(own, **given)
    assert len(ray.begun) > 3 and [w.path for w in many.weights] == [w.path for w in alone.weights]
    assert all(np.array_equal(a, b) for a, b in zip(many.get_weights(), alone.get_weights(), strict=True))


def test_a_loss_of_the_script_is_not_looked_for_elsewhere(ray: StandIn, tmp_path: Path) -> None:
    model = net(seed=0)
    model.compile("adam", loss=my_loss())
    given: dict[str, Any] = {"sparsities": (0.25, 0.5), "verbose": False}
    assert kquant.on_ray.scan_sparsity(model, X, **given) == kquant.scan_sparsity(model, X, **given)
    tried = kquant.on_ray.try_recipes(model, X, nearness, ["int8"], verbose=False)
    assert not tried.rows[0].failed and len(ray.begun) == 2


def my_loss() -> Any:
    """One that no process finds by its name."""

    def mine(wanted: Any, given: Any) -> Any:
        return keras.ops.mean(keras.ops.square(wanted - given), -1)

    return mine


def nothing(_: keras.Model) -> float:
    return float("nan")
