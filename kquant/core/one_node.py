"""Arithmetic on a few numbers as one node of a graph.

A layer's scales take some forty operations on single numbers. TensorFlow spends as long on a node that adds two
numbers as on a convolution when it traces a graph, and half as long as a small convolution when it runs one eagerly. A
function that is traced once and called stands in the graph as one node; TensorFlow puts its body in its place before it
runs the graph, so the numbers are the same to the bit, compiled by XLA or not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any, TypeVar

import tensorflow as tf

from kquant.core.beforehand import beforehand

Function = TypeVar("Function", bound=Callable)
AS_THEY_ARE = 128  # eager calls of a kind: to trace it and to call it first takes as long as a hundred of them


def one_node(function: Function) -> Function:
    """The function, traced once for each set of plain arguments and each type and shape of tensors.

    Not for what a gradient passes through: TensorFlow would trace its gradient at every call.

    Args:
        function: of tensors, tuples of tensors, and plain values that can be hashed, by position.
    """
    return _traced_once(function, aside=False)


def one_node_for_any(*places: int) -> Callable[[Function], Function]:
    """`one_node`, traced once for all sizes of the arguments at these places: those that hold the values of a tensor.

    Args:
        places: numbers of arguments, from 0; of their tensors the function knows the ranks alone.
    """
    return lambda function: _traced_once(function, aside=False, places=places)


def aside(function: Function) -> Function:
    """As `one_node`, for what hardly ever runs, in a branch: a graph keeps it apart, as one node to the end.

    It is traced once for tensors of any size, of which only the ranks are known to it and to what reads the results.

    Args:
        function: see `one_node`.
    """
    return _traced_once(function, aside=True)


def _traced_once(function: Function, *, aside: bool, places: tuple[int, ...] = ()) -> Function:
    options = {"experimental_attributes": {"_noinline": True}} if aside else {}

    # One for each kind of call: TensorFlow warns of a function that it traces for many of them, or in many graphs.
    @cache
    def traced(count: int, plain: tuple[tuple[int, Any], ...], kinds: tuple[Any, ...]) -> Callable:
        # plain values are constants of the graph: a branch on one of them is taken as it is traced
        values = dict(plain)

        def filled(*tensors: Any) -> Any:
            rest = iter(tensors)
            return function(*(values[n] if n in values else next(rest) for n in range(count)))

        with tf.init_scope():  # of no graph, so that it serves in all
            return tf.function(filled, autograph=False, input_signature=kinds, **options).get_concrete_function()

    eager: Counter[Any] = Counter()  # calls of a kind that ran as they are

    def kind_of(tensor: tf.Tensor, of_any_size: bool) -> tf.TensorSpec:
        return tf.TensorSpec([None] * tensor.shape.rank if of_any_size else tensor.shape, tensor.dtype)

    @wraps(function)
    def call(*args: Any) -> Any:
        plain = tuple((n, a) for n, a in enumerate(args) if not _holds_tensors(a))
        numbered = [(aside or n in places, a) for n, a in enumerate(args) if _holds_tensors(a)]
        tensors = tuple(a for _, a in numbered)
        kinds = tuple(tf.nest.map_structure(partial(kind_of, of_any_size=free), a) for free, a in numbered)
        kind = len(args), plain, kinds
        if tf.executing_eagerly() and eager[kind] < AS_THEY_ARE:
            eager[kind] += 1
            return function(*args)
        with beforehand(*tf.nest.flatten(tensors)):
            return traced(*kind)(*tensors)

    return call  # pyright: ignore[reportReturnType]  the same arguments, the same result


def _holds_tensors(value: Any) -> bool:
    return tf.is_tensor(value[0] if isinstance(value, tuple) else value)
