"""Graphs where encodings meet, layers are shared, and names, shapes or weights are odd: functions of no arguments."""

from __future__ import annotations

from collections.abc import Callable

import keras
import pytest
from keras import layers

CASES: dict[str, Callable[[], keras.Model]] = {}


def case(build: Callable[[], keras.Model]) -> Callable[[], keras.Model]:
    """Enrol a graph."""
    CASES[build.__name__] = build
    return build


def image(height: int = 8, width: int = 7, channels: int = 4, name: str = "x") -> keras.KerasTensor:
    return keras.Input((height, width, channels), name=name)


# Encodings that meet


@case
def concat_softmax_and_dense() -> keras.Model:
    x = keras.Input((12,))
    return keras.Model(
        x, layers.Dense(4)(layers.Concatenate()([layers.Dense(5, activation="softmax")(x), layers.Dense(6)(x)]))
    )


@case
def concat_two_sigmoids() -> keras.Model:
    x = keras.Input((12,))
    return keras.Model(
        x, layers.Concatenate()([layers.Dense(5, activation="sigmoid")(x), layers.Dense(6, activation="sigmoid")(x)])
    )


@case
def concat_sigmoid_tanh_input() -> keras.Model:
    x = keras.Input((12,))
    return keras.Model(x, layers.Concatenate()([layers.Activation("sigmoid")(x), layers.Activation("tanh")(x), x]))


@case
def concat_of_concat_with_softmax_first() -> keras.Model:
    x = keras.Input((6, 5))
    first = layers.Concatenate()([layers.Softmax()(x), layers.Activation("sigmoid")(x)])
    return keras.Model(x, layers.Concatenate()([first, layers.Dense(3)(x), layers.Activation("tanh")(x)]))


@case
def maximum_of_sigmoid_and_conv() -> keras.Model:
    x = image()
    return keras.Model(x, layers.Maximum()([layers.Conv2D(3, 1, activation="sigmoid")(x), layers.Conv2D(3, 1)(x)]))


@case
def pooled_sigmoid_in_concat() -> keras.Model:
    x = image()
    pooled = layers.MaxPooling2D(2)(layers.Activation("sigmoid")(x))
    return keras.Model(x, layers.Concatenate()([pooled, layers.AveragePooling2D(2)(x)]))


@case
def average_pool_of_softmax_in_concat() -> keras.Model:
    x = image()
    pooled = layers.AveragePooling2D(2)(layers.Softmax()(x))
    return keras.Model(x, layers.Concatenate()([pooled, layers.MaxPooling2D(2)(x)]))


@case
def one_tensor_in_two_concats() -> keras.Model:
    x = image()
    a, b, c = (layers.Conv2D(3, 1, name=n)(x) for n in "abc")
    return keras.Model(x, [layers.Concatenate()([a, b]), layers.Concatenate()([b, c])])


@case
def concat_same_tensor_twice() -> keras.Model:
    x = image()
    y = layers.Conv2D(3, 1)(x)
    return keras.Model(x, layers.Concatenate()([y, y]))


@case
def concat_of_twelve() -> keras.Model:
    x = keras.Input((9,))
    return keras.Model(
        x, layers.Concatenate()([layers.Dense(2, activation="relu", name=f"d{i}")(x) for i in range(12)])
    )


@case
def repeat_vector_of_23() -> keras.Model:
    x = keras.Input((4,))
    return keras.Model(x, layers.RepeatVector(23)(x))


@case
def clipped_relu_in_concat() -> keras.Model:
    x = image()
    clipped = layers.ReLU(1.0)(layers.Conv2D(3, 1)(x))
    return keras.Model(x, layers.Concatenate()([clipped, layers.Conv2D(3, 1, kernel_initializer="he_normal")(x), x]))


@case
def relu6_in_concat() -> keras.Model:
    x = image()
    wide = layers.Rescaling(20.0)(x)
    return keras.Model(
        x, layers.Concatenate()([layers.ReLU(6.0)(wide), layers.ReLU(6.0)(layers.Conv2D(3, 1)(wide)), wide])
    )


@case
def clipped_relu_alone_in_concat() -> keras.Model:
    x = image()
    return keras.Model(x, layers.Concatenate()([layers.ReLU(0.7)(x), x]))


@case
def clipped_relu_of_sum_in_concat() -> keras.Model:
    x = image()
    total = layers.Add()([x, layers.Conv2D(4, 1)(x)])
    return keras.Model(x, layers.Concatenate()([layers.ReLU(0.9)(total), x]))


@case
def relu_of_elementwise() -> keras.Model:
    x = image()
    a, b = layers.Conv2D(4, 1, name="a")(x), layers.Conv2D(4, 1, name="b")(x)
    outputs = [
        layers.ReLU()(layers.Add()([a, b])),
        layers.ReLU(1.5)(layers.Multiply()([a, b])),
        layers.ReLU(6.0)(layers.Subtract()([a, b])),
    ]
    return keras.Model(x, outputs)


# Tensors with several readers


@case
def relu_whose_producer_feeds_another() -> keras.Model:
    x = image()
    y = layers.Conv2D(4, 3, padding="same")(x)
    return keras.Model(x, layers.Add()([layers.ReLU()(y), layers.Conv2D(4, 1)(y)]))


@case
def output_used_inside() -> keras.Model:
    x = image()
    y = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    return keras.Model(x, [y, layers.GlobalAveragePooling2D()(y), layers.Conv2D(2, 1)(y)])


@case
def pre_activation_is_an_output() -> keras.Model:
    x = keras.Input((9,))
    y = layers.Dense(5)(x)
    return keras.Model(x, [layers.Softmax()(y), y, layers.ReLU()(y)])


@case
def input_is_an_output() -> keras.Model:
    x = keras.Input((9,))
    return keras.Model(x, [x, layers.Dense(3)(x)])


@case
def input_is_the_only_output() -> keras.Model:
    x = keras.Input((9,))
    return keras.Model(x, layers.Dropout(0.3)(x))


@case
def same_tensor_twice_as_output() -> keras.Model:
    x = keras.Input((9,))
    y = layers.Dense(3)(x)
    return keras.Model(x, [y, y])


@case
def outputs_that_differ_by_reshape() -> keras.Model:
    x = image()
    y = layers.Conv2D(3, 1)(x)
    return keras.Model(x, [y, layers.Flatten()(y), layers.Reshape((8, 7, 3))(y)])


@case
def dict_of_inputs_and_outputs() -> keras.Model:
    inputs = {"zebra": keras.Input((5,), name="zebra"), "ant": keras.Input((7,), name="ant")}
    both = layers.Concatenate()([inputs["zebra"], inputs["ant"]])
    return keras.Model(inputs, {"second": layers.Dense(2)(both), "first": layers.Dense(3, activation="softmax")(both)})


@case
def nested_list_of_outputs() -> keras.Model:
    x = keras.Input((9,))
    return keras.Model(
        x, {"heads": [layers.Dense(3, name="a")(x), layers.Dense(2, name="b")(x)], "raw": layers.Dense(1, name="c")(x)}
    )


@case
def unused_branch_of_a_nested_model() -> keras.Model:
    inner_in = image()
    features = layers.Conv2D(4, 3, activation="relu")(inner_in)
    backbone = keras.Model(inner_in, [features, layers.Dense(10)(layers.Flatten()(features))], name="backbone")
    x = image()
    return keras.Model(x, layers.GlobalMaxPooling2D()(backbone(x)[0]))


@case
def unused_input() -> keras.Model:
    a, b = keras.Input((5,), name="used"), keras.Input((7,), name="spare")
    try:
        return keras.Model([a, b], layers.Dense(3)(a))
    except ValueError as refused:
        if "not connected" not in str(refused):
            raise
        pytest.skip(f"Keras {keras.__version__} builds no model with an input that it does not use")


# Layers called more than once


@case
def shared_layer_with_two_encodings() -> keras.Model:
    x = image()
    shared = layers.Conv2D(4, 3, padding="same", activation="relu")
    return keras.Model(x, [shared(shared(x)), shared(layers.Rescaling(5.0)(x))])


@case
def shared_relu_fused_and_not() -> keras.Model:
    x = image()
    relu = layers.ReLU()
    return keras.Model(x, layers.Add()([relu(layers.Conv2D(4, 1)(x)), relu(layers.MaxPooling2D(1)(x))]))


@case
def shared_norm_after_two_convs() -> keras.Model:
    x = image()
    norm = layers.BatchNormalization()
    return keras.Model(x, layers.Add()([norm(layers.Conv2D(3, 1)(x)), norm(layers.Conv2D(3, 1)(x))]))


@case
def shared_conv_and_norm() -> keras.Model:
    a, b = image(name="a"), image(name="b")
    conv, norm = layers.Conv2D(3, 3), layers.BatchNormalization()
    return keras.Model([a, b], layers.Subtract()([norm(conv(a)), norm(conv(b))]))


@case
def nested_shared_model() -> keras.Model:
    inner = keras.Sequential(
        [keras.Input((8, 7, 4)), layers.Conv2D(3, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten()],
        name="tower",
    )
    a, b = image(name="a"), image(name="b")
    deeper = keras.Model(inner.inputs, layers.Dense(4)(inner.outputs[0]), name="deeper")
    return keras.Model([a, b], layers.Multiply()([deeper(a), deeper(b)]))
