"""The plan of a file's memory, against that of TensorFlow Lite Micro."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant.runtime.arenas import arena_parts
from kquant.runtime.running import available
from kquant.tflite.memory_plan import MemoryPlan, memory_plan
from kquant.tflite.reader import FileModel, FileOperator, FileTensor

CODE = """
import sys, tflite_micro
for path in sys.argv[1:]:
    tflite_micro.runtime.Interpreter.from_file(path).print_allocations()
"""


def _random(seed: int) -> keras.Model:
    """Branches of unlike sizes that wait for each other."""
    rng = np.random.default_rng(seed)
    x = inputs = keras.Input((12, 12, 3))
    tensors = [x]
    for _ in range(8):
        x = tensors[int(rng.integers(max(0, len(tensors) - 3), len(tensors)))]
        if rng.random() < 0.3:
            x = layers.Concatenate()([x, tensors[-1]])
        if rng.random() < 0.5:
            tensors.append(layers.Conv2D(int(rng.integers(1, 12)), 3, padding="same", activation="relu")(x))
        else:
            tensors.append(layers.DepthwiseConv2D(3, padding="same", depth_multiplier=int(rng.integers(1, 3)))(x))
    # no means: their kernel asks for memory of its own
    pooled = [layers.Flatten()(layers.MaxPooling2D(12)(t)) for t in tensors[-3:]]
    return keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(pooled)))


@pytest.mark.skipif("tflm" not in available(), reason="needs the micro extra")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_take_what_tflm_says(tmp_path: Path) -> None:
    paths, plans = [], []
    for seed in range(6):
        keras.utils.set_random_seed(seed)
        q = kquant.quantize(_random(seed), target="tflm")
        kquant.calibrate(q, np.random.default_rng(0).normal(size=(8, 12, 12, 3)).astype("float32"), verbose=False)
        paths.append(str(tmp_path / f"{seed}.tflite"))
        kquant.export(q, paths[-1], check_runtimes=False)
        plans.append(memory_plan(kquant.inspect(paths[-1])))
    said = subprocess.run([sys.executable, "-c", CODE, *paths], capture_output=True, check=True).stderr
    heads = [int(n) for n in re.findall(rb"Arena allocation head (\d+) bytes", said)]
    assert [plan.size_bytes for plan in plans] == heads
    # some of them have gaps, or the plan would be no more than what is alive together
    assert any(plan.size_bytes > max(plan.alive_bytes) for plan in plans)
    assert all(_lies_apart(plan) for plan in plans)


@pytest.mark.skipif("tflm" not in available(), reason="needs the micro extra")
@pytest.mark.parametrize("build", [lambda: layers.GRU(6), lambda: layers.LSTM(5, activation="relu"), None])
def test_loops_take_what_tflm_says(build: Any, tmp_path: Path) -> None:
    """Or a little more: which tensors a step hands on the file's reader does not tell."""
    x = inputs = keras.Input((9, 7))
    for layer in [layers.GRU(12, return_sequences=True), layers.SimpleRNN(3)] if build is None else [build()]:
        x = layer(x)
    q = kquant.quantize(keras.Model(inputs, layers.Dense(3)(x)), target="tflm")
    kquant.calibrate(q, np.random.default_rng(0).normal(size=(40, 9, 7)).astype("float32"), verbose=False)
    path = tmp_path / "m.tflite"
    kquant.export(q, path, check_runtimes=False)
    file = kquant.inspect(path)
    assert "WHILE" in file.operator_counts
    plan, (_, head, _) = memory_plan(file), arena_parts(path.read_bytes())
    assert head <= plan.size_bytes <= 1.25 * head
    assert plan.spans[plan.peak][0] == plan.spans[plan.peak][1]


def _lies_apart(plan: MemoryPlan) -> bool:
    pairs = [(a, b) for a in plan.tensors for b in plan.tensors if a.index < b.index]
    together = [(a, b) for a, b in pairs if a.first <= b.last and b.first <= a.last]
    return all(a.end <= b.offset or b.end <= a.offset for a, b in together)


def _tensor(index: int, size: int, kind: str = "INT8", *, variable: bool = False) -> FileTensor:
    return FileTensor(index, f"t{index}", (1, size), kind, None, (), 0, 0, variable)


def test_by_hand() -> None:
    """x -> a -> b, a and x -> y: x waits for the last operator; a state lies elsewhere."""
    x, a, b, y = _tensor(0, 16), _tensor(1, 64), _tensor(2, 7, "INT16"), _tensor(3, 1)
    ops = (
        FileOperator(0, "FULLY_CONNECTED", 1, (0, 4), (1,)),
        FileOperator(1, "FULLY_CONNECTED", 1, (1, -1), (2,)),
        FileOperator(2, "ADD", 1, (2, 0), (3,)),
    )
    state = _tensor(4, 99, variable=True)
    plan = memory_plan(FileModel(0, (x, a, b, y, state), ops, (x,), (y,), {}, ()))
    # 7 numbers of two bytes take 16, and one code does
    assert [(t.bytes, t.first, t.last, t.offset) for t in plan.tensors] == [
        (16, 0, 2, 80),
        (64, 0, 1, 0),
        (16, 1, 2, 64),
        (16, 2, 2, 0),
    ]
    assert plan.alive_bytes == (80, 96, 48)
    assert (plan.size_bytes, plan.peak) == (96, 1)


def test_no_operators() -> None:
    x = _tensor(0, 4)
    plan = memory_plan(FileModel(0, (x,), (), (x,), (x,), {}, ()))
    assert (plan.alive_bytes, plan.peak) == ((), -1)
