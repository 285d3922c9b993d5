"""Arithmetic on a few numbers as one node of a graph.

A layer's scales take some forty operations on single numbers. TensorFlow spends as long on a node that adds two
numbers as on a convolution when it traces a graph, and half as long as a small convolution when it runs one eagerly. A
function that is traced once and called stands in the graph as one node; TensorFlow puts its body in its place before it
runs the graph, so the numbers are the same to the bit, compiled by XLA or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

Function = TypeVar("Function", bound=Callable)


def one_node(function: Function) -> Function:
    """The function of tensors and plain values, traced once for each set of plain values, types and ranks.

    Not for what a gradient passes through: TensorFlow would trace its gradient at every call.
    """
    return tf.function(function, autograph=False, reduce_retracing=True)
