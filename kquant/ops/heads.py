"""The attention layers: MultiHeadAttention, GroupQueryAttention, Attention, AdditiveAttention; see `attention`."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np

from kquant.graph.keras_private import projection
from kquant.ops.activation import activate
from kquant.ops.attention import attend, repeated
from kquant.ops.constant import as_array
from kquant.ops.masks import NO_MASK, Mask, masked_by, read_mask
from kquant.ops.matmul import dense, permuted, product, reshaped
from kquant.ops.real_steps import KEPT, padded
from kquant.ops.rule import Make, Rule, computed, looked_up

layers = keras.layers


def _band(queries: int, keys: int, causal: bool, window: int | None) -> np.ndarray | None:
    """bool[1, 1, queries, keys]: which keys a query may see; None for all."""
    if not causal and window is None:
        return None
    # How far a key lies ahead of the query; negative ones are the past.
    ahead = np.arange(keys)[None] - np.arange(queries)[:, None]
    allowed = ahead <= 0 if causal else np.ones_like(ahead, bool)
    return (allowed if window is None else allowed & (np.abs(ahead) < window))[None, None]


def _multi_head(op: Any, make: Make, query: Any, value: Any, key: Any = None, **options: Any) -> Any:
    """Both multi-head layers: projections as Dense, heads as an axis of their own, the output as Dense."""
    key = value if key is None else key
    grouped = isinstance(op, layers.GroupQueryAttention)
    mask = _seen(op, make, query, key, options)
    shape = query.shape[1:-1]
    query, key, value = (_flat(op, make, t, n) for t, n in ((query, "query"), (key, "key"), (value, "value")))
    q, k, v = (_projected(op, make, t, n) for t, n in ((query, "query"), (key, "key"), (value, "value")))
    if grouped:
        k, v = (repeated(make, t, q.shape[1], f"{op.name}_{n}", n) for t, n in ((k, "key"), (v, "value")))
    config = op.get_config()
    beta = 1.0 / np.sqrt(float(config["head_dim" if grouped else "key_dim"]))
    dropout = config["dropout"]
    y, weights = attend(make, q, k, v, f"{op.name}_values", beta=float(beta), mask=mask, dropout=dropout)
    if config.get("use_gate"):
        gate = _projected(op, make, query, "gate")
        y = make("gated", lambda: layers.Multiply(name=f"{op.name}_gated"))([y, gate])
    y = _output(op, make, y, shape)
    return (y, weights) if options.get("return_attention_scores") else y


def _seen(op: Any, make: Make, query: Any, key: Any, options: dict[str, Any]) -> Mask:
    """The masks of a call together: which keys a query of which head sees."""
    # Before `_flat`: further axes of positions count together.
    queries, keys = (int(np.prod(t.shape[1:-1])) for t in (query, key))
    window = op.get_config().get("sliding_window")
    band = _band(queries, keys, bool(options.get("use_causal_mask")), window)
    seen = NO_MASK if band is None else NO_MASK.and_where(band[0])
    # [samples, queries, keys], or of one of the two alone; a query that is masked sees no key.
    masks = {"attention_mask": (3, None), "value_mask": (2, -2), "key_mask": (2, -2), "query_mask": (2, -1)}
    for name, (rank, axis) in masks.items():
        if options.get(name) is not None:
            seen = seen.and_mask(read_mask(options[name], op, make, rank, name, axis))
    return seen


def _flat(op: Any, make: Make, x: Any, key: str) -> Any:
    """[samples, positions, features]: more axes of positions become one, where attention runs over them all."""
    axes = tuple(op.get_config().get("attention_axes") or (1,))
    if axes != tuple(range(1, len(x.shape) - 1)):
        raise ValueError(
            f"{op.name} ({type(op).__name__}): attention over axes {axes} of a tensor {tuple(x.shape)}; only attention "
            "over all positions has an integer form. Bring the other axes to the batch, or use keras.ops.einsum."
        )
    return reshaped(make, x, (int(np.prod(x.shape[1:-1])), x.shape[-1]), op.name, f"{key}_flat")


def _projected(op: Any, make: Make, x: Any, key: str) -> Any:
    """[samples, heads, positions, features] by one of the layer's projections."""
    inner: Any = projection(op, key)
    if getattr(inner, "lora_enabled", False):
        raise ValueError(f"{op.name} ({type(op).__name__}): LoRA is on; save and reload the layer to merge it.")
    # Keras' kernel is [features in, heads, features out]: as one matrix, heads outside, which the reshape takes apart
    # again.
    width, heads, features = inner.kernel.shape
    y = dense(
        make,
        x,
        inner.kernel.numpy().reshape(width, heads * features),
        f"{op.name}_{key}",
        bias=None if inner.bias is None else inner.bias.numpy().reshape(-1),
        trains=inner.kernel.trainable,
        key=f"{key}_dense",
    )
    if key == "gate":
        y = activate(inner.activation, make, y)
    y = reshaped(make, y, (x.shape[1], heads, features), op.name, f"{key}_heads")
    return permuted(make, y, [0, 2, 1, 3], op.name, f"{key}_order")


def _output(op: Any, make: Make, y: Any, shape: Any) -> Any:
    """Heads side by side through the output projection, in the shape of the query."""
    inner: Any = projection(op, "output")
    kernel = inner.kernel.numpy()
    y = permuted(make, y, [0, 2, 1, 3], op.name, "positions")
    width = int(y.shape[2] * y.shape[3])
    # [samples, positions, heads * features], in the order of the output kernel's first two axes.
    y = reshaped(make, y, (y.shape[1], width), op.name, "beside")
    y = dense(
        make,
        y,
        kernel.reshape(width, -1),
        op.name,
        bias=None if inner.bias is None else np.broadcast_to(inner.bias.numpy(), kernel.shape[2:]).reshape(-1),
        trains=inner.kernel.trainable,
        key="output_dense",
    )
    return reshaped(make, y, (*shape, *kernel.shape[2:]), op.name, "output_shape")


def _attention(op: Any, make: Make, inputs: Any, mask: Any = None, **options: Any) -> Any:
    """Attention and AdditiveAttention: logits by products, or by a tanh of sums."""
    query, value = inputs[0], inputs[1]
    key = inputs[2] if len(inputs) > 2 else value
    causal = _band(query.shape[1], key.shape[1], bool(options.get("use_causal_mask")), None)
    seen = NO_MASK if causal is None else NO_MASK.and_where(causal[0])
    real, told = mask or (None, None)
    if told is not None:  # the mask of the values says which of them every query may see
        seen = seen.and_mask(read_mask(told, op, make, 2, "value_mask", -2))
    if getattr(op, "score_mode", "dot") == "dot" and not isinstance(op, layers.AdditiveAttention):
        y, weights = attend(make, query, key, value, op.name, scale=op.scale, mask=seen, dropout=op.dropout)
    else:
        logits = masked_by(make, _additive(op, make, query, key), seen, op.name)
        weights = make("weights", lambda: layers.Softmax(name=f"{op.name}_weights"))(logits)
        if op.dropout:
            weights = make("dropout", lambda: layers.Dropout(op.dropout, name=f"{op.name}_dropout"))(weights)
        y = product(make, weights, value, op.name)
    if (kept := padded(op, make, real)) is not None:  # a query that is masked gives 0
        y = kept.pick(y, KEPT)
    return (y, weights) if options.get("return_attention_scores") else y


def _additive(op: Any, make: Make, query: Any, key: Any) -> Any:
    """`sum(scale * tanh(query + key))` for every pair: the sum is a Dense without bias."""
    (queries, features), keys = query.shape[1:], key.shape[1]
    inner, outer = 1.0, op.scale
    if not isinstance(op, layers.AdditiveAttention):
        inner, outer = (1.0 if op.scale is None else float(as_array(op.scale))), op.concat_score_weight
    # The sum over features is a product with ones, or with the trained scale, so that the Dense holds it.
    kernel = np.ones((features, 1), np.float32)
    if outer is not None:
        kernel = kernel * as_array(outer).reshape(-1, 1)
    # [queries, 1, features] + [1, keys, features]: every pair of positions.
    query = reshaped(make, query, (queries, 1, features), op.name, "queries")
    key = reshaped(make, key, (1, keys, features), op.name, "keys")
    x = make("pairs", lambda: layers.Add(name=f"{op.name}_pairs"))([query, key])
    if inner != 1.0:
        x = make("inner", lambda: layers.Rescaling(inner, name=f"{op.name}_inner"))(x)
    x = make("tanh", lambda: layers.Activation("tanh", name=f"{op.name}_tanh"))(x)
    trains = isinstance(outer, keras.Variable) and outer.trainable
    x = dense(make, x, kernel, f"{op.name}_logits", trains=trains)
    return reshaped(make, x, (queries, keys), op.name, "logits_shape")


def _self(make_layer: Any, *shape: int, **options: Any) -> Any:
    return computed(lambda x: make_layer()(x, x, **options), shape)


def _with(argument: str, make_layer: Any) -> tuple[Any, ...]:
    """The example of an argument that came after the oldest Keras, where the installed one has it."""
    known = inspect.signature(layers.MultiHeadAttention.__init__).parameters
    return (_self(make_layer, 5, 8),) if argument in known else ()


def _sentences(attend: Any) -> Any:
    """Sentences whose index 0 is padding, the mask handed on by Keras."""
    return looked_up(lambda tokens: attend(layers.Embedding(10, 6, mask_zero=True)(tokens)), 5)


def _pair(make_layer: Any, **options: Any) -> Any:
    return computed(lambda q, v: make_layer()([q, v], **options), (4, 6), (5, 6))


RULES = (
    Rule(
        layers=(layers.MultiHeadAttention, layers.GroupQueryAttention),
        expand=_multi_head,
        examples=(
            _self(lambda: layers.MultiHeadAttention(2, 4), 5, 8),
            _self(lambda: layers.MultiHeadAttention(2, 4, use_bias=False), 5, 8, use_causal_mask=True),
            _self(lambda: layers.MultiHeadAttention(2, 4, dropout=0.1), 5, 8),
            *_with("sliding_window", lambda: layers.MultiHeadAttention(2, 4, sliding_window=2)),
            _self(lambda: layers.MultiHeadAttention(2, 4, output_shape=(3, 2)), 3, 2, 8),
            _self(lambda: layers.MultiHeadAttention(2, 4), 5, 8, return_attention_scores=True),
            _self(lambda: layers.MultiHeadAttention(2, 4), 3, 8, attention_mask=np.eye(3, dtype=bool)[None]),
            computed(lambda x, y: layers.MultiHeadAttention(2, 3, value_dim=4)(x, y), (4, 6), (5, 7)),
            _self(lambda: layers.GroupQueryAttention(4, 4, 2), 5, 8, use_causal_mask=True),
            _sentences(lambda x: layers.MultiHeadAttention(2, 4)(x, x)),
            _sentences(lambda x: layers.GroupQueryAttention(4, 4, 2)(x, x, use_causal_mask=True)),
            *_with("use_gate", lambda: layers.GroupQueryAttention(4, 3, 1, use_gate=True)),
        ),
    ),
    Rule(
        layers=(layers.Attention, layers.AdditiveAttention),
        expand=_attention,
        masks=True,
        examples=(
            _pair(layers.Attention),
            _pair(lambda: layers.Attention(use_scale=True), use_causal_mask=True),
            _pair(lambda: layers.Attention(use_scale=True, score_mode="concat")),
            _pair(layers.AdditiveAttention),
            _pair(lambda: layers.AdditiveAttention(use_scale=False), use_causal_mask=True),
            _sentences(lambda x: layers.Attention()([x, x])),
            _sentences(lambda x: layers.AdditiveAttention()([x, x])),
        ),
    ),
)
