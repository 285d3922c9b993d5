"""Dense: FULLY_CONNECTED, weights `[out, in]`, one scale for each output unit."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.core.program import Program, Ref
from kquant.ops.activation import activate
from kquant.ops.rows import dense_rows
from kquant.ops.rule import Call, Constants, Make, Rule, Weights, example, rebuild

layers = keras.layers


def split_activation(op: Any, make: Make, x: Any) -> Any:
    """The layer without its activation, then the activation."""
    y = make("linear", lambda: rebuild(op, activation="linear"))(x)
    return activate(op.activation, make, y)


def has_activation(op: Any) -> bool:
    """True where a layer applies more than `linear`."""
    return op.activation is not keras.activations.linear


def _lower(program: Program, call: Call) -> None:
    weights = call.constants
    # Keras [in, out] -> TFLite [out, in].
    codes = np.ascontiguousarray(weights.codes.T)
    # of weights in blocks LiteRT's kernel without XNNPACK leaves a fused activation out
    apart = weights.spec.in_blocks and call.activation != "NONE"
    program.emit(
        "FULLY_CONNECTED",
        [call.inputs[0], _kernel(program, weights, codes), weights.bias_ref(program)],
        program.value(f"{call.output.name}/sums", call.output.shape, None) if apart else call.output,
        fusedActivationFunction="NONE" if apart else call.activation,
        # Else the kernel flattens all axes but the last into one.
        keepNumDims=len(call.output.shape) > 2,
    )
    if apart:
        program.emit(call.activation, [program.operators[-1].outputs[0]], call.output)


def _kernel(program: Program, weights: Constants, codes: np.ndarray) -> Ref:
    in_blocks = weights.spec.in_blocks
    return weights.blocks_ref(program, codes) if in_blocks else weights.kernel_ref(program, codes, axis=0)


def _unsupported(node: Any) -> str | None:
    if getattr(node.op, "lora_enabled", False):
        return "LoRA is on; merge it into the kernel first (save and reload the layer)"
    return None


RULES = (
    Rule(
        layers=(layers.Dense,),
        when=has_activation,
        expand=split_activation,
        examples=(
            example(lambda: layers.Dense(6, activation="softmax"), shape=(9,)),
            example(lambda: layers.Dense(6, activation="gelu"), shape=(9,)),
        ),
    ),
    Rule(
        layers=(layers.Dense,),
        operators=("FULLY_CONNECTED",),
        rank=lambda node: len(node.inputs[0].shape),
        weights=Weights(
            channel_axes=(1,), input_axis=0, rows=dense_rows, width="units", block_reader="FULLY_CONNECTED"
        ),
        fuses=True,
        lower=_lower,
        refuse=_unsupported,
        examples=(
            example(lambda: layers.Dense(10), shape=(24,)),
            example(lambda: layers.Dense(7, activation="relu", use_bias=False), shape=(33,)),
            example(lambda: layers.Dense(5), shape=(6, 8)),
        ),
    ),
)
