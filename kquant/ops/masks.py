"""Masks of attention: which logits a softmax counts, constant or told by the model's inputs (padding).

What is masked gets the lowest code of a grid that reaches 8 below every logit (`constant`). A mask that the inputs tell
is a tensor of conditions, 0 where a key is hidden; the file makes codes of it, low + (high - low) condition, and takes
the MINIMUM with the logits:

    int32 padding_mask  NOT_EQUAL 0  bool  CAST  int32  MUL, ADD  CAST  int8 -128 or 127  MINIMUM  logits

Of two whole numbers or conditions a product or minimum is 0 where one of them is, so each counts as a mask by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kquant.core.program import Program, Ref
from kquant.graph.keras_private import made_of
from kquant.graph.step_mask import StepMask
from kquant.ops.affine import Affine, affine
from kquant.ops.condition import is_condition
from kquant.ops.constant import (
    LOWEST,
    MASKED_BELOW,
    MINUS_INFINITY,
    as_array,
    known,
    lowest_of,
    masked,
    stretched,
    without_batch,
)
from kquant.ops.function import function
from kquant.ops.real_steps import flags_of
from kquant.ops.rule import Call, Make, Rule, computed

layers = keras.layers
# A float that hides by (1 - x) * -1e9 lets through where it is 1; no other code of 8 bits from 0 to 1 lies above this.
NEARLY_ONE = 0.999
K: Any = keras.ops  # has no types, and what a checker infers of it (None, too) is not so


@keras.saving.register_keras_serializable(package="kquant")
class MaskedBy(keras.layers.Layer):
    """Logits with the lowest number where a condition is 0: the lowest code in the file.

    Args:
        shape: the condition's, without batch axis, as it broadcasts against the logits.

    Example:
        >>> layer = MaskedBy((1, 3))
        >>> (layer([np.zeros((1, 2, 3), "float32"), np.float32([[1, 1, 0]])]).numpy() < -1e8)[0].tolist()
        [[False, False, True], [False, False, True]]
    """

    def __init__(self, shape: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape = tuple(int(n) for n in shape)

    def call(self, xs: Any) -> Any:
        """Replace the logits of masked positions."""
        x, condition = xs
        seen = K.not_equal(K.reshape(condition, (-1, *self.shape)), K.cast(0, condition.dtype))
        return K.where(seen, x, K.cast(lowest_of(x.dtype), x.dtype))

    def compute_output_spec(self, xs: Any) -> Any:
        """As the logits."""
        return keras.KerasTensor(xs[0].shape, xs[0].dtype)

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "shape": list(self.shape)}


@dataclass(frozen=True, eq=False)
class Mask:
    """Which logits count: those that all of its parts let through.

    Attributes:
        allowed: bool[...] without batch axis, or None: all.
        told: `(condition, shape)`, tensors of the graph that are 0 where a logit is hidden, and the shape, without
            batch axis, in which they broadcast against the logits.
    """

    allowed: np.ndarray | None = None
    told: tuple[tuple[Any, tuple[int, ...]], ...] = ()

    def and_where(self, allowed: np.ndarray) -> Mask:
        """With a constant mask that must hold, too."""
        return Mask(allowed if self.allowed is None else self.allowed & allowed, self.told)

    def and_mask(self, other: Mask) -> Mask:
        """With another mask that must hold, too."""
        both = self if other.allowed is None else self.and_where(other.allowed)
        return Mask(both.allowed, (*self.told, *other.told))


NO_MASK = Mask()


def read_mask(mask: Any, op: Any, make: Make, rank: int, name: str = "mask", new_axis: int | None = None) -> Mask:
    """A mask as Keras' layers take it: other than 0 (True) where logits count.

    Args:
        mask: numbers, or a tensor of the graph.
        op: the layer that reads it, for messages and names.
        make: of the layer's rule.
        rank: axes that the mask may have, batch included.
        name: of the argument.
        new_axis: of length 1, where the mask has one axis of the logits only.

    Raises:
        ValueError: numbers that differ from sample to sample, or a tensor of more axes.
    """
    if not isinstance(mask, keras.KerasTensor):
        allowed = without_batch(np.asarray(as_array(mask), bool), rank, op.name)
        return Mask(allowed if new_axis is None else np.expand_dims(allowed, new_axis))
    whole = NO_MASK
    if len(mask.shape) > rank:
        raise ValueError(
            f"{op.name} ({type(op).__name__}): {name} has the shape {tuple(mask.shape)}; a mask that the inputs tell "
            f"has {rank} axes at most here, samples included. Take ops.squeeze or index the axis that is too many."
        )
    for number, (part, shape) in enumerate(_parts(mask, tuple(mask.shape[1:]))):
        shape = shape if new_axis is None else tuple(np.expand_dims(np.empty(shape, bool), new_axis).shape)
        if (numbers := known(part)) is not None:
            whole = whole.and_where(np.broadcast_to(numbers[0] != 0, part.shape[1:]).reshape(shape))
        else:
            whole = whole.and_mask(Mask(told=((_condition(op, make, part, f"{name}{number or ''}"), shape),)))
    return whole


def _parts(mask: Any, shape: tuple[int, ...]) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """The tensors that are all other than 0 where a mask is, each with the shape in which it broadcasts as the mask."""
    layer, read = made_of(mask)
    counts = is_condition(mask) or "int" in str(mask.dtype)
    if isinstance(layer, layers.Reshape) and _stretches(read[0].shape[1:], shape):
        yield from _parts(read[0], shape)
        return
    if counts and isinstance(layer, layers.Minimum | layers.Multiply):
        for part in read:
            own = tuple(part.shape[1:])
            yield from _parts(part, (1,) * (len(shape) - len(own)) + own)
        return
    yield mask, shape


def _condition(op: Any, make: Make, part: Any, key: str, above: float = 0.0) -> Any:
    """0 where `part` is 0; of real numbers, where it is not above `above`, if there is such a number."""
    if is_condition(part):
        return part
    if "int" in str(part.dtype):
        return make(key, lambda: StepMask(features=False, name=f"{op.name}_{key}"))(part)
    return function(make, "greater" if above else "not_equal", part, f"{op.name}_{key}", above, key)


def masked_by(make: Make, x: Any, mask: Mask, name: str, below: float = MASKED_BELOW) -> Any:
    """Logits with the lowest code where a mask hides them, `below` under every other."""
    fixed = mask.allowed is not None and not np.all(mask.allowed)
    if not fixed and not mask.told:
        return x
    # `below` under all logits is inside the shared range, and so the lowest code is at least that far under each.
    x = stretched(make, x, name, below)
    if fixed:
        x = masked(make, x, np.asarray(mask.allowed), name)
    for number, (condition, shape) in enumerate(mask.told):
        shape = (1,) * (len(x.shape) - 1 - len(shape)) + shape
        label = f"{name}_masked_by{number or ''}"
        x = make(f"masked_by{number}", lambda s=shape, n=label: MaskedBy(s, name=n))([x, condition])
    return x


def with_low_numbers(op: Any, make: Make, inputs: Any, **_: Any) -> Any:
    """`logits + (1 - mask) * -1e9`: a mask, as a sum would have no codes left for the logits; None where it is none."""
    if len(inputs) != 2:
        return None
    sign = -1.0 if isinstance(op, layers.Subtract) else 1.0
    for x, low, factor in ((inputs[0], inputs[1], sign), (inputs[1], inputs[0], 1.0)):
        mask = hidden_by(op, make, low, factor) if x is inputs[0] or sign > 0 else None
        if mask is not None and len(low.shape) <= len(x.shape):
            return masked_by(make, x, mask, op.name)
    return None


def hidden_by(op: Any, make: Make, low: Any, factor: float = 1.0) -> Mask | None:
    """The mask that a tensor is when added: 0 where a logit counts, minus infinity or nearly where not; or None.

    Args:
        op: what adds it.
        make: of its rule.
        low: the tensor.
        factor: it is multiplied by, -1 where it is subtracted.
    """
    slope, start, t = factor, 0.0, low
    while True:  # low = slope t + start
        layer, read = made_of(t)
        if isinstance(layer, Affine) and not layer.trains:
            scale, offset = layer.scale.numpy(), layer.offset.numpy()
            if np.any(scale != scale[0]) or np.any(offset != offset[0]):
                return None
            slope, start, t = slope * float(scale[0]), start + slope * float(offset[0]), read[0]
        elif isinstance(layer, layers.Reshape) and _stretches(read[0].shape[1:], t.shape[1:]):
            t = read[0]
        else:
            break
    seen = start <= MINUS_INFINITY and abs(slope + start) <= 1e-6 * abs(start)  # 0 where t is 1
    # What an application feeds is taken to be a mask where it, or 1 - x, is multiplied by such a number.
    whole = is_condition(t) or "int" in str(t.dtype) or isinstance(made_of(t)[0], layers.InputLayer)
    if not whole or not (seen or (start == 0.0 and slope <= MINUS_INFINITY)):
        return None
    shape = tuple(low.shape[1:])
    if seen:
        parts = list(_parts(t, shape)) if _stretches(t.shape[1:], shape) else [(t, shape)]
        seen_by = [(_condition(op, make, p, f"mask{i or ''}", NEARLY_ONE), s) for i, (p, s) in enumerate(parts)]
        return Mask(told=tuple(seen_by))
    t = _condition(op, make, t, "hidden")
    seen_by = make("seen", lambda: affine(-1.0, 1.0, channels=t.shape[-1], name=f"{op.name}_seen"))(t)
    return Mask(told=((seen_by, shape),))


def _stretches(before: Any, after: Any) -> bool:
    """True where a Reshape only adds axes of 1, or takes some away."""
    return [n for n in before if n != 1] == [n for n in after if n != 1]


def _limit(program: Program, condition: Ref, shape: tuple[int, ...], low: int, high: int) -> Ref:
    """int32: `high` where the condition is not 0, else `low`; computed once for all layers that read one mask."""
    flags = flags_of(program, condition)
    key = ("limit", id(flags), shape, low, high)
    if key not in program.made:
        name = f"{flags.name}_limit_{low}_{'x'.join(map(str, shape))}"
        whole = program.value(f"{name}/flags", flags.shape, None, "int32")
        program.emit("CAST", [flags], whole, inDataType="INT8", outDataType="INT32")
        span, first = (program.constant("limit", np.array([n], np.int32)) for n in (high - low, low))
        scaled = program.value(f"{name}/span", flags.shape, None, "int32")
        program.emit("MUL", [whole, span], scaled, fusedActivationFunction="NONE")
        codes = program.value(f"{name}/codes", flags.shape, None, "int32")
        program.emit("ADD", [scaled, first], codes, fusedActivationFunction="NONE")
        program.made[key] = program.reshape(codes, (1, *shape))
    return program.made[key]


def _lower(program: Program, call: Call) -> None:
    """MINIMUM with the highest code where the condition holds, with the lowest where not."""
    (x, condition), y = call.inputs, call.output
    spec = y.grid.spec
    codes = _limit(program, condition, call.op.shape, spec.low, spec.high)
    limit = program.value(f"{y.name}/limit", codes.shape, y.encoding, y.dtype)
    program.emit("CAST", [codes], limit, inDataType="INT32", outDataType=y.dtype.upper())
    program.emit("MINIMUM", [x, limit], y)


def _lower_float(program: Program, call: Call) -> None:
    """MINIMUM with a large number where the condition holds, with a very small one where not."""
    (x, condition), y = call.inputs, call.output
    real = flags_of(program, condition)
    flags = program.value(f"{y.name}/flags", real.shape, None)
    program.emit("CAST", [real], flags, inDataType="INT8", outDataType="FLOAT32")
    span, first = (program.constant("limit", np.array([n], np.float32)) for n in (-2 * LOWEST, LOWEST))
    scaled = program.value(f"{y.name}/span", flags.shape, None)
    program.emit("MUL", [flags, span], scaled, fusedActivationFunction="NONE")
    limit = program.value(f"{y.name}/limit", flags.shape, None)
    program.emit("ADD", [scaled, first], limit, fusedActivationFunction="NONE")
    program.emit("MINIMUM", [x, program.reshape(limit, (1, *call.op.shape))], y)


def some(x: Any) -> Any:
    """A mask for examples: bool[samples, 1, steps], never all False."""
    return (x > K.mean(x, axis=-1, keepdims=True))[:, None, :]


def _hidden(x: Any, real: Any) -> Any:
    return layers.Softmax()(x, mask=some(real))


RULES = (
    Rule(
        layers=(MaskedBy,),
        operators=("MINIMUM",),
        helpers=("CAST", "NOT_EQUAL", "MUL", "ADD", "RESHAPE"),
        output="follows",
        told=True,
        lower=_lower,
        lower_float=_lower_float,
        examples=(computed(_hidden, (3, 4), (4,)),),
    ),
)
