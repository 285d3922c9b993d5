"""Whatever holds samples becomes checked batches; what does not fit is refused by input and batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from kquant.calibration.data import batches_of, refuse_endless

pytestmark = pytest.mark.filterwarnings(
    "ignore:When providing `inputs` as a dict",
)

X = np.float32(np.random.default_rng(0).normal(size=(70, 3, 2)))
A, B = X[:, :, 0], X[:, :2, 1]
Y = np.arange(70)


def one() -> keras.Model:
    x = keras.Input((3, 2), name="x")
    return keras.Model(x, keras.layers.Flatten()(x))


def two(structure: Callable[[Any, Any], Any] = lambda a, b: [a, b]) -> keras.Model:
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    return keras.Model(structure(a, b), keras.layers.Concatenate()([a, b]))


def by_key() -> keras.Model:
    """Keys that are not the inputs' names, in another order than theirs."""
    return two(lambda a, b: {"second": b, "first": a})


class Batches(keras.utils.PyDataset):
    def __init__(self, *batches: Any) -> None:
        super().__init__()
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> Any:
        return self.batches[i]


def joined(model: keras.Model, data: Any) -> list[np.ndarray]:
    """All batches together, one array for each input in order."""
    columns = zip(*[keras.tree.flatten(batch) for batch in batches_of(model, data)], strict=True)
    return [np.concatenate([np.asarray(t) for t in column]) for column in columns]


ONE_INPUT: dict[str, Any] = {
    "array": X,
    "tensor": tf.constant(X),
    "array and labels": (X, Y),
    "array, labels and weights": (X, Y, np.ones(70)),
    "tuple of one": (X,),
    "list of one": [X],
    "list of samples": list(X),
    "dict by name": {"x": X},
    "float64": X.astype("float64"),
    "tf.data": tf.data.Dataset.from_tensor_slices(X).batch(32),
    "tf.data with labels": tf.data.Dataset.from_tensor_slices((X, Y)).batch(32),
    "tf.data with weights": tf.data.Dataset.from_tensor_slices((X, Y, Y)).batch(32),
    "tf.data of dicts": tf.data.Dataset.from_tensor_slices({"x": X}).batch(32),
    "tf.data of dicts with labels": tf.data.Dataset.from_tensor_slices(({"x": X}, Y)).batch(32),
    "PyDataset": Batches(X[:40], X[40:]),
    "PyDataset with labels": Batches((X[:40], Y[:40]), (X[40:], Y[40:])),
    "generator function": lambda: iter([X[:10], X[10:]]),
    "generator function with labels": lambda: ((X[i : i + 7], Y[i : i + 7]) for i in range(0, 70, 7)),
    "function that returns a list": lambda: [X[:10], X[10:]],
}


@pytest.mark.parametrize("kind", ONE_INPUT)
def test_one_input(kind: str) -> None:
    np.testing.assert_array_equal(joined(one(), ONE_INPUT[kind])[0], X)


TWO_INPUTS: dict[str, Any] = {
    "list": [A, B],
    "tuple": (A, B),
    "list and labels": ([A, B], Y),
    "tuple and labels": ((A, B), Y),
    "dict": {"b": B, "a": A},
    "dict and labels": ({"b": B, "a": A}, Y),
    "dict with more than needed": {"b": B, "a": A, "id": Y},
    "tf.data of pairs": tf.data.Dataset.from_tensor_slices((A, B)).batch(32),
    "tf.data of pairs and labels": tf.data.Dataset.from_tensor_slices(((A, B), Y)).batch(32),
    "tf.data of dicts and labels": tf.data.Dataset.from_tensor_slices(({"b": B, "a": A}, Y)).batch(32),
    "PyDataset": Batches(([A, B], Y)),
    "generator function": lambda: iter([([A, B], Y)]),
}


@pytest.mark.parametrize("kind", TWO_INPUTS)
def test_two_inputs(kind: str) -> None:
    a, b = joined(two(), TWO_INPUTS[kind])
    np.testing.assert_array_equal(a, A)
    np.testing.assert_array_equal(b, B)


def test_dict_goes_by_the_models_keys() -> None:
    model = by_key()
    batch = next(batches_of(model, {"first": A, "second": B}))
    assert set(batch) == {"first", "second"}
    np.testing.assert_array_equal(batch["first"], A[:32])
    np.testing.assert_array_equal(batch["second"], B[:32])


def test_batches_are_small() -> None:
    assert [len(x) for x in batches_of(one(), X)] == [32, 32, 6]
    assert [len(x) for x in batches_of(one(), X, batch_size=50)] == [50, 20]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "bool", "float16", "float64", ml_dtypes.bfloat16])
def test_numbers_of_any_type_become_the_models(dtype: Any) -> None:
    values = np.arange(12).reshape(2, 3, 2).astype(dtype)
    batch = next(batches_of(one(), values))
    assert batch.dtype == tf.float32
    np.testing.assert_array_equal(batch, values.astype("float32"))


WRONG: dict[str, tuple[Any, str]] = {
    "channels": (X[:, :, :1], r"input 'x'.*expected samples of shape \(3, 2\). Received: samples of shape \(3, 1\)\."),
    "no batch axis": (lambda: [X[0]], r"of shape \(3, 2\). Received: one of them, no batch. Put a batch axis in front"),
    "unbatched dataset": (tf.data.Dataset.from_tensor_slices(X), r"dataset.batch\(32\)"),
    "text": (np.array([[["a"] * 2] * 3]), "expected numbers of type float32. Received: dtype <U1"),
    "objects": (np.full((4, 3, 2), None), "Received: dtype object"),
    "complex": (X.astype("complex64"), "Received: dtype complex64"),
    "NaN": (np.where(X == X[50, 0, 0], np.nan, X), "data, batch 1, input 'x': NaN or Inf"),
    "Inf": (np.where(X == X[0, 0, 0], np.inf, X), "data, batch 0, input 'x': NaN or Inf"),
    "too large for float32": (X.astype("float64") * 1e300, "NaN or Inf"),
    "labels of another length": (
        (X, np.zeros(50)),
        r"a tuple is \(samples, labels\), both of one length\. Received: 70 samples, 50",
    ),
    "None": (None, "expected samples .*Received: None"),
    "a path": ("images/", "expected samples .*Received: 'images/'"),
    "a number": (3.0, r"expected arrays \[samples, ...\]. Received: 3.0"),
    "another key": ({"y": X}, "no input 'x'. Received: y"),
    "too many inputs": (lambda: [[X, X]], r"expected 1 inputs \(x\). Received: 2"),
}


def test_samples_with_nan_are_named_by_their_number_in_the_data() -> None:
    x = X.copy()
    x[[3, 40, 41, 69]] = np.nan
    with pytest.raises(ValueError, match=r"batch 0, .*values of 1 of the 32 samples in this batch: 3 \(counted from 0"):
        list(batches_of(one(), x, batch_size=32))
    x[3] = 0.0
    for given in (x, tf.data.Dataset.from_tensor_slices(x).batch(32), lambda: (x[i : i + 32] for i in (0, 32, 64))):
        with pytest.raises(ValueError, match=r"batch 1, .*values of 2 of the 32 samples in this batch: 40, 41 \("):
            list(batches_of(one(), given, batch_size=32))
    kept = x[np.all(np.isfinite(x), axis=(1, 2))]  # "remove those samples"
    assert len(np.concatenate(list(batches_of(one(), kept)))) == 67


def test_floats_for_an_input_of_integers_are_told_what_to_do() -> None:
    model = keras.Sequential([keras.Input((3,), dtype="int32", name="ids"), keras.layers.Embedding(9, 2)])
    whole = np.arange(6.0, dtype="float32").reshape(2, 3)
    with pytest.raises(ValueError, match=r"dtype float32\. They are whole numbers: give x\.astype\('int32'\)"):
        list(batches_of(model, whole))
    assert next(batches_of(model, whole.astype("int32")))[0].dtype == tf.int32
    with pytest.raises(ValueError, match=r"0\.5 among them is no whole number: is this the input 'ids'"):
        list(batches_of(model, whole + 0.5))


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_data_is_refused(kind: str) -> None:
    data, message = WRONG[kind]
    with pytest.raises(ValueError, match=message):
        list(batches_of(one(), data))


def test_integer_inputs_refuse_floats() -> None:
    x = keras.Input((3,), dtype="int32", name="tokens")
    model = keras.Model(x, keras.layers.Embedding(5, 2)(x))
    with pytest.raises(ValueError, match="input 'tokens': expected numbers of type int32. Received: dtype float32"):
        next(batches_of(model, np.ones((2, 3), "float32")))
    assert next(batches_of(model, np.ones((2, 3), "int64"))).dtype == tf.int32


def test_inputs_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same number of samples. Received: \[10, 70\]"):
        next(batches_of(two(), [A[:10], B]))
    with pytest.raises(ValueError, match=r"batch 0: every input needs the same number of samples. Received: \[3, 4\]"):
        next(batches_of(two(), lambda: [[A[:3], B[:4]]]))


def test_missing_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 2 inputs \(a, b\). Received: 1"):
        next(batches_of(two(), lambda: [A]))
    with pytest.raises(ValueError, match="no input 'b'. Received: a"):
        next(batches_of(two(), {"a": A}))


def test_a_generator_itself_is_refused() -> None:
    """It would be exhausted when `export` wants samples; the function that makes it is not."""

    def generate() -> Iterator[np.ndarray]:
        yield X

    with pytest.raises(ValueError, match="run only once; pass the function that makes it"):
        next(batches_of(one(), generate()))
    assert len(list(batches_of(one(), generate))) == 1


@pytest.mark.parametrize("data", [[X[:9], X[9:]], (X, X, X, X)])
def test_a_list_of_batches_for_one_input_is_refused(data: Any) -> None:
    wanted = r"one array for the one input 'x'. Received: a list of . arrays, .*`lambda: iter\(batches\)`"
    with pytest.raises(ValueError, match=wanted):
        next(batches_of(one(), data))
    assert len(list(batches_of(one(), lambda: iter(data)))) == len(data)


def test_endless_data_are_refused_where_no_limit_is_given() -> None:
    repeated = tf.data.Dataset.from_tensor_slices(X).batch(8).repeat()
    with pytest.raises(ValueError, match="repeats forever; say how much of it to use, like limit=1000"):
        refuse_endless(repeated)
    refuse_endless(repeated.take(3))
    assert len(list(itertools.islice(batches_of(one(), repeated), 20))) == 20
