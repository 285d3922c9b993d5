"""`Compressed`: a layer that computes with quantized weights. The picture is in `layers.nodes`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from kquant.core.beforehand import beforehand
from kquant.core.checks import present
from kquant.core.spec import QuantSpec
from kquant.graph.precision import HALF, full_precision
from kquant.layers import transform as kernels
from kquant.layers.byte_sums import byte_sums
from kquant.layers.carried import carried, carry
from kquant.layers.conversion import refuse_conversion
from kquant.layers.integers import chosen, read
from kquant.layers.live_norm import LiveNorm
from kquant.layers.modes import is_bare, is_float, is_simulating
from kquant.layers.nonuniform import on_grid
from kquant.layers.provenance import Provenance
from kquant.layers.weighted import Weighted
from kquant.layers.zeros import zeros

Apply = Callable[[tf.Tensor], list[tf.Tensor]]
# Of a live batch norm: below it a channel is switched off.
SMALLEST_FACTOR = 1e-12


@keras.saving.register_keras_serializable(package="kquant")
class Compressed(Weighted):
    """A layer that computes with quantized weights; the float weights stay the ones that train.

    Training: `w' = scale * round(w / scale)`, gradients straight through. Inference: the
    layer itself runs on codes, so that its sums are the integers of the device, and the bias is int32 at `s_in * s_w`.

    Args:
        layer: the Keras layer, without activation.
        spec: `QuantSpec` of the kernel, as its config; None leaves it float.
        kernel, bias: names of the layer's variables (bias may be None).
        channel_axes: axes of the kernel that number the output channels.
        sums: False where the layer multiplies only (PReLU): the accumulator scale then differs by element.
        gain_shape: shape of `gain`, a fixed factor of the kernel, or None for 1. A batch norm folded into the kernel
            would rescale what the optimizer steps on (a first layer on 0..255 pixels has weights of 1e-3: Adam's steps
            ruin them); with its scale kept apart, the kernel trains as it did before folding.
        moments: a batch norm was folded into the layer: `mean` and `deviation` say how its output is distributed.
        corrected: which of `reach`, `shift` and `rounding` a correction has asked for, in order.
        transforms: what happens to the kernel first (`layers.transform`): masks, codebooks; layers or their configs.
        learning: what the recipe's `[training]` asks of the weights (`Training.for_weights`).
        norm: arguments of a `LiveNorm`, where the batch norm behind the layer stays one in training.
        observer: name of the function that calibration chooses the range of the weights with.
        reach_by_data: see `set_reach`.
        input_bits: width of the activations: 8, 16, or 0 for float ones.
        storage: how a file keeps the weights where activations are float: "integer" (the kernel quantizes activations
            as it runs), "dequantized" (codes, made float before use), "float16" or "float32".
        origin: how this model was made, as its config: recipe, target.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        spec: dict[str, Any] | None,
        kernel: str = "kernel",
        bias: str | None = "bias",
        channel_axes: Sequence[int] = (-1,),
        sums: bool = True,
        gain_shape: Sequence[int] | None = None,
        moments: bool = False,
        corrected: Sequence[str] = (),
        transforms: Sequence[Any] = (),
        learning: dict[str, Any] | None = None,
        norm: dict[str, Any] | None = None,
        observer: str = "minmax",
        reach_by_data: bool = False,
        input_bits: int = 8,
        storage: str = "integer",
        origin: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        geometry = {"kernel": kernel, "bias": bias, "channel_axes": channel_axes, "sums": sums}
        state = {"gain_shape": gain_shape, "moments": moments, "corrected": corrected, "transforms": transforms}
        super().__init__(layer, spec, **geometry, **state, learning=learning, norm=norm, **kwargs)
        self.observer = observer
        self.reach_by_data = reach_by_data
        self.input_bits, self.storage = input_bits, storage
        self.origin = Provenance.read(origin)
        self.supports_masking = True

    def set_reach(self, values: Any, *, by_data: bool) -> None:
        """Choose the range of the weights.

        Args:
            values: shaped like the scale.
            by_data: a correction chose it; calibration then leaves it, where it would follow changed weights.
        """
        unit = self._unit()
        # A live batch norm scales the weights while it trains: kept in units of its factor, the range goes along.
        self.correction("reach").assign(values if isinstance(unit, float) else tf.math.divide_no_nan(values, unit))
        self.reach_by_data = by_data
        self.forget_learned()

    def forget_learned(self) -> None:
        """What training learned of other weights or another range."""
        if self.learner is not None:
            self.learner.forget()

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """The mask of the tensor; accumulator scales have none."""
        return None if previous_mask is None else [previous_mask, None, None][: 3 if self.wide else 2]

    @property
    def wide(self) -> bool:
        """True where the sums outgrow float32 and travel beside the output, in float64."""
        return self.input_bits > 8 and self.sums

    def compute_output_spec(self, x: keras.KerasTensor, encoding: Any = None, **_: Any) -> list[keras.KerasTensor]:
        """The layer's output and the scale of its sums."""
        y = self.layer.compute_output_spec(x)
        scales = (y.shape[-1],) if self.sums else y.shape
        made = [keras.KerasTensor(y.shape, self.compute_dtype), keras.KerasTensor(scales, "float64")]
        return [*made, keras.KerasTensor(y.shape, "float64")] if self.wide else made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As Keras calls a layer, without what it does around `call` where that has nothing to do."""
        return self.call(*args, **kwargs) if is_bare(args) else super().__call__(*args, **kwargs)

    def call(
        self, x: tf.Tensor, encoding: tf.Tensor | None = None, training: bool = False, site: int = 0
    ) -> list[tf.Tensor]:
        """Run the layer.

        Args:
            x: float[...], the layer's input.
            encoding: float32[2], scale and zero point of `x`.
            training: float sums of fake-quantized weights instead of integer sums.
            site: number of this call, where the layer is shared; the first moves masks and codebooks on.

        Returns:
            `[y, accumulator]`: the output, and the scale of its integer sums (float64[channels]); with 16-bit
            activations the sums too (float64, like y).
        """
        return self.ready(encoding, training, site)(x)

    def ready(self, encoding: tf.Tensor | None, training: bool = False, site: int = 0) -> Apply:
        """What `call` does to an input, when all is done that does not depend on it: a loop asks once for all steps."""
        unknown = [zeros((1,), "float64")] * (2 if self.wide else 1)
        if is_float(self):
            return lambda x: [self._in_float(x), *unknown]
        # Before the weights are read: the step computes with what moves on now.
        if training and self.trainable and site == 0:
            kernels.advance(self.transforms, kernels.real(self.layer, self.kernel_name))
            self._begin_step()
        # `reestimate` counts at inference, and what it counts is what training would normalise.
        norm = self.norm
        if norm is not None and ((training and self.trainable) or norm.counter is not None):
            return lambda x: [self._normalised(norm, x, training, site), *unknown]
        learns = training and self.trainable and self.learner is not None
        if not (training or is_simulating() or tf.executing_eagerly()):
            refuse_conversion()
        floats = training or is_simulating() or encoding is None or self.spec is None or not self.spec.has_codes
        if encoding is not None and not (learns or floats):
            return self._in_integers(encoding)
        weights, bias = self._learned(site) if learns else self.weights_on_grid(), self.bias_as_used()
        return lambda x: [self._biased(x, weights, bias, self.layer), *unknown]

    def _in_float(self, x: tf.Tensor) -> tf.Tensor:
        """The float function: no grid, and no correction."""
        if self.norm is not None:
            return self._biased(x, self.weights_as_used(), self.float_bias(), self.layer)
        # What runs in float calls the layer itself, `__call__` and all: a mixed policy casts there.
        if not self.transforms and self.gain is None:
            return self.layer.call(x) if is_bare((x,)) and self.compute_dtype == "float32" else self.layer(x)
        return self._with(x, {self.kernel_name: self.weights_as_used()}, self.layer)

    def _in_integers(self, encoding: tf.Tensor) -> Apply:
        """What `call` returns at inference: the device's sums, scaled; float ones where the encoding is unknown."""
        known, unit, zero = read(encoding)
        with beforehand(unit):
            codes, scale, bias = self.codes(unit)
            # The kernels multiply the two scales in double; a float32 product shifts some ties. A scale has the
            # kernel's axes, 1 where it does not differ: flat it is one number for each channel of the output, also
            # where two axes number the channels (the inputs and the multiplier of a depthwise kernel).
            exact = tf.cast(tf.reshape(scale, (-1,)), tf.float64) * tf.cast(unit, tf.float64)
            whole = None if bias is None else rounded(bias)
        if not self.sums:
            return lambda x: self._multiplied(x, unit, codes, scale, known)
        added = None if bias is None or whole is None else chosen(known, whole, bias)
        return lambda x: self._summed_up(x, unit, zero, codes, added, exact, known)

    def _summed_up(
        self,
        x: tf.Tensor,
        unit: tf.Tensor,
        zero: tf.Tensor,
        codes: tf.Tensor,
        bias: tf.Tensor | None,
        exact: tf.Tensor,
        known: bool | tf.Tensor,
    ) -> list[tf.Tensor]:
        """Integer sums of the input's codes and those of the kernel, scaled by `exact`."""
        steps = carried(x, "codes")
        if steps is not None and known is True and not self.wide:
            sums = byte_sums(self.layer, steps, zero, codes, bias)
            if sums is not None:
                return self._scaled(sums, exact, known)
        if steps is None:
            # Without codes: a layer that keeps its input's encoding stands between, or nobody has calibrated.
            steps = tf.cast(x, tf.float32) / unit
            steps = chosen(known, rounded(steps), steps)
        steps = tf.cast(steps, tf.float32)
        if self.wide:
            return self._wide(steps, codes, bias, exact, known)
        with full_precision():
            # `call`, not the layer: `Layer.__call__` casts to the policy's dtype, and above 2048 float16 leaves
            # integers out.
            return self._scaled(self._biased(steps, codes, bias, self.layer.call), exact, known)

    def _scaled(self, sums: tf.Tensor, exact: tf.Tensor, known: bool | tf.Tensor) -> list[tf.Tensor]:
        """What `call` returns of integer sums."""
        y = tf.cast(tf.cast(sums, tf.float32) * tf.cast(exact, tf.float32), self.compute_dtype)
        if known is True:
            return [y, carry(exact, "sums", sums)]
        return [y, tf.where(known, exact, tf.zeros_like(exact))]

    def _wide(
        self, x: tf.Tensor, codes: tf.Tensor, bias: tf.Tensor | None, exact: tf.Tensor, known: bool | tf.Tensor
    ) -> list[tf.Tensor]:
        """Sums of 16-bit codes: those of the high and of the low bytes are exact in float32, their total in float64."""
        # Zeros in place of the layer's bias, not none: a layer that has a bias would add its own.
        none = None if bias is None else tf.zeros_like(bias)
        # x = 256 high + low with high in -128..127 and low in 0..255, each a step of 8 bits times a weight of 8.
        high = tf.floor(x / 256.0)
        with full_precision():
            parts = [self._biased(part, codes, none, self.layer.call) for part in (high, x - 256.0 * high)]
        total = 256.0 * tf.cast(parts[0], tf.float64) + tf.cast(parts[1], tf.float64)
        if bias is not None:
            total += tf.cast(bias, tf.float64)
        y = tf.cast(total * exact, self.compute_dtype)
        return [y, chosen(known, exact, tf.zeros_like(exact)), tf.round(total)]

    def codes(self, input_scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """Kernel codes, their scale (shaped like the kernel, 1 on reduced axes) and the bias in steps, not yet rounded.

        Gradients reach the float weights straight through.
        """
        weights, bias = self.weights_as_used(), self.bias_as_used()
        scale = self._scale(weights, bias, input_scale)
        steps = None if bias is None else bias / (tf.reshape(scale, (-1,)) * input_scale)
        return self._rounded(weights, scale), scale, steps

    def largest_scale(self, input_scale: float) -> float:
        """Of all channels, the one that `codes` gives."""
        return float(tf.reduce_max(self._scale(self.weights_as_used(), self.bias_as_used(), tf.constant(input_scale))))

    def _scale(self, weights: tf.Tensor, bias: tf.Tensor | None, input_scale: tf.Tensor) -> tf.Tensor:
        """Scales of the kernel, wide enough that an int32 holds the bias."""
        reach = None
        # Beside 16-bit activations a bias has 64 bits, which hold any.
        if bias is not None and not self.wide:
            reach = tf.reshape(tf.abs(bias) / input_scale, self._channel_shape(weights))
        return self.scale_of(weights, reach)

    def _rounded(self, weights: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
        """Codes of the kernel, as float32; gradients pass straight through, but where a code is clipped."""
        spec = self.spec or QuantSpec(16, True, True)
        steps = weights / scale
        if self.rounding is not None:
            steps += self._pushed(weights)
        codes = round_through(steps, float(spec.low), float(spec.high))
        return codes if self.learner is None else self.learner.settled(codes, weights, self.shares)

    def _pushed(self, weights: tf.Tensor) -> tf.Tensor:
        """What a correction adds before rounding, in steps; a weight that a mask has taken out stays out."""
        pushed = tf.convert_to_tensor(present(self.rounding, f"{self.name}: no rounding was chosen."))
        return tf.where(weights == 0.0, tf.zeros_like(pushed), pushed) if self.transforms else pushed

    def _begin_step(self) -> None:
        """Of what learns: the range of the last step, and which weights oscillate."""
        if self.learner is None:
            return
        self.learner.move(self.reach, self._widest)
        if self.learner.freezing is not None:
            weights = tf.stop_gradient(self.weights_as_used())
            self.learner.follow(self._rounded(weights, self.scale_of(weights)), weights, self.shares)

    def _widest(self) -> tf.Tensor:
        """The largest weight of each scale, shaped like `reach` and in its unit."""
        weights = tf.stop_gradient(self.weights_as_used())
        return tf.reduce_max(tf.abs(weights), axis=self._summed(), keepdims=True) / self._divisor()

    def _divisor(self) -> tf.Tensor | float:
        unit = self._unit()
        # A channel that its batch norm has switched off has factor 0.
        return unit if isinstance(unit, float) else tf.where(unit > 0.0, unit, 1.0)

    def _summed(self) -> list[int]:
        """Axes of the kernel that one scale covers."""
        # An axis of length 1 counts either way: to reduce over it changes nothing.
        return [axis for axis, n in enumerate(self._shape_of("reach")) if n != self.kernel_shape[axis] or n == 1]

    def _learned(self, site: int) -> tf.Tensor:
        """The kernel on the grid of this training step; the loss of its oscillations counts once."""
        if self.learner is None:
            return self.weights_on_grid()
        weights = self.weights_as_used()
        scale = self.scale_of(weights)
        if self.rounding is not None:
            # `quantized` rounds to nearest: a chosen rounding comes in as a shift of the weight by less than a step.
            weights += tf.stop_gradient(scale * self._pushed(weights))
        quantized = self.learner.quantized(weights, scale, self.shares)
        unit = 1.0 if self.gain is None else tf.convert_to_tensor(self.gain)  # in units of the kernel that trains
        # The distances are squared: with the gain in them, channels of large gain would be pulled harder.
        loss = self.learner.loss(weights / unit, quantized / unit, scale / tf.abs(unit))
        for part in (loss, self.learner.charge(weights, scale)):
            if part is not None and site == 0 and self.trainable:
                self.add_loss(part)
        return quantized

    def _normalised(self, norm: LiveNorm, x: tf.Tensor, training: bool, site: int) -> tf.Tensor:
        """The output with a live batch norm; a channel that it switches off computes with its float weights."""
        factor = self._along(tf.stop_gradient(norm.factor()))
        alive = tf.abs(factor) > SMALLEST_FACTOR
        weights = self._learned(site) if training else self.weights_on_grid()
        plain = kernels.apply(self.transforms, kernels.real(self.layer, self.kernel_name))
        if self.gain is not None:
            plain *= tf.convert_to_tensor(self.gain)
        # q(w f) / f: the norm behind multiplies by gamma / deviation of the batch, so that f must not act twice. Two
        # choices, since a division by 0 inside the one would put NaN into its gradient.
        weights = tf.where(alive, weights / tf.where(alive, factor, 1.0), plain)
        # The layer's own bias: the norm takes the mean away and adds beta itself. A shift corrects the output, so it
        # comes after.
        y = norm(self._biased(x, weights, self.own_bias(), self.layer))
        return y if self.shift is None else y + tf.cast(tf.convert_to_tensor(self.shift), y.dtype)

    def apply(self, x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
        """The layer's output with other weights: float[...] of float[...]; it keeps its own."""
        with full_precision():
            return self._biased(x, kernel, bias, self.layer.call)

    def _biased(self, x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None, call: Callable) -> tf.Tensor:
        """The layer with this kernel and bias, also where it has no bias of its own."""
        if bias is None:
            return self._with(x, {self.kernel_name: kernel}, call)
        if self.bias_name and getattr(self.layer, self.bias_name, None) is not None:
            return self._with(x, {self.kernel_name: kernel, self.bias_name: bias}, call)
        y = self._with(x, {self.kernel_name: kernel}, call)
        return y + tf.cast(bias, y.dtype)

    def _channel_shape(self, weights: tf.Tensor) -> list[int]:
        kept = self._kept(weights.shape.rank)
        return [int(n or 1) if axis in kept else 1 for axis, n in enumerate(weights.shape.as_list())]

    def weights_on_grid(self, path: str | None = None) -> tf.Tensor:
        """The kernel on its grid, as training sees it (a bias cannot move it more than rounding does)."""
        weights = self.weights_as_used()
        if self.storage == "float16":
            return weights + tf.stop_gradient(tf.cast(tf.cast(weights, tf.float16), tf.float32) - weights)
        if self.spec is None:
            return weights
        if not self.spec.has_codes and self.rounding is None:
            return weights + tf.stop_gradient(on_grid(weights, self.spec, self.channel_axes) - weights)
        scale = self.scale_of(weights)
        if self.reach is None and self.rounding is None and self.learner is None:
            return on_own_range(weights, scale)
        return self._rounded(weights, scale) * scale

    def _with(self, x: tf.Tensor, values: dict[str, tf.Tensor], call: Callable) -> tf.Tensor:
        """Call the layer with other values for some of its variables."""
        if call is not self.layer or not self._slow_in_half:
            return kernels.run_with(self.layer, values, call, x)
        bias = values.get(self.bias_name or "")
        held = values if bias is None else {**values, str(self.bias_name): tf.stop_gradient(bias)}
        y = kernels.run_with(self.layer, held, call, tf.stop_gradient(x))
        # In a graph what an encoding rounded to 16 bits for this layer takes its gradient before it is rounded. Eagerly
        # a tape may ask for that of the encoding's output, which others read too: it would get their part alone.
        single = carried(x, "single") if tf.is_symbolic_tensor(x) else None
        source = x if single is None else single

        @tf.custom_gradient
        def with_input(y: tf.Tensor, source: tf.Tensor, *bias: tf.Tensor) -> Any:
            return y, lambda upstream: (upstream, *self._gradients_in_float32(source, held, upstream, len(bias)))

        return with_input(y, source, *([] if bias is None else [bias]))

    def _gradients_in_float32(
        self, x: tf.Tensor, values: dict[str, tf.Tensor], upstream: tf.Tensor, biases: int
    ) -> list[tf.Tensor]:
        """The gradients for the input of a layer that sums, and for its bias if it has one.

        Of what comes before, a graph leaves the sums out again.
        """
        upstream = tf.cast(upstream, tf.float32)
        with full_precision(), tf.GradientTape() as tape:
            source = tf.cast(x, tf.float32)
            tape.watch(source)
            y = kernels.run_with(self.layer, values, self.layer.call, source)
        slope: Any = tape.gradient(y, source, [upstream])
        order = "NCHW" if self.layer.data_format == "channels_first" else "NHWC"
        added = [tf.raw_ops.BiasAddGrad(out_backprop=upstream, data_format=order)] * biases
        return [tf.cast(slope, x.dtype), *added]

    @property
    def _slow_in_half(self) -> bool:
        """True where a mixed policy takes gradients in float32 all the same, and rounds them to what it says.

        On processors that of a depthwise convolution for its input takes 30 times as long in bfloat16, that for its
        bias twice.
        """
        depthwise = isinstance(self.layer, keras.layers.DepthwiseConv1D | keras.layers.DepthwiseConv2D)
        return depthwise and self.compute_dtype in HALF and not tf.config.list_logical_devices("GPU")

    def _multiplied(
        self, x: tf.Tensor, unit: tf.Tensor, codes: tf.Tensor, scale: tf.Tensor, known: bool | tf.Tensor
    ) -> list[tf.Tensor]:
        """PReLU: positive inputs keep their scale, negative ones are multiplied by the codes of alpha."""
        # In float: no sums to keep exact, one product for each value.
        y = self._with(tf.cast(x, tf.float32), {self.kernel_name: codes * scale}, self.layer.call)
        # LiteRT forms this product in float32 (prelu.cc)
        step = tf.cast(tf.where(x >= 0, unit, unit * tf.reshape(scale, ())), tf.float64)
        return [tf.cast(y, self.compute_dtype), chosen(known, step, tf.zeros_like(step))]

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {
            **super().get_config(),
            "observer": self.observer,
            "reach_by_data": self.reach_by_data,
            "input_bits": self.input_bits,
            "storage": self.storage,
            "origin": self.origin.to_config(),
        }


@tf.custom_gradient
def rounded(x: tf.Tensor) -> Any:
    """`round(x)` forward; the gradient passes, so that a loop which forgets `training=True` still trains."""
    return tf.round(x), lambda upstream: upstream


@tf.custom_gradient
def on_own_range(weights: tf.Tensor, scale: tf.Tensor) -> Any:
    """`scale round(w / scale)` where the scale covers all weights: none is clipped, and each has its gradient."""
    return tf.round(weights / scale) * scale, lambda upstream: (upstream, None)


@tf.custom_gradient
def round_through(x: tf.Tensor, low: float, high: float) -> Any:
    """`clip(round(x))` forward; backward the gradient passes where nothing is clipped."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor | None, ...]:
        # Up to half a step beyond an end rounds to the end, which is no clipping; a hundredth is for float32.
        inside = tf.logical_and(x > low - 0.51, x < high + 0.51)
        return tf.where(inside, upstream, tf.zeros_like(upstream)), None, None

    return tf.clip_by_value(tf.round(x), low, high), gradient
