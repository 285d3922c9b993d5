"""Representative data -> ranges.

Ranges are stored when all data have been seen (`observe`), so an interrupted calibration leaves the old ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kquant.calibration import observers
from kquant.calibration.added_masks import bound_added_masks
from kquant.calibration.alike_heads import join_alike, part_heads
from kquant.calibration.data_warnings import warn_of_data, warn_of_padding, warn_of_poles
from kquant.calibration.held_scales import hold_scales
from kquant.calibration.lost_signal import warn_of_losses
from kquant.calibration.observations import Observations, observe
from kquant.core.messages import first_of, warn
from kquant.core.renamed import renamed
from kquant.graph.creation import without_collection
from kquant.graph.given_model import check_keras
from kquant.graph.keras_private import every_layer
from kquant.graph.tensorflow_private import operations_as_kernels
from kquant.layers.nodes import Compressed, FakeQuant, encodings_of
from kquant.views.quantized_model import forget_graphs
from kquant.views.recipe_steps import step_done

FEW_SAMPLES = 32


@renamed
def calibrate(
    qmodel: keras.Model, data: Any, *, limit: int | None = None, batch_size: int | None = None, verbose: bool = True
) -> keras.Model:
    """Set the ranges of a quantized model from representative data.

    In place: changes `qmodel` and returns it.

    Args:
        qmodel: what `kquant.quantize` returned. One whose activations stay float
            (recipes "dynamic-int8", "float16", ...) comes back as it is.
        data: numpy array, list or dict of arrays (several inputs), `tf.data.Dataset`, `keras.utils.PyDataset` or a
            function that returns a generator; labels beside the inputs are ignored. Or `Observations`, the sum of what
            `kquant.observe` saw of several shards.
        limit: use this many samples only, the first ones.
        batch_size: for arrays; by default 32, up to 128 small samples, or fewer where memory asks for it.
        verbose: show a progress bar.

    Returns:
        `qmodel`.

    Raises:
        ValueError: not a quantized model, no data, wrong shape or dtype, NaN or Inf.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> q = kquant.calibrate(kquant.quantize(model), np.ones((64, 4), "float32"), verbose=False)
    """
    check_keras(qmodel, "calibrate")
    arrays = all(isinstance(part, np.ndarray) for part in keras.tree.flatten(data))
    # of arrays it leaves nothing to collect; who makes data as they are asked for may do
    with operations_as_kernels(), without_collection() if arrays else contextlib.nullcontext():
        return step_done(_calibrated(qmodel, data, limit, batch_size, verbose=verbose), "calibrate")


def _calibrated(
    qmodel: keras.Model, data: Any, limit: int | None, batch_size: int | None, *, verbose: bool
) -> keras.Model:
    nodes = [layer for layer in encodings_of(qmodel) if layer.has_range]
    if not nodes and any(isinstance(layer, Compressed) for layer in qmodel.layers):
        set_weight_ranges(qmodel)
        return qmodel  # its activations stay float ("dynamic", "weight-only")
    if isinstance(data, Observations):
        seen = _of_model(qmodel, nodes, data)
    else:
        seen = observe(qmodel, data, limit=limit, batch_size=batch_size, verbose=verbose)
    if seen.samples < FEW_SAMPLES:
        warn(f"calibrate: {seen.samples} samples are few; ranges want 100 or more.")
    heads = part_heads(qmodel)
    warn_of_data(qmodel, seen)
    layers = {node.name: node for node in nodes}
    for (name, site), statistics in seen.tensors.items():
        layer = layers[name]
        low, high = observers.find(layer.observer)(statistics, layer.spec)
        layer.set_range(site, low, high)
    join_alike(qmodel, heads, lambda h, site: observers.find(h.observer)(seen.tensors[h.name, site], h.joined))
    bound_added_masks(qmodel, seen)
    set_weight_ranges(qmodel)
    # behind the weights' ranges, since kernels bound s_in * s_w / s_out; the warnings then see what the file will have
    hold_scales(qmodel)
    warn_of_poles(qmodel, seen)
    warn_of_padding(qmodel, seen)
    warn_of_losses(qmodel, seen)
    return qmodel


def set_weight_ranges(qmodel: keras.Model) -> None:
    """Where a recipe names an observer for weights, or learns their ranges, choose them; what a correction chose stays.

    Args:
        qmodel: what `kquant.quantize` returned; changed in place.
    """
    for layer in every_layer(qmodel):
        if not isinstance(layer, Compressed) or not layer.takes("reach"):
            continue
        learns = layer.learner is not None and layer.learner.learning.learns_weights
        # without a reach the scales follow the weights at every call, which is min-max already
        if layer.observer == "minmax" and not learns:
            continue
        if not layer.reach_by_data:
            weights = layer.weights_as_used().numpy()
            reach = observers.reach_of_weights(layer.observer, weights, layer.spec, layer.channel_axes)
            layer.set_reach(reach, by_data=False)
            # a first `set_reach` makes the variable, which graphs traced before do not read
            forget_graphs(qmodel)


def _of_model(qmodel: keras.Model, nodes: Sequence[FakeQuant], data: Observations) -> Observations:
    """The observations, where they are of this model and hold what its observers read."""
    calls = {(node.name, site) for node in nodes for site in range(node.sites)}
    missing = sorted({name for name, _ in calls ^ set(data.tensors)})
    if missing:
        raise ValueError(
            f"calibrate: these observations are not of {qmodel.name}: they differ at {first_of(missing)}. Observe "
            "with the same model and recipe."
        )
    for node in nodes:
        s = data.tensors[node.name, 0]
        held = {"histogram": s.counts.size, "rows": s.samples.size}
        for what, names in (("histogram", observers.NEED_HISTOGRAM), ("rows", observers.NEED_SAMPLES)):
            if node.observer in names and not held[what]:
                raise ValueError(
                    f"calibrate: '{node.name}' has the observer '{node.observer}', which these observations were not "
                    "made for. Observe with the same recipe."
                )
    return data
