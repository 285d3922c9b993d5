"""What has no integer form is refused before anything is trained: by name, with the way out."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from graph_cases import image
from keras import layers, ops

import kquant


def _unary(function) -> keras.Model:
    x = image()
    return keras.Model(x, function(x))


def _binary(function, first=(8, 7, 4), second=(8, 7, 4)) -> keras.Model:
    a, b = keras.Input(first), keras.Input(second)
    return keras.Model([a, b], function(a, b))


REFUSED = {
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
    "rescaling over rows": (
        lambda: _unary(layers.Rescaling(np.ones((8, 1, 1)), name="me")),
        r"me: .*channels.*Permute",
    ),
    "division by a tensor": (lambda: _binary(lambda a, b: a / b), r"ivide.*reciprocal"),
    "third power": (lambda: _unary(lambda x: x**3), r"Power.*x \* x \* x"),
    "batch axis moved": (lambda: _unary(lambda x: ops.transpose(x, (1, 0, 2, 3))), r"ranspose.*axis 0 first"),
    "values across samples": (lambda: _unary(lambda x: ops.reshape(x, (-1, 4))), r"eshape.*batch axis"),
    "mean over samples": (lambda: _unary(lambda x: ops.mean(x, axis=0)), r"mean.*one sample at a time"),
    "clip by a tensor": (lambda: _binary(lambda a, b: ops.clip(a, -1.0, np.ones(4, np.float32))), r"clip.*one number"),
    "different ranks": (lambda: _binary(lambda a, b: a * b, second=(4,)), r"ultiply.*different rank.*Reshape"),
    "division by zero": (lambda: _unary(lambda x: x / np.float32([1, 2, 0, 4])), r"ivide.*divisor holds a 0"),
    "cubic resize": (
        lambda: _unary(layers.UpSampling2D(2, interpolation="bicubic", name="me")),
        r"me .*nearest and bilinear",
    ),
    "output padding": (
        lambda: _unary(layers.Conv2DTranspose(3, 3, strides=2, output_padding=1, name="me")),
        r"me .*output_padding",
    ),
    "concatenated samples": (
        lambda: _unary(lambda x: layers.Concatenate(axis=0, name="me")([x, x])),
        r"me .*batch axis",
    ),
    "a number for each sample": (
        lambda: keras.Model(x := keras.Input(()), x * 2.0),
        r"multiply.*keras.Input\(\(1,\)\)",
    ),
    "unknown layer": (lambda: _unary(layers.RandomRotation(0.1, name="me")), r"me"),
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
    "mask as input": (
        lambda: keras.Model(
            [x := keras.Input((5, 8)), m := keras.Input((5, 5), dtype="bool")],
            layers.MultiHeadAttention(2, 4, name="me")(x, x, attention_mask=m),
        ),
        r"me .*computed from the inputs.*constant masks",
    ),
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
    x = keras.Input((2, 3, 4, 5, 6))
    model = keras.Model(x, layers.Permute((2, 1, 3, 4, 5), name="me")(x))
    kquant.quantize(model, target="litert")
    with pytest.raises(ValueError, match=r"me .*rank 6.*TRANSPOSE up to rank 5.*Reshape"):
        kquant.quantize(model, target="tflm")
