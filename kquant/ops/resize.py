"""Images in other sizes: RESIZE_BILINEAR, RESIZE_NEAREST_NEIGHBOR, crops and pads to an aspect ratio, repeated rows."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.core.program import Program
from kquant.graph.graph import Node
from kquant.ops.border import padded, refuse_channels_first
from kquant.ops.index import part, picked
from kquant.ops.rule import Call, Make, Rule, computed, example

layers = keras.layers
K = keras.ops


@keras.saving.register_keras_serializable(package="kquant")
class Resize(keras.layers.Layer):
    """`keras.ops.image.resize` to `(height, width)`: pixels at their centres, "bilinear" or "nearest".

    Example:
        >>> Resize(1, 2, "nearest")(np.float32([1, 2, 3, 4]).reshape(1, 1, 4, 1)).numpy().ravel().tolist()
        [2.0, 4.0]
    """

    def __init__(self, height: int, width: int, interpolation: str = "bilinear", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.height, self.width, self.interpolation = int(height), int(width), interpolation

    def call(self, x: Any) -> Any:
        """Resize."""
        return K.image.resize(
            x, (self.height, self.width), interpolation=self.interpolation, data_format="channels_last"
        )

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The new size, the old channels."""
        return input_shape[0], self.height, self.width, input_shape[-1]

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        mine = {"height": self.height, "width": self.width, "interpolation": self.interpolation}
        return {**super().get_config(), **mine}


def _resized(op: Any, make: Make, x: Any, size: tuple[int, int]) -> Any:
    """`x` at this size, after what `op` says of the aspect ratio."""
    refuse_channels_first(op)
    if len(x.shape) != 4:
        raise ValueError(f"{op.name} ({type(op).__name__}): it needs images [batch, height, width, channels].")
    # Where an image only grows, antialias changes nothing.
    if op.antialias and (size[0] < x.shape[1] or size[1] < x.shape[2]):
        raise ValueError(
            f"{op.name} ({type(op).__name__}): antialias=True has no integer kernel; set it to False, or resize in the "
            "application's preprocessing."
        )
    if op.crop_to_aspect_ratio:
        x = cropped(make, x, size, op.name)
    elif op.pad_to_aspect_ratio:
        # Both sides get the same, cut off, as Keras pads; what is missing to the ratio the resize stretches.
        sides = [max(wanted - n, 0) // 2 for wanted, n in zip(_reach(x, size), x.shape[1:3], strict=True)]
        widths = [(side, side) for side in sides]
        x = padded(make, x, [*widths, (0, 0)], f"{op.name}_pad", value=float(op.fill_value))
    return make("resize", lambda: Resize(*size, op.interpolation, name=op.name))(x)


def cropped(make: Make, x: Any, size: tuple[int, int], name: str) -> Any:
    """The middle of `x`, with the aspect ratio of `size`."""
    # An image is too long for the ratio on one side only: the other one stays whole.
    lengths = [max(min(n, wanted), 1) for n, wanted in zip(x.shape[1:3], _reach(x, size), strict=True)]
    starts = [(n - length) // 2 for n, length in zip(x.shape[1:3], lengths, strict=True)]
    ranges = {a: range(s, s + length) for a, (s, length) in enumerate(zip(starts, lengths, strict=True), 1)}
    return part(make, x, ranges, f"{name}_crop", "crop")


def _reach(x: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Height for the width that there is, and width for the height, at the aspect ratio of `size`."""
    # Divided in float32 and cut off, as Keras does it.
    (height, width), (rows, columns) = x.shape[1:3], size
    return int(np.float32(width * rows) / np.float32(columns)), int(np.float32(height * columns) / np.float32(rows))


def _resizing(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    return _resized(op, make, x, (op.height, op.width))


def _operation(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    return _resized(op, make, x, (int(op.size[0]), int(op.size[1])))


def _center_crop(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    """The middle, or the whole image resized where it is smaller than what is wanted."""
    refuse_channels_first(op)
    extra = [x.shape[1] - op.height, x.shape[2] - op.width]
    if min(extra) >= 0:
        starts = [e // 2 for e in extra]
        ranges = {1: range(starts[0], starts[0] + op.height), 2: range(starts[1], starts[1] + op.width)}
        return part(make, x, ranges, op.name)
    # Keras' smart_resize: the largest part with that ratio, then resized.
    x = cropped(make, x, (op.height, op.width), op.name)
    return make("resize", lambda: Resize(op.height, op.width, name=op.name))(x)


def _repeated(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    """Every row of each axis `size` times."""
    if getattr(op, "data_format", "channels_last") == "channels_first":
        refuse_channels_first(op)
    for axis, n in enumerate(np.atleast_1d(op.size), 1):
        x = picked(make, x, np.repeat(np.arange(x.shape[axis]), n), axis, f"{op.name}_axis{axis}", f"axis{axis}")
    return x


def _bilinear(node: Node) -> tuple[str, dict[str, Any]]:
    return "RESIZE_BILINEAR", {"size": [node.op.height, node.op.width], "half_pixel_centers": True}


def _lower(program: Program, call: Call) -> None:
    size = program.constant("size", np.array(call.output.shape[1:3], np.int32))
    code = "RESIZE_BILINEAR" if call.op.interpolation == "bilinear" else "RESIZE_NEAREST_NEIGHBOR"
    # Pixels at their centres, as Keras resizes.
    program.emit(code, [call.inputs[0], size], call.output, alignCorners=False, halfPixelCenters=True)


def _unknown_interpolation(node: Node) -> str | None:
    if node.op.interpolation not in ("nearest", "bilinear"):
        return f"interpolation='{node.op.interpolation}'; the kernels know nearest and bilinear: set one of them"
    return None


SIZES = ((9, 4), (3, 11))
RULES = (
    Rule(
        layers=(Resize,),
        when=lambda op: op.interpolation == "bilinear",
        operators=("RESIZE_BILINEAR",),
        output="follows",
        arithmetic=_bilinear,
        lower=_lower,
        examples=tuple(example(lambda size=size: Resize(*size), shape=(6, 7, 3)) for size in SIZES),
    ),
    Rule(
        layers=(Resize,),
        operators=("RESIZE_NEAREST_NEIGHBOR",),
        output="same",
        lower=_lower,
        refuse=_unknown_interpolation,
        examples=tuple(example(lambda h=h, w=w: Resize(h, w, "nearest"), shape=(6, 7, 3)) for h, w in SIZES),
    ),
    Rule(
        layers=(layers.Resizing,),
        expand=_resizing,
        examples=(
            example(lambda: layers.Resizing(4, 9), shape=(6, 7, 3)),
            example(lambda: layers.Resizing(4, 4, crop_to_aspect_ratio=True, antialias=False), shape=(6, 9, 3)),
            example(lambda: layers.Resizing(5, 5, pad_to_aspect_ratio=True, fill_value=1.0), shape=(4, 8, 3)),
        ),
    ),
    Rule(
        operations=("Resize",),
        expand=_operation,
        examples=(computed(lambda x: K.image.resize(x, (5, 3), interpolation="nearest"), (6, 7, 3)),),
    ),
    Rule(
        layers=(layers.CenterCrop,),
        expand=_center_crop,
        examples=(
            example(lambda: layers.CenterCrop(3, 4), shape=(6, 7, 3)),
            example(lambda: layers.CenterCrop(8, 4), shape=(6, 7, 3)),
        ),
    ),
    Rule(
        layers=(layers.UpSampling1D, layers.UpSampling3D),
        expand=_repeated,
        examples=(
            example(lambda: layers.UpSampling1D(3), shape=(4, 5)),
            example(lambda: layers.UpSampling3D((1, 2, 3)), shape=(3, 2, 2, 3)),
        ),
    ),
)
