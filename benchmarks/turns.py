"""Seconds of steps, taken by turns in one process, so that a machine that slows down slows all of them.

Needs neither kquant nor Keras 3: `tfmot_steps.py` measures with the same functions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Run = Callable[[int], "list[float]"]


def fit_step(model: Any, x: np.ndarray, y: np.ndarray, batch: int) -> Callable[[], None]:
    """A function that takes one step of a compiled model, as `fit` does it, and waits for it."""
    batches = iter(tf.data.Dataset.from_tensor_slices((x, y)).batch(batch).repeat())
    model.make_train_function()

    def step() -> None:
        for value in model.train_function(batches).values():
            np.asarray(value)

    return step


def timed(step: Callable[[], object], clock: str = "wall") -> Run:
    """A function that takes so many steps, and tells the seconds of each."""
    now = CLOCKS[clock]

    def run(count: int) -> list[float]:
        found = []
        for _ in range(count):
            started = now()
            step()
            found.append(now() - started)
        return found

    return run


def in_turns(runs: Mapping[str, Run], rounds: int, count: int, warm_up: int = 10) -> dict[str, list[list[float]]]:
    """For each name its rounds of `count` steps; before them `warm_up` steps that do not count."""
    for run in runs.values():
        run(warm_up)
    rows: dict[str, list[list[float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            rows[name].append(run(count))
    return rows


def ratios(rows: Mapping[str, list[list[float]]], base: str) -> dict[str, tuple[float, float, float]]:
    """For each name its median step in ms, the median over rounds of its ratio to `base`, and the ratios' spread."""
    medians = {name: np.array([np.median(steps) for steps in rounds]) for name, rounds in rows.items()}
    found = {}
    for name, values in medians.items():
        each = values / medians[base]
        spread = float(np.subtract(*np.percentile(each, [75, 25])))
        found[name] = (1e3 * float(np.median(values)), float(np.median(each)), spread)
    return found
