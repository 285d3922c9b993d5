"""Sequential MSE: the range of each kernel that keeps the layer's output, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.calibration import observers
from kquant.core.checks import check_count, present
from kquant.core.messages import warn
from kquant.core.progress import tqdm
from kquant.core.renamed import renamed
from kquant.core.spec import encode_weights
from kquant.correct.left_out import warn_left_out
from kquant.correct.progress import finished_of
from kquant.correct.reconstruction import Reservoir, channels_of, input_rows, most_rows, positions, row_shape
from kquant.correct.sweep import Sweep
from kquant.files.destination import path_of
from kquant.graph.given_model import check_keras
from kquant.layers.kernel import has_codes
from kquant.ops.rows import as_matrix
from kquant.views.quantized_model import Place, forget_graphs, refuse_uncalibrated
from kquant.views.recipe_steps import step_done
from kquant.views.step_places import every_place

WIDEST_GRAM = 4096  # inputs of an output; 128 MiB in float64
# Positions and values of them that a Gram matrix is summed over, and positions for each of its rows at least: more take
# time, and move the accuracies in docs/benchmarks.md by less than a third of a point.
MOST_ROWS, MOST_VALUES, LEAST_ROWS = 1 << 17, 1 << 26, 8


@renamed
def sequential_mse(
    qmodel: keras.Model,
    data: Any,
    *,
    candidates: int = 20,
    batch_size: int = 32,
    limit: int | None = None,
    folder: str | Path | None = None,
    verbose: bool = True,
) -> keras.Model:
    """Choose the range of each channel's weights by what its rounding does to the layer's output.

    In place: changes `qmodel` and returns it.

    `reach_c = r max|w_c|` with `r = 1/n .. n/n` that makes `d' G d` least, `d = q(w_c) - w_c`, with `G = sum x x'` over
    the positions of the layer's inputs x in the quantized model, whose earlier layers have their new ranges: all of
    them, or a random sample where there are more than 131,072 or hold more than 2^26 values. The sum is in float64.
    Where an output has more than 4096 inputs, G is that of few rows, so that memory stays bounded. Layers with one
    scale get one reach. Layers that are no matrix product (transposed convolutions, embeddings, PReLU) get the "mse"
    range of their weights, without data. Weights in blocks keep the ranges of their blocks; a warning names them.

    Args:
        qmodel: what `kquant.quantize` returned, calibrated; the ranges of its weights are set in place, and weights
            that AdaRound has rounded are rounded to nearest again.
        data: representative samples, see `kquant.calibrate`.
        candidates: n, how many ranges to try.
        batch_size: for arrays.
        limit: use this many samples only, the first ones.
        folder: for the ranges of finished layers; a run that was stopped goes on from there,
            with the same samples in order.
        verbose: show a progress bar.

    Returns:
        `qmodel`. Interrupted, the layers seen so far have their new range.

    Raises:
        ValueError: not a quantized model, not calibrated, data that do not fit, fewer than 1 candidate, or a folder
            with the ranges of another model, calibration, other samples or options.

    Source: AIMET 2, `seq_mse`; with the Gram matrix of Frantar et al., arXiv:2210.17323, section 3 ("layer-wise
    quantization"), which costs the same for however many positions.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> q = kquant.quantize(model, {"name": "w4", "weights": {"bits": 4}})
        >>> q = kquant.calibrate(q, np.ones((64, 4), "float32"), verbose=False)
        >>> q = kquant.sequential_mse(q, np.ones((64, 4), "float32"), verbose=False)
    """
    check_keras(qmodel, "sequential_mse")
    check_count("sequential_mse", "candidates", candidates)
    refuse_uncalibrated("sequential_mse", qmodel)
    sweep = Sweep("sequential_mse", qmodel, data, limit, batch_size)
    _name_others(sweep)
    kept = None if folder is None else path_of(folder, "sequential_mse", "ranges")
    finished = finished_of(sweep, kept, "range", {"candidates": candidates})
    for place in tqdm(every_place(sweep.graph), desc="sequential mse", unit="layer", disable=not verbose):
        known = (place.layer.weights_as_used(),)
        chosen = finished.load(place, known)
        if chosen is None:
            chosen = _reach(sweep, place, candidates)
            finished.store(place, known, chosen)
        # Codes that AdaRound kept were of the old grid.
        place.layer.round_by(None)
        place.layer.set_reach(chosen, by_data=True)
        forget_graphs(qmodel)
    return step_done(qmodel, "sequential-mse")


def _reach(sweep: Sweep, place: Place, candidates: int) -> np.ndarray:
    """By the output's error where the layer is a product of matrices, by that of its weights elsewhere."""
    if place.rows is None:
        weights = place.layer.weights_as_used().numpy()
        return observers.reach_of_weights("mse", weights, place.layer.spec, place.layer.channel_axes)
    return best_reach(place, output_error(sweep, place), candidates)


def _name_others(sweep: Sweep) -> None:
    """Layers with weights whose ranges no correction can set."""
    warn_left_out("sequential_mse", sweep.graph, "keep the ranges of their blocks")
    names = {node.name for node in sweep.graph.nodes if has_codes(node.op) and not node.op.takes("reach")}
    if names:
        warn(f"sequential_mse: the matrices of {', '.join(sorted(names))} (recurrent) keep their ranges.")


@dataclass(frozen=True)
class OutputError:
    """What an error of a kernel does to the layer's output.

    Attributes:
        gram: float64[groups, k, k], sum of `x x'` over all rows; or None, and
        rows: float32[groups, n, k], a sample of them.
    """

    gram: np.ndarray | None
    rows: np.ndarray | None

    def of(self, wrong: np.ndarray, outputs: int) -> np.ndarray:
        """Squared error of each output channel, summed over the rows: float64[outputs].

        Args:
            wrong: float64, quantized weights minus weights, in Keras' layout.
            outputs: number of output channels.
        """
        if self.gram is not None:
            matrix = as_matrix(wrong, len(self.gram), outputs)
            # d' G d = sum over rows of (x' d)^2, for all channels at once, without the rows.
            return np.sum(matrix * (self.gram @ matrix), axis=1).reshape(-1)
        rows = present(self.rows, "sequential_mse: neither rows nor their products.")
        matrix = as_matrix(wrong.astype(np.float32), len(rows), outputs)
        return np.sum((rows @ matrix) ** 2, axis=1, dtype=np.float64).reshape(-1)


def output_error(sweep: Sweep, place: Place) -> OutputError:
    """Collect the inputs of a layer in the quantized model."""
    groups, k = row_shape(place)
    if k > WIDEST_GRAM:
        kept = Reservoir(most_rows(WIDEST_GRAM, groups * k), np.random.default_rng(0))
        for rows in input_rows(sweep, place):
            kept.offer(len(rows), lambda taken, rows=rows: [rows[taken]])
        return OutputError(None, kept.kept[0].transpose(1, 0, 2))
    there = sweep.samples * sum(positions(call) for call in place.calls)
    share = min(MOST_ROWS, max(MOST_VALUES // (groups * k), LEAST_ROWS * k)) / there
    rng = np.random.default_rng(0)

    def pick(count: int) -> np.ndarray:
        return np.arange(count) if share >= 1.0 else np.flatnonzero(rng.random(count) < share)

    gram = np.zeros((groups, k, k))
    for rows in input_rows(sweep, place, pick):
        # Sums over all positions of all samples: in float32 the last ones would be lost.
        columns = rows.transpose(1, 2, 0).astype(np.float64)
        gram += columns @ columns.transpose(0, 2, 1)
    return OutputError(gram, None)


def best_reach(place: Place, error: OutputError, candidates: int) -> np.ndarray:
    """The reach of the least output error for each channel, or for all where the layer has one scale; of equal ones
    the widest: float32, shaped like the correction "reach".
    """
    layer, outputs = place.layer, channels_of(place)
    weights = layer.weights_as_used()
    shape = tuple(layer.correction("reach").shape)
    axes = [axis for axis, n in enumerate(shape) if n != weights.shape[axis]]
    widest = tf.reduce_max(tf.abs(weights), axis=axes, keepdims=True).numpy()
    best, least = np.zeros(shape, np.float32), np.full(shape, np.inf)
    for n in range(candidates, 0, -1):
        reach = (widest * (n / candidates)).astype(np.float32)
        wrong = (rounded(place, reach) - weights).numpy().astype(np.float64)
        errors = error.of(wrong, outputs)
        # `reach` has the kernel's axes, with 1 where it does not differ: the channels keep their order.
        errors = errors.reshape(shape) if layer.spec.per_axis else errors.sum().reshape(shape)
        # From the widest down, and only for a smaller error: of equal ones the widest stays, which clips least.
        best, least = np.where(errors < least, reach, best), np.minimum(errors, least)
    return best


def rounded(place: Place, reach: np.ndarray) -> tf.Tensor:
    """The kernel on the grid of this reach."""
    layer, spec = place.layer, place.layer.spec
    weights = layer.weights_as_used()
    scale = encode_weights(weights, spec, layer.channel_axes, reach=tf.constant(reach))
    return tf.clip_by_value(tf.round(weights / scale), float(spec.low), float(spec.high)) * scale
