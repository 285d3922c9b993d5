"""What goes and what has to stay, one rule at a time; random programs are in `test_random_programs`."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import kquant
from kquant.core.program import Operator, Program, Ref
from kquant.core.spec import Encoding, QuantSpec
from kquant.exact import unread
from kquant.exact.narrow import drop_unread
from kquant.exact.spans import spans_of
from kquant.runtime.running import available

GRID = Encoding(np.float32([0.1]), np.int64([-10]), QuantSpec())
KERNEL = QuantSpec(8, symmetric=True, narrow=True, per_axis=True)
CONV = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1, "fusedActivationFunction": "RELU"}


def stored(program: Program, name: str, codes: np.ndarray, bias: np.ndarray, axis: int = 0) -> list[Ref | None]:
    """A kernel and its bias, in steps of a hundredth and of a thousandth."""
    count = codes.shape[axis]
    zeros = np.zeros(count, np.int64)
    kernel = program.codes(f"{name}/kernel", codes, Encoding(np.full(count, 0.01, np.float32), zeros, KERNEL, axis))
    grid = Encoding(np.full(count, 0.001, np.float32), zeros, QuantSpec(16, symmetric=True), 0)
    return [kernel, program.constant(f"{name}/bias", bias.astype(np.int32), grid)]


def pair(first: np.ndarray, second: np.ndarray, bias: np.ndarray, padding: str = "VALID") -> tuple[Program, Operator]:
    """Two convolutions in a row; the second is returned, too."""
    program = Program("pair")
    x = program.value("x", (1, 4, 4, first.shape[-1]), GRID)
    program.inputs.append(x)
    middle = program.value("middle", (1, 4, 4, len(first)), GRID)
    program.emit("CONV_2D", [x, *stored(program, "first", first, bias)], middle, padding="VALID", **CONV)
    size = 4 if padding == "SAME" else 5 - second.shape[1]
    end = program.value("end", (1, size, size, len(second)), GRID)
    given = stored(program, "second", second, np.zeros(len(second)))
    program.outputs.append(program.emit("CONV_2D", [middle, *given], end, padding=padding, **CONV))
    return program, program.operators[1]


def kernels(outputs: int, inputs: int, size: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 100, (outputs, size, size, inputs))


def test_a_channel_that_meets_only_zeros_goes() -> None:
    second = kernels(2, 4)
    second[..., 1] = 0
    program, last = pair(kernels(4, 3), second, np.zeros(4))
    narrowed = drop_unread(program)
    assert [(r.layer, r.channels, r.kept, r.constant, r.weights, r.weights_kept) for r in narrowed.removed] == [
        ("middle", 4, 3, 0, 12, 9),
        ("end", 2, 2, 0, 8, 6),
    ]
    assert last.inputs[0].shape == (1, 4, 4, 3)
    np.testing.assert_array_equal(last.inputs[1].data, second[..., [0, 2, 3]])


def test_a_constant_goes_into_the_next_bias() -> None:
    first = kernels(3, 2)
    first[1] = 0
    program, last = pair(first, kernels(2, 3), np.array([0, 400, 0]))  # 400 thousandths are four steps above 0
    assert spans_of(program)[id(last.inputs[0])].constant.tolist() == [False, True, False]
    before = last.inputs[1].data[:, 0, 0, 1].astype(int)
    drop_unread(program)
    np.testing.assert_array_equal(last.inputs[2].data, 4 * before)


@pytest.mark.parametrize(("bias", "left"), [(400, 3), (0, 2)])
def test_a_constant_goes_through_padding_only_where_it_is_zero(bias: int, left: int) -> None:
    first = kernels(3, 2)
    first[1] = 0
    program, last = pair(first, kernels(2, 3, size=3), np.array([0, bias, 0]), "SAME")
    drop_unread(program)
    assert last.inputs[0].shape[-1] == left


def test_what_a_relu_ends_for_every_input_is_constant() -> None:
    """Sums of one weight of 1 reach from -118 to 137 thousandths; 1,000 below 0 none of them comes back."""
    first = np.ones((2, 1, 1, 1), np.int64)
    program, last = pair(first, kernels(2, 2), np.array([-1000, -100]))
    span = spans_of(program)[id(last.inputs[0])]
    assert span.low.tolist() == [-10, -10]
    assert (span.high[0], span.high[1] > -10) == (-10, True)
    assert drop_unread(program).removed[0].kept == 1


def test_one_channel_stays_where_none_is_needed() -> None:
    program, last = pair(kernels(3, 2), np.zeros((2, 1, 1, 3), np.int64), np.zeros(3))
    drop_unread(program)
    assert last.inputs[0].shape[-1] == 1


def test_work_grows_with_the_operators_where_each_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program("chain")
    x = program.value("x", (1, 4, 4, 3), GRID)
    program.inputs.append(x)
    for n in range(50):
        given = [x, *stored(program, f"layer{n}", np.zeros((3, 1, 1, 3), np.int64), np.zeros(3))]
        x = program.emit("CONV_2D", given, program.value(f"y{n}", (1, 4, 4, 3), GRID), padding="VALID", **CONV)
    program.outputs.append(x)
    read, asked = unread._read, []
    monkeypatch.setattr(unread, "_read", lambda op, found: asked.append(op) or read(op, found))
    drop_unread(program)
    assert [op.outputs[0].shape[-1] for op in program.operators] == [1] * 49 + [3]
    assert len(asked) <= 4 * 50


def test_a_bias_that_would_overflow_keeps_its_constants() -> None:
    first = np.zeros((2, 1, 1, 2), np.int64)
    first[0] = 1
    program, last = pair(first, kernels(1, 2), np.array([0, 400]))
    last.inputs[2].data[:] = 2**30 - 1
    drop_unread(program)
    assert last.inputs[0].shape[-1] == 2


def net() -> keras.Model:
    """Depthwise, addition, concatenation, pooling and Flatten between what is made and what reads it."""
    x = inputs = keras.Input((8, 8, 2), name="x")
    a = layers.Conv2D(6, 3, padding="same", activation="relu", name="a")(x)
    b = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="b")(a)
    c = layers.Conv2D(6, 1, name="c")(x)
    y = layers.Add(name="sum")([b, c])
    y = layers.Concatenate(name="both")([y, layers.Conv2D(3, 1, activation="relu", name="d")(x)])
    y = layers.Flatten(name="flatten")(layers.MaxPooling2D(4, name="pool")(y))
    model = keras.Model(inputs, layers.Dense(3, name="head")(y))
    keras.utils.set_random_seed(0)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights([np.random.default_rng(1).normal(size=w.shape) for w in layer.get_weights()])
    head = model.get_layer("head")
    kernel = head.kernel.numpy().reshape(2, 2, 9, 3)
    kernel[:, :, [0, 3, 7]] = 0
    head.kernel.assign(kernel.reshape(36, 3))
    return model


@pytest.mark.parametrize("target", ["tflm", "litert"])
@pytest.mark.parametrize("recipe", ["int8", "int16x8", "int4-weights"])
@pytest.mark.filterwarnings("ignore:quantize. .* takes no packed 4-bit weights")
def test_a_model_keeps_its_codes(tmp_path, target: str, recipe: str) -> None:
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 2)).astype("float32")
    q = kquant.calibrate(kquant.quantize(net(), recipe, target=target), x, verbose=False)
    files = [tmp_path / f"{shrink}.tflite" for shrink in (True, False)]
    made = [kquant.export(q, path, data=x, shrink=shrink) for path, shrink in zip(files, (True, False), strict=True)]
    assert {r.layer: (r.channels, r.kept) for r in made[0].removed} == {
        "a_relu": (6, 4),
        "b_relu": (6, 4),
        "c": (6, 4),
        "d_relu": (3, 2),
        "head": (3, 3),
    }
    assert made[1].removed == ()
    for runtime in {"litert-reference", target} & (set(available()) - {"litert"}):
        a, b = (kquant.predict(path, x, runtime) for path in files)
        np.testing.assert_array_equal(a, b)
        verified = [kquant.verify(q, path, x, runtime) for path in files]
        assert [v.wrong_encodings for v in verified] == [(), ()]
        assert all(v.ok for v in verified)


def test_the_file_and_the_report_say_what_went(tmp_path) -> None:
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 2)).astype("float32")
    q = kquant.calibrate(kquant.quantize(net()), x, verbose=False)
    made = kquant.export(q, tmp_path / "net.tflite", check_runtimes=False)
    said = "7 channels of 5 layers are not in the file"
    assert said in kquant.report.render(made)
    assert said in kquant.report.render(kquant.inspect(tmp_path / "net.tflite"))
    assert kquant.inspect(tmp_path / "net.tflite").metadata["shrunk"]["layers"] == 5
    kquant.export(q, tmp_path / "net.tflite", check_runtimes=False, shrink=False)
    assert "shrunk" not in kquant.inspect(tmp_path / "net.tflite").metadata


def test_a_difference_is_found_in_what_is_left(tmp_path) -> None:
    """A file whose bias is off by some steps: verify names the layer, over the channels that are there."""
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 2)).astype("float32")
    model = net()
    q = kquant.calibrate(kquant.quantize(model), x, verbose=False)
    kquant.export(q, tmp_path / "net.tflite", check_runtimes=False)
    bias = next(w for w in q.get_layer("c").weights if w.path.endswith("/bias"))
    bias.assign(bias + 1.0)
    found = kquant.verify(q, tmp_path / "net.tflite", x, "litert-reference")
    assert found.verdict == "wrong"
    assert str(found.first_difference).startswith("c:")
