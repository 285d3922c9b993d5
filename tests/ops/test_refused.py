"""What has no integer form is refused before anything is trained: by name, with the way out."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from graph_cases import image
from keras import layers, ops

import kquant
from kquant import targets


def _unary(function) -> keras.Model:
    x = image()
    return keras.Model(x, function(x))


def _binary(function, first=(8, 7, 4), second=(8, 7, 4)) -> keras.Model:
    a, b = keras.Input(first), keras.Input(second)
    return keras.Model([a, b], function(a, b))


REFUSED = {
    "transform of frames": (
        lambda: keras.Model(x := keras.Input((64,)), ops.stft(x, 16, 8, 16)[0]),
        r"STFT.*STFTSpectrogram",
    ),
    "transform": (lambda: keras.Model(x := keras.Input((64,)), ops.rfft(x)[0]), r"RFFT.*STFTSpectrogram"),
    "cropped images": (
        lambda: _unary(lambda x: ops.image.crop_images(x, 1, 1, target_height=4, target_width=4)),
        r"Cropping2D.*slice",
    ),
    "padded images": (
        lambda: _unary(lambda x: ops.image.pad_images(x, 1, 1, target_height=12, target_width=12)),
        r"ZeroPadding2D",
    ),
    "softmax over samples": (lambda: _unary(layers.Softmax(axis=0, name="me")), r"me .*one sample at a time"),
    "pool over channels first": (
        lambda: keras.Model(
            x := keras.Input((4, 9)), layers.MaxPooling1D(2, data_format="channels_first", name="me")(x)
        ),
        r"me .*channels_last",
    ),
    "global pool over channels first": (
        lambda: _unary(layers.GlobalMaxPooling2D(data_format="channels_first", name="me")),
        r"me .*channels_last",
    ),
    "constant over samples": (
        lambda: _unary(lambda x: x + np.ones((2, 8, 1, 1), np.float32)),
        r"add.*batch axis.*Received: shape",
    ),
    "rescaling over samples": (
        lambda: _unary(layers.Rescaling(np.ones((2, 1, 1, 1)), name="me")),
        r"me: its constant varies along the batch axis.*leading axis of 1",
    ),
    "remainder by a tensor": (lambda: _binary(lambda a, b: a % b), r"Mod.*jumps.*x % 4\.0"),
    "power of a tensor": (lambda: _binary(lambda a, b: a**b), r"Power.*exp"),
    "slice of the batch": (lambda: _unary(lambda x: x[0]), r"GetItem.*axis 0"),
    "computed index": (
        lambda: keras.Model([x := image(), i := keras.Input((2,), dtype="int32")], ops.take(x, i, axis=1)),
        r"take .*constant.*Embedding",
    ),
    "rows that differ": (
        lambda: _unary(lambda x: ops.take_along_axis(x, np.int32(np.arange(4).reshape(1, 1, 1, 4)), axis=1)),
        r"take_along_axis.*keras.ops.take",
    ),
    "flattened samples": (lambda: _unary(lambda x: ops.repeat(x, 2)), r"repeat .*axis 0"),
    "stacked samples": (lambda: _unary(lambda x: ops.stack([x, x])), r"stack .*axis 0"),
    "sum over samples": (lambda: _unary(lambda x: ops.sum(x, axis=0)), r"sum .*one sample at a time"),
    "sum of everything": (lambda: _unary(lambda x: ops.sum(x) * x), r"sum .*no axis.*one sample at a time.*axis=1"),
    "maximum of everything": (lambda: _unary(lambda x: x / ops.max(x)), r"max .*takes the largest of all values"),
    "product over all axes": (lambda: _binary(lambda a, b: ops.tensordot(a, b, 4) + a), r"tensordot .*ops\.sum\(x"),
    "dot product of everything": (lambda: _binary(ops.vdot), r"vdot .*products of all samples.*ops\.sum"),
    "running sum over samples": (lambda: _unary(lambda x: ops.cumsum(x, axis=0)), r"cumsum .*samples of a batch"),
    "flattened batch": (lambda: _unary(ops.ravel), r"ravel .*Flatten"),
    "swapped samples": (lambda: _unary(lambda x: ops.swapaxes(x, 0, 1)), r"swapaxes .*moves the samples.*behind them"),
    "loop": (lambda: _unary(lambda x: ops.fori_loop(0, 3, lambda i, v: v * 2.0, x)), r"fori_loop .*Python loop"),
    "indices and numbers in one": (
        lambda: keras.Model(x := keras.Input((3,)), [layers.Embedding(9, 4)(x[:, 0]), layers.Dense(2)(x[:, 1:])]),
        r"Slice.*another layer \(embedding.*\) reads as indices.*two inputs",
    ),
    "indices that are computed": (
        lambda: keras.Model(x := keras.Input((3,)), layers.Embedding(9, 4)(x[:, :2] * 2)),
        r"mbedding.*indices are computed by the model.*an input of the model of their own",
    ),
    "maximum with a start": (lambda: _unary(lambda x: ops.max(x, axis=1, initial=0.0)), r"max .*keras.ops.maximum"),
    "matrix norm": (lambda: _unary(lambda x: ops.norm(x, ord="nuc", axis=(1, 2))), r"norm .*Frobenius"),
    "position among all values": (lambda: _unary(lambda x: ops.argmax(x)), r"argmax .*finds the largest of.*batch"),
    "position among too many": (
        lambda: keras.Model(x := keras.Input((257,)), ops.argmax(x, axis=-1)),
        r"argmax .*8 bits tell 256 positions apart, and this axis has 257",
    ),
    "running sum": (lambda: _unary(lambda x: ops.cumsum(x, axis=1)), r"cumsum .*triangular"),
    "product": (lambda: _unary(lambda x: ops.prod(x, axis=1)), r"prod .*logarithms"),
    "sparsemax": (lambda: _unary(layers.Activation("sparsemax", name="me")), r"me .*use softmax"),
    "infinite border": (
        lambda: _unary(lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)), constant_values=-np.inf)),
        r"pad .*finite",
    ),
    "infinite choice": (lambda: _unary(lambda x: ops.where(x > 0.0, x, np.inf)), r"where .*finite.*softmax"),
    "infinite padding": (
        lambda: _unary(lambda x: layers.ReLU()(ops.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=-np.inf))),
        r"pad .*minus infinity.*max pooling only.*finite number",
    ),
    "whole numbers": (lambda: _unary(lambda x: ops.cast(x, "int32")), r"cast .*floor"),
    "groups in three dimensions": (
        lambda: keras.Model(x := keras.Input((4, 4, 4, 2)), layers.Conv3D(2, 2, groups=2, name="me")(x)),
        r"me .*Concatenate",
    ),
    "dilated transposed volume": (
        lambda: keras.Model(x := keras.Input((4, 4, 4, 2)), layers.Conv3DTranspose(2, 2, strides=3, name="me")(x)),
        r"me .*UpSampling3D",
    ),
    "smooth downscaling": (lambda: _unary(layers.Resizing(3, 3, antialias=True, name="me")), r"me .*antialias.*appl"),
    "cubic resizing": (
        lambda: _unary(layers.Resizing(3, 3, "bicubic", name="me")),
        r"me .*nearest and bilinear: set one",
    ),
    "many steps": (
        lambda: keras.Model(x := keras.Input((99, 4, 4, 2)), layers.TimeDistributed(layers.Conv2D(2, 2), name="me")(x)),
        r"me .*99 steps.*application",
    ),
    "masked steps": (
        lambda: keras.Model(
            x := keras.Input((3, 6, 2)), layers.TimeDistributed(layers.LSTM(2), name="me")(layers.Masking()(x))
        ),
        r"me \(TimeDistributed\).*for all steps only.*without Masking",
    ),
    "masked state": (
        lambda: keras.Model(
            x := keras.Input((6, 3), batch_size=1), layers.LSTM(3, stateful=True, name="me")(layers.Masking()(x))
        ),
        r"me \(LSTM\).*stateful=True with a mask.*stateful=False",
    ),
    "other mask value": (lambda: _unary(layers.Masking(2.0, name="me")), r"me .*mask_value=0"),
    "indices and numbers": (
        lambda: keras.Model(
            x := keras.Input((6,), dtype="int32"), [layers.Embedding(9, 4)(x), layers.Dense(2, name="me")(x)]
        ),
        r"me .*two inputs",
    ),
    "computed tokens": (
        lambda: keras.Model(x := keras.Input((6,)), layers.Embedding(9, 4, name="me")(layers.ReLU()(x))),
        r"me .*input of the model of their own",
    ),
    "many categories": (
        lambda: keras.Model(
            x := keras.Input((3,), dtype="int32"), layers.CategoryEncoding(9, "multi_hot", name="me")(x)
        ),
        r"me .*multi_hot.*preprocessing",
    ),
    "batch axis moved": (lambda: _unary(lambda x: ops.transpose(x, (1, 0, 2, 3))), r"ranspose.*axis 0 first"),
    "values across samples": (lambda: _unary(lambda x: ops.reshape(x, (-1, 4))), r"eshape.*batch axis"),
    "mean over samples": (lambda: _unary(lambda x: ops.mean(x, axis=0)), r"mean.*averages the samples.*one sample at"),
    "clip by a tensor": (lambda: _binary(lambda a, b: ops.clip(a, -1.0, np.ones(4, np.float32))), r"clip.*one number"),
    "different ranks": (lambda: _binary(lambda a, b: a * b, second=(4,)), r"ultiply.*different rank.*Reshape"),
    "division by zero": (lambda: _unary(lambda x: x / np.float32([1, 2, 0, 4])), r"ivide.*divisor holds a 0"),
    "cubic resize": (
        lambda: _unary(layers.UpSampling2D(2, interpolation="bicubic", name="me")),
        r"me .*nearest and bilinear",
    ),
    "dilated transposed convolution": (
        lambda: _unary(layers.Conv2DTranspose(3, 3, dilation_rate=2, name="me")),
        r"me .*dilated",
    ),
    "concatenated samples": (
        lambda: _unary(lambda x: layers.Concatenate(axis=0, name="me")([x, x])),
        r"me .*batch axis",
    ),
    "a number for each sample": (
        lambda: keras.Model(x := keras.Input(()), x * 2.0),
        r"multiply.*keras.Input\(\(1,\)\)",
    ),
    "unknown operation": (lambda: _unary(lambda x: ops.argsort(x)), r"rgsort.*no int8 kernel sorts.*kquant.Detection"),
    "largest few": (lambda: _unary(lambda x: ops.top_k(x, 2)[0]), r"op_k.*does not write it, though LiteRT.*Detection"),
    "product of samples": (lambda: _binary(ops.matmul, (4,), (4,)), r"atmul.*different samples.*Reshape"),
    "einsum over samples": (lambda: _unary(lambda x: ops.einsum("nhwc->hwc", x)), r"insum.*different samples"),
    "einsum of three": (
        lambda: _binary(lambda a, b: ops.einsum("nhwc,nhwc,nhwc->nhw", a, b, a)),
        r"insum.*3 operands.*several of two",
    ),
    "diagonal": (
        lambda: _unary(lambda x: ops.einsum("nccd->ncd", layers.Cropping2D(((0, 1), (0, 0)))(x))),
        r"twice in one operand",
    ),
    "normalization over samples": (lambda: _unary(layers.UnitNormalization(axis=0, name="me")), r"me: .*batch axis"),
    "another norm": (lambda: _unary(lambda x: ops.normalize(x, order=1)), r"ormalize.*order=1"),
    "attention over some axes": (
        lambda: _unary(lambda x: layers.MultiHeadAttention(2, 4, attention_axes=(1,), name="me")(x, x)),
        r"me .*over all positions",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        kquant.quantize(build())


def test_rank_beyond_the_target_is_refused_by_name():
    x = keras.Input((2, 3, 2, 3, 2, 3))
    model = keras.Model(x, layers.Permute((6, 5, 4, 3, 2, 1), name="me")(x))
    kquant.quantize(model, target="litert")
    with pytest.raises(ValueError, match=r"me .*rank 6.*TRANSPOSE up to rank 5.*fewer axes"):
        kquant.quantize(model, target="tflm")


FEWER, MORE = (4, 2, 6), (2, 2, 1, 3, 2, 2)
JOINS = {
    "CONCATENATION": lambda x: layers.Concatenate(axis=1)([x, -x]),
    "MEAN": lambda x: ops.mean(x, axis=1),
    "REDUCE_MAX": lambda x: ops.max(x, axis=1),
    "FULLY_CONNECTED": lambda x: layers.Dense(4)(x),
}


@pytest.mark.parametrize("target", ["litert", "tflm"])
@pytest.mark.parametrize("code", JOINS)
def test_seven_axes_are_run_or_refused_with_a_way_out_that_runs(code, target, tmp_path):
    data = np.random.default_rng(0).normal(size=(64, 48)).astype("float32")

    def made(shape):
        x = keras.Input((48,))
        q = kquant.quantize(keras.Model(x, JOINS[code](layers.Reshape(shape)(x))), target=target)
        kquant.export(kquant.calibrate(q, data, verbose=False), tmp_path / "net.tflite", data=data)  # run, and compared
        return kquant.inspect(tmp_path / "net.tflite")

    limit = targets.load(target).ops[code].max_rank
    if limit is None:
        assert made(MORE).is_integer
    else:
        with pytest.raises(ValueError, match=rf"rank 7, batch included; .*{code} up to rank {limit}. Put a Reshape"):
            made(MORE)
    assert made(FEWER).is_integer


def test_what_reads_a_number_for_all_samples_does_not_stop_the_list():
    rows = kquant.check(_unary(lambda x: ops.tensordot(x, x, 4) + x)).layers
    assert [row.status for row in rows] == ["refused", "refused"]
    assert "ops.sum(x * y, axis=-1)" in rows[0].remedy and "tensor without axes" in rows[1].remedy


def test_what_stands_in_for_images_cut_and_padded_runs(tmp_path) -> None:
    x = image()
    cut = layers.ZeroPadding2D(2)(layers.Cropping2D(1)(x)[:, 1:4, 1:4, :])
    data = np.random.default_rng(0).random((64, *x.shape[1:]), np.float32)
    q = kquant.calibrate(kquant.quantize(keras.Model(x, layers.Conv2D(2, 3)(cut))), data, verbose=False)
    assert kquant.export(q, tmp_path / "cut.tflite", data=data[:4]).verification
