"""`predict` and `evaluate` by XLA, where they run so often that compiling pays.

    whole      networks without convolutions and Embedding: recurrent layers, attention, Dense
    between    convolutions, without recurrent layers and Embedding: what is `joined` (`core/joined.py`), no more
    when       `MANY` batches of a verb in all, with variables as they are now; the call that reaches it counts.
               Between convolutions each size of a batch by itself, `FULL` numbers of a mean tensor for one batch
    data       arrays, and a `tf.data.Dataset` whose samples have a shape that is known
    else       Keras' own graph: other data, callbacks, a strategy, `run_eagerly`, `jit_compile=False` in `compile`

A step of a recurrent layer is a hundred small operations, and TensorFlow takes a few microseconds to start each; XLA
makes few of them. Behind a convolution they are few and long, passes over a tensor, of which XLA makes one; of short
ones (`FEW`) nothing is gained. To compile takes it about as long as it saves in `MANY` batches. The codes are the same.
Where XLA refuses a model, or has no memory for it, its graph runs as before. Compiled is what the layers compute;
losses and metrics, which may be anybody's, stay in Keras' graph around it, and are those of the batches that were asked
for.

`predict` makes the batches of arrays larger where samples, and all that is computed of them, are small (`SAMPLES`,
`NUMBERS`): what a batch costs beside its samples is then paid less often, and no result depends on it. So does
`evaluate` of a network that is compiled as a whole, which judges what comes in the batches that were asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.core.joined import count
from kquant.graph.in_batches import DEFAULT_BATCH, Ahead, rows_of, size_of
from kquant.graph.keras_private import every_layer, losses_of_calls, mask_of, recorded_calls

MANY = 256
FULL = 2**18  # numbers of the mean tensor between layers in what counts as a batch where there are convolutions
FEW = 2**17  # with less than so many in a batch XLA is no faster there
AS_WHOLE = 16  # functions between convolutions have what XLA keeps of one network that it compiles as a whole
SAMPLES = 256  # of a batch that is made larger
NUMBERS = 2**20  # at most so many in the largest tensor of such a batch
POWERS = np.array([2**n for n in range(31)], np.int32)
CONVOLUTIONS = tuple(getattr(keras.layers, name) for name in dir(keras.layers) if "Conv" in name)
# TensorFlow's graph refuses an index beyond the table; XLA takes the last row, and nobody hears of it.
LEFT_TO_GRAPHS = (*CONVOLUTIONS, keras.layers.Embedding)


@dataclass(frozen=True)
class Compiled:
    """What a verb of a model has run so far, and its function by XLA.

    Attributes:
        digest: of the variables.
        batches: with these variables, of each `Work.size`.
        function: of Keras, around a `compiled_call`, once it is made.
        beside: Keras' function without XLA. Who lets go of that one, as `compile` and corrections do, means both.
        refused: XLA takes the model not.
        functions: that it compiles, for each size.
        sizes: that it has compiled.
    """

    digest: bytes = b""
    batches: Mapping[int, float] = field(default_factory=dict[int, float])
    function: Any = None
    beside: Any = None
    refused: bool = False
    functions: int = 0
    sizes: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Work:
    """What a call has to run.

    Attributes:
        batches: how many; None where only the end of a dataset tells.
        size: of each, where each is compiled by itself; else 0.
        each: as how many of `MANY` one counts; 0 where XLA is no faster.
    """

    batches: int | None
    size: int = 0
    each: float = 1.0


def batches_of(x: Any, batch_size: int | None, steps: int | None = None) -> int | None:
    """How many batches data are.

    Args:
        x: arrays, a row for each sample, or a dataset of batches.
        batch_size: of arrays.
        steps: at most so many batches of a dataset.

    Returns:
        0 of data that stay with Keras' graph; None where a dataset does not know its length.

    Example:
        >>> batches_of(np.zeros((70, 3)), 32), batches_of(tf.data.Dataset.range(9).batch(4).repeat(), None, 5)
        (3, 5)
    """
    if isinstance(x, tf.data.Dataset):
        return _batches_of_dataset(x, steps)
    rows = rows_of(x) if steps is None else 0
    return rows and math.ceil(rows / size_of("predict", batch_size))


def _batches_of_dataset(data: tf.data.Dataset, steps: int | None) -> int | None:
    specs = keras.tree.flatten(keras.utils.unpack_x_y_sample_weight(data.element_spec)[0])
    # XLA compiles each shape anew, so that samples of many lengths would wait for it many times
    if not all(isinstance(s, tf.TensorSpec) and s.shape.rank and s.shape[1:].is_fully_defined() for s in specs):
        return 0
    length = int(data.cardinality())
    if length == tf.data.UNKNOWN_CARDINALITY:
        return steps
    if length == tf.data.INFINITE_CARDINALITY:
        return steps or 0
    return length if steps is None else min(length, steps)


class Counting(keras.callbacks.Callback):
    """How many batches there were, of data that do not know it beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        """`batch` is the number of the last one, from 0 on."""
        self.batches = batch + 1

    def on_predict_batch_end(self, batch: int, logs: Any = None) -> None:
        """Likewise."""
        self.batches = batch + 1


class Way(Enum):
    """What of a network XLA compiles."""

    NOTHING = 0
    BETWEEN = 1  # convolutions: what is `joined`
    WHOLE = 2


def way_of(model: keras.Model) -> Way:
    """What of a model XLA makes faster that Keras itself does not compile by it."""
    if model.jit_compile or model.run_eagerly:
        return Way.NOTHING
    layers = every_layer(model)
    if not any(isinstance(layer, LEFT_TO_GRAPHS) for layer in layers):
        return Way.WHOLE
    # a call by XLA at each step of a loop costs more than it saves
    stays = any(isinstance(layer, keras.layers.Embedding) or getattr(layer, "by_steps", False) for layer in layers)
    return Way.NOTHING if stays else Way.BETWEEN


def work_of(model: keras.Model, x: Any, batch_size: int | None, steps: int | None, *, grows: bool) -> Work:
    """What a call has to run, and by which batches XLA would.

    Args:
        model: a Functional one.
        x: arrays, or a dataset.
        batch_size: that was asked for.
        steps: likewise.
        grows: batches of arrays may be larger, and what is left behind the full ones is left to a graph.
    """
    batches = batches_of(x, batch_size, steps)
    if batches == 0 or way_of(model) is not Way.BETWEEN:
        return Work(batches)
    if isinstance(x, tf.data.Dataset):
        x = keras.utils.unpack_x_y_sample_weight(x.element_spec)[0]
        size = keras.tree.flatten(x)[0].shape[0] or DEFAULT_BATCH
        tensors = numbers_of(model, x)
    else:
        rows, tensors = rows_of(x), numbers_of(model, x)
        size = min(size_of("predict", batch_size), rows)
        if grows:
            size = full_batch_for(rows, batch_size, max(tensors))
            batches = rows // size
    numbers = size * sum(tensors) / len(tensors)
    return Work(batches, size, numbers / FULL if numbers >= FEW else 0.0)


def counted(known: Compiled, digest: bytes, work: Work, beside: Any) -> Compiled:
    """What is known once a call is there.

    Args:
        known: before.
        digest: of the variables.
        work: of the call.
        beside: Keras' function without XLA now.
    """
    before = known.batches if known.digest == digest else {}
    batches = {**before, work.size: before.get(work.size, 0.0) + (work.batches or 0) * work.each}
    if known.digest != digest:
        return Compiled(digest, batches, refused=known.refused)
    if known.beside is not beside:
        return Compiled(digest, batches, beside=beside, refused=known.refused)
    return replace(known, batches=batches)


def after(known: Compiled, work: Work, function: Any, made: int) -> Compiled:
    """What is known once a call has run by XLA. The process counts what that compiled, where `joined` has not.

    Args:
        known: before.
        work: of the call.
        function: of Keras.
        made: functions that `joined` made for it.
    """
    functions = known.functions or made or AS_WHOLE
    if work.size not in known.sizes and (known.function is not None or not made):
        count(functions)
    return replace(known, function=function, functions=functions, sizes=known.sizes | {work.size})


def numbers_of(model: keras.Model, x: Any) -> list[int]:
    """Numbers in each tensor that a model computes of one sample; an unknown length is the longest of the data.

    Args:
        model: a Functional one, as every quantized model is.
        x: arrays, a row for each sample.
    """
    inputs = [tuple(a.shape[1:]) for a in keras.tree.flatten(x)]
    longest = max((n for shape in inputs for n in shape), default=1)
    made = [tuple(t.shape[1:]) for call in recorded_calls(model) for t in call.outputs if len(t.shape) > 1]
    return [math.prod(longest if n is None else n for n in shape) for shape in (*inputs, *made)]


def largest(model: keras.Model, x: Any) -> int:
    """Numbers in the largest tensor that a model computes of one sample; an unknown length is the longest of the data.

    Args:
        model: a Functional one, as every quantized model is.
        x: arrays, a row for each sample.

    Example:
        >>> inputs = keras.Input((None, 4))
        >>> largest(keras.Model(inputs, keras.layers.Dense(8)(inputs)), np.zeros((2, 100, 4)))
        800
    """
    return max(numbers_of(model, x))


def batch_for(count: int, batch_size: int | None, of_sample: int) -> int:
    """The size of batches by XLA: what was asked for, times a power of two.

    Args:
        count: of samples.
        batch_size: that was asked for.
        of_sample: numbers in the largest tensor of one.

    Example:
        >>> batch_for(70, 32, 1), batch_for(128, 16, 64000), batch_for(4096, 64, 512)
        (128, 16, 256)
    """
    size = size_of("predict", batch_size)
    while size * 2 <= SAMPLES and size * 2 * of_sample <= NUMBERS and size < count:
        size *= 2
    return size


def full_batch_for(count: int, batch_size: int | None, of_sample: int) -> int:
    """Likewise where each size is compiled by itself: a power of two, few in all, that the samples fill.

    Example:
        >>> full_batch_for(70, 32, 1), full_batch_for(1000, 100, 1), full_batch_for(4096, 64, 2**15)
        (64, 256, 64)
    """
    most = min(count, max(size_of("predict", batch_size), min(SAMPLES, NUMBERS // max(of_sample, 1))))
    return 1 << most.bit_length() - 1


def try_on_zeros(model: keras.Model, data: tf.data.Dataset, *, whole: bool = True) -> None:
    """Call a model in a graph, on zeros in the shape of a batch: what it raises, it raises before a batch is read.

    Who reads a dataset a second time need not get what he got the first time.

    Args:
        model: with a `compiled_call`.
        data: of which `batches_of` said that it is one for XLA.
        whole: as of the call; else it is traced, no more.
    """
    specs = keras.utils.unpack_x_y_sample_weight(data.element_spec)[0]
    rows = next(iter(keras.tree.flatten(specs))).shape[0] or DEFAULT_BATCH
    zeros = keras.tree.map_structure(lambda spec: tf.zeros((rows, *spec.shape[1:]), spec.dtype), specs)
    like = keras.tree.map_structure(lambda spec: tf.TensorSpec(spec.shape, spec.dtype), specs)
    called = tf.function(lambda x: model(x, training=False), input_signature=[like], autograph=False)
    if whole:
        called(zeros)
        return
    called.get_concrete_function()  # what is joined is arithmetic of kquant's own, which XLA takes


def compiled_call(model: keras.Model, *, judged: bool = False, whole: bool = True) -> Callable[..., Any]:
    """`model.call` in inference, by XLA, for a `call` in its place.

    XLA compiles each size of a batch anew. So a batch is filled up, by its last sample, and what comes of that is
    dropped: few sizes to compile. As a whole to the next power of two, never twice as much to compute; where
    convolutions, which take most of the time, gain nothing, to the next of the eight sizes between two such powers.

    Args:
        model: a Functional one.
        judged: Keras computes a loss beside it, with what layers add to that and with the masks of outputs.
        whole: compile all of it, not only what is `joined`.

    Returns:
        Takes what `model.call` takes, in a graph; in training it is that one.

    Raises:
        tf.errors.UnimplementedError: by the trace, where it is judged and there is one of both, which does not pass
            through the function.

    Example:
        >>> inputs = keras.Input((2,))
        >>> call = compiled_call(keras.Model(inputs, keras.layers.Rescaling(2.0)(inputs)))
        >>> run = tf.function(call)
        >>> [run(tf.ones((rows, 2))).shape.as_list() for rows in (3, 2)]
        [[3, 2], [2, 2]]
    """

    @tf.function(jit_compile=whole, autograph=False)
    def by_xla(inputs: Any) -> Any:
        outputs = model.call(inputs, training=False)
        if judged and (losses_of_calls(model) or any(mask_of(y) is not None for y in keras.tree.flatten(outputs))):
            raise tf.errors.UnimplementedError(None, None, f"{model.name}: losses of calls, or masks of outputs")
        return outputs

    def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("training") or any(a is True for a in args[:1]):
            return model.call(inputs, *args, **kwargs)
        first = keras.tree.flatten(inputs)[0]
        rows = tf.shape(first)[0]
        size = tf.gather(POWERS, tf.searchsorted(POWERS, [rows])[0])  # the first that is not smaller
        if not whole:
            step = tf.maximum(size // 16, 1)
            size = -(-rows // step) * step
        places = tf.minimum(tf.range(size), rows - 1)

        def filled(x: tf.Tensor) -> tf.Tensor:
            return tf.cond(size == rows, lambda: tf.identity(x), lambda: tf.gather(x, places))

        outputs = by_xla(keras.tree.map_structure(filled, inputs))
        known = first.shape[:1]  # a loss may ask for it
        return keras.tree.map_structure(lambda y: tf.ensure_shape(y[:rows], known.concatenate(y.shape[1:])), outputs)

    return call


# which a class of somebody's own may have otherwise, and call the model in them as often as it likes
STEPS = ("test_step", "compute_metrics", "compute_loss", "_compute_loss", "__call__")


def judging_ahead(model: keras.Model) -> Callable[[Any], Any]:
    """`model.test_step`, which takes `Ahead`, too: outputs of several batches at once, then each is judged by itself.

    Losses and metrics are those of the batches, in their order. Keras' own step calls the model once, of the samples.

    Args:
        model: whose `call` is to compute the outputs; for each batch, while this is traced, it is one that gives them.

    Example:
        >>> inputs = keras.Input((2,))
        >>> model = keras.Model(inputs, keras.layers.Rescaling(2.0)(inputs))
        >>> model.compile(loss="mse")
        >>> run = tf.function(judging_ahead(model))
        >>> float(run(Ahead(tf.constant(2), (tf.ones((3, 2)), tf.zeros((3, 2)))))["loss"])
        4.0
    """
    step, parts = model.test_step, keras.utils.unpack_x_y_sample_weight

    def test_step(given: Any) -> Any:
        if not isinstance(given, Ahead):
            return step(given)
        x = parts(given.data)[0]
        outputs, rows = model(x, training=False), tf.shape(keras.tree.flatten(x)[0])[0]
        before = model.__dict__.get("call")

        def judged(begin: tf.Tensor) -> tf.Tensor:
            def cut(arrays: Any) -> Any:
                return keras.tree.map_structure(lambda a: a[begin : begin + given.size], arrays)

            model.__dict__["call"] = lambda *_, **__: cut(outputs)
            step(cut(given.data))
            return begin + given.size

        try:
            tf.while_loop(lambda begin: begin < rows, judged, [tf.constant(0)], parallel_iterations=1)
        finally:
            if before is None:
                del model.__dict__["call"]
            else:
                model.__dict__["call"] = before
        return model.get_metrics_result()

    return test_step


def may_judge_ahead(model: keras.Model) -> bool:
    """True where a step of `evaluate` is Keras': it calls the model once, of the samples, and updates metrics."""
    return all(is_of_keras(model, name) for name in STEPS)


def is_of_keras(model: keras.Model, name: str) -> bool:
    """True where a method is neither of the model's own nor of its class.

    Example:
        >>> class Own(keras.Model):
        ...     def compute_loss(self, *args, **kwargs): ...
        >>> is_of_keras(Own(), "compute_loss"), is_of_keras(Own(), "test_step")
        (False, True)
    """
    return name not in vars(model) and getattr(type(model), name, None) is getattr(keras.Model, name, None)
