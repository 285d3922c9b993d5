"""Sums and products that change no code go, with what made their constants; whatever changes one stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant import targets
from kquant.core.program import Program
from kquant.core.spec import Encoding, QuantSpec
from kquant.exact.neutral import take_neutral
from kquant.runtime.running import available, probe
from kquant.tflite.flatbuffer import to_bytes

SHAPE = (1, 4, 4, 3)


def grid(scale: float, zero: int = 0) -> Encoding:
    return Encoding(np.array([scale], np.float32), np.array([zero], np.int64), QuantSpec())


def combined(
    code: str, held: int | list[int], other: Encoding, *, swapped: bool = False, scale: float = 1 / 128, **options: str
) -> Program:
    """TANH, whose codes are combined with constants, and a TANH of that."""
    program = Program("p")
    x = program.value("x", SHAPE, grid(0.03, 5))
    program.inputs.append(x)
    y = program.emit("TANH", [x], program.value("tanh", SHAPE, grid(1 / 128)))
    by = program.codes("by", np.full((1, 1, 1, 3), held), other)
    made = program.value("made", SHAPE, grid(scale))
    given: dict[str, Any] = {"fusedActivationFunction": "NONE", **options}
    made = program.emit(code, [by, y] if swapped else [y, by], made, **given)
    program.outputs.append(program.emit("TANH", [made], program.value("end", SHAPE, grid(1 / 128))))
    return program


CASES = {
    "plus zero": (lambda: combined("ADD", 9, grid(0.002, 9)), 1),
    "zero plus": (lambda: combined("ADD", 9, grid(0.002, 9), swapped=True), 1),
    "minus zero": (lambda: combined("SUB", -3, grid(0.5, -3)), 1),
    "minus zero, finely": (lambda: combined("SUB", -3, grid(1 / 128, -3)), 1),
    "zero minus": (lambda: combined("SUB", -3, grid(1 / 128, -3), swapped=True), 0),
    "times one": (lambda: combined("MUL", 100, grid(0.01)), 1),
    "times less": (lambda: combined("MUL", 99, grid(0.01)), 0),
    "plus half a step": (lambda: combined("ADD", 1, grid(1 / 256)), 0),
    "plus less than half a step": (lambda: combined("ADD", 1, grid(1 / 1024)), 1),
    "one channel is no zero": (lambda: combined("ADD", [9, 9, 19], grid(0.002, 9)), 0),
    "to another scale": (lambda: combined("ADD", 9, grid(0.002, 9), scale=1 / 64), 0),
    "what is below zero goes": (lambda: combined("ADD", 9, grid(0.002, 9), fusedActivationFunction="RELU"), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_what_goes_changes_no_code(name: str) -> None:
    build, count = CASES[name]
    whole, small = build(), build()
    assert take_neutral(small) == count
    files = [to_bytes(program, targets.load("tflm"), {}) for program in (whole, small)]
    codes = np.arange(-128, 128).repeat(3).reshape(16, *SHAPE[1:]).astype("int8")
    for runtime in {"litert-reference", "tflm"} & set(available()):
        a, b = (probe(content, runtime, [codes])[0] for content in files)
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore:zeros. every weight is 0")
def test_a_branch_of_zeros_goes_as_a_whole(tmp_path: Path) -> None:
    """What pruning leaves of a residual block."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    branch = layers.Conv2D(8, 3, padding="same", activation="relu", name="branch")(inputs)
    branch = layers.Conv2D(8, 3, padding="same", name="zeros")(branch)
    stem = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(inputs)
    x = layers.ReLU()(layers.Add()([stem, branch]))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Conv2D(4, 3)(x))))
    model.get_layer("zeros").set_weights([np.zeros((3, 3, 8, 8)), np.zeros(8)])
    x = np.random.default_rng(0).random((128, 8, 8, 3), np.float32)
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), x, verbose=False)
    made = [kquant.export(q, tmp_path / f"{shrink}.tflite", data=x, shrink=shrink) for shrink in (True, False)]
    assert made[0].operators == {"CONV_2D": 2, "FULLY_CONNECTED": 1}
    assert made[1].operators["CONV_2D"] == 4 and made[1].operators["ADD"] == 1
    for runtime in {"litert-reference", "tflm"} & set(available()):
        small, whole = (kquant.predict(m.path, x, runtime) for m in made)
        np.testing.assert_array_equal(small, whole)


def test_an_output_stays_a_tensor_of_its_own() -> None:
    program = combined("ADD", 9, grid(0.002, 9))
    program.outputs = [program.operators[1].outputs[0]]
    program.operators.pop()
    assert take_neutral(program) == 0
