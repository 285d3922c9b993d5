"""Operations of `keras.ops.nn` that are a layer's function with the weights as arguments: rebuilt as that layer."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.core.program import Program
from kquant.ops.border import refuse_channels_first
from kquant.ops.rule import Call, Make, Rule, computed, example

layers = keras.layers
K = keras.ops


@keras.saving.register_keras_serializable(package="kquant")
class Blocks(keras.layers.Layer):
    """Blocks of pixels to channels ("to_depth") or back: SPACE_TO_DEPTH, DEPTH_TO_SPACE.

    Example:
        >>> Blocks(2, to_depth=True)(np.float32([1, 2, 3, 4]).reshape(1, 2, 2, 1)).numpy().ravel().tolist()
        [1.0, 2.0, 3.0, 4.0]
    """

    def __init__(self, size: int, to_depth: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size, self.to_depth = int(size), bool(to_depth)

    def call(self, x: Any) -> Any:
        """Move the values."""
        move = K.space_to_depth if self.to_depth else K.depth_to_space
        return move(x, self.size, data_format="channels_last")

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Smaller and deeper, or larger and flatter."""
        batch, height, width, channels = input_shape
        n = self.size
        if self.to_depth:
            return batch, height // n, width // n, channels * n * n
        return batch, height * n, width * n, channels // (n * n)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "size": self.size, "to_depth": self.to_depth}


def _blocks(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    refuse_channels_first(op)
    return make("blocks", lambda: Blocks(op.block_size, type(op).__name__ == "SpaceToDepth", name=op.name))(x)


def _lower_blocks(program: Program, call: Call) -> None:
    code = "SPACE_TO_DEPTH" if call.op.to_depth else "DEPTH_TO_SPACE"
    program.emit(code, [call.inputs[0]], call.output, blockSize=call.op.size)


def _class(stem: str, rank: int) -> Any:
    return getattr(layers, stem.format(rank))


def _pool(stem: str) -> Any:
    def expand(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
        refuse_channels_first(op)
        cls, strides = _class(stem, len(x.shape) - 2), op.strides or op.pool_size
        return make("pool", lambda: cls(op.pool_size, strides=strides, padding=op.padding, name=op.name))(x)

    return expand


def _adaptive(stem: str) -> Any:
    def expand(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
        refuse_channels_first(op)
        return make("pool", lambda: _class(stem, len(x.shape) - 2)(op.output_size, name=op.name))(x)

    return expand


def _conv(stem: str) -> Any:
    """A layer without bias; its kernel trains where the operation's is a variable that does."""

    def expand(op: Any, make: Make, x: Any, kernel: Any, *_: Any, **__: Any) -> Any:
        refuse_channels_first(op)
        if isinstance(kernel, keras.KerasTensor):
            raise ValueError(
                f"{op.name} ({type(op).__name__}): its kernel is computed by the model; kernels must be weights or "
                "constants of the model."
            )
        rank = len(x.shape) - 2

        def build() -> Any:
            values = np.asarray(keras.ops.convert_to_numpy(kernel))
            new = _layer(op, stem, rank, x.shape[-1], values.shape)
            new.build((None, *x.shape[1:]))
            new.kernel.assign(values)
            new.trainable = bool(getattr(kernel, "trainable", False))
            return new

        return make("conv", build)(x)

    return expand


def _layer(op: Any, stem: str, rank: int, channels: int, shape: tuple[int, ...]) -> Any:
    """A layer of the operation's settings for a kernel of this shape."""
    dilation = op.dilation_rate if isinstance(op.dilation_rate, int) else tuple(op.dilation_rate)
    shared = {
        "strides": op.strides if isinstance(op.strides, int) else tuple(op.strides),
        "padding": op.padding,
        "dilation_rate": dilation,
        "use_bias": False,
        "name": op.name,
    }
    # Kernels are [..., in, multiplier], [..., out, in] and [..., in / groups, out], in this order below.
    size = shape[:rank] if rank > 1 else shape[0]
    if "Depthwise" in stem:
        return _class(stem, rank)(size, depth_multiplier=shape[-1], **shared)
    if "Transpose" in stem:
        return _class(stem, rank)(shape[-2], size, output_padding=op.output_padding, **shared)
    return _class(stem, rank)(shape[-1], size, groups=channels // shape[-2], **shared)


def _kernel(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32) * 0.3


@keras.saving.register_keras_serializable(package="kquant")
class _OwnConv(keras.layers.Layer):
    """A convolution with a weight of its own, to be unfolded."""

    def build(self, input_shape: Any) -> None:
        """Make the kernel."""
        self.kernel = self.add_weight(name="kernel", shape=(3, 3, input_shape[-1], 4))

    def call(self, x: Any) -> Any:
        """Convolve and pool."""
        return K.max_pool(K.relu(K.conv(x, self.kernel, padding="same")), 2)


@keras.saving.register_keras_serializable(package="kquant")
class _OwnTransposed(keras.layers.Layer):
    """A transposed convolution inside a custom layer, to be unfolded. (Keras runs it nowhere else.)"""

    def call(self, x: Any) -> Any:
        """Convolve."""
        return K.conv_transpose(x, _kernel(2, 2, 3, x.shape[-1]), strides=2, data_format="channels_last")


def _rule(name: str, expand: Any, *examples: Any, needs: tuple[str, ...] = ()) -> Rule:
    models = tuple(computed(f, (6, 6, 4)) for f in examples)
    return Rule(operations=(name,), needs=needs, expand=expand, examples=models)


def _later(name: str, function: str, expand: Any, *arguments: Any) -> Rule:
    """A rule for a function that came after the oldest Keras."""
    return _rule(name, expand, lambda x: getattr(K, function)(x, *arguments), needs=(f"ops.{function}",))


def _blocks_rule(to_depth: bool) -> Rule:
    return Rule(
        layers=(Blocks,),
        when=lambda op: op.to_depth is to_depth,
        operators=("SPACE_TO_DEPTH" if to_depth else "DEPTH_TO_SPACE",),
        output="same",
        lower=_lower_blocks,
        examples=(example(lambda: Blocks(2, to_depth), shape=(4, 6, 8)),),
    )


RULES = (
    _blocks_rule(True),
    _blocks_rule(False),
    _later("SpaceToDepth", "space_to_depth", _blocks, 3),
    _later("DepthToSpace", "depth_to_space", _blocks, 2),
    _rule("MaxPool", _pool("MaxPooling{}D"), lambda x: K.max_pool(x, (2, 3), strides=1, padding="same")),
    _rule("AveragePool", _pool("AveragePooling{}D"), lambda x: K.average_pool(x, 2)),
    _later("AdaptiveMaxPool", "adaptive_max_pool", _adaptive("AdaptiveMaxPooling{}D"), (3, 2)),
    _later("AdaptiveAveragePool", "adaptive_average_pool", _adaptive("AdaptiveAveragePooling{}D"), (2, 4)),
    _rule("Conv", _conv("Conv{}D"), lambda x: _OwnConv()(x), lambda x: K.conv(x, _kernel(3, 2, 4, 6), strides=2)),
    _rule("DepthwiseConv", _conv("DepthwiseConv{}D"), lambda x: K.depthwise_conv(x, _kernel(3, 3, 4, 2))),
    _rule("ConvTranspose", _conv("Conv{}DTranspose"), lambda x: _OwnTransposed()(x)),
)
