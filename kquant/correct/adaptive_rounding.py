"""AdaRound: round each weight up or down as the layer's output asks for, layer by layer."""

from __future__ import annotations

import math
import zlib
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kquant.core.checks import check_count
from kquant.core.messages import warn
from kquant.core.progress import tqdm
from kquant.core.renamed import renamed
from kquant.correct.left_out import warn_left_out
from kquant.correct.options import check_option
from kquant.correct.progress import finished_of
from kquant.correct.reconstruction import Matrix, Reservoir, matrix_of, most_rows, positions, row_shape, rows_at
from kquant.correct.rounding import Examples, Settings, applied, products, round_matrix
from kquant.correct.sweep import Sweep
from kquant.files.destination import path_of
from kquant.graph.given_model import check_keras
from kquant.layers.kernel import has_codes
from kquant.ops.rows import from_matrix
from kquant.views.quantized_model import Place, forget_graphs, refuse_uncalibrated
from kquant.views.recipe_steps import step_done
from kquant.views.step_places import every_place

HELD_OUT = 8  # every 8th sample judges


@renamed
def adaround(
    qmodel: keras.Model,
    data: Any,
    *,
    iterations: int = 2000,
    learning_rate: float = 0.1,
    rows: int = 16384,
    row_batch: int = 256,
    limit: int | None = None,
    batch_size: int = 32,
    warm_start: float = 0.2,
    beta: tuple[float, float] = (20.0, 2.0),
    regularisation: float = 10.0,
    seed: int = 0,
    folder: str | Path | None = None,
    verbose: bool = True,
) -> keras.Model:
    """Learn for every weight whether it is rounded up or down.

    In place: changes `qmodel` and returns it.

    `w' = s clip(floor(w / s) + h(a), low, high)`, `h(a) = clip(1.2 sigmoid(a) - 0.1, 0, 1)`; a is found by Adam for

        sum_c  mean (f(w'_c x') - f(w_c x))^2 / noise_c  +  regularisation mean_k (1 - |2 h(a_kc) - 1|^beta)

    and h is then rounded. x' are inputs in the quantized model, whose earlier layers are rounded already; x those of
    the float model; f is the activation that the operator fuses; `noise_c` is what rounding to nearest does to the
    channel's sums, so that one `regularisation` suits all layers (10 stands where the paper's 0.01 does for errors that
    are not divided). A layer is seen as a matrix product: the loss is over a random sample of output positions of all
    samples, and every step takes the next batch of them. Biases stay. A layer whose h are all 0 or 1 is done before its
    last step.

    Each eighth sample is held out; a channel that does no better on it than rounded to nearest is rounded to nearest.
    Layers that are no matrix product (transposed convolutions, LSTM, embeddings, PReLU), or whose weights share values
    or are in blocks (`kquant.gptq` takes those), stay rounded to nearest; a warning names them. Pruned weights stay 0.

    Args:
        qmodel: what `kquant.quantize` returned, calibrated.
        data: representative samples, see `kquant.calibrate`; 200 do, 1000 do better.
        iterations: steps for each layer.
        learning_rate: of Adam.
        rows: how many output positions of a layer to keep; fewer where they would take more than 256 MiB.
        row_batch: positions in a step; a quarter of them for depthwise kernels.
        limit: use this many samples only, the first ones.
        batch_size: for arrays.
        warm_start: share of the steps without regularisation.
        beta: its first and last value; it falls along a cosine.
        regularisation: weight of what pushes h to 0 and 1.
        seed: decides which positions are kept, and in which order they are seen.
        folder: for the roundings of finished layers; a run that was stopped goes on from there,
            with the same samples in order.
        verbose: show a progress bar.

    Returns:
        `qmodel`. Interrupted, the finished layers are rounded and the others are as they were.

    Raises:
        ValueError: not a quantized model, not calibrated, data that do not fit, an option out of range, or a folder
            with the roundings of another model, calibration, other samples or options.

    Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", arXiv:2004.10568, (21)-(25).

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        >>> q = kquant.quantize(model, {"name": "w4", "weights": {"bits": 4}})
        >>> q = kquant.adaround(kquant.calibrate(q, x, verbose=False), x, iterations=10, verbose=False)
    """
    check_keras(qmodel, "adaround")
    settings = Settings(iterations, learning_rate, row_batch, warm_start, tuple(beta), regularisation)
    _check(settings, rows)
    refuse_uncalibrated("adaround", qmodel)
    sweep = Sweep("adaround", qmodel, data, limit, batch_size)
    layers = every_place(sweep.graph)
    _name_others(sweep, layers)
    layers = [place for place in layers if place.rows is not None and not place.layer.shares]
    kept = None if folder is None else path_of(folder, "adaround", "rounding")
    finished = finished_of(sweep, kept, "rounding", {**asdict(settings), "rows": rows, "seed": seed})
    compiled: dict[Any, Any] = {}
    with tqdm(layers, desc="adaround", unit="layer", disable=not verbose) as bar:
        for place in bar:
            bar.set_postfix_str(place.name)
            weights = place.layer.weights_as_used()
            # What the codes are of: the file of another run must not be taken for it.
            known = weights, place.layer.scale_of(weights)
            codes = finished.load(place, known)
            if codes is None:
                # By name, so that a run that goes on from a folder draws as one from the start; `hash` of a text
                # differs by process.
                own = seed + zlib.crc32(place.name.encode()) % 2**16
                codes = round_layer(sweep, place, settings, rows, own, compiled)
                finished.store(place, known, codes)
            # At once: the inputs of the next layer are those that this rounding makes.
            place.layer.round_by(codes)
            forget_graphs(qmodel)
    return step_done(qmodel, "adaround")


def round_layer(
    sweep: Sweep, place: Place, settings: Settings, rows: int, seed: int, compiled: dict[Any, Any]
) -> np.ndarray:
    """Codes of a layer's kernel, in Keras' layout: the better of learned and nearest, for each channel."""
    seen, held = examples(sweep, place, rows, np.random.default_rng(seed))
    matrix = matrix_of(place, seen[0].rows.shape[1])
    channels = seen[0].outputs.shape[-1]
    bias = place.layer.bias_as_used()
    bias = np.zeros(channels, np.float32) if bias is None else bias.numpy()
    nearest = matrix.nearest()
    learned, _ = round_matrix(matrix, bias, seen, settings, compiled)
    if place.layer.transforms:  # what a mask has taken out stays out
        learned = np.where(matrix.weights == 0.0, nearest, learned)
    # On samples that no step saw. Where both do as well, nearest stays.
    better = error(matrix, learned, bias, held) < error(matrix, nearest, bias, held)
    # Channels as [groups, 1, outputs of each], along the matrices.
    codes = np.where(better.reshape(len(matrix.weights), 1, -1), learned, nearest)
    return from_matrix(codes, tuple(place.layer.weights_as_used().shape)).astype(np.int8)


def error(matrix: Matrix, codes: np.ndarray, bias: np.ndarray, examples: list[Examples]) -> np.ndarray:
    """Mean squared error of the layer's output with these codes, for each channel: float64[channels]."""
    weights = tf.constant(np.float32(codes * matrix.scale))
    total = np.zeros(len(bias))
    for each in examples:
        y = products(tf.convert_to_tensor(each.rows), weights) + bias
        y = np.asarray(applied(each.activation, y))
        total += np.mean((y - each.outputs) ** 2, axis=0, dtype=np.float64)
    return total


def examples(sweep: Sweep, place: Place, rows: int, rng: np.random.Generator) -> tuple[list[Examples], list[Examples]]:
    """Rows to learn from and rows to judge by, of every call; the latter are of other samples where there are 8."""
    kept: dict[tuple[int, bool], Reservoir] = {}
    read_in, made = [node.inputs[0] for node in place.calls], [node.outputs[0] for node in place.calls]
    first = 0
    for xs, ys in sweep.pairs(place.calls[0], read_in, made):
        for call, (x, y) in enumerate(zip(xs, ys, strict=True)):
            # One budget for all calls of a shared layer.
            most = most_rows(rows, math.prod(row_shape(place))) // len(place.calls) + 1
            judges = np.repeat((first + np.arange(len(x))) % HELD_OUT == HELD_OUT - 1, positions(place.calls[call]))
            for held, chosen in ((False, ~judges), (True, judges)):
                # A quarter as many rows suffice to judge by.
                room = most // (HELD_OUT // 2) + 1 if held else most
                among = np.flatnonzero(chosen)
                kept.setdefault((call, held), Reservoir(room, rng)).offer(
                    len(among), partial(_columns, place, x, tf.reshape(y, (-1, y.shape[-1])), among)
                )
        first += len(xs[0])
    calls = range(len(place.calls))
    # Each leaves as it becomes a tensor: two copies of all are too many.
    seen, held = ([_example(place, i, kept.pop((i, held)), rng) for i in calls] for held in (False, True))
    return seen, held if len(held[0].rows) else seen


def _columns(place: Place, x: tf.Tensor, y: tf.Tensor, among: np.ndarray, taken: np.ndarray) -> list[np.ndarray]:
    """Rows and outputs at the positions taken from among these."""
    return [rows_at(place, x, among[taken]), tf.gather(y, among[taken]).numpy()]


def _example(place: Place, call: int, kept: Reservoir, rng: np.random.Generator) -> Examples:
    order = rng.permutation(len(kept.kept[0]))
    x, y = (_permuted(column, order) for column in kept.kept)
    after = place.activations[call]
    # Activations are not asked about no rows at all.
    return Examples(tf.convert_to_tensor(x), y if not len(y) else np.asarray(applied(after, tf.constant(y))), after)


def _permuted(column: np.ndarray, order: np.ndarray) -> np.ndarray:
    """`column[order]` in the place of the column, which is as large as all that memory is kept for."""
    done = np.zeros(len(order), bool)
    for start in np.flatnonzero(order != np.arange(len(order))):
        if done[start]:
            continue
        first, to = column[start].copy(), start
        while order[to] != start:  # a cycle
            column[to], done[to] = column[order[to]], True
            to = order[to]
        column[to], done[to] = first, True
    return column


def _name_others(sweep: Sweep, layers: list[Place]) -> None:
    warn_left_out("adaround", sweep.graph, "stay rounded to nearest")
    shared = sorted(place.name for place in layers if place.layer.shares)
    if shared:
        warn(
            f"adaround: the weights of {', '.join(shared)} share values (a codebook), and stay rounded to nearest: "
            "weights that are rounded one by one would share no longer."
        )
    others = {place.name for place in layers if place.rows is None}
    # Holders that are no places: an LSTM.
    others |= {node.name for node in sweep.graph.nodes if has_codes(node.op) and not node.op.takes("rounding")}
    if others:
        warn(
            f"adaround: {', '.join(sorted(others))} stay rounded to nearest; only roundings of matrix products are "
            "learned. Give them 8 bits where they lose accuracy."
        )


def _check(settings: Settings, rows: int) -> None:
    for name, value in (("iterations", settings.iterations), ("rows", rows), ("row_batch", settings.row_batch)):
        check_count("adaround", name, value)
    if len(settings.beta) != 2:
        raise ValueError(f"adaround: beta needs its first and its last value. Received: {settings.beta}.")
    for name in ("learning_rate", "warm_start", "beta", "regularisation"):
        check_option("adaround: ", name, getattr(settings, name))
