"""Models of every kind that Keras can express, small and with random weights; each is a function of no arguments."""

from __future__ import annotations

import keras
import numpy as np
from enrolled import Cases
from keras import layers, ops

CASES = Cases()
case, made = CASES.case, CASES.made


def _tower() -> keras.Model:
    x = keras.Input((4, 4, 4), name="deep")
    y = layers.Conv2D(4, 3, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    return keras.Model(x, layers.Add()([x, y]), name="tower")


@case
def functional() -> keras.Model:
    x = keras.Input((8, 8, 3), name="image")
    y = layers.BatchNormalization()(layers.Conv2D(4, 3, strides=2, padding="same")(x))
    y = layers.ReLU()(y)
    y = layers.GlobalAveragePooling2D()(layers.DepthwiseConv2D(3, activation="relu")(y))
    return keras.Model(x, layers.Dense(3, activation="softmax")(layers.Dropout(0.2)(y)))


@case
def sequential() -> keras.Model:
    parts = [layers.Conv1D(4, 3, activation="relu"), layers.MaxPooling1D(2), layers.Flatten(), layers.Dense(5)]
    return keras.Sequential([keras.Input((10, 2)), *parts])


@case
def functional_in_functional() -> keras.Model:
    x = keras.Input((4, 4, 4))
    return keras.Model(x, layers.Dense(3)(layers.Flatten()(_tower()(x))))


@case
def sequential_in_functional() -> keras.Model:
    x = keras.Input((6,))
    head = keras.Sequential([layers.Dense(8, activation="relu"), layers.Dense(3)], name="head")
    return keras.Model(x, head(layers.Dense(6, activation="tanh")(x)))


@case
def functional_in_sequential() -> keras.Model:
    return keras.Sequential([keras.Input((4, 4, 4)), _tower(), layers.Flatten(), layers.Dense(2)])


@case
def nested_model_shared() -> keras.Model:
    a, b = keras.Input((4, 4, 4), name="a"), keras.Input((4, 4, 4), name="b")
    tower = _tower()
    return keras.Model([a, b], layers.Flatten()(layers.Subtract()([tower(a), tower(tower(b))])))


@case
def shared_layer() -> keras.Model:
    a, b = keras.Input((5,), name="a"), keras.Input((5,), name="b")
    dense = layers.Dense(4, name="twin")
    return keras.Model([a, b], layers.Concatenate()([dense(a), dense(layers.Rescaling(4.0)(b))]))


@case
def dict_of_inputs_and_outputs() -> keras.Model:
    x = {"left": keras.Input((5,), name="left"), "a_right": keras.Input((3,), name="a_right")}
    both = layers.Concatenate()([layers.Dense(4)(x["left"]), layers.Dense(4)(x["a_right"])])
    return keras.Model(
        x, {"score": layers.Dense(2, name="score")(both), "gate": layers.Dense(1, "sigmoid", name="gate")(both)}
    )


@case
def list_of_outputs() -> keras.Model:
    x = keras.Input((6, 6, 2))
    y = layers.Conv2D(4, 3, activation="relu")(x)
    return keras.Model(x, [layers.GlobalMaxPooling2D()(y), layers.Conv2D(2, 1)(y)])


@case
def unused_branch() -> keras.Model:
    x = keras.Input((6,))
    y = layers.Dense(4)(x)
    layers.LSTM(3, name="nobody_reads_it")(layers.Reshape((4, 1))(y))
    return keras.Model(x, layers.Dense(2)(y))


@case
def odd_names() -> keras.Model:
    x = keras.Input((6,), name="in put, 1")
    y = layers.Dense(4, activation="relu", name="größe: 5 µm")(x)
    return keras.Model(x, layers.Dense(2, name="out%put")(y), name="my model!")


@case
def arithmetic_between_layers() -> keras.Model:
    x = keras.Input((5, 4))
    y = (2.0 * layers.Dense(4)(x) - 0.5) / 3.0
    return keras.Model(x, ops.mean(ops.relu(x + y), axis=1))


class Block(keras.Model):
    """Sublayers, `keras.ops` between them, and a training flag."""

    def __init__(self, filters: int = 4, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.first = layers.Conv2D(filters, 3, padding="same")
        self.norm = layers.BatchNormalization()
        self.drop = layers.Dropout(0.5)
        self.squeeze = layers.Dense(filters, activation="sigmoid")
        self.head = layers.Dense(3)

    def call(self, images: keras.KerasTensor, training: bool = False) -> keras.KerasTensor:
        x = ops.relu(self.norm(self.first(images), training=training))
        x = x * self.squeeze(ops.mean(x, axis=(1, 2), keepdims=True))
        x = self.drop(x, training=training)
        return self.head(ops.reshape(x, (-1, 4 * 4 * 4)))


@case
def subclassed() -> keras.Model:
    model = Block(name="block")
    model(np.zeros((2, 4, 4, 3), "float32"))
    return model


class Pair(keras.Model):
    """A dict in, a dict out."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.left, self.right = layers.Dense(4), layers.Dense(4)

    def call(self, sides: dict) -> dict:
        total = self.left(sides["left"]) + self.right(sides["right"])
        return {"sum": total, "right": self.right(sides["left"])}


@case
def subclassed_dict() -> keras.Model:
    model = Pair(name="pair")
    model({"left": np.zeros((2, 3), "float32"), "right": np.zeros((2, 3), "float32")})
    return model


class Both(keras.Model):
    """A list in, a list out."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.left, self.right = layers.Dense(4, activation="relu"), layers.Dense(4)

    def call(self, pair: list) -> list:
        return [self.left(pair[0]) * self.right(pair[1]), self.right(pair[1])]


@case
def subclassed_list() -> keras.Model:
    model = Both(name="both")
    model([np.zeros((2, 3), "float32"), np.zeros((2, 5), "float32")])
    return model


class Gate(layers.Layer):
    """A custom layer with variables of its own, in `keras.ops`."""

    def build(self, shape: tuple) -> None:
        self.gamma = self.add_weight(name="gamma", shape=(shape[-1],), initializer="ones")
        self.beta = self.add_weight(name="beta", shape=(shape[-1],), initializer="zeros")

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        return ops.relu(x * self.gamma + self.beta) * ops.sigmoid(x)


@case
def custom_layer() -> keras.Model:
    x = keras.Input((5, 4))
    return keras.Model(x, layers.Flatten()(Gate(name="gate")(layers.ReLU()(x))))


@case
def subclassed_in_functional() -> keras.Model:
    x = keras.Input((4, 4, 3))
    return keras.Model(x, layers.Activation("tanh")(Block(name="block")(x)))
