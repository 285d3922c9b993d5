"""Attention: products of queries and keys, a softmax that takes the scale as its beta, a product with the values.

The scale of the logits costs nothing: SOFTMAX multiplies by beta. A mask is a MINIMUM with the lowest code, and the
encoding reaches 8 (after beta) below every logit, so that a masked one rounds to 0. Constant masks (causal, sliding
window) are stored; others (padding) the file makes of its inputs.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kquant.core.program import Program
from kquant.graph.graph import Node
from kquant.ops.activation import name_of
from kquant.ops.affine import affine
from kquant.ops.constant import MASKED_BELOW, MINUS_INFINITY, as_array, stored, without_batch
from kquant.ops.masks import NO_MASK, Mask, hidden_by, masked_by, read_mask, some
from kquant.ops.matmul import permuted, product, reshaped
from kquant.ops.rule import Call, Make, Rule, computed, example
from kquant.ops.softmax import emit_softmax

layers = keras.layers


@keras.saving.register_keras_serializable(package="kquant")
class ScaledSoftmax(keras.layers.Layer):
    """`softmax(beta * x)` over the last axis.

    Example:
        >>> ScaledSoftmax(2.0)(np.zeros((1, 4), "float32")).numpy().tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """

    def __init__(self, beta: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.beta = float(beta)

    def call(self, x: Any) -> Any:
        """Scale and normalize."""
        return keras.ops.softmax(x * self.beta, axis=-1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """As the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """All arguments."""
        return {**super().get_config(), "beta": self.beta}


def attend(
    make: Make,
    query: Any,
    key: Any,
    value: Any,
    name: str,
    *,
    beta: float = 1.0,
    scale: Any = None,
    mask: Mask = NO_MASK,
    bias: Any = None,
    dropout: float = 0.0,
) -> tuple[Any, Any]:
    """`softmax(beta * query key' + bias) value` of [samples, (heads), positions, features].

    Args:
        make: of the rule.
        query: tensor.
        key: tensor of the same rank.
        value: tensor of the same rank.
        name: of the layer.
        beta: constant scale of the logits.
        scale: a variable that takes its place, or None.
        mask: which keys a query sees.
        bias: constant or variable that is added to the scaled logits, or None.
        dropout: rate, in training.

    Returns:
        The values, and the weights they were summed with.
    """
    # [samples, (heads), queries, keys].
    logits = product(make, query, key, f"{name}_logits", adj_y=True, key="logits")
    if scale is not None or beta <= 0.0:  # a trained factor, or one that SOFTMAX does not take
        factor, trains = (beta, ()) if scale is None else (as_array(scale), ("scale",) if _trains(scale) else ())
        width, label = logits.shape[-1], f"{name}_factor"
        logits = make("factor", lambda: affine(factor, 0.0, channels=width, name=label, trains=trains))(logits)
        beta = 1.0
    if bias is not None:  # added before beta is applied: divided by it, also where it trains
        other = stored(make, as_array(bias) / beta, logits, name, key="bias", trains=_trains(bias))
        logits = make("biased", lambda: layers.Add(name=f"{name}_biased"))([logits, other])
    # 8 below every logit is meant behind beta, which SOFTMAX applies to what is masked here.
    logits = masked_by(make, logits, mask, name, MASKED_BELOW / beta)
    weights = make("weights", lambda: ScaledSoftmax(beta, name=f"{name}_weights"))(logits)
    if dropout:
        weights = make("dropout", lambda: layers.Dropout(dropout, name=f"{name}_dropout"))(weights)
    return product(make, weights, value, name), weights


def _trains(value: Any) -> bool:
    return isinstance(value, keras.Variable) and value.trainable


def _dot_product(
    op: Any,
    make: Make,
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    scale: Any = None,
    flash_attention: Any = None,  # the same function, by another kernel
    attn_logits_soft_cap: Any = None,
) -> Any:
    """`keras.ops.dot_product_attention`: [samples, positions, heads, features]."""
    if attn_logits_soft_cap is not None:  # older Kerases pass it on, newer ones keep it in the operation
        raise ValueError(
            f"{op.name} ({type(op).__name__}): attn_logits_soft_cap has no rule. Write the attention out with "
            "keras.ops: matmul, `cap * tanh(logits / cap)`, softmax, matmul."
        )
    hidden = hidden_by(op, make, bias) if isinstance(bias, keras.KerasTensor) else None
    if isinstance(bias, keras.KerasTensor) and hidden is None:
        raise ValueError(
            f"{op.name} ({type(op).__name__}): a bias that is computed from the inputs. Add it to the logits with "
            "keras.ops, as matmul, add, softmax, matmul."
        )
    beta = 1.0 / float(np.sqrt(query.shape[-1])) if scale is None else float(as_array(scale))
    # Keras gives [samples, positions, heads, features]; matrices stand on the last two axes, so heads go in front of
    # them.
    swap = [0, 2, 1, 3]
    heads, positions, keys = query.shape[2], query.shape[1], key.shape[1]
    seen = NO_MASK if mask is None else read_mask(mask, op, make, 4)
    if op.is_causal:
        seen = seen.and_where(np.tri(positions, keys, dtype=bool)[None])
    if hidden is not None:
        bias, seen = None, seen.and_mask(hidden)
    if bias is not None and not _trains(bias):
        # A bias of -1e9 would stretch the range of the sum until all other logits shared one code.
        bias, seen = _split_bias(as_array(bias), seen)
    query = permuted(make, query, swap, op.name, "query")
    key, value = (
        repeated(make, permuted(make, t, swap, op.name, n), heads, f"{op.name}_{n}", n)
        for t, n in ((key, "key"), (value, "value"))
    )
    y, _ = attend(make, query, key, value, op.name, beta=beta, mask=seen, bias=bias)
    return permuted(make, y, swap, op.name, "output")


def _split_bias(bias: np.ndarray, mask: Mask) -> tuple[np.ndarray | None, Mask]:
    """Minus infinities of a constant bias are a mask."""
    free = bias > MINUS_INFINITY
    if np.all(free):
        return bias, mask
    rest = np.where(free, bias, 0.0)
    return (rest if np.any(rest) else None), mask.and_where(without_batch(free, 4, "bias"))


def repeated(make: Make, x: Any, heads: int, name: str, key: str) -> Any:
    """Each of fewer heads as often as queries share it (axis 1); a single one broadcasts."""
    few = x.shape[1]
    if few in (1, heads):
        return x
    _, _, positions, features = x.shape
    # An axis of copies behind the heads makes the copies of a head neighbours, as Keras gives them to the query heads.
    x = reshaped(make, x, (few, 1, positions, features), name, f"{key}_each")
    copies = [x] * (heads // few)
    x = make(f"{key}_copies", lambda: layers.Concatenate(axis=2, name=f"{name}_copies"))(copies)
    return reshaped(make, x, (heads, positions, features), name, f"{key}_repeated")


def softmax_over(op: Any, make: Make, x: Any, mask: Any = None, **_: Any) -> Any:
    """A Softmax over other axes than the last, or with a constant mask; None where it is plain."""
    rank = len(x.shape)
    axes = sorted({int(a) % rank for a in np.atleast_1d(getattr(op, "axis", -1))})
    if axes == [rank - 1] and mask is None:
        plain = getattr(op, "axis", -1) in (-1, rank - 1)
        return None if plain else make("last", lambda: layers.Softmax(name=op.name))(x)
    if 0 in axes:
        raise ValueError(
            f"{op.name} ({type(op).__name__}): softmax over the batch axis (axes {axes}); the device computes one "
            "sample at a time. Take another axis."
        )
    if mask is not None:
        x = masked_by(make, x, read_mask(mask, op, make, rank), op.name)
    # All axes of the softmax behind the others and in one, for SOFTMAX runs over the last axis.
    order = [a for a in range(rank) if a not in axes] + axes
    x = permuted(make, x, order, op.name, "order")
    shape, kept = x.shape[1:], rank - len(axes) - 1
    x = reshaped(make, x, (*shape[:kept], int(np.prod(shape[kept:]))), op.name, "flat")
    x = make("last", lambda: layers.Softmax(name=op.name))(x)
    x = reshaped(make, x, shape, op.name, "shape")
    return permuted(make, x, [order.index(a) for a in range(rank)], op.name, "back")


def _kernel(node: Node) -> tuple[str, dict[str, Any]]:
    return "SOFTMAX", {"beta": node.op.beta}


def _lower(program: Program, call: Call) -> None:
    emit_softmax(program, call, call.op.beta)


def _lower_softmax(program: Program, call: Call) -> None:
    emit_softmax(program, call, 1.0)


def _softmax_kernel(node: Node) -> tuple[str, dict[str, Any]]:
    return "SOFTMAX", {"beta": 1.0}


def _bad_softmax(node: Node) -> str | None:
    axis, rank = getattr(node.op, "axis", -1), len(node.inputs[0].shape)
    if axis not in (-1, rank - 1):
        return f"softmax over axis {axis}; the kernels take the last axis only, so put a Permute before and after it"
    if len(node.inputs) > 1:
        return "softmax with a mask; add the mask to the logits instead"
    return None


def _softmax(layer: Any) -> bool:
    return isinstance(layer, layers.Softmax) or name_of(layer.activation) == "softmax"


def _heads(**options: Any) -> Any:
    return computed(lambda q, k, v: keras.ops.dot_product_attention(q, k, v, **options), *[(4, 2, 6)] * 3)


def _padded_heads(x: Any, real: Any) -> Any:
    return keras.ops.dot_product_attention(x, x, x, mask=some(real)[:, None])


def _bias() -> np.ndarray:
    bias = np.random.default_rng(0).normal(size=(1, 2, 4, 4)).astype(np.float32)
    return np.where(np.tri(4) > 0, bias, np.float32(-1e9))


RULES = (
    Rule(
        layers=(layers.Activation, layers.Softmax),
        when=_softmax,
        expand=softmax_over,
        masks=True,
        operators=("SOFTMAX",),
        output="fixed",
        fixed=(1 / 256, -128),
        arithmetic=_softmax_kernel,
        lower=_lower_softmax,
        refuse=_bad_softmax,
        examples=(
            example(lambda: layers.Activation("softmax"), shape=(6, 5)),
            example(lambda: layers.Softmax(), shape=(10,)),
            example(lambda: layers.Softmax(axis=1), shape=(5, 4, 3)),
            example(lambda: layers.Softmax(axis=(1, 3)), shape=(3, 4, 2)),  # pyright: ignore[reportArgumentType]
            computed(lambda x: layers.Softmax()(x, mask=np.tri(4, dtype=bool)), (4, 4)),
        ),
    ),
    Rule(
        operations=("DotProductAttention",),
        expand=_dot_product,
        masks=True,
        examples=(
            _heads(),
            _heads(is_causal=True, scale=0.5),
            _heads(mask=np.array([True, True, False, True])),
            _heads(bias=_bias()),
            computed(_padded_heads, (4, 2, 6), (4,)),
        ),
    ),
    Rule(
        layers=(ScaledSoftmax,),
        operators=("SOFTMAX",),
        output="fixed",
        fixed=(1 / 256, -128),
        arithmetic=_kernel,
        lower=_lower,
        examples=(example(lambda: ScaledSoftmax(0.3), shape=(4, 7)), example(lambda: ScaledSoftmax(2.0), shape=(9,))),
    ),
)
