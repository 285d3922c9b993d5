"""Numbers in place of those that training and calibration find: a file's size depends on which there are, not on them.

Ranges differ from each other in width and in where 0 is, as those of data do, and so do biases in place of the zeros
that layers have before they are trained: files store equal numbers once, and no bias of zeros.
"""

from __future__ import annotations

import math

import keras
import numpy as np

from kquant.calibration.held_scales import widen_ranges
from kquant.correct.data_free import data_free_ranges
from kquant.correct.moments import bounds_of
from kquant.graph.graph import Graph
from kquant.graph.keras_private import every_layer
from kquant.layers.kernel import Holder, holders
from kquant.layers.nodes import FakeQuant, encodings_of
from kquant.views.loops import opened

MADE_UP_INPUT = (-256.0, 256.0)  # wide: what a narrow one seems to prove is not so
GOLDEN = 0.5 * (math.sqrt(5.0) - 1.0)  # its multiples, without their whole parts, never come close to each other


def make_up(qmodel: keras.Model, graph: Graph) -> None:
    """Give a quantized model what it takes to be written.

    Args:
        qmodel: what `kquant.quantize` returned; changed in place.
        graph: its calls, see `kquant.views.quantized_model.read`.
    """
    _train(qmodel)
    bounds = _bounds(opened(graph))
    for number, layer in enumerate(encodings_of(qmodel)):
        if not layer.has_range:
            continue
        highest = 0.5 + 2.0 * (number * GOLDEN % 1.0)
        # behind a ReLU with a maximum of its own, a range that ends beyond needs one operator more
        low, high = np.clip((-1.0, highest), *bounds.get(layer.name, (-math.inf, math.inf)))
        for site in range(layer.sites):
            layer.set_range(site, float(low), float(high))
    widen_ranges(qmodel)


def from_batch_norms(model: keras.Model, qmodel: keras.Model) -> bool:
    """Ranges as the batch norms of a trained model tell them, for what lies behind inputs that are made up.

    They tell the channels that a trained network no longer uses, which no range that is made up does.

    Args:
        model: float.
        qmodel: what became of it, with ranges that are made up; changed in place.

    Returns:
        Whether there were batch norms that saw data, and they told everything.
    """
    norms = [each for each in every_layer(model) if isinstance(each, keras.layers.BatchNormalization)]
    if not any(np.any(each.moving_mean) for each in norms):
        return False
    try:
        data_free_ranges(qmodel, input_range=MADE_UP_INPUT, verbose=False)
    except ValueError:
        return False
    return True


def _train(qmodel: keras.Model) -> None:
    """Numbers about 1 where a variable that trains holds zeros only."""
    rng = np.random.default_rng(0)
    for holder in holders(qmodel):
        norm = getattr(holder, "norm", None)  # a live batch norm
        variables = [*holder.layer.weights, *(norm.weights if norm is not None else ())]
        for variable in variables:
            trains = variable.trainable and "float" in keras.backend.standardize_dtype(variable.dtype)
            if trains and not np.any(variable.numpy()):
                variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(np.float32))


def _bounds(graph: Graph) -> dict[str, tuple[float, float]]:
    """Name of an encoding -> what the layer before cuts its values to."""
    producers, bounds = graph.producers, {}
    for node in graph.nodes:
        if isinstance(node.op, FakeQuant) and not node.kwargs.get("peek") and id(node.args[0]) in producers:
            made = producers[id(node.args[0])]
            limits = None if isinstance(made.op, Holder) else bounds_of(made)
            if limits is not None:
                bounds[node.op.name] = limits
    return bounds
