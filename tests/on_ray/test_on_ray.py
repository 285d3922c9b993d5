"""Tasks of Ray give what one process gives, also where a worker is killed: a local cluster of two processes."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import kquant
from kquant import report
from kquant.layers.nodes import FakeQuant
from kquant.search.ladder import Rung

X = np.float32(np.random.default_rng(0).normal(size=(100, 8, 8, 2)))


def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    parts = [keras.layers.Conv2D(4, 3, activation="relu", name="conv"), keras.layers.Flatten(name="flat")]
    return keras.Sequential([keras.Input((8, 8, 2), name="x"), *parts, keras.layers.Dense(3, name="head")], name="net")


class Rows(keras.utils.PyDataset):
    """Batches of 8; the process that reads batch 5 first is killed while it does."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark

    def __len__(self) -> int:
        return 13

    def __getitem__(self, number: int) -> Any:
        if number == 5 and self.mark and not Path(self.mark).exists():
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return X[8 * number : 8 * number + 8]


class Killing:
    """The share of samples whose class is the float model's; the first process that is asked about int16 is killed."""

    def __init__(self, wanted: np.ndarray, mark: str) -> None:
        self.wanted, self.mark = wanted, mark

    def __call__(self, given: keras.Model) -> float:
        wide = any(isinstance(n, FakeQuant) and n.spec.bits == 16 for n in given.layers)
        if wide and self.mark and not Path(self.mark).exists():
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return float(np.mean(given.predict(X, verbose=0).argmax(-1) == self.wanted))


def equal(a: kquant.Observations, b: kquant.Observations) -> bool:
    parts = [f.name for f in fields(next(iter(a.tensors.values())))]
    same = [np.array_equal(getattr(s, p), getattr(b.tensors[key], p)) for key, s in a.tensors.items() for p in parts]
    return a.sizes.tolist() == b.sizes.tolist() and len(same) >= 3 * len(parts) and all(same)


def test_the_install_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"kquant.on_ray needs an extra: pip install 'kquant\[ray\]'"):
        kquant.on_ray.observe(kquant.quantize(model()), X, shards=2)


def test_data_that_cannot_be_sent_are_refused() -> None:
    data = tf.data.Dataset.from_tensor_slices(X).batch(8)
    with pytest.raises(ValueError, match="cannot be sent to other processes in parts; give arrays or a"):
        kquant.on_ray.observe(kquant.quantize(model()), data, shards=2)
    with pytest.raises(ValueError, match="two recipes are called 'int8'"):
        kquant.on_ray.try_recipes(model(), X, lambda _: 1.0, ["int8", {"name": "int8"}])


def test_candidates_tell_of_themselves() -> None:
    rows = (Rung("int8", {}, 0.98, 0.01, 10_288, 1.0), Rung("odd", {}, -np.inf, np.inf, 0, 1.0, failed="no kernel"))
    found = kquant.on_ray.Candidates(0.99, rows)
    assert repr(found) == "Candidates(2 recipes, 1 failed; best int8, score 0.98, drop +0.01, 10,288 bytes)"
    said = report.render(found)
    assert "int8: score 0.9800 against 0.9900 in float" in said and "failed: no kernel" in said
    assert found.to_dict()["rows"][0]["name"] == "int8" and "Recipes, the best first" in (found._repr_html_() or "")


needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'kquant[ray]'"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not know where tests lie
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own
@pytest.mark.parametrize("shards", [1, 2, 8])
def test_shards_are_the_whole_to_the_bit(cluster: None, shards: int) -> None:
    q = [kquant.quantize(model()) for _ in range(2)]
    whole = kquant.observe(q[0], X, batch_size=8, verbose=False)
    seen = kquant.on_ray.observe(q[1], X, shards=shards, batch_size=8, verbose=False)
    assert equal(whole, seen)
    given = [kquant.encodings(kquant.calibrate(m, s, verbose=False)) for m, s in zip(q, (whole, seen), strict=True)]
    assert given[0] == given[1]


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_worker_that_is_killed_changes_nothing(cluster: None, tmp_path: Path) -> None:
    q = kquant.quantize(model())
    whole = kquant.observe(q, Rows(""), verbose=False)
    seen = kquant.on_ray.observe(q, Rows(str(tmp_path / "killed")), shards=4, verbose=False)
    assert (tmp_path / "killed").exists() and equal(whole, seen)


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_recipes_are_tried_and_a_stopped_search_goes_on(cluster: None, tmp_path: Path) -> None:
    net = model()
    wanted, before = net.predict(X, verbose=0).argmax(-1), net.get_weights()
    recipes: list[Any] = ["int8", "int16x8", {"name": "w4", "weights": {"bits": 4}}]
    recipes.append({"name": "odd", "activations": {"bits": 3, "observer": "kl"}, "rules": [{"layer": "none*"}]})
    tried = kquant.on_ray.try_recipes(
        net, X, Killing(wanted, str(tmp_path / "killed")), recipes, folder=tmp_path / "kept", verbose=False
    )
    assert all(np.array_equal(a, b) for a, b in zip(before, net.get_weights(), strict=True)), "it stays as it was"
    assert (tmp_path / "killed").exists() and {row.name for row in tried.rows} == {"int8", "int16x8", "w4", "odd"}
    assert tried.best.score == max(row.score for row in tried.rows) == 1.0 and "4 recipes" in repr(tried)
    q = kquant.calibrate(kquant.quantize(net, "int8"), X, verbose=False)
    [eight] = [row for row in tried.rows if row.name == "int8"]
    assert eight.score == Killing(wanted, "")(q)
    again = kquant.on_ray.try_recipes(net, X, Killing(wanted, ""), recipes, folder=tmp_path / "kept", verbose=False)
    assert [row for row in again.rows if not row.failed] == [row for row in tried.rows if not row.failed]


def sqnr(given: keras.Model) -> float:
    """A score that no quantized model reaches, so that a search goes all its way."""
    out, wanted = given.predict(X, verbose=0).astype(np.float64), FLOAT[0]
    return float(min(-10 * np.log10(np.mean((out - wanted) ** 2) / np.mean(wanted**2) + 1e-20), 200.0))


FLOAT: list[np.ndarray] = []


class Fatal:
    """A score or a metric; the first process but this one that is asked is killed."""

    def __init__(self, score: Any, mark: str) -> None:
        self.score, self.mark, self.home = score, mark, os.getpid()
        self.__name__ = "fatal"

    def __call__(self, given: Any) -> float:
        if os.getpid() != self.home and not Path(self.mark).exists():
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return float(self.score(given))


def found_by(result: Any) -> tuple[Any, Any]:
    """All that a search tells but for its seconds, and the encodings of its model."""
    told = result.to_dict()
    for row in told.get("rungs", []):
        del row["seconds"]
    return told, kquant.encodings(result.model)


def alone(search: str, *arguments: Any, **given: Any) -> tuple[Any, Any]:
    """By this process."""
    FLOAT[:] = [model().predict(X, verbose=0).astype(np.float64)]
    return found_by(getattr(kquant, search)(model(), X, *arguments, **given, verbose=False))


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_autotune_goes_the_same_way(cluster: None, tmp_path: Path) -> None:
    wanted = alone("autotune", sqnr, max_drop=0.0)
    fatal, given = Fatal(sqnr, str(tmp_path / "killed")), {"max_drop": 0.0, "folder": tmp_path, "verbose": False}
    many = kquant.on_ray.autotune(model(), X, fatal, **given)
    assert (tmp_path / "killed").exists() and len(many.rungs) > 7
    for one, other in zip(wanted[0]["rungs"], found_by(many)[0]["rungs"], strict=True):
        assert one == other
    assert found_by(many) == wanted == found_by(kquant.on_ray.autotune(model(), X, sqnr, **given))


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_mixed_precision_finds_the_same_widths(cluster: None, tmp_path: Path) -> None:
    given: dict[str, Any] = {"flash_bytes": 3600, "points": 3}
    wanted = alone("mixed_precision", evaluate=sqnr, **given)
    fatal = Fatal(sqnr, str(tmp_path / "killed"))
    many = kquant.on_ray.mixed_precision(model(), X, evaluate=fatal, **given, verbose=False)
    assert (tmp_path / "killed").exists() and many.moves and found_by(many) == wanted


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("judged", [False, True])
def test_analyze_measures_the_same(cluster: None, judged: bool, tmp_path: Path) -> None:
    net = model()
    net.get_layer("conv").kernel.assign(net.get_layer("conv").kernel * [1.0, 1.0, 1.0, 99.0])  # of one scale for all
    q = kquant.quantize(net, {"name": "one-scale", "weights": {"per_axis": False}})
    kquant.calibrate(q, X, verbose=False)
    metric = Fatal(lambda y: -float(np.mean(np.square(y))), str(tmp_path / "killed")) if judged else None
    alone = kquant.analyze(q, X, metric, verbose=False)
    many = kquant.on_ray.analyze(q, X, metric, verbose=False)
    assert any(finding.tried for finding in alone.findings) and alone.layers[0].sensitivity is not None
    assert (tmp_path / "killed").exists() == judged and report.to_json(many) == report.to_json(alone)


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("judged", [False, True])
def test_a_scan_measures_the_same(cluster: None, judged: bool, tmp_path: Path) -> None:
    FLOAT[:] = [model().predict(X, verbose=0).astype(np.float64)]
    score = Fatal(sqnr, str(tmp_path / "killed")) if judged else None
    given: dict[str, Any] = {"data": None if judged else X, "evaluate": score, "verbose": False}
    alone = kquant.scan_sparsity(model(), **given)
    many = kquant.on_ray.scan_sparsity(model(), **given, folder=tmp_path / "kept")
    assert len(many.layers) == 2 and many == alone and (tmp_path / "killed").exists() == judged
    assert kquant.on_ray.scan_sparsity(model(), **given, folder=tmp_path / "kept") == alone


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("verb", ["prune_channels", "factorize"])
def test_a_smaller_model_is_the_same(cluster: None, verb: str, tmp_path: Path) -> None:
    FLOAT[:] = [model().predict(X, verbose=0).astype(np.float64)]
    given: dict[str, Any] = {"macs": 0.7, "data": X, "verbose": False} | ({"minimum": 1} if verb[0] == "p" else {})
    alone = getattr(kquant, verb)(model(), evaluate=sqnr, **given)
    many = getattr(kquant.on_ray, verb)(model(), evaluate=Fatal(sqnr, str(tmp_path / "killed")), **given)
    assert (tmp_path / "killed").exists() and many.count_params() == alone.count_params() < model().count_params()
    assert all(np.array_equal(a, b) for a, b in zip(many.get_weights(), alone.get_weights(), strict=True))
