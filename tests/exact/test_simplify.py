"""Operators whose codes are there already: what goes, and what only looks like it."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant import targets
from kquant.core.program import Program, Ref
from kquant.core.spec import Encoding, QuantSpec
from kquant.exact.simplify import simplify
from kquant.runtime.running import available, probe
from kquant.tflite.flatbuffer import to_bytes

SHAPE = (1, 4, 4, 3)
POOL = {"strideH": 1, "strideW": 1, "filterHeight": 1, "filterWidth": 1, "padding": "VALID"}


def grid(scale: float, zero: int = 0) -> Encoding:
    return Encoding(np.float32([scale]), np.int64([zero]), QuantSpec())


def begun() -> tuple[Program, Ref]:
    program = Program("p")
    x = program.value("x", SHAPE, grid(0.1, 5))
    program.inputs.append(x)
    return program, program.emit("TANH", [x], program.value("tanh", SHAPE, grid(1 / 128)))


def ended(program: Program, *read: Ref) -> None:
    """Each is added to the first, and that is the output."""
    total = read[0]
    for n, ref in enumerate(read[1:]):
        made = program.value(f"sum{n}", SHAPE, grid(0.03, n))
        total = program.emit("ADD", [total, ref], made, fusedActivationFunction="NONE")
    program.outputs.append(total)


def there_and_back(middle: float) -> Program:
    program, y = begun()
    other = program.emit("QUANTIZE", [y], program.value("other", SHAPE, grid(middle)))
    ended(program, y, program.emit("QUANTIZE", [other], program.value("back", SHAPE, y.grid)))
    return program


def idle() -> Program:
    """A QUANTIZE to the same grid, a pool of one position, a CONCATENATION of one operand."""
    program, y = begun()
    same = program.emit("QUANTIZE", [y], program.value("same", SHAPE, y.grid))
    pool = program.value("pool", SHAPE, y.grid)
    pool = program.emit("MAX_POOL_2D", [same], pool, fusedActivationFunction="NONE", **POOL)
    one = program.value("one", SHAPE, y.grid)
    ended(program, y, program.emit("CONCATENATION", [pool], one, axis=3, fusedActivationFunction="NONE"))
    return program


def twice(second: float) -> Program:
    """The same constant is added two times, to one scale or to two."""
    program, y = begun()
    made = []
    for n, scale in enumerate((0.05, second)):
        by = program.codes(f"by{n}", np.full((1, 1, 1, 3), 7), grid(0.01))
        value = program.value(f"more{n}", SHAPE, grid(scale))
        made.append(program.emit("ADD", [y, by], value, fusedActivationFunction="NONE"))
    ended(program, *made)
    return program


def mean(shape: tuple[int, ...], axes: list[int], out: tuple[int, ...], scale: float = 1 / 128) -> Program:
    """Over axes of 48 codes."""
    program, y = begun()
    source = program.reshape(y, shape)
    made = program.value("mean", out, grid(scale))
    where = program.constant("axes", np.int32(axes))
    program.emit("MEAN", [source, where], made, keepDims=len(shape) == len(out))
    program.outputs.append(program.emit("TANH", [made], program.value("end", out, grid(1 / 128))))
    return program


CASES = {
    "mean of one position": (lambda: mean((1, 1, 1, 48), [1, 2], (1, 1, 1, 48)), 1),
    "mean of one position, as a row": (lambda: mean((1, 1, 1, 48), [1, 2], (1, 48)), 1),
    "mean of one position, rescaled": (lambda: mean((1, 1, 1, 48), [1, 2], (1, 48), 1 / 100), 0),
    "mean of two positions": (lambda: mean((1, 2, 1, 24), [1, 2], (1, 24)), 0),
    "back from the same scale": (lambda: there_and_back(1 / 128), 2),
    "back from a coarser scale": (lambda: there_and_back(1 / 64), 0),
    "idle": (idle, 3),
    "twice": (lambda: twice(0.05), 1),
    "to other scales": (lambda: twice(0.06), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_what_goes_changes_no_code(name: str) -> None:
    build, count = CASES[name]
    whole, small = build(), build()
    assert simplify(small) == count
    files = [to_bytes(program, targets.load("tflm"), {}) for program in (whole, small)]
    codes = np.random.default_rng(0).integers(-128, 128, (20, *SHAPE[1:])).astype("int8")
    for runtime in {"litert-reference", "tflm"} & set(available()):
        a, b = (probe(content, runtime, [codes])[0] for content in files)
        np.testing.assert_array_equal(a, b)


def test_a_mean_over_one_position_of_a_network_goes(tmp_path: Path) -> None:
    """Its grid is that of what it reads: both saw the same numbers."""
    keras.utils.set_random_seed(0)
    parts = [layers.Conv2D(16, 4, activation="relu"), layers.GlobalAveragePooling2D(), layers.Dense(4)]
    model = keras.Sequential([keras.Input((4, 4, 3)), *parts])
    x = np.random.default_rng(0).normal(size=(128, 4, 4, 3)).astype("float32")
    q = kquant.calibrate(kquant.quantize(model, target="tflm"), x, verbose=False)
    made = [kquant.export(q, tmp_path / f"{shrink}.tflite", shrink=shrink) for shrink in (True, False)]
    assert made[0].operators == {"CONV_2D": 1, "FULLY_CONNECTED": 1} and "MEAN" in made[1].operators
    assert made[0].file_bytes < made[1].file_bytes - 100
    np.testing.assert_array_equal(*(kquant.predict(m.path, x, runtime="litert-reference") for m in made))


def test_outputs_stay_tensors_of_their_own() -> None:
    program, y = begun()
    same = program.emit("QUANTIZE", [y], program.value("same", SHAPE, y.grid))
    program.outputs += [y, same]
    assert simplify(program) == 0


def test_a_grid_where_codes_meet_is_no_way_back() -> None:
    """Ends that saturate are told from the table, not from the scales: zero point 100 cuts the highest codes off."""
    program, y = begun()
    other = program.emit("QUANTIZE", [y], program.value("other", SHAPE, grid(1 / 128, 100)))
    ended(program, y, program.emit("QUANTIZE", [other], program.value("back", SHAPE, y.grid)))
    assert simplify(program) == 0
