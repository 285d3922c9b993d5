"""Weights in blocks that a file holds: codes of 2 or 4 bits, and a float16 scale for each block of a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from kquant.core.spec import QuantSpec
from kquant.layers.blocks import block_codes, blocks_of
from kquant.layers.nodes import Compressed
from kquant.ops import find
from kquant.ops.rule import Constants
from kquant.targets import Target
from kquant.views import packing


def block_type(op: Any, target: Target) -> str:
    """The packed type in which a file keeps the codes; "" where no operator of the target reads them.

    Args:
        op: a layer with float activations.
        target: that the file is for.
    """
    spec = op.spec if isinstance(op, Compressed) and op.storage in ("integer", "float32") else None
    rule = None if spec is None else find(op.layer)
    if spec is None or rule is None:
        return ""
    return packing.block_type(spec, rule, op.kernel_shape, target, op.channels)


def block_constants(name: str, op: Compressed, spec: QuantSpec, dtype: str) -> Constants:
    """Codes of the kernel, and the scales of its blocks, float32[rows, blocks].

    Args:
        name: of the layer.
        op: the layer.
        spec: of its weights.
        dtype: of `block_type`.
    """
    kernel = op.weights_as_used()
    scale = block_codes(blocks_of(kernel, spec, op.channel_axes)[1], spec)[1]
    # as the layer rounds them, which a correction may have chosen
    codes = tf.round(op.weights_on_grid() / op.scale_of(kernel))
    own, channels = op.bias_as_used(), op.channels if op.sums else 0
    bias = np.zeros(channels, np.float32) if own is None else np.asarray(own, np.float32)
    return Constants(
        codes=codes.numpy().astype(np.int64),
        scale=scale.numpy()[..., 0],
        bias=bias,
        bias_scale=None,
        spec=spec,
        name=name,
        dtype=dtype,
        bias_dtype="float32",
    )
