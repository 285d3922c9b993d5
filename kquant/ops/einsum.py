"""`keras.ops.matmul`, `einsum`, `tensordot` and `dot`, and the layers Dot and EinsumDense: see `matmul`."""

from __future__ import annotations

from string import ascii_lowercase
from typing import Any

import keras
import numpy as np

from kquant.ops.activation import activate
from kquant.ops.constant import as_array, stored
from kquant.ops.labels import Equation, parse
from kquant.ops.matmul import contraction, is_dense, kernel_contraction, permuted, product, reshaped, summed
from kquant.ops.rule import Geometry, Make, Rule, computed, example

layers = keras.layers


def _is_tensor(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _trains(value: Any) -> bool:
    return isinstance(value, keras.Variable) and value.trainable


def _refuse(op: Any, reason: str) -> ValueError:
    return ValueError(f"{op.name} ({type(op).__name__}): {reason}")


def _mixed(op: Any, *shapes: Any) -> ValueError:
    return _refuse(
        op,
        f"it multiplies values of different samples, adds up over the samples, or one operand lacks the batch axis: "
        f"shapes {', '.join(str(tuple(s)) for s in shapes)}. The device computes one sample at a time; give both "
        "operands the same rank with the batch axis first, by a Reshape before it, and sum over the other axes only: "
        "ops.sum(x * y, axis=-1) is a dot product for each sample, 'bij,bij->bi' one in einsum.",
    )


def _einsum(op: Any, make: Make, *operands: Any, **_: Any) -> Any:
    """One or two operands, at least one of them a tensor."""
    if len(operands) > 2:
        raise _refuse(op, f"einsum of {len(operands)} operands; write it as several of two")
    arrays = [t if _is_tensor(t) else as_array(t) for t in operands]
    labels, result, size = parse(op.subscripts, [t.shape for t in arrays], op.name)
    tensors = [i for i, t in enumerate(operands) if _is_tensor(t)]
    # Every tensor of the graph begins with the samples, as the result does, and a constant has none.
    if any(labels[i][:1] != result[:1] for i in tensors) or any(
        result[:1] in labels[i] for i in range(len(operands)) if i not in tensors
    ):
        raise _mixed(op, *(t.shape for t in operands))
    if len(operands) == 1:
        # What is summed leaves first, so that fewer values are transposed.
        kept = [n for n in labels[0] if n in result]
        x = operands[0]
        if len(kept) < len(labels[0]):
            x = summed(make, x, [i for i, n in enumerate(labels[0]) if n not in result], op.name)
        return permuted(make, x, [kept.index(n) for n in result], op.name, "arranged")
    return _of_two(op, make, operands, labels, result, size)


def _of_two(op: Any, make: Make, operands: Any, labels: list[str], result: str, size: dict[str, int | None]) -> Any:
    """Two tensors, or a tensor and a kernel on either side."""
    if all(_is_tensor(t) for t in operands):
        return contraction(make, op.name, operands[0], operands[1], Equation(labels[0], labels[1], result, size))
    # `kernel_contraction` wants the tensor in front; labels say which axes meet, so the order of the two does not
    # matter.
    first = 0 if _is_tensor(operands[0]) else 1
    x, value = operands[first], operands[1 - first]
    equation = Equation(labels[first], labels[1 - first], result, size)
    return kernel_contraction(make, op.name, x, as_array(value), equation, trains=_trains(value))


def _matmul(op: Any, make: Make, a: Any, b: Any) -> Any:
    """Two tensors of one rank, or a tensor and a constant."""
    if _is_tensor(a) and _is_tensor(b):
        if len(a.shape) != len(b.shape) or len(a.shape) < 3:
            raise _mixed(op, a.shape, b.shape)
        return product(make, a, b, op.name)
    x, value = (a, b) if _is_tensor(a) else (b, a)
    rank = len(np.shape(as_array(value)))
    # A matrix for each position of further axes: a stored tensor, as for two tensors.
    if rank > 2:
        other = stored(make, value, x, op.name)
        return product(make, *((x, other) if x is a else (other, x)), op.name)
    # [samples, n] behind a constant would be contracted over the samples.
    if x is b and len(x.shape) < 3:
        raise _mixed(op, a.shape, b.shape)
    # x @ K contracts the last axis of x with the first of K, K @ x the last of K with the last but one of x; z is the
    # axis that K brings. A vector brings none.
    names = ascii_lowercase[: len(x.shape)]
    kernel = (names[-1] if x is a else names[-2]) if rank == 1 else names[-1] + "z" if x is a else "z" + names[-2]
    result = names[:-1] if x is a else names[:-2] + names[-1]
    if rank == 2:
        result = result + "z" if x is a else result[:-1] + "z" + result[-1]
    size = dict(zip([*names, *kernel], [*x.shape, *value.shape], strict=True))
    equation = Equation(names, kernel, result, size)
    return kernel_contraction(make, op.name, x, as_array(value), equation, trains=_trains(value))


def _tensordot(op: Any, make: Make, a: Any, b: Any) -> Any:
    """A tensor and a constant; two tensors would pair every sample with every other."""
    if _is_tensor(b) or not _is_tensor(a):
        raise _mixed(op, a.shape, b.shape)
    axes = getattr(op, "axes", None)
    if type(op).__name__ == "Dot":
        # ops.dot: the last axis of the first with the last but one of the second, or the only one.
        axes = [[-1], [max(len(b.shape) - 2, 0)]]
    elif axes is None or isinstance(axes, int):
        # A number n: the last n axes of the first with the first n of the second.
        axes = [list(range(-(2 if axes is None else axes), 0)), list(range(2 if axes is None else axes))]
    pair = [[int(i) for i in np.atleast_1d(axes[side])] for side in (0, 1)]
    left, right = [i % len(a.shape) for i in pair[0]], [i % len(b.shape) for i in pair[1]]
    # Letters from either end of the alphabet, so that axes are only alike where they are paired.
    names, others = ascii_lowercase[: len(a.shape)], [*ascii_lowercase[::-1][: len(b.shape)]]
    for i, j in zip(left, right, strict=True):
        others[j] = names[i]
    if 0 in left:
        raise _mixed(op, a.shape, b.shape)
    result = "".join(n for n in names if n not in others) + "".join(n for n in others if n not in names)
    size = dict(zip([*names, *others], [*a.shape, *b.shape], strict=True))
    equation = Equation(names, "".join(others), result, size)
    return kernel_contraction(make, op.name, a, as_array(b), equation, trains=_trains(b))


def _dot(op: Any, make: Make, inputs: Any, **_: Any) -> Any:
    """The layer: for each sample, the contraction of one axis of each."""
    ranks = [len(t.shape) for t in inputs]
    axes = [op.axes] * 2 if isinstance(op.axes, int) else list(op.axes)
    axes = [a % rank for a, rank in zip(axes, ranks, strict=True)]
    x, y = inputs
    if op.normalize:
        x, y = (
            make(f"unit{i}", lambda i=i: layers.UnitNormalization(axes[i], name=f"{op.name}_unit{i}"))(t)
            for i, t in enumerate(inputs)
        )
    names = ascii_lowercase[: ranks[0]]
    # The samples of both are one axis; all others differ but for the pair.
    others = [names[0], *ascii_lowercase[::-1][: ranks[1] - 1]]
    others[axes[1]] = names[axes[0]]
    result = "".join(n for n in names if n not in others[1:]) + "".join(n for n in others if n not in names)
    size = dict(zip([*names, *others], [*x.shape, *y.shape], strict=True))
    z = contraction(make, op.name, x, y, Equation(names, "".join(others), result, size))
    # One number for each sample comes as [samples, 1] from Keras.
    return reshaped(make, z, tuple(z.shape[1:]) or (1,), op.name, "column")


def _einsum_dense(op: Any, make: Make, x: Any, **_: Any) -> Any:
    """A Dense over the contracted axes, then its activation."""
    if getattr(op, "lora_enabled", False):
        raise _refuse(op, "LoRA is on; merge it into the kernel first (save and reload the layer)")
    kernel, bias = op.kernel, getattr(op, "bias", None)
    (first, second), result, size = parse(op.equation, [x.shape, kernel.shape], op.name)
    if first[0] != result[0] or first[0] in second:
        raise _mixed(op, x.shape, kernel.shape)
    e = Equation(first, second, result, size)
    inside = None
    # Inside the Dense it joins the int32 sum and costs nothing; beside it, it is an ADD that rounds again.
    if bias is not None and is_dense(e):
        inside = _in_kernel(bias.numpy(), e)
    y = kernel_contraction(make, op.name, x, kernel.numpy(), e, bias=inside, trains=kernel.trainable)
    if bias is not None and inside is None:
        other = stored(make, bias, y, op.name, key="bias")
        y = make("biased", lambda: layers.Add(name=f"{op.name}_biased"))([y, other])
    return activate(op.activation, make, y)


def _in_kernel(bias: np.ndarray, e: Equation) -> np.ndarray | None:
    """A bias for each output of the kernel, in its order; None where it varies along other axes too."""
    # A bias broadcasts against the result from its last axis on. What varies along an axis that comes from the input is
    # no bias of output channels.
    shape = (1,) * (len(e.result) - bias.ndim) + bias.shape
    own = e.free(1)
    if any(n > 1 and label not in own for label, n in zip(e.result, shape, strict=True)):
        return None
    kept = [label for label in e.result if label in own]
    lengths = [n for label, n in zip(e.result, shape, strict=True) if label in own]
    full = np.broadcast_to(bias.reshape(lengths), e.sizes("".join(kept)))
    return np.transpose(full, [kept.index(label) for label in own])


def _random(*shape: int) -> np.ndarray:
    values = np.random.default_rng(2).normal(size=shape)
    return (values / np.sqrt(shape[0])).astype(np.float32)


def _einsum_of(equation: str, *shapes: tuple[int, ...]) -> Any:
    return computed(lambda *x: keras.ops.einsum(equation, *x), *shapes)


def _projection(equation: str, shape: Any, given: tuple[int, ...], **options: Any) -> Any:
    return example(lambda: layers.EinsumDense(equation, shape, **options), shape=given)


def _geometry(op: Any) -> Geometry:
    """Axes of an EinsumDense's kernel: the innermost that is summed over, and the innermost that goes out."""
    # the axes behind an ellipsis are the samples', never the kernel's: any sign that is no letter stands for them
    inputs, output = op.equation.replace("...", "0").split("->")
    given, kernel = inputs.split(",")
    summed = [i for i, letter in enumerate(kernel) if letter in given and letter not in output]
    out = [i for i, letter in enumerate(kernel) if letter in output]
    return Geometry(summed[-1] if summed else None, out[-1] if out else len(kernel) - 1)


RULES = (
    Rule(
        operations=("Matmul",),
        expand=_matmul,
        examples=(
            computed(keras.ops.matmul, (4, 6), (6, 5)),
            computed(keras.ops.matmul, (2, 4, 6), (2, 6, 3)),
            computed(lambda x: keras.ops.matmul(x, _random(6, 3)), (6,)),
            computed(lambda x: keras.ops.matmul(x, _random(6, 3)), (2, 4, 6)),
            computed(lambda x: keras.ops.matmul(x, _random(6)), (4, 6)),
            computed(lambda x: keras.ops.matmul(x, _random(1, 2, 6, 3)), (2, 4, 6)),
            computed(lambda x: keras.ops.matmul(_random(5, 4), x), (4, 6)),
            computed(lambda x: keras.ops.matmul(_random(2, 5, 4), x), (2, 4, 6)),
        ),
    ),
    Rule(
        operations=("Einsum",),
        expand=_einsum,
        examples=(
            _einsum_of("btnh,bsnh->bnts", (4, 2, 3), (5, 2, 3)),
            _einsum_of("acbe,aecd->abcd", (2, 4, 5), (5, 2, 3)),
            _einsum_of("btd,bsd->bts", (4, 3), (5, 3)),
            _einsum_of("bi,bj->bij", (4,), (3,)),
            _einsum_of("bij,bkj->bk", (4, 3), (5, 3)),
            _einsum_of("bhw->bwh", (4, 3)),
            _einsum_of("bhwc->bc", (4, 3, 2)),
            computed(lambda x: keras.ops.einsum("...d,de->...e", x, _random(6, 3)), (2, 5, 6)),
            computed(lambda x: keras.ops.einsum("bhd,hde->bhe", x, _random(2, 6, 3)), (2, 6)),
            computed(lambda x: keras.ops.einsum("de,bdt->bte", _random(6, 3), x), (6, 4)),
        ),
    ),
    Rule(
        operations=("Tensordot", "Dot"),
        expand=_tensordot,
        examples=(
            computed(lambda x: keras.ops.tensordot(x, _random(3, 4, 5), axes=2), (2, 3, 4)),
            computed(
                lambda x: keras.ops.tensordot(x, _random(5, 3), axes=[[1], [1]]),  # pyright: ignore[reportArgumentType]
                (3, 4),
            ),
            computed(lambda x: keras.ops.dot(x, _random(6, 3)), (4, 6)),
        ),
    ),
    Rule(
        layers=(layers.Dot,),
        expand=_dot,
        examples=(
            computed(lambda a, b: layers.Dot(axes=2)([a, b]), (4, 6), (5, 6)),
            computed(lambda a, b: layers.Dot(axes=(2, 1))([a, b]), (4, 6), (6, 5)),
            computed(lambda a, b: layers.Dot(axes=1)([a, b]), (6,), (6,)),
            computed(lambda a, b: layers.Dot(axes=(1, 2))([a, b]), (6,), (5, 6)),
        ),
    ),
    Rule(
        layers=(layers.EinsumDense,),
        kernels=lambda op: {"kernel": _geometry(op)},
        expand=_einsum_dense,
        examples=(
            _projection("abc,cde->abde", (None, 2, 3), (4, 6), bias_axes="de"),
            _projection("abcd,cde->abe", (None, 6), (4, 2, 3), bias_axes="e"),
            _projection("...x,xy->...y", 5, (2, 4, 6), bias_axes="y", activation="relu"),
            _projection("ab,bc->ac", 5, (6,)),
            _projection("abc,bd->adc", (3, 4), (5, 4), bias_axes="dc"),
            _projection("abc,bcd->abd", (4, 3), (4, 6), bias_axes="d"),
        ),
    ),
)
