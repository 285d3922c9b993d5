"""Progress bars know how far it is, wherever the data or the search say so."""

import ast
import importlib
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from tqdm import std

import kquant
from kquant.recipe.recipe import load
from kquant.shrink.labelled_data import labelled_count
from kquant.views.quantized_model import places, read

ladder, bit_widths = (importlib.import_module(f"kquant.search.{name}") for name in ("ladder", "bit_widths"))

PACKAGE = Path(__file__).parents[2] / "kquant"
X = np.random.default_rng(0).random((70, 4), np.float32)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(32, activation="relu"), keras.layers.Dense(32), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((4,)), *hidden])


@pytest.fixture
def bars(monkeypatch):
    """Every bar that is made: [what it counts, total, how far it came]."""
    made, init = [], std.tqdm.__init__

    def kept(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(std.tqdm, "__init__", kept)
    return made


class Batches(keras.utils.PyDataset):
    """Three of them."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return X[index * 20 : index * 20 + 20]


@pytest.mark.parametrize(
    ("data", "options", "total"),
    [
        (X, {"batch_size": 32}, 3),
        (X, {"batch_size": 32, "limit": 40}, 2),
        (tf.data.Dataset.from_tensor_slices(X).batch(10), {}, 7),
        (tf.data.Dataset.from_tensor_slices(X).batch(10).repeat(), {"limit": 40}, None),  # of unknown size
        (Batches(), {}, 3),
        (lambda: iter([X]), {}, None),  # nobody knows before it has run
        (lambda: iter([X, X]), {"limit": 2 * len(X)}, None),
    ],
)
def test_calibration(model, bars, data, options, total):
    kquant.calibrate(kquant.quantize(model), data, **options)
    (bar,) = bars
    assert bar.total == total
    assert total is None or bar.n == total


@pytest.mark.parametrize("recipe", ["int8", "int4-weights", "float16", {"name": "mine", "steps": ["adaround"]}])
def test_the_ladder_is_no_longer_than_its_bar(model, recipe):
    """One step for each rung that there may be."""
    base = load(recipe)
    names = [place.name for place in places(read(kquant.quantize(model)))]
    told = {"sensitive": lambda: names, "ahead": lambda rungs: None}
    search = SimpleNamespace(recipe=base, target="litert", layers=len(names), **told)
    assert len(list(ladder._ladder(search, base))) == ladder._most_rungs(search, base)


@pytest.mark.parametrize("points", [2, 5])
@pytest.mark.parametrize("limit", [100, 7000, 10**6])
def test_mixed_precision_measures_no_more_than_its_bar_says(limit, points):
    """However far the bisection goes: widths of 40 layers, all of them on the way."""
    counts, asked = np.unique(np.linspace(0, 40, points).astype(int)), []

    def point(_, count, bar=None):
        asked.append(count)
        return SimpleNamespace(flash_bytes=10_000 - 240 * count)

    measured = {n: point(None, n) for n in counts.tolist()}
    bit_widths._first_inside(SimpleNamespace(point=point), [None] * 40, measured, "flash_bytes", limit, None)
    assert len(asked) <= bit_widths._most_models(counts, 0, False)


def test_batch_norms_and_labels(bars):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization()])
    kquant.reestimate(model, X)
    assert [bar.total for bar in bars] == [3]
    assert labelled_count(model, (X, X)) == labelled_count(model, X, X) == 3


def test_no_bar_goes_without():
    """A bar over something without a length is given one."""
    without = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "tqdm(" in text else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "tqdm":
                over = ast.unparse(node.args[0]) if node.args else ""
                if not any(keyword.arg == "total" for keyword in node.keywords):
                    without.append(over)
    lengths = {"range(len(arrays[0]))", "every_place(sweep.graph)", "layers", "self.graph.nodes", "able.items()"}
    assert set(without) <= lengths | {"known", "ladders", "list(zip(jobs, places, wanted, strict=True))"}


def test_bars_come_from_one_place():
    """Which imports tqdm.auto without its word about ipywidgets, in notebooks that have none."""
    files = [path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if "tqdm.auto" in path.read_text()]
    assert files == ["core/progress.py"]
