"""Bad input: every message says where, what was expected, what came and what to do; nothing of the user's changes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from enrolled import samples
from keras import layers, ops
from model_cases import CASES, made

import kquant
from kquant.runtime.running import probe

X = np.float32(np.random.default_rng(0).normal(size=(64, 6)))


def dense(**options: Any) -> keras.Model:
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((6,), name="x"), layers.Dense(3, name="head", **options)], name="net")


@cache
def calibrated() -> keras.Model:
    return kquant.calibrate(kquant.quantize(dense()), X, verbose=False)


@cache
def content() -> bytes:
    """A good file."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.tflite"
        kquant.export(calibrated(), path)
        return path.read_bytes()


# Models


def test_layer_without_a_rule_is_named() -> None:
    x = keras.Input((6,), name="x")
    model = keras.Model(x, layers.Dense(2)(layers.Lambda(ops.argsort, name="unit")(layers.Dense(4)(x))))
    with pytest.raises(
        ValueError,
        match=r"cannot run in integers.*\n  unit \(Lambda\): it unfolds into .*, which kquant has no rule",
    ):
        kquant.quantize(model)


def test_all_unknown_operations_are_listed() -> None:
    x = keras.Input((6,), name="x")
    y = ops.argsort(layers.Dense(4)(x))
    with pytest.raises(ValueError, match=r"cannot run in integers on LiteRT") as caught:
        kquant.quantize(keras.Model(x, [ops.fft((layers.Dense(4)(x), x[:, :4]))[0], y]))
    assert "(FFT): kquant has no rule for it; replace it by layers that have one" in str(caught.value)
    assert "(Argsort): no int8 kernel sorts" in str(caught.value)


def test_builtin_layer_that_does_not_unfold_is_named() -> None:
    x = keras.Input((6, 4, 4, 2), name="x")
    model = keras.Model(x, layers.ConvLSTM2D(3, 1, name="memory")(x))
    with pytest.raises(ValueError, match=r"memory \(ConvLSTM2D\): its state is an image.*TimeDistributed"):
        kquant.quantize(model)


class RawTensorFlow(layers.Layer):
    def call(self, x: Any) -> Any:
        return tf.math.bessel_i0(x)


class Numpy(layers.Layer):
    def call(self, x: Any) -> Any:
        return np.sin(x)

    def compute_output_shape(self, shape: Any) -> Any:
        return shape


class Penalized(layers.Layer):
    def call(self, x: Any) -> Any:
        self.add_loss(0.1 * ops.mean(x))
        return ops.tanh(x)


def test_add_loss_inside_call_is_named_where_the_layer_is_opened() -> None:
    x = keras.Input((6,), name="x")
    model = keras.Model(x, layers.Dense(2)(Penalized(name="sparse")(x)))
    with pytest.raises(ValueError, match=r"^sparse \(Penalized\): its `call` uses add_loss.*activity_regularizer"):
        kquant.quantize(model)
    pruned = kquant.prune(model, 0.5)  # here it stays whole
    for each in (model, pruned):
        each(X)
    assert len(pruned.losses) == len(model.losses) == 1
    np.testing.assert_allclose(pruned.losses[0], model.losses[0], rtol=1e-5)


@pytest.mark.parametrize("layer", [RawTensorFlow, Numpy])
@pytest.mark.parametrize("verb", [kquant.quantize, kquant.check])
def test_untraceable_custom_layer_is_named(layer: type, verb: Callable) -> None:
    x = keras.Input((6,), name="x")
    model = keras.Model(x, layers.Dense(2)(layer(name="opaque")(x)))
    wanted = rf"opaque \({layer.__name__}\): its `call` cannot be followed.*keras.ops.* instead of raw.*It said: \w"
    with pytest.raises(ValueError, match=wanted):
        verb(model)


def test_untraceable_layer_deep_inside_is_named() -> None:
    class Outer(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="outer")
            self.inner = RawTensorFlow(name="inner")

        def call(self, x: Any) -> Any:
            return self.inner(x) + 1.0

    model = Outer()
    model(X)
    with pytest.raises(ValueError, match=r"^inner \(RawTensorFlow\): its `call` cannot be followed"):
        kquant.quantize(model)


def test_call_that_ignores_its_input_is_refused() -> None:
    class Constant(keras.Model):
        def call(self, x: Any) -> Any:
            return ops.ones((1, 3))

    model = Constant(name="constant")
    model(X)
    with pytest.raises(
        ValueError, match=r"constant \(Constant\): its `call` must return tensors that depend on its inputs"
    ):
        kquant.quantize(model)


def test_call_with_several_arguments_is_refused() -> None:
    class Two(keras.Model):
        def call(self, a: Any, b: Any) -> Any:
            return a + b

    model = Two(name="two")
    model(X, X)
    with pytest.raises(ValueError, match=r"two \(Two\): its `call` must take one argument.*call\(a, b\).*Take a dict"):
        kquant.quantize(model)


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_other_float_widths_are_refused(dtype: str) -> None:
    with pytest.raises(
        ValueError, match=rf"net: variable '.*head/kernel' is {dtype}; kquant reads float32.*Rebuild the model"
    ):
        kquant.quantize(dense(dtype=dtype))


@pytest.mark.parametrize("module", ["tf_keras.src.engine.functional", "tensorflow.python.keras.engine.training"])
def test_keras_2_model_is_refused_with_the_way_over(module: str) -> None:
    legacy = type("Functional", (), {"__module__": module})
    model = type("UsersModel", (legacy,), {"name": "old"})()  # a subclass in the user's own module
    with pytest.raises(
        ValueError, match=r"old: this is a Keras 2 model.*Keras 3.*new.set_weights\(old.get_weights\(\)\)"
    ):
        kquant.quantize(model)


@pytest.mark.parametrize(
    ("given", "said"), [("m.keras", r"the path m.keras; load it with keras.models.load_model"), (3, "builtins.int")]
)
def test_what_is_no_model_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"expected a keras.Model. Received: {said}"):
        kquant.quantize(given)


class Unbuilt(keras.Model):
    def call(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize("verb", [kquant.quantize, kquant.check])
@pytest.mark.parametrize("make", [lambda: keras.Sequential([layers.Dense(2)], name="raw"), lambda: Unbuilt(name="raw")])
def test_unbuilt_model_is_refused(make: Callable, verb: Callable) -> None:
    with pytest.raises(ValueError, match="raw: the model is not built.*Call it once on data"):
        verb(make())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    model = dense()
    kernel = model.get_layer("head").kernel.numpy()
    kernel[2, 1] = value
    model.get_layer("head").kernel.assign(kernel)
    with pytest.raises(ValueError, match="net: variable '.*head/kernel' holds NaN or Inf; restore a good checkpoint"):
        kquant.quantize(model)


def with_kernel(change: Callable[[np.ndarray], None]) -> keras.Model:
    model = dense()
    kernel = model.get_layer("head").kernel.numpy()
    change(kernel)
    model.get_layer("head").kernel.assign(kernel)
    return model


def exported(q: keras.Model, tmp_path: Path, data: np.ndarray = X) -> np.ndarray:
    """Goes on to a file whose codes are the simulation's."""
    kquant.calibrate(q, data, verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite", samples=data)
    assert all(a.equal == 1.0 for v in report.verification if v.runtime != "litert" for a in v.agreements)
    return kquant.predict(tmp_path / "m.tflite", data, "litert-reference")


def test_zero_channels_warn_and_work(tmp_path: Path) -> None:
    model = with_kernel(lambda kernel: kernel.__setitem__((slice(None), 1), 0.0))
    with pytest.warns(UserWarning, match="head: the weights of 1 of its 3 output channels are all 0.*Take them out"):
        q = kquant.quantize(model)
    assert not exported(q, tmp_path)[:, 1].any()


def test_all_zero_weights_warn_and_work(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="head: every weight is 0; were the weights loaded"):
        q = kquant.quantize(with_kernel(lambda kernel: kernel.fill(0.0)))
    with pytest.warns(UserWarning, match="hold a single value on all data"):
        assert not exported(q, tmp_path).any()


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0, 1e-30])
def test_single_valued_activations_warn_and_work(value: float, tmp_path: Path) -> None:
    q = kquant.quantize(dense())
    with pytest.warns(UserWarning, match="these tensors hold a single value on all data: x_quant.*Use data that vary"):
        found = exported(q, tmp_path, np.full((64, 6), value, "float32"))
    wanted = dense()(np.full((1, 6), value, "float32")).numpy()
    np.testing.assert_allclose(found[:1], wanted, atol=0.05 * max(1.0, abs(value)))


def convolutional() -> keras.Model:
    x = keras.Input((None, None, 3), name="image")
    return keras.Model(x, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x)), name="net")


@pytest.mark.parametrize("verb", [kquant.quantize, kquant.check])
def test_open_shape_asks_for_input_shape(verb: Callable) -> None:
    wanted = r"net: input 'image' has the open shape \(None, None, None, 3\).*input_shape=\(None, 96, 96, 3\)\)"
    with pytest.raises(ValueError, match=wanted):
        verb(convolutional())


def test_open_shape_works_with_input_shape(tmp_path: Path) -> None:
    shape = (None, 10, 12, 3)
    assert kquant.check(convolutional(), input_shape=shape).ok
    q = kquant.quantize(convolutional(), input_shape=shape)
    assert q.input_shape == shape
    x = np.float32(np.random.default_rng(0).normal(size=(40, 10, 12, 3)))
    kquant.calibrate(q, x, verbose=False)
    report = kquant.export(q, tmp_path / "m.tflite", samples=x)
    assert report.inputs[0].shape == (1, 10, 12, 3)


def test_input_shape_of_several_inputs() -> None:
    a, b = keras.Input((None, 3), name="a"), keras.Input((4, 3), name="b")
    model = keras.Model({"a": a, "b": b}, ops.mean(a, axis=1) + ops.mean(b, axis=1), name="net")
    for shapes in ([(None, 5, 3), (None, 4, 3)], {"a": (None, 5, 3), "b": (None, 4, 3)}):
        assert kquant.quantize(model, input_shape=shapes).inputs[0].shape == (None, 5, 3)
    with pytest.raises(ValueError, match="net: input_shape must give 2 shapes, one for each of the inputs a, b"):
        kquant.quantize(model, input_shape=(None, 5, 3))


def test_input_shape_of_wrong_rank_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'image' must have rank 4, batch axis included.*Received: \(96, 96, 3\)"):
        kquant.quantize(convolutional(), input_shape=(96, 96, 3))


@pytest.mark.parametrize("verb", [kquant.quantize, kquant.check])
def test_input_shape_that_does_not_fit_the_weights_is_refused(verb: Callable) -> None:
    wanted = r"^net: with input_shape=\(None, 9, 9, 5\): conv.* \(Conv2D\): its weights are for 3 values along axis -1"
    sequential = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3, name="conv")], name="net")
    for model in (convolutional(), sequential):
        with pytest.raises(ValueError, match=wanted):
            verb(model, input_shape=(None, 9, 9, 5))


@pytest.mark.parametrize(
    ("shape", "said"),
    [(5, "must be a shape with batch axis"), ("a", "must be a shape"), ((None, -1, 9, 3), "must hold whole numbers")],
)
def test_what_is_no_input_shape_is_refused(shape: Any, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^net: input_shape .*{said}|^net: input_shape {said}"):
        kquant.quantize(convolutional(), input_shape=shape)


def test_empty_axis_is_refused() -> None:
    x = keras.Input((4, 0), name="nothing")
    with pytest.raises(ValueError, match=r"input 'nothing' of shape \(None, 4, 0\) holds no values"):
        kquant.quantize(keras.Model(x, layers.Flatten()(x)))


def test_quantized_model_is_refused() -> None:
    with pytest.raises(ValueError, match="net: this model is quantized already; pass the float model"):
        kquant.quantize(calibrated())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "int9"}, r"no recipe 'int9'. Did you mean 'int8'\? There are: .*int8"),
        ({"recipe": "missing.toml"}, "recipe: no file missing.toml"),
        ({"recipe": {"name": "r", "activation": {}}}, r"unknown key 'activation'. Did you mean 'activations'\?"),
        (
            {"recipe": {"name": "r", "rules": [{"layer": "heed", "skip": True}]}},
            "the rule layer='heed' matches no layer. Layers: head",
        ),
        (
            {"recipe": {"name": "r", "activations": {"observer": "average"}}},
            "observer 'average' does not exist.*There are: minmax",
        ),
        ({"target": "tfml"}, r"tfml.*tflm"),
    ],
)
def test_unknown_names_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kquant.quantize(dense(), **options)


# Files


def test_export_before_calibration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"export: 2 nodes have no range yet \(head_quant, x_quant\). Run kquant.calibrate"
    ):
        kquant.export(kquant.quantize(dense()), tmp_path / "m.tflite")
    assert list(tmp_path.iterdir()) == []


def test_export_of_a_float_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="net: not a quantized model; pass what kquant.quantize returned"):
        kquant.export(dense(), tmp_path / "m.tflite")


def test_wrong_io_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"io must be one of 'model', .*'float32'. Received: 'int4'"):
        kquant.export(calibrated(), tmp_path / "m.tflite", io="int4")


def read_only_file(folder: Path) -> Path:
    path = folder / "m.tflite"
    path.write_bytes(b"precious")
    path.chmod(0o444)
    return path


PATHS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing folder": (lambda folder: folder / "no" / "m.tflite", r"the folder .*no does not exist; make it first"),
    "folder": (lambda folder: folder, r"is a folder; give the name of the file, like .*model.tflite"),
    "read-only file": (read_only_file, "m.tflite exists and is read-only; remove it or choose another path"),
    "name too long": (
        lambda folder: folder / f"{'m' * 300}.tflite",
        "cannot be written: File name too long; choose another path",
    ),
}


@pytest.mark.parametrize("kind", PATHS)
def test_path_that_cannot_be_written_is_refused(kind: str, tmp_path: Path) -> None:
    make, message = PATHS[kind]
    path = make(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        kquant.export(calibrated(), path)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any folder")
def test_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(ValueError, match="cannot be written to; choose another path"):
        kquant.export(calibrated(), tmp_path / "m.tflite")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_folder_that_takes_no_files_is_refused() -> None:
    with pytest.raises(ValueError, match="export: .*/proc.* cannot be written"):
        kquant.export(calibrated(), "/proc/m.tflite", check_runtimes=False)


def test_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    kquant.export(calibrated(), path)
    before = path.read_bytes()
    for failing in (
        lambda: kquant.export(kquant.quantize(dense()), path),
        lambda: kquant.export(calibrated(), path, samples=X[:, :5]),
        lambda: kquant.export(calibrated(), path, samples=X[:0]),
        lambda: kquant.export(calibrated(), path, io="float64"),
    ):
        with pytest.raises(ValueError):
            failing()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    from kquant.files.atomic import write_atomically

    (tmp_path / "m.tflite").mkdir()
    with pytest.raises(ValueError, match="cannot be written"):
        write_atomically(tmp_path / "m.tflite", b"bytes")
    assert [p.name for p in tmp_path.iterdir()] == ["m.tflite"]


def damaged() -> dict[str, tuple[bytes, str]]:
    good, rng = content(), np.random.default_rng(0)
    noise = rng.integers(0, 256, 4096, dtype=np.uint8).tobytes()
    return {
        "empty": (b"", "is not a TFLite file: bytes 4 to 8 must read TFL3. Received: b'' in 0 bytes"),
        "another format": (
            b"PK\x03\x04" + bytes(100),
            r"is not a TFLite file.*Received: b'\\x00\\x00\\x00\\x00' in 104 bytes",
        ),
        "truncated to the header": (good[:12], "is damaged: .*Export it again"),
        "truncated in the middle": (good[: len(good) // 2], "is damaged|cannot run this file"),
        "random bytes": (noise[:4] + b"TFL3" + noise, "is damaged"),
        "zeros": (bytes(4) + b"TFL3" + bytes(1000), "is damaged"),
    }


@pytest.mark.parametrize("kind", ["empty", "another format", "truncated to the header", "random bytes", "zeros"])
def test_damaged_file_is_refused(kind: str, tmp_path: Path) -> None:
    data, message = damaged()[kind]
    path = tmp_path / "bad.tflite"
    path.write_bytes(data)
    for failing in (lambda: kquant.inspect(path), lambda: kquant.predict(path, X)):
        with pytest.raises(ValueError, match=f"bad.tflite {message}"):
            failing()
    with pytest.raises(ValueError, match=f"the file {message}"):
        kquant.inspect(data)


@pytest.mark.parametrize("runtime", ["litert", "litert-reference", "tflm"])
def test_damage_never_ends_the_process(runtime: str) -> None:
    """Truncated at many places, and with bytes flipped: an answer or a ValueError, whatever the interpreter does."""
    if runtime == "tflm":
        pytest.importorskip("tflite_micro", reason="the micro extra is not installed")
    good, rng = bytearray(content()), np.random.default_rng(1)
    cases = [bytes(good[:n]) for n in rng.integers(8, len(good), 6)]
    for _ in range(10):
        flipped = bytearray(good)
        for position in rng.integers(8, len(good), 12):
            flipped[position] = int(rng.integers(0, 256))
        cases.append(bytes(flipped))
    refused = 0
    for data in cases:
        try:
            kquant.predict(data, X[:1], runtime)
        except ValueError:
            refused += 1
    assert refused >= 6


def test_damage_never_surprises_inspect() -> None:
    good, rng = bytearray(content()), np.random.default_rng(2)
    for _ in range(300):
        flipped = bytearray(good)
        for position in rng.integers(8, len(good), int(rng.integers(1, 30))):
            flipped[position] = int(rng.integers(0, 256))
        try:
            kquant.inspect(bytes(flipped[: int(rng.integers(8, len(good) + 1))]))
        except ValueError as error:
            assert "damaged" in str(error)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    for failing in (
        kquant.inspect,
        lambda path: kquant.predict(path, X),
        lambda path: kquant.verify(calibrated(), path, X),
    ):
        with pytest.raises(ValueError, match="gone.tflite: no such file"):
            failing(tmp_path / "gone.tflite")


@pytest.mark.parametrize("given", [None, 5, [1]])
def test_what_is_no_file_is_refused(given: Any) -> None:
    for failing in (
        kquant.inspect,
        lambda path: kquant.predict(path, X),
        lambda path: kquant.verify(calibrated(), path, X),
    ):
        with pytest.raises(ValueError, match=r"^file: expected the path of a .tflite file, or its bytes. Received: "):
            failing(given)


def test_samples_of_different_shapes_are_refused() -> None:
    uneven = [X[0], X[1][:3]]
    wanted = r"expected samples of one shape. Received: \(6,\), \(3,\). Pad them, or cut them"
    for failing in (
        lambda: kquant.calibrate(calibrated(), uneven),
        lambda: kquant.calibrate(calibrated(), {"x": uneven}),
        lambda: kquant.calibrate(calibrated(), lambda: iter([[uneven]]), verbose=False),
        lambda: kquant.predict(content(), [uneven]),
    ):
        with pytest.raises(ValueError, match=wanted):
            failing()


def test_verify_wants_samples() -> None:
    with pytest.raises(ValueError, match="verify: samples must be 1 or more. Received: 0"):
        kquant.verify(calibrated(), content(), X, samples=0)


PREDICT: dict[str, tuple[Any, dict[str, Any], str]] = {
    "unknown runtime": (
        X,
        {"runtime": "tflite"},
        r"runtime 'tflite' does not exist.*There are: litert, litert-reference, tflm",
    ),
    "shape": (X[:, :5], {}, r"input 'x' takes \[samples, 6\]. Received: \(64, 5\)"),
    "no samples": (X[:0], {}, r"no samples for input 'x'; give at least one"),
    "empty dataset": (tf.data.Dataset.from_tensor_slices(X[:0]).batch(4), {}, "the data are empty; give at least one"),
    "endless dataset": (tf.data.Dataset.from_tensors(X).repeat(), {}, r"repeats forever; .*dataset.take\(n\)"),
    "unbatched dataset": (tf.data.Dataset.from_tensor_slices(X), {}, r"batch axis in front: .*dataset.batch\(32\)"),
    "generator": (iter([X]), {}, "a generator that can run only once; pass the function"),
    "a path": ("x.npy", {}, "takes arrays .*. Received: 'x.npy'"),
    "count": ([X, X], {}, "the file has 1 inputs. Received: 2 arrays"),
    "name": ({"y": X}, {}, "no array for input x. Received: y"),
    "text": (np.full((2, 6), "a"), {}, "input 'x' takes numbers. Received: dtype <U1"),
    "NaN": (np.full((2, 6), np.nan), {}, "NaN among the values of input 'x'"),
}


@pytest.mark.parametrize("kind", PREDICT)
def test_predict_refuses(kind: str) -> None:
    x, options, message = PREDICT[kind]
    with pytest.raises(ValueError, match=message):
        kquant.predict(content(), x, **options)


@pytest.mark.parametrize("sizes", [(2, 5), (5, 2)])
def test_predict_wants_as_many_samples_of_every_input(sizes: tuple[int, int], tmp_path: Path) -> None:
    a, b = keras.Input((3,), name="a"), keras.Input((4,), name="b")
    q = kquant.quantize(keras.Model([a, b], ops.concatenate([a, b], axis=-1)))
    kquant.calibrate(q, [X[:, :3], X[:, :4]], verbose=False)
    kquant.export(q, tmp_path / "m.tflite", check_runtimes=False)
    arrays = [np.zeros((n, width), np.float32) for n, width in zip(sizes, (3, 4), strict=True)]
    for x in (arrays, dict(zip("ab", arrays, strict=True))):
        with pytest.raises(ValueError, match=rf"same number of samples. Received: \[{sizes[0]}, {sizes[1]}\]"):
            kquant.predict(tmp_path / "m.tflite", x)


def test_predict_takes_batches() -> None:
    expected = kquant.predict(content(), X)
    dataset = tf.data.Dataset.from_tensor_slices((X, np.zeros(64))).batch(10)
    for x in (dataset, lambda: ({"x": X[i : i + 32]} for i in (0, 32)), tf.constant(X)):
        np.testing.assert_array_equal(kquant.predict(content(), x), expected)


def test_a_file_with_tables_names_the_runtime(tmp_path: Path) -> None:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((32,), name="x"), layers.Dense(64, name="head")])
    q = kquant.quantize(kquant.cluster(model, 4), target="tflm")
    kquant.calibrate(q, np.float32(np.random.default_rng(0).normal(size=(64, 32))), verbose=False)
    kquant.export(q, tmp_path / "t.tflite", compression="lut", check_runtimes=False)
    with pytest.raises(ValueError, match="look-up tables, which 'litert' cannot decode. Give runtime='tflm'"):
        kquant.predict(tmp_path / "t.tflite", np.zeros((1, 32), np.float32))


def test_a_runtimes_last_words_have_no_marks() -> None:
    with pytest.raises(ValueError, match="cannot run this file") as caught:
        probe(content(), "litert", [np.zeros((1, 7), np.int8)])  # it takes six
    assert "^" not in str(caught.value)


def test_verify_refuses_another_models_file() -> None:
    other = kquant.calibrate(kquant.quantize(dense()), X * 3, verbose=False)
    report = kquant.verify(other, content(), X)
    assert not report.ok and set(report.wrong_encodings) >= {"x", "head"}


@pytest.mark.parametrize("kind", ["shape", "outputs", "inputs"])
def test_verify_names_the_inputs_and_outputs_that_differ(kind: str) -> None:
    x, other = keras.Input((6,), name="x"), keras.Input((6,), name="other")
    head = layers.Dense(3, name="head")
    outputs = {
        "shape": layers.Dense(4, name="head")(x),
        "outputs": [head(x), layers.ReLU()(x)],
        "inputs": head(x + other),
    }[kind]
    model = keras.Model([x, other] if kind == "inputs" else x, outputs)
    data = [X, X] if kind == "inputs" else X
    q = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    wanted = r"^verify: this file takes 'x' \[1, 6\] and gives 'head' \[1, 3\]; the model takes .x.*another model: g"
    with pytest.raises(ValueError, match=wanted):
        kquant.verify(q, content(), data)


def test_verify_compares_by_place_where_names_differ() -> None:
    model = keras.Sequential([keras.Input((6,), name="in"), layers.Dense(3, name="tail")])
    again = keras.Sequential([keras.Input((6,), name="in"), layers.Dense(3, name="tail")])
    again.set_weights(dense().get_weights())
    for given, wrong in ((model, {"tail"}), (again, set())):
        q = kquant.calibrate(kquant.quantize(given), X, verbose=False)
        assert set(kquant.verify(q, content(), X, "litert-reference").wrong_encodings) == wrong


def test_verify_knows_its_own_files(tmp_path: Path) -> None:
    """Whatever the application feeds, and where an input is an output."""
    x = keras.Input((6,), name="x")
    model = keras.Model({"a": x}, {"plain": x, "twice": [layers.ReLU()(x), layers.ReLU()(x)], "sum": x + 1.0})
    q = kquant.calibrate(kquant.quantize(model), {"a": X}, verbose=False)
    for io in ("model", "uint8", "int16", "float32"):
        kquant.export(q, tmp_path / "m.tflite", io=io, check_runtimes=False)
        assert kquant.verify(q, tmp_path / "m.tflite", {"a": X}, "litert-reference").samples == 64


# The user's model


def state(model: keras.Model) -> dict[str, Any]:
    """Everything that a careless reader of a model would change."""
    every = model._flatten_layers(include_self=True)
    return {
        "nodes": [(layer.name, len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in every],
        "weights": [(v.path, v.trainable, v.numpy().tobytes()) for v in model.variables],
        "flags": [
            (layer.name, layer.trainable, layer.built, layer.dtype_policy.name) for layer in model._flatten_layers()
        ],
        "config": str(model.get_config())
        if isinstance(model, keras.Sequential) or hasattr(model, "_inputs_struct")
        else "",
    }


@pytest.mark.parametrize("name", CASES)
def test_the_given_model_is_never_changed(name: str) -> None:
    model = made(name)
    q = kquant.quantize(model)
    x = samples(q, 4)
    arguments = keras.tree.pack_sequence_as(q._inputs_struct, x) if isinstance(q._inputs_struct, list | dict) else x[0]
    outputs = [y.numpy() for y in keras.tree.flatten(model(arguments, training=False))]
    before = state(model)
    q = kquant.quantize(model)
    kquant.check(model)
    kquant.calibrate(q, lambda: [arguments] * 8, verbose=False)
    for variable in q.trainable_variables:
        variable.assign(variable + 1.0)  # weights of its own
    assert state(model) == before
    for a, b in zip(outputs, keras.tree.flatten(model(arguments, training=False)), strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_a_refused_model_is_not_changed() -> None:
    x = keras.Input((6,), name="x")
    model = keras.Model(x, layers.Dense(2)(RawTensorFlow(name="opaque")(x)))
    before = state(model)
    for verb in (kquant.quantize, kquant.check):
        with pytest.raises(ValueError, match="opaque"):
            verb(model)
    assert state(model) == before


def test_lost_activity_regularizers_are_named() -> None:
    layer = layers.Dense(2, activity_regularizer="l2", kernel_regularizer="l2", name="sparse_head")
    model = keras.Sequential([keras.Input((4,)), layer])
    with pytest.warns(UserWarning, match="activity regularizers of sparse_head"):
        q = kquant.quantize(model)
    assert len(q.losses) == 1  # the kernel's


class OwnSteps(keras.Model):
    """A model that trains in its own way."""

    def train_step(self, data: Any) -> Any:
        return super().train_step(data)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return 2.0 * super().compute_loss(*args, **kwargs)


VERBS: dict[str, Callable[[keras.Model], keras.Model]] = {
    "quantize": kquant.quantize,
    "prune": lambda model: kquant.prune(model, 0.5),
    "cluster": lambda model: kquant.cluster(model, 3),
    "prune_channels": lambda model: kquant.prune_channels(model, macs=0.9, minimum=1, verbose=False),
    "factorize": lambda model: kquant.factorize(model, macs=0.9, verbose=False),
}


def hidden() -> keras.Model:
    inner = layers.Dense(16, activation="relu", name="inner")
    return keras.Sequential([keras.Input((16,)), inner, layers.Dense(4, name="head")], name="net")


@pytest.mark.parametrize("verb", VERBS)
def test_lost_steps_of_the_users_class_are_named(verb: str) -> None:
    model = hidden()
    own = OwnSteps(model.inputs, model.outputs)
    message = rf"^{verb}: OwnSteps has train_step, compute_loss of its own.*Own\(new"
    with pytest.warns(UserWarning, match=message) as said:
        new = VERBS[verb](own)
    assert [w.filename for w in said] == [__file__]  # where the user called
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        around = OwnSteps(new.inputs, new.outputs)
        VERBS[verb](model)
        kquant.distill(around, model, outputs="logits")
    before = new.get_weights()
    losses = []
    for trained in (new, around):
        trained.compile(keras.optimizers.SGD(1e-6), "mse")
        losses.append(float(trained.train_on_batch(np.ones((4, 16)), np.full((4, 4), 99.0))))
    assert losses[1] == pytest.approx(2.0 * losses[0], rel=0.05)
    assert any(not np.array_equal(a, b) for a, b in zip(before, new.get_weights(), strict=True))


@pytest.mark.parametrize("verb", [*VERBS, "scan_sparsity"])
def test_weights_that_are_no_numbers_are_named(verb: str) -> None:
    model = hidden()
    values = model.get_layer("inner").kernel.numpy()
    values[3, 2] = np.nan
    model.get_layer("inner").kernel.assign(values)
    verbs = VERBS | {"scan_sparsity": lambda model: kquant.scan_sparsity(model, np.ones((4, 16)), verbose=False)}
    with pytest.raises(ValueError, match="^net: variable 'net/inner/kernel' holds NaN or Inf; restore a good"):
        verbs[verb](model)


def test_one_sample_without_a_batch_axis_is_told_apart(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    kquant.compress(model, np.random.default_rng(0).normal(size=(64, 4)), output=tmp_path / "m.tflite", verbose=False)
    with pytest.raises(ValueError, match=r"pass x\[None\]"):
        kquant.predict(tmp_path / "m.tflite", np.zeros(4, "float32"))


# Models made of a quantized one


def with_a_head() -> keras.Model:
    return keras.Sequential([calibrated(), layers.Dense(2, name="top")], name="whole")


@pytest.mark.parametrize("verb", ["calibrate", "export", "prune", "cluster"])
def test_a_quantized_model_inside_another_is_named(verb: str, tmp_path: Path) -> None:
    calls: dict[str, Callable[[keras.Model], Any]] = {
        "calibrate": lambda model: kquant.calibrate(model, X, verbose=False),
        "export": lambda model: kquant.export(model, tmp_path / "m.tflite"),
        "prune": lambda model: kquant.prune(model, 0.5),
        "cluster": lambda model: kquant.cluster(model, 2),
    }
    with pytest.raises(ValueError, match="^whole: it has the quantized model 'net' among its layers.*kquant.strip"):
        calls[verb](with_a_head())


def test_other_outputs_of_a_quantized_model_are_named(tmp_path: Path) -> None:
    q = calibrated()
    behind = keras.Model(q.input, ops.softmax(q.output), name="behind")
    inside = keras.Model(q.input, q.get_layer("head_quant").output, name="inside")
    for model, maker in ((behind, "softmax"), (inside, "head_quant")):
        with pytest.raises(ValueError, match=rf"^export: {model.name} gives out what '{maker}.*no quantized tensor"):
            kquant.export(model, tmp_path / "m.tflite")


@pytest.mark.parametrize("verb", [kquant.quantize, kquant.check])
def test_a_model_that_keras_quantized_is_refused(verb: Callable) -> None:
    model = dense()
    model.quantize("int8")
    with pytest.raises(ValueError, match=r"net: Keras quantized head \(`model.quantize`\).*Pass the float model"):
        verb(model)


class Branching(keras.Model):
    """Runs on data, but Keras cannot follow it to learn its shapes."""

    def __init__(self, follow: Callable) -> None:
        super().__init__(name="net")
        self.follow, self.head = follow, layers.Dense(2, name="head")

    def call(self, x: Any) -> Any:
        return self.follow(self.head(x))


UNFOLLOWED = {
    "branch": lambda y: y + 1.0 if float(ops.max(y)) > 0 else y,
    "py_function": lambda y: tf.py_function(lambda v: v, [y], tf.float32),
}


@pytest.mark.parametrize("name", UNFOLLOWED)
def test_a_subclass_that_cannot_be_followed_is_told_so(name: str) -> None:
    model = Branching(UNFOLLOWED[name])
    model(X[:1])
    with pytest.raises(ValueError, match=r"net \(Branching\): .* no input shape.*followed.*input_shape=\(None"):
        kquant.quantize(model)
    with pytest.raises(ValueError, match=r"net \(Branching\): its `call` cannot be followed on symbolic tensors"):
        kquant.quantize(model, input_shape=(None, 6))


def test_an_input_shape_stands_in_for_one_that_keras_does_not_know() -> None:
    model = Branching(lambda y: y)
    model.head.build((None, 6))
    model.built = True
    assert kquant.quantize(model, input_shape=(None, 6)).input_shape == (None, 6)


CONSTANTS = {
    "sum": lambda x: x + np.inf,
    "product": lambda x: x * np.nan,
    "rows": lambda x: layers.Reshape((2, 3))(x) + np.float32([[1.0], [np.inf]]),
    "bound": lambda x: ops.maximum(x, np.nan),
    "no number is larger": lambda x: ops.minimum(x, -np.inf),
    "normalization": lambda x: layers.Rescaling(1.0, offset=np.inf)(x),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_infinite_constants_are_refused(name: str) -> None:
    x = keras.Input((6,), name="x")
    with pytest.raises(ValueError, match=r"\w+: a constant of the model holds NaN or Inf"):
        kquant.quantize(keras.Model(x, CONSTANTS[name](x), name="net"))


def test_an_infinite_bound_is_none() -> None:
    x = keras.Input((6,), name="x")
    model = keras.Model(x, ops.clip(x, -np.inf, 1.0) + ops.maximum(x, -np.inf), name="net")
    np.testing.assert_allclose(kquant.fold(model).predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-6)


@pytest.mark.parametrize("verb", [kquant.quantize, kquant.check])
def test_strings_and_doubles_are_refused(verb: Callable) -> None:
    text = keras.Input((6,), name="text", dtype="string")
    with pytest.raises(ValueError, match=r"net: input 'text' is of type string.*preprocessing"):
        verb(keras.Model(text, layers.Flatten()(text), name="net"))
    x = keras.Input((6,), name="x", dtype="float64")
    for y in (layers.ReLU(name="double", dtype="float64")(x), ops.relu(x)):
        with pytest.raises(ValueError, match=r"(double|relu\w*) \(\w+\): it computes in float64; kquant reads float32"):
            verb(keras.Model(x, y, name="net"))
    verb(keras.Model(x, layers.Dense(2)(x)))  # which casts


def test_every_refusal_of_a_rule_is_listed_at_once() -> None:
    x = keras.Input((70, 3), name="x")
    long = layers.GRU(3, name="long")(x)
    each = layers.TimeDistributed(layers.Conv1D(2, 1), name="each")(layers.Reshape((70, 3, 1))(x))
    model = keras.Model(x, [long, each, ops.argsort(layers.Dense(2)(x)), layers.Dense(2)(x)], name="net")
    with pytest.raises(ValueError, match=r"cannot run in integers on LiteRT") as caught:
        kquant.quantize(model)
    refused = [row for row in kquant.check(model, "litert").layers if row.status == "refused"]
    lines = str(caught.value).splitlines()[1:]
    assert len(refused) == 3 and sorted(line.split()[0] for line in lines) == sorted(row.layer for row in refused)
    with pytest.raises(ValueError, match=r"^long \(GRU\): no kernel computes it"):  # one alone says it itself
        kquant.quantize(keras.Model(x, long, name="net"))
