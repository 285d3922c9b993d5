"""Parts of a tensor: slices, splits, picked rows, and stacks of them. The codes stay what they are.

x[:, 1:-1]      Slice  SLICE                x[:, ::2]     Slice  STRIDED_SLICE
x[:, ::-1]      Pick   GATHER, with constant int32 indices
split, unstack  one Slice for each part
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from kquant.core.program import Program
from kquant.ops.rule import Call, Make, Rule, computed, example
from kquant.ops.samples import why_mixed

layers = keras.layers
STRIDED_RANK = 4  # TFLM's STRIDED_SLICE takes no more; strided parts of larger tensors are picked


@keras.saving.register_keras_serializable(package="kquant")
class Slice(keras.layers.Layer):
    """`x[:, begin:end:step, ...]`; three lists over the axes behind the batch, all steps positive.

    Example:
        >>> Slice([1], [4], [2])(np.arange(6.0).reshape(1, 6)).numpy().tolist()
        [[1.0, 3.0]]
    """

    def __init__(self, begin: Sequence[int], end: Sequence[int], step: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.begin, self.end, self.step = ([int(n) for n in values] for values in (begin, end, step))

    def call(self, x: Any) -> Any:
        """Cut the part out."""
        return x[(slice(None), *(slice(*three) for three in zip(self.begin, self.end, self.step, strict=True)))]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The lengths of the ranges."""
        return input_shape[0], *(len(range(*three)) for three in zip(self.begin, self.end, self.step, strict=True))

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "begin": self.begin, "end": self.end, "step": self.step}


@keras.saving.register_keras_serializable(package="kquant")
class Pick(keras.layers.Layer):
    """Rows `indices` along `axis`, in that order, as often as they are named.

    Example:
        >>> Pick([2, 0, 0], axis=1)(np.float32([[5.0, 6.0, 7.0]])).numpy().tolist()
        [[7.0, 5.0, 5.0]]
    """

    def __init__(self, indices: Sequence[int], axis: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.indices, self.axis = [int(i) for i in indices], int(axis)

    def call(self, x: Any) -> Any:
        """Take the rows."""
        return keras.ops.take(x, np.array(self.indices, np.int32), axis=self.axis)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """As many rows as indices."""
        return *input_shape[: self.axis], len(self.indices), *input_shape[self.axis + 1 :]

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "indices": self.indices, "axis": self.axis}


def refuse_batch(op: Any, axes: Sequence[int]) -> None:
    """Nothing moves between samples.

    Raises:
        ValueError: axis 0 is among the axes.
    """
    if 0 in axes:
        kind = type(op).__name__
        raise ValueError(f"{op.name} ({kind}): {why_mixed(kind, everything=getattr(op, 'axis', 0) is None)}.")


def along(op: Any, axis: Any, rank: int) -> int:
    """The axis counted from the front; never the batch.

    Raises:
        ValueError: no axis (the flattened tensor), or the batch axis.
    """
    counted = 0 if axis is None else int(axis) % rank  # 0 is refused
    refuse_batch(op, [counted])
    return counted


def part(make: Make, x: Any, ranges: dict[int, range], name: str, key: str = "part") -> Any:
    """`x` cut to a range with a positive step on each of these axes; `x` itself where nothing is cut."""
    rank, lengths = len(x.shape), x.shape
    # A range as long as the axis is the axis itself, all steps being positive.
    ranges = {a: r for a, r in ranges.items() if len(r) != lengths[a]}
    if not ranges:
        return x
    strided = [a for a, r in ranges.items() if r.step != 1]
    if rank > STRIDED_RANK and strided:
        # Strided axes are picked one by one; the plain ones remain for the call below.
        for axis in strided:
            x = picked(make, x, list(ranges.pop(axis)), axis, f"{name}_axis{axis}", f"{key}_axis{axis}")
        return part(make, x, ranges, name, key)
    full = [ranges.get(a, range(lengths[a])) for a in range(1, rank)]
    begin, end, step = [r.start for r in full], [r.stop for r in full], [r.step for r in full]
    return make(key, lambda: Slice(begin, end, step, name=name))(x)


def picked(make: Make, x: Any, indices: Sequence[int] | np.ndarray, axis: int, name: str, key: str = "pick") -> Any:
    """Rows of `x` along an axis; `x` itself where they are all its rows in order, a slice where they lie in a row."""
    indices = [int(i) for i in indices]
    length = x.shape[axis]
    if indices == list(range(length)):
        return x
    # Neighbours in rising order are a SLICE, which targets without a GATHER have.
    row = range(indices[0], indices[-1] + 1)
    if indices == list(row):
        return part(make, x, {axis: row}, name, key)
    return make(key, lambda: Pick(indices, axis, name=name))(x)


def reshaped(make: Make, x: Any, shape: Sequence[int], name: str, key: str = "shape") -> Any:
    """`x` in another shape (without the batch), or as it is."""
    if tuple(x.shape[1:]) == tuple(shape):
        return x
    return make(key, lambda: layers.Reshape(tuple(shape), name=name))(x)


def _getitem(op: Any, make: Make, x: Any, key: Any) -> Any:
    items = _items(op, key, len(x.shape))
    # `axis` counts axes of x, `shape` those of the result: None adds one to the result only, a number takes one away.
    axis, shape, cut = 0, [], {}
    for item in items:
        if item is None:
            refuse_batch(op, [0] if axis == 0 else [])
            shape.append(1)
            continue
        length = x.shape[axis]
        if axis == 0:
            refuse_batch(op, [] if item == slice(None) else [0])
        elif isinstance(item, slice):
            cut[axis] = range(*item.indices(length))
            shape.append(len(cut[axis]))
        elif isinstance(item, list):
            cut[axis] = [i % length for i in item]
            shape.append(len(item))
        else:
            cut[axis] = range(int(item) % length, int(item) % length + 1)
        axis += 1
    # Slices first, since they leave less for what follows; turned ones and lists are picked, each along its axis.
    plain = {a: r for a, r in cut.items() if isinstance(r, range) and r.step > 0}
    y = part(make, x, plain, f"{op.name}_part", "part")
    for a in [a for a in cut if a not in plain]:
        y = picked(make, y, list(cut[a]), a, f"{op.name}_axis{a}", f"axis{a}")
    return reshaped(make, y, shape, op.name)


def _items(op: Any, key: Any, rank: int) -> list[Any]:
    """One entry for each axis of the tensor and each new one; the ellipsis spelled out."""
    items = list(key) if isinstance(key, tuple) or _was_tuple(key) else [key]
    items = [_item(op, item) for item in items]
    if sum(isinstance(item, list) for item in items) > 1:
        raise ValueError(f"{op.name} (GetItem): several lists of indices at once; index one axis after another.")
    # New axes use up none of the tensor's; what no item speaks of is taken whole, where the ellipsis stands or at the
    # end.
    used = sum(item is not None and item is not Ellipsis for item in items)
    where = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
    return [*items[:where], *[slice(None)] * (rank - used), *items[where + 1 :]]


def _was_tuple(key: Any) -> bool:
    """A key of a loaded model: Keras' files have lists in the place of tuples; positions alone are a list of them."""
    return isinstance(key, list) and any(item is None or item is Ellipsis or isinstance(item, slice) for item in key)


def _item(op: Any, item: Any) -> Any:
    if item is None or item is Ellipsis:
        return item
    parts = [item.start, item.stop, item.step] if isinstance(item, slice) else [item]
    if any(isinstance(p, keras.KerasTensor) for p in parts):
        raise ValueError(
            f"{op.name} (GetItem): an index that the model computes; the file needs constant positions. Index with "
            "numbers, or do it in the application."
        )
    if isinstance(item, slice):
        return slice(*(None if p is None else int(p) for p in parts))
    array = np.asarray(item)
    if array.dtype == bool or array.ndim > 1:
        raise ValueError(
            f"{op.name} (GetItem): it indexes with an array of {array.dtype} {array.shape}; only numbers, slices and "
            "one list of positions for an axis have a kernel. Use keras.ops.take."
        )
    return [int(i) for i in array] if array.ndim else int(array)


def _slice(op: Any, make: Make, x: Any, begin: Any, shape: Any = None, **__: Any) -> Any:
    """`ops.slice`: as long as `op.shape` from `begin` on; -1 reaches to the end."""
    begin = constant_indices(op, begin).reshape(-1)
    lengths = op.shape if shape is None else shape  # older Kerases pass it with the call
    shape = [int(n) if n is not None else -1 for n in lengths]
    # An open batch is -1 here; 1, the batch of the file, means all of it as well.
    refuse_batch(op, [] if begin[0] == 0 and shape[0] in (-1, 1) else [0])
    ranges = {
        a: range(int(begin[a]), x.shape[a] if shape[a] == -1 else int(begin[a]) + shape[a])
        for a in range(1, len(x.shape))
    }
    return part(make, x, ranges, op.name)


def constant_indices(op: Any, indices: Any) -> np.ndarray:
    """Indices that do not depend on the model's inputs.

    Raises:
        ValueError: the model computes them.
    """
    if any(isinstance(i, keras.KerasTensor) for i in keras.tree.flatten(indices)):
        raise ValueError(
            f"{op.name} ({type(op).__name__}): its indices are computed by the model; the file needs constant ones. "
            "Use an Embedding to look rows up by a model input, or do it in the application."
        )
    return np.asarray(keras.ops.convert_to_numpy(indices)).astype(np.int64)


def _split(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    axis, length = along(op, op.axis, len(x.shape)), x.shape[along(op, op.axis, len(x.shape))]
    sections = op.indices_or_sections
    if isinstance(sections, int):
        # As NumPy deals them out: of what is left over, the first parts get one more each (array_split).
        size, over = divmod(length, sections)
        borders = [i * size + min(i, over) for i in range(1, sections)]
    else:
        borders = [int(i) for i in constant_indices(op, sections)]
    ends = [0, *borders, length]
    return [
        part(make, x, {axis: range(a, b)}, f"{op.name}_{i}", f"part{i}")
        for i, (a, b) in enumerate(zip(ends[:-1], ends[1:], strict=True))
    ]


def unstacked(make: Make, x: Any, axis: int, name: str, key: str = "row") -> list[Any]:
    """The rows along an axis, without that axis."""
    shape = [n for a, n in enumerate(x.shape) if a not in (0, axis)]
    rows = [part(make, x, {axis: range(i, i + 1)}, f"{name}_{i}", f"{key}{i}_part") for i in range(x.shape[axis])]
    return [reshaped(make, row, shape, f"{name}_{i}_row", f"{key}{i}") for i, row in enumerate(rows)]


def stacked(make: Make, xs: Sequence[Any], axis: int, name: str, key: str = "stack") -> Any:
    """Tensors side by side along a new axis."""
    shape = list(xs[0].shape[1:])
    wide = [*shape[: axis - 1], 1, *shape[axis - 1 :]]
    rows = [reshaped(make, x, wide, f"{name}_{i}", f"{key}{i}") for i, x in enumerate(xs)]
    return rows[0] if len(rows) == 1 else make(key, lambda: layers.Concatenate(axis, name=name))(rows)


def _unstack(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    return unstacked(make, x, along(op, op.axis, len(x.shape)), op.name)


def _stack(op: Any, make: Make, xs: Any, *_: Any, **__: Any) -> Any:
    return stacked(make, list(xs), along(op, op.axis, len(xs[0].shape) + 1), op.name)


def _lower_slice(program: Program, call: Call) -> None:
    begin = program.constant("begin", np.array([0, *call.op.begin], np.int32))
    size = program.constant("size", np.array(call.output.shape, np.int32))
    program.emit("SLICE", [call.inputs[0], begin, size], call.output)


def _lower_strided(program: Program, call: Call) -> None:
    op = call.op
    bounds = [
        program.constant(name, np.array(values, np.int32))
        for name, values in (("begin", [0, *op.begin]), ("end", [1, *op.end]), ("strides", [1, *op.step]))
    ]
    program.emit(
        "STRIDED_SLICE",
        [call.inputs[0], *bounds],
        call.output,
        beginMask=0,
        endMask=0,
        ellipsisMask=0,
        newAxisMask=0,
        shrinkAxisMask=0,
    )


def _lower_pick(program: Program, call: Call) -> None:
    if call.inputs[0].dtype == "int32":  # positions, which TFLM's GATHER does not pick
        _lower_runs(program, call)
        return
    rows = program.constant("rows", np.array(call.op.indices, np.int32))
    program.emit("GATHER", [call.inputs[0], rows], call.output, axis=call.op.axis, batchDims=0)


@keras.saving.register_keras_serializable(package="kquant")
class ByShape(keras.layers.Layer):
    """`ops.slice` and `ops.broadcast_to` as custom layers call them, with the batch of their input; unfolded."""

    def call(self, x: Any) -> Any:
        """Cut and repeat."""
        shape: Any = keras.ops.shape(x)
        batch = shape[0]
        y = keras.ops.slice(x, (0, 1, 0, 2), (batch, 1, 5, 2))
        return keras.ops.broadcast_to(y, (batch, 3, 5, 2))


def _lower_runs(program: Program, call: Call) -> None:
    """Where there is no GATHER: a SLICE for each run of neighbours, put together."""
    x, y, axis = call.inputs[0], call.output, call.op.axis
    # Where the next index is not the next row, a run ends.
    cuts = np.flatnonzero(np.diff(call.op.indices) != 1) + 1
    parts = []
    for run in np.split(np.array(call.op.indices), cuts):
        begin, size = np.zeros(len(x.shape), np.int32), np.array(x.shape, np.int32)
        begin[axis], size[axis] = run[0], len(run)
        made = program.value(f"{y.name}/run{len(parts)}", size.tolist(), x.encoding, x.dtype)
        bounds = [program.constant("begin", begin), program.constant("size", size)]
        parts.append(program.emit("SLICE", [x, *bounds], made))
    program.emit("CONCATENATION", parts, y, axis=axis, fusedActivationFunction="NONE")


PICKS = (
    example(lambda: Pick([3, 3, 0, 1], axis=2), shape=(6, 5, 4)),
    example(lambda: Pick([3, 0], axis=4), shape=(2, 3, 2, 4)),
)


def of_operation(name: str, expand: Callable[..., Any], *examples: Any) -> Rule:
    """A rule for operations, whose examples take one tensor of rank 4."""
    return Rule(operations=tuple(name.split()), expand=expand, examples=tuple(computed(f, (6, 5, 4)) for f in examples))


K: Any = keras.ops  # has no types, and what a checker infers of it (None, too) is not so
RULES = (
    Rule(
        layers=(Slice,),
        when=lambda op: set(op.step) == {1},
        operators=("SLICE",),
        output="same",
        lower=_lower_slice,
        examples=(example(lambda: Slice([1, 0, 2], [5, 5, 4], [1, 1, 1]), shape=(6, 5, 4)),),
    ),
    Rule(
        layers=(Slice,),
        operators=("STRIDED_SLICE",),
        output="same",
        lower=_lower_strided,
        examples=(example(lambda: Slice([1, 0, 0], [6, 5, 3], [2, 3, 1]), shape=(6, 5, 4)),),
    ),
    Rule(layers=(Pick,), operators=("GATHER",), output="same", lower=_lower_pick, examples=PICKS),
    Rule(layers=(Pick,), operators=("SLICE", "CONCATENATION"), output="same", lower=_lower_runs, examples=PICKS),
    of_operation(
        "GetItem",
        _getitem,
        lambda x: x[:, 1:-1, ::2],
        lambda x: x[..., -1],
        lambda x: x[:, None, 2, ::-1],
        lambda x: K.add(x[:, :3], x[:, 3:]),
    ),
    of_operation("Slice", _slice, lambda x: ByShape()(x)),
    of_operation(
        "Split Hsplit ArraySplit",
        _split,
        lambda x: K.subtract(*K.split(x, 2, axis=1)),
        lambda x: K.concatenate(K.split(x, [1, 3], axis=2)[1:], axis=2),
    ),
    of_operation("Unstack", _unstack, lambda x: K.multiply(*K.unstack(x, axis=1)[1:3])),
    of_operation("Stack", _stack, lambda x: K.stack([x, -x], axis=2), lambda x: K.stack([x, x], axis=-1)),
)
