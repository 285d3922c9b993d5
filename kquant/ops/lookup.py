"""Rows of a stored table: GATHER with int32 indices, which are inputs of the model and stay as they are.

The table is written in the encoding of the layer's output, so a row that is looked up is copied code by code; a table
that trains is in a `Compressed` without a grid of its own, which holds its masks and codebooks. What reads indices says
`indices=True`: the file's input is then int32, not quantized.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np

from kquant.core.program import Program
from kquant.ops.affine import affine
from kquant.ops.constant import known, repeated
from kquant.ops.rule import Call, Geometry, Make, Rule, Weights, copy_weights, keras_layers, looked_up

layers = keras.layers

TABLE = {"embeddings": Geometry(None, -1)}  # a row is picked, none is summed over
K: Any = keras.ops  # has no types, and what a checker infers of it (None, too) is not so


def _plain(op: Any, make: Make, x: Any) -> Any:
    def build() -> Any:
        new = layers.Embedding(op.input_dim, op.output_dim, name=op.name, dtype=op.dtype_policy)
        new.build()
        copy_weights(op, new)
        return new

    return make("embedding", build)(x)


def _embedding(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    """Without LoRA's sum and without the mask, which nobody reads here."""
    if getattr(op, "lora_enabled", False):
        raise ValueError(f"{op.name} (Embedding): LoRA is on; merge it into the embeddings first (save and reload).")
    if (numbers := known(x)) is not None:  # segments or positions, the same for every sample
        # Looked up here: the file stores the rows themselves, and no table.
        rows = np.broadcast_to(op.embeddings.numpy()[numbers[0].astype(np.int64)], (*x.shape[1:], op.output_dim))
        return repeated(make, rows, x, op.name)
    return None if not op.mask_zero else _plain(op, make, x)


def _reversible(op: Any, make: Make, x: Any, reverse: bool = False, *_: Any, **__: Any) -> Any:
    """A look-up, or the product with the transposed table: a Dense layer with a copy of it."""
    if not reverse:
        return _plain(op, make, x)

    def build() -> Any:
        new: Any = layers.Dense(op.input_dim, use_bias=False, name=f"{op.name}_reverse")
        new.build((None, op.output_dim))
        new.kernel.assign(np.asarray(op.embeddings).T if op.tie_weights else np.asarray(op.reverse_embeddings))
        new.trainable = op.trainable
        return new

    # The product has a grid of its own and the file stores both, so tied weights go their own ways in training from
    # here on.
    y, cap = make("reverse", build)(x), op.logit_soft_cap
    if cap is None:
        return y
    y = make("down", lambda: affine(1 / cap, 0.0, channels=op.input_dim, name=f"{op.name}_down"))(y)
    y = make("cap", lambda: layers.Activation("tanh", name=f"{op.name}_cap"))(y)
    return make("up", lambda: affine(cap, 0.0, channels=op.input_dim, name=f"{op.name}_up"))(y)


def _one_hot(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    """Rows of the unit matrix."""
    if op.axis not in (-1, len(x.shape)) or op.sparse:
        raise ValueError(f"{op.name} (OneHot): axis={op.axis}, sparse={op.sparse}; only a dense last axis has one.")

    def build() -> Any:
        new: Any = layers.Embedding(op.num_classes, op.num_classes, name=op.name)
        new.build()
        new.embeddings.assign(np.eye(op.num_classes))
        new.trainable = False
        return new

    return make("rows", build)(x)


def _category(op: Any, make: Make, x: Any, *_: Any, **__: Any) -> Any:
    """`CategoryEncoding("one_hot")`: the unit row of the last axis' one number."""
    if op.output_mode != "one_hot" or x.shape[-1] != 1:
        raise ValueError(
            f"{op.name} (CategoryEncoding): output_mode='{op.output_mode}' on {tuple(x.shape)} has no integer form; "
            "only 'one_hot' of one number has. Keep it in the application's preprocessing."
        )
    row = make("rows", lambda: _unit(op))(x)
    return make("shape", lambda: layers.Reshape((*x.shape[1:-1], op.num_tokens), name=f"{op.name}_row"))(row)


def _unit(op: Any) -> Any:
    new: Any = layers.Embedding(op.num_tokens, op.num_tokens, name=op.name, trainable=False)
    new.build()
    new.embeddings.assign(np.eye(op.num_tokens))
    return new


def _span(op: Any) -> tuple[float, float]:
    """Every row of the table, also those that no sample of the calibration looks up."""
    table = op.embeddings.numpy()
    return float(table.min()), float(table.max())


def _lower(program: Program, call: Call) -> None:
    encoding = call.output.grid
    codes = encoding.quantize(call.op.embeddings.numpy() if call.weights is None else call.weights.codes)
    table = program.codes(f"{call.op.name}/embeddings", codes, encoding)
    program.emit("GATHER", [table, call.inputs[0]], call.output, axis=0, batchDims=0)


def _lower_float(program: Program, call: Call) -> None:
    """The rows are looked up as they are stored and become float32 afterwards; float16 has no look-up."""
    weights, y = call.constants, call.output
    if weights.spec.in_blocks:
        _lower_blocks(program, call)
        return
    # float32 rows are the output already.
    if weights.dtype.startswith("float"):
        table = weights.kernel_ref(program, weights.codes, axis=0)
        program.emit("GATHER", [table, call.inputs[0]], y, axis=0, batchDims=0)
        return
    table = replace(weights, dequantized=False).kernel_ref(program, weights.codes, axis=0)
    rows = program.value(f"{y.name}/codes", y.shape, table.encoding, table.dtype)
    program.emit("GATHER", [table, call.inputs[0]], rows, axis=0, batchDims=0)
    program.emit("DEQUANTIZE", [rows], y)


def _lower_blocks(program: Program, call: Call) -> None:
    """EMBEDDING_LOOKUP: indices in one row, codes times the scales of their blocks."""
    weights, x = call.constants, call.inputs[0]
    table = weights.blocks_ref(program, weights.codes)
    row = program.reshape(x, (x.size,))
    rows = program.value(f"{call.output.name}/rows", (x.size, weights.codes.shape[1]), None)
    program.emit("EMBEDDING_LOOKUP", [row, table], rows)
    program.reshape(rows, call.output.shape, call.output)


@keras.saving.register_keras_serializable(package="kquant")
class _Tied(keras.layers.Layer):
    """A table and its transposed product, to be unfolded."""

    def build(self, *_: Any) -> None:
        """Make the table."""
        self.table = layers.ReversibleEmbedding(10, 4, logit_soft_cap=3.0)
        self.table.build()

    def call(self, x: Any) -> Any:
        """Look up and back."""
        return self.table(self.table(x), reverse=True)


RULES = (
    Rule(
        layers=keras_layers("ReversibleEmbedding"),
        kernels=lambda _: TABLE,
        expand=_reversible,
        examples=(looked_up(lambda x: _Tied()(x), 5),),
    ),
    Rule(
        layers=(layers.Embedding,),
        kernels=lambda _: TABLE,
        expand=_embedding,
        operators=("GATHER",),
        span=_span,
        indices=True,
        weights=Weights(
            kernel="embeddings",
            bias=None,
            input_axis=None,
            sums=False,
            per_axis=False,
            block_axes=(0,),
            block_reader="EMBEDDING_LOOKUP",
        ),
        lower=_lower,
        lower_float=_lower_float,
        examples=(
            looked_up(lambda x: layers.Embedding(10, 6)(x), 7),
            looked_up(lambda x: layers.Dense(3)(layers.Flatten()(layers.Embedding(10, 4, mask_zero=True)(x))), 5),
            looked_up(lambda x: K.multiply(layers.Embedding(10, 6)(x[:, 0]), layers.Embedding(10, 6)(x[:, 2])), 3),
            looked_up(lambda x: layers.Embedding(10, 6)(K.concatenate([x[:, ::-1], K.split(x, 2, axis=1)[1]], 1)), 4),
            looked_up(lambda x: layers.Embedding(10, 6)(x) + layers.Embedding(2, 6)(K.zeros_like(x)), 4),
        ),
    ),
    Rule(
        operations=("OneHot",),
        expand=_one_hot,
        examples=(looked_up(lambda x: layers.Dense(3)(K.one_hot(x, 10)), 4),),
    ),
    Rule(
        layers=(layers.CategoryEncoding,),
        expand=_category,
        examples=(looked_up(lambda x: layers.Dense(3)(layers.CategoryEncoding(10, "one_hot")(x)), 1),),
    ),
)
