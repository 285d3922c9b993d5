"""What surrounds a tensor: zeros, constants or mirrored values around it, and crops in any number of dimensions.

Minus infinity in front of max pooling is the lowest code, which is never larger than a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kquant.core.program import Program, Ref
from kquant.graph.graph import Node
from kquant.graph.keras_private import made_of
from kquant.ops.affine import affine
from kquant.ops.constant import LOWEST, MINUS_INFINITY, lowest_of
from kquant.ops.index import part, refuse_batch
from kquant.ops.rule import Call, Make, Rule, computed, example

layers = keras.layers
K = keras.ops
UNPOOLED, LOWEST_CODE = "minus infinity", "lowest"  # before, and when what reads it turns out to be max pooling
MODES = {"reflect": 0, "symmetric": 1}  # the schema's MirrorPadMode


@keras.saving.register_keras_serializable(package="kquant")
class Pad(keras.layers.Layer):
    """Zeros ("constant"), mirrored values or a very low number around each axis behind the batch.

    Example:
        >>> Pad([(1, 2)], "reflect")(np.float32([[1.0, 2.0, 3.0]])).numpy().tolist()
        [[2.0, 1.0, 2.0, 3.0, 2.0, 1.0]]
    """

    def __init__(self, widths: Sequence[Sequence[int]], mode: str = "constant", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.widths, self.mode = [(int(a), int(b)) for a, b in widths], mode

    def call(self, x: Any) -> Any:
        """Pad."""
        if self.mode in (UNPOOLED, LOWEST_CODE):
            return K.pad(x, [(0, 0), *self.widths], constant_values=lowest_of(x.dtype))
        return K.pad(x, [(0, 0), *self.widths], mode=self.mode)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Longer by what is added."""
        lengths = zip(input_shape[1:], self.widths, strict=True)
        return input_shape[0], *(n + before + after for n, (before, after) in lengths)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "widths": self.widths, "mode": self.mode}


def padded(make: Make, x: Any, widths: Sequence[Sequence[int]], name: str, *, value: float = 0.0, key: str = "") -> Any:
    """`x` with `value` around it; only zeros have a kernel, so others are shifted to 0 and back."""
    if not np.any(widths):
        return x

    def shifted(y: Any, by: float, label: str) -> Any:
        return make(f"{key}{label}", lambda: affine(1.0, by, channels=y.shape[-1], name=f"{name}_{label}"))(y)

    # On the way `value` is 0, which PAD writes as the zero point.
    x = shifted(x, -value, "down") if value else x
    x = make(f"{key}pad", lambda: Pad(widths, name=name))(x)
    return shifted(x, value, "up") if value else x


def _expand_pad(op: Any, make: Make, x: Any, constant_values: Any = None, *_: Any, **__: Any) -> Any:
    # One number, one pair, or a pair for each axis.
    widths = [tuple(int(n) for n in row) for row in np.broadcast_to(np.asarray(op.pad_width), (len(x.shape), 2))]
    refuse_batch(op, [0] if any(widths[0]) else [])
    if op.mode in MODES:
        return make("pad", lambda: Pad(widths[1:], op.mode, name=op.name))(x)
    if op.mode != "constant":
        raise ValueError(f"{op.name} (Pad): mode='{op.mode}'; constant, reflect and symmetric have a kernel.")
    value = 0.0 if constant_values is None else constant_values
    number = not isinstance(value, keras.KerasTensor) and np.size(value) == 1
    if number and float(np.reshape(value, ())) <= MINUS_INFINITY:
        return make("pad", lambda: Pad(widths[1:], UNPOOLED, name=op.name))(x)
    if not number or not np.isfinite(float(np.reshape(value, ()))):
        raise ValueError(f"{op.name} (Pad): constant_values must be one finite number. Received: {constant_values}.")
    return padded(make, x, widths[1:], op.name, value=float(np.reshape(value, ())))


def padded_for_pool(make: Make, x: Any) -> Any:
    """What max pooling reads: where minus infinity surrounds `x`, the tensor with the lowest code around it."""
    layer, read = made_of(x)
    if not isinstance(layer, Pad) or layer.mode != UNPOOLED:
        return x
    return make("lowest", lambda: Pad(layer.widths, LOWEST_CODE, name=layer.name))(read[0])


def _zero_padding(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    refuse_channels_first(op)
    return padded(make, x, [*op.padding, (0, 0)], op.name)


def refuse_channels_first(op: Any) -> None:
    """Rules that look at axes by number want channels last.

    Raises:
        ValueError: data_format is channels_first.
    """
    if op.data_format == "channels_first":
        raise ValueError(
            f"{op.name} ({type(op).__name__}): data_format='channels_first'; rebuild the model with channels_last."
        )


def _cropping(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    refuse_channels_first(op)
    ranges = {a: range(first, x.shape[a] - last) for a, (first, last) in enumerate(op.cropping, 1)}
    return part(make, x, ranges, op.name)


def _lower(program: Program, call: Call) -> None:
    widths = program.constant("paddings", np.array([(0, 0), *call.op.widths], np.int32))
    if call.op.mode in MODES:
        program.emit("MIRROR_PAD", [call.inputs[0], widths], call.output, mode=MODES[call.op.mode])
    else:
        program.emit("PAD", [call.inputs[0], widths], call.output)


def _lower_lowest(program: Program, call: Call) -> None:
    encoding = call.output.grid
    lowest = program.codes("lowest", np.array(encoding.spec.low), encoding)
    _emit_lowest(program, call, lowest)


def _lower_lowest_float(program: Program, call: Call) -> None:
    _emit_lowest(program, call, program.constant("lowest", np.array(LOWEST, np.float32)))


def _emit_lowest(program: Program, call: Call, lowest: Ref) -> None:
    widths = program.constant("paddings", np.array([(0, 0), *call.op.widths], np.int32))
    program.emit("PADV2", [call.inputs[0], widths, lowest], call.output)


def _unpooled(node: Node) -> str | None:
    if node.op.mode == UNPOOLED:
        return (
            "it pads with minus infinity, which has a code (the lowest one) in front of max pooling only, and another "
            "layer or the application reads it; pad with a finite number, like constant_values=-10.0"
        )
    return None


def _pooled(size: Any, value: float) -> Any:
    return lambda x: layers.MaxPooling2D(size, 2)(K.pad(x, ((0, 0), (1, 1), (2, 1), (0, 0)), constant_values=value))


def _too_wide(node: Node) -> str | None:
    lengths = node.inputs[0].shape[1:]
    # "reflect" leaves the edge itself out of the mirror.
    most = [n - (node.op.mode == "reflect") for n in lengths]
    if any(max(sides) > limit for sides, limit in zip(node.op.widths, most, strict=True)):
        return f"it mirrors more than the {list(lengths)} values there are; pad in several steps"
    return None


RULES = (
    Rule(
        layers=(Pad,),
        when=lambda op: op.mode == "constant",
        operators=("PAD",),
        output="same",
        lower=_lower,
        examples=(
            example(lambda: Pad([(1, 0), (0, 2), (1, 1)]), shape=(4, 5, 3)),
            example(lambda: Pad([(1, 0), (0, 2), (1, 1), (0, 1)]), shape=(3, 2, 5, 3)),
        ),
    ),
    Rule(
        layers=(Pad,),
        when=lambda op: op.mode in (UNPOOLED, LOWEST_CODE),
        operators=("PADV2",),
        output="follows",
        lower=_lower_lowest,
        lower_float=_lower_lowest_float,
        refuse=_unpooled,
        examples=(computed(_pooled(3, -np.inf), (6, 5, 3)), computed(_pooled((2, 3), -1e30), (6, 5, 3))),
    ),
    Rule(
        layers=(Pad,),
        operators=("MIRROR_PAD",),
        output="same",
        lower=_lower,
        refuse=_too_wide,
        examples=tuple(example(lambda m=m: Pad([(2, 1), (0, 3), (0, 0)], m), shape=(4, 5, 3)) for m in MODES),
    ),
    Rule(
        operations=("Pad",),
        expand=_expand_pad,
        examples=(
            computed(lambda x: K.pad(x, ((0, 0), (1, 2), (0, 1))), (4, 3)),
            computed(lambda x: K.pad(x, ((0, 0), (1, 2), (0, 1)), constant_values=-1.5), (4, 3)),
            computed(lambda x: K.pad(x, ((0, 0), (1, 2), (0, 0)), mode="symmetric"), (4, 3)),
        ),
    ),
    Rule(
        layers=(layers.ZeroPadding3D,),
        expand=_zero_padding,
        examples=(example(lambda: layers.ZeroPadding3D(((1, 2), (0, 1), (2, 0))), shape=(3, 4, 2, 3)),),
    ),
    Rule(
        layers=(layers.Cropping3D,),
        expand=_cropping,
        examples=(example(lambda: layers.Cropping3D(((1, 0), (0, 2), (1, 1))), shape=(3, 4, 4, 3)),),
    ),
)
