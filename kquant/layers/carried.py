"""What a tensor carries beside its values while a model computes in integers, so that codes flow between layers.

    FakeQuant  -> values on a grid      carry `codes`, without the zero point    -> Compressed sums them
    FakeQuant  -> encoding              carries its `grid`, if data gave it      -> nobody chooses between two results
    its codes                           carry `bytes`, where XLA made those      -> Compressed sums them
    Compressed -> scale of its sums     carries `sums`                           -> FakeQuant scales them
    FakeQuant  -> values in 16 bits     carry `single`, those in float32         -> a graph's gradient, not rounded

Values say the same: `codes = values / scale`, `sums = output / scale of the sums`. But to divide and round again costs
three passes over a tensor, and a choice by a condition that is known one more. A tensor that another layer made
(pooling, a reshape) carries nothing, and then the reader takes the codes from the values.
"""

from __future__ import annotations

from typing import Any, Literal

import keras
import tensorflow as tf

Thing = Literal["codes", "bytes", "grid", "sums", "single"]


def carry(tensor: Any, thing: Thing, value: Any) -> Any:
    """Hang something on a tensor, for as long as that tensor lives; returns the tensor."""
    tensor.kquant_carries = {**getattr(tensor, "kquant_carries", {}), thing: value}
    return tensor


def carried(tensor: Any, thing: Thing) -> Any:
    """What hangs on a tensor, or None."""
    return getattr(tensor, "kquant_carries", {}).get(thing)


def retyped(values: tf.Tensor, dtype: str) -> tf.Tensor:
    """Values of another type, which carry the same codes, and what they were."""
    if values.dtype == dtype:
        return values
    # float16 has 11 bits: the values are rounded here, the codes behind them must not be.
    made = carry(tf.cast(values, dtype), "codes", carried(values, "codes"))
    return carry(made, "single", values) if values.dtype == tf.float32 else made


def float_like(y: Any) -> str:
    """The dtype to hand on: integers (images as uint8) become real numbers here, as by a first Rescaling."""
    name = keras.backend.standardize_dtype(y.dtype)
    return name if "float" in name else "float32"
