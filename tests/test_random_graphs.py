"""Small random graphs: whatever layers meet, the file computes the codes of the model."""

from __future__ import annotations

from collections.abc import Callable

import contract
import keras
import numpy as np
import pytest
from keras import layers, ops

from kquant.ops.expansion import expand
from kquant.prepare.folding import fold
from kquant.runtime.running import available

pytestmark = pytest.mark.filterwarnings(
    "ignore:calibrate. tensors of very different ranges share",
    "ignore:calibrate. these tensors hold a single value",
    "ignore:calibrate. the range differs more than 2 times",
)

GRAPHS = 20
STEPS = 7
SIZE, CHANNELS = 6, 4
Tensor = keras.KerasTensor

# Every step keeps [6, 6, 4], so that any two tensors may meet later.
STEPS_OF_ONE: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: layers.Conv2D(CHANNELS, 3, padding="same")(x),
    lambda x: layers.Conv2D(CHANNELS, 3, padding="same", groups=2, activation="relu")(x),
    lambda x: layers.Conv2D(CHANNELS, 3, dilation_rate=2, padding="same", use_bias=False)(x),
    lambda x: layers.Conv2D(CHANNELS, 3)(layers.ZeroPadding2D(1)(x)),
    lambda x: layers.DepthwiseConv2D(3, padding="same", activation="relu6")(x),
    lambda x: layers.SeparableConv2D(CHANNELS, 3, padding="same", depth_multiplier=2)(x),
    lambda x: layers.Conv2DTranspose(CHANNELS, 3, strides=2, padding="same")(layers.MaxPooling2D(2)(x)),
    lambda x: layers.Dense(CHANNELS, activation="tanh")(x),
    lambda x: layers.BatchNormalization()(x),
    lambda x: layers.ReLU()(x),
    lambda x: layers.ReLU(1.0)(x),
    lambda x: layers.LeakyReLU(0.1)(x),
    lambda x: layers.PReLU(shared_axes=[1, 2])(x),
    lambda x: layers.Activation("sigmoid")(x),
    lambda x: layers.Activation("hard_silu")(x),
    lambda x: layers.Activation("elu")(x),
    lambda x: layers.Softmax()(x),
    lambda x: layers.AveragePooling2D(3, strides=1, padding="same")(x),
    lambda x: layers.MaxPooling2D(2, strides=1, padding="same")(x),
    lambda x: layers.UpSampling2D(2)(layers.AveragePooling2D(2)(x)),
    lambda x: layers.UpSampling2D(2, interpolation="bilinear")(layers.MaxPooling2D(2)(x)),
    lambda x: layers.Permute((2, 1, 3))(x),
    lambda x: layers.Reshape((SIZE, SIZE, CHANNELS))(layers.Flatten()(x)),
    lambda x: layers.Multiply()([x, layers.GlobalAveragePooling2D(keepdims=True)(x)]),
    lambda x: layers.ZeroPadding2D(((1, 0), (0, 1)))(layers.Cropping2D(((0, 1), (1, 0)))(x)),
    lambda x: ops.clip(x * 1.5 - 0.25, -1.0, 2.0),
    lambda x: layers.Dropout(0.2)(x),
)
STEPS_OF_TWO: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda a, b: layers.Add()([a, b]),
    lambda a, b: layers.ReLU()(layers.Add()([a, b])),
    lambda a, b: layers.Subtract()([a, b]),
    lambda a, b: layers.Multiply()([a, b]),
    lambda a, b: layers.Maximum()([a, b]),
    lambda a, b: ops.minimum(a, b),
    lambda a, b: layers.Average()([a, b]),
    lambda a, b: layers.Conv2D(CHANNELS, 1)(layers.Concatenate()([a, b])),
    lambda a, b: layers.Cropping2D(((SIZE, 0), (0, 0)))(layers.Concatenate(axis=1)([a, b])),
)


def random_graph(seed: int) -> keras.Model:
    """Steps on tensors picked at random; the last tensors that nobody reads are the outputs."""
    rng = np.random.default_rng(seed)
    x = keras.Input((SIZE, SIZE, CHANNELS), name="x")
    tensors, unread = [x], []
    for _ in range(STEPS):
        recent = [tensors[i] for i in rng.integers(max(0, len(tensors) - 3), len(tensors), 2)]
        if rng.random() < 0.35:
            y = STEPS_OF_TWO[rng.integers(len(STEPS_OF_TWO))](*recent)
        else:
            y, recent = STEPS_OF_ONE[rng.integers(len(STEPS_OF_ONE))](recent[0]), recent[:1]
        unread = [t for t in unread if all(t is not r for r in recent)] + [y]
        tensors.append(y)
    return contract.randomise(keras.Model(x, unread, name=f"random_{seed}"), seed)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("seed", range(GRAPHS))
def test_file_computes_the_codes_of_the_model(seed):
    model = random_graph(seed)
    x = contract.data(model, 64)
    for verb in (expand, fold):
        for a, b in zip(keras.tree.flatten(model(x[0])), keras.tree.flatten(verb(model)(x[0])), strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * max(1.0, float(np.abs(a).max())))
    for target, runtime in (("litert", "litert-reference"), ("tflm", "tflm")):
        if runtime not in available():
            continue
        q = contract.quantized(model, target, 64)
        content = contract.file_of(q)
        assert contract.floats(content) == []
        parity = contract.compare(q, content, runtime, contract.data(q, 64, seed=3, spread=2.0))
        assert parity.equal >= 0.999, [layer.name for layer in model.layers]
        assert parity.max_err_lsb <= 1, [layer.name for layer in model.layers]
