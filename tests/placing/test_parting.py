"""The parts of a graph are those that LiteRT makes: for XNNPACK, a delegate that can be run here."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import pytest
from contract import file_of
from keras import ops

import kquant
from kquant.placing.parting import Step, between, parts_of, running
from kquant.runtime.interpreters import litert_interpreter
from kquant.tflite.reader import read_model

LEFT = {"ABS", "RSQRT", "MAXIMUM"}  # which XNNPACK leaves in int8; the test below would fail if it took one of them


def conv(name: str) -> keras.layers.Layer:
    return keras.layers.Conv2D(4, 3, padding="same", name=name)


def chain(x: keras.KerasTensor) -> keras.KerasTensor:
    return conv("c")(ops.absolute(conv("b")(ops.absolute(conv("a")(x)))))


def two_ways(x: keras.KerasTensor) -> keras.KerasTensor:
    a = conv("a")(x)
    return conv("d")(ops.add(conv("b")(ops.absolute(a)), conv("c")(a)))


def late(x: keras.KerasTensor) -> keras.KerasTensor:
    """What is left stands in the file between operators that do not wait for it."""
    a = conv("a")(x)
    return ops.add(conv("c")(conv("b")(a)), ops.absolute(a))


def at_the_ends(x: keras.KerasTensor) -> keras.KerasTensor:
    return ops.absolute(conv("b")(conv("a")(ops.absolute(x))))


def both(x: keras.KerasTensor) -> keras.KerasTensor:
    a, b = conv("a")(x), conv("b")(x)
    return ops.maximum(conv("c")(ops.absolute(a)), conv("d")(ops.add(a, b)))


@pytest.mark.parametrize("build", [chain, two_ways, late, at_the_ends, both], ids=lambda build: build.__name__)
def test_parts_are_those_of_litert(build: Callable[[keras.KerasTensor], keras.KerasTensor]) -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 4), name="x")
    model = keras.Model(inputs, build(inputs), name=build.__name__)
    data = np.random.default_rng(0).normal(size=(128, 6, 6, 4)).astype(np.float32)
    content = file_of(kquant.calibrate(kquant.quantize(model), data, verbose=False))
    file = read_model(content)
    constant = {t.index for t in file.tensors if t.size_bytes}
    steps = [Step(tuple(i for i in op.inputs if i >= 0 and i not in constant), op.outputs) for op in file.operators]
    taken = [op.code not in LEFT for op in file.operators]
    assert not all(taken)
    details = litert_interpreter(content, reference=False)._get_ops_details()
    delegates = [op for op in details if op["op_name"] == "DELEGATE"]
    parts = parts_of(steps, taken)
    assert len(parts) == len(delegates)
    # and the same ones: what a part reads from outside is what its delegate reads
    reads = {frozenset(int(i) for i in op["inputs"] if int(i) not in constant) for op in delegates}
    mine = {
        frozenset(r for n in part for r in steps[n].reads) - {w for n in part for w in steps[n].writes}
        for part in parts
    }
    assert reads == mine


def test_what_is_left_between_parts_and_at_the_ends() -> None:
    steps = [Step((n,), (n + 1,)) for n in range(5)]
    taken = [False, True, False, True, False]
    assert between(steps, taken) == [2]
    assert running(steps, taken, "graph", None) == ([[1], [3]], {1, 3})
    assert running(steps, taken, "graph", 1)[1] == {1}
    assert running(steps, taken, "rest", None)[1] == set()
    assert running(steps, taken, "nothing", None) == ([], {1, 3})
    with pytest.raises(ValueError, match="not in order"):
        parts_of([Step((1,), (2,)), Step((0,), (1,)), Step((3,), (3,))], [True, True, True])
