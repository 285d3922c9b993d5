"""Attention over sequences of any length: masks that the inputs tell, in the model and in its file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import contract
import keras
import new_process
import numpy as np
import pytest
from keras import layers, ops
from test_padding import signal_to_noise

import kquant
from kquant.ops.expansion import expand
from kquant.tflite.reader import read_model

pytestmark = pytest.mark.filterwarnings("ignore:quantize. .* has no 16-bit kernel")

STEPS, WORDS, WIDTH = 8, 20, 8
REFERENCES = (("litert", "litert-reference"), ("tflm", "tflm"))


def sentences(count: int = 64, seed: int = 0) -> np.ndarray:
    """Indices of words, 0 behind the last one; every length occurs."""
    rng = np.random.default_rng(seed)
    lengths = rng.permutation(np.arange(count) % STEPS + 1)
    return np.int32(rng.integers(1, WORDS, (count, STEPS)) * (np.arange(STEPS) < lengths[:, None]))


def of_words(function: Callable[[Any, Any], Any], mask_zero: bool = False) -> keras.Model:
    """What is computed of embeddings, and of the indices themselves."""
    keras.utils.set_random_seed(3)
    tokens = keras.Input((STEPS,), dtype="int32", name="tokens")
    x = layers.Embedding(WORDS, WIDTH, mask_zero=mask_zero, name="table")(tokens)
    return contract.randomise(keras.Model(tokens, function(x, tokens), name="sentences"))


def heads(x: Any, **options: Any) -> Any:
    return layers.MultiHeadAttention(2, 4, name="attention")(x, x, **options)


def by_hand(hide: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """An attention in `keras.ops`; `hide` gets the logits and the indices."""
    return lambda x, tokens: ops.matmul(ops.softmax(hide(ops.matmul(x, ops.transpose(x, (0, 2, 1))), tokens)), x)


def real(tokens: Any, dtype: str = "bool") -> Any:
    return ops.cast(ops.not_equal(tokens, 0), dtype)


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "mask_zero": lambda: of_words(lambda x, _: layers.GlobalAveragePooling1D()(heads(x)), mask_zero=True),
    "key of another": lambda: of_words(
        lambda x, _: layers.MultiHeadAttention(2, 4)(layers.Conv1D(6, 3)(x), x), mask_zero=True
    ),
    "groups": lambda: of_words(lambda x, _: layers.GroupQueryAttention(4, 4, 2)(x, x), mask_zero=True),
    "Attention": lambda: of_words(lambda x, _: layers.Attention()([x, x], use_causal_mask=True), mask_zero=True),
    "AdditiveAttention": lambda: of_words(lambda x, _: layers.AdditiveAttention()([x, x]), mask_zero=True),
    "and causal": lambda: of_words(
        lambda x, t: heads(x, use_causal_mask=True, attention_mask=ops.not_equal(t, 0)[:, None])
    ),
    "pairs": lambda: of_words(
        lambda x, t: heads(x, attention_mask=ops.logical_and(real(t)[:, None], real(t)[:, :, None]))
    ),
    "pairs of numbers": lambda: of_words(
        lambda x, t: heads(x, attention_mask=real(t, "int32")[:, None] * real(t, "int32")[:, :, None])
    ),
    "and a constant": lambda: of_words(
        lambda x, t: heads(x, attention_mask=ops.minimum(real(t, "int32")[:, None], np.tri(STEPS, dtype="int32")[None]))
    ),
    "not equal": lambda: of_words(lambda x, t: heads(x, attention_mask=ops.logical_not(ops.equal(t, 0))[:, None])),
    "operation": lambda: of_words(
        lambda x, t: ops.dot_product_attention(*[x[:, :, None]] * 3, mask=ops.not_equal(t, 0)[:, None, None])
    ),
    "bias of an operation": lambda: of_words(
        lambda x, t: ops.dot_product_attention(
            *[x[:, :, None]] * 3, bias=(1.0 - real(t, "float32"))[:, None, None] * -1e9
        )
    ),
    "softmax": lambda: of_words(
        lambda x, t: ops.matmul(layers.Softmax()(ops.matmul(x, ops.transpose(x, (0, 2, 1))), mask=real(t)[:, None]), x)
    ),
    "where": lambda: of_words(by_hand(lambda y, t: ops.where(ops.equal(t, 0)[:, None], -np.inf, y))),
    "where not": lambda: of_words(by_hand(lambda y, t: ops.where(ops.not_equal(t, 0)[:, None], y, -1e9))),
    "sum": lambda: of_words(by_hand(lambda y, t: y + (1.0 - real(t, "float32"))[:, None] * -1e9)),
    "Add": lambda: of_words(by_hand(lambda y, t: layers.Add()([(1.0 - real(t, "float32")[:, None]) * -1e4, y]))),
    "difference": lambda: of_words(by_hand(lambda y, t: y - ops.cast(ops.equal(t, 0), "float32")[:, None] * 1e9)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_is_hidden(name):
    """As Keras hides it; file and simulation in equal codes, without floats."""
    number = list(NETWORKS).index(name)
    target, runtime = REFERENCES[number % 2]
    model, x = NETWORKS[name](), sentences(16, 1)
    np.testing.assert_allclose(expand(model)(x), model(x), atol=1e-5)
    q = kquant.quantize(model, ("int8", "int8", "int16x8")[number % 3], target=target)
    kquant.calibrate(q, sentences(128), batch_size=128, verbose=False)
    content = contract.file_of(q)
    assert contract.compare(q, content, runtime, [x]) == contract.Parity(1.0, 0)
    assert not contract.floats(content)
    assert signal_to_noise(model(x), q(x, training=False)) > 25


def encoder(mask: Callable[[], Any], used: Callable[[Any], Any] = lambda mask: mask) -> keras.Model:
    """Two blocks that are given one mask, as text encoders have them; the first token tells the class."""
    keras.utils.set_random_seed(3)
    tokens, told = keras.Input((STEPS,), dtype="int32", name="tokens"), mask()
    x = layers.Embedding(WORDS, WIDTH, name="table")(tokens)
    for i in range(2):
        y = layers.MultiHeadAttention(2, 4, dropout=0.1, name=f"attention_{i}")(x, x, attention_mask=used(told))
        x = layers.LayerNormalization(name=f"norm_{i}")(x + y)
    return contract.randomise(keras.Model([tokens, told], layers.Dense(3, name="head")(x[:, 0]), name="encoder"))


MASKS = {
    "int32": (
        lambda: keras.Input((STEPS,), dtype="int32", name="padding_mask"),
        lambda m: ops.cast(ops.expand_dims(m, 1), "int32"),
    ),
    "bool": (lambda: keras.Input((STEPS,), dtype="bool", name="padding_mask"), lambda m: m[:, None]),
    "float": (lambda: keras.Input((STEPS,), name="padding_mask"), lambda m: m[:, None]),
    "pairs": (lambda: keras.Input((STEPS, STEPS), dtype="int32", name="padding_mask"), lambda m: m),
}


def fed(model: keras.Model, count: int = 64, seed: int = 0) -> list[np.ndarray]:
    """Tokens, and the mask in the shape and type that the model takes."""
    tokens, given = sentences(count, seed), model.inputs[1]
    told = np.broadcast_to((tokens != 0)[:, None], (count, STEPS, STEPS)) if len(given.shape) == 3 else tokens != 0
    return [tokens, told.astype(given.dtype)]


def calibrated(name: str, target: str = "litert") -> tuple[keras.Model, keras.Model]:
    model = encoder(*MASKS[name])
    return model, kquant.calibrate(kquant.quantize(model, target=target), fed(model), batch_size=64, verbose=False)


@pytest.mark.parametrize(("target", "runtime"), REFERENCES)
@pytest.mark.parametrize("name", MASKS)
def test_a_mask_that_the_application_feeds(name, target, runtime):
    model, q = calibrated(name, target)
    x = fed(model, 16, 1)
    content = contract.file_of(q)
    assert contract.compare(q, content, runtime, x) == contract.Parity(1.0, 0)
    assert signal_to_noise(model(x), q(x, training=False)) > 25
    if "int" in model.inputs[1].dtype:
        assert [t.type for t in read_model(content).inputs] == ["INT32", "INT32"]


def test_layers_of_one_mask_share_what_the_file_makes_of_it():
    _, q = calibrated("int32")
    codes = [op.code for op in read_model(contract.file_of(q)).operators]
    assert (codes.count("NOT_EQUAL"), codes.count("MUL") - codes.count("RSQRT"), codes.count("MINIMUM")) == (1, 3, 2)


def test_what_stands_in_the_padding_changes_no_code():
    model, q = calibrated("int32")
    tokens, mask = fed(model, 32, 2)
    assert np.any(mask == 0)
    other = np.where(mask == 0, np.random.default_rng(4).integers(1, WORDS, tokens.shape, np.int32), tokens)
    np.testing.assert_array_equal(q([tokens, mask]), q([other, mask]))
    shown = [np.asarray(q([t, np.ones_like(mask)])) for t in (tokens, other)]
    assert np.any(shown[0] != shown[1])


@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_a_sample_without_any_step_gives_numbers(target):
    _, q = calibrated("int32", target)
    x = [np.ones((1, STEPS), np.int32), np.zeros((1, STEPS), np.int32)]
    assert np.all(np.isfinite(q(x)))
    runtime = dict(REFERENCES)[target]
    assert contract.compare(q, contract.file_of(q), runtime, x) == contract.Parity(1.0, 0)


def test_trains_saves_and_loads_with_a_mask(tmp_path):
    """Gradients pass the mask; another process reads the model."""
    model, q = calibrated("int32")
    x = fed(model)
    q.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True)
    wanted = np.float32(np.stack([(x[0] == n).sum(1) for n in (1, 2, 3)], 1))
    losses = q.fit(x, wanted, epochs=4, batch_size=64, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    q.save(tmp_path / "q.keras")
    np.savez(tmp_path / "x.npz", *x)
    code = (
        "import sys, keras, kquant, numpy as np; folder = sys.argv[1]; x = list(np.load(folder + '/x.npz').values());"
        "q = keras.models.load_model(folder + '/q.keras'); np.save(folder + '/y.npy', q(x))"
    )
    done = new_process.run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), q(x))
    few = [a[:16] for a in x]
    assert contract.compare(q, contract.file_of(q), "litert-reference", few) == contract.Parity(1.0, 0)


class Cached(layers.MultiHeadAttention):
    """As decoders have it: one argument more than the class above knows, in a `call` of its own."""

    def call(self, query: Any, value: Any, attention_mask: Any = None, cache: Any = None) -> Any:
        q, k, v = self._query_dense(query), self._key_dense(value), self._value_dense(value)
        y, _ = self._compute_attention(q, k, v, attention_mask=attention_mask)
        return self._output_dense(y)


class Decoder(layers.Layer):
    """A causal mask for each sample, met with the padding mask as whole numbers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.attention = Cached(2, 4, dropout=0.1, name="attention")

    def build(self, shape: Any, *_: Any) -> None:
        self.attention.build(shape, shape)

    def call(self, x: Any, padding_mask: Any) -> Any:
        causal = ops.broadcast_to(np.tri(STEPS)[None] > 0, (ops.shape(x)[0], STEPS, STEPS))
        mask = ops.minimum(ops.cast(padding_mask[:, None], "int32"), ops.cast(causal, "int32"))
        return x + self.attention(x, x, attention_mask=mask, cache=None)


@pytest.mark.parametrize(("target", "runtime"), REFERENCES)
def test_a_decoder_with_arguments_of_its_own(target, runtime):
    keras.utils.set_random_seed(3)
    tokens = keras.Input((STEPS,), dtype="int32", name="tokens")
    told = keras.Input((STEPS,), dtype="int32", name="padding_mask")
    y = Decoder(name="decoder")(layers.Embedding(WORDS, WIDTH)(tokens), told)
    model = contract.randomise(keras.Model([tokens, told], layers.Dense(3)(y)))
    q = kquant.calibrate(kquant.quantize(model, target=target), fed(model), batch_size=64, verbose=False)
    x = fed(model, 16, 1)
    content = contract.file_of(q)
    assert contract.compare(q, content, runtime, x) == contract.Parity(1.0, 0)
    assert not contract.floats(content)
    assert signal_to_noise(model(x), q(x, training=False)) > 25


def test_a_mask_of_too_many_axes_is_named():
    x, mask = keras.Input((5, 8)), keras.Input((2, 5, 5), dtype="bool")
    model = keras.Model([x, mask], layers.MultiHeadAttention(2, 4, name="me")(x, x, attention_mask=mask))
    with pytest.raises(ValueError, match=r"me .*attention_mask has the shape \(None, 2, 5, 5\).*3 axes"):
        kquant.quantize(model)


def test_a_mask_of_what_is_hidden():
    """1 where a key is hidden, times minus infinity: what an application feeds, as `1 - mask` is."""
    steps, hidden = keras.Input((STEPS, WIDTH), name="steps"), keras.Input((STEPS,), name="hidden")
    logits = ops.matmul(steps, ops.transpose(steps, (0, 2, 1))) * 0.3 + (hidden * -1e9)[:, None, :]
    model = keras.Model([steps, hidden], ops.matmul(ops.softmax(logits), steps))
    data = [np.random.default_rng(0).normal(size=(64, STEPS, WIDTH)).astype("float32"), np.float32(sentences() == 0)]
    q = kquant.calibrate(kquant.quantize(model), data, verbose=False)
    assert signal_to_noise(model.predict(data, verbose=0), q.predict(data, verbose=0)) > 30.0
