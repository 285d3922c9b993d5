"""One thread and fixed seeds: the same numbers on every machine, and room for `pytest -n`."""

from __future__ import annotations

import itertools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest

# TensorFlow's start-up lines would come out after pytest's closing line, which should be the last one.
_stderr = os.dup(2)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

os.dup2(_stderr, 2)

SWEEP = 40  # tests between two collections of garbage

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Weights and shuffles start from the same numbers in every test."""
    keras.utils.set_random_seed(7)


COUNT = itertools.count(1)


@pytest.fixture(autouse=True)
def no_leftovers() -> None:
    """Graphs of earlier tests are not needed by later ones; they hold each other, so a sweep frees them."""
    yield
    keras.backend.clear_session(free_memory=next(COUNT) % SWEEP == 0)
