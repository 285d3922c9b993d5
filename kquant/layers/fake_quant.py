"""`FakeQuant`: quantize and dequantize a tensor. The picture is in `layers.nodes`."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kquant import arithmetic
from kquant.core.beforehand import beforehand, in_constants
from kquant.core.spec import QuantSpec
from kquant.graph.keras_private import own_states
from kquant.graph.step_mask import is_other
from kquant.layers import range_learner
from kquant.layers.carried import carried, carry, float_like, retyped
from kquant.layers.conversion import refuse_conversion
from kquant.layers.integers import Origin, read, steps_of
from kquant.layers.learned_ranges import replaced
from kquant.layers.modes import is_bare, is_float, is_simulating, show
from kquant.layers.provenance import Provenance
from kquant.layers.range_numbers import Numbers, averaged, encoded, numbers_of
from kquant.layers.range_steps import Ends
from kquant.layers.replicas import extremes
from kquant.layers.straight_through import ends_of_kernel, rounded_through, steps_through
from kquant.layers.zeros import zeros
from kquant.recipe.training_section import Training

SETTLED = 17.0  # exp(-17) is below float32's last place: from here on nothing is left to unbias
MOST_BATCHES = 2.0**20  # float32 counts on from here
RANGE, STAYING = 3, 2  # variables of any range, and those beside of one that stays


class Ahead(NamedTuple):
    """What a call does, see `FakeQuant.ahead`: the encoding that it tells, and its values; None: those of the codes.

    `sums`: of `range_learner.InSteps`, where the range learns.
    """

    encoding: tf.Tensor
    values: Callable[..., tf.Tensor] | None
    sums: tf.Tensor | None = None


@keras.saving.register_keras_serializable(package="kquant")
class FakeQuant(keras.layers.Layer):
    """Quantize and dequantize a tensor; one layer is one encoding.

    A layer called at several `site`s gives them one encoding, which covers all their ranges (concatenations).

    Args:
        spec: `QuantSpec` of the codes, as its config.
        sites: number of calls that share the encoding.
        fixed: (scale, zero point) that the kernel prescribes, or None for a range.
        follows: the encoding is that of the first source (average pooling).
        momentum: of the moving ranges in training (Adam's zero debias).
        freeze_after: training steps after which ranges stay; None: they keep moving.
        learning: what the recipe's `[training]` asks for beside moving ranges (`Training.for_tensors`).
        observer: name of the function that calibration sets the range with.
        span: (lowest, highest) that a calibrated range holds in any case: rows of a table that no sample looks up.
        origin: how this model was made, as its config: recipe, target.
        ports: inputs of the model that it quantizes -> (lowest, highest, layer), what the first layer of the float
            model takes there, where that tells; else None.
        padding: number of a call -> what every feature of a masked step holds there, which nobody reads: its range is
            that of the other steps, and leaves a code to those where the value lies beyond.
        unclipped: the ReLU before has lost the maximum with which it was fused (`kquant.equalize`).
    """

    def __init__(
        self,
        spec: dict[str, Any],
        sites: int = 1,
        fixed: Sequence[float] | None = None,
        follows: bool = False,
        momentum: float = 0.99,
        freeze_after: int | None = None,
        learning: dict[str, Any] | None = None,
        observer: str = "minmax",
        span: Sequence[float] | None = None,
        origin: dict[str, str] | None = None,
        ports: dict[str, Any] | None = None,
        padding: dict[str, float] | None = None,
        unclipped: bool = False,
        **kwargs: Any,
    ) -> None:
        # Keras would cast what is floating to the compute dtype of a mixed policy: encodings have to stay float32.
        super().__init__(autocast=False, **{k: v for k, v in kwargs.items() if k != "autocast"})
        self.spec = QuantSpec(**spec)
        self.sites = sites
        self.fixed = None if fixed is None else (float(fixed[0]), int(fixed[1]))
        self.follows = follows
        self.momentum = momentum
        self.freeze_after = freeze_after
        self.learning = Training(**(learning or {}))
        self.observer = observer
        self.span = None if span is None else (float(span[0]), float(span[1]))
        self.origin = Provenance.read(origin)
        self.ports = dict(ports or {})
        self.padding = dict(padding or {})
        self.unclipped = unclipped
        self.runtime = self.origin.load_target().rounding  # whose rounding inference follows
        self.supports_masking = True
        if self.has_range:
            begin = {"shape": (sites,), "initializer": zeros, "trainable": False, "dtype": "float32"}
            begin["aggregation"] = "only_first_replica"  # all replicas compute the same value (`extremes`)
            self.low = self.add_weight(name="low", autocast=False, **begin)
            self.high = self.add_weight(name="high", autocast=False, **begin)
            self.count = self.add_weight(name="count", autocast=False, **begin)
            if self.stays:  # batches that calibration counted: they are no training steps
                self.calibrated = self.add_weight(name="calibrated", autocast=False, **begin)
                self.waking = self.add_weight(name="waking", autocast=False, **{**begin, "shape": (2,)})
            if self.learning.learns_tensors:
                # What the optimizer steps on; the ends themselves are `low` and `high` (`learned_ranges`).
                pending = {**begin, "shape": (2,), "trainable": True, "aggregation": "mean"}
                self.stretch = self.add_weight(name="stretch", autocast=False, **pending)
        self.built = True

    @property
    def has_range(self) -> bool:
        """True where the encoding comes from data."""
        return self.fixed is None and not self.follows

    @property
    def stays(self) -> bool:
        """True where the range is not a moving one from the first to the last step of training."""
        return self.freeze_after is not None or self.learning != Training()

    def build(self, *_: Any, **__: Any) -> None:
        """Nothing to do: the variables do not depend on shapes."""

    def load_own_variables(self, store: Any) -> None:
        """Keras', which numbers variables; files of before a range learned (in loops) have the first ones alone."""
        held: list[Any] = own_states(self)
        known = len(store.keys())
        if known not in (RANGE, RANGE + STAYING) or known >= len(self.variables):
            super().load_own_variables(store)
            return
        for number, variable in enumerate(held[:known]):
            variable.assign(store[str(number)])

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """The mask of the tensor; encodings have none."""
        return None if previous_mask is None else [previous_mask, None]

    def compute_output_spec(self, y: keras.KerasTensor, **_: Any) -> list[keras.KerasTensor]:
        """The tensor as it came, and its encoding."""
        return [keras.KerasTensor(y.shape, float_like(y)), keras.KerasTensor((2,), "float32")]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras calls a layer, without what it does around `call` where that has nothing to do."""
        return self.call(*args, **kwargs) if is_bare(args) else super().__call__(*args, **kwargs)

    def call(
        self,
        y: tf.Tensor,
        sources: Sequence[tf.Tensor] = (),
        encodings: Sequence[tf.Tensor] = (),
        accumulator: tf.Tensor | None = None,
        kernel: str | None = None,
        attributes: dict[str, Any] | None = None,
        sums: tf.Tensor | None = None,
        source_bits: Sequence[int] = (),
        site: int = 0,
        peek: bool = False,
        training: bool = False,
    ) -> list[tf.Tensor]:
        """Quantize `y`.

        Args:
            y: float[...], what the layer before made.
            sources: the inputs of that layer, where the kernel's rounding needs their codes.
            encodings: float32[2] of each source.
            accumulator: scale of the int32 sums behind `y`: float64[channels] or like `y`.
            kernel: TFLite operator whose arithmetic makes the codes; None rounds to nearest.
            attributes: of the kernel.
            sums: the integers behind `y`, float64, where float32 cannot hold them (16-bit activations).
            source_bits: width of each source's codes, 8 by default.
            site: number of this call among those that share the encoding.
            peek: only tell the encoding; `y` passes as it is.
            training: straight-through with moving ranges.

        Returns:
            `[float[...], float32[2]]`: values on the grid, and (scale, zero point).
        """
        # A layer that peeks passes its input; the tensor that the range is of comes in a call of its own.
        if not peek:
            show(self, site, y)
        if is_float(self):
            return [tf.cast(y, float_like(y)), zeros((2,))]
        # Under a mixed policy too: ranges and codes are taken in float32, as the device has its scales.
        real = tf.cast(y, tf.float32)
        if peek:
            return [real, self._peeked(encodings, training)]
        if training:
            from_zero = arithmetic.starts_at_zero((attributes or {}).get("activation"))
            values, encoding = self._in_training(real, encodings, site, from_zero)
        elif is_simulating() or not self.spec.has_codes:
            values, encoding = self._rounded(real, encodings)
        else:
            if self.unclipped and attributes:  # fused, or of the RELU that stands alone
                open_ended = {"activation": "RELU", "maximum": None}
                attributes = {name: open_ended.get(name, value) for name, value in attributes.items()}
            origin = Origin(kernel, attributes, sources, encodings, source_bits, accumulator, sums)
            values, encoding = self._in_integers(real, origin)
        return [retyped(values, float_like(y)), encoding]

    def _in_training(
        self, y: tf.Tensor, encodings: Sequence[tf.Tensor], site: int, from_zero: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Values and encoding of a training step: the range moves first, then the values are rounded."""
        moved = None
        if self.has_range and self.trainable:
            moved = self.move_range(self.without_padding(y, site), site, from_zero=from_zero)
        if self.fixed is not None:
            # Probabilities on a grid of 1/256 are often 0, where a cross-entropy has no gradient; the kernel's grid is
            # fine enough that training need not see it.
            return y, self._numbers().encoding
        if self.learning == Training():
            return self._rounded(y, encodings, moved)
        values, scale, zero_point = self._learned(y, encodings, moved, from_zero)
        # a range that moves has seen a batch
        seen = moved is not None or self.is_seen(encodings)
        return self._told(seen, encodings, values, y, tf.stack([scale, zero_point]), (scale, zero_point))

    def _rounded(
        self, y: tf.Tensor, encodings: Sequence[tf.Tensor], moved: Ends | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Values rounded to the grid, by TensorFlow's fused kernel; `moved`: the range if it did."""
        numbers = self._numbers(encodings) if moved is None else encoded(moved.low, moved.high, self.spec)
        quantized = rounded_through(y, numbers, self.spec)
        if self.spec.floating is not None:  # no codes: what reads it computes with the values, as without an encoding
            values = quantized if self.is_seen(encodings) else tf.where(self._seen(encodings), quantized, y)
            return values, tf.zeros(2)
        seen = moved is not None or self.is_seen(encodings)
        return self._told(seen, encodings, quantized, y, numbers.encoding, numbers[:2])

    def _in_integers(self, y: tf.Tensor, origin: Origin) -> tuple[tf.Tensor, tf.Tensor]:
        """Values of the codes that the interpreter computes."""
        seen = self.is_seen(origin.encodings)
        if not seen:
            self._warn_unseen()
        if not tf.executing_eagerly():  # another converter traces this too, and would write it as float operators
            refuse_conversion()
        numbers = self._numbers(origin.encodings)
        out = arithmetic.Grid(numbers.scale, numbers.zero_point, self.spec.low, self.spec.high)
        steps = steps_of(y, origin, out, self.runtime)
        if not in_constants():
            steps = steps_through(y, steps, numbers.scale, numbers.low, numbers.high)
        values = tf.cast(steps, tf.float32) * numbers.scale
        values, encoding = self._told(seen, origin.encodings, values, y, numbers.encoding, numbers[:2])
        # Where only the running graph knows whether data were seen, the values may be those that came, which have no
        # codes.
        return (carry(values, "codes", steps), encoding) if seen else (values, encoding)

    def _told(
        self,
        seen: bool,
        encodings: Sequence[tf.Tensor],
        quantized: tf.Tensor,
        y: tf.Tensor,
        encoding: tf.Tensor,
        grid: tuple[tf.Tensor, tf.Tensor],
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Quantized values with their encoding; where no data were seen, the values as they came, with zeros."""
        if seen:
            return quantized, carry(encoding, "grid", grid)
        # An encoding of zeros tells the layers behind that there is none: they compute in float then.
        told = self._seen(encodings)
        return tf.where(told, quantized, y), tf.where(told, encoding, tf.zeros(2))

    def is_seen(self, encodings: Sequence[tf.Tensor] = ()) -> bool:
        """True where data gave the encoding, as far as that is known while a graph is made.

        It holds from then on: ranges that data gave are replaced, and taken away only where graphs are forgotten too.
        """
        if self.fixed is not None:
            return True
        if self.follows:
            return carried(encodings[0], "grid") is not None
        # a graph that is being traced holds no values; outside of it the variable has one
        with contextlib.nullcontext() if tf.executing_eagerly() else tf.init_scope():
            if not tf.executing_eagerly():
                # Inside `tf.Graph().as_default()` there is no eager context to go out to, and so nothing to read.
                return False
            return bool(np.any(tf.convert_to_tensor(self.count).numpy() > 0.0))

    def ahead(self, encodings: Sequence[tf.Tensor] = (), training: bool = False, size: int = 1) -> Ahead:
        """What a call does to a tensor, as far as the tensor does not tell: a loop asks once for all of its steps.

        Ranges do not move with the data; those that learn take up what the optimizer made of the last step.

        Args:
            encodings: float32[2] of each source, where the encoding follows one.
            training: of that call.
            size: values of one sample, at all steps of the loop.
        """
        if is_float(self):
            return Ahead(tf.zeros(2), lambda y: y)
        if training and self.has_range and self.learning != Training():
            return self._ahead_learned(size)
        numbers, seen = self._numbers(encodings), self.is_seen(encodings)
        told = tf.constant(True) if seen else self._seen(encodings)
        encoding = numbers.encoding if seen else tf.where(told, numbers.encoding, tf.zeros(2))
        if self.spec.floating is not None:
            encoding = tf.zeros(2)
        elif seen:
            carry(encoding, "grid", numbers[:2])
        if self.spec.has_codes and not (training or is_simulating()):
            return Ahead(encoding, None)
        if training and self.fixed is not None:  # as in `_in_training`
            return Ahead(encoding, lambda y: y)

        # where the gradient stops, once for all steps
        clips = ends_of_kernel(numbers, self.spec) if training and self.spec.has_codes else None

        def rounded(y: tf.Tensor) -> tf.Tensor:
            values = rounded_through(y, numbers, self.spec, clips)
            return values if seen else tf.where(told, values, y)

        return Ahead(encoding, rounded)

    def _ahead_learned(self, size: int) -> Ahead:
        """`ahead` of a range with gradients, or of a grid that is still wide."""
        onto, scale, zero_point, sums = range_learner.for_steps(self, size)
        encoding = tf.stack([scale, zero_point])
        if self.is_seen():
            return Ahead(encoding, onto, sums)
        told = self._seen()
        return Ahead(tf.where(told, encoding, tf.zeros(2)), lambda y, *own: tf.where(told, onto(y, *own), y), sums)

    def charge(self, y: tf.Tensor) -> None:
        """What the range of a tensor adds to the loss (PACT); `y` holds its extremes at least."""
        if self.learning.ranges == "pact" and self.trainable:
            self.add_loss(range_learner.penalty(self, y))

    def _peeked(self, encodings: Sequence[tf.Tensor], training: bool) -> tf.Tensor:
        """float32[2]: the encoding that the tensor is going to have, zeros where no data were seen."""
        if self.spec.floating is not None:
            return tf.zeros(2)
        numbers = self._numbers(encodings)
        if not training and self.is_seen(encodings):
            return carry(numbers.encoding, "grid", numbers[:2])
        encoding = numbers.encoding
        if training and self.learning != Training() and self.has_range:
            encoding = tf.stack(range_learner.grid(self)[:2])
        return tf.where(self._seen(encodings), encoding, tf.zeros(2))

    def grid(self, encodings: Sequence[tf.Tensor] = ()) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Scale, zero point (float32[]) and whether they come from data (bool[])."""
        numbers = self._numbers(encodings)
        return numbers.scale, numbers.zero_point, self._seen(encodings)

    def _numbers(self, encodings: Sequence[tf.Tensor] = ()) -> Numbers:
        if self.follows:
            _, scale, zero_point = read(encodings[0])
            return numbers_of(scale, zero_point, self.spec)
        with beforehand():
            if self.fixed is not None:
                spec = self.spec if self.spec.floating is None else QuantSpec()  # a range of 8 bits, also for floats
                return numbers_of(tf.constant(self.fixed[0]), tf.constant(float(self.fixed[1])), spec)
            return encoded(tf.convert_to_tensor(self.low), tf.convert_to_tensor(self.high), self.spec)

    def _seen(self, encodings: Sequence[tf.Tensor] = ()) -> tf.Tensor:
        """bool[]: whether data gave the encoding, when the graph runs."""
        if self.fixed is not None:
            return tf.constant(True)
        if self.follows:
            return encodings[0][0] > 0.0
        count = tf.convert_to_tensor(self.count)
        return tf.constant(bool(count.numpy().max() > 0.0)) if tf.executing_eagerly() else tf.reduce_max(count) > 0.0

    def set_range(self, site: int, low: float, high: float, *, exact: bool = False) -> None:
        """Store what calibration found for one site, and the span that weights can give, unless it is `exact`.

        It counts as the average of so many batches that training moves it at the pace of `momentum`.
        """
        if self.span is not None and not exact:
            low, high = min(low, self.span[0]), max(high, self.span[1])
        if not exact:
            low, high = (float(end) for end in self.with_padding(low, high, site))
        # `averaged` steps by (1 - momentum) / (1 - momentum^count): with so many batches counted that is 1 - momentum.
        self._store(site, low, high, min(float(np.ceil(SETTLED / (1.0 - self.momentum))), MOST_BATCHES))

    def without_padding(self, y: tf.Tensor, site: int = 0) -> tf.Tensor:
        """The tensor with 0 at masked steps, where padding is known by a value."""
        if not self.padding.get(str(site)):  # 0 is 0
            return y
        real = tf.reduce_any(is_other(y, self.padding[str(site)]), axis=-1, keepdims=True)
        return tf.where(real, y, tf.zeros_like(y))

    def nearest_to_padding(self, y: tf.Tensor, site: int = 0) -> tf.Tensor:
        """float32[]: `Statistics.nearest` of float[samples, steps, features]."""
        far = tf.reduce_max(tf.abs(y - self.padding[str(site)]), axis=-1)
        real = far > 0.0
        counted = [tf.cumsum(tf.cast(real, tf.int32), axis=1, reverse=back) for back in (False, True)]
        # Of the real steps of a sample, the first has 1 in the count from the front and the last in that from the back.
        at_end = tf.logical_and(real, tf.logical_or(counted[0] == 1, counted[1] == 1))
        return tf.reduce_min(tf.where(at_end, far, np.float32(np.inf)))

    def with_padding(self, low: Any, high: Any, site: int) -> tuple[Any, Any]:
        """The range, and a code more at the side where the value of masked steps lies beyond it."""
        value = self.padding.get(str(site), 0.0)
        if value == 0.0:  # a code of every grid
            return low, high
        least, most = tf.minimum(low, 0.0), tf.maximum(high, 0.0)
        # 1.5 steps, since the zero point may move the grid by half a step; with 16 bits what lies beyond the grid of 8
        # bits too, where some kernel wants that in between
        steps = (1.5 if self.spec.bits <= 8 else 3.0) / (min(self.spec.high - self.spec.low, 255) - 2)
        # By 2 steps fewer than there are: the range that comes out is wider, and so are its steps.
        beyond = (most - least) * steps
        return tf.where(value < least, least - beyond, low), tf.where(value > most, most + beyond, high)

    def forget_range(self) -> None:
        """No data were seen."""
        for site in range(self.sites):
            self._store(site, 0.0, 0.0, 0.0)

    def _store(self, site: int, low: float, high: float, count: float) -> None:
        stored = [(self.low, low), (self.high, high), (self.count, count)]
        if self.stays:
            stored.append((self.calibrated, count))
            self.waking.assign(tf.zeros((2,)))
        if self.learning.learns_tensors:
            self.stretch.assign(tf.zeros((2,)))
        for variable, value in stored:
            # One variable holds all sites, and calibration sets one at a time.
            values = variable.numpy()
            values[site] = value
            variable.assign(values)

    def move_range(self, y: tf.Tensor, site: int, *, from_zero: bool = False) -> Ends:
        """Moving averages of the batch's smallest and largest value, unbiased from the first step on.

        A range that does not move all the time follows the batches until it has left zero for good
        (`learned_ranges.woken`).

        Args:
            y: float32[...], the batch.
            site: whose it is.
            from_zero: no value is below 0, as behind a ReLU: the smallest counts as 0, which every grid holds anyway.
        """
        if self.stays:
            return range_learner.step(self, y, site, from_zero=from_zero)
        seen = self.with_padding(*extremes(y, from_zero=from_zero), site)
        ends = tf.convert_to_tensor(self.low), tf.convert_to_tensor(self.high)
        low, high, count = averaged(ends, tf.convert_to_tensor(self.count), seen, site, self.momentum)
        for variable, value in ((self.low, low), (self.high, high), (self.count, count)):
            variable.assign(value)
        return Ends(low, high)

    def _learned(
        self, y: tf.Tensor, encodings: Sequence[tf.Tensor], moved: Ends | None, from_zero: bool
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Training where the range has gradients, or the grid is still wide; what follows takes the grid it got."""
        if self.follows:
            # What follows an encoding (means, interpolated values) lies between its ends: nothing to clip or learn.
            scale, zero_point, _ = self.grid(encodings)
            return replaced(y, tf.round(y / scale) * scale), scale, zero_point
        self.charge(y)
        return range_learner.fake_quantize(self, y, moved, from_zero=from_zero)

    def _warn_unseen(self) -> None:
        graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        with tf.init_scope():
            known = tf.executing_eagerly() and not getattr(graph, "told_unseen", False)
        if self.has_range and known:
            said = "This model has quantization nodes that have seen no data; they pass values through in float."
            way = "Run kquant.calibrate(model, data), or train it, before you trust its accuracy."
            warnings.warn(f"{said} {way}", stacklevel=2)
            if graph is not None:
                graph.told_unseen = True  # one graph has many nodes

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {
            **super().get_config(),
            "spec": self.spec.to_config(),
            "sites": self.sites,
            "fixed": self.fixed,
            "follows": self.follows,
            "momentum": self.momentum,
            "freeze_after": self.freeze_after,
            "learning": self.learning.for_tensors(),
            "observer": self.observer,
            "span": self.span,
            "origin": self.origin.to_config(),
            "ports": dict(self.ports),
            "padding": dict(self.padding),
            **({"unclipped": True} if self.unclipped else {}),
        }
