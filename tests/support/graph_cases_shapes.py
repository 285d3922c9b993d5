"""More graphs: batch norms, padding and shapes, operations between layers, names, custom layers."""

from __future__ import annotations

import keras
import numpy as np
from graph_cases import case, image
from keras import layers, ops

# Batch norms and constants


@case
def norm_over_axis_1() -> keras.Model:
    x = image()
    return keras.Model(x, layers.BatchNormalization(axis=1)(layers.Conv2D(4, 3)(x)))


@case
def norm_before_padded_conv() -> keras.Model:
    x = image()
    y = layers.Conv2D(4, 3, padding="same")(layers.BatchNormalization()(x))
    return keras.Model(x, layers.Conv2D(2, 3)(layers.BatchNormalization()(layers.ReLU()(y))))


@case
def norms_around_depthwise_dense_transpose() -> keras.Model:
    x = image()
    y = layers.DepthwiseConv2D(3, depth_multiplier=2)(layers.BatchNormalization()(x))
    y = layers.Conv2DTranspose(5, 3, strides=2)(layers.BatchNormalization()(layers.ReLU()(y)))
    y = layers.BatchNormalization()(y)
    return keras.Model(
        x, layers.BatchNormalization()(layers.Dense(3)(layers.BatchNormalization()(layers.Flatten()(y))))
    )


@case
def norm_before_grouped_conv() -> keras.Model:
    x = image()
    return keras.Model(
        x, layers.BatchNormalization()(layers.Conv2D(6, 3, groups=2, strides=2)(layers.BatchNormalization()(x)))
    )


@case
def norm_after_relu_after_conv() -> keras.Model:
    x = image()
    y = layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(x))
    return keras.Model(
        x, layers.ReLU()(layers.BatchNormalization(center=False, scale=False)(layers.MaxPooling2D(2)(y)))
    )


@case
def norm_of_norm() -> keras.Model:
    x = image()
    return keras.Model(
        x, layers.BatchNormalization()(layers.Rescaling(0.5, offset=-1.0)(layers.BatchNormalization()(x)))
    )


@case
def prelu_then_norm_then_dense() -> keras.Model:
    x = image()
    y = layers.BatchNormalization()(layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(4, 3)(x)))
    return keras.Model(x, layers.Dense(3)(layers.Flatten()(y)))


# Shapes and padding


@case
def separable_with_multiplier() -> keras.Model:
    x = image()
    return keras.Model(
        x, layers.SeparableConv2D(5, 3, depth_multiplier=3, strides=2, padding="same", activation="relu")(x)
    )


@case
def transposed_odd_shapes() -> keras.Model:
    x = image(5, 7, 3)
    return keras.Model(
        x,
        [
            layers.Conv2DTranspose(4, 3, strides=3, padding="same", name="a")(x),
            layers.Conv2DTranspose(2, (3, 5), strides=(1, 2), padding="valid", activation="relu", name="b")(x),
            layers.Conv2DTranspose(3, 2, strides=3, padding="valid", name="c")(x),
            layers.Conv2DTranspose(3, (5, 4), strides=(2, 1), padding="same", use_bias=False, name="d")(x),
            layers.Conv2DTranspose(3, 1, strides=2, padding="same", name="e")(x),
        ],
    )


@case
def padding_before_strided_convs() -> keras.Model:
    x = image(9, 8, 3)
    return keras.Model(
        x,
        [
            layers.Conv2D(4, 3, strides=2, name="a")(layers.ZeroPadding2D(((0, 1), (0, 1)))(x)),
            layers.Conv2D(4, 3, strides=2, name="b")(layers.ZeroPadding2D(1)(x)),
            layers.DepthwiseConv2D(3, name="c")(layers.ZeroPadding2D(1)(x)),
            layers.Conv2D(4, 3, strides=1, dilation_rate=2, name="d")(layers.ZeroPadding2D(2)(x)),
            layers.Conv2D(4, 5, strides=3, name="e")(layers.ZeroPadding2D(((1, 2), (2, 2)))(x)),
            layers.Conv2D(4, 3, padding="same", name="f")(layers.ZeroPadding2D(1)(x)),
        ],
    )


@case
def one_padding_two_readers() -> keras.Model:
    x = image()
    y = layers.ZeroPadding2D(1)(x)
    return keras.Model(x, [layers.Conv2D(4, 3, name="a")(y), layers.MaxPooling2D(2, name="b")(y)])


@case
def pool_after_padding() -> keras.Model:
    x = image(9, 9, 4)
    return keras.Model(
        x, layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(1)(layers.Conv2D(4, 3, activation="relu")(x)))
    )


@case
def one_dimensional_chain() -> keras.Model:
    x = keras.Input((32, 3), name="x")
    y = layers.Conv1D(8, 5, padding="causal", dilation_rate=2, activation="relu")(x)
    y = layers.BatchNormalization()(layers.DepthwiseConv1D(3, padding="same", depth_multiplier=2)(y))
    y = layers.AveragePooling1D(2)(layers.MaxPooling1D(3, strides=2, padding="same")(layers.ReLU()(y)))
    y = layers.SeparableConv1D(6, 3, activation="silu")(layers.ZeroPadding1D((1, 2))(layers.Cropping1D((1, 0))(y)))
    return keras.Model(x, layers.Dense(3)(layers.GlobalMaxPooling1D()(y)))


@case
def squeeze_excite() -> keras.Model:
    x = image()
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(4, 1, activation="hard_sigmoid")(layers.Conv2D(2, 1, activation="relu")(gate))
    return keras.Model(x, layers.Multiply()([x, gate]))


@case
def spatial_gate() -> keras.Model:
    x = image()
    return keras.Model(x, layers.Add()([layers.Multiply()([x, layers.Conv2D(1, 1, activation="sigmoid")(x)]), x]))


@case
def operations_between_layers() -> keras.Model:
    x = image()
    y = ops.relu(layers.Conv2D(4, 3, padding="same")(x) * 2.0 + x - 0.5)
    y = ops.concatenate([ops.maximum(y, 0.25), ops.minimum(ops.sigmoid(y), ops.tanh(y)), -y / 3.0], axis=-1)
    y = ops.transpose(ops.clip(y, -0.5, 1.5), (0, 3, 1, 2))
    y = ops.expand_dims(ops.mean(y, axis=(2, 3)), 1)
    return keras.Model(x, ops.reshape(ops.squeeze(y, 1), (-1, 3, 4)))


# Odd weights, names and ranges


@case
def odd_names() -> keras.Model:
    x = keras.Input((8, 7, 4), name="in put.0")
    y = layers.Conv2D(4, 3, name="конволюция 1", activation="relu")(x)
    y = layers.BatchNormalization(name="b.n:0")(layers.MaxPooling2D(name="名前")(y))
    return keras.Model(
        x, layers.Dense(3, name="x_quant", activation="softmax")(layers.Flatten(name="kernel")(y)), name="a model, v1.0"
    )


@case
def names_that_clash() -> keras.Model:
    def tower(name: str) -> keras.Model:
        return keras.Sequential(
            [keras.Input((8, 7, 4)), layers.Conv2D(4, 3, name="conv"), layers.ReLU(name="relu")], name=name
        )

    x = image(name="conv")
    y = layers.Add(name="relu")([tower("a")(x), tower("b")(x)])
    return keras.Model(x, layers.Conv2D(3, 1, name="conv_quant")(y))


class Block(keras.layers.Layer):
    """A custom layer with layers and operations inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.norm = layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization()

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build((*shape[:-1], 4))

    def call(self, x, training=False):
        return ops.relu(self.norm(self.conv(x), training=training)) + x


class Tokens(layers.Layer):
    """Rows that are the same for every sample, in every spelling; positions from a table."""

    def build(self, shape):
        width = shape[-1]
        self.token = self.add_weight(shape=(1, 1, width), name="token")
        self.queries = self.add_weight(shape=(2, width), name="queries")
        self.slope = self.add_weight(shape=(width,), name="slope")
        self.positions = layers.Embedding(12, width, name="positions")
        self.positions.build()

    def call(self, x):
        batch, width = ops.shape(x)[0], x.shape[-1]
        x = self.slope * x + self.positions(ops.arange(ops.shape(x)[1]))
        rows = [
            ops.broadcast_to(self.token, (batch, 1, width)),
            ops.repeat(self.token, batch, axis=0),
            ops.tile(self.queries[None], [batch, 1, 1]),
            self.token + ops.zeros_like(x[:, :1]),
            ops.ones((batch, 1, width)) / 2,
            np.float32([[[0.5]]]) * x,
        ]
        return ops.concatenate(rows, axis=1)


@case
def tokens_of_every_spelling() -> keras.Model:
    x = keras.Input((3, 4))
    return keras.Model(x, layers.Dense(3)(Tokens()(x)))


class Subclassed(keras.Model):
    """A subclassed model with a block called twice."""

    def __init__(self):
        super().__init__(name="subclassed")
        self.block, self.head = Block(name="block"), layers.Dense(3)

    def call(self, x, training=False):
        y = self.block(self.block(x, training=training), training=training)
        return self.head(ops.mean(y, axis=(1, 2)))


@case
def subclassed_model() -> keras.Model:
    model = Subclassed()
    model(np.zeros((1, 8, 7, 4), np.float32))
    return model


@case
def mobile_bottleneck() -> keras.Model:
    x = image(8, 8, 4)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(12, 1, use_bias=False)(x)))
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)))
    return keras.Model(x, layers.Add()([x, layers.BatchNormalization()(layers.Conv2D(4, 1, use_bias=False)(y))]))
