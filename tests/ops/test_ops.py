"""Every example of every rule: same float function, same codes as the interpreters, saved, trained."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import contract
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

import kquant
from kquant import targets
from kquant.calibration import observations
from kquant.graph.tensorflow_private import operations_as_functions, operations_as_kernels
from kquant.layers.loop import Loop
from kquant.layers.nodes import Compressed
from kquant.layers.training_only import ReLUBehind
from kquant.ops import RULES, constant, find, passive
from kquant.ops.expansion import expand
from kquant.ops.spectrum import Bands
from kquant.prepare.folding import fold
from kquant.runtime.interpreters import open_runtime
from kquant.runtime.running import available

pytestmark = pytest.mark.filterwarnings(
    r"ignore:calibrate. '.*' \(.*\) takes values from",
    "ignore:calibrate. '.*'. real steps at an end",
    "ignore:calibrate. tensors of very different ranges share",
    "ignore:calibrate. real_steps. in some samples the mask",
    "ignore:data, input .* lie outside",
    "ignore:.* what it draws in training",
    r"ignore:.* the weights of \d+ of its \d+ output channels are all 0",
    "ignore:The model does not have any trainable weights",
    "ignore:calibrate. these tensors hold a single value",
)

EQUAL = 0.999  # share of output codes that the issue asks for
MAX_ERR_LSB = 1
RELATIVE = 1e-5
# One example of each family; a graph takes ten times as long as the same calls one by one.
IN_GRAPHS = set({name.split("-")[0]: name for name in sorted(contract.EXAMPLES, reverse=True)}.values())
FLOAT_FORMATS = {"float16": 2e-3, "weight-only-int8": 1e-4, "dynamic-int8": 0.05}  # largest error of each


@pytest.fixture(scope="module", params=sorted(contract.EXAMPLES))
def example(request: pytest.FixtureRequest) -> Iterator[contract.Example]:
    """Every example of every rule; the scope has pytest run all tests of one example in a row, sharing its models."""
    yield contract.Example(request.param)


def _arrays(outputs) -> list[np.ndarray]:
    return [np.asarray(y) for y in keras.tree.flatten(outputs)]


@pytest.mark.filterwarnings("ignore:.*does not put the masks of its outputs")
@pytest.mark.one_in(3, always="passive|Activation-1-")
@pytest.mark.parametrize("verb", [expand, pytest.param(fold, marks=pytest.mark.one_in(2, always="passive"))])
def test_float_function_is_kept(example: contract.Example, verb) -> None:
    x = contract.data(example.model, 32)
    changed = verb(example.model)
    wanted, got = (_arrays(m(contract.packed(m, x), training=False)) for m in (example.model, changed))
    for a, b in zip(wanted, got, strict=True):
        assert np.abs(a - b).max() <= RELATIVE * max(np.abs(a).max(), 1e-3)
    for goal in map(targets.load, contract.takers(example.model)) if verb is expand else ():
        for layer in changed.layers:
            rule = find(layer, goal)
            assert rule is None or all(goal.supports(code) for code in rule.operators), (layer.name, rule.operators)


@pytest.mark.one_in(3, always="Activation|heads|attention")
def test_calibration_sees_to_the_bit_what_it_sees_of_functions(example: contract.Example, monkeypatch) -> None:
    q = example.quantized(example.target)
    x = contract.packed(q, contract.data(q, 32))
    seen = []
    for way in (operations_as_kernels, operations_as_functions):
        context.context().clear_kernel_cache()  # else the second run takes the kernels of the first
        monkeypatch.setattr(observations, "operations_as_kernels", way)
        seen.append(kquant.observe(q, x, verbose=False))
    alone, together = seen
    assert alone.tensors.keys() == together.tensors.keys()
    for key, one in alone.tensors.items():
        other = together.tensors[key]
        for a, b in ((one.lows, other.lows), (one.highs, other.highs), (one.counts, other.counts)):
            assert a.tobytes() == b.tobytes(), key
    for a, b in zip(_arrays(alone.some[1]), _arrays(together.some[1]), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("other", [False, pytest.param(True, marks=pytest.mark.one_in(6, always="recurrent"))])
def test_file_computes_the_codes_of_the_model(example: contract.Example, other, record_property, tmp_path) -> None:
    target = example.other if other else example.target
    q = example.quantized(target)
    report = kquant.export(q, tmp_path / "model.tflite", check_runtimes=False)
    states = {"INT16"} if "UNIDIRECTIONAL_SEQUENCE_LSTM" in report.operators else set()  # of the cell
    compared = {"NOT_EQUAL", "LESS", "WHILE"} & set(report.operators)  # real steps, lengths, steps left
    flags = {"BOOL"} if compared else set()
    waves = {"INT16", "INT64"} if any(isinstance(layer, Bands) for layer in q.layers) else set()  # of sound
    if any(isinstance(layer, contract.MICRO) for layer in q.layers):
        waves = {"INT16", "UINT32", "UINT64"}
    assert set(report.types) <= {"INT8", "INT32"} | states | flags | waves
    x = contract.data(q, seed=2, spread=2.0)  # wider than what it was calibrated on: codes saturate too
    graph = not other and example.name in IN_GRAPHS  # as `predict` runs it
    simulated = contract.simulate(q, x, graph)
    content = (tmp_path / "model.tflite").read_bytes()
    for runtime in targets.load(target).runtimes:
        if runtime not in available():
            continue
        # XNNPACK rounds in float32; that it runs is all that is asked of it
        rows = contract.SAMPLES if runtime != "litert" else 8
        parity = contract.parity(content, runtime, [a[:rows] for a in x], [y[:rows] for y in simulated])
        record_property(f"{runtime}_equal", parity.equal)
        print(f"{example.name} {runtime}: {parity.equal:.6f} equal, {parity.max_err_lsb} LSB")
        if runtime != "litert":
            assert parity.equal >= EQUAL
            assert parity.max_err_lsb <= MAX_ERR_LSB


@pytest.mark.one_in(5, always="recurrent|unrolled-GRU-1|Activation-1|Conv1D-9")
def test_codes_in_16_bits(example: contract.Example) -> None:
    target, runtime = example.other, contract.RUNTIMES[example.other]
    if runtime not in available():
        pytest.skip(f"{runtime} needs an extra: pip install 'kquant[micro]'")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "quantize: .* has no 16-bit kernel")
        q = contract.quantized(example.model, target, 32, "int16x8")
    content = contract.file_of(q)
    assert contract.floats(content) == []
    parity = contract.compare(q, content, runtime, contract.data(q, 32, seed=2, spread=2.0))
    assert parity.equal >= EQUAL, parity
    assert parity.max_err_lsb <= MAX_ERR_LSB, parity


@pytest.mark.one_in(8, always="lookup|Logsumexp|Activation-2|Stored")
def test_has_a_float_form_or_is_refused(example: contract.Example) -> None:
    recipe = sorted(FLOAT_FORMATS)[zlib.crc32(example.name.encode()) % 3]
    x = contract.data(example.model, 16)
    try:
        q = kquant.quantize(example.model, recipe)
        content = contract.file_of(q)
    except ValueError as error:
        assert any(said in str(error) for said in ("stay float", "no float operator", "not a quantized model")), error
        return
    wanted = contract.simulate(q, x)
    invoke = open_runtime(content, "litert")  # the reference kernels lack a few float operators
    rows = [invoke([a[i : i + 1] for a in x]) for i in range(len(x[0]))]
    for a, b in zip(wanted, zip(*rows, strict=True), strict=True):
        assert np.abs(a - np.concatenate(b)).max() <= FLOAT_FORMATS[recipe] * max(1.0, float(np.abs(a).max()))


@pytest.mark.one_in(6, always="passive")
def test_saved_model_computes_the_same(example: contract.Example, tmp_path: Path) -> None:
    q = example.quantized(example.target)
    q.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = contract.data(q, 32)
    for a, b in zip(example.reference(), contract.simulate(again, x), strict=True):
        np.testing.assert_array_equal(a, b)
    assert contract.file_of(again) == contract.file_of(q)


@pytest.mark.one_in(6, always="passive|constant")
def test_trains(example: contract.Example) -> None:
    q, wanted = example.quantized(example.target), example.reference()
    example.forget(example.target)  # its weights move
    x = contract.packed(q, contract.data(q, 32))

    def step(x) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            outputs = keras.tree.flatten(q(x, training=True))
            loss = sum(tf.reduce_mean(tf.square(y - 1.0)) for y in outputs)
        return outputs, tape.gradient(loss, [k.value for k in kernels])

    kernels = [getattr(c.layer, c.kernel_name) for c in q.layers if isinstance(c, Compressed)]
    kernels = [kernel for kernel in kernels if kernel.trainable]  # constants of the model stay constants
    graph = example.name in IN_GRAPHS  # as `fit` runs it
    outputs, gradients = (tf.function(step) if graph else step)(x)
    noisy = any(isinstance(layer, (*passive.TRAINING_ONLY, ReLUBehind)) for layer in q.layers)
    if not noisy:  # a step of difference here and there, from rounding of sums
        for a, b in zip(wanted, _arrays(outputs), strict=True):
            assert np.mean(np.abs(a - b)) <= 0.02 * max(np.abs(a).max(), 1e-3)
    for kernel, gradient in zip(kernels, gradients, strict=True):
        assert gradient is not None, kernel.path
        values = np.asarray(tf.convert_to_tensor(gradient))  # of rows that were looked up, slices
        assert np.all(np.isfinite(values)) and np.any(values), kernel.path


def test_every_rule_has_an_example():
    lonely = [r.layers or r.operations for r in RULES if not r.examples]
    assert not lonely, f"rules without an example: {lonely}; add a tiny model, which enrols them here"


def test_every_operator_is_in_a_target():
    known = {code for name in targets.names() for code, op in targets.load(name).ops.items() if op.int8}
    unlisted = {code for rule in RULES for code in rule.operators} - known
    assert not unlisted, f"operators that no target lists: {unlisted}"


def test_every_rule_either_expands_or_lowers():
    for rule in RULES:
        # Dropout keeps its input's codes and writes nothing, nor does what only ties encodings; a constant is written,
        # but by no operator
        moves = rule.output in ("same", "shared")
        written = rule.operators or moves or rule.layers[:1] in ((constant.Stored,), (constant.Below,))
        # a loop is written as one, its ports with it: by tflite/loops.py
        looped = rule.output == "state" or (rule.output == "closed" and not rule.layers) or rule.layers[:1] == (Loop,)
        assert looped or rule.expand is not None or (rule.lower is not None and written), rule
