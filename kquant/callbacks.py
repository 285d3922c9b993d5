"""Keras callbacks: what encodings, masks and codebooks do while a model trains, for TensorBoard; bytes of its file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.core.checks import whole_budget
from kquant.core.messages import warn
from kquant.core.renamed import renamed
from kquant.correct.byte_search import check_target, coded_file, coded_form
from kquant.correct.code_bits import stored_bytes
from kquant.graph.keras_private import inner_layers
from kquant.layers.code_rate import AS_COUNTED
from kquant.layers.kernel import Holder, has_codes, holders
from kquant.layers.nodes import Compressed, FakeQuant, observing
from kquant.tflite.edges import IO
from kquant.train.distillation import Distiller

MOST_UNIQUE = 256  # distinct weights beyond which they are no codebook
BUCKETS = 30  # of a histogram, as many as TensorBoard makes
EVERY = 20  # steps after which `FlashBudget` counts bytes
AIM = 0.99  # of its budget: what the last steps move may take more
PACE, MOST = 5.0, 0.3  # logarithm of the price for that of the bytes, at each count, and how much it moves at most
# The same for what changed since the last count, so that the price falls again while bytes fall: weights take hundreds
# of steps to move, and a price that only sums up goes far beyond what holds the bytes, to and fro. What is over dies
# away in a tenth of the training at most; sooner behind a short way, in its time or a quarter of what has passed:
# training may end long before the epochs asked for. `LEAST`: without a sum the bytes stay beside what is wanted.
DAMP, SETTLING, PASSED, LEAST = 60.0, 0.1, 0.25, 1.0
# The price stays between these: where a budget can't be reached it would grow until the loss is no number, and where
# there is room it would fall until nothing raises it again.
CHEAPEST, DEAREST = 1e-8, 1e8
RISE = 0.25  # bits for a code towards the most frequent one, where nothing else moves codes


class Monitor(keras.callbacks.Callback):
    """Writes ranges, scales, sparsity and codebooks of every layer as TensorBoard scalars and histograms.

    Scalars, under the name of the layer: of an encoding `low`, `high`, `scale`, `zero_point` and, given `data`,
    `clipped`, the share of the tensor's values beyond its range; of a kernel as it is used (masked, shared, with its
    gain) `sparsity`, the share of zeros, and `unique`, the number of distinct values; of a quantized kernel also
    `scale_min`, `scale_max`, `clipped`, `zero_codes` and `unique_codes`. Histograms: `weights`, `scales` (one for
    each channel), and `codebook` where there are at most 256 distinct values.

    Args:
        folder: of the event file: `tensorboard --logdir` shows it; to write it takes no TensorBoard.
        every: steps of the optimizer between two records, or "epoch". What training ends with is always recorded.
        histograms: write histograms too.
        data: a batch of inputs, on which the share of clipped activations is counted, in float; None leaves it out.

    Raises:
        ValueError: `every` is neither "epoch" nor a number of steps; the model has nothing to record.

    Example:
        >>> import tempfile
        >>> q = kquant.quantize(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="out")]))
        >>> q.compile("sgd", "mse")
        >>> monitor = kquant.callbacks.Monitor(tempfile.mkdtemp(), data=np.ones((8, 4), "float32"))
        >>> history = q.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0, callbacks=[monitor])
        >>> sorted(name for name in monitor.scalars() if name.startswith("out_quant"))
        ['out_quant/clipped', 'out_quant/high', 'out_quant/low', 'out_quant/scale', 'out_quant/zero_point']
    """

    @renamed
    def __init__(
        self, folder: str | Path, every: int | str = "epoch", *, histograms: bool = True, data: Any = None
    ) -> None:
        super().__init__()
        if every != "epoch" and not (isinstance(every, int) and every > 0):
            raise ValueError(f"Monitor: every must be 'epoch' or a number of steps. Received: {every!r}.")
        self.folder, self.every, self.histograms, self.data = str(folder), every, histograms, data
        self.writer: Any = None
        self.step = 0
        self.written: int | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Open the file; steps go on from those of the optimizer, so that a resumed training goes on in the plot."""
        model: Any = self.model  # Keras has set it
        if not self._layers():
            raise ValueError(
                f"Monitor: {model.name} has no encodings, masks or codebooks. Fit what kquant.quantize, prune or "
                "cluster returned."
            )
        self.writer = tf.summary.create_file_writer(self.folder)
        self.step = int(model.optimizer.iterations)
        self.written = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Count the optimizer's steps, several at once with `steps_per_execution`; write where a record is due."""
        model: Any = self.model
        last, self.step = self.step, int(model.optimizer.iterations)
        if self.every != "epoch" and last // int(self.every) < self.step // int(self.every):
            self.write()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write, if records are by epoch."""
        if self.every == "epoch":
            self.write()

    def on_train_end(self, logs: Any = None) -> None:
        """Write the last state, and close the file."""
        if self.written != self.step:
            self.write()
        self.writer.close()

    def write(self) -> None:
        """Record what there is now, under the number of the step."""
        self.written = self.step
        with self.writer.as_default(step=self.step):
            for name, value in self.scalars().items():
                tf.summary.write(name, np.float32(value), metadata=_shown_by("scalars"))
            if self.histograms:
                for name, values in self.arrays().items():
                    tf.summary.write(name, _buckets(values), metadata=_shown_by("histograms"))
        self.writer.flush()

    def scalars(self) -> dict[str, float]:
        """What the scalars are now, by "layer/name"."""
        numbers = {}
        for layer in self._layers():
            rows = _of_encoding(layer) if isinstance(layer, FakeQuant) else _of_weights(layer)
            numbers |= {f"{layer.name}/{name}": float(value) for name, value in rows}
        return numbers | self._clipped()

    def arrays(self) -> dict[str, np.ndarray]:
        """What the histograms are made of now, by "layer/name"."""
        arrays = {}
        for layer in self._layers():
            for prefix, weights in _kernels(layer).items():
                arrays[f"{layer.name}/{prefix}weights"] = weights
                values = np.unique(weights)
                if values.size <= MOST_UNIQUE:
                    arrays[f"{layer.name}/{prefix}codebook"] = values
            if _has_codes(layer):
                arrays[f"{layer.name}/scales"] = layer.scale_of(layer.weights_as_used()).numpy()
        return arrays

    def _layers(self) -> list[keras.layers.Layer]:
        model = self._model_of_interest()
        return [
            layer
            for layer in inner_layers(model)
            if (isinstance(layer, FakeQuant) and layer.has_range) or isinstance(layer, Holder)
        ]

    def _model_of_interest(self) -> keras.Model:
        """A teacher does not change."""
        return self.model.student if isinstance(self.model, Distiller) else self.model

    def _clipped(self) -> dict[str, float]:
        """For each encoding, the share of values of the samples that its range cuts off by more than rounding does."""
        if self.data is None:
            return {}
        counts: dict[str, np.ndarray] = {}

        def count(layer: FakeQuant, site: int, y: tf.Tensor) -> None:
            if layer.has_range:
                scale, zero_point, seen = layer.grid()
                codes = tf.cast(y, tf.float32) / scale + zero_point
                beyond = tf.logical_or(codes < layer.spec.low - 0.5, codes > layer.spec.high + 0.5)
                row = [int(tf.math.count_nonzero(tf.logical_and(beyond, seen))), int(tf.size(y))]
                counts[layer.name] = counts.get(layer.name, np.zeros(2)) + row

        with observing(count):
            self._model_of_interest()(self.data, training=False)
        return {f"{name}/clipped": beyond / size for name, (beyond, size) in counts.items()}


def _shown_by(plugin: str) -> bytes:
    """What tells TensorBoard how to show a tensor. Its own `tf.summary.scalar` writes the same, if it is installed."""
    kind = tf.compat.v1.SummaryMetadata
    shown = kind(plugin_data=kind.PluginData(plugin_name=plugin))
    shown.data_class = 1 if plugin == "scalars" else 2  # DATA_CLASS_SCALAR, DATA_CLASS_TENSOR of summary.proto
    return shown.SerializeToString()


def _buckets(values: np.ndarray) -> np.ndarray:
    """Left end, right end and number of values of each bucket, as TensorBoard stores them: float64[BUCKETS, 3]."""
    counts, edges = np.histogram(np.asarray(values, np.float64), bins=BUCKETS)
    return np.stack([edges[:-1], edges[1:], counts], axis=1)


def _kernels(layer: keras.layers.Layer) -> dict[str, np.ndarray]:
    """Kernels as they are used, by a prefix of their names: none for a layer of one kernel, else its path."""
    held = layer.kernels() if isinstance(layer, Holder) else ()
    return {"" if layer.channel_axes is not None else f"{k.path}/": k.used.numpy() for k in held}


def _has_codes(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, Compressed) and layer.spec is not None and layer.spec.has_codes


def _of_encoding(layer: FakeQuant) -> Iterator[tuple[str, float]]:
    scale, zero_point, seen = (float(value) for value in layer.grid())
    if seen:  # before the first batch there is none
        yield "low", (layer.spec.low - zero_point) * scale
        yield "high", (layer.spec.high - zero_point) * scale
        yield "scale", scale
        yield "zero_point", zero_point


def _of_weights(layer: keras.layers.Layer) -> Iterator[tuple[str, float]]:
    for prefix, weights in _kernels(layer).items():
        yield f"{prefix}sparsity", float(np.mean(weights == 0.0))
        yield f"{prefix}unique", np.unique(weights).size
    if _has_codes(layer):
        codes, scale = (value.numpy() for value in layer.codes(tf.constant(1.0))[:2])
        yield "scale_min", scale.min()
        yield "scale_max", scale.max()
        yield "clipped", np.mean(np.abs(layer.weights_as_used().numpy() / scale) > layer.spec.high + 0.5)
        yield "zero_codes", np.mean(codes == 0.0)
        yield "unique_codes", np.unique(codes).size


class FlashBudget(keras.callbacks.Callback):
    """Brings the file of a model that trains to so many bytes, and holds it there.

    The layers' codes have a price (`[training] entropy` of the recipe, `kquant.layers.code_rate`), which is loss for a
    KiB. Every 20 steps this counts the bytes that the file would have with `compression="auto"`, and raises the price
    where it is too large, or lowers it:

        log price  +=  clip(k over + d (over - over at the last count), -0.3, 0.3),   over = log(bytes / wanted)

    with k from 1 to 5, d at most 60, and d / k the counts in which what is over dies away: those of `steps`, then a
    quarter of what has passed since training began, and never more than a tenth of what `fit` is asked for from
    `initial_epoch` on. The price becomes calmer the longer training lasts; one of 1,000 epochs may stop early. With
    `steps=0` it is that tenth from the start, so ask for no more epochs than will run, or 12 counts and more where data
    have no length. `wanted` goes from the bytes at the start, evenly in their logarithm, to 0.99 flash_bytes after
    `steps`. One price for all layers: bytes go where the loss minds least. Where the way has ended and the file is
    larger than wanted, no price alone moves codes that lie in heaps of their own, as those of masked kernels do: until
    it is small enough, weights are drawn to the most frequent code over rare ones too (`rise` of
    `kquant.layers.code_rate`). Start from codes that `kquant.shorten_codes` chose for about as many bytes: on int8's
    fine grid codes have too many neighbours that are as rare as they.

    The price is a variable of the layers, so it is saved with the model; a training that goes on from a checkpoint
    takes the way from the bytes it finds.

    Args:
        flash_bytes: of the file.
        steps: of training, over which the bytes come down; give at least as many after them, at a falling rate.
        strip_names: the file has no names, see `kquant.export`.
        io: type of its inputs and outputs, likewise.
        decode_budget: bytes by which decoding may make its arena larger, likewise.

    Attributes:
        file_bytes: of the file when training ended.

    Raises:
        ValueError: an option out of range; when training begins: codes without a price, a target that decodes none.

    Warns:
        UserWarning: the file is larger when training ended; with the bytes that are no codes, which no price removes.

    Example:
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(128)])
        >>> x = np.random.default_rng(0).normal(size=(256, 64)).astype("float32")
        >>> recipe = {"name": "coded", "training": {"ranges": "learned", "entropy": 0.01}}
        >>> q = kquant.calibrate(kquant.quantize(model, recipe, target="tflm"), x, verbose=False)
        >>> q = kquant.shorten_codes(q, x, flash_bytes=6000, verbose=False)
        >>> q.compile("adam", "mse")
        >>> budget = kquant.callbacks.FlashBudget(5800, steps=40)
        >>> history = q.fit(x, model.predict(x, verbose=0), epochs=10, verbose=0, callbacks=[budget])
        >>> sorted(history.history)
        ['file_bytes', 'loss']
    """

    def __init__(
        self,
        flash_bytes: int,
        steps: int,
        *,
        strip_names: bool = False,
        io: IO = "model",
        decode_budget: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ValueError(f"FlashBudget: steps must be a whole number, 0 or more. Received: {steps!r}.")
        self.flash_bytes = whole_budget("FlashBudget", "flash_bytes", flash_bytes)
        self.steps, self.strip_names = steps, strip_names
        self._form = coded_form("FlashBudget", io, decode_budget, strip_names)
        self.file_bytes = 0
        self._begin = self._step = self._first = self._rest = 0
        self._over, self._asked = 0.0, np.inf

    def on_train_begin(self, logs: Any = None) -> None:
        """Count the file, and what in it is not codes."""
        model: Any = self.model  # Keras has set it
        check_target(self._trained(), "FlashBudget", instead="")
        if not self._prices():
            raise ValueError(
                f"FlashBudget: the codes of {self._trained().name} have no price. Quantize it with one: a recipe with "
                "training = { entropy = 0.01 }."
            )
        self._rise(AS_COUNTED)  # as of a model that was saved while it trained
        self._begin = self._step = int(model.optimizer.iterations)
        self._first = len(coded_file(self._trained(), self._form))
        self._rest = self._first - self._codes()
        self._over = 0.0
        self._asked = self._counts_asked(first=0)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Only now it is known with which epoch training begins."""
        if self._step == self._begin:
            self._asked = self._counts_asked(first=epoch)

    def _counts_asked(self, first: int) -> float:
        """How often `fit` is to count from this epoch on; infinite where data have no length."""
        asked: Any = self.params or {}  # Keras sets them
        steps = max(0, (asked.get("epochs") or 0) - first) * (asked.get("steps") or 0)
        return steps / EVERY if steps else np.inf

    def _damping(self) -> tuple[float, float]:
        """What `over` and its change are multiplied by at this count."""
        longest = SETTLING * self._asked
        known = DAMP / PACE if np.isinf(longest) else longest
        way = self.steps / EVERY if self.steps else known
        settling = min(longest, max(way, PASSED * (self._step - self._begin) / EVERY))
        damp = min(DAMP, PACE * settling)
        return max(LEAST, damp / settling), damp

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Move the price where its turn has come."""
        model: Any = self.model
        last, self._step = self._step, int(model.optimizer.iterations)
        if last // EVERY == self._step // EVERY:
            return
        done = min(1.0, (self._step - self._begin) / max(self.steps, 1))
        wanted = (1.0 - done) * np.log(self._first) + done * np.log(AIM * self.flash_bytes)
        over = float(np.log(self._rest + self._codes()) - wanted)
        pace, damp = self._damping()
        change = pace * over + damp * (over - self._over)
        self._over = over
        for price in self._prices():
            moved = float(price) * np.exp(np.clip(change, -MOST, MOST))
            price.assign(np.clip(moved, CHEAPEST, DEAREST))
        self._rise(RISE if done == 1.0 and over > 0.0 else AS_COUNTED)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Count the whole file again, and tell of it as `file_bytes` of the epoch."""
        self.file_bytes = len(coded_file(self._trained(), self._form))
        self._rest = self.file_bytes - self._codes()
        if logs is not None:
            logs["file_bytes"] = self.file_bytes

    def on_train_end(self, logs: Any = None) -> None:
        """Warn where the budget does not hold; a training without it has the slopes of the histogram again."""
        self._rise(AS_COUNTED)
        self.file_bytes = len(coded_file(self._trained(), self._form))
        rest = self.file_bytes - self._codes()
        longer = (
            f"Train longer behind the {self.steps:,} steps in which they come down, or start from fewer: "
            "kquant.shorten_codes(qmodel, data, flash_bytes=...)."
        )
        larger = "No training removes those: give it more bytes; `kquant bytes FILE` tells what they are."
        if self.file_bytes > self.flash_bytes:
            warn(
                f"FlashBudget: the file has {self.file_bytes:,} bytes, flash_bytes={self.flash_bytes:,}. {rest:,} of "
                f"them are no codes of weights. {longer if rest < self.flash_bytes else larger}"
            )

    def _trained(self) -> keras.Model:
        """A teacher does not change."""
        return self.model.student if isinstance(self.model, Distiller) else self.model

    def _learners(self) -> list[Any]:
        learners = [getattr(holder, "learner", None) for holder in holders(self._trained())]
        return [learner for learner in learners if learner is not None and learner.price is not None]

    def _rise(self, bits: float) -> None:
        for learner in self._learners():
            learner.rise.assign(bits)

    def _prices(self) -> list[Any]:
        return [learner.price for learner in self._learners()]

    def _codes(self) -> int:
        """Bytes of all codes, each tensor in the smaller of Huffman codes and as it is."""
        kernels = [kernel for holder in holders(self._trained()) if has_codes(holder) for kernel in holder.kernels()]
        return sum(stored_bytes(np.rint(kernel.rows_on_grid / np.asarray(kernel.scale)).ravel()) for kernel in kernels)
