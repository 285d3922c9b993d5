"""`Weighted`: a layer whose weights are masked, shared, scaled or corrected before use; `Compressed` quantizes them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.core.spec import QuantSpec, encode_weights
from kquant.graph.keras_private import growing
from kquant.graph.precision import full_precision
from kquant.layers import transform as kernels
from kquant.layers.blocks import block_scales
from kquant.layers.kernel import Holder
from kquant.layers.live_norm import LiveNorm
from kquant.layers.transform import Transform, freeze
from kquant.layers.weight_learner import WeightLearner

# What a correction may ask of a layer.
CORRECTIONS = ("reach", "shift", "rounding")


class Weighted(Holder, keras.layers.Wrapper):
    """A layer, its float kernel that trains, and what the kernel becomes before it is quantized.

        weights = transforms(kernel) * gain * f          bias = offset(layer's bias) + shift

    with f and the offset of a batch norm that lives in the layer.

    Args:
        layer, spec, kernel, bias, channel_axes, sums, gain_shape, moments, corrected, transforms, learning, norm: see
            `Compressed`.
    """

    channel_axes: tuple[int, ...]  # its scales are those of channels, always
    # Variables, where the layer has them.
    gain: Any
    mean: Any
    deviation: Any

    def __init__(
        self,
        layer: keras.layers.Layer,
        spec: dict[str, Any] | None,
        kernel: str,
        bias: str | None,
        channel_axes: Sequence[int],
        sums: bool,
        gain_shape: Sequence[int] | None,
        moments: bool,
        corrected: Sequence[str],
        transforms: Sequence[Any],
        learning: dict[str, Any] | None,
        norm: dict[str, Any] | None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("name", layer.name)
        # What stands around the layer computes as it does, whatever the process is set to by now.
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, autocast=False, **{k: v for k, v in kwargs.items() if k != "autocast"})
        self.spec = None if spec is None else QuantSpec(**spec)
        self.kernel_name, self.bias_name = kernel, bias
        self.channel_axes = tuple(channel_axes)
        self.sums = sums
        self.has_moments, self.corrected = moments, tuple(corrected)
        self.transforms: list[Transform] = kernels.in_order(transforms)
        self.gain = self.mean = self.deviation = None
        self.reach = self.shift = self.rounding = None
        self.norm = None if norm is None else LiveNorm(**norm)
        grid = self.spec
        learns = learning if grid is not None and grid.has_codes else None
        self.learner = WeightLearner(learns, grid.to_config(), name="learner") if learns and grid is not None else None
        # A range that learns is kept where one that a correction chose is kept, so that every reader sees it.
        if self.learner is not None and self.learner.learning.learns_weights and "reach" not in self.corrected:
            self.corrected = ("reach", *self.corrected)
        if gain_shape is not None:
            self.gain = self._fixed("gain", gain_shape, "ones")
        if not layer.trainable:  # what was frozen in the float model trains no range and no batch norm here either
            freeze(self)

    # Keras passes shapes by the names of `call`'s arguments, with `_shape` behind, as soon as `build` takes two of
    # them.
    def build(self, x_shape: Any, encoding_shape: Any = None) -> None:
        """Build the wrapped layer, and what corrections had set when the model was saved."""
        super().build(x_shape)
        for transform in self.transforms:
            if not transform.built:
                transform.build(self.kernel_shape)
        if self.has_moments:
            self.mean = self._fixed("mean", (self.channels,))
            self.deviation = self._fixed("deviation", (self.channels,))
        for name in self.corrected:
            setattr(self, name, self._fixed(name, self._shape_of(name)))
        if self.learner is not None and not self.learner.built:
            self.learner.build(self.kernel_shape, self._shape_of("reach"))
        if not self.trainable:
            freeze(self)

    def kernel_paths(self) -> tuple[str, ...]:
        """One."""
        return (self.kernel_name,)

    def transforms_of(self, path: str) -> list[Transform]:
        """Masks and codebooks of the kernel."""
        return list(self.transforms)

    def set_transforms(self, path: str, transforms: Sequence[Transform]) -> None:
        """Put others in their place, built already."""
        self.transforms = kernels.in_order(transforms)

    def transform_by(self, transform: Transform, path: str | None = None) -> None:
        """Add a transform of the kernel, built and started here if it is not yet."""
        if path not in (None, self.kernel_name):
            raise ValueError(f"{self.name}: it quantizes '{self.kernel_name}'. Received: path='{path}'.")
        if not transform.built:
            transform.build(self.kernel_shape)
            # From the kernel as those before it leave it: a codebook behind a mask sees the zeros.
            transform.start(kernels.apply(self.transforms, kernels.real(self.layer, self.kernel_name)))
        if transform.shares and self.rounding is not None and bool(tf.reduce_any(self.rounding.value != 0.0)):
            warnings.warn(
                f"{self.name}: its weights share values from now on, and are rounded to nearest again: roundings of "
                "single weights (AdaRound) would pull them apart. Cluster first, then quantize and correct.",
                stacklevel=2,
            )
            self.round_by(None)
        # Frozen are codes of weights, not of the values that they take from now on.
        if transform.shares and self.learner is not None and self.learner.freezing is not None:
            self.learner.freezing.forget()
        with growing(self):
            self.transforms = kernels.in_order([*self.transforms, transform])

    @property
    def shares(self) -> bool:
        """True where a codebook gives weights common values."""
        return any(transform.shares for transform in self.transforms)

    @property
    def unfrozen(self) -> bool:
        """True where weights were to freeze one by one, and do not, because they share values."""
        return self.shares and self.learner is not None and self.learner.freezing is not None

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Of the float kernel."""
        return tuple(int(n) for n in kernels.kernel_at(self.layer, self.kernel_name).shape)

    def correction(self, name: str) -> Any:
        """A variable that a correction sets, made when it is first asked for: most models have none.

        They act where the model is quantized, so that the float model stays what it was.

        Args:
            name: "reach", the range of the weights that a scale covers, shaped like the scale, 0 for the largest
                weight; "shift", float32[channels], what is added to the bias; "rounding", like the kernel, what is
                added to each weight, in steps, before it is rounded.

        Raises:
            ValueError: the layer has no codes, or no sums for a shift.
        """
        if name not in CORRECTIONS or not self.takes(name):
            raise ValueError(f"{self.name}: there is no correction '{name}' of this layer. Known: {CORRECTIONS}.")
        if name not in self.corrected:
            with growing(self):
                setattr(self, name, self._fixed(name, self._shape_of(name)))
            self.corrected = (*self.corrected, name)
        return getattr(self, name)

    def save_own_variables(self, store: Any) -> None:
        """By name: two models of the same layers need not have been corrected alike."""
        for variable in self._own():
            store[variable.name] = np.asarray(variable)

    def load_own_variables(self, store: Any) -> None:
        """Take on the corrections that were saved, and no others."""
        for name in CORRECTIONS:
            # By what is stored, since Keras loads weights into a model whose corrections may be others than those that
            # were saved.
            if name in store:
                self.correction(name)
        for variable in self._own():
            variable.assign(store[variable.name] if variable.name in store else np.zeros(variable.shape, np.float32))

    def _own(self) -> list[Any]:
        held = (self.gain, self.mean, self.deviation, self.reach, self.shift, self.rounding)
        return [variable for variable in held if variable is not None]

    def takes(self, name: str) -> bool:
        """True where the layer has this correction: weights that are codes, and for a "shift" sums.

        Weights in blocks have codes that may be chosen; their ranges are those of the blocks' largest weights.
        """
        if self.spec is not None and self.spec.in_blocks:
            return name == "rounding"
        return self.spec is not None and self.spec.has_codes and (self.sums or name != "shift")

    def round_by(self, codes: Any) -> None:
        """Keep these codes of the kernel, whatever rounding to nearest would give; None: to nearest again.

        Args:
            codes: int[...] like the kernel.
        """
        if self.learner is not None and self.learner.freezing is not None:
            self.learner.freezing.forget()
        if codes is None:
            if self.rounding is not None:
                self.rounding.assign(tf.zeros_like(self.rounding))
            return
        weights = self.weights_as_used()
        # As what is added before rounding, not as codes: weights that train on afterwards take their codes along.
        self.correction("rounding").assign(tf.cast(codes, tf.float32) - weights / self.scale_of(weights))

    def _fixed(self, name: str, shape: Sequence[int], start: str = "zeros") -> Any:
        """A variable that does not train."""
        return self.add_weight(
            name=name, shape=tuple(shape), initializer=start, trainable=False, dtype="float32", autocast=False
        )

    def _shape_of(self, name: str) -> tuple[int, ...]:
        shape = self.kernel_shape
        kept = self._kept(len(shape)) if self.spec is not None and self.spec.per_axis else set()
        return {
            "rounding": tuple(shape),
            "shift": (self.channels,),
            "reach": tuple(int(n) if axis in kept else 1 for axis, n in enumerate(shape)),
        }[name]

    @property
    def channels(self) -> int:
        """Number of output channels."""
        shape = self.kernel_shape
        return math.prod(int(shape[axis]) for axis in self._kept(len(shape)))

    def rows(self, path: str, values: tf.Tensor) -> np.ndarray:
        """float64[channels, n]: each output channel."""
        array = np.asarray(values, np.float64)
        # Channels in the order of `channel_axes`, which is that of the output, not that of the kernel's axes.
        kept = [axis % array.ndim for axis in self.channel_axes]
        rest = [axis for axis in range(array.ndim) if axis not in kept]
        return array.transpose(*kept, *rest).reshape(self.channels, -1)

    def scales(self, path: str) -> tf.Tensor | None:
        """float32[channels, 1], or [1, 1] where all channels share one."""
        if self.spec is None or not self.spec.has_codes:
            return None
        scale = self.scale_of(self.weights_as_used())
        return tf.constant(self.rows(path, scale) if self.spec.per_axis else np.reshape(scale, (1, 1)), tf.float32)

    def biases(self) -> int:
        """One for each channel, of zeros where the layer has none; 64 bits wide beside 16-bit activations."""
        return self.channels * (2 if self.wide else 1) if self.sums else 0

    @property
    def wide(self) -> bool:
        """True where the sums outgrow float32."""
        return False

    def weights_as_used(self, path: str | None = None) -> tf.Tensor:
        """The float kernel that is quantized: the trained one, transformed, times its gain and that of a batch norm."""
        weights = kernels.apply(self.transforms, kernels.real(self.layer, self.kernel_name))
        if self.gain is not None:
            weights = weights * tf.convert_to_tensor(self.gain)
        return weights if self.norm is None else weights * self._along(self.norm.factor())

    def _along(self, values: tf.Tensor) -> tf.Tensor:
        """One number for each output channel, shaped to broadcast against the kernel."""
        shape = self.kernel_shape
        kept = self._kept(len(shape))
        return tf.reshape(values, [n if axis in kept else 1 for axis, n in enumerate(shape)])

    def scale_of(self, weights: tf.Tensor, bias_reach: tf.Tensor | None = None) -> tf.Tensor:
        """Scales of the kernel, shaped to broadcast against it: see `encode_weights`."""
        spec = self.spec or QuantSpec(16, True, True)
        if spec.in_blocks:
            return tf.stop_gradient(block_scales(weights, spec, self.channel_axes))
        reach = None if self.reach is None else tf.convert_to_tensor(self.reach)
        if reach is not None:
            reach = reach * self._unit()
        scale = encode_weights(weights, spec, self.channel_axes, bias_reach=bias_reach, reach=reach)
        # The largest weight would get the gradients of all others through its scale; straight through, each has its own
        # alone.
        return tf.stop_gradient(scale)

    def _unit(self) -> tf.Tensor | float:
        """What `reach` is kept in: of a live batch norm the size of its factor, so that a range moves with it."""
        if self.norm is None or self.spec is None or not self.spec.per_axis:
            return 1.0
        return tf.stop_gradient(self._along(tf.abs(self.norm.factor())))

    def own_bias(self) -> tf.Tensor | None:
        """The wrapped layer's bias, float32[channels], or None."""
        with full_precision():
            own = getattr(self.layer, self.bias_name, None) if self.bias_name else None
            return None if own is None else tf.cast(tf.convert_to_tensor(own), tf.float32)

    def float_bias(self) -> tf.Tensor | None:
        """The bias of the float function: with the offset of a live batch norm, without a correction."""
        own = self.own_bias()
        return own if self.norm is None else self.norm.offset(own)

    def bias_as_used(self) -> tf.Tensor | None:
        """The float bias with its correction: float32[channels], or None where nothing is added."""
        own = self.float_bias()
        shift = None if self.shift is None else tf.convert_to_tensor(self.shift)
        if own is None or shift is None:
            return shift if own is None else own
        return own + shift

    def _kept(self, rank: int) -> set[int]:
        return {axis % rank for axis in self.channel_axes}

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {
            **super().get_config(),
            "spec": None if self.spec is None else self.spec.to_config(),
            "kernel": self.kernel_name,
            "bias": self.bias_name,
            "channel_axes": list(self.channel_axes),
            "sums": self.sums,
            "gain_shape": None if self.gain is None else list(self.gain.shape),
            "moments": self.has_moments,
            "corrected": list(self.corrected),
            "transforms": kernels.configs(self.transforms),
            "learning": None if self.learner is None else self.learner.learning.for_weights(),
            "norm": None if self.norm is None else self.norm.settings(),
        }
