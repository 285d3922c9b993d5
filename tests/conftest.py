"""One thread and fixed seeds: the same numbers on every machine, and room for `pytest -n`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import importlib
import itertools
import os
import re
import sys
import typing
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest

# TensorFlow's start-up lines would come out after pytest's closing line, which should be the last one.
_stderr = os.dup(2)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
import keras  # noqa: E402
import tensorflow as tf  # noqa: E402
from tensorflow.python.eager import context  # noqa: E402

os.dup2(_stderr, 2)

import traced_once  # noqa: E402
import warm_runtimes  # noqa: E402

# Lanes, by file: what is in none of them is in `make test` alone.
QUICK = {
    "test_centroids",
    "test_export",
    "test_imports",
    "test_kernel_view",
    "test_options",
    "test_recipe",
    "test_recipe_json",
    "test_targets",
    "test_untrusted",
    "test_unfollowed",
}
CONTRACT = {"test_ops", "test_correct", "test_transforms", "test_untouched", "test_training", "test_kernel_view"}
SLOW = {"test_demo", "test_distribution", "test_notebooks", "test_docs", "test_clustering", "test_training"}
# Run with the oldest and the newest Keras and TensorFlow: what leans most on their inside.
VERSIONS = QUICK | {"test_attention", "test_graphs", "test_recurrent", "test_training"}
LANES = {"quick": QUICK, "contract": CONTRACT, "slow": SLOW, "versions": VERSIONS}

SWEEP = 40  # tests between two collections of garbage
# The collector looks through all that TensorFlow keeps each time it comes by; between sweeps it need not.
gc.set_threshold(50_000, 20, 1000)
# What TensorFlow asks of every tensor that it converts; later versions of Python keep the answer themselves.
if sys.version_info < (3, 12):
    typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)

# TensorFlow forgets every kernel and compiled function that it has run eagerly whenever a seed is set or a session is
# cleared, for operators that draw from a state of their own. Keras draws by seeds that it passes; to look the kernels
# up again is a third of a short test.
tf.random.set_seed(7)
tf.random.set_seed = lambda _: None
forget_kernels = context.context().clear_kernel_cache
context.context().clear_kernel_cache = lambda: None

# A layer sets some ninety attributes, and Keras and TensorFlow look at each for variables and layers to track: in
# numbers, names and flags there are none.
PLAIN = frozenset((bool, int, float, str, type(None)))
track = keras.Layer.__setattr__


def _set(layer: keras.Layer, name: str, value: object) -> None:
    if type(value) in PLAIN:
        with contextlib.suppress(AttributeError):  # a property that Keras lets be set to what it is
            return object.__setattr__(layer, name, value)
    return track(layer, name, value)


keras.Layer.__setattr__ = _set


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`make quick` does not read the files that it has nothing of: collecting them takes as long as it does."""
    stem, files = collection_path.stem, LANES.get(config.option.markexpr)
    return True if files is not None and stem.startswith("test_") and stem not in files else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lanes by file."""
    _leave_out(items)
    for item in items:
        for lane, files in LANES.items():
            if item.path.stem in files:
                item.add_marker(lane)


def _leave_out(items: list[pytest.Item]) -> None:
    """Mark the cases of `one_in` that are for `make exhaustive` alone.

    Every test begins to count elsewhere, so that a model or method that one test passes over is met by the next.
    """
    met: dict[str, int] = {}
    for item in items:
        for mark in item.iter_markers("one_in"):
            test, (count,) = item.nodeid.split("[")[0], mark.args
            if not re.search(mark.kwargs.get("always", "(?!)"), item.name):
                turn = met[test] = met.get(test, zlib.crc32(test.encode())) + 1
                if turn % count:
                    item.add_marker("exhaustive")


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Weights and shuffles start from the same numbers in every test."""
    keras.utils.set_random_seed(7)


@pytest.fixture(autouse=True)
def own_share_of_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process may have compiled is for one test, whatever the tests before it had compiled."""
    held = sys.modules.get("kquant.graph.held_constants")
    if held is not None:
        monkeypatch.setattr(held, "MOST", sys.modules["kquant.core.joined"].so_far() + held.MOST)


# Each `kquant.calibrate` measures what the grids cost the outputs, to warn of it: 0.1 s, some thousand times in these
# tests. Here are the files that look at its warnings, or at what all warnings are together.
MEASURE = (
    "test_calibrate",
    "test_check",
    "test_cli",
    "test_data_warnings",
    "test_demo",
    "test_docs",
    "test_preprocessing",
)


@pytest.fixture(autouse=True, scope="module")
def patches() -> Iterator[pytest.MonkeyPatch]:
    """What is replaced for a whole file, its fixtures included."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(autouse=True, scope="module")
def losses_are_measured_once(request: pytest.FixtureRequest, patches: pytest.MonkeyPatch) -> None:
    """Elsewhere that measurement is left out."""
    if "kquant" in sys.modules and request.path.stem not in MEASURE:  # imported: the first to calibrate is not alike
        patches.setattr(importlib.import_module("kquant.calibration.ranges"), "warn_of_losses", lambda *_: None)


# What AdaRound's results are is asked here, or beside workers of Ray, which no fixture reaches.
ROUNDING = re.compile("test_(adaround|bias_correction|on_ray)[.]py|adaptive_rounding")


@pytest.fixture(autouse=True)
def roundings_are_short(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere AdaRound is a step among others: a few of its thousands of iterations, and no compiler before them.

    XLA takes two seconds for each layer, and every trial of a search that has this step rounds them all.
    """
    if "kquant" not in sys.modules or ROUNDING.search(request.node.nodeid):
        return
    module = importlib.import_module("kquant.correct.adaptive_rounding")
    whole = module.round_matrix

    def short(matrix: Any, bias: Any, examples: Any, settings: Any, seed: int) -> Any:
        few = dataclasses.replace(settings, iterations=min(settings.iterations, 5))
        return whole(matrix, bias, examples, few, seed)

    monkeypatch.setattr(module, "round_matrix", short)
    monkeypatch.setattr("kquant.correct.rounding._compiled", lambda run, *_: run)


@pytest.fixture(autouse=True, scope="module")
def steps_are_traced_once(request: pytest.FixtureRequest, patches: pytest.MonkeyPatch) -> None:
    """An optimizer that makes its variables in the first step has the step traced again; here it makes them before.

    Seconds for each `fit`. How Keras does it alone is what test_training.py sees.
    """
    if request.path.stem != "test_training":
        patches.setattr(keras.Model, "make_train_function", traced_once.make_train_function)


@pytest.fixture(autouse=True, scope="module")
def runtimes_are_warm(request: pytest.FixtureRequest, patches: pytest.MonkeyPatch) -> None:
    """Each `kquant.export` starts three or four processes that import an interpreter, a third of a second each."""
    module = sys.modules.get("kquant.runtime.running")
    if module is not None and sys.platform == "linux" and request.path.parent.name != "runtime":
        patches.setattr(module, "subprocess", warm_runtimes.AS_SUBPROCESS)


# Here `fit`, `evaluate` and `predict` see a batch or two, and what they do with them is not the point.
RUN_EAGERLY = keras.Model.run_eagerly
FEW_BATCHES = ("analyze", "autotune", "cli", "factorize", "pipeline", "prune_channels", "recipe", "docs")


@pytest.fixture(autouse=True, scope="module")
def few_batches_are_not_traced(request: pytest.FixtureRequest, patches: pytest.MonkeyPatch) -> None:
    """A graph is made in a second or more, and a small model called in a few milliseconds."""
    if request.path.stem.removeprefix("test_") in FEW_BATCHES:
        patches.setattr(keras.Model, "run_eagerly", property(lambda _: True, lambda *_: None))


@pytest.fixture(autouse=True)
def pages_on_training_are_traced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of the documentation that speaks of graphs."""
    if "training.md" in request.node.name:
        monkeypatch.setattr(keras.Model, "run_eagerly", RUN_EAGERLY)


COUNT = itertools.count(1)


@pytest.fixture(autouse=True)
def no_leftovers() -> None:
    """Graphs of earlier tests are not needed by later ones; they hold each other, so a sweep frees them.

    Every traced training step leaves some 20,000 objects in TensorFlow that nothing frees; they are put out of the
    sight of the collector, which would walk through gigabytes of them at every sweep.
    """
    yield
    sweep = next(COUNT) % SWEEP == 0
    keras.backend.clear_session(free_memory=sweep)
    if sweep:
        forget_kernels()
        gc.freeze()
