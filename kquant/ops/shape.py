"""Layers that move or repeat values: the codes stay what they are, except under bilinear interpolation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kquant.core.program import Program
from kquant.graph.graph import Node
from kquant.ops.rule import Call, Make, Rule, computed, example
from kquant.ops.samples import why_mixed

layers = keras.layers
EVERYWHERE = 5  # dimensions that every interpreter's TRANSPOSE takes; what has more is merged into fewer


def _lower_reshape(program: Program, call: Call) -> None:
    program.reshape(call.inputs[0], call.output.shape, call.output)


def merged_axes(shape: Sequence[int], order: Sequence[int]) -> tuple[list[int], list[int]]:
    """The same transposition in as few dimensions as it has: axes of length 1 gone, those that move together one.

    Args:
        shape: of the tensor, batch included.
        order: for each axis of the result, the axis it comes from.

    Returns:
        shape and order; a transposition that moves nothing has one axis.

    Example:
        >>> merged_axes((1, 4, 2, 6, 2, 8), (0, 1, 3, 2, 4, 5))  # windows of an image
        ([4, 2, 6, 16], [0, 2, 1, 3])
    """
    runs: list[list[int]] = []
    for axis in (a for a in order if shape[a] != 1):
        # what lies between two axes of the source does not part them where its length is 1
        follows = runs and runs[-1][-1] < axis and all(shape[a] == 1 for a in range(runs[-1][-1] + 1, axis))
        if follows:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    source = sorted(runs)
    sizes = [int(np.prod([shape[a] for a in run], dtype=np.int64)) for run in source]
    return sizes or [1], [source.index(run) for run in runs] or [0]


def _permuted_rank(node: Node) -> int:
    shape = (1, *node.inputs[0].shape[1:])
    return len(shape) if len(shape) <= EVERYWHERE else len(merged_axes(shape, (0, *node.op.dims))[0])


def _lower_permute(program: Program, call: Call) -> None:
    x, order = call.inputs[0], (0, *call.op.dims)
    if len(x.shape) <= EVERYWHERE:
        program.emit("TRANSPOSE", [x, program.constant("order", np.array(order, np.int32))], call.output)
        return
    shape, order = merged_axes(x.shape, order)
    moved = program.value(
        f"{call.output.name}/moved", [shape[a] for a in order], call.output.encoding, call.output.dtype
    )
    program.emit("TRANSPOSE", [program.reshape(x, shape), program.constant("order", np.array(order, np.int32))], moved)
    program.reshape(moved, call.output.shape, call.output)


def _sides(amount: Any) -> list[tuple[int, int]]:
    """`((top, bottom), (left, right))` of a 1-D or 2-D layer."""
    return [tuple(amount)] if isinstance(amount[0], int) else [tuple(side) for side in amount]


def _lower_padding(program: Program, call: Call) -> None:
    rows = [(0, 0), *_sides(call.op.padding), (0, 0)]
    program.emit("PAD", [call.inputs[0], program.constant("paddings", np.array(rows, np.int32))], call.output)


def _lower_cropping(program: Program, call: Call) -> None:
    begin = [0, *(first for first, _ in _sides(call.op.cropping)), 0]
    program.emit(
        "SLICE",
        [
            call.inputs[0],
            program.constant("begin", np.array(begin, np.int32)),
            program.constant("size", np.array(call.output.shape, np.int32)),
        ],
        call.output,
    )


def _lower_resize(program: Program, call: Call) -> None:
    size = program.constant("size", np.array(call.output.shape[1:3], np.int32))
    code = "RESIZE_BILINEAR" if call.op.interpolation == "bilinear" else "RESIZE_NEAREST_NEIGHBOR"
    # Keras repeats pixels for "nearest"; with whole factors every convention of the kernel gives that.
    half = call.op.interpolation == "bilinear"
    program.emit(code, [call.inputs[0], size], call.output, alignCorners=False, halfPixelCenters=half)


def _bilinear(node: Node) -> tuple[str, dict[str, Any]]:
    return "RESIZE_BILINEAR", {"size": list(node.outputs[0].shape[1:3]), "half_pixel_centers": True}


def _repeat(op: Any, make: Make, x: Any) -> Any:
    """`[batch, features]` to `[batch, n, features]`: n copies, concatenated."""
    row = make("row", lambda: layers.Reshape((1, x.shape[-1]), name=f"{op.name}_row"))(x)
    # A concatenation of one is no operator.
    if op.n == 1:
        return row
    return make("copies", lambda: layers.Concatenate(axis=1, name=op.name))([row] * op.n)


def _reshaped(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    """Reshape, squeeze and expand_dims: a Reshape layer to the shape that the operation makes."""
    shape = _closed(op.compute_output_spec(x).shape, x.shape)
    # An open batch stays open (None); equal counts behind it mean that no sample gives values to another.
    moved = shape[0] != x.shape[0] or len(shape) < 1
    if moved or int(np.prod(shape[1:], dtype=np.int64)) != int(np.prod(x.shape[1:], dtype=np.int64)):
        raise ValueError(
            f"{op.name} ({type(op).__name__}): it moves values across the batch axis, {tuple(x.shape)} to "
            f"{tuple(shape)}, so that several samples stand in one row; the device computes one sample at a time. Keep "
            "the first axis as it is ((ops.shape(x)[0], ...) or (-1, ...) with all the other sizes): Dense, softmax, "
            "matmul and MultiHeadAttention work on one axis more, a convolution does in a TimeDistributed."
        )
    return make("reshape", lambda: layers.Reshape(shape[1:], name=op.name))(x)


def _closed(made: tuple[Any, ...], given: tuple[Any, ...]) -> tuple[Any, ...]:
    """A shape whose one open axis behind the batch, which Keras leaves open beside an open batch, has its length.

    Example:
        >>> _closed((None, None, 4), (None, 2, 3, 4))
        (None, 6, 4)
    """
    rest = [size for size in made[1:] if size is not None]
    if len(rest) != len(made) - 2 or None in given[1:]:
        return made
    length = math.prod(size or 0 for size in given[1:]) // max(1, math.prod(rest))
    return (made[0], *(length if size is None else size for size in made[1:]))


def _order(op: Any, rank: int) -> list[int]:
    """For each axis of the result, the axis it comes from."""
    order = list(range(rank))
    if type(op).__name__ == "Swapaxes":
        a, b = op.axis1 % rank, op.axis2 % rank
        order[a], order[b] = b, a
        return order
    if type(op).__name__ == "Moveaxis":
        source, target = ([a % rank for a in np.atleast_1d(axes)] for axes in (op.source, op.destination))
        # The axes that stay keep their order; the others go in between, from the front to the back.
        order = [a for a in order if a not in source]
        for position, axis in sorted(zip(target, source, strict=True)):
            order.insert(position, axis)
        return order
    # Without axes a transposition turns them all round, the samples with them, which is refused behind.
    return order[::-1] if op.axes is None else [a % rank for a in op.axes]


def _transposed(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    order = [int(a) for a in _order(op, len(x.shape))]
    if order[0] != 0:
        raise ValueError(f"{op.name} ({type(op).__name__}): axes {order}: {why_mixed(type(op).__name__)}.")
    return make("permute", lambda: layers.Permute(order[1:], name=op.name))(x)


def _channels_first(node: Node) -> str | None:
    if getattr(node.op, "data_format", "channels_last") == "channels_first":
        return "data_format='channels_first'; rebuild the model with channels_last"
    if getattr(node.op, "interpolation", "nearest") not in ("nearest", "bilinear"):
        return f"interpolation='{node.op.interpolation}'; the kernels know nearest and bilinear"
    return None


RULES = (
    Rule(
        layers=(layers.Flatten, layers.Reshape),
        operators=("RESHAPE",),
        output="same",
        lower=_lower_reshape,
        refuse=_channels_first,
        examples=(
            example(lambda: layers.Flatten(), shape=(4, 5, 3)),
            example(lambda: layers.Reshape((6, -1)), shape=(4, 6)),
        ),
    ),
    Rule(
        operations=("Reshape", "Squeeze", "ExpandDims"),
        expand=_reshaped,
        examples=(
            computed(lambda x: keras.ops.reshape(x, (-1, 4, 15)), (4, 5, 3)),
            computed(lambda x: keras.ops.squeeze(keras.ops.expand_dims(x, 1), 1), (4, 5)),
            computed(lambda x: keras.ops.expand_dims(keras.ops.squeeze(x, 2), -1), (4, 1, 5)),
        ),
    ),
    Rule(
        operations=("Transpose", "Swapaxes", "Moveaxis"),
        expand=_transposed,
        examples=(
            computed(lambda x: keras.ops.transpose(x, (0, 3, 1, 2)), (4, 5, 3)),
            computed(lambda x: keras.ops.swapaxes(x, 1, -1), (4, 5, 3)),
            computed(lambda x: keras.ops.moveaxis(x, 1, 3), (4, 5, 3)),
        ),
    ),
    Rule(
        layers=(layers.Permute,),
        operators=("TRANSPOSE", "RESHAPE"),
        output="same",
        rank=_permuted_rank,
        lower=_lower_permute,
        examples=(
            example(lambda: layers.Permute((2, 1, 3)), shape=(4, 5, 3)),
            example(lambda: layers.Permute((4, 1, 3, 2)), shape=(2, 5, 3, 4)),
            example(lambda: layers.Permute((1, 3, 2, 4, 5)), shape=(2, 3, 4, 2, 3)),
            example(lambda: layers.Permute((2, 5, 1, 3, 6, 4)), shape=(2, 3, 2, 1, 2, 3)),
        ),
    ),
    Rule(
        layers=(layers.ZeroPadding1D, layers.ZeroPadding2D),
        operators=("PAD",),
        output="same",
        lower=_lower_padding,
        refuse=_channels_first,
        examples=(
            example(lambda: layers.ZeroPadding2D(((1, 2), (0, 3))), shape=(4, 5, 3)),
            example(lambda: layers.ZeroPadding1D((2, 1)), shape=(5, 3)),  # pyright: ignore[reportArgumentType]
        ),
    ),
    Rule(
        layers=(layers.Cropping1D, layers.Cropping2D),
        operators=("SLICE",),
        output="same",
        lower=_lower_cropping,
        refuse=_channels_first,
        examples=(
            example(lambda: layers.Cropping2D(((1, 0), (2, 1))), shape=(5, 6, 3)),
            example(lambda: layers.Cropping1D(1), shape=(5, 3)),
        ),
    ),
    Rule(
        layers=(layers.UpSampling2D,),
        when=lambda op: op.interpolation == "bilinear",
        operators=("RESIZE_BILINEAR",),
        output="follows",
        arithmetic=_bilinear,
        lower=_lower_resize,
        refuse=_channels_first,
        examples=(
            example(lambda: layers.UpSampling2D(2, interpolation="bilinear"), shape=(4, 5, 3)),
            example(lambda: layers.UpSampling2D((3, 2), interpolation="bilinear"), shape=(4, 3, 2)),
        ),
    ),
    Rule(
        layers=(layers.UpSampling2D,),
        operators=("RESIZE_NEAREST_NEIGHBOR",),
        output="same",
        lower=_lower_resize,
        refuse=_channels_first,
        examples=(example(lambda: layers.UpSampling2D((2, 3)), shape=(4, 5, 3)),),
    ),
    Rule(
        layers=(layers.RepeatVector,),
        expand=_repeat,
        examples=(example(lambda: layers.RepeatVector(3), shape=(5,)),),
    ),
)
