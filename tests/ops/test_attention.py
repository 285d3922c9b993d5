"""Products, normalizations and attention beyond one example each: options, masks, training, a whole transformer."""

from __future__ import annotations

import contract
import keras
import numpy as np
import pytest
from keras import layers, ops

import kquant
from kquant.graph.stored import Stored
from kquant.layers.nodes import Compressed
from kquant.ops.expansion import expand
from kquant.ops.rule import computed
from kquant.runtime.running import available

pytestmark = pytest.mark.filterwarnings(
    "ignore:calibrate. tensors of very different ranges share",
    "ignore:calibrate. the values of input .* span",
)

RNG = np.random.default_rng(0)


def _array(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def _same_function(model: keras.Model, tolerance: float = 1e-5) -> None:
    x = contract.data(model, 16)
    wanted = keras.tree.flatten(model(contract.packed(model, x)))
    changed = expand(model)
    for a, b in zip(wanted, keras.tree.flatten(changed(contract.packed(changed, x))), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), atol=tolerance * max(1.0, float(np.abs(a).max())))


def sqnr_db(wanted: np.ndarray, got: np.ndarray) -> float:
    """Signal to quantization noise."""
    return float(10 * np.log10(np.sum(np.square(wanted)) / np.sum(np.square(wanted - got))))


TENSORS = {
    "bij,bjk->bki": ((3, 4), (4, 5)),
    "bijk,bkl->bijl": ((2, 3, 4), (4, 5)),
    "bhij,bhkj->bihk": ((2, 3, 4), (2, 5, 4)),
    "bijk,bjki->b": ((2, 3, 4), (3, 4, 2)),
    "bi,bi->bi": ((4,), (4,)),
    "bik,bjk->bji": ((3, 4), (5, 4)),
    "bxyc,bxyd->bcd": ((3, 2, 4), (3, 2, 5)),
    "...ij,...jk->...ik": ((2, 3, 4), (2, 4, 5)),
    "bi,bjk->bijk": ((4,), (3, 2)),
    "bij,bk->bk": ((3, 4), (5,)),
}
KERNELS = {
    "bij,jk->bik": ((3, 4), (4, 5)),
    "bij,ij->b": ((3, 4), (3, 4)),
    "bij,ijk->bk": ((3, 4), (3, 4, 5)),
    "bij,jk->bki": ((3, 4), (4, 5)),
    "bij,ik->bkj": ((3, 4), (3, 5)),
    "bij,ijk->bik": ((3, 4), (3, 4, 5)),
    "bij,j->bij": ((3, 4), (4,)),
    "bij,k->bijk": ((3, 4), (2,)),
    "bij,kl->bik": ((3, 4), (2, 5)),
}


@pytest.mark.parametrize("equation", TENSORS)
def test_einsum_of_tensors(equation):
    _same_function(computed(lambda *x: ops.einsum(equation, *x), *TENSORS[equation])())


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("equation", KERNELS)
def test_einsum_with_a_kernel(equation, swapped):
    shape, kernel = KERNELS[equation]
    value = _array(*kernel)
    if swapped:
        inputs, result = equation.split("->")
        equation = ",".join(reversed(inputs.split(","))) + "->" + result
    _same_function(computed(lambda x: ops.einsum(equation, *((value, x) if swapped else (x, value))), shape)())


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.LayerNormalization(axis=(1, 3)),
        lambda: layers.LayerNormalization(axis=[-2, -1], epsilon=1e-6, center=False),
        lambda: layers.LayerNormalization(axis=2, scale=False),
        lambda: layers.RMSNormalization(axis=2),
        lambda: layers.GroupNormalization(4, epsilon=0.1),
        lambda: layers.GroupNormalization(3, axis=1),
        lambda: layers.UnitNormalization(axis=(1, 2)),
    ],
)
def test_normalizations_keep_their_function(make):
    x = keras.Input((3, 4, 4))
    _same_function(contract.randomise(keras.Model(x, make()(x))))


def test_layer_norm_of_rows_with_variances_30_times_apart():
    x = keras.Input((16, 64))
    model = keras.Model(x, layers.LayerNormalization()(x))
    rows = _array(256, 16, 64) * np.where(RNG.random((256, 16, 1)) < 0.5, 1.0, 30.0**0.5).astype(np.float32)
    q = kquant.calibrate(kquant.quantize(model), rows, verbose=False)
    assert sqnr_db(np.asarray(model(rows)), contract.simulate(q, [rows])[0]) > 22.0  # int8 squares: 19


@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_causal_mask_hides_the_future_to_the_last_code(target):
    x = keras.Input((6, 8))
    model = contract.randomise(keras.Model(x, layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True)))
    q = contract.quantized(model, target)
    first = _array(32, 6, 8)
    second = first.copy()
    second[:, 4:] = _array(32, 2, 8)
    a, b = (contract.simulate(q, [v])[0] for v in (first, second))
    np.testing.assert_array_equal(a[:, :4], b[:, :4])
    assert np.any(a[:, 4:] != b[:, 4:])


def test_masked_logits_do_not_count():
    """Logits of a narrow range: the lowest of them is far from minus infinity, but a masked one still gives 0."""
    x = keras.Input((8, 8))
    model = keras.Model(x, layers.Softmax()(x, mask=np.tri(8, dtype=bool)))
    data = RNG.uniform(-0.1, 0.1, (256, 8, 8)).astype(np.float32)
    q = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    got = contract.simulate(q, [data])[0]
    assert not np.any(got * (1 - np.tri(8)))
    assert np.abs(got - np.asarray(model(data))).max() < 0.02


class Positions(keras.layers.Layer):
    """A positional embedding."""

    def build(self, shape):
        self.table = self.add_weight(name="table", shape=tuple(shape[1:]), initializer="random_normal")

    def call(self, x):
        return x + self.table


def test_positional_embedding_trains_and_is_saved(tmp_path):
    x = keras.Input((6, 8))
    q = contract.quantized(keras.Model(x, layers.Dense(3)(Positions()(x))))
    (stored,) = [layer for layer in q.layers if isinstance(layer, Stored)]
    before = stored.value.numpy()
    q.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    q.fit(_array(64, 6, 8), _array(64, 6, 3), verbose=0)
    assert np.any(stored.value.numpy() != before)
    q.save(tmp_path / "q.keras")
    again = keras.saving.load_model(tmp_path / "q.keras")
    assert contract.file_of(again) == contract.file_of(q)


KEYS = np.array([[True, True, False, True]])
HEADS = {
    "value_mask": lambda x: layers.MultiHeadAttention(2, 3)(x, x, value_mask=KEYS),
    "key_mask": lambda x: layers.MultiHeadAttention(2, 3)(x, x, key_mask=KEYS, use_causal_mask=True),
    "grouped": lambda x: layers.GroupQueryAttention(3, 4, 2)(x, x, value_mask=KEYS),
    "single": lambda x: layers.Attention()([x, x], mask=[None, KEYS]),
    "additive": lambda x: layers.AdditiveAttention()([x, x], mask=[None, KEYS], use_causal_mask=True),
}


@pytest.mark.parametrize("call", HEADS)
def test_constant_masks_of_keys_are_kept(call):
    model = contract.randomise(computed(HEADS[call], (4, 6))())
    _same_function(model)
    seen, other = np.ones((1, 4, 6), np.float32), np.ones((1, 4, 6), np.float32)
    other[:, 2] = 5.0  # of what is masked, the last query alone hears nothing
    np.testing.assert_allclose(expand(model)(other)[:, -1], expand(model)(seen)[:, -1], atol=1e-5)


class Relative(layers.Layer):
    """Attention with a trained bias for each pair of positions."""

    def build(self, shape):
        self.bias = self.add_weight(name="bias", shape=(1, shape[2], shape[1], shape[1]), initializer="random_normal")

    def call(self, x):
        return ops.dot_product_attention(x, x, x, bias=self.bias)


def test_bias_that_trains_is_added_to_scaled_logits():
    x = keras.Input((4, 2, 6))
    model = contract.randomise(keras.Model(x, Relative()(x)))
    _same_function(model)
    assert len(expand(model).trainable_variables) == 1


def test_kernel_of_a_product_trains_and_a_constant_does_not():
    x = keras.Input((5, 4))
    projected = layers.EinsumDense("abc,cd->abd", (None, 3))(x)
    q = contract.quantized(keras.Model(x, ops.matmul(projected, _array(3, 2))))
    trains = [layer.layer.kernel.trainable for layer in q.layers if isinstance(layer, Compressed)]
    assert trains == [True, False]


def transformer(blocks: int, width: int = 32) -> keras.Model:
    """A small vision transformer."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((16, 16, 3))
    x = layers.Reshape((16, width))(layers.Conv2D(width, 4, strides=4)(inputs))
    x = Positions()(x)
    for _ in range(blocks):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, width // 4)(y, y)])
        y = layers.Dense(2 * width, activation="gelu")(layers.LayerNormalization(epsilon=1e-6)(x))
        x = layers.Add()([x, layers.Dense(width)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-6)(x))
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="head")(x))


@pytest.mark.parametrize(("target", "runtime", "blocks"), [("litert", "litert-reference", 2), ("tflm", "tflm", 1)])
def test_vision_transformer(target, runtime, blocks):
    model = transformer(blocks)
    q = kquant.quantize(model, target=target)
    kquant.calibrate(q, _array(64, 16, 16, 3), verbose=False)
    x = _array(16, 16, 16, 3)
    content = contract.file_of(q)
    assert contract.floats(content) == []
    # The weights are Keras' own draws, which differ from version to version: 27.0 dB with those of Keras 3.11.
    assert sqnr_db(np.asarray(model(x)), contract.simulate(q, [x])[0]) > 26.0
    if runtime in available():
        assert contract.compare(q, content, runtime, [x]) == contract.Parity(1.0, 0)
